"""From people found on some frames to the actor followed through all of them.

    looks: people, small grey frames ─▶ camera motion ─▶ tracks ─▶ filled ─▶ the actor ─▶ a square a frame
                                        camera.py        link.py   fill.py   choose.py    crop.py

What is computed from pixels (the camera's way, colours) is handed to `follow`, which is NumPy on a few hundred
boxes: no device, no state, no randomness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from aqa_extract.actor import camera, choose, crop, fill, link
from aqa_extract.actor.appearance import colours
from aqa_shared.records import ActorSettings

Floats = NDArray[np.float64]

FAINT = 0.05
"""Boxes below are nobody."""
WEAK = 0.15
"""Boxes below are somebody only where a person's track wants one. Between this and `min_score` a box may be a curved
body or a curtain: it can be part of a track, and never makes one."""
CANDIDATES = 4
"""Tracks, and as many as `actors` asks for, that are filled before the actor is chosen."""


@dataclass(frozen=True)
class Views:
    """The pixels of a video that decide who its actor is."""

    positions: NDArray[np.int64]
    """(looks,) rising: the frames on which people are looked for."""
    frames: UInt8[Tensor, "looks 3 side side"]
    """Those frames at the detector's input size, RGB."""
    grey_positions: NDArray[np.int64]
    """(n,) rising: `positions` and what lies between them."""
    grey: UInt8[Tensor, "n 64 64"]
    """`camera.small` of those."""


@dataclass(frozen=True)
class Looks:
    """What was seen on the looked-at frames."""

    positions: NDArray[np.int64]
    """(k,) frames, rising."""
    boxes: Floats
    """(k, m, 4) x1, y1, x2, y2 in 0..1."""
    scores: Floats
    """(k, m); 0 = none."""
    motion: camera.Motion
    colours: Floats
    """(k, m, bins), `appearance.colours`; zeros where none."""


@dataclass(frozen=True)
class Track:
    """Where one person is on every frame."""

    boxes: NDArray[np.float32]
    """(length, 4) crops x1, y1, x2, y2 as fractions of the frame's width and height; square in pixels."""
    scores: NDArray[np.float32]
    """(length,) score of the detections, interpolated; 0 where none is as near as the next look."""
    coverage: float
    """Share of the looked-at frames on which this person was detected."""
    found: NDArray[np.float32]
    """(looks, 4) the person's own boxes as fractions; NaN where not detected."""


def look_at(
    views: Views, boxes: Float[np.ndarray, "looks persons 4"], scores: Float[np.ndarray, "looks persons"]
) -> Looks:
    """Everything that `follow` needs of the frames on which the detector found `boxes`."""
    boxes, scores = np.clip(np.asarray(boxes, np.float64), 0, 1), np.asarray(scores, np.float64)
    motion = camera.movement(views.grey, views.grey_positions, views.positions, boxes, scores >= WEAK)
    look, person = np.nonzero(scores >= FAINT)
    described = colours(views.frames, look, boxes[look, person])
    each = np.zeros((*scores.shape, described.shape[-1]))
    each[look, person] = described
    return Looks(views.positions, boxes, scores, motion, each)


def follow(looks: Looks, length: int, size: tuple[int, int], settings: ActorSettings) -> list[Track]:
    """The actor and, where `settings.actors` asks for more, the next best people; none where nobody is.

    The timeline has `length` frames of `size` = (height, width) pixels. Raises ValueError for arrays that do not fit
    together.
    """
    _check(looks.positions, looks.boxes, looks.scores, length, size)
    scale = np.array([size[1], size[0], size[1], size[0]], np.float64)
    offset, count = looks.motion.offset * scale[:2], len(looks.positions)
    found, firm = _people(looks, scale)
    people = link.Detections(
        found.look[firm], *(a[firm] for a in (found.boxes, found.fixed, found.scores, found.colours))
    )
    parts = link.tracklets(people, looks.positions)
    tracks = [firm[np.concatenate(chain)] for chain in link.join(people, parts, looks.positions, looks.motion.cuts)]
    hopeful = settings.model_copy(update={"min_coverage": 0.0, "actors": settings.actors + CANDIDATES})
    best = choose.ranked(tracks, found, size, count, hopeful)
    whole = [fill.filled(found, rows, tracks, looks.positions, looks.motion.cuts) for rows in best]
    result = []
    for rows in choose.ranked(whole, found, size, count, settings):
        own = np.full((count, 4), np.nan)
        own[found.look[rows]] = found.boxes[rows] / scale
        squares = crop.crops(rows, found, looks.positions, offset, looks.motion.cuts, length, size, settings.enlarge)
        result.append(
            Track(
                (squares / scale).astype(np.float32),
                _scores(rows, found, looks.positions, length),
                len(rows) / count,
                own.astype(np.float32),
            )
        )
    return result


def full_frame(length: int, size: tuple[int, int], looks: int) -> Track:
    """Nobody: the frame as far as a square shows it, which is what the streams without an actor look at, too."""
    height, width = size
    whole = crop.square(np.array([width / 2, height / 2]), min(size), size) / np.array([width, height, width, height])
    return Track(
        np.tile(whole, (length, 1)).astype(np.float32),
        np.zeros(length, np.float32),
        0.0,
        np.full((looks, 4), np.nan, np.float32),
    )


def _people(looks: Looks, scale: Floats) -> tuple[link.Detections, NDArray[np.int64]]:
    """Everybody, look by look, the surest first; and the rows of those who can make a track."""
    with np.errstate(invalid="ignore"):
        sides = (looks.boxes[..., 2:] - looks.boxes[..., :2]) * scale[:2]
        usable = (looks.scores >= FAINT) & np.isfinite(looks.boxes).all(-1) & (sides >= 1).all(-1)
    look, person = np.nonzero(usable)
    order = np.lexsort((-looks.scores[look, person], look))
    look, person = look[order], person[order]
    boxes, scores = looks.boxes[look, person] * scale, looks.scores[look, person]
    fixed = boxes - np.tile((looks.motion.offset * scale[:2])[look], 2)
    firm = scores >= WEAK
    for k in np.unique(look[firm]):
        here = np.flatnonzero(firm & (look == k))
        firm[here] = link.distinct(boxes[here], scores[here])
    return link.Detections(look, boxes, fixed, scores, looks.colours[look, person]), np.flatnonzero(firm)


def _scores(
    rows: NDArray[np.int64], found: link.Detections, positions: NDArray[np.int64], length: int
) -> NDArray[np.float32]:
    """Of every frame: interpolated between two successive looks with a detection, else 0 but at the look itself."""
    at_looks = np.zeros(len(positions))
    at_looks[found.look[rows]] = found.scores[rows]
    timeline = np.arange(length)
    values = np.interp(timeline, positions, at_looks)
    after = np.clip(np.searchsorted(positions, timeline), 0, len(positions) - 1)
    before = np.where(positions[after] == timeline, after, np.maximum(after - 1, 0))
    return np.where((at_looks[after] > 0) & (at_looks[before] > 0), values, 0.0).astype(np.float32)


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
