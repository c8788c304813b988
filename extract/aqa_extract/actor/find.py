"""From frames to tracks: look at each frame, look again where the actor was lost or seen badly, follow.

    frames ─▶ detector ─▶ camera, colours ─▶ tracks ─▶ squares around doubtful places ─▶ detector ─▶ tracks again
                                                └──────────────── up to ROUNDS times ────────────────┘

A detector with anchors from a fifth of the frame up misses a small body, one upside down, one folded; cut out so
that it fills the input, the same body is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aqa_extract.actor.appearance import colours
from aqa_extract.actor.link import iou
from aqa_extract.actor.ssd import PersonDetector, Persons
from aqa_extract.actor.track import WEAK, Looks, Track, Views, doubtful, follow, look_at
from aqa_extract.frames import crop_boxes
from aqa_shared.records import ActorSettings

BATCH = 8
"""Frames a call: several cores take several calls at once."""
ROUNDS = 3
PERSONS = 4
"""Boxes that a second look may add."""
TRIED = 0.6
"""Overlap with a square looked at before, from which looking again would show the same."""
CUT_OFF = 0.02
"""A box this near to the square's border, in sides of it, is part of a body."""


@dataclass(frozen=True)
class Found:
    """The actor of a video, with what was seen on the way."""

    looks: Looks
    tracks: list[Track]
    """The actor first; empty where nobody is."""
    second_looks: int
    """Squares that were looked at beside the frames."""


def find(
    detector: PersonDetector,
    views: Views,
    length: int,
    size: tuple[int, int],
    settings: ActorSettings,
    each: Callable[[Callable[[Tensor], Persons], Iterable[Tensor]], Iterable[Persons]] = map,
) -> Found:
    """Follow the actor through `length` frames of `size` = (height, width) pixels; `views` are on the detector's
    device. `each` applies the detector to batches, in order, on as many cores as it likes."""
    seen = list(each(detector.detect, views.frames.split(BATCH)))
    boxes = torch.cat([s.boxes for s in seen]).cpu().numpy()
    scores = torch.cat([s.scores for s in seen]).cpu().numpy()
    looks = look_at(views, boxes, scores)
    tried: list[list[np.ndarray]] = [[] for _ in views.positions]
    total = 0
    for _ in range(ROUNDS):
        rows, squares = doubtful(looks, length, size, settings)
        fresh = np.array(
            [all(iou(s, t) < TRIED for t in tried[k]) for k, s in zip(rows, squares, strict=True)], bool
        ).reshape(-1)
        rows, squares = rows[fresh], squares[fresh]
        if not len(rows):
            break
        total += len(rows)
        for k, s in zip(rows, squares, strict=True):
            tried[k].append(s)
        looks = _look_again(detector, views.frames, looks, rows, squares, each)
    return Found(looks, follow(looks, length, size, settings), total)


def _look_again(
    detector: PersonDetector,
    frames: Tensor,
    looks: Looks,
    rows: NDArray[np.int64],
    squares: np.ndarray,
    each: Callable[[Callable[[Tensor], Persons], Iterable[Tensor]], Iterable[Persons]],
) -> Looks:
    """`looks` with what the detector finds in `squares` (n, 4; 0..1 of the frame) of its `rows`."""

    def cut(part: slice) -> Tensor:
        source = frames[torch.from_numpy(rows[part]).to(frames.device)]
        pixels = crop_boxes(source, torch.from_numpy(squares[part].astype(np.float32)), detector.size)
        return pixels.round_().to(torch.uint8)

    parts = (slice(first, first + BATCH) for first in range(0, len(rows), BATCH))
    seen = list(each(detector.detect, map(cut, parts)))
    boxes = [s.boxes[:, :PERSONS].cpu().numpy().astype(np.float64) for s in seen]
    scores = [s.scores[:, :PERSONS].cpu().numpy().astype(np.float64) for s in seen]
    found, chance = np.concatenate(boxes), np.concatenate(scores)
    # Where the square ends inside the frame, what touches its border is part of a body.
    low, high = squares[:, None, :2], squares[:, None, 2:]
    part_of = ((found[..., :2] < CUT_OFF) & (low > 0)) | ((found[..., 2:] > 1 - CUT_OFF) & (high < 1))
    chance = np.where(part_of.any(-1), 0.0, chance)
    whole = np.clip(np.tile(low, 2) + np.clip(found, 0, 1) * np.tile(high - low, 2), 0, 1)
    chance[chance < WEAK] = 0

    most = int(np.bincount(rows).max())
    count, persons = looks.scores.shape
    grown = [np.concatenate([a, np.zeros((count, most * PERSONS, *a.shape[2:]))], axis=1) for a in
             (looks.boxes, looks.scores, looks.colours)]  # fmt: skip
    filled = np.full(count, persons)
    described = colours(frames, np.repeat(rows, PERSONS), whole.reshape(-1, 4)).reshape(len(rows), PERSONS, -1)
    for i, k in enumerate(rows):
        at = slice(filled[k], filled[k] + PERSONS)
        grown[0][k, at], grown[1][k, at], grown[2][k, at] = whole[i], chance[i], described[i]
        filled[k] += PERSONS
    return replace(looks, boxes=grown[0], scores=grown[1], colours=grown[2])
