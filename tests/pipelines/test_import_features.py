"""`aqa import-features`: every layout as real files, the store that follows, and a training on it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from tests.pipelines.import_cases import IDS, bring, dump, expect, save, signal, train

from aqa_shared.errors import ExitCode, NoInputError, StoreError, UsageError
from aqa_shared.store import FeatureStore, compact, describe


def test_a_file_a_video(tmp_path: Path, labels: Path) -> None:
    """GDLT's swintx_avg_fps25_clip32: NAME.npy, (time, channels)."""
    folder, out = tmp_path / "swintx_avg_fps25_clip32", tmp_path / "s.zarr"
    for id in IDS:
        save(folder / f"{id}.npy", signal(id))
    report = bring(folder, out, labels=labels, made_by="VST")
    assert (report.exit_code, report.already, report.labelled) == (ExitCode.OK, 0, 12)
    store = expect(out, "features", {id: signal(id) for id in IDS})
    assert store.settings is None
    assert store.table["score"][3] == pytest.approx(3.3)
    assert json.loads(store.table["extra"][3]) == {"person": "p0"}
    assert describe(out)["arrays"]["features"]["identity"] == {"made_by": "VST"}
    rows = train(out, tmp_path / "run", "--method", "s4aqa", "--labelled", "0.5")
    assert {"s4aqa", "ridge", "mean-score"} <= {row["method"] for row in rows}


def test_streams_by_the_ends_of_names_as_video_features_writes_them(tmp_path: Path, labels: Path) -> None:
    folder, out = tmp_path / "i3d", tmp_path / "s.zarr"
    for id in IDS:
        save(folder / f"{id}_rgb.npy", signal(id))
        save(folder / f"{id}_flow.npy", signal(id, width=4)[: len(signal(id))])
        save(folder / f"{id}_fps.npy", 25.0)
        save(folder / f"{id}_timestamps_ms.npy", np.arange(3))
    report = bring(folder, out, labels=labels)
    assert (report.exit_code, {k: len(v) for k, v in report.made.items()}) == (ExitCode.OK, {"rgb": 12, "flow": 12})
    store = expect(out, "rgb", {id: signal(id) for id in IDS})
    assert store.streams == ("flow", "rgb")
    assert {row["method"] for row in train(out, tmp_path / "run", "--method", "aa")} >= {"aa"}
    # The same, said by hand; an end that nobody mentioned is passed over.
    bring(folder, tmp_path / "t.zarr", streams=["optical-flow=_flow"], labels=labels)
    assert FeatureStore.open(tmp_path / "t.zarr").streams == ("optical_flow",)


def test_streams_by_folder_may_differ_in_length(
    tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ACTION-NET: dynamic features of clips, static ones of pictures."""
    folder, out = tmp_path / "data", tmp_path / "s.zarr"
    for id in IDS:
        save(folder / "dynamic_feat" / f"{id}.npy", signal(id))
        save(folder / "static_feat" / f"{id}.npy", signal(id, "static", 5, 9))
    two = {"streams": ["dynamic=dynamic_feat/", "static=static_feat/"], "labels": labels}
    bring(folder, out, **two)
    assert "streams differ in length in 12 videos" in capsys.readouterr().err.replace("\n", " ")
    expect(out, "dynamic", {id: signal(id) for id in IDS})
    expect(out, "static", {id: signal(id, "static", 5, 9) for id in IDS})
    with pytest.raises(StoreError, match=r"as Ball_001: dynamic \d, static 9") as caught:
        train(out, tmp_path / "none", "--method", "aa")
    assert "--transform resample:rows=N" in caught.value.fix
    bring(folder, tmp_path / "even.zarr", transforms=["resample:rows=4"], **two)
    assert FeatureStore.open(tmp_path / "even.zarr").read("static").shape == (48, 5)


def test_dictionaries_of_ids_in_object_arrays(tmp_path: Path, labels: Path) -> None:
    """PAMFN: Ball_rgb_VST.npy is a pickled dictionary of ids, one file an apparatus and stream."""
    folder, out = tmp_path / "feats", tmp_path / "s.zarr"
    for part, ids in (("Ball", IDS[:6]), ("Hoop", IDS[6:])):
        save(folder / f"{part}_rgb_VST.npy", np.array({id: signal(id) for id in ids}, dtype=object))
        save(folder / f"{part}_audio_AST.npy", np.array({id: signal(id, "audio")[:3] for id in ids}, dtype=object))
    bring(folder, out, streams=["rgb=_rgb_VST", "audio=_audio_AST"], labels=labels, transforms=["resample:rows=3"])
    assert FeatureStore.open(out).streams == ("audio", "rgb")
    bring(folder / "Ball_rgb_VST.npy", tmp_path / "one.zarr", streams=["rgb"])
    expect(tmp_path / "one.zarr", "rgb", {id: signal(id) for id in IDS[:6]})


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_pickle_of_ids(tmp_path: Path, labels: Path, protocol: int) -> None:
    values = {id: signal(id) for id in IDS}
    path = dump(tmp_path / "f.pkl", values, protocol)
    bring(path, tmp_path / "s.zarr", labels=labels)
    expect(tmp_path / "s.zarr", "features", values)


def test_dictionaries_of_streams_either_way_round(tmp_path: Path) -> None:
    both = {s: {id: signal(id, s, rows=3) for id in IDS} for s in ("rgb", "flow")}
    dump(tmp_path / "by_stream.pkl", both)
    dump(tmp_path / "by_id.pkl", {id: {"rgb": both["rgb"][id], "flow": both["flow"][id], "fps": 25} for id in IDS})
    for name in ("by_stream", "by_id"):
        bring(tmp_path / f"{name}.pkl", tmp_path / f"{name}.zarr")
        expect(tmp_path / f"{name}.zarr", "flow", both["flow"])
        compact(tmp_path / f"{name}.zarr")
    stores = [FeatureStore.open(tmp_path / f"{name}.zarr") for name in ("by_stream", "by_id")]
    assert stores[0].content == stores[1].content


def test_a_table_with_ids_and_labels(tmp_path: Path) -> None:
    features = np.stack([signal(id, rows=5) for id in IDS]).astype(np.float16)
    table = {
        "id": np.array(IDS),
        "features": features,
        "score": np.arange(12.0),
        "fold": np.arange(12) % 4,
        "marks": np.arange(24).reshape(12, 2),
        "columns": np.array(["a", "b"]),
    }
    np.savez(tmp_path / "t.npz", **table)
    report = bring(tmp_path / "t.npz", tmp_path / "s.zarr")
    assert (report.shapes, report.labelled) == ({"features": (5, 5, 6)}, 12)
    store = expect(tmp_path / "s.zarr", "features", dict(zip(IDS, features, strict=True)))
    assert json.loads(store.table["extra"][5]) == {"fold": 1, "marks": "[10, 11]"}
    rows = train(tmp_path / "s.zarr", tmp_path / "run", "--method", "i3d+mlp", "--group", "fold")
    assert "i3d+mlp" in {row["method"] for row in rows}
    # Labels of a file count for more than those of the table.
    (tmp_path / "l.csv").write_text("id,score\nBall_003,77\n")
    bring(tmp_path / "t.npz", tmp_path / "s.zarr", labels=tmp_path / "l.csv")
    found = FeatureStore.open(tmp_path / "s.zarr").table["score"]
    assert (found[2], np.isnan(found).sum()) == (77, 11)


def test_a_table_of_videos_one_after_the_other(tmp_path: Path) -> None:
    parts = [signal(id, width=4) for id in IDS]
    offset = np.cumsum([0, *map(len, parts)])
    np.savez(tmp_path / "t.npz", data=np.concatenate(parts), offset=offset, correct=np.arange(12) % 2)
    wanted = {f"{i:02d}": part for i, part in enumerate(parts)}
    bring(tmp_path / "t.npz", tmp_path / "s.zarr", streams=["skeleton"], label_columns={"score": "correct"})
    store = expect(tmp_path / "s.zarr", "skeleton", wanted)
    assert store.table["score"].tolist() == [0, 1] * 6
    lengths = np.array([len(p) for p in parts])
    np.savez(tmp_path / "u.npz", data=np.concatenate(parts), lengths=lengths)
    bring(tmp_path / "u.npz", tmp_path / "u.zarr", streams=["skeleton"])
    expect(tmp_path / "u.zarr", "skeleton", wanted)
    with pytest.raises(UsageError, match=r"no array 'grade' of labels; it has correct"):
        bring(tmp_path / "t.npz", tmp_path / "v.zarr", label_columns={"score": "grade"})
    np.savez(tmp_path / "w.npz", data=np.concatenate(parts)[:-1], offset=offset)
    with pytest.raises(UsageError, match=r"data has \d+ rows, expected \d+ for 12 videos"):
        bring(tmp_path / "w.npz", tmp_path / "v.zarr")
    assert not (tmp_path / "v.zarr").exists()


def test_matlab(tmp_path: Path) -> None:
    folder = tmp_path / "mat"
    folder.mkdir()
    for id in IDS:
        scipy.io.savemat(folder / f"{id}.mat", {"rgb": signal(id), "flow": signal(id, "flow", 1, len(signal(id)))})
    bring(folder, tmp_path / "s.zarr")
    store = expect(tmp_path / "s.zarr", "rgb", {id: signal(id) for id in IDS})
    assert store.specs["flow"].shape == (1,)
    names = np.array(IDS, dtype=object)
    table = {"features": np.stack([signal(id, rows=3) for id in IDS]), "names": names, "score": np.arange(12.0)}
    scipy.io.savemat(tmp_path / "t.mat", table)
    bring(tmp_path / "t.mat", tmp_path / "t.zarr")
    store = expect(tmp_path / "t.zarr", "features", {id: signal(id, rows=3) for id in IDS})
    assert store.table["score"].tolist() == list(range(12))


def test_a_vector_a_video_and_arrays_by_name(tmp_path: Path) -> None:
    for id in IDS:
        save(tmp_path / "v" / f"{id}.npy", signal(id)[0])
        (tmp_path / "n").mkdir(exist_ok=True)
        np.savez(tmp_path / "n" / f"{id}.npz", reconstruction=signal(id, rows=4).reshape(4, 2, 3), subject=1)
    bring(tmp_path / "v", tmp_path / "v.zarr")
    expect(tmp_path / "v.zarr", "features", {id: signal(id)[:1] for id in IDS})
    with pytest.raises(NoInputError, match=r"which of reconstruction, subject is meant\?"):
        bring(tmp_path / "n", tmp_path / "n.zarr")
    chosen = {"streams": ["skeleton=reconstruction"], "transforms": ["flatten"]}
    with pytest.raises(NoInputError, match=r"its shape is \(4, 2, 3\), expected \(time, channels\)"):
        bring(tmp_path / "n", tmp_path / "n.zarr", streams=chosen["streams"])
    bring(tmp_path / "n", tmp_path / "n.zarr", **chosen)
    expect(tmp_path / "n.zarr", "skeleton", {id: signal(id, rows=4) for id in IDS})


@pytest.fixture
def features(shared_dir: Path) -> Path:
    if not (shared_dir / "features").is_dir():
        pytest.skip("no real features beside the checkout")
    return shared_dir / "features"


def test_published_features(features: Path, tmp_path: Path) -> None:
    report = bring(features / "jigsaws_suturing_i3d_rgb.npz", tmp_path / "j.zarr")
    assert (report.shapes, report.labelled) == ({"features": (10, 10, 1024)}, 39)
    report = bring(features / "finger_tapping.npz", tmp_path / "f.zarr")
    assert (len(report.made["features"]), len(report.problems)) == (486, 3)
    report = bring(
        features / "ui_prmd_kinect.npz", tmp_path / "u.zarr", dry_run=True, label_columns={"score": "correct"}
    )
    assert (report.shapes, len(report.made["features"])) == ({"features": (28, 179, 66)}, 2000)
