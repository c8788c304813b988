"""Reading a store: the index at once, features when asked for, and one state of it for as long as it is held."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.records import ExtractSettings
from aqa_shared.store.blocks import Block, Index
from aqa_shared.store.groups import Outdated
from aqa_shared.store.holdings import counts, provenance_of, settings_of
from aqa_shared.store.layout import (
    LABEL_COLUMNS,
    META_COLUMNS,
    ArraySpec,
    digest_of,
    meta_column,
    text_array,
    to_json,
)
from aqa_shared.store.log import State, state_of, state_or_none
from aqa_shared.store.objects import Objects, Where, disk_errors
from aqa_shared.store.stage import read_staged
from aqa_shared.store.table import label_columns

_BLOCK_BYTES = 16 << 20
"""Of one Dask chunk: a task costs milliseconds."""


class FeatureStore:
    """The finalised videos of a store, or those of them that have certain arrays, sorted by id."""

    def __init__(
        self, objects: Objects, state: State, index: Index[Block], chosen: tuple[str, ...] | None = None
    ) -> None:
        self.path = objects.where
        self._objects, self._state, self._index, self._chosen = objects, state, index, chosen
        names = tuple(state.arrays) if chosen is None else chosen
        self.specs: dict[str, ArraySpec] = {n: state.arrays[n] for n in names if n in index.place or not index.ids}
        """Arrays along `segment` that some video has, or those that were selected."""
        self.streams = tuple(n for n, s in self.specs.items() if s.role == "feature")
        """Names of those that are features."""
        everything = np.arange(len(index.ids))
        for name in self.specs if not index.ids else ():  # an empty store can be read as well
            index.place[name] = index.item[name] = np.zeros(0, np.int32)
        self._rows = everything if chosen is None else everything[index.has(chosen)]
        self.ids: list[str] = [index.ids[i] for i in self._rows]

    @classmethod
    def open(cls, where: Where, *, number: int | None = None) -> FeatureStore:
        """Open a store as it is now, or as of a change. Raises StoreError where it is none, newer, or damaged."""
        objects = Objects.at(where)
        with disk_errors(objects, "read the store"):
            for attempt in range(5):
                state = state_of(objects) if number is None else state_or_none(objects, number)
                if state is None:
                    raise Outdated(f"{where}: the store was compacted since it was opened", fix="open it again")
                try:
                    return cls(objects, state, Index([Block(objects, b) for b in state.blocks]))
                except StoreError:
                    if attempt == 4 or state_of(objects).number == state.number:
                        raise
        raise AssertionError("the last attempt returns or raises")

    def select(self, *names: str) -> FeatureStore:
        """The videos that have all of these arrays, and nothing but these arrays.

        Raises StoreError for an array that no video has.
        """
        for name in names:
            self._spec(name)
        return FeatureStore(self._objects, self._state, self._index, tuple(names))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}: {len(self)} videos, {', '.join(self.specs)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self._objects.where, self._state.number, self._chosen)

    @cached_property
    def _chosen_rows(self) -> frozenset[int]:
        return frozenset(self._rows.tolist())

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 (videos,): segments of each video, in its longest stream."""
        found = [self._index.lengths(n)[self._rows] for n in self.streams or self.specs]
        return np.max(found, axis=0) if found else np.zeros(len(self), np.int64)

    @property
    def offsets(self) -> np.ndarray:
        """int64 (videos,): row of each video's first segment in `read` and `dask`."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def coverage(self) -> dict[str, int]:
        """Array → how many videos have it."""
        return {n: int((self._index.place[n][self._rows] >= 0).sum()) for n in self.specs}

    @cached_property
    def pending(self) -> int:
        """Committed videos that are not finalised; what they bring is not in `ids`."""
        staged = read_staged(self._objects, labels=False).parts
        self._objects.staged = {}  # a reader may stay for days, and needs no more of them
        return len({p.id for p in staged if counts(self._state, p)})

    @cached_property
    def settings(self) -> ExtractSettings | None:
        """Of all runs together, or of those that made what was selected; None for features from elsewhere."""
        return settings_of(self._objects, self._state, self._chosen)

    @property
    def provenance(self) -> dict[str, Any]:
        """Of the first run, with the weights of all."""
        return provenance_of(self._state)

    @property
    def runs(self) -> tuple[dict[str, Any], ...]:
        """Settings, weights and versions of every run that differs from those before it."""
        return self._state.runs

    @cached_property
    def content(self) -> str:
        """Digest of ids, values and labels: equal for equal data, whenever, wherever and however it was extracted."""
        names = set(self.specs)
        rows = [[i, self._index.digests(at, names)] for i, at in zip(self.ids, self._rows.tolist(), strict=True)]
        return digest_of(to_json([rows, {n: list(v) for n, v in self._labels.items()}]).encode())

    @cached_property
    def _labels(self) -> dict[str, np.ndarray]:
        return label_columns(self._objects, self._state.labels, self.ids)

    @cached_property
    def metas(self) -> list[dict[str, Any]]:
        """What the extraction recorded of each video."""
        return [self._index.meta(i) for i in self._rows.tolist()]

    @cached_property
    def table(self) -> dict[str, np.ndarray]:
        """Every column: name → (videos,), float64, bool, or object holding str."""
        return {**self._labels, **{n: meta_column(n, self.metas) for n in META_COLUMNS}}

    def column(self, name: str) -> np.ndarray:
        """One column, shape (videos,)."""
        if name == "video_id":
            return text_array(self.ids)
        if name == "meta":
            return text_array(map(to_json, self.metas))
        if name in LABEL_COLUMNS:
            return self._labels[name]
        if name not in META_COLUMNS:
            columns = ", ".join((*LABEL_COLUMNS, *META_COLUMNS, "meta"))
            raise StoreError(f"{self.path}: no column {name!r}", fix=f"columns: {columns}")
        return meta_column(name, self.metas)

    def dask(self, name: str) -> Any:
        """The array as a dask.array, (segments, …), the videos one after the other in the order of `ids`."""
        import dask.array as da

        rows = LazyArray(self, name)
        spec = self.specs[name]
        step = max((s.array(name).chunks[0] for s in self._blocks(name)), default=1)
        block = step * max(1, _BLOCK_BYTES // max(1, step * spec.row_bytes))
        selected = digest_of(to_json([str(self.path), self._state.number, self._chosen]).encode())
        return da.from_array(
            rows,
            chunks=(min(block, max(1, rows.shape[0])), *spec.shape),
            name=f"aqa-{name}-{selected}",
            lock=False,
            asarray=False,
            meta=np.empty((0,) * rows.ndim, dtype=spec.dtype),
        )

    def _blocks(self, name: str) -> list[Any]:
        place = self._index.place[name][self._rows]
        return [self._index.sources[i] for i in np.unique(place) if i >= 0]

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Rows of an array as NumPy, (rows, …); all of them by default.

        Raises StoreError where a video of this selection lacks the array, and where its bytes are damaged.
        """
        spec = self._spec(name)
        self._refuse_gaps(name)
        start, stop, _ = (rows or slice(None)).indices(int(self.lengths.sum()))
        first = int(np.searchsorted(self.offsets, start, "right")) - 1
        last = int(np.searchsorted(self.offsets, stop, "left"))
        if stop <= start:
            return np.empty((0, *spec.shape), spec.dtype)
        videos = self._rows[first:last]
        place, item = self._index.place[name][videos], self._index.item[name][videos]
        lengths = self.lengths[first:last]
        base = int(self.offsets[first])
        targets = np.cumsum(lengths) - lengths
        out = np.empty((0, *spec.shape), spec.dtype)
        with disk_errors(self.path, "read the store"):
            for number in np.unique(place):
                here = np.flatnonzero(place == number)
                block = self._index.sources[number]
                for source, target, count in _spans(block, name, item[here], targets[here]):
                    low, high = int(source[0]), int(source[-1] + count[-1])
                    if len(here) == len(videos) and high - low == lengths.sum():  # as where there is one block
                        return block.read(name, slice(low + start - base, low + stop - base))
                    data = block.read(name, slice(low, high))
                    out = out if len(out) else np.empty((int(lengths.sum()), *spec.shape), spec.dtype)
                    out[ranges(target, count)] = data[ranges(source - low, count)]
        return out[start - base : stop - base]

    def video(self, id: str, name: str) -> np.ndarray:
        """One video's values, (its segments, …)."""
        self._spec(name)
        i = self._index.position.get(id, -1)
        if i not in self._chosen_rows:
            raise StoreError(f"{self.path}: no video {id!r} among {len(self)}", fix=f"aqa info {self.path}")
        if self._index.place[name][i] < 0:
            raise self._lacking(name, [id])
        block = self._index.sources[self._index.place[name][i]]
        item = self._index.item[name][i]
        start = int(block.offsets[item])
        return block.read(name, slice(start, start + int(block.lengths[item])))

    def to_xarray(self) -> Any:
        """Everything of this selection as one xarray.Dataset: arrays lazily through Dask, columns, coordinates.

        Arrays that not all videos have are left out: `select` them.
        """
        import xarray

        whole = [n for n, count in self.coverage.items() if count == len(self) and self._even(n)]
        data = {n: (("segment", *self.specs[n].dims), self.dask(n), self.specs[n].attrs) for n in whole}
        about = {**LABEL_COLUMNS, **META_COLUMNS}
        columns = {
            n: ("video", v.astype(str) if v.dtype == object else v, _column_attributes(about[n]))
            for n, v in self.table.items()
        }
        owner = np.repeat(np.arange(len(self)), self.lengths)
        coordinates = {"video_id": ("video", np.array(self.ids, dtype=str)), "segment_video": ("segment", owner)}
        along = [n for n in whole if self.specs[n].role == "coordinate" and not self.specs[n].shape]
        found = xarray.Dataset({**data, **columns, "length": ("video", self.lengths)}, coordinates)
        settings = to_json(self.settings.model_dump(mode="json")) if self.settings else ""
        return found.set_coords(along).assign_attrs(
            Conventions="CF-1.11", settings=settings, provenance=to_json(self.provenance)
        )

    def _spec(self, name: str) -> ArraySpec:
        try:
            return self.specs[name]
        except KeyError:
            stream = name.replace("_", "-")
            raise StoreError(
                f"{self.path}: no array {name!r}; it holds {', '.join(self.specs) or 'none'}",
                fix=f"aqa-extract VIDEOS --out {self.path} --streams {stream} adds it to the videos that are there",
            ) from None

    def _refuse_gaps(self, name: str) -> None:
        missing = np.flatnonzero(self._index.place[name][self._rows] < 0)
        if len(missing):
            raise self._lacking(name, [self.ids[i] for i in missing])
        if not self._even(name):
            lengths = {n: self._index.lengths(n)[self._rows] for n in self.streams}
            differ = int(np.flatnonzero(self._index.lengths(name)[self._rows] != self.lengths)[0])
            listed = ", ".join(f"{n} {found[differ]}" for n, found in lengths.items())
            raise StoreError(
                f"{self.path}: its streams differ in their numbers of segments (as {self.ids[differ]}: {listed})",
                fix=f"read one alone: aqa-train --streams {name}, store.select({name!r}); features from elsewhere get "
                "equal numbers by aqa import-features --transform resample:rows=N",
            )

    def _even(self, name: str) -> bool:
        return bool((self._index.lengths(name)[self._rows] == self.lengths).all())

    def _lacking(self, name: str, ids: Sequence[str]) -> StoreError:
        stream = name.replace("_", "-")
        return StoreError(
            f"{self.path}: {len(ids)} of {len(self)} videos lack {name} ({', '.join(ids[:5])})",
            fix=f"aqa-extract VIDEOS --out {self.path} --streams {stream} makes just these; "
            f"store.select({name!r}) has the others",
        )


def _spans(
    block: Block, name: str, items: np.ndarray, targets: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(first rows in the block, first rows in the result, rows) of videos that one read brings.

    Cut where a whole chunk lies between two of them: it may be damaged, and what it holds replaced.
    """
    sources, counts = block.offsets[items], block.lengths[items]
    gaps = sources[1:] - (sources[:-1] + counts[:-1])
    cuts = np.flatnonzero(gaps >= block.array(name).chunks[0]) + 1
    return list(zip(*(np.split(x, cuts) for x in (sources, targets, counts)), strict=True))


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers start, start + 1, … of every range, one after the other."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(int(counts.sum()))


class LazyArray:
    """An array of a store as Dask wants it: sliced without being read, and able to travel to a worker."""

    def __init__(self, store: FeatureStore, name: str) -> None:
        spec = store._spec(name)
        store._refuse_gaps(name)
        self.store, self.name = store, name
        self.shape = (int(store.lengths.sum()), *spec.shape)
        self.dtype = np.dtype(spec.dtype)
        self.ndim = len(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(first, slice):
            start, stop, step = first.indices(self.shape[0])
            if step > 0:
                data = self.store.read(self.name, slice(start, max(start, stop)))
                return data[(slice(None, None, step), *rest)]
        wanted = np.arange(self.shape[0])[first]
        if np.size(wanted) == 0:
            return np.empty(self.shape, self.dtype)[:0][(slice(None), *rest)]
        low = int(np.min(wanted))
        data = self.store.read(self.name, slice(low, int(np.max(wanted)) + 1))
        return data[(wanted - low, *rest)]


def _reopen(where: Where, number: int, chosen: tuple[str, ...] | None) -> FeatureStore:
    store = FeatureStore.open(where, number=number)
    return store if chosen is None else store.select(*chosen)


def _column_attributes(column: Any) -> dict[str, str]:
    return {"long_name": column.about, **({"units": column.units} if column.units else {})}
