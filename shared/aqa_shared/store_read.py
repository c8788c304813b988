"""Reading a feature store: lazily through Dask, whole through NumPy, one video at a time."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.records import ExtractSettings
from aqa_shared.store_disk import read_root, refuse_half_changed
from aqa_shared.store_index import Index, read_index
from aqa_shared.store_layout import LABEL_COLUMNS, META_COLUMNS, QUARANTINE, ArraySpec, text_array
from aqa_shared.store_staging import staged_folders

_BLOCK_BYTES = 128 << 20
"""Dask costs 1–20 ms a task graph, so its blocks hold many Zarr chunks."""


class FeatureStore:
    """The finalised videos of a store, read only.

    Shapes: `rgb` etc. are (segments of all videos, channels); video i owns the rows
    offsets[i] : offsets[i] + lengths[i]. Every read checks the checksums and that the store did not change
    since it was opened; both raise StoreError.
    """

    def __init__(self, path: Path, index: Index) -> None:
        self.path = path
        self._index = index
        self._arrays: dict[str, Any] = {}
        attributes = index.attributes
        self.specs = {s["name"]: ArraySpec(**s) for s in attributes["arrays"]}
        self.ids: list[str] = index.ids
        self.lengths: np.ndarray = index.lengths
        self.offsets: np.ndarray = index.offsets
        self.streams = tuple(spec.name for spec in self.specs.values() if spec.role == "feature")
        self.settings = ExtractSettings.model_validate(attributes["settings"])
        self.provenance: dict[str, Any] = attributes["provenance"]
        self.runs: list[dict[str, Any]] = attributes["runs"]
        """Provenance of later runs, where it differs from the first."""
        self.pending = sum((folder / "zarr.json").exists() for folder in staged_folders(path))
        """Committed videos that are not finalised; they are not in `ids`."""

    @classmethod
    def open(cls, path: Path | str) -> FeatureStore:
        """Open a store. Raises StoreError where it is none, newer, damaged, or between two states."""
        path = Path(path)
        for attempt in range(3):
            refuse_half_changed(path)
            seal = read_root(path, sealed_only=False).get("seal")
            try:
                index = read_index(path)
            except StoreError:
                if attempt == 2 or seal == read_root(path, sealed_only=False).get("seal"):
                    raise
                continue  # a writer changed the store in this moment
            refuse_half_changed(path)
            if seal == read_root(path, sealed_only=False).get("seal"):
                return cls(path, index)
        raise StoreError(f"{path}: the store keeps changing", fix="open it when no extraction writes to it")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r}: {len(self)} videos, {', '.join(self.specs)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path.absolute(), self._index.attributes["seal"])

    @property
    def seal(self) -> str:
        """Digest of the root metadata: another one means another state of the store."""
        return str(self._index.attributes["seal"])

    @property
    def content(self) -> str:
        """Digest of ids, features and labels: equal for equal data, whenever and wherever it was extracted."""
        return str(self._index.attributes["content"])

    @cached_property
    def table(self) -> dict[str, np.ndarray]:
        """Every column but `meta`: name → (videos,), float64, bool, or object holding str."""
        return {n: self.column(n) for n in (*LABEL_COLUMNS, *META_COLUMNS) if n != "meta"}

    def column(self, name: str) -> np.ndarray:
        """One column, shape (videos,)."""
        columns = {**LABEL_COLUMNS, **META_COLUMNS}
        if name not in columns and name not in ("video_id", "length", "offset", "digest"):
            raise StoreError(f"{self.path}: no column {name!r}", fix=f"columns: {', '.join(columns)}")
        if not self._index.exists:
            kind = columns[name].kind if name in columns else "s"
            return text_array([]) if kind == "s" else np.zeros(0, np.float64 if kind == "f" else np.bool_)
        data = self._index.column(name)
        self._unchanged()
        return data

    def dask(self, name: str) -> Any:
        """The array as a dask.array, (segments, …), in blocks of many whole Zarr chunks."""
        import dask.array as da

        spec = self._spec(name)
        shape = (int(self.lengths.sum()), *spec.shape)
        step = self._array(name).chunks[0] if self._index.exists else 1
        block = step * max(1, _BLOCK_BYTES // max(1, step * spec.row_bytes))
        return da.from_array(
            Rows(self, name),
            chunks=(min(block, max(1, shape[0])), *spec.shape),
            name=f"aqa-{name}-{self.seal}",
            lock=False,
            asarray=False,
            meta=np.empty((0,) * len(shape), dtype=spec.dtype),
        )

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """Rows of an array as NumPy, (rows, …); all of them by default."""
        spec = self._spec(name)
        if not self._index.exists:
            return np.empty((0, *spec.shape), dtype=spec.dtype)
        data = self._index.read(name, rows, array=self._array(name))
        self._unchanged()
        return data

    def video(self, id: str, name: str) -> np.ndarray:
        """The rows of one video, (its segments, …)."""
        try:
            i = self._index.rows[id]
        except KeyError:
            raise StoreError(f"{self.path}: no video {id!r} among {len(self)}", fix=f"aqa info {self.path}") from None
        start = int(self.offsets[i])
        return self.read(name, slice(start, start + int(self.lengths[i])))

    def _spec(self, name: str) -> ArraySpec:
        try:
            return self.specs[name]
        except KeyError:
            has = ", ".join(self.specs)
            raise StoreError(
                f"{self.path}: no array {name!r}; it holds {has}", fix="extract with that stream switched on"
            ) from None

    def _array(self, name: str) -> Any:
        if name not in self._arrays:
            self._arrays[name] = self._index.array(name)
        return self._arrays[name]

    def _unchanged(self) -> None:
        if (self.path / "zarr.json").exists() and read_root(self.path, sealed_only=False).get("seal") == self.seal:
            return
        raise StoreError(
            f"{self.path}: the store was changed while it was being read",
            fix="run the command again when no extraction writes to this store",
        )


class Rows:
    """An array of a store as Dask wants it: sliced without being read, and able to travel to a worker."""

    def __init__(self, store: FeatureStore, name: str) -> None:
        spec = store.specs[name]
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


def _reopen(path: Path, seal: str) -> FeatureStore:
    store = FeatureStore.open(path)
    if store.seal != seal:
        raise StoreError(f"{path}: the store was changed since it was opened", fix="open it again")
    return store


def describe(path: Path | str) -> dict[str, Any]:
    """What `aqa info` shows: counts, arrays, labels, settings, weights, versions; JSON-able."""
    store = FeatureStore.open(path)
    score, split, category = (store.column(n) for n in ("score", "split", "category"))
    labelled = score[~np.isnan(score)]
    attributes = store._index.attributes
    lengths = store.lengths
    quarantine = store.path / QUARANTINE
    return {
        "path": str(store.path),
        "schema": attributes["aqa_schema"],
        "videos": len(store),
        "segments": int(lengths.sum()),
        "segments_per_video": [int(lengths.min()), int(lengths.max())] if len(store) else None,
        "pending": store.pending,
        "quarantined": sum(1 for line in quarantine.read_bytes().splitlines() if line.strip())
        if quarantine.exists()
        else 0,
        "streams": list(store.streams),
        "arrays": {
            s.name: {"dims": ["segment", *s.dims], "shape": [int(lengths.sum()), *s.shape], "dtype": s.dtype}
            for s in store.specs.values()
        },
        "bytes": sum(f.stat().st_size for f in store.path.rglob("*") if f.is_file()),
        "labelled": len(labelled),
        "score_range": [float(labelled.min()), float(labelled.max())] if len(labelled) else None,
        "splits": _counts(split),
        "categories": _counts(category),
        "settings": attributes["settings"],
        "weights": store.provenance.get("weights", {}),
        "provenance": store.provenance,
        "runs": store.runs,
        "created": attributes["created"],
        "aqa_version": attributes["aqa_version"],
    }


def _counts(values: np.ndarray) -> dict[str, int]:
    names, counts = np.unique(values[values != ""].astype(str), return_counts=True)
    return {str(n): int(c) for n, c in zip(names, counts, strict=True)}
