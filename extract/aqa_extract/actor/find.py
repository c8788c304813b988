"""From frames to tracks: people on each look, the camera and colours, tracks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aqa_extract.actor.ssd import PersonDetector, Persons
from aqa_extract.actor.track import Looks, Track, Views, follow, look_at
from aqa_shared.records import ActorSettings

BATCH = 8
"""Frames a call: several cores take several calls at once."""


@dataclass(frozen=True)
class FoundActor:
    """The actor of a video, with what was seen on the way."""

    looks: Looks
    tracks: list[Track]
    """The actor first; empty where nobody is."""


def find(
    detector: PersonDetector,
    views: Views,
    length: int,
    size: tuple[int, int],
    settings: ActorSettings,
    each: Callable[[Callable[[Tensor], Persons], Iterable[Tensor]], Iterable[Persons]] = map,
) -> FoundActor:
    """Follow the actor through `length` frames of `size` = (height, width) pixels; frame 0 of the tracks is the first
    look. `views` are on the detector's device. `each` applies the detector to batches, in order, on as many cores as
    it likes."""
    seen = list(each(detector.detect, views.frames.split(BATCH)))
    boxes = torch.cat([s.boxes for s in seen]).cpu().numpy()
    scores = torch.cat([s.scores for s in seen]).cpu().numpy()
    looks = look_at(views, boxes, scores)
    # A part, or a protocol's timeline, may begin late in the file.
    own = replace(looks, positions=looks.positions - looks.positions[0])
    return FoundActor(looks, follow(own, length, size, settings))
