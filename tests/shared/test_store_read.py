"""A store is read through NumPy, Dask, Zarr and xarray, by those who hold it while others write."""

from __future__ import annotations

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

from aqa_shared.errors import StoreError
from aqa_shared.store import ArraySpec, FeatureStore, StoreWriter, compact, describe, verify
from aqa_shared.store import blocks as store_blocks
from aqa_shared.store import layout as store_layout

from .conftest import MEMORY
from .store_cases import SETTINGS, arrays_of, label, make_store, meta_of, open_writer


def test_zarr_and_xarray_open_it_without_a_warning(path: Path) -> None:
    make_store(path, 4, labels={"v0.mp4": label("v0.mp4", score=3.5, category="vault")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        root = zarr.open_group(path, mode="r")
        block, labels = root[root.attrs["blocks"][0]], root[root.attrs["labels"][0]]  # type: ignore[index]
        assert isinstance(block, zarr.Group)
        assert block["rgb"].shape == (10, 8)
        assert block["video_id"][:].tolist() == ["v0.mp4", "v1.mp4", "v2.mp4", "v3.mp4"]  # type: ignore[index,union-attr]
        assert labels["score"][0] == 3.5  # type: ignore[index]
        data = xarray.open_zarr(path, group=root.attrs["blocks"][0])  # type: ignore[index]
        assert data.rgb.dims == ("segment", "channel")
        assert data.actor_box.dims == ("segment", "frame", "corner")
        assert set(data.coords) == {"video_id", "segment_video", "segment_start_time"}
        np.testing.assert_array_equal(data.rgb.values, FeatureStore.open(path).read("rgb"))
        of_v2 = data.rgb.isel(segment=(data.segment_video == 2).values)
        np.testing.assert_array_equal(of_v2, arrays_of(2, 3)["rgb"])
        tree = xarray.open_datatree(path, engine="zarr")
        assert tree[root.attrs["labels"][0]].score[0] == 3.5  # type: ignore[index]


def test_one_line_gives_everything_as_a_dataset(path: Path, tmp_path: Path) -> None:
    make_store(path, 4, labels={"v0.mp4": label("v0.mp4", score=3.5, category="vault")})
    data = FeatureStore.open(path).to_xarray()
    assert data.rgb.dims == ("segment", "channel")
    assert set(data.coords) == {"video_id", "segment_video", "segment_start_time"}
    assert data.video_id.values[int(data.score.argmax("video"))] == "v0.mp4"
    assert data.duration.dtype == data.segment_start_time.dtype == np.float64
    np.testing.assert_array_equal(data.rgb.isel(segment=(data.segment_video == 2).values), arrays_of(2, 3)["rgb"])
    # netCDF holds neither dicts nor lists of them, so nothing of the kind may stand in an attribute.
    data.load().to_netcdf(tmp_path / "store.nc", engine="h5netcdf")
    with xarray.open_dataset(tmp_path / "store.nc", engine="h5netcdf") as back:
        assert json.loads(back.attrs["settings"]) == SETTINGS.model_dump(mode="json")
        assert back.rgb.attrs["stream"] == "rgb"
        np.testing.assert_array_equal(back.rgb.values, FeatureStore.open(path).read("rgb"))


def test_attributes_that_a_user_adds_to_the_root_hurt_nothing_and_stay(path: Path) -> None:
    make_store(path, 2, labels={"v0.mp4": label("v0.mp4", score=1.0)})
    zarr.open_group(path, mode="r+").attrs["camera"] = {"make": "X", "lens": [1, 2]}
    assert verify(path) == []
    with open_writer(path) as writer:
        writer.finalise({"v0.mp4": label("v0.mp4", score=2.0)})
    assert zarr.open_group(path, mode="r").attrs["camera"] == {"make": "X", "lens": [1, 2]}
    assert verify(path) == []


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
    assert names["block"]["rgb"].shape == (14, 8)
    assert names["store"].table["score"].shape == (4,)


def test_dask_blocks_are_whole_chunks_and_travel(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_layout, "CHUNK_BYTES", 3 * 32)
    monkeypatch.setattr("aqa_shared.store.read._BLOCK_BYTES", 200)
    make_store(path, 8)
    store = FeatureStore.open(path)
    lazy = store.dask("rgb")
    chunk = store._index.sources[0].array("rgb").chunks[0]
    assert chunk < lazy.chunks[0][0] < len(lazy)
    assert lazy.chunks[0][0] % chunk == 0
    travelled = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(travelled.dask("rgb").compute(), store.read("rgb"))
    np.testing.assert_array_equal(lazy[[5, 1, 1]].compute(), store.read("rgb")[[5, 1, 1]])
    assert not np.isnan(lazy.sum().compute())


def test_a_reader_holds_what_it_opened_whatever_writers_do(path: Path) -> None:
    make_store(path, 3)
    store, frozen = FeatureStore.open(path), pickle.dumps(FeatureStore.open(path))
    lazy, before = store.dask("rgb"), FeatureStore.open(path).content
    with open_writer(path) as writer:
        writer.replace(["v1.mp4"])
        writer.commit("v1.mp4", arrays_of(50, 9), meta_of(50))
        writer.commit("v9.mp4", arrays_of(9), meta_of(9))
        writer.finalise({"v0.mp4": label("v0.mp4", score=1)})
    for held in (store, pickle.loads(frozen)):
        assert held.ids == ["v0.mp4", "v1.mp4", "v2.mp4"]
        np.testing.assert_array_equal(held.read("rgb"), np.concatenate([arrays_of(i, 1 + i)["rgb"] for i in range(3)]))
        assert np.isnan(held.table["score"]).all()
        assert held.content == before
    assert lazy.compute().shape == (6, 8)
    assert FeatureStore.open(path).lengths.tolist() == [1, 9, 3, 3]
    compact(path)  # removes what only earlier states had
    with pytest.raises(StoreError, match="compacted since"):
        pickle.loads(frozen)
    for late in (lambda: store.read("frame_index"), lambda: store.video("v1.mp4", "rgb"), lazy.compute):
        with pytest.raises(StoreError, match="compacted since") as e:
            late()
        assert "open it again" in (e.value.fix or "")
    assert verify(path) == []


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
    info = json.loads(json.dumps(describe(path)))
    assert (info["videos"], info["segments"], info["segments_per_video"]) == (4, 10, [1, 4])
    assert (info["pending"], info["failed"], info["labelled"], info["blocks"]) == (1, 0, 2, 1)
    assert info["score_range"] == [1.0, 3.0]
    assert info["splits"] == {"test": 1, "train": 1}
    assert info["arrays"]["actor_box"] == {
        "role": "coordinate",
        "videos": 4,
        "dims": ["segment", "frame", "corner"],
        "shape": [10, 3, 4],
        "dtype": "float32",
        "identity": {},
    }
    assert info["weights"]["rgb"]["sha256"] == "ab" * 32
    assert info["bytes"] > 10 * 8 * 4


@settings(max_examples=15)
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
        patch.setattr(store_blocks, "_BUFFER_BYTES", buffer_bytes)
        patch.setattr("aqa_shared.store.merge.SMALL", order.choice([0, 100, 1 << 20]))
        path = Path(folder) / "s"
        with StoreWriter.open(path, specs=specs, settings=SETTINGS, provenance={}) as writer:
            for video_id in ids:
                writer.commit(video_id, videos[video_id], {})
                if order.random() < 0.3:
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
