"""From people found on some frames to one actor followed through all of them.

    detections → link (dynamic programming) → candidates → choose the actor → interpolate → smooth → crop

Linking maximises, over all ways through the sampled frames, the sum of each box's score and of how well it
agrees in place and size with where the track was heading. A frame may be passed over ("no detection"): the
link then spans it, so the track remembers where it was. A jump to somewhere else is possible at a fixed
price, which a change of camera repays and a passing person does not. Linking people over time by score and
overlap is the "action tube" of Gkioxari and Malik, CVPR 2015, arXiv:1411.6031; the links over gaps, the
heading and the constants are ours.

The actor is the track with the largest  Σ score × √(side / frame's short side) × (1 + motion):  seen surely
and long, large, and moving. `motion` is 0 for someone who stands still and 1 for someone whose place spreads
over a body's length.

Everything is NumPy on a few hundred boxes: no device, no state, no randomness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aqa_shared.records import ActorSettings

Floats = NDArray[np.float64]

MAX_SKIP = 12
"""Sampled frames a link may span; beyond, only a jump goes on."""
AGREEMENT = 0.2
"""Overlap × size ratio at which a link neither gains nor costs."""
SKIP_COST = 0.05
"""Of each sampled frame passed over."""
JUMP_COST = 6.0
"""Of going on elsewhere: about four sure detections, so that only a lasting change pays."""
MAX_GROWTH = 4.0
"""Boxes are compared grown, because the actor moves: twice one step apart, at most so many times."""
CANDIDATES = 4
"""Tracks among which the actor is chosen."""
SAME = 0.5
"""Detections that overlap a track by more belong to the same person and found no second track."""
MIN_SHARE = 0.1
"""A track on a smaller share of the sampled frames is noise, not an actor."""


@dataclass(frozen=True)
class Track:
    """Where the actor is on every frame of the timeline."""

    boxes: NDArray[np.float32]
    """(length, 4) crops x1, y1, x2, y2 as fractions of the frame's width and height; square in pixels."""
    scores: NDArray[np.float32]
    """(length,) score of the track, interpolated; 0 where no linked detection is near."""
    coverage: float
    """Of the frames within `every` of a sampled one, the fraction within `every` of a linked detection."""


@dataclass(frozen=True)
class _Path:
    """One way through the sampled frames."""

    frames: NDArray[np.int64]
    """(n,) rows of the sampled frames, rising."""
    boxes: Floats
    """(n, 4)"""
    scores: Floats
    """(n,)"""
    run: NDArray[np.int64]
    """(n,) number of the run each detection is in; a jump starts the next."""


def follow(
    positions: NDArray[np.integer],
    boxes: NDArray[np.floating],
    scores: NDArray[np.floating],
    length: int,
    size: tuple[int, int],
    settings: ActorSettings,
) -> Track:
    """Follow the actor through a timeline of `length` frames of `size` = (height, width) pixels.

    `positions` (k,) are the rising timeline positions looked at, `boxes` (k, m, 4) and `scores` (k, m) what
    was found there (x1, y1, x2, y2 in 0..1; 0 = none). Without a track, every crop is the full frame's: its
    central square. Raises ValueError for arrays that do not fit together.
    """
    looked = np.asarray(positions, np.int64)
    # What a detector guesses beyond the frame cannot be shown.
    corners = np.clip(np.asarray(boxes, np.float64), 0, 1)
    chances = np.asarray(scores, np.float64)
    _check(looked, corners, chances, length, size)
    height, width = size
    pixels = corners * np.array([width, height, width, height])
    sides = np.maximum(pixels[..., 2] - pixels[..., 0], pixels[..., 3] - pixels[..., 1])
    with np.errstate(invalid="ignore"):
        valid = (chances >= max(settings.min_score, 1e-6)) & np.isfinite(pixels).all(-1) & (sides >= 1)

    # The full frame, as far as a square shows it: what the streams without an actor look at, too.
    crops = np.tile(_square(np.array([width / 2, height / 2]), min(size), size), (length, 1))
    track_scores = np.zeros(length)
    coverage = 0.0
    path = _actor(looked, np.nan_to_num(pixels), np.nan_to_num(chances), valid, settings.every, min(size))
    if path is not None and length:
        found = looked[path.frames]
        crops = _crops(path, found, length, size, settings)
        timeline = np.arange(length)
        near = _distance(timeline, found) <= settings.every
        track_scores = np.where(near, np.interp(timeline, found, path.scores), 0.0)
        coverage = float(near.sum() / (_distance(timeline, looked) <= settings.every).sum())
    fractions = crops / np.array([width, height, width, height])
    return Track(fractions.astype(np.float32), track_scores.astype(np.float32), coverage)


def _check(positions: NDArray[np.int64], boxes: Floats, scores: Floats, length: int, size: tuple[int, int]) -> None:
    k = len(positions)
    if positions.ndim != 1 or scores.ndim != 2 or len(scores) != k or boxes.shape != (*scores.shape, 4):
        raise ValueError(
            f"got {positions.shape = }, {boxes.shape = }, {scores.shape = }, expected (k,), (k, m, 4), (k, m)"
        )
    if k and (positions[0] < 0 or positions[-1] >= length or (np.diff(positions) <= 0).any()):
        raise ValueError(f"positions must rise within 0..{length - 1}, got {positions[0]}..{positions[-1]}")
    if min(size) < 1:
        raise ValueError(f"got {size = }, expected (height, width) in pixels")


def _distance(timeline: NDArray[np.int64], marks: NDArray[np.int64]) -> NDArray[np.int64]:
    """From every frame to the nearest of the rising `marks`."""
    after = np.clip(np.searchsorted(marks, timeline), 0, len(marks) - 1)
    before = np.maximum(after - 1, 0)
    return np.minimum(np.abs(marks[after] - timeline), np.abs(timeline - marks[before]))


def _actor(
    positions: NDArray[np.int64],
    boxes: Floats,
    scores: Floats,
    valid: NDArray[np.bool_],
    every: int,
    short: int,
) -> _Path | None:
    """The candidate track with the largest total; None where no track is long enough."""
    valid = valid.copy()
    best: tuple[float, _Path] | None = None
    for _ in range(CANDIDATES):
        path = _link(positions, boxes, scores, valid, every)
        if path is None:
            break
        total = _total(path, short)
        if len(path.frames) >= MIN_SHARE * len(positions) and (best is None or total > best[0]):
            best = total, path
        valid[path.frames] &= _iou(path.boxes[:, None], boxes[path.frames]) <= SAME
    return best[1] if best else None


def _total(path: _Path, short: int) -> float:
    sides = np.maximum(*(path.boxes[:, 2:] - path.boxes[:, :2]).T)
    centres = (path.boxes[:, :2] + path.boxes[:, 2:]) / 2
    motion = np.zeros(len(sides))
    for run in np.unique(path.run):  # a jump is the camera's motion, not the actor's
        own = path.run == run
        motion[own] = min(1.0, float(np.hypot(*centres[own].std(axis=0)) / np.median(sides[own])))
    return float((path.scores * np.sqrt(sides / short) * (1 + motion)).sum())


def _iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union, (..., 4) with (..., 4); 0 where neither has an area."""
    shared = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return shared / np.maximum(union, 1e-12)


def _link(
    positions: NDArray[np.int64], boxes: Floats, scores: Floats, valid: NDArray[np.bool_], every: int
) -> _Path | None:
    """The best way through the valid detections; None without any.

    value[k, m] is the best sum of a way that ends in detection m of frame k. The heading of a way is the
    running mean velocity of the best way into its end (a first-order program with that memory instead of a
    second-order one), which keeps two people apart who pass each other.
    """
    count, width = scores.shape
    if not valid.any():
        return None
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    halves = (boxes[..., 2:] - boxes[..., :2]) / 2
    value = np.full((count, width), -np.inf)
    heading = np.zeros((count, width, 2))
    previous = np.full((count, width), -1, np.int64)
    jumped = np.zeros((count, width), bool)
    best_end, best_value = -1, -np.inf
    for k in range(count):
        here = np.flatnonzero(valid[k])
        if len(here) == 0:
            continue
        gain = np.zeros(len(here))
        origin = np.full(len(here), -1, np.int64)
        jump = np.zeros(len(here), bool)
        if best_value > JUMP_COST:
            gain[:], origin[:], jump[:] = best_value - JUMP_COST, best_end, True
        low = max(0, k - MAX_SKIP)
        past = np.flatnonzero(valid[low:k]) + low * width
        if len(past):
            row, column = np.divmod(past, width)
            elapsed = positions[k] - positions[row]
            shift = heading[row, column] * np.minimum(elapsed, 2 * every)[:, None]
            expected = centres[row, column] + shift
            growth = np.minimum(1 + elapsed / every, MAX_GROWTH)[:, None, None]
            agreement = _agreement(
                expected[:, None], halves[row, column][:, None], centres[k, here], halves[k, here], growth
            )
            linked = value[row, column] - SKIP_COST * (k - row - 1)
            sums = np.where(agreement > 0, linked[:, None] + agreement - AGREEMENT, -np.inf)
            at = sums.argmax(axis=0)
            better = sums[at, np.arange(len(here))] > gain
            gain = np.where(better, sums[at, np.arange(len(here))], gain)
            origin = np.where(better, past[at], origin)
            jump &= ~better
            velocity = (centres[k, here] - centres[row[at], column[at]]) / elapsed[at][:, None]
            # The first link has no earlier heading to average with.
            started = (previous[row[at], column[at]] < 0) | jumped[row[at], column[at]]
            mean = np.where(started[:, None], velocity, (heading[row[at], column[at]] + velocity) / 2)
            heading[k, here] = np.where(better[:, None], mean, 0.0)
        value[k, here] = scores[k, here] + gain
        previous[k, here] = origin
        jumped[k, here] = jump
        end = int(here[value[k, here].argmax()])
        if value[k, end] > best_value:
            best_end, best_value = k * width + end, float(value[k, end])
    return _trace(best_end, previous.reshape(-1), jumped.reshape(-1), boxes.reshape(-1, 4), scores.reshape(-1), width)


def _agreement(
    centre: Floats, half: Floats, other_centre: Floats, other_half: Floats, growth: Floats | float
) -> Floats:
    """How well two bodies agree in place and size, 0..1: overlap of the grown boxes × ratio of the longer sides."""
    grown, other_grown = half * growth, other_half * growth
    overlap = _iou(
        np.concatenate(np.broadcast_arrays(centre - grown, centre + grown), axis=-1),
        np.concatenate(np.broadcast_arrays(other_centre - other_grown, other_centre + other_grown), axis=-1),
    )
    ratio = half.max(-1) / other_half.max(-1)
    return overlap * np.minimum(ratio, 1 / ratio)


def _trace(
    end: int,
    previous: NDArray[np.int64],
    jumped: NDArray[np.bool_],
    boxes: Floats,
    scores: Floats,
    width: int,
) -> _Path:
    way: list[int] = []
    while end >= 0:
        way.append(end)
        end = int(previous[end])
    order = np.array(way[::-1])
    return _Path(order // width, boxes[order], scores[order], np.cumsum(jumped[order]))


def _crops(
    path: _Path, found: NDArray[np.int64], length: int, size: tuple[int, int], settings: ActorSettings
) -> Floats:
    """(length, 4) square crops in pixels: each run median-filtered, interpolated and smoothed by itself."""
    centres = (path.boxes[:, :2] + path.boxes[:, 2:]) / 2
    sides = np.maximum(*(path.boxes[:, 2:] - path.boxes[:, :2]).T)
    timeline = np.arange(length)
    values = np.empty((length, 3))
    first = 0
    for run in range(int(path.run[-1]) + 1):
        own = np.flatnonzero(path.run == run)
        # Two runs meet halfway: a cut between two looks may be anywhere.
        last = length if own[-1] + 1 == len(found) else (found[own[-1]] + found[own[-1] + 1] + 1) // 2
        part = timeline[first:last]
        for column, known in enumerate((centres[own, 0], centres[own, 1], np.log(sides[own]))):
            values[first:last, column] = _smooth(np.interp(part, found[own], _median(known)), settings.every)
        first = int(last)
    return np.array([_square(v[:2], float(np.exp(v[2])), size, settings.enlarge) for v in values])


def _median(values: Floats, window: int = 3) -> Floats:
    """Running median; the ends see themselves repeated."""
    if len(values) < window:
        return values
    padded = np.pad(values, window // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=-1)


def _smooth(values: Floats, reach: int) -> Floats:
    """Mean over ±`reach` frames with weights that fall linearly; the ends are continued by point reflection,
    so that steady motion stays what it is."""
    reach = min(reach, len(values) - 1)
    if reach < 1:
        return values
    weights = (reach + 1 - np.abs(np.arange(-reach, reach + 1))).astype(np.float64)
    padded = np.pad(values, reach, mode="reflect", reflect_type="odd")
    return np.convolve(padded, weights / weights.sum(), mode="valid")


def _square(centre: Floats, side: float, size: tuple[int, int], enlarge: float = 1.0) -> Floats:
    """x1, y1, x2, y2 in pixels of a square crop around `centre` for a body whose longer side is `side`.

    The square is shifted to lie within the frame. Where the enlarged side exceeds the frame's short side, the
    margin is given up first: the side becomes the short side, or the body's own longer side if that is still
    more. Only in that last case does the crop leave the frame, evenly at both ends of the short dimension.
    """
    height, width = size
    wanted = side * enlarge
    if wanted > min(size):
        wanted = max(float(min(size)), min(side, float(max(size))))
    corner = centre - wanted / 2
    for axis, extent in enumerate((width, height)):
        room = extent - wanted
        corner[axis] = np.clip(corner[axis], 0, room) if room >= 0 else room / 2
    return np.concatenate([corner, corner + wanted])
