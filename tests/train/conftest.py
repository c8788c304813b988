"""Real stores, small ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import install_import_hook
from numpy.typing import NDArray

from aqa_shared.records import ExtractSettings, FlowSettings, Sampling, Video
from aqa_shared.store import ArraySpec, StoreWriter
from aqa_train.batch import Inputs
from aqa_train.methods import VIEWS

# The shapes in the annotations are checked while testing.
_TENSORS = ("methods", "layers", "batch", "features", "pool", "trainer")
install_import_hook([f"aqa_train.{name}" for name in _TENSORS], "beartype.beartype")

MakeStore = Callable[..., Path]


def synthetic(videos: int, segments: int = 4, channels: int = 16, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Features (videos, segments, channels) whose score is a direction in their mean, plus noise."""
    rng = np.random.default_rng(seed)
    x = rng.random((videos, segments, channels), dtype=np.float32)
    quality = rng.random(videos)
    x[:, :, 0] += quality[:, None].astype(np.float32)
    return x, np.round(20 + 60 * quality, 1)


def store_maker(folder: Path) -> MakeStore:
    """`make_store(videos=…, lengths=…, scores=…, streams=("rgb",), …)` writes a finalised store into `folder`."""

    def make(
        videos: int = 24,
        *,
        name: str = "feats.zarr",
        channels: int = 16,
        segments: int = 4,
        lengths: Sequence[int] | None = None,
        streams: tuple[str, ...] = ("rgb",),
        scores: Sequence[float | None] | None = None,
        labels: Sequence[dict[str, Any]] | None = None,
        digest: str = "a" * 64,
        pending: int = 0,
        seed: int = 0,
        metas: Sequence[dict[str, Any]] | None = None,
        scale: float = 1.0,
        identity: dict[str, dict[str, Any]] | None = None,
    ) -> Path:
        settings = ExtractSettings(
            # Other views of a video are arrays like any other, whether aqa-extract makes them or not.
            streams=tuple(s for s in streams if s.split("-")[0] not in VIEWS),
            sampling=Sampling(segments=segments),
            flow=FlowSettings(mode="parity" if any("flow" in s for s in streams) else "off"),
        )
        specs = [
            ArraySpec(
                s.replace("-", "_"),
                ("channel",),
                (channels,),
                "float32",
                role="feature",
                identity=(identity or {}).get(s, {}),
            )
            for s in streams
        ]
        x, truth = synthetic(videos, segments, channels, seed)
        x *= np.float32(scale)
        rng = np.random.default_rng(seed + 1)
        path = folder / name
        writer = StoreWriter.open(
            path, specs=specs, settings=settings, provenance={"weights": {"rgb": {"sha256": digest}}}
        )
        records = {}
        with writer:
            for i in range(videos):
                video_id = f"{i:03d}.mp4"
                n = segments if lengths is None else lengths[i]
                own = x[i] if n == segments else rng.random((n, channels), dtype=np.float32)
                arrays = {s.name: own if s.name == "rgb" else own[::-1] * 0.5 for s in specs}
                given = {} if labels is None else labels[i]
                score = float(truth[i]) if scores is None else scores[i]
                records[video_id] = Video(id=video_id, path=f"/videos/{video_id}", **{"score": score, **given})
                if i < videos - pending:
                    writer.commit(video_id, arrays, {"fps": 25.0, **(metas[i] if metas else {})})
            if videos > pending:
                writer.finalise(records)
            for i in range(videos - pending, videos):
                arrays = {s.name: x[i] for s in specs}
                writer.commit(f"{i:03d}.mp4", arrays, {"fps": 25.0})
        return path

    return make


@pytest.fixture
def make_store(tmp_path: Path) -> MakeStore:
    return store_maker(tmp_path)


@pytest.fixture(scope="module")
def make_store_once(tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    """For a run that several tests look at."""
    return store_maker(tmp_path_factory.mktemp("stores"))


def inputs(*widths: int, segments: int = 4) -> Inputs:
    """Streams of these widths, `rgb` first."""
    return Inputs({name: (w,) for name, w in zip(("rgb", "flow", "actor_rgb"), widths, strict=False)}, segments)
