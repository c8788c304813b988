"""What a feature store looks like on disk: names, columns, chunks, codecs, digests. No policy, no writing order.

STORE/
  zarr.json                 root group: schema, settings, provenance, integrity, all metadata in one place
  rgb/ flow/ …              (segment, …)  the features of all finalised videos, one after the other
  video_id/ offset/ …       (video,)      the index, the labels, what is known about each file
  videos/<key>/             one group per committed video that is not finalised yet
  videos/.work/             lock, journal, unfinished business; never data
  quarantine.jsonl          written by the extraction engine, not by this module
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

SCHEMA = 1
STAGING = "videos"
WORK = "videos/.work"
JOURNAL = f"{WORK}/journal.json"
QUARANTINE = "quarantine.jsonl"
CHUNK_BYTES = 4 << 20
"""Large enough that Zarr's cost per chunk (0.3–0.5 ms) vanishes, small enough to read a few videos cheaply."""

ROOT_ATTRIBUTES = (
    "Conventions", "aqa_schema", "aqa_version", "arrays", "content", "created", "family", "integrity", "provenance",
    "runs", "seal", "segments", "settings", "videos",
)  # fmt: skip
"""Ours, under the seal. Any other attribute of the root is a user's: kept, and never looked at."""

STAGING_GROUP = b'{"attributes": {}, "node_type": "group", "zarr_format": 3}'
Role = Literal["feature", "map", "logits", "coordinate"]
ROLES: tuple[Role, ...] = get_args(Role)


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
    "meta": Column("s", "everything the extraction recorded about the video, as JSON"),
}
INDEX_ARRAYS = ("video_id", "length", "offset", "digest", "segment_video")
RESERVED = frozenset({*INDEX_ARRAYS, *LABEL_COLUMNS, *META_COLUMNS, STAGING, "segment", "video"})


@dataclass(frozen=True)
class ArraySpec:
    """An array with one entry a segment: what the extraction declares before it writes.

    `dims` and `shape` are those after "segment"; an empty shape is one number a segment.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attrs: dict[str, Any] = field(default_factory=dict)
    role: Role = field(kw_only=True)
    """What a network made is a `feature` (one vector a segment), a `map` or `logits`, and always finite; what says
    where it was made is a `coordinate`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dims", tuple(self.dims))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
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

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as the root attributes keep it."""
        return {
            "name": self.name,
            "dims": list(self.dims),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "attrs": self.attrs,
            "role": self.role,
        }


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
    """Folder name of a staged video: 128 bits of BLAKE2b, so that an id never touches a path.

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


def sealed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """`attributes` with a digest of themselves, so that a flipped bit in the metadata is found as well."""
    body = {k: v for k, v in json.loads(to_json(attributes)).items() if k != "seal"}
    return {**body, "seal": digest_of(to_json(body).encode())}


def seal_holds(attributes: Mapping[str, Any]) -> bool:
    """Whether `attributes` are exactly as they were sealed."""
    return isinstance(attributes, dict) and attributes.get("seal") == sealed(attributes)["seal"]


def root_to_disk(record: Mapping[str, Any]) -> dict[str, Any]:
    """Root attributes as they are stored: lists and dicts as JSON text, because netCDF's attributes hold neither."""
    return {k: to_json(v) if isinstance(v, dict | list) else v for k, v in record.items()}


def root_from_disk(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Ours of the stored root attributes, as `root_to_disk` got them. Raises ValueError where they are damaged."""
    mine = {k: attributes[k] for k in ROOT_ATTRIBUTES if k in attributes}
    texts = {k: v for k, v in mine.items() if isinstance(v, str) and v.startswith(("{", "["))}
    return {**mine, **{k: json.loads(v) for k, v in texts.items()}}


def metadata_record(zarr_json: bytes, attributes: Sequence[str] | None = None) -> dict[str, Any]:
    """What the root keeps of an array's zarr.json: a digest, and the names of the attributes (None: all) it covers.

    Others may be added later, and the text laid out anew. Raises ValueError where it is not JSON.
    """
    document = json.loads(zarr_json)
    names = sorted(document["attributes"] if attributes is None else attributes)
    document["attributes"] = {n: document["attributes"][n] for n in names if n in document["attributes"]}
    return {"digest": digest_of(to_json(document).encode()), "attributes": names}


def metadata_holds(zarr_json: bytes, record: Mapping[str, Any]) -> bool:
    """Whether an array's zarr.json still says what it said when `record` was made."""
    return metadata_record(zarr_json, record["attributes"]) == record


def chunk_rows(rows: int, row_bytes: int) -> int:
    """Rows of a chunk: at most 4 MB, and all chunks of an array about equally full.

    A function of the final size alone, so that the same videos always give the same files.
    """
    if rows == 0:
        return 1
    most = max(1, CHUNK_BYTES // max(1, row_bytes))
    return math.ceil(rows / math.ceil(rows / most))


def create_array(
    folder: Path,
    *,
    shape: tuple[int, ...],
    dtype: str,
    dims: Sequence[str],
    attrs: Mapping[str, Any],
    row_bytes: int,
) -> Any:
    """A new zarr.Array in `folder`: chunked along its first axis, checksummed, not compressed.

    Features do not compress (zstd saves 7 %). `write_empty_chunks`: a chunk that happens to hold only the
    fill value is written too, so that a missing file always means damage. Chunk names with "." need no folders,
    which take longer to make and remove than the chunks themselves.
    """
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.storage import LocalStore

    text = dtype == "str"
    fill: Any = "" if text else np.nan if np.dtype(dtype).kind == "f" else 0
    return zarr.create_array(
        LocalStore(folder),
        shape=shape,
        chunks=(chunk_rows(shape[0], row_bytes), *shape[1:]),
        dtype=str if text else np.dtype(dtype).newbyteorder("<"),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=fill,
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=list(dims),
        attributes=json.loads(to_json(attrs)),
        config={"write_empty_chunks": True},
    )


def open_array(folder: Path) -> Any:
    """The zarr.Array in `folder`, read only."""
    import zarr
    from zarr.storage import LocalStore

    return zarr.open_array(LocalStore(folder, read_only=True), mode="r")


def missing_chunks(folder: Path, array: Any, chunks: range | None = None) -> list[tuple[int, str]]:
    """(chunk number, what is wrong) for chunk files that are absent or of the wrong size; of `chunks`, or of all.

    Zarr reads an absent chunk as fill values without a word. A `stat` per file costs microseconds.
    """
    size = None if array.dtype.kind in "TOU" else math.prod(array.chunks) * array.dtype.itemsize + 4
    tail = ".0" * (array.ndim - 1)  # arrays are chunked along their first axis only
    wrong = []
    for i in range(math.ceil(array.shape[0] / array.chunks[0])) if chunks is None else chunks:
        name = f"c.{i}{tail}"
        try:
            found = (folder / name).stat().st_size
        except OSError as e:
            wrong.append((i, f"{name} cannot be read ({e.strerror})"))
            continue
        if size is not None and found != size:
            wrong.append((i, f"{name} has {found} bytes, expected {size}"))
    return wrong


def text_array(values: Iterable[str]) -> np.ndarray:
    """Python strings in an object array."""
    items = list(values)
    out = np.empty(len(items), dtype=object)
    out[:] = items
    return out
