"""What goes into a store comes out of it, whatever the order of writing, and nothing is written twice."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_shared.store import ArraySpec, FeatureStore, compact, describe, verify
from aqa_shared.store import layout as store_layout

from .store_cases import PROVENANCE, SPECS, arrays_of, commit, label, make_store, meta_of, open_writer, tree

NAMES = [s.name for s in SPECS]


def test_every_array_of_every_video_comes_back(path: Path) -> None:
    make_store(path, 5)
    store = FeatureStore.open(path)
    assert store.ids == [f"v{i}.mp4" for i in range(5)]
    assert store.streams == ("rgb", "actor_rgb")
    assert store.lengths.tolist() == [1, 2, 3, 4, 1]
    assert store.offsets.tolist() == [0, 1, 3, 6, 10]
    assert store.coverage == dict.fromkeys(NAMES, 5)
    for i, name in itertools.product(range(5), NAMES):
        want = arrays_of(i, 1 + i % 4)[name]
        got = store.video(f"v{i}.mp4", name)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(store.read("rgb"), np.concatenate([arrays_of(i, 1 + i % 4)["rgb"] for i in range(5)]))
    assert store.pending == 0
    assert verify(path) == []


def test_what_is_known_about_a_video_is_a_typed_column(path: Path) -> None:
    make_store(path, 2)
    table = FeatureStore.open(path).table
    assert table["n_frames"].tolist() == [100, 101]
    assert table["duration"].tolist() == [4.0, 4.04]
    assert table["size"].tolist() == [1000, 1001]
    assert table["fingerprint"].tolist() == ["f0", "f1"]
    assert table["padded"].tolist() == [True, False]
    assert json.loads(table["warnings"][1]) == ["interlaced"]
    assert table["codec"].tolist() == ["", ""]
    assert np.isnan(table["motion"]).all()
    assert np.isnan(table["score"]).all()
    assert table["split"].dtype == object
    assert json.loads(FeatureStore.open(path).column("meta")[1]) == meta_of(1)


def test_labels_are_replaced_as_a_whole_and_kept_where_absent(path: Path) -> None:
    make_store(path, 3, labels={"v0.mp4": label("v0.mp4", score=1.5, split="train", extra={"judge": 7, "b": None})})
    with open_writer(path) as writer:
        writer.finalise({"v1.mp4": label("v1.mp4", score=2.5, category="dive"), "gone.mp4": label("gone.mp4", score=9)})
    table = FeatureStore.open(path).table
    np.testing.assert_array_equal(table["score"], [1.5, 2.5, np.nan])
    assert table["split"].tolist() == ["train", "", ""]
    assert json.loads(table["extra"][0]) == {"b": None, "judge": 7}
    with open_writer(path) as writer:
        writer.finalise({"v0.mp4": label("v0.mp4", difficulty=3.0)})
    table = FeatureStore.open(path).table
    np.testing.assert_array_equal(table["score"], [np.nan, 2.5, np.nan])
    assert table["split"].tolist() == ["", "", ""]
    assert table["extra"].tolist() == ["", "", ""]
    assert table["difficulty"][0] == 3.0


def test_new_labels_leave_the_features_alone(path: Path) -> None:
    make_store(path, 3)
    before = {f: f.stat().st_ino for f in path.glob("blocks/**/*")}
    old_content = FeatureStore.open(path).content
    with open_writer(path) as writer:
        writer.finalise({"v0.mp4": label("v0.mp4", score=4)})
    assert {f: f.stat().st_ino for f in path.glob("blocks/**/*")} == before
    assert FeatureStore.open(path).content != old_content
    assert verify(path) == []


def test_finalising_nothing_new_writes_nothing(path: Path) -> None:
    labels = {"v0.mp4": label("v0.mp4", score=4)}
    make_store(path, 3, labels=labels)
    before = {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in path.rglob("*") if f.is_file()}
    with open_writer(path) as writer:
        writer.finalise(labels)
        writer.finalise({})
    assert {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in path.rglob("*") if f.is_file()} == before


def test_the_same_videos_give_the_same_bytes_whatever_the_order(tmp_path: Path, monkeypatch: Any) -> None:
    labels = {"v2.mp4": label("v2.mp4", score=4)}
    make_store(tmp_path / "a", 5, labels=labels)
    monkeypatch.setattr("aqa_shared.store.merge.SMALL", 0)
    with open_writer(tmp_path / "b") as writer:
        commit(writer, 3, 1)
        writer.finalise({})
        commit(writer, 4, 0)
    with open_writer(tmp_path / "b") as writer:
        assert set(writer.committed) == {"v0.mp4", "v1.mp4", "v3.mp4", "v4.mp4"}
        writer.finalise(labels)
        commit(writer, 2)
        writer.finalise(labels)
    assert describe(tmp_path / "b")["blocks"] == 3
    one, three = FeatureStore.open(tmp_path / "a"), FeatureStore.open(tmp_path / "b")
    assert one.content == three.content
    for name in NAMES:
        np.testing.assert_array_equal(one.read(name), three.read(name))
        np.testing.assert_array_equal(one.read(name, slice(2, 9)), three.read(name, slice(2, 9)))
    for path in (tmp_path / "a", tmp_path / "b"):
        compact(path)
        assert verify(path) == []
        assert FeatureStore.open(path).content == one.content
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    before = {f: f.stat().st_ino for f in (tmp_path / "b").rglob("*")}
    compact(tmp_path / "b")
    assert {f: f.stat().st_ino for f in (tmp_path / "b").rglob("*")} == before


def test_two_writers_at_once(path: Path) -> None:
    with open_writer(path) as one, open_writer(path) as two:
        one.commit("a.mp4", arrays_of(0), meta_of(0))
        two.commit("b.mp4", arrays_of(1), meta_of(1))
        two.commit("a.mp4", arrays_of(0), meta_of(0))
        assert set(one.committed) == {"a.mp4"}
        one.refresh()
        assert set(one.committed) == {"a.mp4", "b.mp4"}
        one.finalise({})
        two.commit("c.mp4", arrays_of(2), meta_of(2))
        two.finalise({})
    assert FeatureStore.open(path).ids == ["a.mp4", "b.mp4", "c.mp4"]
    assert verify(path) == []


def test_committing_again_does_nothing_or_replaces(path: Path) -> None:
    make_store(path, 2)
    compact(path)
    before = tree(path)
    with open_writer(path) as writer:
        commit(writer, 1)
        assert FeatureStore.open(path).pending == 0
        writer.commit("v1.mp4", arrays_of(77, 4), meta_of(1))
        writer.commit("v1.mp4", arrays_of(78, 4), meta_of(1) | {"fps": 30.0})
        store = FeatureStore.open(path)
        assert store.pending == 1
        np.testing.assert_array_equal(store.video("v1.mp4", "rgb"), arrays_of(1, 2)["rgb"])
        assert writer.committed["v1.mp4"]["fps"] == 30.0
        writer.finalise({})
        np.testing.assert_array_equal(FeatureStore.open(path).video("v1.mp4", "rgb"), arrays_of(78, 4)["rgb"])
        np.testing.assert_array_equal(store.video("v1.mp4", "rgb"), arrays_of(1, 2)["rgb"])  # held
        commit(writer, 1)
        writer.finalise({})
    compact(path)
    assert tree(path) == before


def test_resuming_knows_what_was_committed(path: Path) -> None:
    make_store(path, 2)
    with open_writer(path) as writer:
        writer.commit("late.mp4", arrays_of(9), meta_of(9))
    with open_writer(path) as writer:
        assert dict(writer.committed) == {"v0.mp4": meta_of(0), "v1.mp4": meta_of(1), "late.mp4": meta_of(9)}
    assert FeatureStore.open(path).ids == ["v0.mp4", "v1.mp4"]


@pytest.mark.parametrize(
    "video_id", ["../../etc/x", "a\nb", "é" * 300, "-rf", "[b]*", " ", "a/../b", "…😀.mp4", "zarr.json"]
)
def test_an_id_never_touches_a_path(path: Path, video_id: str) -> None:
    with open_writer(path) as writer:
        writer.commit(video_id, arrays_of(0), {})
        writer.finalise({video_id: label(video_id, score=1)})
    store = FeatureStore.open(path)
    assert store.ids == [video_id]
    assert store.table["score"].tolist() == [1.0]
    np.testing.assert_array_equal(store.video(video_id, "rgb"), arrays_of(0)["rgb"])
    assert {p.name for p in path.parent.iterdir()} == {"feats.zarr"}


def test_a_path_that_is_no_text_is_kept_escaped(path: Path) -> None:
    with open_writer(path) as writer:
        writer.commit("a", arrays_of(0), {"path": "/v/\udcff.mp4", "motion": np.float32(2), "fps": float("nan")})
        writer.finalise({})
    table = FeatureStore.open(path).table
    assert table["path"].tolist() == ["/v/\\udcff.mp4"]
    assert table["motion"].tolist() == [2.0]
    assert np.isnan(table["fps"]).all()


def test_an_empty_store_can_be_read(path: Path) -> None:
    make_store(path, 0)
    store = FeatureStore.open(path)
    assert len(store) == 0
    assert store.read("rgb").shape == (0, 8)
    assert store.dask("actor_box").compute().shape == (0, 3, 4)
    assert store.table["score"].shape == store.table["split"].shape == (0,)
    assert describe(path)["videos"] == 0
    assert verify(path) == []


def test_later_runs_with_other_versions_are_recorded(path: Path) -> None:
    make_store(path, 1)
    with open_writer(path, provenance=PROVENANCE | {"torch": "2.1"}) as writer:
        writer.commit("b", arrays_of(1), {})
        writer.finalise({})
    with open_writer(path, provenance=PROVENANCE | {"torch": "2.1"}) as writer:
        writer.commit("c", arrays_of(2), {})
        writer.finalise({})
    store = FeatureStore.open(path)
    assert store.provenance == PROVENANCE
    assert [r["torch"] for r in store.runs] == ["2.0", "2.1"]


def test_chunks_are_about_four_megabytes_and_equally_full() -> None:
    assert store_layout.chunk_rows(14120, 4096) == 1009
    assert store_layout.chunk_rows(3, 4096) == 3
    assert store_layout.chunk_rows(0, 4096) == 1
    assert store_layout.chunk_rows(7, 100 << 20) == 1


@pytest.mark.parametrize("bad", ["score", "Rgb", "a/b", "..", ""])
def test_an_array_needs_a_free_plain_name(bad: str) -> None:
    with pytest.raises(ValueError, match="cannot be named"):
        ArraySpec(bad, (), (), "float32", role="coordinate")
