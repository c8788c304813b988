"""Damage of every kind, in every object, is found and the videos it concerns are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aqa_shared.errors import StoreError
from aqa_shared.store import FeatureStore, Objects, verify
from aqa_shared.store import layout as store_layout
from aqa_shared.store.blocks import Block, Index, write_blocks
from aqa_shared.store.layout import video_key
from aqa_shared.store.log import publish, state_of, write_root

from .store_cases import arrays_of, commit, label, make_store, open_writer


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six finalised videos in several chunks, one staged."""
    monkeypatch.setattr(store_layout, "CHUNK_BYTES", 4 * 32)
    path = tmp_path / "s"
    make_store(path, 6, labels={"v0.mp4": label("v0.mp4", score=2)})
    with open_writer(path) as writer:
        commit(writer, 9)
    assert verify(path) == []
    return path


def _data_files(path: Path) -> list[Path]:
    """All that counts: an earlier state does not."""
    number = state_of(Objects(path)).number
    old = {f"{n:08}.json" for n in range(number)}
    return [f for f in sorted(path.rglob("*")) if f.is_file() and not (f.parent.name == "log" and f.name in old)]


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


def _found_or_harmless(path: Path, file: Path, good: bytes) -> bool:
    """A log that is gone is a store as it was before, or none; zip files have bytes that say nothing."""
    if file.parent.name == "log" and not file.exists():
        return True
    if file.suffix == ".npz":
        return bool(_damage(path)) or _same_arrays(file, good)
    if file.parent.name == "staged" and not file.exists():
        return True  # without its marker it is not there
    return bool(_damage(path))


def _same_arrays(file: Path, good: bytes) -> bool:
    import io

    with np.load(file) as now, np.load(io.BytesIO(good)) as before:
        return all((now[n] == before[n]).all() for n in before.files)


def test_a_damaged_file_is_found_whichever_it_is(store: Path) -> None:
    """Every object suffers one kind of damage; the slow test below tries every kind."""
    rng = np.random.default_rng(7)
    files = _data_files(store)
    assert len(files) > 60
    for i, file in enumerate(files):
        good = file.read_bytes()
        done = _change(file, good, ("flip", "truncate", "delete", "flip", "empty")[i % 5], rng)
        assert _found_or_harmless(store, file, good), f"{file.relative_to(store)}: {done}"
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
            assert _found_or_harmless(store, file, good), f"{file.relative_to(store)}: {done}"
        file.write_bytes(good)
    assert verify(store) == []


def _chunk(store: Path, name: str) -> Path:
    (found,) = store.glob(f"blocks/*/{name}")
    return found


@pytest.mark.parametrize("change", ["flip", "delete"])
def test_the_videos_of_a_damaged_chunk_are_named_and_no_others(store: Path, change: str) -> None:
    """Rows 0 | 1 2 | 3 4 5 | 6 7 8 9 | 10 | 11 12 belong to v0 … v5; chunks hold 4 rows."""
    chunk = _chunk(store, "rgb/c.1.0")
    data = bytearray(chunk.read_bytes())
    assert len(data) == 4 * 32 + 4
    data[5] ^= 4
    chunk.unlink()
    if change == "flip":
        chunk.write_bytes(data)
    found = verify(store)
    assert {(d.id, d.array) for d in found} == {("v2.mp4", "rgb"), ("v3.mp4", "rgb")}
    reader = FeatureStore.open(store)
    with pytest.raises(StoreError, match=r"rgb is damaged: ") as caught:
        reader.read("rgb")
    assert "aqa verify" in caught.value.fix
    np.testing.assert_array_equal(reader.read("actor_rgb")[:1], arrays_of(0, 1)["actor_rgb"])


def test_a_deleted_chunk_is_not_read_as_fill_values_lazily_either(store: Path) -> None:
    reader = FeatureStore.open(store)
    np.testing.assert_array_equal(reader.video("v0.mp4", "rgb"), arrays_of(0, 1)["rgb"])
    _chunk(store, "rgb/c.0.0").unlink()  # after the first read, as where a cluster clears its scratch disk
    with pytest.raises(StoreError, match=r"c\.0\.0 is missing"):
        reader.dask("rgb").compute()
    with pytest.raises(StoreError, match=r"c\.0\.0 is missing"):
        reader.video("v0.mp4", "rgb")
    np.testing.assert_array_equal(reader.video("v4.mp4", "rgb"), arrays_of(4, 1)["rgb"])


def test_the_error_names_the_damage_in_the_rows_that_were_asked_for(store: Path) -> None:
    for name in ("rgb/c.0.0", "rgb/c.2.0"):
        chunk = _chunk(store, name)
        data = bytearray(chunk.read_bytes())
        data[5] ^= 4
        chunk.write_bytes(data)
    with pytest.raises(StoreError, match=r"rgb is damaged: .*\(videos v4\.mp4 … v4\.mp4\)"):
        FeatureStore.open(store).video("v4.mp4", "rgb")


def test_a_damaged_staged_video_is_named(store: Path) -> None:
    (file,) = store.glob(f"staged/{video_key('v9.mp4')}-*.npz")
    file.unlink()
    assert {d.id for d in verify(store)} == {"v9.mp4"}


def _rewrite(store: Path, change: Callable[[Block], None]) -> None:
    """A well-formed block with other contents in place of the store's: checksums hold, the truth does not."""
    objects = Objects(store, write=True)
    state = state_of(objects)
    block = Block(objects, state.blocks[0])
    change(block)
    blocks = write_blocks(objects, Index([block]), state.arrays, "")
    after = state.next(blocks=tuple(blocks))
    assert publish(objects, after)
    write_root(objects, after)


def test_values_that_were_never_committed_are_found(store: Path) -> None:
    def change(block: Block) -> None:
        rows = block.rows
        block.rows = lambda name, item: rows(name, item) + (name == "rgb" and item == 2)  # type: ignore[method-assign]

    _rewrite(store, change)
    assert [(d.id, d.array, "committed" in d.detail) for d in verify(store)] == [("v2.mp4", "rgb", True)]


def test_an_index_that_contradicts_itself_is_found(store: Path) -> None:
    objects = Objects(store, write=True)
    path = state_of(objects).blocks[0].path
    import zarr

    length = zarr.open_array(objects.store, path=f"{path}/length", mode="r+")
    length[2] = 7
    assert any(path in d.array for d in verify(store))


def test_metadata_that_something_else_changed_is_found(store: Path) -> None:
    (own,) = store.glob("blocks/*/rgb/zarr.json")
    own.write_text(own.read_text().replace('"stream": "rgb"', '"stream": "rbg"'))
    assert [d.array.rpartition("/")[2] for d in verify(store)] == ["rgb"]
    (group,) = store.glob("blocks/*/zarr.json")
    group.write_text(group.read_text().replace('"stream": "rgb"', '"stream": "rbg"'))
    with pytest.raises(StoreError, match=r"its zarr\.json was changed"):
        FeatureStore.open(store)
