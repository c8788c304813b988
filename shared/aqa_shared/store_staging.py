"""One committed video that is not finalised yet: a small Zarr group whose zarr.json, written last, is its marker."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.store_layout import (
    STAGING,
    ArraySpec,
    array_digest,
    create_array,
    digest_of,
    missing_chunks,
    open_array,
    seal_holds,
    sealed,
    to_json,
    video_key,
)


@dataclass(frozen=True)
class Staged:
    """A video as its marker describes it."""

    folder: Path
    id: str
    meta: dict[str, Any]
    length: int
    digests: dict[str, str]
    """BLAKE2b of each array's values."""
    metadata: dict[str, str]
    """BLAKE2b of each array's zarr.json."""
    provenance: dict[str, Any]
    family: str
    """Digest of what the store holds (settings, weights, arrays); a video of another family does not count."""

    def read(self, name: str) -> np.ndarray:
        """The array `name`, shape (length, …). Raises StoreError where it is not what was committed."""
        folder = self.folder / name
        try:
            if digest_of((folder / "zarr.json").read_bytes()) != self.metadata[name]:
                raise ValueError("its zarr.json was changed")
            array = open_array(folder)
            for _, wrong in missing_chunks(folder, array):
                raise ValueError(wrong)
            data = np.asarray(array[...])
            if array_digest(data) != self.digests[name]:
                raise ValueError("its values differ from what was committed")
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise StoreError(f"{self.id}: {name} is damaged: {e}") from e
        return data


def checked_arrays(
    specs: Sequence[ArraySpec], video_id: str, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The arrays of one video as `specs` want them.

    Raises ValueError for missing or unknown arrays, wrong shapes, a lossy dtype, no segment, or features
    that are not finite.
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
        data = np.ascontiguousarray(data, dtype=spec.dtype)
        if spec.role != "coordinate" and not np.isfinite(data).all():
            bad = np.flatnonzero(~np.isfinite(data).reshape(len(data), -1).all(axis=1))
            raise ValueError(f"{video_id}: {spec.name} is not finite in segments {bad[:5].tolist()}")
        out[spec.name] = data
    return out


def write_staged(
    folder: Path,
    *,
    specs: Sequence[ArraySpec],
    video_id: str,
    arrays: Mapping[str, np.ndarray],
    meta: Mapping[str, Any],
    provenance: Mapping[str, Any],
    family: str,
) -> Staged:
    """Write one video into the new `folder`: data, then the digests of the data, then the marker."""
    digests, metadata = {}, {}
    for spec in specs:
        data = arrays[spec.name]
        array = create_array(
            folder / spec.name,
            shape=data.shape,
            dtype=spec.dtype,
            dims=("segment", *spec.dims),
            attrs=spec.attrs,
            row_bytes=spec.row_bytes,
        )
        array[...] = data
        digests[spec.name] = array_digest(data)
        metadata[spec.name] = digest_of((folder / spec.name / "zarr.json").read_bytes())
    attributes = sealed(
        {
            "aqa_video": 1,
            "id": video_id,
            "meta": meta,
            "length": len(next(iter(arrays.values()))),
            "digests": digests,
            "metadata": metadata,
            "files": {f"{d.name}/{f.name}": f.stat().st_size for d in folder.iterdir() for f in d.iterdir()},
            "provenance": provenance,
            "family": family,
        }
    )
    marker = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    (folder / "zarr.json").write_text(to_json(marker), "utf-8")
    return _staged(folder, attributes)


def _staged(folder: Path, attributes: dict[str, Any]) -> Staged:
    return Staged(
        folder,
        attributes["id"],
        attributes["meta"],
        attributes["length"],
        attributes["digests"],
        attributes["metadata"],
        attributes["provenance"],
        attributes["family"],
    )


def read_marker(folder: Path, *, complete: bool = True) -> Staged | None:
    """The staged video in `folder`, or None where there is no whole marker, or one of another id.

    With `complete`, also None where a file is absent or short: after a power loss a name may have reached
    the disk before its data. Such a video never counted; it is extracted again.
    """
    try:
        attributes = json.loads((folder / "zarr.json").read_bytes())["attributes"]
        if not seal_holds(attributes) or video_key(attributes["id"]) != folder.name:
            return None
        if complete and any((folder / f).stat().st_size != n for f, n in attributes["files"].items()):
            return None
        return _staged(folder, attributes)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def staged_folders(store: Path) -> Iterator[Path]:
    """Every folder where a staged video may be, whether its marker is whole or not."""
    try:
        entries = sorted((store / STAGING).iterdir())
    except FileNotFoundError:
        return
    for entry in entries:
        if len(entry.name) == 32 and entry.is_dir() and not entry.is_symlink():
            yield entry


def staged_videos(store: Path, family: str) -> dict[str, Staged]:
    """Every committed video of this family that is not finalised, by id."""
    found = (read_marker(folder) for folder in staged_folders(store))
    return {s.id: s for s in found if s is not None and s.family == family}
