"""Which frames of a video are looked at for its actor: of the video and the actor's settings alone."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from aqa_shared.records import ActorSettings


def looks(first: int, end: int, settings: ActorSettings) -> Int64[np.ndarray, " looks"]:
    """Frames first..end-1 on which people are looked for: every k-th, and the last.

    k is `every`, or as much more as keeps them at `settings.looks`: 10 frames and k = 4 give 0 4 8 9.
    """
    step = _step(end - first, settings)
    rows = np.arange(first, end, step, dtype=np.int64)
    return rows if not len(rows) or rows[-1] == end - 1 else np.append(rows, end - 1)


def greys(first: int, end: int, settings: ActorSettings) -> Int64[np.ndarray, " n"]:
    """Frames on which only the camera is looked at, and the looks among them: twice as many."""
    half = max(1, _step(end - first, settings) // 2)
    return np.union1d(np.arange(first, end, half, dtype=np.int64), looks(first, end, settings))


def _step(frames: int, settings: ActorSettings) -> int:
    return max(settings.every, -(-(frames - 1) // (settings.looks - 1)))
