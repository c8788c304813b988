"""What was damaged can be made good by extracting it again; damage elsewhere is neither in the way nor spread."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from aqa_shared import store_layout
from aqa_shared.errors import StoreError
from aqa_shared.store import ArraySpec, FeatureStore, StoreWriter, verify

from .store_cases import arrays_of, label, make_store, meta_of, open_writer, tree

VIDEOS = 300
ARRAYS = (
    ArraySpec("rgb", ("channel",), (8,), "float32", {"stream": "rgb"}),
    ArraySpec("frame_index", ("frame",), (3,), "int32"),
)


def _segments(number: int) -> int:
    return 2 + number % 3


def _commit(writer: StoreWriter, ids: Iterable[str]) -> None:
    for video_id in ids:
        number = int(video_id[1:])
        writer.commit(video_id, arrays_of(number, _segments(number), ARRAYS), meta_of(number))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """300 finalised videos, 900 rows; those of `rgb` lie in three chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_layout, "CHUNK_BYTES", 300 * 32)
        path = tmp_path_factory.mktemp("whole") / "s"
        with open_writer(path, specs=ARRAYS) as writer:
            _commit(writer, (f"v{i:03}" for i in range(VIDEOS)))
            writer.finalise({})
        assert sorted(f.name for f in (path / "rgb").iterdir()) == ["c.0.0", "c.1.0", "c.2.0", "zarr.json"]
        yield path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return shutil.copytree(whole, tmp_path / "s")


def _damage(file: Path, how: str) -> None:
    good = file.read_bytes()
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(good[:1000])
    else:
        file.write_bytes(good[:1000] + bytes([good[1000] ^ 1]) + good[1001:])


@pytest.mark.parametrize("how", ["deleted", "truncated", "a bit flipped"])
def test_a_damaged_chunk_is_made_good_by_its_videos(store: Path, whole: Path, how: str) -> None:
    _damage(store / "rgb/c.1.0", how)
    bad = {damage.id for damage in verify(store)}
    assert 99 <= len(bad) <= 102
    with open_writer(store, specs=ARRAYS) as writer:
        writer.forget(bad)
        _commit(writer, bad)
        writer.finalise({})
    assert verify(store) == []
    assert tree(store) == tree(whole)


@pytest.mark.parametrize("how", ["deleted", "truncated", "a bit flipped"])
def test_damage_in_rows_that_are_kept_is_refused_and_nothing_is_lost(store: Path, whole: Path, how: str) -> None:
    """One video of the damaged chunk is not extracted again: its rows exist nowhere else."""
    _damage(store / "rgb/c.1.0", how)
    bad = sorted(damage.id for damage in verify(store))
    with open_writer(store, specs=ARRAYS) as writer:
        writer.forget(bad)
        _commit(writer, bad[:-1])
        with pytest.raises(StoreError, match=rf"rgb is damaged: .*c.*1.*\(videos {bad[0]} … {bad[-1]}\)") as caught:
            writer.finalise({})
    assert "aqa verify" in caught.value.fix
    assert FeatureStore.open(store).pending == len(bad) - 1
    with open_writer(store, specs=ARRAYS) as writer:
        assert set(bad[:-1]) <= set(writer.committed)
        writer.forget(bad[-1:])
        _commit(writer, bad[-1:])
        writer.finalise({})
    assert tree(store) == tree(whole)


_STOPPED = """
import sys
from pathlib import Path
from tests.shared.store_cases import arrays_of, label, meta_of, open_writer

path = Path(sys.argv[1])
error = {"error": OSError(16, "Device or resource busy"), "signal": KeyboardInterrupt()}[sys.argv[2]]

def stop(event, arguments):
    if event == "os.rename" and str(arguments[1]) == str(path / "score"):
        raise error

sys.addaudithook(stop)
with open_writer(path) as writer:
    writer.commit("v9.mp4", arrays_of(9), meta_of(9))
    writer.finalise({"v0.mp4": label("v0.mp4", score=5)})
"""


@pytest.mark.parametrize("how", ["error", "signal"])
def test_a_swap_that_an_error_stops_is_completed_by_the_next_writer(tmp_path: Path, how: str) -> None:
    """A network file system refuses to remove a folder that a reader has open; Ctrl-C comes when it likes."""
    for path in (tmp_path / "s", tmp_path / "undisturbed"):
        make_store(path, 3)
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", _STOPPED, str(tmp_path / "s"), how]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert ("Device or resource busy" if how == "error" else "KeyboardInterrupt") in done.stderr
    assert (tmp_path / "s/videos/.work/journal.json").exists()
    with open_writer(tmp_path / "s") as writer:
        assert "v9.mp4" in writer.committed
    with open_writer(tmp_path / "undisturbed") as writer:
        writer.commit("v9.mp4", arrays_of(9), meta_of(9))
        writer.finalise({"v0.mp4": label("v0.mp4", score=5)})
    assert verify(tmp_path / "s") == []
    assert tree(tmp_path / "s") == tree(tmp_path / "undisturbed")
    assert [p.name for p in (tmp_path / "s/videos/.work").iterdir()] == ["lock"]
