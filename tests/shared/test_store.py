"""What goes into a store comes out of it: through NumPy, Dask, Zarr and xarray, whatever the order of writing."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from aqa_shared import store_finalise, store_layout
from aqa_shared.errors import StoreError
from aqa_shared.store import ArraySpec, FeatureStore, StoreWriter, describe, verify

from .conftest import MEMORY
from .store_cases import PROVENANCE, SETTINGS, SPECS, arrays_of, label, make_store, meta_of, open_writer, tree

NAMES = [s.name for s in SPECS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feats.zarr"


def test_every_array_of_every_video_comes_back(path: Path) -> None:
    make_store(path, 5)
    store = FeatureStore.open(path)
    assert store.ids == [f"v{i}.mp4" for i in range(5)]
    assert store.streams == ("rgb", "actor_rgb")
    assert store.lengths.tolist() == [1, 2, 3, 4, 1]
    assert store.offsets.tolist() == [0, 1, 3, 6, 10]
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
    before = {f: f.stat().st_ino for f in (path / "rgb").rglob("*")}
    old_content = FeatureStore.open(path).content
    with open_writer(path) as writer:
        writer.finalise({"v0.mp4": label("v0.mp4", score=4)})
    assert {f: f.stat().st_ino for f in (path / "rgb").rglob("*")} == before
    assert FeatureStore.open(path).content != old_content
    assert verify(path) == []


def test_finalising_nothing_new_writes_nothing(path: Path) -> None:
    labels = {"v0.mp4": label("v0.mp4", score=4)}
    make_store(path, 3, labels=labels)
    before = {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in path.rglob("*") if ".work" not in f.parts}
    with open_writer(path) as writer:
        writer.finalise(labels)
        writer.finalise({})
    assert {f: (f.stat().st_ino, f.stat().st_mtime_ns) for f in path.rglob("*") if ".work" not in f.parts} == before


def test_the_same_videos_give_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    labels = {"v2.mp4": label("v2.mp4", score=4)}
    make_store(tmp_path / "a", 5, labels=labels)
    with open_writer(tmp_path / "b") as writer:
        for i in (3, 1):
            writer.commit(f"v{i}.mp4", arrays_of(i, 1 + i % 4), meta_of(i))
        writer.finalise({})
        for i in (4, 0):
            writer.commit(f"v{i}.mp4", arrays_of(i, 1 + i % 4), meta_of(i))
    with open_writer(tmp_path / "b") as writer:
        assert set(writer.committed) == {"v0.mp4", "v1.mp4", "v3.mp4", "v4.mp4"}
        writer.finalise(labels)
        writer.commit("v2.mp4", arrays_of(2, 3), meta_of(2))
        writer.finalise(labels)
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    assert FeatureStore.open(tmp_path / "a").content == FeatureStore.open(tmp_path / "b").content


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
    before = tree(path, root=True)
    with open_writer(path) as writer:
        writer.commit("v1.mp4", arrays_of(1, 2), meta_of(1))
        assert FeatureStore.open(path).pending == 0
        writer.commit("v1.mp4", arrays_of(77, 4), meta_of(1))
        writer.commit("v1.mp4", arrays_of(78, 4), meta_of(1) | {"fps": 30.0})
        store = FeatureStore.open(path)
        assert store.pending == 1
        np.testing.assert_array_equal(store.video("v1.mp4", "rgb"), arrays_of(1, 2)["rgb"])
        assert writer.committed["v1.mp4"]["fps"] == 30.0
        writer.finalise({})
        np.testing.assert_array_equal(FeatureStore.open(path).video("v1.mp4", "rgb"), arrays_of(78, 4)["rgb"])
        writer.commit("v1.mp4", arrays_of(1, 2), meta_of(1))
        writer.finalise({})
    assert tree(path) == {k: v for k, v in before.items() if k != "zarr.json"}


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
    assert [r["torch"] for r in store.runs] == ["2.1"]


def test_zarr_and_xarray_open_it_without_a_warning(path: Path) -> None:
    make_store(path, 4, labels={"v0.mp4": label("v0.mp4", score=3.5, category="vault")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open(path, mode="r")
        assert isinstance(group, zarr.Group)
        assert group["rgb"].shape == (10, 8)
        assert group["video_id"][:].tolist() == ["v0.mp4", "v1.mp4", "v2.mp4", "v3.mp4"]
        assert json.loads(group.attrs["settings"])["streams"] == ["rgb", "actor-rgb"]
        assert list(group["videos"].members()) == []
        for options in ({}, {"consolidated": False}):
            data = xarray.open_zarr(path, **options)
            assert data.rgb.dims == ("segment", "channel")
            assert data.actor_box.dims == ("segment", "frame", "corner")
            assert set(data.coords) == {"video_id", "segment_video", "segment_start_time"}
            assert data.video_id.values.tolist() == ["v0.mp4", "v1.mp4", "v2.mp4", "v3.mp4"]
            assert data.duration.dtype == data.segment_start_time.dtype == np.float64
            np.testing.assert_array_equal(data.rgb.values, FeatureStore.open(path).read("rgb"))
            of_v2 = data.rgb.isel(segment=(data.segment_video == 2).values)
            np.testing.assert_array_equal(of_v2, arrays_of(2, 3)["rgb"])
            best = data.video_id.values[int(data.score.argmax("video"))]
            assert best == "v0.mp4"


def test_attributes_survive_netcdf(path: Path, tmp_path: Path) -> None:
    """netCDF holds neither dicts nor lists of them, so nothing of the kind may stand in an attribute."""
    make_store(path, 2)
    xarray.open_zarr(path).load().to_netcdf(tmp_path / "store.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "store.nc", engine="h5netcdf") as back:
        assert json.loads(back.attrs["settings"]) == FeatureStore.open(path).settings.model_dump(mode="json")
        assert back.attrs["videos"] == 2
        assert back.rgb.attrs["stream"] == "rgb"
        np.testing.assert_array_equal(back.rgb.values, FeatureStore.open(path).read("rgb"))


def test_attributes_that_a_user_adds_hurt_nothing_and_stay(path: Path) -> None:
    make_store(path, 2, labels={"v0.mp4": label("v0.mp4", score=1.0)})
    group = zarr.open_group(path, mode="r+")
    group.attrs["camera"] = {"make": "X", "lens": [1, 2]}
    group["rgb"].attrs["note"] = "what I think of it"
    assert verify(path) == []
    assert FeatureStore.open(path).read("rgb").shape == (3, 8)
    with open_writer(path) as writer:  # the root is written anew, the features are not
        writer.finalise({"v0.mp4": label("v0.mp4", score=2.0)})
    group = zarr.open_group(path, mode="r")
    assert group.attrs["camera"] == {"make": "X", "lens": [1, 2]}
    assert group["rgb"].attrs["note"] == "what I think of it"
    assert verify(path) == []


def test_an_attribute_of_ours_that_was_changed_is_found(path: Path) -> None:
    make_store(path, 2)
    group = zarr.open_group(path, mode="r+")
    group["score"].attrs["long_name"] = "something else"
    assert {d.array for d in verify(path)} == {"score"}
    group.attrs["videos"] = 3
    with pytest.raises(StoreError, match="was changed"):
        FeatureStore.open(path)


def test_the_documented_ways_to_read_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/store-format.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    with open_writer(tmp_path / "feats.zarr") as writer:
        for i in range(4):
            writer.commit(f"{'abcd'[i]}.mp4", arrays_of(i, 2 + i), {})
        writer.finalise({})
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["rows"] == slice(9, 14)
    assert names["store"].table["score"].shape == (4,)


def test_staged_videos_are_zarr_groups_of_their_own(path: Path) -> None:
    make_store(path, 1, finalise=False)
    group = zarr.open_group(path / "videos" / store_layout.video_key("v0.mp4"), mode="r")
    assert group.attrs["id"] == "v0.mp4"
    np.testing.assert_array_equal(group["rgb"][:], arrays_of(0, 1)["rgb"])


def test_dask_blocks_are_whole_chunks_and_travel(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_layout, "CHUNK_BYTES", 3 * 32)
    monkeypatch.setattr("aqa_shared.store_read._BLOCK_BYTES", 200)
    make_store(path, 8)
    store = FeatureStore.open(path)
    lazy = store.dask("rgb")
    chunk = zarr.open_array(path / "rgb", mode="r").chunks[0]
    assert chunk < lazy.chunks[0][0] < len(lazy)
    assert lazy.chunks[0][0] % chunk == 0
    travelled = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(travelled.dask("rgb").compute(), store.read("rgb"))
    np.testing.assert_array_equal(lazy[[5, 1, 1]].compute(), store.read("rgb")[[5, 1, 1]])
    assert not np.isnan(lazy.sum().compute())


def test_a_store_that_changes_under_a_reader_is_not_read_on(path: Path) -> None:
    make_store(path, 3)
    store, frozen = FeatureStore.open(path), pickle.dumps(FeatureStore.open(path))
    lazy = store.dask("rgb")
    with open_writer(path) as writer:
        writer.finalise({"v0.mp4": label("v0.mp4", score=1)})
    for use in (lambda: store.read("rgb"), lambda: lazy.compute(), lambda: store.table, lambda: pickle.loads(frozen)):
        with pytest.raises(StoreError, match="changed"):
            use()


def test_questions_that_a_store_cannot_answer(path: Path) -> None:
    make_store(path, 2)
    store = FeatureStore.open(path)
    with pytest.raises(StoreError, match="no array 'flow'; it holds rgb"):
        store.read("flow")
    with pytest.raises(StoreError, match="no video 'x'"):
        store.video("x", "rgb")
    with pytest.raises(StoreError, match="no column 'colour'"):
        store.column("colour")
    with pytest.raises(StoreError, match="no such folder"):
        FeatureStore.open(path / "nowhere")
    assert "2 videos" in repr(store)


def test_describe_says_what_is_there(path: Path) -> None:
    labels = {"v0.mp4": label("v0.mp4", score=3, split="train"), "v1.mp4": label("v1.mp4", score=1, split="test")}
    make_store(path, 4, labels=labels)
    with open_writer(path) as writer:
        writer.commit("late", arrays_of(9), {})
    (path / "quarantine.jsonl").write_text('{"id": "x"}\n{"id": "y"}\n')
    info = json.loads(json.dumps(describe(path)))
    assert (info["videos"], info["segments"], info["segments_per_video"]) == (4, 10, [1, 4])
    assert (info["pending"], info["quarantined"], info["labelled"]) == (1, 2, 2)
    assert info["score_range"] == [1.0, 3.0]
    assert info["splits"] == {"test": 1, "train": 1}
    assert info["arrays"]["actor_box"] == {
        "dims": ["segment", "frame", "corner"],
        "shape": [10, 3, 4],
        "dtype": "float32",
    }
    assert info["weights"]["rgb"]["sha256"] == "ab" * 32
    assert info["bytes"] > 10 * 8 * 4


def test_chunks_are_about_four_megabytes_and_equally_full() -> None:
    assert store_layout.chunk_rows(14120, 4096) == 1009
    assert store_layout.chunk_rows(3, 4096) == 3
    assert store_layout.chunk_rows(0, 4096) == 1
    assert store_layout.chunk_rows(7, 100 << 20) == 1


@pytest.mark.parametrize("bad", ["score", "Rgb", "a/b", "..", ""])
def test_an_array_needs_a_free_plain_name(bad: str) -> None:
    with pytest.raises(ValueError, match="cannot be named"):
        ArraySpec(bad, (), (), "float32", role="coordinate")


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    order=st.randoms(use_true_random=False),
    data=st.data(),
    chunk_bytes=st.sampled_from([8, 40, 100, 1 << 20]),
    buffer_bytes=st.sampled_from([1, 128, 1 << 20]),
)
def test_any_slice_read_lazily_is_the_slice_of_what_was_written(
    lengths: list[int], order: random.Random, data: st.DataObject, chunk_bytes: int, buffer_bytes: int
) -> None:
    """Whatever the lengths, the order of commits, the chunk and buffer sizes, and where it was finalised."""
    specs = [
        ArraySpec("rgb", ("channel",), (4,), "float32", role="feature"),
        ArraySpec("frame_index", ("frame",), (2,), "int32", role="coordinate"),
    ]
    videos = {f"{i}": arrays_of(i, n, specs) for i, n in enumerate(lengths)}
    ids = list(videos)
    order.shuffle(ids)
    with (
        tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(store_layout, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(store_finalise, "_BUFFER_BYTES", buffer_bytes)
        path = Path(folder) / "s"
        with StoreWriter.open(path, specs=specs, settings=SETTINGS, provenance={}) as writer:
            for i, video_id in enumerate(ids):
                writer.commit(video_id, videos[video_id], {})
                if i == len(ids) // 2:
                    writer.finalise({})
            writer.finalise({})
        store = FeatureStore.open(path)
        cut = data.draw(st.slices(sum(lengths)))
        for name in ("rgb", "frame_index"):
            whole = np.concatenate([videos[i][name] for i in sorted(videos)])
            np.testing.assert_array_equal(store.read(name), whole)
            np.testing.assert_array_equal(store.dask(name)[cut].compute(scheduler="sync"), whole[cut])
            np.testing.assert_array_equal(store.dask(name)[cut, 1].compute(scheduler="sync"), whole[cut, 1])
            start, stop, _ = cut.indices(len(whole))
            np.testing.assert_array_equal(store.read(name, slice(start, stop)), whole[start:stop])
