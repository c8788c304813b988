"""A track's boxes on single looks → one square for every frame, steady, and wide enough for the body to unfold in.

Places are those of the smoothed way (smooth.py) against the background, shown in the picture: where the actor is lost,
the square is where he must be between the looks before and after, or goes on as he did; it grows with the doubt, and
moves with the hall when the camera pans.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from aqa_extract.actor.link import Detections
from aqa_extract.actor.smooth import NOISE, way

Floats = NDArray[np.float64]

DOUBT = 1.5
"""Standard deviations of the body's place that the square is larger at each side, where they exceed a sure box's,"""
WIDEN = 0.08
"""and by how much it grows with every look that the actor is lost."""
WIDEST = 2.0
UNFOLDED = 0.8
"""Of its greatest length nearby, that a body is given at least: one that is folded unfolds between two looks, and of
one that turns over often only a part is found."""
NEARBY = 16
"""Looks before and after that are nearby: through them a somersault lasts, and a camera seldom zooms by much."""


def crops(
    rows: NDArray[np.int64],
    found: Detections,
    positions: NDArray[np.integer],
    offset: Float[np.ndarray, "looks 2"],
    cuts: NDArray[np.bool_],
    length: int,
    size: tuple[int, int],
    enlarge: float,
) -> Float[np.ndarray, "length 4"]:
    """Squares x1, y1, x2, y2 in pixels of the picture, one a frame.

    `rows` (n,) are the track's detections; `positions` (looks,) the frames looked at;
    `offset` in pixels where the background is; `cuts` before which looks the camera changed.
    """
    timeline = np.arange(length)
    values = np.empty((length, 3))
    epoch = np.cumsum(cuts)
    own = epoch[found.look[rows]]
    every = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    first = 0
    held = np.unique(own)
    for i, run in enumerate(held):
        mine = own == run
        if i + 1 < len(held):
            # A cut between two looks may be anywhere between them.
            after = int(np.searchsorted(epoch, held[i + 1]))
            last = int(positions[after - 1] + positions[after] + 1) // 2
        else:
            last = length
        low = 0 if i == 0 else int(np.searchsorted(epoch, run))
        high = len(positions) if last == length else int(np.searchsorted(epoch, held[i + 1]))
        looks = np.arange(low, high)
        centre, side = _at_looks(rows[mine], found, positions, looks)
        shown = np.concatenate([centre + offset[looks], np.log(side)[:, None]], axis=1)
        for column in range(3):
            known = np.interp(timeline[first:last], positions[looks], shown[:, column])
            values[first:last, column] = _smooth(known, every)
        first = last
    return np.array([square(v[:2], float(np.exp(v[2])), size, enlarge) for v in values])


def _at_looks(
    rows: NDArray[np.int64],
    found: Detections,
    positions: NDArray[np.integer],
    looks: NDArray[np.int64],
) -> tuple[Floats, Floats]:
    """Centre against the background (looks, 2), and the body's longer side (looks,) widened where he was lost."""
    seen = found.look[rows]
    place, off, unit = way(found, rows, positions, looks)
    place = place * unit
    body = np.exp(np.interp(positions[looks], positions[seen], np.log(found.sides[rows])))
    # The middle of three: one box that took in two people makes nobody longer.
    length = np.median(sliding_window_view(np.pad(body, 1, mode="edge"), 3), axis=-1)
    nearby = sliding_window_view(np.pad(length, NEARBY, mode="edge"), 2 * NEARBY + 1).max(axis=-1)
    body = np.maximum(body, UNFOLDED * nearby)
    # The way is smooth, the boxes are not: each lies within its square.
    at, box = np.searchsorted(looks, seen), found.fixed[rows]
    body[at] = np.maximum(body[at], 2 * np.maximum(place[at] - box[:, :2], box[:, 2:] - place[at]).max(axis=1))
    lost = np.abs(looks[:, None] - seen).min(axis=1)
    side = body * (1 + WIDEN * lost) + 2 * DOUBT * unit * np.maximum(off - NOISE, 0)
    return place, np.minimum(side, WIDEST * body)


def _smooth(values: Floats, reach: int) -> Floats:
    """Mean over ±`reach` frames with weights that fall linearly; the ends are continued by point reflection,
    so that steady motion stays what it is."""
    reach = min(reach, len(values) - 1)
    if reach < 1:
        return values
    weights = (reach + 1 - np.abs(np.arange(-reach, reach + 1))).astype(np.float64)
    padded = np.pad(values, reach, mode="reflect", reflect_type="odd")
    return np.convolve(padded, weights / weights.sum(), mode="valid")


def square(centre: Floats, side: float, size: tuple[int, int], enlarge: float = 1.0) -> Floats:
    """x1, y1, x2, y2 in pixels of a square crop around `centre` for a body whose longer side is `side`.

    The square is shifted to lie within the frame. Where the enlarged side exceeds the frame's short side, the
    margin is given up first: the side becomes the short side, or the body's own longer side if that is still
    more. Only in that last case does the crop leave the frame, evenly at both ends of the short dimension.
    """
    height, width = size
    wanted = side * enlarge
    if wanted > min(size):
        wanted = max(float(min(size)), min(side, float(max(size))))
    corner = np.asarray(centre) - wanted / 2
    for axis, extent in enumerate((width, height)):
        room = extent - wanted
        corner[axis] = np.clip(corner[axis], 0, room) if room >= 0 else room / 2
    return np.concatenate([corner, corner + wanted])
