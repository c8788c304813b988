"""The features of a store as training wants them: in memory where they fit, streamed in blocks where not.

The only file that reads a store. `from_store` opens one, `place` loads it where it fits, `select` and `prepared` make
of it what one method reads, and `load` and `batches` give that as `Batch`es, in the order that `order` plans.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aqa_shared import console
from aqa_shared.console import counted
from aqa_shared.errors import EnvironmentFault, StoreError, UsageError
from aqa_shared.store.read import ranges
from aqa_train.batch import Batch, Inputs
from aqa_train.columns import ColumnEncoder, Kind
from aqa_train.feature_checks import refuse_unusable, sizes_by_video
from aqa_train.memory import Loaded, available
from aqa_train.order import Blocks, Rows, blocks_of, read_ahead, windows
from aqa_train.standardise import Standardiser, moments
from aqa_train.stream_names import adds_streams, array_of

InMemory = Literal["auto", "yes", "no"]
MEMORY_SHARE = 0.4
"""`auto` keeps features in memory up to this share of what is available, divided by the number of copies."""
BLOCK_BYTES = 16 * 2**20
"""Least size of a streamed block; blocks begin and end with Dask's chunks, so none is read twice an epoch."""
WINDOW_BLOCKS = 8
"""Blocks shuffled together when streaming; the next window is read while one is used, so two are in memory."""


@dataclass(frozen=True)
class FeatureSet:
    """Segment features of N videos, lazily, with their table."""

    ids: tuple[str, ...]
    shapes: dict[str, tuple[int, ...]]
    """Shape of one segment by stream."""
    lengths: Rows
    """Segments of every video."""
    offsets: Rows
    """First segment of every video in the arrays."""
    table: Mapping[str, NDArray[Any]]
    """Columns by video: score, difficulty (NaN where unknown), split, category ("" where unknown), …"""
    chunks: dict[str, tuple[int, ...]] = field(repr=False)
    """Segments of every chunk by stream."""
    blocks: Blocks = field(repr=False)
    """[first, last) videos of every block."""
    arrays: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """One lazy Dask array (segments, …) a stream."""
    window: int = WINDOW_BLOCKS
    resident: Loaded | None = field(default=None, repr=False)
    """All features, on the training device, when they fit."""
    mapped: Path | None = None
    """Folder of the files that hold `resident`, for other processes."""
    standardise: Standardiser | None = field(default=None, repr=False)
    columns: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    """What a method asks for besides features, by video."""
    say: console.Say = field(default=console.warn, repr=False, compare=False)
    said: set[str] = field(default_factory=set, repr=False, compare=False)
    """Videos that were warned of: streamed ones are read again every epoch."""

    @property
    def channels(self) -> dict[str, int]:
        """Numbers in one segment of every stream."""
        return {name: math.prod(shape) for name, shape in self.shapes.items()}

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

    # ---- opening

    @classmethod
    def from_store(cls, store: Any, streams: Sequence[str] = (), *, say: console.Say = console.warn) -> FeatureSet:
        """Open `streams` (default: all features) of an `aqa_shared.store.FeatureStore`; `rgb:map` names a map."""
        names = [array_of(s) for s in streams] or list(store.streams)
        missing = [n for n in names if n not in store.specs]
        if missing or not names or len(set(names)) < len(names):
            raise UsageError(
                f"{store.path} holds the streams {', '.join(store.streams) or 'none'}, asked for {', '.join(names)}",
                fix=f"choose among them with --streams, or add what is missing: {adds_streams(store.path, streams)}",
            )
        everything, store = len(store), store.select(*names)
        if len(store) < everything:
            say(f"{store.path}: {counted(everything - len(store), 'video')} without {' or '.join(names)} left out")
        if not store.ids:
            raise StoreError(f"{store.path} holds no finished video", fix="run aqa-extract again: it resumes")
        if store.pending:
            say(f"{store.path}: {counted(store.pending, 'extracted video')} left out until `aqa finalise {store.path}`")
        arrays = {n: store.dask(n) for n in names}
        numbers = [n for n, a in arrays.items() if a.ndim < 2]
        if numbers:
            raise UsageError(f"{', '.join(numbers)} is not a feature", fix="choose --streams rgb or rgb,flow")
        return cls._build(tuple(store.ids), arrays, store.lengths, store.offsets, store.table, say)

    @classmethod
    def from_arrays(
        cls,
        features: Mapping[str, NDArray[np.floating]],
        table: Mapping[str, NDArray[Any]],
        ids: Sequence[str] | None = None,
        *,
        say: console.Say = console.warn,
    ) -> FeatureSet:
        """From arrays (videos, segments, …) by stream: for features made elsewhere."""
        import dask.array as da

        shapes = {k: v.shape for k, v in features.items()}
        if any(len(s) < 3 for s in shapes.values()) or len({s[:2] for s in shapes.values()}) != 1:
            raise UsageError(
                "streams must be arrays (videos, segments, channels) of the same videos and segments, got "
                + ", ".join(f"{k} {s}" for k, s in shapes.items()),
                fix="extract or cut all streams with the same sampling",
            )
        n, t = next(iter(shapes.values()))[:2]
        flat = {
            k: da.from_array(v.reshape(n * t, *v.shape[2:]), chunks=(64 * t, *v.shape[2:])) for k, v in features.items()
        }
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
        say: console.Say,
    ) -> FeatureSet:
        whole = cls(
            ids=ids,
            shapes={n: tuple(map(int, a.shape[1:])) for n, a in arrays.items()},
            lengths=np.asarray(lengths, dtype=np.int64),
            offsets=np.asarray(offsets, dtype=np.int64),
            table=table,
            chunks={n: tuple(a.chunks[0]) for n, a in arrays.items()},
            blocks=(),
            arrays=arrays,
            say=say,
        )
        return whole.select(list(arrays))

    # ---- the table

    def column(self, name: str) -> NDArray[Any]:
        """A column of the table, or of its JSON column `extra`; where missing NaN (score, difficulty) or ""."""
        if name in self.table:
            return np.asarray(self.table[name])
        values = [] if name in ("split", "category") else self._extra(name)
        if any(v not in (None, "") for v in values):
            return np.array(["" if v is None else str(v) for v in values], dtype=object)
        if name in ("score", "difficulty"):
            return np.full(len(self.ids), np.nan)
        return np.full(len(self.ids), "", dtype=object)

    def _extra(self, name: str) -> list[Any]:
        return [json.loads(e).get(name) if e else None for e in self.table.get("extra", [])]

    def cells(self, name: str) -> list[Any]:
        """A column with its own types (numbers, text, lists); None where a video has none."""
        values = self.table[name].tolist() if name in self.table else self._extra(name) or [None] * len(self.ids)
        return [None if v is None or v == "" or v != v else v for v in values]

    # ---- what a method reads

    def select(self, streams: Sequence[str]) -> FeatureSet:
        """These streams alone; what is in memory is shared. The order of reading is that of a store of these alone."""
        width = sum(self.channels[n] for n in streams) * 4
        held = self.resident
        return replace(
            self,
            shapes={n: self.shapes[n] for n in streams},
            chunks={n: self.chunks[n] for n in streams},
            blocks=blocks_of(self.offsets, self.chunks[streams[0]], BLOCK_BYTES // width),
            arrays={n: self.arrays[n] for n in streams if n in self.arrays},
            resident=None if held is None else Loaded({n: held.streams[n] for n in streams}, held.present),
        )

    def prepared(
        self, columns: Mapping[str, Kind], labels: Mapping[str, Kind], seen: Rows, labelled: Rows, standardise: str
    ) -> tuple[FeatureSet, Inputs]:
        """With the columns a method asks for, and standardised, by what its training videos tell.

        `labels` are columns that belong to the score, as judges' marks: known of `labelled` alone.
        """
        specs = {}
        for names, rows, label in ((columns, seen, False), (labels, labelled, True)):
            for name, kind in names.items():
                cells = self.cells(name)
                specs[name] = replace(ColumnEncoder.fit(name, kind, [cells[r] for r in rows]), label=label)
        scaled = None if standardise == "none" else Standardiser.of(moments(self, seen), standardise)
        inputs = Inputs(dict(self.shapes), self.segments, specs)
        return replace(self.with_columns(inputs, labelled), standardise=scaled), inputs

    def with_columns(self, inputs: Inputs, labelled: Rows | None = None) -> FeatureSet:
        """With the columns as `inputs` says; those that are labels are unknown of all but `labelled` videos."""
        found = {}
        for name, column in inputs.columns.items():
            cells = self.cells(name)
            if column.label:
                shown = set() if labelled is None else set(labelled.tolist())
                cells = [c if i in shown else None for i, c in enumerate(cells)]
            found[name] = torch.from_numpy(column.encode(name, cells))
        return replace(self, columns=found)

    # ---- in memory

    def place(
        self, device: torch.device, in_memory: InMemory = "auto", copies: int = 1, folder: Path | None = None
    ) -> FeatureSet:
        """The same features, loaded onto `device` once if they fit (or if `yes`); streamed otherwise.

        With `folder` they lie in files there, which other processes map instead of holding copies: a `FeatureSet`
        that is sent to one brings the place along and not the numbers.
        """
        # On a GPU they pass through main memory.
        room = min(available(device), available(torch.device("cpu")))
        fits = self.nbytes <= MEMORY_SHARE * room / copies
        if in_memory == "no" or (in_memory == "auto" and not fits):
            return self
        # Block by block into place: all at once would take the memory twice.
        try:
            loaded = self._gather(np.arange(len(self.ids)), folder)
        except OSError as e:
            if folder is None:
                raise
            raise EnvironmentFault(
                f"no room in {folder} for {self.nbytes / 1e9:.2g} GB of features that processes share: {e.strerror}",
                fix="set TMPDIR to a folder with room, or use --jobs 1",
            ) from e
        return replace(self, resident=loaded.to(device), mapped=folder)

    def on(self, device: torch.device) -> FeatureSet:
        """With what is in memory on `device`."""
        return self if self.resident is None else replace(self, resident=self.resident.to(device))

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "say": _silent}  # who opened it has said what there is to say
        if self.mapped is not None:
            # The lazy arrays would open the store again, which nobody needs who has all of it.
            state |= {"resident": None, "arrays": {}}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.mapped is not None:
            self.__dict__["resident"] = self._room(len(self.ids), self.mapped, new=False)

    def _room(self, videos: int, folder: Path | None, new: bool = True) -> Loaded:
        return Loaded.room(videos, self.segments, self.shapes, self.ragged, folder, new)

    # ---- reading

    def load(self, rows: Rows, device: torch.device) -> Batch:
        """These videos, in this order; scores are NaN."""
        if self.resident is not None:
            at = torch.as_tensor(rows, device=next(iter(self.resident.streams.values())).device)
            return self._batch(rows, self.resident.take(at), device)
        return self._batch(rows, self._gather(rows), device)

    def parts(self, rows: Rows, size: int = 256) -> Iterator[Rows]:
        """`rows` cut where reading is cheap: ascending pieces of at most `size` videos of one block."""
        for first, last in self.blocks:
            inside = rows[(rows >= first) & (rows < last)]
            yield from (inside[i : i + size] for i in range(0, len(inside), size))

    def batches(
        self, rows: Rows, sizes: Sequence[int], rng: np.random.Generator, device: torch.device, skip: int = 0
    ) -> Iterator[tuple[Rows, Batch]]:
        """Batches of these sizes in the order planned by `rng`; the first `skip` are skipped unread."""
        planned = windows(self.blocks, self.window, rows, sum(sizes), rng)
        edges = np.concatenate([[0], np.cumsum(sizes)])
        flat = np.concatenate([*planned, np.empty(0, dtype=np.int64)])
        spans = [(int(edges[i]), int(edges[i + 1])) for i in range(skip, len(sizes))]
        if self.resident is not None or not len(rows):
            for a, b in spans:
                yield flat[a:b], self.load(flat[a:b], device)
            return
        starts = np.concatenate([[0], np.cumsum([len(w) for w in planned])])
        first = int(np.searchsorted(starts, spans[0][0], side="right") - 1) if spans else len(planned)
        reading = read_ahead(range(first, len(planned)), lambda w: (int(starts[w]), self._gather(planned[w])))
        held: list[tuple[int, Loaded]] = []
        try:
            for a, b in spans:
                while not held or held[-1][0] + len(held[-1][1]) < b:
                    # What is left of a window is copied, so that the window itself is gone before more is read.
                    held = [(max(a, at), x.take(torch.arange(max(a - at, 0), len(x)))) for at, x in held]
                    held.append(next(reading))
                batch = Loaded.joined([x.take(slice(max(a - at, 0), b - at)) for at, x in held])
                held = [(at, x) for at, x in held if at + len(x) > b]
                yield flat[a:b], self._batch(flat[a:b], batch, device)
        finally:
            reading.close()

    def _batch(self, rows: Rows, loaded: Loaded, device: torch.device) -> Batch:
        loaded = loaded.to(device)
        streams, present = loaded.streams, loaded.present
        if self.standardise is not None:
            streams = {n: self.standardise(n, x, present) for n, x in streams.items()}
        unknown = torch.full((len(rows),), torch.nan, device=device)
        columns = {n: c[torch.as_tensor(rows)].to(device) for n, c in self.columns.items()}
        at = torch.as_tensor(rows).to(device)
        return Batch(streams, unknown, present, columns, tuple(self.ids[r] for r in rows), at)

    def _gather(self, rows: Rows, folder: Path | None = None) -> Loaded:
        """Any videos in any order: every block they touch is read once, as one slice."""
        found = self._room(len(rows), folder)
        for first, last in self.blocks:
            at = np.flatnonzero((rows >= first) & (rows < last))
            if len(at):
                self._read(rows[at], found, at)
        return found

    def _read(self, rows: Rows, into: Loaded, at: Rows) -> None:
        """Videos of one block, checked, to these places. What lies between them is read, and no more done with it."""
        import dask

        lengths, offsets = self.lengths[rows], self.offsets[rows]
        begin, end = int(offsets.min()), int((offsets + lengths).max())
        read = dask.compute(*[self.arrays[n][begin:end] for n in self.shapes], scheduler="threads")
        starts = np.cumsum(lengths) - lengths
        segments, within = ranges(offsets - begin, lengths), ranges(np.zeros_like(lengths), lengths)
        flat = {n: np.asarray(a[segments], dtype=np.float32) for n, a in zip(self.shapes, read, strict=True)}
        del read
        sizes = sizes_by_video(flat.values(), starts)
        ids = [self.ids[r] for r in rows]
        refuse_unusable(sizes, ids)
        self._warn_of_zeros(sizes, ids)
        place = torch.as_tensor(np.repeat(at, lengths)), torch.as_tensor(within)
        for name, a in flat.items():
            into.streams[name][place] = torch.from_numpy(a)
        if into.present is not None:
            into.present[place] = True

    def _warn_of_zeros(self, sizes: NDArray[np.float64], ids: Sequence[str]) -> None:
        zero = dict.fromkeys(ids[i] for i in np.flatnonzero(sizes == 0).tolist())
        empty = [i for i in zero if i not in self.said]
        if empty:
            self.said.update(empty)
            self.say(f"features that are all zero in {counted(len(empty), 'video')}: {', '.join(empty[:5])}")


def _silent(message: str) -> None:
    pass
