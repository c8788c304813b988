"""A person's track, with every box that lies on its way: also the faint ones, which are nobody by themselves.

    detections of one person ─▶ way (smooth.py) ─▶ boxes near it, as large and in the same colours ─▶ way again ...

A folded or upside-down body is found with a twentieth of the score of one that stands. Such boxes are everywhere, and
hardly ever where a body must be that was seen just before and just after.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from aqa_extract.actor.link import Detections, mean_colours
from aqa_extract.actor.smooth import noise, way

NEAR = 3
"""Looks from a detection within which the way is known well enough,"""
SURE_WAY = 0.5
"""if its standard deviation is at most so many body lengths."""
FAR = 2.5
"""Standard deviations that a box may be off the way."""
FAR_OUTSIDE, ALIKE_OUTSIDE = 2.0, 0.75
"""Before the first detection and after the last, where only one side tells: there somebody else is easily taken."""
LEAST_RATIO = 0.6
"""Of the box's longer side and the body's there."""
ALIKE = 0.65
"""Agreement with the person's mean colours."""
ROUNDS = 30
DOUBT, COLOUR, SIZE = 0.5, 3.0, 0.25
"""Which of several boxes: log of the score, disagreement of colours, and of the log of sizes, beside the distance."""


def filled(
    found: Detections, rows: NDArray[np.int64], positions: NDArray[np.integer], cuts: Bool[np.ndarray, " looks"]
) -> NDArray[np.int64]:
    """`rows` of one person, rising in look, with the rows of `found` that fit between, before and after them."""
    epoch = np.cumsum(cuts)
    # Of the detections that came first: one stranger's box must not let the next one in.
    colours = mean_colours(found, rows)
    for _ in range(ROUNDS):
        own = epoch[found.look[rows]]
        more = [_fitting(found, rows[own == e], colours, positions, np.flatnonzero(epoch == e)) for e in np.unique(own)]
        if not sum(map(len, more)):
            break
        rows = np.concatenate([rows, *more])
        rows = rows[np.argsort(found.look[rows], kind="stable")]
    return rows


def _fitting(
    found: Detections,
    rows: NDArray[np.int64],
    colours: Float[np.ndarray, " bins"],
    positions: NDArray[np.integer],
    looks: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The best box of each of `looks` near a detection that has none yet, where one fits."""
    seen = found.look[rows]
    place, off, unit = way(found, rows, positions, looks)
    side = np.interp(looks, seen, np.log(found.sides[rows] / unit))
    lost = np.abs(looks[:, None] - seen).min(axis=1)
    more = []
    for k in np.flatnonzero((lost > 0) & (lost <= NEAR) & (off <= SURE_WAY)):
        here = np.arange(*np.searchsorted(found.look, [looks[k], looks[k] + 1]))
        uncertain = np.hypot(off[k], noise(np.exp(side[k]), found.scores[here]))
        distance = np.hypot(*(found.centres[here] / unit - place[k]).T) / uncertain
        size = np.abs(np.log(found.sides[here] / unit) - side[k])
        alike = found.colours[here] @ colours
        outside = not seen[0] < looks[k] < seen[-1]
        far, least = (FAR_OUTSIDE, ALIKE_OUTSIDE) if outside else (FAR, ALIKE)
        fits = (distance <= far) & (size <= -np.log(LEAST_RATIO)) & (alike >= least)
        if fits.any():
            merit = DOUBT * np.log(found.scores[here]) - distance**2 / 2 - (size / SIZE) ** 2 / 2 - COLOUR * (1 - alike)
            more.append(here[np.where(fits, merit, -np.inf).argmax()])
    return np.array(more, np.int64)
