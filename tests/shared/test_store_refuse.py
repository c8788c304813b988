"""What a writer will not do: mix features, touch a foreign place, keep what is not whole, hide a full disk."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from aqa_shared.errors import ExitCode, StoreError
from aqa_shared.records import ExtractSettings, FlowSettings, Pixels
from aqa_shared.store import ArraySpec, FeatureStore, Objects, contents, finalise, verify
from aqa_shared.store.layout import sealed, to_json, unsealed, video_key
from aqa_shared.store.log import log_key, numbers
from aqa_shared.store.stage import write_part

from .store_cases import FLOW, PROVENANCE, SETTINGS, SPECS, arrays_of, commit, make_store, meta_of, open_writer, tree


def _refusal(path: Path, **changes: object) -> StoreError:
    with pytest.raises(StoreError) as caught:
        open_writer(path, **changes)
    assert caught.value.fix
    assert caught.value.exit_code == ExitCode.STORE
    return caught.value


def _edit(path: Path, **changes: object) -> None:
    """Change the current state as a newer version, or somebody with an editor and our code, would."""
    file = path / log_key(numbers(Objects(path))[-1])
    file.write_bytes(sealed({**unsealed(file.read_bytes()), **changes}))


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("mine")
    for overwrite in (False, True):
        assert "thesis.doc" in _refusal(tmp_path, overwrite=overwrite).cause
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.doc"]


def test_a_foreign_zarr_store_is_left_alone(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "z", mode="w").create_array("rgb", shape=(2,), dtype="f4")
    before = tree(tmp_path / "z", log=True)
    for overwrite in (False, True):
        assert "not a feature store" in _refusal(tmp_path / "z", overwrite=overwrite).cause
    assert tree(tmp_path / "z", log=True) == before
    with pytest.raises(StoreError, match="not a feature store"):
        FeatureStore.open(tmp_path / "z")


def test_foreign_objects_are_left_alone() -> None:
    memory = MemoryStore()
    zarr.open_group(memory, mode="w").create_array("rgb", shape=(2,), dtype="f4")
    before = dict(memory._store_dict)
    with pytest.raises(StoreError, match="not a feature store"):
        open_writer(memory, overwrite=True)
    assert memory._store_dict == before


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    assert "is a file" in _refusal(tmp_path / "f", overwrite=True).cause
    assert (tmp_path / "f").read_text() == "x"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "dangling" in _refusal(tmp_path / "dangling").cause


def test_a_place_that_cannot_be_written_is_said() -> None:
    assert "cannot open the store for writing" in _refusal(Path("/proc/feats.zarr")).cause


def test_a_url_of_no_known_kind_is_said() -> None:
    with pytest.raises(StoreError, match="nowhere://x"):
        FeatureStore.open("nowhere://x")


def test_reading_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such folder"):
        FeatureStore.open(tmp_path / "s")
    assert contents(tmp_path / "s") is None
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    make_store(tmp_path, 1)
    assert FeatureStore.open(tmp_path).ids == ["v0.mp4"]


def test_a_birth_that_was_interrupted_is_no_foreign_folder(tmp_path: Path) -> None:
    (tmp_path / "s/log").mkdir(parents=True)
    (tmp_path / "s/log/00000000.0123.partial").write_text("{")
    make_store(tmp_path / "s", 1)
    assert verify(tmp_path / "s") == []


def test_other_settings_are_shown_field_by_field_with_the_arrays_they_concern(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    changed = {"rgb": {"sampling.segments": 4}, "actor_rgb": {"bn_eps": 1e-5, "sampling.segments": 4}}
    other = [replace(s, identity=changed.get(s.name, s.identity)) for s in SPECS]
    cause = _refusal(tmp_path / "s", specs=other).cause
    assert "sampling.segments: default in the store, 4 now (rgb, actor_rgb)" in cause
    assert "bn_eps: 1e-05 in the store, default now (rgb)" in cause
    assert "bn_eps: default in the store, 1e-05 now (actor_rgb)" in cause
    wide = [replace(SPECS[0], shape=(16,))]
    assert "shape: [8] in the store, [16] now (rgb)" in _refusal(tmp_path / "s", specs=wide).cause


def test_a_declaration_that_nothing_was_made_for_gives_way(tmp_path: Path) -> None:
    """As after a mistyped setting, with which no video was extracted."""
    with open_writer(tmp_path / "s", specs=[replace(SPECS[0], identity={"bn_eps": 1.0})]):
        pass
    with open_writer(tmp_path / "s") as writer:
        commit(writer, 0)  # staged: now it does not
    assert "bn_eps" in _refusal(tmp_path / "s", specs=[replace(SPECS[0], identity={"bn_eps": 1.0})]).cause


def test_a_newer_schema_is_refused_by_both_sides(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    _edit(tmp_path / "s", aqa_schema=99, aqa_version="7.0", surprise=1)
    assert "newer version, aqa 7.0 (schema 99" in _refusal(tmp_path / "s", overwrite=True).cause
    with pytest.raises(StoreError, match="schema 99") as caught:
        FeatureStore.open(tmp_path / "s")
    assert "update" in caught.value.fix


def test_settings_of_a_newer_version_are_refused_by_name(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    run = {"tool": "aqa 7.0", "settings": {**SETTINGS.model_dump(mode="json"), "warp": 2}}
    _edit(tmp_path / "s", runs=[run])
    with pytest.raises(StoreError, match=r"made by aqa 7\.0 with settings that this version does not know: .*\n?warp"):
        _ = FeatureStore.open(tmp_path / "s").settings


def test_settings_that_an_older_version_did_not_have_are_at_their_default(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    older = SETTINGS.model_dump(mode="json", exclude={"bn_eps", "precision"})
    _edit(tmp_path / "s", runs=[{"settings": older}])
    assert FeatureStore.open(tmp_path / "s").settings == SETTINGS


def test_an_edited_log_is_refused_by_both_sides(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    file = tmp_path / "s" / log_key(numbers(Objects(tmp_path / "s"))[-1])
    good = file.read_bytes()
    for bad in (good.replace(b'"videos": 1', b'"videos": 2'), good[:-20], b""):
        assert bad != good
        file.write_bytes(bad)
        with pytest.raises(StoreError, match="is damaged") as caught:
            FeatureStore.open(tmp_path / "s")
        assert "as it was before" in caught.value.fix
        _refusal(tmp_path / "s")
        with pytest.raises(StoreError, match="is damaged"):
            verify(tmp_path / "s")
    open_writer(tmp_path / "s", overwrite=True)
    assert verify(tmp_path / "s") == []
    assert FeatureStore.open(tmp_path / "s").ids == []


def test_without_its_last_change_a_store_is_as_before(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 2)
    with open_writer(tmp_path / "s") as writer:
        commit(writer, 2)
        writer.finalise()
    (tmp_path / "s" / log_key(numbers(Objects(tmp_path / "s"))[-1])).unlink()
    assert FeatureStore.open(tmp_path / "s").ids == ["v0.mp4", "v1.mp4"]
    assert [d.array for d in verify(tmp_path / "s")] == ["zarr.json"]
    with open_writer(tmp_path / "s") as writer:
        commit(writer, 2)
        writer.finalise()
    assert len(FeatureStore.open(tmp_path / "s")) == 3
    assert verify(tmp_path / "s") == []


def test_overwriting_starts_afresh(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 3)
    with open_writer(tmp_path / "s") as writer:
        commit(writer, 8)
    other = [replace(s, identity={"bn_eps": 3}) for s in SPECS]
    with open_writer(tmp_path / "s", specs=other, overwrite=True) as writer:
        assert not writer.committed
        writer.commit("new", arrays_of(9), {})
        writer.finalise()
    store = FeatureStore.open(tmp_path / "s")
    assert (store.ids, store.pending) == (["new"], 0)
    assert len(list((tmp_path / "s/blocks").iterdir())) == 1
    assert verify(tmp_path / "s") == []


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
def test_arrays_that_do_not_fit_are_the_videos_fault(tmp_path: Path, change: Any, message: str) -> None:
    arrays = arrays_of(0)
    change(arrays)
    with open_writer(tmp_path / "s") as writer:
        with pytest.raises(ValueError, match=message):
            writer.commit("a", arrays, {})
        assert not writer.committed


def test_what_a_network_made_is_finite_and_a_coordinate_need_not_be(tmp_path: Path) -> None:
    for role in ("feature", "map", "logits"):
        spec = ArraySpec("a", ("channel",), (2,), "float32", role=role)  # type: ignore[arg-type]
        with open_writer(tmp_path / role, specs=[spec]) as writer, pytest.raises(ValueError, match="not finite"):
            writer.commit("v", {"a": np.full((1, 2), np.nan, np.float32)}, {})
    spec = ArraySpec("a", ("channel",), (2,), "float32", role="coordinate")
    with open_writer(tmp_path / "coordinate", specs=[spec]) as writer:
        writer.commit("v", {"a": np.full((1, 2), np.nan, np.float32)}, {})
        writer.finalise()
    assert verify(tmp_path / "coordinate") == []


def test_a_role_has_a_shape_and_a_name() -> None:
    with pytest.raises(ValueError, match="role must be one of"):
        ArraySpec("a", (), (), "float32", role="thing")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one vector a segment"):
        ArraySpec("a", ("x", "y"), (2, 2), "float32", role="feature")


@pytest.mark.parametrize(("bad", "message"), [("", "empty"), ("\udcff", "escape it first")])
def test_an_id_is_printable_text(bad: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        video_key(bad)


@pytest.mark.parametrize("used", [False, True])
def test_a_writer_whose_declaration_gave_way_is_refused_at_its_first_commit(tmp_path: Path, used: bool) -> None:
    """Two first runs at once, of which one had other settings: the one whose declaration stands wins."""
    with open_writer(tmp_path / "s", specs=FLOW) as late:
        with open_writer(tmp_path / "s", specs=[replace(FLOW[0], identity={"bound": 3})]) as writer:
            if used:
                writer.commit("v1.mp4", {"flow": arrays_of(1, 2, FLOW)["flow"]}, {})
        with pytest.raises(StoreError, match=r"bound: 3 in the store, default now \(flow\)"):
            commit(late, 0)
        assert not late.committed
        late.finalise()
    assert FeatureStore.open(tmp_path / "s").coverage["flow"] == used


def test_staged_videos_of_other_settings_are_dropped_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where both look at the same moment, before either has committed."""
    open_writer(tmp_path / "s", specs=[replace(FLOW[0], identity={"bound": 3})])
    arrays = {"flow": arrays_of(1, 2, FLOW)["flow"]}
    write_part(
        Objects(tmp_path / "s", write=True),
        "v1.mp4",
        arrays,
        {"flow": FLOW[0].family},
        {},
        {},
        sequence=0,
        replaces_all=False,
        again=False,
    )
    finalise(tmp_path / "s")
    assert "made with other settings than the store's: v1.mp4" in " ".join(capsys.readouterr().err.split())
    store = FeatureStore.open(tmp_path / "s")
    assert (store.ids, store.pending) == ([], 0)
    # With nothing that counts the declaration still gives way.
    with open_writer(tmp_path / "s", specs=FLOW) as writer:
        commit(writer, 0)
        writer.finalise()
    assert FeatureStore.open(tmp_path / "s").ids == ["v0.mp4"]


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
    assert json.loads(store.column("meta")[0]) == meta_of(0)


def test_settings_of_what_is_selected_are_those_of_the_run_that_made_it(tmp_path: Path) -> None:
    make_store(tmp_path / "s", 1)
    other = ExtractSettings(
        streams=("flow",), flow=FlowSettings(mode="parity"), pixels=Pixels(short_side=128, crop=112)
    )
    with open_writer(tmp_path / "s", specs=FLOW, settings=other) as writer:
        commit(writer, 0)
        writer.finalise()
    store = FeatureStore.open(tmp_path / "s")
    assert store.select("flow").settings == other
    assert store.select("rgb", "frame_index").settings == SETTINGS
    both = store.select("rgb", "flow").settings
    assert both == store.settings == SETTINGS.joined(other)
    assert store.select("frame_index").settings == store.settings  # no run says that it made it
