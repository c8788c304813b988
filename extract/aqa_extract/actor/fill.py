"""A person's track, with every box that lies on its way: also the faint ones, which are nobody by themselves.

    detections of one person ─▶ without a neighbour's ─▶ way (smooth.py) ─▶ boxes near it, as large and in the same
                                                          ▲                 colours, that are not a neighbour's ─┐
                                                          └──────────────────────────────────────────────────────┘

A folded or upside-down body is found with a twentieth of the score of one that stands. Such boxes are everywhere, and
hardly ever where a body must be that was seen just before and just after.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from aqa_extract.actor.link import Detections, iou, mean_colours
from aqa_extract.actor.smooth import noise, way

NEAR = 3
"""Looks from a detection within which the way is known well enough,"""
SURE_WAY = 0.5
"""if its standard deviation is at most so many body lengths."""
FAR = 2.5
"""Standard deviations that a box may be off the way."""
FAR_OUTSIDE, ALIKE_OUTSIDE = 2.0, 0.8
"""Before the first detection and after the last, where only one side tells: there somebody else is easily taken."""
LEAST_RATIO = 0.6
"""Of the box's longer side and the body's there."""
ALIKE = 0.65
"""Agreement with the person's mean colours."""
ROUNDS = 30
DOUBT, COLOUR, SIZE = 0.5, 10.0, 0.25
"""Which of several boxes: log of the score, disagreement of colours, and of the log of sizes, beside the distance. How
much oftener a person's own box agrees so well in colour than a neighbour's (the log of it) is 0 at 0.75 and rises by
about 20 a unit in rendered dives; half of that is believed."""
LEAST_NEIGHBOUR, TOGETHER, APART = 3, 2, 0.3
"""Detections of a neighbour; looks on which he and the person are two bodies, and overlap below which they are."""
REACH = 1.0
"""Body lengths from a neighbour's place within which a box may be his."""
LEAST_LEFT = 2
"""Detections of their own that a person needs; who has fewer keeps all."""


def filled(
    found: Detections,
    rows: NDArray[np.int64],
    everybody: Sequence[NDArray[np.int64]],
    positions: NDArray[np.integer],
    cuts: Bool[np.ndarray, " looks"],
) -> NDArray[np.int64]:
    """`rows` of one person, rising in look, with the rows of `found` that fit between, before and after them.

    What belongs to somebody else of `everybody` (all tracks) goes out, and does not come in.
    """
    epoch = np.cumsum(cuts)
    free = ~_others(found, rows, everybody)
    if free[rows].sum() >= LEAST_LEFT:
        rows = rows[free[rows]]
    # Of the detections that came first: one stranger's box must not let the next one in.
    alike = np.where(free, found.colours @ mean_colours(found, rows), 0.0)
    for _ in range(ROUNDS):
        own = epoch[found.look[rows]]
        more = [_fitting(found, rows[own == e], alike, positions, np.flatnonzero(epoch == e)) for e in np.unique(own)]
        if not sum(map(len, more)):
            break
        rows = np.concatenate([rows, *more])
        rows = rows[np.argsort(found.look[rows], kind="stable")]
    return rows


def _others(
    found: Detections, rows: NDArray[np.int64], everybody: Sequence[NDArray[np.int64]]
) -> Bool[np.ndarray, " n"]:
    """Which of `found` belong to a neighbour of the person of `rows`: they are where he is, and look more like him.

    A neighbour is somebody who is seen beside the person: most of the looks that both have show two bodies. A piece of
    the person's own way, which was not joined to it, has no or few looks in common with it.
    """
    alike = found.colours @ mean_colours(found, rows)
    others = np.zeros(len(found.look), bool)
    for other in everybody:
        _, mine, theirs = np.intersect1d(found.look[rows], found.look[other], return_indices=True)
        apart = iou(found.boxes[rows[mine]], found.boxes[other[theirs]]) < APART
        if len(other) < LEAST_NEIGHBOUR or apart.sum() < TOGETHER or 2 * apart.sum() <= len(apart):
            continue
        seen = found.look[other]
        place = np.stack([np.interp(found.look, seen, axis) for axis in found.centres[other].T], axis=-1)
        off = np.hypot(*(found.centres - place).T) / np.interp(found.look, seen, found.sides[other])
        there = (off <= REACH) & (np.abs(found.look[:, None] - seen).min(axis=1) <= NEAR)
        others |= there & (found.colours @ mean_colours(found, other) > alike)
    return others


def _fitting(
    found: Detections,
    rows: NDArray[np.int64],
    alike: Float[np.ndarray, " n"],
    positions: NDArray[np.integer],
    looks: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The best box of each of `looks` near a detection that has none yet, where one fits.

    `alike`: how well the colours of each of `found` agree with the person's; 0 for what is somebody else's.
    """
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
        outside = not seen[0] < looks[k] < seen[-1]
        far, least = (FAR_OUTSIDE, ALIKE_OUTSIDE) if outside else (FAR, ALIKE)
        fits = (distance <= far) & (size <= -np.log(LEAST_RATIO)) & (alike[here] >= least)
        if fits.any():
            merit = (
                DOUBT * np.log(found.scores[here])
                - distance**2 / 2
                - (size / SIZE) ** 2 / 2
                - COLOUR * (1 - alike[here])
            )
            more.append(here[np.where(fits, merit, -np.inf).argmax()])
    return np.array(more, np.int64)
