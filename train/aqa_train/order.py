"""In which order videos are read, from indices alone: blocks shuffled, gathered into windows, shuffled inside.

The order is a function of the blocks and the window, which come from the store alone: whether features are in memory
or streamed, which depends on the machine, changes no result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Blocks = tuple[tuple[int, int], ...]


def blocks_of(offsets: NDArray[Any], chunks: Sequence[int], size: int) -> Blocks:
    """[first, last) videos, parted where chunks end, at about `size` segments; a video counts where it begins."""
    starts = np.asarray(offsets, dtype=np.int64)
    cuts = [0]
    taken = 0
    for end in np.cumsum(chunks):
        video = int(np.searchsorted(starts, end))
        if end - taken >= size and video > cuts[-1]:
            cuts.append(video)
            taken = int(end)
    if cuts[-1] < len(starts):
        cuts.append(len(starts))
    return tuple(pairwise(cuts))


def windows(blocks: Blocks, window: int, rows: Rows, count: int, rng: np.random.Generator) -> list[Rows]:
    """`count` videos in windows: passes over `rows`, each a new shuffle, one after the other."""
    found: list[Rows] = []
    drawn = 0
    while drawn < count and len(rows):
        for one in _pass(blocks, window, rows, rng):
            found.append(one[: count - drawn])
            drawn += len(found[-1])
            if drawn == count:
                break
    return found


def _pass(blocks: Blocks, window: int, rows: Rows, rng: np.random.Generator) -> Iterator[Rows]:
    if window >= len(blocks):
        yield rng.permutation(np.sort(rows))
        return
    inside = [rows[(rows >= a) & (rows < b)] for a, b in blocks]
    order = [i for i in rng.permutation(len(inside)) if len(inside[i])]
    for start in range(0, len(order), window):
        yield rng.permutation(np.sort(np.concatenate([inside[i] for i in order[start : start + window]])))


def read_ahead(todo: Sequence[Any], read: Callable[[Any], Any]) -> Generator[Any]:
    """`read` of each in order, by a thread that is one ahead. After one that failed nothing more is read."""
    coming: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, thread_name_prefix="aqa-features") as reader:
        for one in todo:
            if coming:
                coming[0].result()
            coming.append(reader.submit(read, one))
            if len(coming) > 1:
                yield coming.popleft().result()
        if coming:
            yield coming.popleft().result()
