"""From people found on some frames to the actor followed through all of them.

    looks: people, small grey frames ─▶ camera motion ─▶ tracklets ─▶ tracks ─▶ the actor ─▶ a square a frame
                                        camera.py        link.py              choose.py     crop.py

What is computed from pixels (the camera's way, colours) is handed to `follow`, which is NumPy on a few hundred
boxes: no device, no state, no randomness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from aqa_extract.actor import camera, choose, crop, link
from aqa_extract.actor.appearance import colours
from aqa_shared.records import ActorSettings

Floats = NDArray[np.float64]

WEAK = 0.15
"""Boxes below are nobody. Between this and `min_score` a box may be a curved body or a curtain: it can continue a
person's track, and never makes one."""
SUSPECTS = 2
"""Tracks that get a second look,"""
HOPE = 0.75
"""and the share of `min_score` that two of their detections need before: a square around nothing is looked at until
something is seen in it. Whole frames of FFmpeg's `testsrc2` have up to 0.25, squares cut out of it up to 0.7."""
ZOOM = 1.6
"""Side of the square of a second look over the body's: there the detectors find 99 % of rendered divers in flight
with a score of 0.2, against 87 % on the whole frame."""


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
    people = scores >= WEAK
    motion = camera.movement(views.grey, views.grey_positions, views.positions, boxes, people)
    look, person = np.nonzero(people)
    described = colours(views.frames, look, boxes[look, person])
    each = np.zeros((*scores.shape, described.shape[-1]))
    each[look, person] = described
    return Looks(views.positions, boxes, scores, motion, each)


def follow(looks: Looks, length: int, size: tuple[int, int], settings: ActorSettings) -> list[Track]:
    """The actor and, where `settings.actors` asks for more, the next best people; none where nobody is.

    The timeline has `length` frames of `size` = (height, width) pixels. Raises ValueError for arrays that do not fit
    together.
    """
    ways = _ways(looks, length, size)
    scale = np.array([size[1], size[0], size[1], size[0]], np.float64)
    result = []
    for rows in choose.ranked(ways.tracks, ways.found, size, len(looks.positions), settings):
        own = np.full((len(looks.positions), 4), np.nan)
        own[ways.found.look[rows]] = ways.found.boxes[rows] / scale
        result.append(
            Track(
                (ways.squares(rows, length, size, settings.enlarge) / scale).astype(np.float32),
                _scores(rows, ways.found, looks.positions, length),
                len(rows) / len(looks.positions),
                own.astype(np.float32),
            )
        )
    return result


def doubtful(
    looks: Looks, length: int, size: tuple[int, int], settings: ActorSettings
) -> tuple[NDArray[np.int64], Floats]:
    """Where a second look may find the actor: rows of `looks`, rising, and squares (n, 4) in 0..1.

    Of the best `SUSPECTS` tracks that may be somebody: the looks next to a detection on which they were lost, and
    those on which they were found with less than `min_score`.
    """
    ways = _ways(looks, length, size)
    scale = np.array([size[1], size[0], size[1], size[0]], np.float64)
    least = HOPE * settings.min_score
    hopeful = settings.model_copy(update={"min_score": least, "min_coverage": 0.0, "actors": SUSPECTS})
    where: list[tuple[int, Floats]] = []
    for rows in choose.ranked(ways.tracks, ways.found, size, len(looks.positions), hopeful):
        scores = np.zeros(len(looks.positions))
        scores[ways.found.look[rows]] = ways.found.scores[rows]
        near = np.convolve(scores > 0, np.ones(3), mode="same") > 0
        squares = ways.squares(rows, length, size, ZOOM) / scale
        poor = scores < settings.min_score
        where += [(int(k), squares[looks.positions[k]]) for k in np.flatnonzero(near & poor)]
    where.sort(key=lambda pair: pair[0])
    return np.array([k for k, _ in where], np.int64), np.array([s for _, s in where]).reshape(-1, 4)


@dataclass(frozen=True)
class _Ways:
    """Everybody's tracks, and what their squares are made of."""

    found: link.Detections
    tracks: list[NDArray[np.int64]]
    """Rows of `found`."""
    part: NDArray[np.int64]
    """Which tracklet each row of `found` is in."""
    looks: Looks
    offset: Floats

    def squares(self, rows: NDArray[np.int64], length: int, size: tuple[int, int], enlarge: float) -> Floats:
        """(length, 4) in pixels."""
        motion, positions = self.looks.motion, self.looks.positions
        return crop.crops(rows, self.part[rows], self.found, positions, self.offset, motion.cuts, length, size, enlarge)


def _ways(looks: Looks, length: int, size: tuple[int, int]) -> _Ways:
    _check(looks.positions, looks.boxes, looks.scores, length, size)
    scale = np.array([size[1], size[0], size[1], size[0]], np.float64)
    look, person = _people(looks, scale)
    boxes = looks.boxes[look, person] * scale
    offset = looks.motion.offset * scale[:2]
    found = link.Detections(
        look, boxes, boxes - np.tile(offset[look], 2), looks.scores[look, person], looks.colours[look, person]
    )
    parts = link.tracklets(found, looks.positions)
    part = np.empty(len(look), np.int64)
    for i, rows in enumerate(parts):
        part[rows] = i
    chains = link.join(found, parts, looks.positions, looks.motion.cuts)
    return _Ways(found, [np.concatenate(chain) for chain in chains], part, looks, offset)


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


def _people(looks: Looks, scale: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(look, person) of everybody who can be followed, look by look, the surest first."""
    with np.errstate(invalid="ignore"):
        sides = (looks.boxes[..., 2:] - looks.boxes[..., :2]) * scale[:2]
        usable = (looks.scores >= WEAK) & np.isfinite(looks.boxes).all(-1) & (sides >= 1).all(-1)
    rows: list[tuple[int, int]] = []
    for k in range(len(looks.positions)):
        here = np.flatnonzero(usable[k])
        here = here[np.argsort(-looks.scores[k, here], kind="stable")]
        here = here[link.distinct(looks.boxes[k, here], looks.scores[k, here])]
        rows += [(k, int(person)) for person in here]
    pairs = np.array(rows, np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


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
