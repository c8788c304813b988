"""Fixtures of the pipelines' tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.pipelines.import_cases import IDS
from tests.pipelines.serving import names, service, state, videos  # noqa: F401 (fixtures)
from tests.pipelines.slurm_cluster import cluster  # noqa: F401 (a fixture)

from aqa_shared.records import ExtractSettings, Sampling, Video
from aqa_shared.store import ArraySpec, StoreWriter


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "scores.csv"
    path.write_text("id,score,person\n" + "".join(f"{id},{i % 7 + i / 10:.1f},p{i % 3}\n" for i, id in enumerate(IDS)))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Five videos of four segments, two splits, one name that a terminal must not act on."""
    path = tmp_path / "feats.zarr"
    settings = ExtractSettings(sampling=Sampling(segments=4))
    specs = [ArraySpec("rgb", ("channel",), (16,), "float32", role="feature")]
    rng = np.random.default_rng(0)
    labels = {}
    with StoreWriter.open(path, specs=specs, settings=settings, provenance={"weights": {}}) as writer:
        for i in range(5):
            id = f"dive{i}.mp4" if i else "a\x1b[31m.mp4"
            writer.commit(id, {"rgb": rng.random((4, 16), np.float32)}, {"fps": 20.0})
            labels[id] = Video(id=id, path=f"/videos/{i}.mp4", score=5.0 + i, split="train" if i < 3 else "test")
        writer.finalise(labels)
    return path
