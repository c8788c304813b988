"""Blocks: arrays of many videos one after the other, written once as a Zarr group and never changed.

The layout is CF's contiguous ragged array: video i owns the `length[i]` rows after those of the videos before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from aqa_shared.console import counted
from aqa_shared.errors import StoreError
from aqa_shared.store.groups import GroupReader, GroupWriter, Outdated
from aqa_shared.store.layout import (
    BLOCKS,
    ArraySpec,
    array_digest,
    digest_of,
    merged_meta,
    text_array,
    to_json,
)
from aqa_shared.store.log import Group
from aqa_shared.store.objects import Objects

_BUFFER_BYTES = 64 << 20
_AHEAD_BYTES = 32 << 20


class Source(Protocol):
    """Videos with arrays: a block, or one staged video."""

    @property
    def arrays(self) -> tuple[str, ...]: ...
    @property
    def replaces(self) -> frozenset[str]:
        """Videos of which nothing that came before counts any more."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def lengths(self) -> np.ndarray: ...
    def digest(self, name: str, item: int) -> str: ...
    def meta(self, item: int) -> dict[str, Any]: ...
    def rows(self, name: str, item: int) -> np.ndarray: ...
    def release(self) -> None: ...

    @property
    def unread(self) -> str | None:
        """Key of the one object that `rows` would have to get; None where it has it, or gets what it needs itself."""

    def fetched(self, data: bytes | None) -> None:
        """What lies at `unread`, got by somebody else."""


class Block(GroupReader):
    """The videos of one block."""

    def __init__(self, objects: Objects, group: Group) -> None:
        super().__init__(objects, group)
        self.arrays: tuple[str, ...] = group.arrays
        self._chunks: dict[str, tuple[int, np.ndarray]] = {}

    @cached_property
    def ids(self) -> list[str]:
        """Sorted."""
        ids = list(self.column("video_id"))
        if len(ids) != self.group.videos or len(ids) != len(self.lengths) or any(a >= b for a, b in pairwise(ids)):
            raise self.damaged("video_id", "the index contradicts itself")
        return ids

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 (videos,): segments of each video."""
        return self.column("length")

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 (videos,): row of its first segment."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def replaces(self) -> frozenset[str]:
        """Videos of which nothing counts that lies in the blocks before."""
        return frozenset(self.about["replaces"])

    @cached_property
    def digests(self) -> np.ndarray:
        """uint8 (videos, arrays, 16): BLAKE2b-128 of each video's values."""
        return self.column("digest")

    @cached_property
    def metas(self) -> np.ndarray:
        """What the extraction recorded of each video, as JSON text."""
        return self.column("meta")

    def digest(self, name: str, item: int) -> str:
        return bytes(self.digests[item, self.arrays.index(name)]).hex()

    def meta(self, item: int) -> dict[str, Any]:
        return json.loads(self.metas[item])

    def rows(self, name: str, item: int) -> np.ndarray:
        """A video's values, checked; reads the chunks that they touch and keeps the last one."""
        step = self.array(name).chunks[0]
        start = int(self.offsets[item])
        stop = start + int(self.lengths[item])
        parts = []
        for chunk in range(start // step, -(-stop // step)):
            low, kept = chunk * step, self._chunks.get(name)
            if kept is None or kept[0] != chunk:  # another thread may put another one in its place
                kept = self._chunks[name] = (chunk, self.read(name, slice(low, low + step)))
            parts.append(kept[1][max(0, start - low) : stop - low])
        data = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if array_digest(data) != self.digest(name, item):
            raise self.damaged(name, f"the values of {self.ids[item]} differ from what was committed")
        return data

    def release(self) -> None:
        """Chunks are kept: the next video may need them."""

    unread = None

    def fetched(self, data: bytes | None) -> None:
        """Never asked for."""

    def read(self, name: str, rows: slice) -> np.ndarray:
        try:
            return super().read(name, rows)
        except Outdated:
            raise
        except StoreError as e:
            if name not in self.arrays:
                raise
            start, stop, _ = rows.indices(int(self.lengths.sum()))
            touched = np.flatnonzero((self.offsets < stop) & (self.offsets + self.lengths > start))
            some = f"{self.ids[touched[0]]} … {self.ids[touched[-1]]}" if len(touched) else "none"
            again = f"aqa verify {self.objects} names every damaged video; aqa-extract --repair extracts them again"
            raise StoreError(f"{e.cause} (videos {some})", fix=again) from e


S = TypeVar("S", bound=Source)


class Index(Generic[S]):
    """Which video's array is where, in sources of which the later ones count."""

    def __init__(self, sources: Sequence[S]) -> None:
        self.sources = sources
        self.ids: list[str] = sorted({i for s in sources for i in s.ids})
        self.position = {video_id: i for i, video_id in enumerate(self.ids)}
        self.place: dict[str, np.ndarray] = {}
        """By array: int32 (videos,), the source that counts; -1 where a video lacks the array."""
        self.item: dict[str, np.ndarray] = {}
        """By array: int32 (videos,), which video of that source."""
        self._lengths: dict[str, np.ndarray] = {}
        for number, source in enumerate(sources):
            at = np.fromiter((self.position[i] for i in source.ids), np.int64, len(source.ids))
            if source.replaces:
                gone = [self.position[i] for i in source.replaces if i in self.position]
                for place in self.place.values():
                    place[gone] = -1
            for name in source.arrays:
                if name not in self.place:  # a committed video is a source: no array of all videos for each
                    self.place[name] = np.full(len(self.ids), -1, np.int32)
                    self.item[name] = np.zeros(len(self.ids), np.int32)
                self.place[name][at] = number
                self.item[name][at] = np.arange(len(at))

    def has(self, names: Iterable[str]) -> np.ndarray:
        """bool (videos,): which videos have all of these arrays."""
        found = np.ones(len(self.ids), np.bool_)
        for name in names:
            found &= self.place[name] >= 0 if name in self.place else False
        return found

    def live(self, i: int) -> dict[str, tuple[S, int]]:
        """Array → where it is, for one video."""
        return {n: (self.sources[p[i]], int(self.item[n][i])) for n, p in sorted(self.place.items()) if p[i] >= 0}

    def lengths(self, name: str) -> np.ndarray:
        """int64 (videos,): segments of each video in this array, 0 where it lacks it."""
        if name not in self._lengths:
            found = self._lengths[name] = np.zeros(len(self.ids), np.int64)
            held = self.place[name] >= 0
            place, item = self.place[name][held], self.item[name][held]
            # Of all sources in one go: a committed video is a source, and looking for each takes the square of them.
            used = np.unique(place)
            lengths = [self.sources[number].lengths for number in used]
            first = np.cumsum([0, *map(len, lengths)])
            if lengths:
                found[held] = np.concatenate(lengths)[first[np.searchsorted(used, place)] + item]
        return self._lengths[name]

    def meta(self, i: int) -> dict[str, Any]:
        """What was recorded of a video, by all runs whose arrays of it still count."""
        found: dict[str, Any] = {}
        for number, item in sorted({(int(p[i]), int(self.item[n][i])) for n, p in self.place.items() if p[i] >= 0}):
            meta = self.sources[number].meta(item)
            found = merged_meta(found, meta) if found else meta
        return found

    def digests(self, i: int, names: Iterable[str] | None = None) -> dict[str, str]:
        """Array → digest of its values, for one video."""
        return {n: source.digest(n, item) for n, (source, item) in self.live(i).items() if names is None or n in names}


def index_of(objects: Objects, groups: Sequence[Group]) -> Index[Block]:
    """The index of these blocks, which are read once: they never change, so `objects` remembers the last ones."""
    before: Index[Block] | None = objects.remembered
    known = {block.group: block for block in before.sources} if before else {}
    if before is None or [block.group for block in before.sources] != list(groups):
        before = objects.remembered = Index([known.get(g) or Block(objects, g) for g in groups])
    return before


class Torn(StoreError):
    """Staged videos whose bytes are not what was committed."""

    def __init__(self, objects: Objects, sources: Sequence[Any], causes: Sequence[str]) -> None:
        super().__init__(
            f"{objects}: {counted(len(sources), 'committed video')} damaged on disk and dropped: "
            + "; ".join(causes[:5]),
            fix="run the same aqa-extract command again: it extracts just these",
        )
        self.sources = sources


def write_blocks(
    objects: Objects,
    index: Index[Any],
    arrays: Mapping[str, ArraySpec],
    prefix: str,
    known: Mapping[str, Group] | None = None,
    spare: str = "",
) -> list[Group]:
    """Everything that counts in `index` as blocks, each video in the block of those that have the same arrays.

    A function of the videos alone, down to the last byte, but for `prefix` of the names. Blocks in `known` that hold
    the same already stay. Raises Torn, and StoreError where what is to be kept is damaged.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    lengths = {name: index.lengths(name) for name in index.place}
    for i in range(len(index.ids)):
        by_length: dict[int, list[str]] = {}
        for name in sorted(index.place):
            if index.place[name][i] >= 0:
                by_length.setdefault(int(lengths[name][i]), []).append(name)
        for of_length in by_length.values():
            groups.setdefault(tuple(of_length), []).append(i)
    flagged = set() if not prefix else {i for s in index.sources for i in s.replaces}
    written = []
    for names, members in sorted(groups.items()):
        replaces = sorted(flagged & {index.ids[i] for i in members})
        flagged -= set(replaces)
        written.append(_write_block(objects, index, arrays, names, members, replaces, prefix, known or {}, spare))
    return written


def _write_block(
    objects: Objects,
    index: Index[Any],
    arrays: Mapping[str, ArraySpec],
    names: tuple[str, ...],
    members: Sequence[int],
    replaces: Sequence[str],
    prefix: str,
    known: Mapping[str, Group],
    spare: str,
) -> Group:
    ids = [index.ids[i] for i in members]
    metas = [to_json(index.meta(i)) for i in members]
    digests = [list(index.digests(i, names).values()) for i in members]
    lengths = index.lengths(names[0])[np.array(members)]
    described = {n: arrays[n].to_dict() for n in names}
    name = block_digest(ids, lengths.tolist(), digests, metas, described)
    path = f"{BLOCKS}/{prefix}{name}"
    if path in known:
        if all(getattr(s, "path", "") == path for i in members for s, _ in index.live(i).values()):
            return known[path]
        path = f"{BLOCKS}/{spare}{name}"  # what is there is damaged, and made good by other blocks
    rows = int(lengths.sum())
    writer = GroupWriter(objects, path, {"replaces": replaces, "arrays": described, "Conventions": "CF-1.11"})
    writer.column("video_id", text_array(ids), "stable id of the video")
    writer.column("length", lengths, "segments of the video", sample_dimension="segment", coordinates="video_id")
    writer.column("meta", text_array(metas), "what the extraction recorded, as JSON", coordinates="video_id")
    packed = np.array([[list(bytes.fromhex(d)) for d in of] for of in digests], np.uint8)
    writer.column("digest", packed, f"BLAKE2b-128 of {', '.join(names)}", ("video", "array", "byte"))
    owner = np.repeat(np.arange(len(ids), dtype=np.int64), lengths)
    writer.column("segment_video", owner, "position of the segment's video", ("segment",))
    along = [n for n in names if arrays[n].role == "coordinate" and not arrays[n].shape]
    out = {}
    for name in names:
        spec = arrays[name]
        attrs = {**spec.attrs, "role": spec.role}
        if name not in along:
            attrs["coordinates"] = " ".join(["segment_video", *along])
        out[name] = _Appender(
            writer.array(name, (rows, *spec.shape), spec.dtype, ("segment", *spec.dims), attrs), spec.row_bytes
        )
    _copy(objects, index, members, out)
    return writer.close(arrays=names, videos=len(ids))


def _copy(objects: Objects, index: Index[Any], members: Sequence[int], out: Mapping[str, _Appender]) -> None:
    torn: dict[int, tuple[Source, str]] = {}
    for some in _windows(index, members, out):
        of = {i: {name: index.sources[index.place[name][i]] for name in out} for i in some}
        # Together, as an object store takes as long to answer one request as to answer many.
        unread = {source.unread: source for i in some for source in of[i].values() if source.unread}
        for source, data in zip(unread.values(), objects.get_all(list(unread)), strict=True):
            source.fetched(data)
        for i in some:
            for name, source in of[i].items():
                try:
                    out[name].append(source.rows(name, int(index.item[name][i])))
                except Torn as e:
                    torn[id(source)] = (source, e.cause)
                    break
            for source in of[i].values():
                source.release()
    if torn:
        raise Torn(objects, *(list(x) for x in zip(*torn.values(), strict=True)))
    for appender in out.values():
        appender.flush()


def _windows(index: Index[Any], members: Sequence[int], out: Mapping[str, _Appender]) -> Iterator[Sequence[int]]:
    """`members` in their order, as many at a time as have about `_AHEAD_BYTES` in these arrays, and at least one."""
    sizes = sum(index.lengths(name)[np.array(members)] * appender.row_bytes for name, appender in out.items())
    window = np.cumsum(sizes) // _AHEAD_BYTES
    for same in np.split(np.array(members), np.flatnonzero(np.diff(window)) + 1):
        yield same.tolist()


def block_digest(
    ids: Sequence[str],
    lengths: Sequence[int],
    digests: Sequence[Sequence[str]],
    metas: Sequence[str],
    described: Mapping[str, Any],
) -> str:
    """What a block is named by: equal for equal videos."""
    return digest_of(to_json([list(ids), list(lengths), list(digests), list(metas), described]).encode())


class _Appender:
    """Fills an array from the front; writes whole chunks only, so that no chunk is written twice."""

    def __init__(self, array: Any, row_bytes: int) -> None:
        self.array, self.row_bytes = array, row_bytes
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
