"""Features that no training survives, found in one pass over their sum."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from aqa_shared.console import counted
from aqa_shared.errors import StoreError

LARGEST_SUM = 1e15
"""Of the absolute features of one video: squares of what is larger overflow in float32 while a method learns."""
_AT_ONCE = 4096
"""Segments summed at a time, so that the sum needs no memory worth naming."""


def sizes_by_video(streams: Iterable[NDArray[np.float32]], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """(videos,): the sum of all absolute features of each. Streams are (segments, …), `starts` each video's first.

    NaN and inf survive every addition.
    """
    found = np.zeros(len(starts))
    for array in streams:
        sums = np.empty(len(array))
        for i in range(0, len(array), _AT_ONCE):
            part = array[i : i + _AT_ONCE]
            sums[i : i + _AT_ONCE] = np.abs(part).reshape(len(part), -1).sum(axis=1, dtype=np.float64)
        found += np.add.reduceat(sums, starts)
    return found


def refuse_unusable(sizes: NDArray[np.float64], ids: Sequence[str]) -> None:
    """Raises StoreError for videos whose features are not finite, or too large to be squared."""
    broken = [ids[i] for i in np.flatnonzero(~np.isfinite(sizes)).tolist()]
    if broken:
        raise StoreError(
            f"NaN or infinite features in {counted(len(broken), 'video')}: {', '.join(broken[:5])}",
            fix="run aqa verify on the store, then extract these videos again",
        )
    huge = [f"{ids[i]} ({sizes[i]:.3g})" for i in np.flatnonzero(sizes > LARGEST_SUM).tolist()]
    if huge:
        raise StoreError(
            f"features whose absolute values add up to more than {LARGEST_SUM:g} in {counted(len(huge), 'video')}: "
            f"{', '.join(huge[:5])}",
            fix="bring the features to a usual scale, or extract these videos again",
        )
