"""`benchmarks/dives.py`: its digest is of every segment, and tables on rendered dives ask it for all that they read."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_pipelines.tables.record import read_table
from aqa_shared.records import ExtractSettings, Sampling, Video
from aqa_shared.store import ArraySpec, FeatureStore, StoreWriter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dives(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("dives")


def stored(path: Path, features: np.ndarray, order: Sequence[int], streams: Sequence[str] = ("rgb",)) -> FeatureStore:
    """With these videos added, which have the same values in every stream."""
    specs = [ArraySpec(n, ("channel",), features.shape[2:], "float32", role="feature") for n in streams]
    settings = ExtractSettings(sampling=Sampling(segments=features.shape[1]))
    with StoreWriter.open(path, specs=specs, settings=settings, provenance={"weights": {}}) as writer:
        for i in order:
            writer.commit(f"{i}", dict.fromkeys(streams, features[i]), {})
        writer.finalise({f"{i}": Video(id=f"{i}", path=f"/{i}.mp4") for i in order})
    return FeatureStore.open(path)


def test_the_digest_is_of_every_segment_in_the_order_of_the_ids(tmp_path: Path, dives: Any) -> None:
    features = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    found = dives.digest(stored(tmp_path / "a", features, [0, 1, 2]), "rgb")
    assert found == dives.digest(stored(tmp_path / "b", features, [2, 0, 1]), "rgb")
    for video in range(3):
        for segment in range(4):
            other = features.copy()
            other[video, segment, -1] += 1
            assert dives.digest(stored(tmp_path / f"{video}{segment}", other, [0, 1, 2]), "rgb") != found


def test_videos_that_lack_a_stream_do_not_prevent_its_digest(tmp_path: Path, dives: Any) -> None:
    features = np.random.default_rng(0).random((3, 4, 5), dtype=np.float32)
    alone = dives.digest(stored(tmp_path / "a", features, [0, 1]), "rgb")
    stored(tmp_path / "b", features, [0, 1], ["rgb", "still_rgb"])
    some = stored(tmp_path / "b", features, [2])
    assert some.coverage == {"rgb": 3, "still_rgb": 2}
    assert dives.digest(some, "still_rgb") == alone != dives.digest(some, "rgb")


@pytest.mark.parametrize("file", sorted((ROOT / "pipelines" / "dives").glob("*.toml")), ids=lambda f: f.stem)
def test_the_command_of_a_table_makes_every_stream_that_is_read(file: Path, dives: Any) -> None:
    table = read_table(file)
    asked = re.search(r"--streams (\S+)", table.prepared)
    made = (asked[1] if asked else dives.STREAMS).split(",")
    assert {s for row in table.rows if row.method for s in table.streams_to_make(row)} <= set(made)
