"""How a store changes on disk without ever being torn: atomic files, locks, and a journal that rolls forward."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

from aqa_shared.console import warn
from aqa_shared.errors import StoreError
from aqa_shared.store_layout import (
    JOURNAL,
    ROOT_ATTRIBUTES,
    SCHEMA,
    STAGING,
    STAGING_GROUP,
    WORK,
    metadata_record,
    root_from_disk,
    root_to_disk,
    seal_holds,
    sealed,
    to_json,
)

try:
    import fcntl
except ImportError:  # Windows: one writer at a time is then the user's business
    fcntl = None  # type: ignore[assignment]

_HINTS = {
    errno.ENOSPC: "free some space, then run the same command again: finished videos are kept",
    errno.EDQUOT: "free some of your quota, then run the same command again: finished videos are kept",
    errno.EROFS: "choose an output folder on a writable file system",
    errno.EACCES: "check the permissions of the folder, or choose another one",
    errno.EPERM: "check the permissions of the folder, or choose another one",
}


@contextmanager
def disk_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn what the operating system refuses into a StoreError that names the folder and the way out."""
    try:
        yield
    except OSError as e:
        hint = _HINTS.get(e.errno or 0, "check the disk, then run the same command again")
        raise StoreError(f"{path}: cannot {doing}: {e.strerror or e}", fix=hint) from e


_LACKING = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})
"""How a file system says that it does not know a call, as network file systems do; anything else is a failure."""


@cache
def _lacks(what: str, consequence: str) -> None:
    """Said once, however often it is met."""
    warn(f"this file system {what}: {consequence}")


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable, where the file system can."""
    if os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY)
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


def sync_tree(root: Path) -> None:
    """Make every file and folder below (and including) `root` durable."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            fd = os.open(os.path.join(folder, name), os.O_RDONLY if os.name != "nt" else os.O_RDWR)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(folder))


def write_atomically(path: Path, data: bytes) -> None:
    """Readers see the old file or the new one, also after a power loss."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with part.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file or folder; one that is gone already is fine, also while another process removes it."""
    if path.is_dir() and not path.is_symlink():
        for _ in range(3):
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                return
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def try_lock(path: Path) -> IO[bytes] | None:
    """Hold `path` exclusively until the returned file is closed or the process dies; None if another holds it.

    On a file system without locks everybody gets it: there one writer at a time is the user's business, and said.
    """
    f = path.open("ab")
    if fcntl is not None:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in _LACKING | {errno.ENOLCK}:
                _lacks(
                    f"has no locks (flock: {e.strerror})",
                    "make sure that one process at a time writes to this store",
                )
                return f
            f.close()
            if e.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise
    return f


@contextmanager
def locked(store: Path, *, wait: float = 300.0) -> Iterator[None]:
    """Be the only process that changes the root of the store."""
    deadline = time.monotonic() + wait
    while (held := try_lock(store / WORK / "lock")) is None:
        if time.monotonic() > deadline:
            raise StoreError(
                f"{store}: another process has been changing this store for {wait:.0f} s",
                fix="wait until it is done, then run the same command again",
            )
        time.sleep(0.05)
    with held:
        yield


# --- the root document ------------------------------------------------------------------------------------


def read_root(store: Path, *, sealed_only: bool = True) -> dict[str, Any]:
    """Our root attributes, checked to be ours, not newer than this code, and as they were sealed.

    Raises StoreError otherwise. `sealed_only=False` leaves the seal to the caller.
    """
    found = root_or_none(store)
    if found is None:
        seen = "no such folder" if not store.exists() else "not a feature store (no marker of ours in zarr.json)"
        raise StoreError(f"{store}: {seen}", fix="give the folder that aqa-extract wrote with --out")
    if sealed_only and not seal_holds(found):
        raise StoreError(
            f"{store}: the root metadata (zarr.json) was changed by something else, or is damaged",
            fix="restore zarr.json from a backup, or extract into a new folder",
        )
    return found


def root_or_none(store: Path) -> dict[str, Any] | None:
    """The root attributes, or None where `store` carries no marker of ours; newer schemas are refused."""
    try:
        text = (store / "zarr.json").read_text("utf-8")
        document = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise StoreError(f"{store}: cannot read zarr.json: {e.strerror or e}", fix="check the permissions") from e
    except ValueError:  # not UTF-8, or not JSON
        _refuse_damaged_root(store)
        return None
    attributes = document.get("attributes") if isinstance(document, dict) else None
    if not isinstance(attributes, dict) or "aqa_schema" not in attributes:
        return None
    schema = attributes["aqa_schema"]
    if not isinstance(schema, int) or schema > SCHEMA:
        raise StoreError(
            f"{store}: written by a newer version (schema {schema}; this one reads up to {SCHEMA})",
            fix="update this package (in its folder: git pull, then pip install .)",
        )
    try:
        return root_from_disk(attributes)
    except ValueError:
        _refuse_damaged_root(store)
        return None


def _refuse_damaged_root(store: Path) -> None:
    """Unreadable metadata in a folder that has our working folder is a damaged store, not a foreign one."""
    if (store / WORK).is_dir():
        raise StoreError(
            f"{store}: zarr.json is damaged (not JSON)",
            fix="restore it from a backup, or extract into a new folder",
        )


def root_document(store: Path, attributes: Mapping[str, Any], arrays: Mapping[str, Path]) -> bytes:
    """The root zarr.json: attributes under seal, and the metadata of all arrays, so that one read opens it all.

    `arrays` says where each root array's folder is at the moment (it may not have been moved in yet). Attributes that
    a user added to the root stay.
    """
    raw = {name: (folder / "zarr.json").read_bytes() for name, folder in sorted(arrays.items())}
    before = attributes.get("integrity", {})
    # Metadata that stays in place is vouched for as it was, not as it may have become.
    integrity = {
        name: before[name] if name in before and arrays[name] == store / name else metadata_record(data)
        for name, data in raw.items()
    }
    members = {name: json.loads(data) for name, data in raw.items()}
    members[STAGING] = {**json.loads(STAGING_GROUP)}
    document = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {**_others(store), **root_to_disk(sealed({**attributes, "integrity": integrity}))},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": members},
    }
    return json.dumps(json.loads(to_json(document)), indent=1, ensure_ascii=False).encode()


def _others(store: Path) -> dict[str, Any]:
    """Root attributes that are not ours."""
    try:
        attributes = json.loads((store / "zarr.json").read_bytes())["attributes"]
    except FileNotFoundError:
        return {}
    return {k: v for k, v in attributes.items() if k not in ROOT_ATTRIBUTES}


# --- the journal ------------------------------------------------------------------------------------------


def apply_change(store: Path, *, moves: Sequence[tuple[str, str]], root: bytes, removals: Sequence[str]) -> None:
    """Move new arrays in, replace the root document, remove what it replaces: all of it, even if interrupted.

    Everything in `moves` must be durable already. Once the journal exists the change will happen: the next
    writer repeats the steps, each of which does nothing when it has been done.
    """
    for name in (*(n for move in moves for n in move), *removals):
        _inside(store, name)  # before there is a journal: one that is refused would stay for ever
    journal = {"moves": [list(m) for m in moves], "root": root.decode(), "removals": list(removals)}
    write_atomically(store / JOURNAL, json.dumps(sealed(journal)).encode())
    roll_forward(store)


def roll_forward(store: Path) -> bool:
    """Finish a change that was interrupted; True if there was one. The caller holds the lock."""
    path = store / JOURNAL
    try:
        journal = json.loads(path.read_bytes())
    except FileNotFoundError:
        return False
    except ValueError:
        journal = {}
    if not seal_holds(journal):
        raise StoreError(
            f"{path}: the journal is damaged", fix="restore the store from a backup, or extract into a new folder"
        )
    for source, target in journal["moves"]:
        new, old = _inside(store, source), _inside(store, target)
        if new.exists():
            remove(old)
            new.rename(old)
    sync_folder(store)
    write_atomically(store / "zarr.json", journal["root"].encode())
    for name in journal["removals"]:
        remove(_inside(store, name))
    path.unlink()
    sync_folder(path.parent)
    return True


def _inside(store: Path, name: str) -> Path:
    """A journal may come from anywhere: what it names must lie in the store."""
    pure = PurePosixPath(name)
    path = store / name
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or path.parent.is_symlink():
        raise StoreError(f"{store}: its journal names {name!r}, outside the store", fix="do not use this store")
    return path


def refuse_half_changed(store: Path) -> None:
    """Readers must not look at a store between two states."""
    if (store / JOURNAL).exists():
        raise StoreError(
            f"{store}: a change of this store is under way or was interrupted",
            fix="if an extraction is running, wait for it; otherwise run the same aqa-extract command again, "
            "which completes the change",
        )


# --- sessions: what a writer builds before it counts -------------------------------------------------------


def new_session(store: Path) -> tuple[Path, IO[bytes] | None]:
    """A private folder inside the store, and the lock that says its owner lives. The caller holds the lock."""
    folder = store / WORK / uuid.uuid4().hex
    folder.mkdir(parents=True)
    return folder, try_lock(folder / "alive")


def clean_dead_sessions(store: Path) -> int:
    """Remove what killed writers left behind; returns how many writers live. The caller holds the lock."""
    living = 0
    for entry in sorted((store / WORK).iterdir()):
        if entry.name.endswith(".partial"):
            entry.unlink(missing_ok=True)
        elif entry.is_dir():
            held = try_lock(entry / "alive")
            if held is None:
                living += 1
                continue
            with held:
                remove(entry)
    for folder in (store, store / STAGING):
        for entry in folder.glob("zarr.json.*.partial"):
            entry.unlink(missing_ok=True)
    return living
