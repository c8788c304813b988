"""What is committed and not finalised: a video is two objects, its arrays and then its marker; labels are one.

Keys say the content, so two writers that commit the same video write the same bytes to the same place.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aqa_shared.records import Video
from aqa_shared.store.blocks import Torn
from aqa_shared.store.layout import (
    FAILURES,
    LABEL_COLUMNS,
    RUNS,
    STAGED,
    ArraySpec,
    array_digest,
    digest_of,
    sealed,
    to_json,
    unsealed,
    video_key,
)
from aqa_shared.store.objects import Objects


@dataclass
class Part:
    """One committed video, or some arrays of it, as its marker describes it."""

    objects: Objects = field(repr=False)
    key: str
    """Of both objects, without what they end in."""
    id: str
    sequence: int
    """Of two parts with the same array the one with the higher number counts."""
    length: int
    digests: dict[str, str]
    """Array → BLAKE2b of its values."""
    families: dict[str, str]
    """Array → digest of its essence."""
    recorded: dict[str, Any]
    run: dict[str, Any]
    """Settings, weights and versions."""
    replaces_all: bool
    """Nothing of the video counts that was there before."""
    again: bool
    """What the store has of it is damaged: these values count, though the digests are the same."""
    _packed: bytes | None = field(default=None, repr=False)
    _data: dict[str, np.ndarray] | None = field(default=None, repr=False)

    @property
    def arrays(self) -> tuple[str, ...]:
        return tuple(sorted(self.digests))

    @property
    def ids(self) -> list[str]:
        return [self.id]

    @property
    def lengths(self) -> np.ndarray:
        return np.array([self.length], np.int64)

    @property
    def replaces(self) -> frozenset[str]:
        return frozenset([self.id] if self.replaces_all else [])

    def digest(self, name: str, item: int) -> str:
        return self.digests[name]

    def meta(self, item: int) -> dict[str, Any]:
        return self.recorded

    def rows(self, name: str, item: int) -> np.ndarray:
        """The array `name`, shape (length, …). Raises Torn where it is not what was committed."""
        try:
            data = self._data  # which another thread may release
            if data is None:
                packed = self._packed or self.objects.get(f"{self.key}.npz")
                if packed is None:
                    raise ValueError("its arrays are missing")
                with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
                    data = self._data = dict(arrays)
                self._packed = None
            if array_digest(data[name]) != self.digests[name]:
                raise ValueError("its values differ from what was committed")
            return data[name]
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            raise Torn(self.objects, [self], [f"{self.id}: {name} is damaged: {e}"]) from e

    def release(self) -> None:
        """Forget the values."""
        self._packed = self._data = None

    @property
    def unread(self) -> str | None:
        """Key of its arrays, unless it has them."""
        return f"{self.key}.npz" if self._packed is None and self._data is None else None

    def fetched(self, data: bytes | None) -> None:
        """Its arrays, as they lie there; None where they are missing."""
        self._packed = data

    @property
    def keys(self) -> list[str]:
        """The objects, the marker first: so that no marker is ever without its arrays."""
        return [f"{self.key}.json", f"{self.key}.npz"]


def checked_arrays(
    specs: Sequence[ArraySpec], video_id: str, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of one video as `specs` want them.

    Raises ValueError for missing or unknown arrays, wrong shapes, a lossy dtype, no segment, or values that are not
    finite (but in coordinates).
    """
    wanted = {s.name for s in specs}
    if set(arrays) != wanted:
        raise ValueError(f"{video_id}: got arrays {sorted(arrays)}, expected {sorted(wanted)}")
    length = {len(a) if np.ndim(a) else 0 for a in arrays.values()}
    if len(length) != 1 or not min(length):
        raise ValueError(f"{video_id}: arrays must share one number of segments > 0, got {sorted(length)}")
    out = {}
    for spec in specs:
        data = np.asarray(arrays[spec.name])
        if data.shape[1:] != spec.shape:
            raise ValueError(f"{video_id}: got {spec.name} of shape {data.shape}, expected (segment, *{spec.shape})")
        if not np.can_cast(data.dtype, spec.dtype, "same_kind"):
            raise ValueError(f"{video_id}: {spec.name} is {data.dtype}, which does not fit {spec.dtype}")
        data = np.ascontiguousarray(data, dtype=np.dtype(spec.dtype).newbyteorder("<"))
        if wrong := not_finite(spec, data):
            raise ValueError(f"{video_id}: {spec.name} is {wrong}")
        out[spec.name] = data
    return out


def not_finite(spec: ArraySpec, data: np.ndarray) -> str:
    """Which segments have NaN or infinity where there must be none, in words; "" where all is well."""
    if spec.role == "coordinate" or np.isfinite(data).all():
        return ""
    bad = np.flatnonzero(~np.isfinite(data).reshape(len(data), -1).all(axis=1))
    return f"not finite in segments {bad[:5].tolist()}"


def write_part(
    objects: Objects,
    video_id: str,
    arrays: Mapping[str, np.ndarray],
    families: Mapping[str, str],
    meta: Mapping[str, Any],
    run: Mapping[str, Any],
    *,
    sequence: int,
    replaces_all: bool,
    again: bool,
) -> Part:
    """Put the arrays of one video, then the marker that makes it count."""
    record = {
        "id": video_id,
        "sequence": sequence,
        "length": len(next(iter(arrays.values()))),
        "digests": {n: array_digest(a) for n, a in arrays.items()},
        "families": dict(families),
        "recorded": meta,
        "run": run,
        "replaces_all": replaces_all,
        "again": again,
    }
    name = f"{STAGED}/{video_key(video_id)}-{sequence:04}-{digest_of(to_json(record).encode())}"
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{n: arrays[n] for n in sorted(arrays)})
    objects.put(f"{name}.npz", buffer.getvalue())
    objects.put(f"{name}.json", sealed(record))
    return Part(objects, name, **json.loads(to_json(record)))


@dataclass
class Staged:
    """Everything that waits to be finalised."""

    parts: list[Part]
    """In the order in which they count."""
    labels: list[tuple[str, dict[str, dict[str, Any]]]]
    """(key, id → label columns), in the same order."""
    broken: list[str]
    """Markers that are not whole: they never counted."""


def read_staged(objects: Objects, *, labels: bool = True) -> Staged:
    """What is staged, whatever it was made with; without `labels` only videos.

    The name of a marker says what is in it, so `objects` remembers those that it read: each is read once.
    """
    names = [n for n in objects.names(STAGED) if n.endswith(".json") and (labels or not n.startswith("labels-"))]
    before = objects.staged  # which another thread may put another in place of
    known = objects.staged = {n: before[n] for n in names if n in before}
    fresh = [n for n in names if n not in known]
    found = Staged([], [], [])
    for name, data in zip(fresh, objects.get_all([f"{STAGED}/{n}" for n in fresh]), strict=True):
        if data is None:  # finalised in this moment
            continue
        try:
            record = unsealed(data)
            if name.startswith("labels-"):
                found.labels.append((f"{STAGED}/{name}", record["labels"]))
                continue
            if not name.startswith(video_key(record["id"])):
                raise ValueError("of another video")
            known[name] = Part(objects, f"{STAGED}/{name.removesuffix('.json')}", **record)
        except (ValueError, KeyError, TypeError):
            found.broken.append(f"{STAGED}/{name}")
    found.parts = sorted(known.values(), key=lambda p: (p.sequence, p.key))
    return found


def write_labels(objects: Objects, labels: Mapping[str, Video]) -> None:
    """Put labels that the next finalise applies: each video's replace what was known about it."""
    columns = {i: {n: getattr(v, n) for n in LABEL_COLUMNS} for i, v in labels.items()}
    before = [n for n in objects.names(STAGED) if re.match(r"labels-\d{4}-", n)]
    sequence = int(before[-1][7:11]) + 1 if before else 0
    data = sealed({"labels": columns})
    objects.put(f"{STAGED}/labels-{sequence:04}-{digest_of(data)}.json", data)


# --- videos that could not be used --------------------------------------------------------------------------


def read_failures(objects: Objects) -> dict[str, dict[str, Any]]:
    """Id → why it is not in the store."""
    return {r["id"]: r for r in _records(objects, FAILURES)}


def write_failure(objects: Objects, record: Mapping[str, Any]) -> None:
    """Put, or replace, what is known of one video. `record` has its `id`."""
    # ASCII: names that are not UTF-8 survive.
    objects.put(failure_key(record["id"]), json.dumps(record, sort_keys=True).encode("ascii"))


def failure_key(video_id: str) -> str:
    return f"{FAILURES}/{video_key(video_id)}.json"


# --- what runs were asked for -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """Videos that a run was asked for, until the store has them."""

    command: str
    """Makes what is missing of it, and only that."""
    arrays: tuple[str, ...]
    ids: tuple[str, ...]
    shard: tuple[int, int] | None = None
    """(i, n): the i-th of n runs that share the work, from 1."""

    @property
    def key(self) -> str:
        return f"{RUNS}/{digest_of(to_json(vars(self)).encode())}.json"


def write_run(objects: Objects, run: Run) -> None:
    objects.put(run.key, to_json(vars(run)).encode())


def read_runs(objects: Objects) -> list[Run]:
    """In the order of their shards."""
    runs = [
        Run(r["command"], tuple(r["arrays"]), tuple(r["ids"]), tuple(r["shard"]) if r["shard"] else None)
        for r in _records(objects, RUNS)
    ]
    return sorted(runs, key=lambda r: (r.shard or (0, 0), r.command))


def _records(objects: Objects, prefix: str) -> Iterable[dict[str, Any]]:
    names = [n for n in objects.names(prefix) if n.endswith(".json")]
    for data in objects.get_all([f"{prefix}/{n}" for n in names]):
        try:
            record = json.loads(data or b"")
        except ValueError:  # torn by a power loss: it is made again
            continue
        if isinstance(record, dict):
            yield record
