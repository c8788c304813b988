"""What a store consists of: names, arrays, digests, canonical JSON. No policy, and no order of writing.

STORE/
  zarr.json            Zarr group for plain readers: what is current, in one document; follows from the log
  log/<number>.json    what the store holds since a change; never overwritten, the highest number counts
  blocks/<name>/       arrays of many videos, a Zarr group; never overwritten
  labels/<name>/       labels of all videos, a Zarr group; never overwritten
  staged/…             committed videos and labels that are not finalised yet
  failures/<key>.json  a video that could not be used, and why
  runs/<name>.json     videos that a run was asked for, until the store has them
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

SCHEMA = 2
LOG, BLOCKS, LABELS, STAGED, FAILURES, RUNS = "log", "blocks", "labels", "staged", "failures", "runs"
OURS = frozenset({"zarr.json", LOG, BLOCKS, LABELS, STAGED, FAILURES, RUNS})
CHUNK_BYTES = 4 << 20
"""Large enough that Zarr's cost per chunk (0.3–0.5 ms) vanishes, small enough to read a few videos cheaply."""

Role = Literal["feature", "map", "logits", "coordinate"]
ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True)
class ArraySpec:
    """An array with one entry a segment: what a writer declares before it commits.

    `dims` and `shape` are those after "segment"; an empty shape is one number a segment. `identity` is whatever
    decides the values (settings that are not at their default, digests of weights): arrays of another identity do not
    lie beside these. `attrs` are for people.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: dict[str, Any] = field(default_factory=dict)
    role: Role = field(kw_only=True)
    """What a network made is a `feature` (one vector a segment), a `map` or `logits`, and always finite; what says
    where it was made is a `coordinate`."""
    identity: dict[str, Any] = field(default_factory=dict, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        for name in ("identity", "attrs"):
            object.__setattr__(self, name, json.loads(to_json(getattr(self, name))))
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name) or self.name in RESERVED:
            raise ValueError(f"an array cannot be named {self.name!r}: reserved, or not lower-case letters and _")
        if len(self.dims) != len(self.shape) or any(n < 1 for n in self.shape):
            raise ValueError(f"{self.name}: dims {self.dims} and shape {self.shape} do not describe one array")
        if np.dtype(self.dtype).kind not in "biuf":
            raise ValueError(f"{self.name}: dtype must be a number, got {self.dtype}")
        if self.role not in ROLES:
            raise ValueError(f"{self.name}: role must be one of {', '.join(ROLES)}, got {self.role!r}")
        if self.role == "feature" and len(self.shape) != 1:
            raise ValueError(f"{self.name}: a feature is one vector a segment, got {self.shape}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one segment."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def essence(self) -> dict[str, Any]:
        """What has to be equal for values to be comparable."""
        return {"dtype": self.dtype, "shape": list(self.shape), **self.identity}

    @property
    def family(self) -> str:
        """Digest of the essence."""
        return digest_of(to_json(self.essence).encode())

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        names = ("dims", "shape", "dtype", "role", "identity", "attrs")
        return json.loads(to_json({name: getattr(self, name) for name in names}))


@dataclass(frozen=True)
class Column:
    """One value per video: `kind` f = float64 (NaN where unknown), b = bool, s = text ("" where unknown)."""

    kind: str
    about: str
    units: str = ""

    def cast(self, value: object) -> float | bool | str:
        """`value` as this column holds it; lists and dicts become JSON text."""
        if self.kind == "s":
            return "" if value is None else _plain(value) if isinstance(value, str) else to_json(value)
        if self.kind == "b":
            return bool(value)
        return math.nan if value is None else float(value)  # type: ignore[arg-type]

    def array(self, values: Iterable[object]) -> np.ndarray:
        """All values of the column, shape (videos,)."""
        cast = [self.cast(v) for v in values]
        return text_array(cast) if self.kind == "s" else np.array(cast, np.float64 if self.kind == "f" else np.bool_)


LABEL_COLUMNS: dict[str, Column] = {
    "score": Column("f", "judged score in the dataset's own units; NaN is an unlabelled video"),
    "difficulty": Column("f", "degree of difficulty"),
    "split": Column("s", "train, test or val as the dataset gives it"),
    "category": Column("s", "action class or apparatus"),
    "extra": Column("s", "the other label columns, as JSON"),
}
META_COLUMNS: dict[str, Column] = {
    "path": Column("s", "where the file was"),
    "start": Column("f", "first display-order frame of the part, where one was given", "frame"),
    "end": Column("f", "frame after the last of the part, where one was given", "frame"),
    "start_time": Column("f", "begin of the part, where one was given", "s"),
    "end_time": Column("f", "end of the part, where one was given", "s"),
    "size": Column("f", "size of the file", "byte"),
    "fingerprint": Column("s", "digest that identifies the file's content"),
    "fps": Column("f", "average frames per second", "s-1"),
    "n_frames": Column("f", "decoded frames in display order", "frame"),
    "duration": Column("f", "n_frames / fps unless the extraction says otherwise", "s"),
    "width": Column("f", "as displayed, with square pixels", "pixel"),
    "height": Column("f", "as displayed, with square pixels", "pixel"),
    "rotation": Column("f", "rotation that was applied", "degree"),
    "codec": Column("s", "video codec"),
    "container": Column("s", "file format"),
    "decoder": Column("s", "library that decoded the file"),
    "decoder_version": Column("s", "its version"),
    "corrupt_frames": Column("f", "frames the decoder could not repair", "frame"),
    "padded": Column("b", "the video was shorter than its segments need; the last frame was repeated"),
    "motion": Column("f", "mean optical-flow magnitude", "pixel"),
    "actor_coverage": Column("f", "share of the frames in which the actor was found", "1"),
    "warnings": Column("s", "notes of the extraction, as a JSON list"),
}
RESERVED = frozenset(
    {"video_id", "length", "offset", "digest", "meta", "segment_video", *LABEL_COLUMNS, *META_COLUMNS, "segment"}
    | {"video"}
)


def meta_column(name: str, metas: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """A column of what the extraction recorded, shape (videos,)."""

    def value(meta: Mapping[str, Any]) -> object:
        found = meta.get(name)
        if found is None and isinstance(meta.get("identity"), Mapping):
            found = meta["identity"].get(name)
        if found is None and name == "duration" and meta.get("fps") and meta.get("n_frames"):
            found = float(meta["n_frames"]) / float(meta["fps"])
        return found

    return META_COLUMNS[name].array(map(value, metas))


def merged_meta(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs recorded of one video: the later word counts, lists (warnings) say all of both."""
    both = {
        k: [*first[k], *(x for x in v if x not in first[k])]
        for k, v in second.items()
        if isinstance(v, list) and isinstance(first.get(k), list)
    }
    return {**first, **second, **both}


def to_json(value: object) -> str:
    """Canonical JSON: equal values give equal bytes. NaN and infinity, which JSON lacks, become null."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(v) for v in value]
    if isinstance(value, str):
        # A file name may hold bytes that are no text; JSON cannot, so they are shown as escapes.
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int | float | bool | None):
        return value
    return str(value)


def video_key(video_id: str) -> str:
    """What stands for an id in keys: 128 bits of BLAKE2b, so that an id never touches a path.

    Raises ValueError for an id that is empty or cannot be written as UTF-8.
    """
    try:
        data = video_id.encode()
    except UnicodeEncodeError:
        raise ValueError(f"video id {video_id!r} is not printable text; escape it first") from None
    if not data:
        raise ValueError("a video id must not be empty")
    return digest_of(data)


def digest_of(*parts: bytes | memoryview) -> str:
    """128-bit BLAKE2b of the parts, as hex."""
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        h.update(part)
    return h.hexdigest()


def array_digest(data: np.ndarray) -> str:
    """Digest of the values (little endian, C order), independent of how they are chunked."""
    data = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<"))
    return digest_of(data.reshape(-1).view(np.uint8).data)


def sealed(record: Mapping[str, Any]) -> bytes:
    """A JSON object with a digest of itself, so that a flipped bit in it is found."""
    body = json.loads(to_json(record))
    return to_json({**body, "seal": digest_of(to_json(body).encode())}).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The record that `sealed` was given. Raises ValueError where it is not as it was sealed."""
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError("not a record")
    seal = record.pop("seal", None)
    if seal != digest_of(to_json(record).encode()):
        raise ValueError("it was changed by something else, or is damaged")
    return record


def chunk_rows(rows: int, row_bytes: int) -> int:
    """Rows of a chunk: at most 4 MB, and all chunks of an array about equally full.

    A function of the final size alone, so that the same videos always give the same bytes.
    """
    if rows == 0:
        return 1
    most = max(1, CHUNK_BYTES // max(1, row_bytes))
    return math.ceil(rows / math.ceil(rows / most))


def text_array(values: Iterable[Any]) -> np.ndarray:
    """Python strings in an object array."""
    items = list(values)
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out
