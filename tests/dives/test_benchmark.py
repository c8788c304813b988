"""`benchmarks/dives.py`: its digest is of every segment, whichever video was extracted first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from aqa_shared.records import ExtractSettings, Sampling, Video
from aqa_shared.store import ArraySpec, FeatureStore, StoreWriter

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def stored(path: Path, features: np.ndarray, order: Sequence[int]) -> FeatureStore:
    spec = ArraySpec("rgb", ("channel",), features.shape[2:], "float32", role="feature")
    settings = ExtractSettings(sampling=Sampling(segments=features.shape[1]))
    with StoreWriter.open(path, specs=[spec], settings=settings, provenance={"weights": {}}) as writer:
        for i in order:
            writer.commit(f"{i}", {"rgb": features[i]}, {})
        writer.finalise({f"{i}": Video(id=f"{i}", path=f"/{i}.mp4") for i in order})
    return FeatureStore.open(path)


def test_the_digest_is_of_every_segment_in_the_order_of_the_ids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import dives

    features = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    found = dives.digest(stored(tmp_path / "a", features, [0, 1, 2]))
    assert found == dives.digest(stored(tmp_path / "b", features, [2, 0, 1]))
    for video in range(3):
        for segment in range(4):
            other = features.copy()
            other[video, segment, -1] += 1
            assert dives.digest(stored(tmp_path / f"{video}{segment}", other, [0, 1, 2])) != found
