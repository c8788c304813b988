"""Read everything again, and name each video whose bytes are not what was committed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.store_disk import read_root
from aqa_shared.store_index import Index, index_problems, read_array
from aqa_shared.store_layout import (
    JOURNAL,
    LABEL_COLUMNS,
    META_COLUMNS,
    STAGING,
    STAGING_GROUP,
    array_digest,
    metadata_holds,
    missing_chunks,
    open_array,
    seal_holds,
)
from aqa_shared.store_staging import read_marker, staged_folders


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written; `id` is "" where it concerns the store as a whole."""

    id: str
    array: str
    detail: str


def verify(path: Path | str) -> list[Damage]:
    """Everything wrong with a store, [] when all is well. Raises StoreError where it cannot be opened at all."""
    store = Path(path)
    attributes = read_root(store, sealed_only=False)
    found: list[Damage] = []
    if (store / JOURNAL).exists():
        found.append(Damage("", "", "a change was interrupted; run the same aqa-extract command again"))
    if not seal_holds(attributes):
        return [*found, Damage("", "", "the root metadata (zarr.json) was changed, and with it what to compare with")]
    try:
        document = json.loads((store / "zarr.json").read_bytes())
        members = document["consolidated_metadata"]["metadata"]
        for name in attributes["integrity"]:
            if not _agree(members[name], json.loads((store / name / "zarr.json").read_bytes())):
                found.append(Damage("", name, "the root's copy of its metadata differs"))
    except (OSError, ValueError, KeyError, TypeError) as e:
        found.append(Damage("", "", f"the metadata cannot be compared: {e!r}"))
    found += _staging(store, attributes)
    if "video_id" in attributes.get("integrity", {}):
        found += _finalised(store, attributes)
    return found


def _agree(copy: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether an array's metadata is that of the root's copy, save for attributes that a user added to the array."""
    extra = own["attributes"].keys() - copy["attributes"].keys()
    return copy == {**own, "attributes": {k: v for k, v in own["attributes"].items() if k not in extra}}


def _staging(store: Path, attributes: dict[str, Any]) -> list[Damage]:
    found = []
    try:
        if (store / STAGING / "zarr.json").read_bytes() != STAGING_GROUP:
            found.append(Damage("", STAGING, "its zarr.json was changed"))
    except OSError as e:
        found.append(Damage("", STAGING, f"its zarr.json cannot be read ({e.strerror})"))
    roles = {s["name"]: s["role"] for s in attributes["arrays"]}
    for folder in staged_folders(store):
        marker = read_marker(folder, complete=False)
        if marker is None:
            found.append(Damage("", f"{STAGING}/{folder.name}", "a video that was not committed whole"))
            continue
        for name, role in roles.items():
            try:
                data = marker.read(name)
            except StoreError as e:
                found.append(Damage(marker.id, name, e.cause))
                continue
            except Exception as e:
                found.append(Damage(marker.id, name, repr(e)))
                continue
            found += _not_finite(marker.id, name, role, data)
    return found


def _finalised(store: Path, attributes: dict[str, Any]) -> list[Damage]:
    found: list[Damage] = []
    columns: dict[str, np.ndarray] = {}
    bare = Index(store, attributes)
    for name in ("video_id", "length", "offset", "digest", *LABEL_COLUMNS, *META_COLUMNS):
        try:
            columns[name] = bare.read(name)
            if len(columns[name]) != attributes["videos"]:
                found.append(Damage("", name, f"{len(columns[name])} entries, expected {attributes['videos']}"))
        except StoreError as e:
            found.append(Damage("", name, e.cause))
        except Exception as e:
            found.append(Damage("", name, repr(e)))
    if not {"video_id", "length", "offset"} <= columns.keys():
        return [*found, Damage("", "", "without its index the features cannot be assigned to videos")]
    index = Index(store, attributes, list(columns["video_id"]), columns["length"], columns["offset"])
    problems = index_problems(index)
    found += [Damage("", "the index", p) for p in problems]
    if problems:
        return found
    digests = [json.loads(d) for d in columns.get("digest", [])]
    for spec in attributes["arrays"]:
        found += _segments(index, spec["name"], spec["role"], digests)
    return found + _owners(index)


def _owners(index: Index) -> list[Damage]:
    try:
        owner = index.read("segment_video")
    except StoreError as e:
        return [Damage("", "segment_video", e.cause)]
    if np.array_equal(owner, np.repeat(np.arange(len(index.ids)), index.lengths)):
        return []
    return [Damage("", "segment_video", "does not agree with lengths")]


def _segments(index: Index, name: str, role: str, digests: list[dict[str, str]]) -> list[Damage]:
    folder = index.store / name
    found: dict[str, Damage] = {}
    try:
        if not metadata_holds((folder / "zarr.json").read_bytes(), index.attributes["integrity"][name]):
            raise ValueError("its zarr.json was changed")
        array = open_array(folder)
    except (OSError, ValueError, KeyError, TypeError) as e:
        return [Damage(i, name, str(e)) for i in index.ids]
    broken = dict(missing_chunks(folder, array))
    step = array.chunks[0]
    chunk, block = -1, np.empty(0)
    for i, video in enumerate(index.ids):
        start, stop = int(index.offsets[i]), int(index.offsets[i] + index.lengths[i])
        parts = []
        for c in range(start // step, -(-stop // step)):
            if c != chunk and c not in broken:
                try:
                    chunk, block = c, read_array(array, slice(c * step, (c + 1) * step))
                except Exception as e:
                    broken[c] = f"chunk {c}: {e}"
            if c in broken:
                found[video] = Damage(video, name, broken[c])
                break
            parts.append(block[max(0, start - c * step) : stop - c * step])
        if video in found:
            continue
        data = np.concatenate(parts)
        if digests and array_digest(data) != digests[i].get(name):
            found[video] = Damage(video, name, "its values differ from what was committed")
        for d in _not_finite(video, name, role, data):
            found.setdefault(video, d)
    return list(found.values())


def _not_finite(video: str, name: str, role: str, data: np.ndarray) -> list[Damage]:
    if role == "coordinate" or np.isfinite(data).all():
        return []
    rows = np.flatnonzero(~np.isfinite(data).reshape(len(data), -1).all(axis=1))
    return [Damage(video, name, f"not finite in segments {rows[:5].tolist()}")]
