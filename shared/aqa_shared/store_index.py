"""The finalised part of a store: which video lies in which rows, and the checked way to its arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.store_disk import read_root
from aqa_shared.store_layout import LABEL_COLUMNS, META_COLUMNS, metadata_holds, missing_chunks, open_array


def read_array(array: Any, rows: slice | None = None) -> np.ndarray:
    """Rows of a zarr.Array as NumPy; text as Python strings in an object array."""
    data = np.asarray(array[...] if rows is None else array[rows])
    return data.astype(object) if data.dtype.kind == "T" else data


@dataclass(frozen=True)
class Index:
    """The finalised videos of a store, sorted by id; empty where nothing was finalised yet."""

    store: Path
    attributes: dict[str, Any]
    ids: list[str] = field(default_factory=list)
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 (videos,): segments of each video."""
    offsets: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """int64 (videos,): row of its first segment."""

    @property
    def exists(self) -> bool:
        """Whether the root arrays have been written at all."""
        return "video_id" in self.attributes.get("integrity", {})

    @cached_property
    def rows(self) -> dict[str, int]:
        """Id → position."""
        return {video_id: i for i, video_id in enumerate(self.ids)}

    def column(self, name: str) -> np.ndarray:
        """A whole array with one entry per video, or per segment; empty where nothing was finalised yet."""
        if not self.exists:
            return np.zeros(0, dtype=object)
        return self.read(name)

    def metas(self) -> dict[str, dict[str, Any]]:
        """Id → what the extraction recorded."""
        return {i: json.loads(m) for i, m in zip(self.ids, self.column("meta"), strict=True)}

    def digests(self) -> list[dict[str, str]]:
        """Per video: array name → digest of its values."""
        return [json.loads(d) for d in self.column("digest")]

    def array(self, name: str) -> Any:
        """The zarr.Array at the root, after a look at its metadata and the presence of every chunk.

        Raises StoreError naming the array, the file and the videos it holds.
        """
        array = self.open(name)
        self._refuse_missing(name, array)
        return array

    def open(self, name: str) -> Any:
        """The zarr.Array at the root, after a look at its metadata alone; `read` looks at the chunks it needs."""
        folder = self.store / name
        try:
            if not metadata_holds((folder / "zarr.json").read_bytes(), self.attributes["integrity"][name]):
                raise ValueError("its zarr.json was changed")
            return open_array(folder)
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise damaged(self.store, name, str(e)) from e

    def read(self, name: str, rows: slice | None = None, *, array: Any = None) -> np.ndarray:
        """Rows of a root array; chunks that hold none of them may be damaged.

        Raises StoreError where a chunk is absent or a checksum fails, naming the videos concerned.
        """
        array = self.open(name) if array is None else array
        chunks = _chunks_of(array, rows)
        self._refuse_missing(name, array, chunks)
        try:
            return read_array(array, rows)
        except (OSError, ValueError, TypeError, RuntimeError) as e:
            bad = _first_bad_chunk(array, chunks)
            seen = f"chunk {bad}{self.where(array, bad)}: {e}" if bad is not None else str(e)
            raise damaged(self.store, name, seen) from e

    def _refuse_missing(self, name: str, array: Any, chunks: range | None = None) -> None:
        for chunk, wrong in missing_chunks(self.store / name, array, chunks):
            raise damaged(self.store, name, wrong + self.where(array, chunk))

    def where(self, array: Any, chunk: int) -> str:
        """The videos a chunk of `array` holds, in words."""
        ids = self.videos_in(array, chunk)
        if not ids:
            return ""
        return f" (videos {ids[0]} … {ids[-1]})" if len(ids) > 2 else f" ({', '.join(ids)})"

    def videos_in(self, array: Any, chunk: int) -> list[str]:
        """Ids of the videos that lie, wholly or in part, in a chunk."""
        first, end = chunk * array.chunks[0], (chunk + 1) * array.chunks[0]
        if (array.metadata.dimension_names or ("",))[0] == "video":
            return self.ids[first:end]
        touched = (self.offsets < end) & (self.offsets + self.lengths > first)
        return [self.ids[i] for i in np.flatnonzero(touched)]


def _chunks_of(array: Any, rows: slice | None) -> range:
    """Numbers of the chunks that hold `rows`."""
    wanted = range(array.shape[0])[rows or slice(None)]
    if not wanted:
        return range(0)
    step, (low, high) = array.chunks[0], sorted((wanted[0], wanted[-1]))
    return range(low // step, high // step + 1)


def _first_bad_chunk(array: Any, chunks: range) -> int | None:
    """The first of `chunks` that cannot be read."""
    step = array.chunks[0]
    for chunk in chunks:
        try:
            read_array(array, slice(chunk * step, (chunk + 1) * step))
        except Exception:
            # Damaged bytes can fail in any layer below; which one does not matter here.
            return chunk
    return None


def damaged(store: Path, name: str, seen: str) -> StoreError:
    """The error for bytes that are not what was written."""
    if name in LABEL_COLUMNS:
        fix = "run aqa-extract again with the labels of all its videos, or restore a backup"
    elif name in ("the index", "video_id", "length", "offset", "digest", "meta"):
        fix = "restore a backup, or extract everything again with --overwrite"
    elif name in META_COLUMNS or name == "segment_video":
        fix = "run the same aqa-extract command again, which writes it anew from the rest of the store"
    else:
        fix = f"aqa verify {store} names every damaged video; aqa-extract --repair extracts them again"
    return StoreError(f"{store}: {name} is damaged: {seen}", fix=fix)


def read_index(store: Path) -> Index:
    """The index of the finalised videos. Raises StoreError where it is damaged or inconsistent."""
    attributes = read_root(store)
    bare = Index(store, attributes)
    if not bare.exists:
        return bare
    ids = list(bare.column("video_id"))
    lengths, offsets = bare.column("length"), bare.column("offset")
    index = Index(store, attributes, ids, lengths, offsets)
    for problem in index_problems(index):
        raise damaged(store, "the index", problem)
    return index


def index_problems(index: Index) -> list[str]:
    """What contradicts itself in the index."""
    problems = []
    ids, lengths, offsets = index.ids, index.lengths, index.offsets
    if not len(ids) == len(lengths) == len(offsets) == index.attributes.get("videos"):
        stated = index.attributes.get("videos")
        problems.append(f"{len(ids)} ids, {len(lengths)} lengths, {len(offsets)} offsets, {stated} videos stated")
        return problems
    if ids != sorted(set(ids)):
        problems.append("ids are not sorted or not unique")
    if (lengths < 1).any() or not np.array_equal(offsets, np.cumsum(lengths) - lengths):
        problems.append("offsets are not the running sum of lengths")
    if int(lengths.sum()) != index.attributes.get("segments"):
        problems.append(f"lengths add up to {int(lengths.sum())}, {index.attributes.get('segments')} segments stated")
    return problems
