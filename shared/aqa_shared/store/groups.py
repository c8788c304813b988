"""Zarr groups of ours: written once and never changed, checksummed, opened by one object, and strict in reading."""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import WrapperStore

from aqa_shared.errors import StoreError
from aqa_shared.store.layout import chunk_rows, digest_of, to_json
from aqa_shared.store.log import Group, state_or_none
from aqa_shared.store.objects import Objects


class _Strict(WrapperStore[Any]):
    """An absent chunk is an error: Zarr takes it for fill values without a word."""

    async def get(self, key: str, *arguments: Any, **more: Any) -> Any:
        found = await self._store.get(key, *arguments, **more)
        if found is None and not key.endswith("zarr.json"):
            raise FileNotFoundError(errno.ENOENT, f"{key.rsplit('/', 1)[-1]} is missing")
        return found

    def with_read_only(self, read_only: bool = False) -> _Strict:
        """The wrappers of older Zarrs have none."""
        return _Strict(self._store.with_read_only(read_only))


class _Fresh(WrapperStore[Any]):
    """As if nothing were there: what an interrupted attempt left is overwritten with the same, and never removed.

    The object `held` is kept back until it is whole. So every put is of the last word, and two processes may write the
    same group at the same time.
    """

    def __init__(self, store: Any, held: str) -> None:
        super().__init__(store)
        self.written: set[str] = set()
        self.held = held
        self.value: Any = None

    async def get(self, key: str, *arguments: Any, **more: Any) -> Any:
        if key == self.held:
            return self.value
        return await self._store.get(key, *arguments, **more) if key in self.written else None

    async def exists(self, key: str) -> bool:
        return key in self.written or (key == self.held and self.value is not None)

    async def set(self, key: str, value: Any) -> None:
        if key == self.held:
            self.value = value
            return
        self.written.add(key)
        await self._store.set(key, value)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Zarr makes groups above what it writes with this; they are nobody's."""


class GroupWriter:
    """Writes the arrays of a new group, and then its metadata in one document."""

    def __init__(self, objects: Objects, path: str, attributes: Mapping[str, Any]) -> None:
        self.objects, self.path = objects, path
        self.bytes = 0
        self.store = _Fresh(objects.store, f"{path}/zarr.json")
        self.group = zarr.create_group(self.store, path=path, attributes=json.loads(to_json(attributes)))

    def array(
        self, name: str, shape: tuple[int, ...], dtype: str, dims: Sequence[str], attrs: Mapping[str, Any]
    ) -> Any:
        """A new zarr.Array: chunked along its first axis, checksummed, not compressed.

        Features do not compress (zstd saves 7 %). `write_empty_chunks`: a chunk that happens to hold only the fill
        value is written too, so that an absent chunk always means damage. Chunk names with "." need no folders.
        """
        text = dtype == "str"
        # Text is 64 B a row for the purpose of chunking: columns of a few thousand videos stay one object.
        row = 64 if text else int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        self.bytes += 0 if text else shape[0] * row
        return self.group.create_array(
            name,
            shape=shape,
            chunks=(chunk_rows(shape[0], row), *shape[1:]),
            dtype=str if text else np.dtype(dtype).newbyteorder("<"),
            compressors=[Crc32cCodec()],
            filters=None,
            fill_value="" if text else np.nan if np.dtype(dtype).kind == "f" else 0,
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=list(dims),
            attributes=json.loads(to_json(attrs)),
            config={"write_empty_chunks": True},
        )

    def column(self, name: str, values: np.ndarray, about: str, dims: Sequence[str] = ("video",), **attrs: str) -> None:
        """A whole array in one go."""
        dtype = "str" if values.dtype == object else values.dtype.name
        array = self.array(name, values.shape, dtype, dims, {"long_name": about, **attrs})
        if dtype == "str":
            self.bytes += sum(4 + len(text.encode()) for text in values)
        if len(values):
            array[...] = values

    def close(self, **about: Any) -> Group:
        """Complete the group."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # consolidated metadata is in every implementation, not in the standard
            zarr.consolidate_metadata(self.store, path=self.path)
        data = self.store.value.to_bytes()
        self.objects.put(self.store.held, data)
        return Group(self.path, digest_of(data), bytes=self.bytes, **about)


def read_values(array: Any, rows: slice = slice(None)) -> np.ndarray:
    """Rows of a zarr.Array as NumPy; text as Python strings in an object array."""
    data = np.asarray(array[rows])
    return data.astype(object) if data.dtype.kind == "T" else data


class Outdated(StoreError):
    """A reader holds a state of which something was removed since."""


class GroupReader:
    """A group as it was written, or a StoreError."""

    fix = "restore a backup, or extract everything again with --overwrite"

    def __init__(self, objects: Objects, group: Group) -> None:
        self.objects, self.path, self.group = objects, group.path, group
        self._arrays: dict[str, Any] = {}

    @cached_property
    def opened(self) -> zarr.Group:
        """The Zarr group, after a look at its metadata."""
        data = self.objects.get(f"{self.path}/zarr.json")
        if data is None or digest_of(data) != self.group.metadata:
            raise self.damaged("", "its zarr.json is missing" if data is None else "its zarr.json was changed")
        return zarr.open_group(
            _Strict(self.objects.store), path=self.path, mode="r", zarr_format=3, use_consolidated=True
        )

    @property
    def about(self) -> dict[str, Any]:
        """Its attributes."""
        return dict(self.opened.attrs)

    def array(self, name: str) -> Any:
        """One of its zarr.Arrays."""
        if name not in self._arrays:
            self._arrays[name] = self.opened[name]
        return self._arrays[name]

    def column(self, name: str) -> np.ndarray:
        """A whole array with one entry per video."""
        return self.read(name, slice(None))

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Rows of an array; chunks that hold none of them may be damaged. Raises StoreError."""
        try:
            return read_values(self.array(name), rows)
        except (StoreError, MemoryError, NotImplementedError):  # the last is a fault of a library, or of ours
            raise
        except Exception as e:  # damaged bytes can fail in any layer below; which one does not matter here
            raise self.damaged(name, str(getattr(e, "strerror", None) or e)) from e

    def damaged(self, name: str, seen: str) -> StoreError:
        """The error for bytes that are not what was written, or are not there any more."""
        now = None
        with suppress(StoreError):
            now = state_or_none(self.objects)
        if now is not None and self.path not in {g.path for g in now.groups}:
            return Outdated(
                f"{self.objects}: the store was compacted since it was opened, and what was opened is gone",
                fix="open it again, or run the same command again; nothing is lost",
            )
        return StoreError(f"{self.objects}: {self.path}{name and '/' + name} is damaged: {seen}", fix=self.fix)
