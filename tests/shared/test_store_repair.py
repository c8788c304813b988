"""What was damaged can be made good by extracting it again; damage elsewhere is neither in the way nor spread."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from aqa_shared import store_layout
from aqa_shared.errors import StoreError
from aqa_shared.records import Video
from aqa_shared.store import ArraySpec, FeatureStore, StoreWriter, verify

from .store_cases import arrays_of, label, make_store, meta_of, open_writer, tree

VIDEOS = 300
ARRAYS = (
    ArraySpec("rgb", ("channel",), (8,), "float32", {"stream": "rgb"}, role="feature"),
    ArraySpec("frame_index", ("frame",), (3,), "int32", role="coordinate"),
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


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Three finalised videos with scores."""
    make_store(tmp_path / "small", 3, labels=_scores(1.0))
    return tmp_path / "small"


def _scores(value: float) -> dict[str, Video]:
    return {f"v{i}.mp4": label(f"v{i}.mp4", score=value, category="vault") for i in range(3)}


@pytest.mark.parametrize("name", ["segment_video", "fps", "path"])
@pytest.mark.parametrize("part", ["c.0", "zarr.json"])
def test_an_array_that_follows_from_others_is_written_anew_by_the_next_run(small: Path, name: str, part: str) -> None:
    good = tree(small)
    (small / name / part).unlink()
    assert verify(small)
    with open_writer(small) as writer:
        writer.finalise({})
    assert verify(small) == []
    assert tree(small) == good


def test_damaged_labels_are_replaced_by_given_ones_and_never_guessed(small: Path) -> None:
    good = tree(small)
    (small / "score/c.0").unlink()
    few = {k: v for k, v in _scores(1.0).items() if k != "v1.mp4"}
    with open_writer(small) as writer:
        with pytest.raises(StoreError, match="score is damaged") as caught:
            writer.finalise(few)
        assert "labels of all its videos" in caught.value.fix
        writer.finalise(_scores(1.0))
    assert verify(small) == []
    assert tree(small) == good


def test_new_labels_do_not_vouch_for_metadata_that_something_else_changed(small: Path) -> None:
    good, metadata = tree(small), small / "rgb/zarr.json"
    metadata.write_text(metadata.read_text().replace('"stream": "rgb"', '"stream": "rbg"'))
    bad = {damage.id for damage in verify(small)} - {""}
    assert len(bad) == 3
    with open_writer(small) as writer:
        with pytest.raises(StoreError, match=r"rgb is damaged: its zarr\.json was changed"):
            writer.finalise(_scores(2.0))
        assert bad <= {damage.id for damage in verify(small)}
        writer.forget(bad)
        for i in range(3):
            writer.commit(f"v{i}.mp4", arrays_of(i, 1 + i), meta_of(i))
        writer.finalise({})
    assert verify(small) == []
    assert tree(small) == good


def test_a_root_that_names_what_lies_outside_leaves_no_journal(small: Path) -> None:
    root = json.loads((small / "zarr.json").read_text())
    integrity = json.loads(root["attributes"]["integrity"])
    root["attributes"]["integrity"] = json.dumps({**integrity, "../x": ""})
    (small / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match="outside the store"):
        open_writer(small, overwrite=True)
    assert not (small / "videos/.work/journal.json").exists()
