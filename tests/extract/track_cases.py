"""Made-up people whose paths, clothes and cameras are known, and the track that is found of one."""

from __future__ import annotations

import numpy as np

from aqa_extract.actor.camera import Motion
from aqa_extract.actor.track import Looks, Track, follow
from aqa_shared.records import ActorSettings

LENGTH = 103
SIZE = (360, 640)
LOOKS = np.append(np.arange(0, LENGTH, 4), LENGTH - 1)
COUNT = len(LOOKS)
TRUTH = np.arange(LENGTH) / (LENGTH - 1)


def person(cx: np.ndarray | float, cy: np.ndarray | float, height: np.ndarray | float = 0.3) -> np.ndarray:
    """(looks, 4) boxes of someone a third as broad (in pixels) as high, at centre (cx, cy)."""
    cx, cy, height = (np.broadcast_to(v, COUNT) for v in (cx, cy, height))
    half = height * SIZE[0] / 3 / SIZE[1] / 2
    return np.stack([cx - half, cy - height / 2, cx + half, cy + height / 2], axis=-1)


def along(start: float, end: float) -> np.ndarray:
    return start + (end - start) * LOOKS / (LENGTH - 1)


def during(first: int, end: int, score: float = 0.6) -> np.ndarray:
    """Scores of someone who is seen on looks first..end-1 only."""
    return np.where((np.arange(COUNT) >= first) & (np.arange(COUNT) < end), score, 0.0)


def looks(
    *people: tuple[np.ndarray, np.ndarray | float],
    clothes: tuple[int, ...] | None = None,
    camera: np.ndarray | None = None,
    cut: int | None = None,
) -> Looks:
    """`clothes` numbers everybody's colours, by default all different; `camera` (looks, 2): where the hall is."""
    boxes = np.stack([p for p, _ in people], axis=1)
    scores = np.stack([np.broadcast_to(s, COUNT) for _, s in people], axis=1)
    colours = np.tile(np.eye(9)[list(clothes or range(len(people)))], (COUNT, 1, 1))
    cuts = np.arange(COUNT) == (-1 if cut is None else cut)
    return Looks(LOOKS, boxes, scores, Motion(np.zeros((COUNT, 2)) if camera is None else camera, cuts), colours)


def run(seen: Looks, **options: object) -> Track:
    (track, *_) = follow(seen, LENGTH, SIZE, ActorSettings.model_validate(options))
    return track


def centres(track: Track) -> np.ndarray:
    return (track.boxes[:, :2] + track.boxes[:, 2:]) / 2


def sides(track: Track) -> np.ndarray:
    """(length, 2) in pixels."""
    return (track.boxes[:, 2:] - track.boxes[:, :2]) * np.array([SIZE[1], SIZE[0]])
