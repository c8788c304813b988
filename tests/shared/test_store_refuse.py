"""What a writer will not do: mix features, touch a foreign folder, keep what is not whole, hide a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aqa_shared.errors import ExitCode, StoreError
from aqa_shared.records import ExtractSettings, Sampling
from aqa_shared.store import ArraySpec, FeatureStore, verify
from aqa_shared.store_disk import locked
from aqa_shared.store_layout import ROLES, Role, to_json, video_key

from .store_cases import PROVENANCE, SETTINGS, SPECS, arrays_of, make_store, meta_of, open_writer, tree


def _refusal(path: Path, **changes: object) -> StoreError:
    with pytest.raises(StoreError) as caught:
        open_writer(path, **changes)
    assert caught.value.fix
    assert caught.value.exit_code == ExitCode.STORE
    return caught.value


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    for overwrite in (False, True):
        assert "thesis.doc" in _refusal(tmp_path, overwrite=overwrite).cause
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.doc"]


def test_a_foreign_zarr_store_is_left_alone(tmp_path: Path) -> None:
    import zarr

    zarr.open_group(tmp_path / "z", mode="w").create_array("rgb", shape=(2,), dtype="f4")
    before = tree(tmp_path / "z", root=True)
    for overwrite in (False, True):
        assert "not a feature store" in _refusal(tmp_path / "z", overwrite=overwrite).cause
    assert tree(tmp_path / "z", root=True) == before
    with pytest.raises(StoreError, match="not a feature store"):
        FeatureStore.open(tmp_path / "z")


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    assert "is a file" in _refusal(tmp_path / "f", overwrite=True).cause
    assert (tmp_path / "f").read_text() == "x"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "dangling" in _refusal(tmp_path / "dangling").cause


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    assert "cannot open the store for writing" in _refusal(Path("/proc/feats.zarr")).cause


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    make_store(tmp_path, 1)
    assert FeatureStore.open(tmp_path).ids == ["v0.mp4"]


def test_a_birth_that_was_interrupted_is_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "s/videos/.work").mkdir(parents=True)
    (tmp_path / "s/videos/.work/lock").touch()
    (tmp_path / "s/zarr.json.0123.partial").write_text("{")
    make_store(tmp_path / "s", 1)
    assert verify(tmp_path / "s") == []
    assert not list((tmp_path / "s").glob("*.partial"))


def test_other_settings_are_shown_field_by_field(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    other = SETTINGS.model_copy(update={"sampling": Sampling(segments=4), "bn_eps": 1e-5})
    cause = _refusal(tmp_path / "s", settings=other).cause
    assert "settings.sampling.segments: 10 in the store, 4 now" in cause
    assert "settings.bn_eps: 0.001 in the store, 1e-05 now" in cause
    assert "precision" not in cause


def test_other_weights_are_refused_by_digest_not_by_name(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    cause = _refusal(tmp_path / "s", provenance={"weights": {"rgb": {"name": "a", "sha256": "cd" * 32}}}).cause
    assert f"weights.rgb.sha256: {'ab' * 32} in the store, {'cd' * 32} now" in cause
    assert "weights.rgb.sha256" in _refusal(tmp_path / "s", provenance={}).cause
    same = SETTINGS.model_copy(update={"weights": {"rgb": "another-name"}})
    renamed = {"weights": {"rgb": {"name": "another-name", "sha256": "ab" * 32}}}
    open_writer(tmp_path / "s", settings=same, provenance=renamed).close()


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    specs = [*SPECS[:-1], ArraySpec("rgb_logits", ("class",), (400,), "float32", role="logits")]
    cause = _refusal(tmp_path / "s", specs=specs).cause
    assert "arrays.rgb_logits: absent in the store, float32" in cause
    assert "arrays.actor_box" in cause


def test_a_newer_schema_is_refused_by_both_sides(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    document = json.loads((tmp_path / "s/zarr.json").read_text())
    document["attributes"]["aqa_schema"] = 99
    (tmp_path / "s/zarr.json").write_text(json.dumps(document))
    assert "newer version (schema 99" in _refusal(tmp_path / "s", overwrite=True).cause
    with pytest.raises(StoreError, match="schema 99"):
        FeatureStore.open(tmp_path / "s")


def test_edited_metadata_is_refused_by_both_sides(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    text = (tmp_path / "s/zarr.json").read_text()
    for edit in (text.replace('"arrays"', '"brrays"'), text.replace('bn_eps\\": 0.001', 'bn_eps\\": 0.002')):
        assert edit != text
        (tmp_path / "s/zarr.json").write_text(edit)
        with pytest.raises(StoreError, match="changed by something else"):
            FeatureStore.open(tmp_path / "s")
        _refusal(tmp_path / "s")
        assert len(verify(tmp_path / "s")) == 1
    (tmp_path / "s/zarr.json").write_text(text[:-20])
    assert "not JSON" in _refusal(tmp_path / "s").cause
    (tmp_path / "s/zarr.json").write_text(text.replace('"arrays"', '"brrays"'))
    open_writer(tmp_path / "s", overwrite=True).close()
    assert verify(tmp_path / "s") == []


def test_a_closed_writer_writes_no_more(tmp_path: Path) -> None:
    with open_writer(tmp_path / "s") as writer:
        pass
    for use in (lambda: writer.commit("a", arrays_of(0), {}), lambda: writer.finalise({})):
        with pytest.raises(ValueError, match="closed"):
            use()


def test_overwriting_starts_afresh_and_takes_the_quarantine_along(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 3)
    with open_writer(tmp_path / "s") as writer:
        writer.commit("late", arrays_of(8), {})
    (tmp_path / "s/quarantine.jsonl").write_text("{}\n")
    other = SETTINGS.model_copy(update={"bn_eps": 1e-5})
    with open_writer(tmp_path / "s", settings=other, overwrite=True) as writer:
        assert not writer.committed
        writer.commit("new", arrays_of(9), {})
        writer.finalise({})
    assert FeatureStore.open(tmp_path / "s").ids == ["new"]
    assert FeatureStore.open(tmp_path / "s").settings == other
    assert not (tmp_path / "s/quarantine.jsonl").exists()
    assert verify(tmp_path / "s") == []


def test_what_another_process_writes_is_not_overwritten(tmp_path: Path) -> None:
    with open_writer(tmp_path / "s"):
        assert "another process is writing" in _refusal(tmp_path / "s", overwrite=True).cause
    open_writer(tmp_path / "s", overwrite=True).close()


def test_a_lock_that_is_held_too_long_is_an_error(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    with locked(tmp_path / "s"), pytest.raises(StoreError, match="another process"), locked(tmp_path / "s", wait=0.1):
        pass


def test_a_dead_writers_litter_goes_and_a_living_ones_stays(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    work = tmp_path / "s/videos/.work"
    (work / "deadbeef/half").mkdir(parents=True)
    (work / "deadbeef/alive").touch()
    (work / "journal.json.1.partial").write_text("{")
    with open_writer(tmp_path / "s") as living:
        mine = living._session
        open_writer(tmp_path / "s").close()
        assert mine.exists()
    assert [p.name for p in work.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("rgb"), "expected .*'rgb'"),
        (lambda a: a.update(flow=a["rgb"]), "got arrays"),
        (lambda a: a.update(rgb=a["rgb"][:2]), r"one number of segments > 0, got \[2, 3\]"),
        (lambda a: a.update({k: v[:0] for k, v in a.items()}), "segments > 0"),
        (lambda a: a.update(rgb=a["rgb"][:, :5]), r"rgb of shape \(3, 5\), expected \(segment, \*\(8,\)\)"),
        (lambda a: a.update(frame_index=a["frame_index"] * 0.5), "float64, which does not fit int32"),
        (lambda a: a["rgb"].__setitem__((1, 2), np.nan), r"rgb is not finite in segments \[1\]"),
        (lambda a: a["actor_rgb"].__setitem__((2, 0), np.inf), r"actor_rgb is not finite in segments \[2\]"),
    ],
)
def test_arrays_that_do_not_fit_are_the_videos_fault(tmp_path: Path, change: object, message: str) -> None:
    arrays = arrays_of(0)
    change(arrays)  # type: ignore[operator]
    with open_writer(tmp_path / "s") as writer:
        with pytest.raises(ValueError, match=message):
            writer.commit("a", arrays, {})
        assert not writer.committed
    with pytest.raises(ValueError, match="empty"):
        video_key("")
    with pytest.raises(ValueError, match="escape it first"):
        video_key("\udcff")


def test_a_staged_video_damaged_on_disk_is_dropped_and_made_again(tmp_path: Path) -> None:
    """Right sizes, wrong bytes: finalise finds it. A short file: it never counted."""
    make_store(tmp_path / "s", 3, finalise=False)
    folder = tmp_path / "s/videos" / video_key("v1.mp4")
    chunk = folder / "rgb/c.0.0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with open_writer(tmp_path / "s") as writer:
        assert "v1.mp4" in writer.committed
        with pytest.raises(StoreError, match=r"1 committed video.*v1\.mp4: rgb is damaged"):
            writer.finalise({})
    with open_writer(tmp_path / "s") as writer:
        assert set(writer.committed) == {"v0.mp4", "v2.mp4"}
        writer.commit("v1.mp4", arrays_of(1, 2), meta_of(1))
    os.truncate(tmp_path / "s/videos" / video_key("v1.mp4") / "rgb/c.0.0", 7)
    with open_writer(tmp_path / "s") as writer:
        assert set(writer.committed) == {"v0.mp4", "v2.mp4"}
        writer.commit("v1.mp4", arrays_of(1, 2), meta_of(1))
        writer.finalise({})
    make_store(tmp_path / "t", 3)
    assert tree(tmp_path / "s") == tree(tmp_path / "t")


def test_damaged_videos_can_be_extracted_again(tmp_path: Path) -> None:
    """verify names them, forget lets them be committed anew, and the store is as it was."""
    make_store(tmp_path / "s", 3)
    good = tree(tmp_path / "s")
    chunk = tmp_path / "s/rgb/c.0.0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    names = {d.id for d in verify(tmp_path / "s")}
    assert names == {"v0.mp4", "v1.mp4", "v2.mp4"}
    with open_writer(tmp_path / "s") as writer:
        writer.forget(names)
        assert not writer.committed
        for i in range(3):
            writer.commit(f"v{i}.mp4", arrays_of(i, 1 + i), meta_of(i))
        assert len(writer.committed) == 3
        writer.finalise({})
    assert tree(tmp_path / "s") == good
    assert verify(tmp_path / "s") == []


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.shared.store_cases import arrays_of, open_writer
from aqa_shared.errors import StoreError
path = Path(sys.argv[1])
with open_writer(path) as writer:
    writer.commit("small", arrays_of(0, 2), {})
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))
    try:
        writer.commit("large", arrays_of(1, 3000), {})
    except StoreError as e:
        print(e.cause)
    assert set(writer.committed) == {"small"}
    writer.finalise({})
"""


def test_a_file_that_cannot_be_written_leaves_the_store_whole(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(tmp_path / "s"), str(root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "cannot commit large: File too large" in done.stdout
    assert FeatureStore.open(tmp_path / "s").ids == ["small"]
    assert verify(tmp_path / "s") == []


def test_canonical_json_has_one_form() -> None:
    assert to_json({"b": np.float32(1.5), "a": (1, np.int64(2), float("nan"))}) == '{"a": [1, 2, null], "b": 1.5}'
    assert to_json(["é", "\udcff", Path("/x")]) == '["é", "\\\\udcff", "/x"]'


def test_settings_are_kept(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    store = FeatureStore.open(tmp_path / "s")
    assert store.settings == ExtractSettings(streams=("rgb", "actor-rgb"))
    assert store.provenance == PROVENANCE


@pytest.mark.parametrize("role", ROLES)
def test_what_a_network_made_is_finite_whatever_its_name(role: Role, tmp_path: Path) -> None:
    specs = [ArraySpec("anything", ("channel",), (2,), "float32", role=role)]
    with open_writer(tmp_path / "s", specs=specs) as writer:
        made = role != "coordinate"
        with pytest.raises(ValueError, match="anything is not finite") if made else contextlib.nullcontext():
            writer.commit("v", {"anything": np.full((1, 2), np.nan, np.float32)}, {})
        writer.finalise({})
    assert FeatureStore.open(tmp_path / "s").streams == (("anything",) if role == "feature" else ())


def test_a_role_is_one_of_four_and_a_feature_one_vector() -> None:
    with pytest.raises(ValueError, match="feature, map, logits, coordinate"):
        ArraySpec("a", (), (), "float32", role="features")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one vector a segment"):
        ArraySpec("a", ("channel", "row"), (2, 2), "float32", role="feature")
