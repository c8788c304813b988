"""The features of a store as training wants them: in memory where they fit, streamed in blocks where not.

One interface for both. The order of an epoch is planned from indices alone: the blocks that hold the wanted
videos are shuffled, gathered into windows of a few blocks, and the videos are shuffled inside each window. The order
is a function of the blocks and the window, which come from the store alone: whether features are in memory or
streamed, which depends on the machine, changes no result.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from aqa_shared import console
from aqa_shared.errors import EnvironmentFault, StoreError, UsageError
from aqa_shared.machine import available_memory

InMemory = Literal["auto", "yes", "no"]
MEMORY_SHARE = 0.4
"""`auto` keeps features in memory up to this share of what is available, divided by the number of copies."""
BLOCK_BYTES = 64 * 2**20
"""Least size of a streamed block; blocks begin and end with Dask's chunks, so none is read twice an epoch."""
WINDOW_BLOCKS = 4
"""Blocks shuffled together when streaming; the next window is read while one is used (two are in memory)."""

LARGEST_SUM = 1e15
"""Of the absolute features of one video: squares of what is larger overflow in float32 while a method learns."""
_CHECKED = 4096
"""Segments checked at a time, so that the check needs no memory worth naming."""

Rows = NDArray[np.int64]
Loaded = tuple[Float[Tensor, "batch time channels"], Bool[Tensor, "batch time"] | None]


@contextmanager
def enough_memory(fix: str) -> Iterator[None]:
    """Running out of memory is the machine's fault, not ours: say what needs less."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        # Torch has a class for a GPU's memory only; main memory's allocator says its name.
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in str(e):
            raise
        cause = (str(e) or "main memory is full").splitlines()[0]
        raise EnvironmentFault(f"not enough memory: {cause}", fix=fix) from e


@dataclass(frozen=True)
class FeatureSet:
    """Segment features of N videos, lazily; streams concatenated along channels."""

    ids: tuple[str, ...]
    channels: dict[str, int]
    """Width of every stream, in the order of concatenation."""
    lengths: Rows
    """Segments of every video."""
    offsets: Rows
    """First segment of every video in the arrays."""
    table: Mapping[str, NDArray[Any]]
    """Columns by video: score, difficulty (NaN where unknown), split, category ("" where unknown), …"""
    arrays: tuple[Any, ...] = field(repr=False)
    """One lazy Dask array (segments, channels) a stream."""
    blocks: tuple[tuple[int, int], ...] = field(repr=False)
    """[first, last) videos of every block."""
    window: int = WINDOW_BLOCKS
    resident: Loaded | None = field(default=None, repr=False)
    """All features, on the training device, when they fit."""
    say: Callable[[str], None] = field(default=console.warn, repr=False, compare=False)
    said: set[str] = field(default_factory=set, repr=False, compare=False)
    """Videos that were warned of: streamed ones are read again every epoch."""

    @property
    def segments(self) -> int:
        """The most segments a video has."""
        return int(self.lengths.max(initial=0))

    @property
    def ragged(self) -> bool:
        """Whether videos differ in their number of segments; batches are then padded and masked."""
        return bool(len(self.lengths) and (self.lengths != self.lengths[0]).any())

    @property
    def nbytes(self) -> int:
        """Bytes of all features in memory, padded, as float32."""
        return len(self.ids) * self.segments * sum(self.channels.values()) * 4

    @classmethod
    def from_store(
        cls, store: Any, streams: Sequence[str] = (), *, say: Callable[[str], None] = console.warn
    ) -> FeatureSet:
        """Open `streams` (default: all; logits, maps and boxes are none) of an `aqa_shared.store.FeatureStore`."""
        names = [s.replace("-", "_") for s in streams] or list(store.streams)
        missing = [n for n in names if n not in store.streams]
        if missing or not names or len(set(names)) < len(names):
            raise UsageError(
                f"{store.path} holds the streams {', '.join(store.streams) or 'none'}, asked for {', '.join(names)}",
                fix="choose among them with --streams, or extract again with the streams you want",
            )
        if not store.ids:
            raise StoreError(f"{store.path} holds no finished video", fix="run aqa-extract again: it resumes")
        if store.pending:
            say(f"{store.path}: {store.pending} extracted video(s) are not part of it yet; aqa-extract finishes it")
        arrays = [store.dask(n) for n in names]
        wide = [n for n, a in zip(names, arrays, strict=True) if a.ndim != 2]
        if wide:
            raise UsageError(f"{', '.join(wide)} is not one vector a segment", fix="choose --streams rgb or rgb,flow")
        return cls._build(
            tuple(store.ids), dict(zip(names, arrays, strict=True)), store.lengths, store.offsets, store.table, say
        )

    @classmethod
    def from_arrays(
        cls,
        features: Mapping[str, NDArray[np.floating]],
        table: Mapping[str, NDArray[Any]],
        ids: Sequence[str] | None = None,
        *,
        say: Callable[[str], None] = console.warn,
    ) -> FeatureSet:
        """From arrays (videos, segments, channels) by stream: for features made elsewhere."""
        import dask.array as da

        shapes = {k: v.shape for k, v in features.items()}
        if any(len(s) != 3 for s in shapes.values()) or len({s[:2] for s in shapes.values()}) != 1:
            raise UsageError(
                "streams must be arrays (videos, segments, channels) of the same videos and segments, got "
                + ", ".join(f"{k} {s}" for k, s in shapes.items()),
                fix="extract or cut all streams with the same sampling",
            )
        n, t, _ = next(iter(shapes.values()))
        flat = {k: da.from_array(v.reshape(n * t, -1), chunks=(64 * t, -1)) for k, v in features.items()}
        names = tuple(ids) if ids is not None else tuple(f"{i:06d}" for i in range(n))
        return cls._build(names, flat, np.full(n, t), np.arange(n) * t, table, say)

    @classmethod
    def _build(
        cls,
        ids: tuple[str, ...],
        arrays: dict[str, Any],
        lengths: NDArray[Any],
        offsets: NDArray[Any],
        table: Mapping[str, NDArray[Any]],
        say: Callable[[str], None],
    ) -> FeatureSet:
        width = sum(a.shape[1] for a in arrays.values()) * 4
        blocks = _blocks(offsets, next(iter(arrays.values())).chunks[0], BLOCK_BYTES // width)
        return cls(
            ids=ids,
            channels={n: int(a.shape[1]) for n, a in arrays.items()},
            lengths=np.asarray(lengths, dtype=np.int64),
            offsets=np.asarray(offsets, dtype=np.int64),
            table=table,
            arrays=tuple(arrays.values()),
            blocks=blocks,
            say=say,
        )

    def column(self, name: str) -> NDArray[Any]:
        """A column of the table, or of its JSON column `extra`; where missing NaN (score, difficulty) or ""."""
        if name in self.table:
            return np.asarray(self.table[name])
        if "extra" in self.table and name not in ("split", "category"):
            values = [json.loads(e).get(name) if e else None for e in self.table["extra"]]
            if any(v not in (None, "") for v in values):
                return np.array(["" if v is None else str(v) for v in values], dtype=object)
        if name in ("score", "difficulty"):
            return np.full(len(self.ids), np.nan)
        return np.full(len(self.ids), "", dtype=object)

    def place(self, device: torch.device, in_memory: InMemory = "auto", jobs: int = 1) -> FeatureSet:
        """The same features, loaded onto `device` once if they fit (or if `yes`); streamed otherwise."""
        # On a GPU they pass through main memory; beside several processes the first keeps a copy too.
        room = min(_available(device), _available(torch.device("cpu")))
        fits = self.nbytes <= MEMORY_SHARE * room / (jobs + 1 if jobs > 1 else 1)
        if in_memory == "no" or (in_memory == "auto" and not fits):
            return self
        # Block by block into place: all at once would take the memory twice.
        features, present = self._gather(np.arange(len(self.ids)))
        return replace(self, resident=(features.to(device), None if present is None else present.to(device)))

    def load(self, rows: Rows, device: torch.device) -> Loaded:
        """The features of these videos, in this order, and which segments exist (None: all)."""
        if self.resident is not None:
            at = torch.as_tensor(rows, device=self.resident[0].device)
            features, present = self.resident[0][at], None if self.resident[1] is None else self.resident[1][at]
        else:
            features, present = self._gather(rows)
        return features.to(device), None if present is None else present.to(device)

    def parts(self, rows: Rows, size: int = 256) -> Iterator[Rows]:
        """`rows` cut where reading is cheap: ascending pieces of at most `size` videos of one block."""
        for first, last in self.blocks:
            inside = rows[(rows >= first) & (rows < last)]
            yield from (inside[i : i + size] for i in range(0, len(inside), size))

    def order(self, rows: Rows, count: int, rng: np.random.Generator) -> list[Rows]:
        """`count` videos in windows: passes over `rows`, each a new shuffle, one after the other."""
        windows: list[Rows] = []
        drawn = 0
        while drawn < count and len(rows):
            for window in self._windows(rows, rng):
                windows.append(window[: count - drawn])
                drawn += len(windows[-1])
                if drawn == count:
                    break
        return windows

    def batches(
        self, rows: Rows, sizes: Sequence[int], rng: np.random.Generator, device: torch.device, skip: int = 0
    ) -> Iterator[tuple[Rows, Loaded]]:
        """Batches of these sizes in the order planned by `rng`; the first `skip` are passed over unread."""
        windows = self.order(rows, sum(sizes), rng)
        edges = np.concatenate([[0], np.cumsum(sizes)])
        flat = np.concatenate([*windows, np.empty(0, dtype=np.int64)])
        todo = range(skip, len(sizes))
        if self.resident is not None or not len(rows):
            for i in todo:
                batch = flat[edges[i] : edges[i + 1]]
                yield batch, self.load(batch, device)
            return
        yield from self._stream(windows, flat, [(int(edges[i]), int(edges[i + 1])) for i in todo], device)

    def moments(self, rows: Rows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and deviation of every channel over all segments of these videos."""
        width = sum(self.channels.values())
        # Summed video by video, so that streamed and resident features give the same bits.
        total, square, count = np.zeros(width), np.zeros(width), int(self.lengths[rows].sum())
        for part in self.parts(np.sort(rows)):
            features = self.load(part, torch.device("cpu"))[0].numpy().astype(np.float64)
            for video in features:
                total += video.sum(axis=0)
                square += np.square(video).sum(axis=0)
        mean = total / max(count, 1)
        variance = np.maximum(square / max(count, 1) - np.square(mean), 0.0)
        return mean.astype(np.float32), np.sqrt(variance).astype(np.float32)

    def _windows(self, rows: Rows, rng: np.random.Generator) -> Iterator[Rows]:
        if self.window >= len(self.blocks):
            yield rng.permutation(np.sort(rows))
            return
        inside = [rows[(rows >= a) & (rows < b)] for a, b in self.blocks]
        order = [i for i in rng.permutation(len(inside)) if len(inside[i])]
        for start in range(0, len(order), self.window):
            yield rng.permutation(np.sort(np.concatenate([inside[i] for i in order[start : start + self.window]])))

    def _stream(
        self, windows: list[Rows], flat: Rows, spans: list[tuple[int, int]], device: torch.device
    ) -> Iterator[tuple[Rows, Loaded]]:
        """Batches from windows that a thread reads one ahead."""
        starts = np.concatenate([[0], np.cumsum([len(w) for w in windows])])
        first = int(np.searchsorted(starts, spans[0][0], side="right") - 1) if spans else len(windows)
        ready: queue.Queue[Any] = queue.Queue(maxsize=1)
        stop = threading.Event()

        def read_ahead() -> None:
            for w in range(first, len(windows)):
                try:
                    item: Any = (int(starts[w]), self._gather(windows[w]))
                except Exception as e:
                    item = e
                while not stop.is_set():
                    try:
                        ready.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if stop.is_set() or isinstance(item, Exception):
                    return

        reader = threading.Thread(target=read_ahead, name="aqa-features", daemon=True)
        reader.start()
        held: list[tuple[int, Loaded]] = []
        try:
            for a, b in spans:
                while not held or held[-1][0] + len(held[-1][1][0]) < b:
                    item = ready.get()
                    if isinstance(item, Exception):
                        raise item
                    held.append(item)
                held = [h for h in held if h[0] + len(h[1][0]) > a]
                pieces = [_cut(h[1], max(a - h[0], 0), b - h[0]) for h in held]
                features = torch.cat([p[0] for p in pieces]).to(device)
                masks = [p[1] for p in pieces if p[1] is not None]
                yield flat[a:b], (features, torch.cat(masks).to(device) if masks else None)
        finally:
            stop.set()
            reader.join()

    def _gather(self, rows: Rows) -> Loaded:
        """Any videos in any order: every block they touch is read once, as one slice."""
        features = torch.zeros(len(rows), self.segments, sum(self.channels.values()))
        present = torch.zeros(len(rows), self.segments, dtype=torch.bool) if self.ragged else None
        for first, last in self.blocks:
            at = np.flatnonzero((rows >= first) & (rows < last))
            if not len(at):
                continue
            low, high = int(rows[at].min()), int(rows[at].max()) + 1
            x, mask = self._read(low, high)
            where = torch.as_tensor(at)
            features[where] = x[torch.as_tensor(rows[at] - low)]
            if present is not None and mask is not None:
                present[where] = mask[torch.as_tensor(rows[at] - low)]
        return features, present

    def _read(self, first: int, last: int) -> Loaded:
        """Videos [first, last), checked."""
        import dask

        begin, lengths = int(self.offsets[first]), self.lengths[first:last]
        end = int(self.offsets[last - 1] + self.lengths[last - 1])
        read = dask.compute(*[a[begin:end] for a in self.arrays], scheduler="threads")
        flat = (
            np.asarray(read[0], dtype=np.float32)
            if len(read) == 1
            else np.concatenate(read, axis=1, dtype=np.float32, casting="same_kind")
        )
        del read
        self._check(flat, first, last, begin)
        if not self.ragged:
            return torch.from_numpy(flat.reshape(last - first, self.segments, -1)), None
        present = np.arange(self.segments) < lengths[:, None]
        features = np.zeros((last - first, self.segments, flat.shape[1]), dtype=np.float32)
        features[present] = flat
        return torch.from_numpy(features), torch.from_numpy(present)

    def _check(self, flat: NDArray[np.float32], first: int, last: int, begin: int) -> None:
        # One pass over the sum finds NaN and inf: both survive every addition.
        sums = np.empty(len(flat))
        for i in range(0, len(flat), _CHECKED):
            sums[i : i + _CHECKED] = np.abs(flat[i : i + _CHECKED]).sum(axis=1, dtype=np.float64)
        starts = self.offsets[first:last] - begin
        by_video = np.add.reduceat(sums, starts) if len(sums) else sums
        broken = [self.ids[first + i] for i in np.flatnonzero(~np.isfinite(by_video))]
        if broken:
            raise StoreError(
                f"{len(broken)} video(s) have NaN or infinite features: {', '.join(broken[:5])}",
                fix="run aqa verify on the store, then extract these videos again",
            )
        huge = [f"{self.ids[first + i]} ({by_video[i]:.3g})" for i in np.flatnonzero(by_video > LARGEST_SUM)]
        if huge:
            raise StoreError(
                f"{len(huge)} video(s) have features whose absolute values add up to more than {LARGEST_SUM:g}: "
                f"{', '.join(huge[:5])}",
                fix="bring the features to a usual scale, or extract these videos again",
            )
        empty = [i for i in (self.ids[first + at] for at in np.flatnonzero(by_video == 0)) if i not in self.said]
        if empty:
            self.said.update(empty)
            self.say(f"{len(empty)} video(s) have features that are all zero: {', '.join(empty[:5])}")


def _cut(loaded: Loaded, a: int, b: int) -> tuple[Tensor, Tensor | None]:
    return loaded[0][a:b], None if loaded[1] is None else loaded[1][a:b]


def _blocks(offsets: NDArray[Any], chunks: Sequence[int], size: int) -> tuple[tuple[int, int], ...]:
    """Videos parted where chunks end, at about `size` segments a block; a video counts where it begins."""
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


def _available(device: torch.device) -> int:
    """Bytes that may be used on the device, or in main memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()
