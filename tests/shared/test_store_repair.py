"""What was damaged can be made good by extracting it again; damage elsewhere is neither in the way nor spread."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_shared.errors import StoreError
from aqa_shared.records import Video
from aqa_shared.store import FeatureStore, StoreWriter, compact, finalise, verify
from aqa_shared.store import layout as store_layout

from .store_cases import SPECS, arrays_of, commit, label, make_store, meta_of, open_writer, tree

VIDEOS = 300
ARRAYS = (SPECS[0], SPECS[2])
HOW = ["deleted", "truncated", "a bit flipped"]


def _commit(writer: StoreWriter, ids: Iterable[str]) -> None:
    for video_id in ids:
        number = int(video_id[1:])
        writer.commit(video_id, arrays_of(number, 2 + number % 3, ARRAYS), meta_of(number))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """300 finalised videos, 900 rows; those of `rgb` lie in three chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_layout, "CHUNK_BYTES", 300 * 32)
        path = tmp_path_factory.mktemp("whole") / "s"
        with open_writer(path, specs=ARRAYS) as writer:
            _commit(writer, (f"v{i:03}" for i in range(VIDEOS)))
            writer.finalise({})
        compact(path)
        assert sorted(f.name for f in path.glob("blocks/*/rgb/*")) == ["c.0.0", "c.1.0", "c.2.0", "zarr.json"]
        yield path


@pytest.fixture
def store(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to be damaged."""
    monkeypatch.setattr(store_layout, "CHUNK_BYTES", 300 * 32)
    return shutil.copytree(whole, tmp_path / "s")


def _one(path: Path, pattern: str) -> Path:
    (found,) = path.glob(pattern)
    return found


def _damage(file: Path, how: str) -> None:
    good = file.read_bytes()
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(good[:1000])
    else:
        file.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])


@pytest.mark.parametrize("small", [0, 16 << 20])
@pytest.mark.parametrize("how", HOW)
def test_a_damaged_chunk_is_made_good_by_its_videos(
    store: Path, whole: Path, how: str, small: int, monkeypatch: Any
) -> None:
    """Whether the damaged block is merged with what is new, or stays."""
    monkeypatch.setattr("aqa_shared.store.merge.SMALL", small)
    _damage(_one(store, "blocks/*/rgb/c.1.0"), how)
    bad = {damage.id for damage in verify(store)}
    assert 99 <= len(bad) <= 102
    with open_writer(store, specs=ARRAYS) as writer:
        writer.forget(bad)
        assert not bad & set(writer.committed)
        _commit(writer, bad)
        writer.finalise({})
    assert verify(store) == []
    np.testing.assert_array_equal(FeatureStore.open(store).read("rgb"), FeatureStore.open(whole).read("rgb"))
    compact(store)
    assert tree(store) == tree(whole)


@pytest.mark.parametrize("how", HOW)
def test_damage_in_videos_that_are_kept_is_still_found_and_nothing_is_lost(store: Path, whole: Path, how: str) -> None:
    """One video of the damaged chunk is not extracted again: its rows exist nowhere else."""
    _damage(_one(store, "blocks/*/rgb/c.1.0"), how)
    bad = sorted(damage.id for damage in verify(store))
    with open_writer(store, specs=ARRAYS) as writer:
        writer.forget(bad)
        _commit(writer, bad[:-1])
        writer.finalise({})
    assert [d.id for d in verify(store)] == bad[-1:]
    with pytest.raises(StoreError, match=r"rgb is damaged: ") as caught:
        compact(store)
    assert "aqa-extract --repair" in caught.value.fix
    found = FeatureStore.open(store)
    np.testing.assert_array_equal(found.video(bad[0], "rgb"), FeatureStore.open(whole).video(bad[0], "rgb"))
    with open_writer(store, specs=ARRAYS) as writer:
        writer.forget(bad[-1:])
        _commit(writer, bad[-1:])
        writer.finalise({})
    compact(store)
    assert tree(store) == tree(whole)


def test_a_staged_video_damaged_on_disk_is_dropped_and_made_again(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 3, finalise=False)
    for how in ("flipped", "short", "gone"):
        file = _one(tmp_path / "s", f"staged/{store_layout.video_key('v1.mp4')}-*.npz")
        if how == "flipped":
            data = bytearray(file.read_bytes())
            data[200] ^= 1
            file.write_bytes(data)
        elif how == "short":
            os.truncate(file, 7)
        else:
            file.unlink()
        with pytest.raises(StoreError, match=r"1 committed video.*v1\.mp4: .* is damaged"):
            finalise(tmp_path / "s")
        with open_writer(tmp_path / "s") as writer:
            assert set(writer.committed) == {"v0.mp4", "v2.mp4"}
            commit(writer, 1)
    finalise(tmp_path / "s")
    make_store(tmp_path / "t", 3)
    for path in (tmp_path / "s", tmp_path / "t"):
        compact(path)
    assert tree(tmp_path / "s") == tree(tmp_path / "t")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three finalised videos with scores."""
    make_store(tmp_path / "small", 3, labels=_scores(1.0))
    return tmp_path / "small"


def _scores(value: float) -> dict[str, Video]:
    return {f"v{i}.mp4": label(f"v{i}.mp4", score=value, category="vault") for i in range(3)}


@pytest.mark.parametrize("how", ["deleted", "emptied", "edited"])
def test_the_copy_for_plain_readers_is_written_again_by_the_next_run(small: Path, how: str) -> None:
    good = tree(small, log=True)
    file = small / "zarr.json"
    if how == "deleted":
        file.unlink()
    else:
        file.write_bytes(b"" if how == "emptied" else file.read_bytes().replace(b'"blocks"', b'"blocsk"'))
    assert [d.array for d in verify(small)] == ["zarr.json"]
    assert FeatureStore.open(small).read("rgb").shape == (6, 8)
    finalise(small)
    assert verify(small) == []
    assert tree(small) == {k: v for k, v in good.items() if k in tree(small)}


def test_damaged_labels_are_replaced_by_given_ones_and_never_guessed(small: Path) -> None:
    _one(small, "labels/*/score/c.0").unlink()
    few = {k: v for k, v in _scores(1.0).items() if k != "v1.mp4"}
    with open_writer(small) as writer:
        with pytest.raises(StoreError, match="score is damaged") as caught:
            writer.finalise(few)
        assert "labels of all its videos" in caught.value.fix
        writer.finalise(_scores(1.0))
    assert verify(small) == []
    assert FeatureStore.open(small).table["score"].tolist() == [1, 1, 1]
    assert FeatureStore.open(small).table["category"].tolist() == ["vault"] * 3
