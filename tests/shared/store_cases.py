"""Small stores for the tests: arrays of every kind that the extraction declares, from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from aqa_shared.records import ExtractSettings, Video
from aqa_shared.store import ArraySpec, StoreWriter

SPECS = (
    ArraySpec("rgb", ("channel",), (8,), "float32", {"stream": "rgb"}, role="feature"),
    ArraySpec("actor_rgb", ("channel",), (8,), "float32", role="feature"),
    ArraySpec("frame_index", ("frame",), (3,), "int32", role="coordinate"),
    ArraySpec("segment_start_time", (), (), "float64", {"units": "s"}, role="coordinate"),
    ArraySpec("actor_box", ("frame", "corner"), (3, 4), "float32", role="coordinate"),
)
SETTINGS = ExtractSettings(streams=("rgb", "actor-rgb"))
PROVENANCE: dict[str, Any] = {"weights": {"rgb": {"name": "a", "sha256": "ab" * 32}}, "torch": "2.0"}


def arrays_of(seed: int, segments: int = 3, specs: Iterable[ArraySpec] = SPECS) -> dict[str, np.ndarray]:
    """One video's arrays; different for every seed."""
    rng = np.random.default_rng(seed)
    out = {}
    for spec in specs:
        shape = (segments, *spec.shape)
        whole = np.dtype(spec.dtype).kind == "i"
        out[spec.name] = (rng.integers(0, 99, shape) if whole else rng.standard_normal(shape)).astype(spec.dtype)
    return out


def meta_of(seed: int) -> dict[str, Any]:
    """What the engine would record."""
    return {
        "path": f"/videos/{seed}.mp4",
        "fps": 25.0,
        "n_frames": 100 + seed,
        "decoder": "av",
        "padded": seed % 2 == 0,
        "warnings": ["interlaced"] if seed == 1 else [],
        "identity": {"size": 1000 + seed, "mtime_ns": 10**18 + seed, "fingerprint": f"f{seed}"},
    }


def open_writer(path: Path, **changes: Any) -> StoreWriter:
    """A writer with the settings of these tests."""
    given = {"specs": SPECS, "settings": SETTINGS, "provenance": PROVENANCE, **changes}
    return StoreWriter.open(path, **given)


def label(video_id: str, **fields: Any) -> Video:
    """A label record."""
    return Video(id=video_id, path="/x", **fields)


def make_store(
    path: Path, videos: int = 5, *, finalise: bool = True, labels: Mapping[str, Video] | None = None
) -> None:
    """A store of `videos` videos v0.mp4 … with 1 to 4 segments each."""
    with open_writer(path) as writer:
        for i in range(videos):
            writer.commit(f"v{i}.mp4", arrays_of(i, 1 + i % 4), meta_of(i))
        if finalise:
            writer.finalise(labels or {})


def tree(path: Path, *, root: bool = False) -> dict[str, str]:
    """Digest of every file that is data: all but locks, and the root document with its time of creation."""
    out = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not name.startswith("videos/.work/") and (root or name != "zarr.json"):
            out[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return out
