"""What a store holds, change by change: numbered documents, each put where there was none; the last one counts.

Two writers may finalise at once: both want the next number, one gets it, the other looks again and goes on from there.
Nothing else in a store is contended, and nothing in it but the copy for plain readers is ever overwritten.
"""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import zarr
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from aqa_shared import __version__
from aqa_shared.errors import StoreError
from aqa_shared.store.layout import LOG, SCHEMA, ArraySpec, sealed, unsealed
from aqa_shared.store.objects import Objects, Where

_LISTED = 32
"""Groups whose metadata the root document repeats at most, so that it stays small."""


@dataclass(frozen=True)
class Group:
    """A Zarr group of ours: where it is, and a digest of its metadata."""

    path: str
    metadata: str
    arrays: tuple[str, ...] = ()
    """Of a block: those along `segment`."""
    videos: int = 0
    bytes: int = 0
    """Of its arrays, uncompressed as they are; without metadata."""


@dataclass(frozen=True)
class State:
    """A store as of one change."""

    number: int
    arrays: dict[str, ArraySpec] = field(default_factory=dict)
    """Every array that was ever declared, whether a video has it or not."""
    blocks: tuple[Group, ...] = ()
    """Where a video's array is in several, the last one counts."""
    labels: tuple[Group, ...] = ()
    """Tables; where a video is in several, the last one counts."""
    runs: tuple[dict[str, Any], ...] = ()
    """Settings, weights and versions of the runs that made the features, the first one first."""
    created: str = ""
    version: str = __version__

    @property
    def groups(self) -> tuple[Group, ...]:
        """Blocks and labels."""
        return self.blocks + self.labels

    def next(self, **changes: Any) -> State:
        """The state after this one."""
        return replace(self, number=self.number + 1, version=__version__, **changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "aqa_schema": SCHEMA,
            "aqa_version": self.version,
            "created": self.created,
            "number": self.number,
            "arrays": [{"name": n, **s.to_dict()} for n, s in self.arrays.items()],
            "blocks": [vars(b) for b in self.blocks],
            "labels": [vars(g) for g in self.labels],
            "runs": list(self.runs),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> State:
        """The inverse of `to_dict`."""
        return cls(
            number=record["number"],
            arrays={s["name"]: ArraySpec(**s) for s in record["arrays"]},
            blocks=tuple(_group(b) for b in record["blocks"]),
            labels=tuple(_group(g) for g in record["labels"]),
            runs=tuple(record["runs"]),
            created=record["created"],
            version=record["aqa_version"],
        )


def _group(record: Mapping[str, Any]) -> Group:
    return Group(**{**record, "arrays": tuple(record["arrays"])})


class Damaged(StoreError):
    """The log is not as it was written."""


def new_state() -> State:
    """A store with nothing in it."""
    return State(0, created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def log_key(number: int) -> str:
    return f"{LOG}/{number:08}.json"


def numbers(objects: Objects) -> list[int]:
    """Of all changes that are still written down, rising."""
    return [int(n[:8]) for n in objects.names(LOG) if re.fullmatch(r"\d{8}\.json", n)]


def state_or_none(objects: Objects, number: int | None = None) -> State | None:
    """The state now, or after change `number`; None where there is no store, or that change is gone.

    Raises StoreError where it is damaged, or written by a newer version.
    """
    for _ in range(20):
        if number is None and not (found := numbers(objects)):
            return None
        wanted = found[-1] if number is None else number
        data = objects.get(log_key(wanted))
        if data is not None:
            return _read(objects, wanted, data)
        if number is not None:
            return None
    raise StoreError(f"{objects}: the store keeps changing", fix="run again when nothing else writes to it")


def _read(objects: Objects, number: int, data: bytes) -> State:
    try:
        record = unsealed(data)
        schema = record["aqa_schema"]
        if schema <= SCHEMA:
            return State.from_dict(record)
    except (ValueError, KeyError, TypeError) as e:
        raise Damaged(
            f"{objects}: {log_key(number)} is damaged: {e}",
            fix="restore it from a backup; or remove it: the store is then as it was before its last change",
        ) from e
    raise StoreError(
        f"{objects}: written by a newer version, aqa {record['aqa_version']} (schema {schema}; this one reads up to "
        f"{SCHEMA})",
        fix="update this package (in its folder: git pull, then pip install .)",
    )


def is_store(where: Where) -> bool:
    """Whether there is a store of ours."""
    return bool(numbers(Objects.at(where)))


def state_of(objects: Objects) -> State:
    """The state now. Raises StoreError where there is not a store of ours."""
    found = state_or_none(objects)
    if found is None:
        folder = objects.folder
        seen = "no such folder" if folder is not None and not folder.exists() else "not a feature store"
        raise StoreError(f"{objects}: {seen}", fix="give what aqa-extract wrote with --out")
    return found


def publish(objects: Objects, state: State) -> bool:
    """Make `state` the one that counts; False where another change was first.

    All that it names must be durable already. True also means that nothing newer is there: after a pause that saw
    two other changes and a compaction, the number might have been free again.
    """
    won = objects.put_new(log_key(state.number), sealed(state.to_dict()))
    objects.flush(LOG)
    return won and numbers(objects)[-1] == state.number


def root_document(objects: Objects, state: State) -> bytes:
    """The root's zarr.json: what is current for plain readers, with the metadata of its groups and arrays."""
    metadata: dict[str, Any] = {}
    for group in state.groups if len(state.groups) <= _LISTED else ():
        names = [f"{group.path}/{n}" for n in objects.names(group.path) if n != "zarr.json"]
        keys = [f"{path}/zarr.json" for path in (group.path, *names)]
        metadata.update(zip(keys, objects.get_all(keys), strict=True))
    memory = MemoryStore({k: cpu.Buffer.from_bytes(v) for k, v in metadata.items() if v is not None})
    about = {k: v for k, v in state.to_dict().items() if k in ("aqa_schema", "aqa_version", "created", "number")}
    paths = {"blocks": [b.path for b in state.blocks], "labels": [g.path for g in state.labels]}
    zarr.create_group(memory, attributes={**_foreign_attributes(objects), **about, **paths})
    for above in sorted({path.split("/")[0] for path in metadata}):
        zarr.create_group(memory, path=above)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata is in every implementation, and not in the standard
        zarr.consolidate_metadata(memory)
    return bytes(memory._store_dict["zarr.json"].to_bytes())


def _foreign_attributes(objects: Objects) -> dict[str, Any]:
    """Attributes that a user added to the root: they stay, and are never read."""
    try:
        attributes = json.loads(objects.get("zarr.json") or b"{}").get("attributes", {})
    except ValueError:
        return {}
    ours = ("aqa_schema", "aqa_version", "created", "number", "blocks", "labels")
    return {k: v for k, v in attributes.items() if k not in ours}


def write_root(objects: Objects, state: State) -> None:
    """Bring the copy for plain readers up to date."""
    while True:
        wanted = root_document(objects, state)
        if not same_json(objects.get("zarr.json"), wanted):
            objects.put("zarr.json", wanted)
        if numbers(objects)[-1] == state.number:
            return
        state = state_of(objects)  # another process has changed the store, and may have written its copy before ours


def same_json(first: bytes | None, second: bytes) -> bool:
    """Whether two documents say the same, however they are laid out."""
    try:
        return first is not None and json.loads(first) == json.loads(second)
    except ValueError:
        return False
