"""Small stores for the tests: arrays of every kind that the extraction declares, from a seed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from zarr.storage import MemoryStore, WrapperStore

from aqa_shared.records import ExtractSettings, Video
from aqa_shared.store import ArraySpec, Objects, StoreWriter, Where

SPECS = (
    ArraySpec("rgb", ("channel",), (8,), "float32", {"stream": "rgb"}, role="feature", identity={"bn_eps": 1e-5}),
    ArraySpec("actor_rgb", ("channel",), (8,), "float32", role="feature"),
    ArraySpec("frame_index", ("frame",), (3,), "int32", role="coordinate"),
    ArraySpec("segment_start_time", (), (), "float64", {"units": "s"}, role="coordinate"),
    ArraySpec("actor_box", ("frame", "corner"), (3, 4), "float32", role="coordinate"),
)
FLOW = (
    ArraySpec("flow", ("channel",), (6,), "float32", {"stream": "flow"}, role="feature"),
    ArraySpec("flow_map", ("row", "column", "channel"), (2, 2, 6), "float32", {"stream": "flow"}, role="map"),
    SPECS[2],
)
"""A stream that is added later: it shares `frame_index`."""
SETTINGS = ExtractSettings(streams=("rgb", "actor-rgb"))
PROVENANCE: dict[str, Any] = {"weights": {"rgb": {"name": "a", "sha256": "ab" * 32}}, "torch": "2.0"}


def arrays_of(seed: int, segments: int = 3, specs: Iterable[ArraySpec] = SPECS) -> dict[str, np.ndarray]:
    """One video's arrays; different for every seed, the same for the same name."""
    out = {}
    for spec in specs:
        rng = np.random.default_rng([seed, *spec.name.encode()])
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


def open_writer(where: Where, **changes: Any) -> StoreWriter:
    """A writer with the settings of these tests."""
    given = {"specs": SPECS, "settings": SETTINGS, "provenance": PROVENANCE, **changes}
    return StoreWriter.open(where, **given)


def commit(writer: StoreWriter, *numbers: int) -> None:
    """Commit v0.mp4 …, of 1 to 4 segments each, in the arrays of the writer."""
    for i in numbers:
        writer.commit(f"v{i}.mp4", arrays_of(i, 1 + i % 4, writer.specs), meta_of(i))


def label(video_id: str, **fields: Any) -> Video:
    """A label record."""
    return Video(id=video_id, path="/x", **fields)


def make_store(
    where: Where, videos: int = 5, *, finalise: bool = True, labels: Mapping[str, Video] | None = None
) -> None:
    """A store of `videos` videos v0.mp4 … with 1 to 4 segments each."""
    with open_writer(where) as writer:
        commit(writer, *range(videos))
        if finalise:
            writer.finalise(labels or {})


def tree(where: Where, *, log: bool = False) -> dict[str, bytes]:
    """Every object: without the log and the root document, which say when."""
    objects = Objects.at(where)
    keys = _keys(objects, "")
    found = dict(zip(keys, objects.get_all(keys), strict=True))
    return {k: v or b"" for k, v in found.items() if log or not (k == "zarr.json" or k.startswith("log/"))}


def _keys(objects: Objects, prefix: str) -> list[str]:
    names = [f"{prefix}{n}" for n in objects.names(prefix.rstrip("/"))]
    found = dict(zip(names, objects.get_all(names), strict=True))
    return [key for name, data in found.items() for key in ([name] if data is not None else _keys(objects, name + "/"))]


class Counting(WrapperStore[MemoryStore]):
    """How many committed arrays are being read at once, and how often each other staged object is read."""

    now = most = 0

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.markers: Counter[str] = Counter()

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        if not key.endswith(".npz"):
            self.markers.update([key] if key.startswith("staged/") else [])
            return await super().get(key, *args, **kwargs)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)  # as a request that is under way
        self.now -= 1
        return await super().get(key, *args, **kwargs)
