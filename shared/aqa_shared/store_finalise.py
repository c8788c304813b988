"""From committed videos to contiguous arrays: a pure function of the videos and labels, written in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.records import Video
from aqa_shared.store_disk import remove
from aqa_shared.store_index import Index, damaged
from aqa_shared.store_layout import (
    LABEL_COLUMNS,
    META_COLUMNS,
    ArraySpec,
    Column,
    array_digest,
    create_array,
    digest_of,
    text_array,
    to_json,
)
from aqa_shared.store_staging import Staged

_BUFFER_BYTES = 64 << 20


@dataclass(frozen=True)
class Place:
    """Where a video comes from: its position in the old index, or its staging group."""

    id: str
    length: int
    old: int | None
    staged: Staged | None


def merged_order(index: Index, staged: Mapping[str, Staged]) -> list[Place]:
    """All videos sorted by id; a staged video replaces the finalised one of the same id."""
    places = {v: Place(v, int(index.lengths[i]), i, None) for i, v in enumerate(index.ids)}
    places.update({v: Place(v, s.length, None, s) for v, s in staged.items()})
    return [places[v] for v in sorted(places)]


def label_columns(index: Index, order: Sequence[Place], labels: Mapping[str, Video]) -> dict[str, np.ndarray]:
    """The label columns, shape (videos,) each: the given ones, else the old ones, else unknown.

    Where every label is given, the old columns are not read, and so may be damaged.
    """
    kept = any(p.id in index.rows and p.id not in labels for p in order)

    def values(name: str, column: Column) -> Iterator[float | bool | str]:
        before = index.column(name) if kept else ()
        for place in order:
            video, old = labels.get(place.id), index.rows.get(place.id)
            if video is not None:
                given = getattr(video, name)
                yield column.cast(given or None if name == "extra" else given)
            else:
                yield column.cast(None) if old is None else before[old]

    return {n: _column(c, list(values(n, c))) for n, c in LABEL_COLUMNS.items()}


def _column(column: Column, values: Sequence[Any]) -> np.ndarray:
    if column.kind == "s":
        return text_array(values)
    return np.array(values, dtype={"f": np.float64, "b": np.bool_}[column.kind])


def meta_columns(metas: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """One column per known key of the extraction's meta, and the whole of it as JSON."""

    def value(meta: Mapping[str, Any], name: str) -> object:
        if name == "meta":
            return meta
        found = meta.get(name)
        if found is None and isinstance(meta.get("identity"), Mapping):
            found = meta["identity"].get(name)
        if found is None and name == "duration" and meta.get("fps") and meta.get("n_frames"):
            found = float(meta["n_frames"]) / float(meta["fps"])
        return found

    return {n: _column(c, [c.cast(value(m, n)) for m in metas]) for n, c in META_COLUMNS.items()}


def following_arrays(index: Index, order: Sequence[Place], labels: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every array that follows from `labels`, the metas and the lengths: damaged, it can be written anew."""
    old = index.metas()
    columns = meta_columns([p.staged.meta if p.staged else old[p.id] for p in order])
    owner = np.repeat(np.arange(len(order), dtype=np.int64), [p.length for p in order])
    return {**labels, **columns, "segment_video": owner}


def holds(index: Index, name: str, values: np.ndarray) -> bool:
    """Whether the root array `name` can be read and has these values."""
    try:
        old = index.column(name)
    except StoreError:
        return False
    return np.array_equal(values, old.astype(values.dtype), equal_nan=values.dtype.kind == "f")


def content_digest(order: Sequence[Place], index: Index, labels: Mapping[str, np.ndarray]) -> str:
    """Digest of which videos with which features and labels: equal in equal stores, whenever they were made."""
    old = dict(zip(index.ids, index.digests(), strict=True))
    features = [[p.id, p.length, p.staged.digests if p.staged else old[p.id]] for p in order]
    return digest_of(to_json([features, {n: list(v) for n, v in labels.items()}]).encode())


class _Appender:
    """Fills an array from the front; writes whole chunks only, so that no chunk is written twice."""

    def __init__(self, array: Any, row_bytes: int) -> None:
        self.array = array
        rows = array.chunks[0] * max(1, _BUFFER_BYTES // max(1, array.chunks[0] * row_bytes))
        self.buffer = np.empty((min(rows, max(1, array.shape[0])), *array.shape[1:]), dtype=array.dtype)
        self.written = self.filled = 0

    def append(self, data: np.ndarray) -> None:
        while len(data):
            part = data[: len(self.buffer) - self.filled]
            self.buffer[self.filled : self.filled + len(part)] = part
            self.filled += len(part)
            data = data[len(part) :]
            if self.filled == len(self.buffer):
                self.flush()

    def flush(self) -> None:
        if self.filled:
            self.array[self.written : self.written + self.filled] = self.buffer[: self.filled]
            self.written += self.filled
            self.filled = 0


class _OldRows:
    """Rows of a finalised array, in rising order; keeps the last chunk, looks at none that is not asked for.

    So a chunk may be damaged as long as every video in it is replaced.
    """

    def __init__(self, index: Index, name: str) -> None:
        self.index, self.name = index, name
        self.array = index.open(name)
        self.chunk, self.data = -1, np.empty(0)

    def read(self, start: int, stop: int) -> np.ndarray:
        step = self.array.chunks[0]
        parts = []
        for chunk in range(start // step, math.ceil(stop / step)):
            if chunk != self.chunk:
                rows = slice(chunk * step, (chunk + 1) * step)
                self.data = self.index.read(self.name, rows, array=self.array)
                self.chunk = chunk
            low = chunk * step
            parts.append(self.data[max(0, start - low) : stop - low])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def build_arrays(
    new: Path,
    store: Path,
    specs: Sequence[ArraySpec],
    index: Index,
    staged: Mapping[str, Staged],
    order: Sequence[Place],
    following: Mapping[str, np.ndarray],
) -> None:
    """Write the root arrays of the next state into the folder `new`: those `following`; with staged videos the rest.

    Every video's digest is checked on the way. Raises StoreError; damaged staged videos are removed first, so
    that they are extracted again.
    """
    new.mkdir(parents=True)
    for name, values in following.items():
        if name == "segment_video":
            _write(new, name, values, {"long_name": "position of the segment's video"}, "segment")
        else:
            _write_column(new, name, values, {**LABEL_COLUMNS, **META_COLUMNS}[name])
    if not staged:
        return
    old_digests = index.digests()
    digests = [p.staged.digests if p.staged else old_digests[p.old or 0] for p in order]
    lengths = np.array([p.length for p in order], dtype=np.int64)
    offsets = np.cumsum(lengths) - lengths
    _write_column(new, "video_id", text_array(p.id for p in order), Column("s", "stable id of the video"))
    _write_column(new, "digest", text_array(map(to_json, digests)), Column("s", "BLAKE2b of each array, as JSON"))
    _write(new, "length", lengths, {"long_name": "segments of the video", "sample_dimension": "segment"})
    _write(new, "offset", offsets, {"long_name": "row of the video's first segment"})
    _write_segments(new, store, specs, index, order, digests, int(lengths.sum()))


def _write_segments(
    new: Path,
    store: Path,
    specs: Sequence[ArraySpec],
    index: Index,
    order: Sequence[Place],
    digests: Sequence[Mapping[str, str]],
    rows: int,
) -> None:
    coordinates = ["segment_video", *(n for n in ("segment_start_time", "segment_end_time"))]
    present = {s.name for s in specs} | {"segment_video"}
    out = {}
    for spec in specs:
        attrs = dict(spec.attrs)
        if spec.name not in coordinates:
            attrs["coordinates"] = " ".join(c for c in coordinates if c in present)
        array = create_array(
            new / spec.name,
            shape=(rows, *spec.shape),
            dtype=spec.dtype,
            dims=("segment", *spec.dims),
            attrs=attrs,
            row_bytes=spec.row_bytes,
        )
        out[spec.name] = _Appender(array, spec.row_bytes)
    old = {s.name: _OldRows(index, s.name) for s in specs} if any(p.old is not None for p in order) else {}
    torn: dict[str, str] = {}
    for place, digest in zip(order, digests, strict=True):
        for spec in specs:
            if place.staged is not None:
                try:
                    data = place.staged.read(spec.name)
                except StoreError as e:
                    torn[place.id] = e.cause
                    remove(place.staged.folder)
                    break
            else:
                start = int(index.offsets[place.old])
                data = old[spec.name].read(start, start + place.length)
                if array_digest(data) != digest[spec.name]:
                    raise damaged(store, spec.name, f"video {place.id} is not what was committed")
            out[spec.name].append(data)
    if torn:
        raise StoreError(
            f"{store}: {len(torn)} committed video(s) were damaged on disk and are dropped: "
            + "; ".join(list(torn.values())[:5]),
            fix="run the same aqa-extract command again: it extracts just these",
        )
    for appender in out.values():
        appender.flush()


def _write_column(new: Path, name: str, values: np.ndarray, column: Column) -> None:
    attrs = {"long_name": column.about}
    if column.units:
        attrs["units"] = column.units
    if name != "video_id":
        attrs["coordinates"] = "video_id"
    _write(new, name, values, attrs)


def _write(new: Path, name: str, values: np.ndarray, attrs: Mapping[str, str], dim: str = "video") -> None:
    # Text is 64 B a row for the purpose of chunking: columns of a few thousand videos stay one file.
    text = values.dtype == object
    array = create_array(
        new / name,
        shape=values.shape,
        dtype="str" if text else values.dtype.name,
        dims=(dim,),
        attrs=attrs,
        row_bytes=64 if text else values.dtype.itemsize,
    )
    if len(values):
        array[...] = values
