"""Damage of every kind, in every file, is found and the videos it concerns are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aqa_shared import store_layout
from aqa_shared.errors import StoreError
from aqa_shared.store import FeatureStore, verify
from aqa_shared.store_disk import root_document
from aqa_shared.store_layout import create_array, root_from_disk, video_key

from .store_cases import arrays_of, label, make_store, open_writer


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six finalised videos in several chunks, one staged."""
    monkeypatch.setattr(store_layout, "CHUNK_BYTES", 4 * 32)
    path = tmp_path / "s"
    make_store(path, 6, labels={"v0.mp4": label("v0.mp4", score=2)})
    with open_writer(path) as writer:
        writer.commit("late.mp4", arrays_of(9), {"fps": 25})
    assert verify(path) == []
    return path


def _data_files(path: Path) -> list[Path]:
    return [f for f in sorted(path.rglob("*")) if f.is_file() and ".work" not in f.parts]


def _damage(path: Path) -> list[str]:
    """What verify says, or the refusal of a store that cannot even be opened."""
    try:
        return [f"{d.id} {d.array} {d.detail}" for d in verify(path)]
    except StoreError as e:
        return [e.cause]


def _flip(file: Path, good: bytes, rng: np.random.Generator) -> str:
    bad = bytearray(good)
    at, bit = int(rng.integers(len(bad))), int(rng.integers(8))
    bad[at] ^= 1 << bit
    file.write_bytes(bad)
    return f"bit {bit} of byte {at} of {len(bad)} flipped"


def _change(file: Path, good: bytes, kind: str, rng: np.random.Generator) -> str:
    if kind == "flip":
        return _flip(file, good, rng)
    if kind == "delete":
        file.unlink()
    else:
        file.write_bytes(good[:-1] if kind == "truncate" else b"")
    return kind


def test_a_damaged_file_is_found_whichever_it_is(store: Path) -> None:
    """Every file of the store suffers one kind of damage; the slow test below tries every kind."""
    rng = np.random.default_rng(7)
    files = _data_files(store)
    assert len(files) > 90
    for i, file in enumerate(files):
        good = file.read_bytes()
        done = _change(file, good, ("flip", "truncate", "delete", "flip", "empty")[i % 5], rng)
        assert _damage(store), f"{file.relative_to(store)}: {done}"
        file.write_bytes(good)
    assert verify(store) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_kind_of_damage_in_every_file_is_found(store: Path) -> None:
    rng = np.random.default_rng(8)
    for file in _data_files(store):
        good = file.read_bytes()
        for kind in ("truncate", "delete", "empty", *["flip"] * 8):
            done = _change(file, good, kind, rng)
            assert _damage(store), f"{file.relative_to(store)}: {done}"
        file.write_bytes(good)
    assert verify(store) == []


@pytest.mark.parametrize("change", ["flip", "delete"])
def test_the_videos_of_a_damaged_chunk_are_named_and_no_others(store: Path, change: str) -> None:
    """Rows 0 | 1 2 | 3 4 5 | 6 7 8 9 | 10 | 11 12 belong to v0 … v5; chunks hold 4 rows."""
    chunk = store / "rgb/c.1.0"
    data = bytearray(chunk.read_bytes())
    assert len(data) == 4 * 32 + 4
    data[5] ^= 4
    chunk.unlink()
    if change == "flip":
        chunk.write_bytes(data)
    found = verify(store)
    assert {(d.id, d.array) for d in found} == {("v2.mp4", "rgb"), ("v3.mp4", "rgb")}
    reader = FeatureStore.open(store)
    with pytest.raises(StoreError, match=r"rgb is damaged: .*v2\.mp4, v3\.mp4") as caught:
        reader.read("rgb")
    assert "aqa verify" in caught.value.fix
    np.testing.assert_array_equal(reader.read("actor_rgb")[:1], arrays_of(0, 1)["actor_rgb"])


def test_a_deleted_chunk_is_not_read_as_fill_values_lazily_either(store: Path) -> None:
    reader = FeatureStore.open(store)
    (store / "rgb/c.0.0").unlink()
    with pytest.raises(StoreError, match=r"c\.0\.0 cannot be read"):
        reader.dask("rgb").compute()
    with pytest.raises(StoreError, match=r"c\.0\.0 cannot be read"):
        reader.video("v0.mp4", "rgb")


def test_a_chunk_that_vanishes_after_the_first_read_is_not_read_as_fill_values(store: Path) -> None:
    """As where a cluster clears its scratch disk under a long training."""
    reader = FeatureStore.open(store)
    reader.video("v0.mp4", "rgb")
    (store / "rgb/c.1.0").unlink()
    np.testing.assert_array_equal(reader.video("v0.mp4", "rgb"), arrays_of(0, 1)["rgb"])
    with pytest.raises(StoreError, match=r"c\.1\.0 cannot be read.*v2\.mp4, v3\.mp4"):
        reader.video("v2.mp4", "rgb")


def test_the_error_names_the_damage_in_the_rows_that_were_asked_for(store: Path) -> None:
    for chunk in (store / "rgb/c.0.0", store / "rgb/c.2.0"):
        data = bytearray(chunk.read_bytes())
        data[5] ^= 4
        chunk.write_bytes(data)
    with pytest.raises(StoreError, match=r"rgb is damaged: chunk 2 "):
        FeatureStore.open(store).video("v4.mp4", "rgb")


def test_a_damaged_staged_video_is_named(store: Path) -> None:
    chunk = store / "videos" / video_key("late.mp4") / "frame_index/c.0.0"
    chunk.unlink()
    assert {(d.id, d.array) for d in verify(store)} == {("late.mp4", "frame_index")}


def _rewrite(store: Path, name: str, change: Callable[[np.ndarray], None]) -> None:
    """Replace a root array by a well-formed one with other values: checksums hold, contents do not."""
    import zarr

    old = zarr.open_array(store / name, mode="r")
    data, dims, dtype = np.asarray(old[...]), old.metadata.dimension_names, old.dtype
    change(data)
    row = data[0].nbytes if data.ndim > 1 else data.itemsize
    shutil.rmtree(store / name)
    new = create_array(
        store / name, shape=data.shape, dtype=dtype.name, dims=dims, attrs=dict(old.attrs), row_bytes=row
    )
    new[...] = data
    attributes = root_from_disk(json.loads((store / "zarr.json").read_text())["attributes"])
    arrays = {n: store / n for n in attributes.pop("integrity")}
    (store / "zarr.json").write_bytes(root_document(store, attributes, arrays))


def test_values_that_were_never_committed_are_found(store: Path) -> None:
    _rewrite(store, "rgb", lambda a: a.__setitem__((3, 0), 5.0))
    assert [(d.id, d.array, "committed" in d.detail) for d in verify(store)] == [("v2.mp4", "rgb", True)]


@pytest.mark.parametrize("name", ["offset", "length"])
def test_an_index_that_contradicts_itself_is_found(store: Path, name: str) -> None:
    _rewrite(store, name, lambda a: a.__setitem__(2, 7))
    assert any(d.array == "the index" for d in verify(store))
    with pytest.raises(StoreError, match="the index is damaged"):
        FeatureStore.open(store)


def test_segment_owners_that_contradict_the_index_are_found(store: Path) -> None:
    _rewrite(store, "segment_video", lambda a: a.__setitem__(2, 0))
    assert [d.array for d in verify(store)] == ["segment_video"]


def test_a_journal_is_damage_for_verify_and_a_stop_for_readers(store: Path) -> None:
    (store / "videos/.work/journal.json").write_text("{}")
    assert any("interrupted" in d.detail for d in verify(store))
    with pytest.raises(StoreError, match="interrupted") as caught:
        FeatureStore.open(store)
    assert "same aqa-extract command" in caught.value.fix
    with pytest.raises(StoreError, match="journal is damaged"):
        open_writer(store)


def test_a_journal_cannot_reach_outside_the_store(store: Path) -> None:
    from aqa_shared.store_layout import sealed

    victim = store.parent / "victim"
    victim.mkdir()
    for name in ("../victim", str(victim), "videos/../../victim"):
        journal = sealed({"moves": [], "root": (store / "zarr.json").read_text(), "removals": [name]})
        (store / "videos/.work/journal.json").write_text(json.dumps(journal))
        with pytest.raises(StoreError, match="outside the store"):
            open_writer(store)
    assert victim.is_dir()
