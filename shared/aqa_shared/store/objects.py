"""A store as objects by key: any zarr `Store`, local or remote, with the few operations that the guarantees rest on.

Writing needs puts alone. One of them, `put_new`, has one winner: by a hard link on a local disk, by a conditional put
on an object store.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union

from zarr.abc.store import Store
from zarr.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from aqa_shared.console import warn
from aqa_shared.errors import StoreError

Place = str | Path | Store
"""A folder, a URL (`s3://bucket/feats.zarr`, `memory://feats.zarr`), or a zarr store."""
Where = Union[Place, "Objects"]
"""A place, or what was opened there already."""

T = TypeVar("T")
AT_A_TIME = 32
"""Requests under way at once; object stores answer each in tens of milliseconds."""
_HINTS = {
    errno.ENOSPC: "free some space, then run the same command again: finished videos are kept",
    errno.EDQUOT: "free some of your quota, then run the same command again: finished videos are kept",
    errno.EROFS: "choose an output folder on a writable file system",
    errno.EACCES: "check the permissions of the folder, or choose another one",
    errno.EPERM: "check the permissions of the folder, or choose another one",
}
_LACKING = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})
"""How a file system says that it does not know a call, as network file systems do; anything else is a failure."""


@contextmanager
def disk_errors(where: object, doing: str) -> Iterator[None]:
    """Turn what the operating system or the object store refuses into a StoreError that says the way out."""
    try:
        yield
    except OSError as e:
        hint = _HINTS.get(e.errno or 0, "check the disk, then run the same command again")
        raise StoreError(f"{where}: cannot {doing}: {e.strerror or e}", fix=hint) from e


@cache
def _lacks(what: str, consequence: str) -> None:
    """Said once, however often it is met."""
    warn(f"this file system {what}: {consequence}")


class Objects:
    """The objects of a store, by key. Keys are ours: no id and no path of a user is ever part of one."""

    def __init__(self, where: Place, *, write: bool = False) -> None:
        self.where = where
        self.remembered: Any = None
        """The index that was read last; see `index_of`."""
        self.staged: dict[str, Any] = {}
        """What was read of committed videos, by the names of their markers; see `read_staged`."""
        try:
            self.store = _open(where, write)
        except (ImportError, ValueError) as e:  # no package for this kind of URL, or no such kind
            raise StoreError(f"{where}: {e}", fix="install the package that it names, or give a folder") from e

    @classmethod
    def at(cls, where: Where, *, write: bool = False) -> Objects:
        """`where`, opened unless it is."""
        return where if isinstance(where, Objects) else cls(where, write=write)

    def __str__(self) -> str:
        return str(self.where)

    @property
    def folder(self) -> Path | None:
        """Where it is on this machine, if it is."""
        return self.store.root if isinstance(self.store, LocalStore) else None

    def get(self, key: str) -> bytes | None:
        """The object, or None where there is none."""
        return self.get_all([key])[0]

    def get_all(self, keys: Sequence[str]) -> list[bytes | None]:
        """Many objects, several at a time."""
        if self.folder is not None and not self.folder.is_dir():
            return [None] * len(keys)
        prototype = default_buffer_prototype()

        async def one(key: str) -> bytes | None:
            found = await self.store.get(key, prototype)
            return None if found is None else found.to_bytes()

        return self._wait(_each(one, keys))

    def put(self, key: str, data: bytes) -> None:
        """Write or replace one object: readers see all of it or nothing."""
        self._wait(self.store.set(key, cpu.Buffer.from_bytes(data)))

    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object that is not there yet; False where another writer was first."""
        try:
            if isinstance(self.store, FsspecStore):
                self._wait(self.store.fs._pipe_file(f"{self.store.path}/{key}", data, mode="create"))
                return True
            self._wait(self.store.set_if_not_exists(key, cpu.Buffer.from_bytes(data)))
            return self.get(key) == data
        except FileExistsError:
            return False
        except (NotImplementedError, TypeError, OSError) as e:  # TypeError: a client that knows no mode
            # Some object stores refuse in words that their client takes for another fault: see what is there.
            if (there := self.get(key)) is not None:
                return there == data
            if isinstance(e, OSError) and e.errno not in _LACKING | {errno.EPERM}:
                raise
        _lacks("cannot refuse to replace", "make sure that one process at a time finalises this store")
        self.put(key, data)
        return True

    def names(self, prefix: str) -> list[str]:
        """Sorted names directly below `prefix` ("" for the root)."""
        if self.folder is not None and not (self.folder / prefix).is_dir():
            return []

        async def listed() -> list[str]:
            return [name.strip("/") async for name in self.store.list_dir(prefix)]

        return sorted(n for n in set(self._wait(listed())) if n and not n.endswith(".partial"))

    def remove(self, keys: Iterable[str]) -> None:
        """Remove objects; those that are gone already are fine."""
        self._wait(_each(self.store.delete, list(keys)))

    def remove_below(self, prefix: str) -> None:
        """Remove everything below `prefix`."""
        self._wait(self.store.delete_dir(prefix))

    def size(self) -> int:
        """Bytes of all objects."""
        return int(self._wait(self.store.getsize_prefix("")))

    def flush(self, *prefixes: str) -> None:
        """Make what lies below durable, so that nothing published later names what a power loss took."""
        if self.folder is not None:
            for prefix in prefixes:
                _sync_tree(self.folder / prefix)

    def remove_litter(self) -> None:
        """What killed writers left of objects that they had not finished."""
        for partial in self.folder.rglob("*.partial") if self.folder is not None else ():
            partial.unlink(missing_ok=True)

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return sync(work)
        except (OSError, NotImplementedError, TypeError):
            raise
        except Exception as e:
            if not isinstance(self.store, FsspecStore):
                raise
            # Client libraries have errors of their own for what cannot be reached or is not allowed.
            raise StoreError(f"{self}: {type(e).__name__}: {e}", fix="check the URL and the credentials") from e


async def _each(job: Callable[[str], Awaitable[T]], keys: Sequence[str]) -> list[T]:
    limit = asyncio.Semaphore(AT_A_TIME)

    async def one(key: str) -> T:
        async with limit:
            return await job(key)

    return list(await asyncio.gather(*map(one, keys)))


def _open(where: Place, write: bool) -> Store:
    if isinstance(where, Store):
        return where
    if isinstance(where, str) and "://" in where and not where.startswith("file://"):
        # A listing that is kept would hide what other writers have done since.
        options = {"use_listings_cache": False}
        return FsspecStore.from_url(where.rstrip("/"), storage_options=options, read_only=not write)
    return LocalStore(Path(str(where).removeprefix("file://")), read_only=not write)


def _sync_tree(root: Path) -> None:
    """Make every file and folder below (and including) `root` durable."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            if name.endswith(".partial"):  # what another process is writing has no name yet
                continue
            fd = os.open(os.path.join(folder, name), os.O_RDONLY if os.name != "nt" else os.O_RDWR)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make the names in a folder durable, where the file system can."""
    if os.name == "nt":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in _LACKING:
            raise
        _lacks(
            f"cannot flush folders ({e.strerror})",
            "a power loss may undo the last changes; run `aqa verify` after one",
        )
    finally:
        os.close(fd)
