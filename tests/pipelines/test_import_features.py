"""`aqa import-features`: every layout as real files, the store that follows, and a training on it."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.io

from aqa_pipelines.import_features import ImportReport, import_features
from aqa_pipelines.import_transforms import Resample, WindowsDct, transforms_of
from aqa_shared.datasets.prepare import prepare
from aqa_shared.errors import AqaError, ExitCode, NoInputError, StoreError, UsageError
from aqa_shared.records import ExtractSettings
from aqa_shared.store import ArraySpec, FeatureStore, StoreWriter, compact, describe, verify

IDS = [f"Ball_{i:03d}" for i in range(1, 13)]


def signal(id: str, stream: str = "", width: int = 6, rows: int | None = None) -> np.ndarray:
    """Always the same for a name; between 3 and 6 rows."""
    rng = np.random.default_rng([*f"{id}{stream}".encode()])
    length = int(rng.integers(3, 7)) if rows is None else rows
    return rng.standard_normal((length, width)).astype(np.float32)


def save(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, value, allow_pickle=True)


def dump(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "scores.csv"
    path.write_text("id,score,person\n" + "".join(f"{id},{i % 7 + i / 10:.1f},p{i % 3}\n" for i, id in enumerate(IDS)))
    return path


def bring(source: Path, out: Path, **more: Any) -> ImportReport:
    return import_features(source, str(out), **more)


def expect(out: Path, stream: str, arrays: Mapping[str, np.ndarray]) -> FeatureStore:
    """The store holds exactly these, and is whole."""
    store = FeatureStore.open(out)
    chosen = store.select(stream)
    assert chosen.ids == sorted(arrays)
    for id, array in arrays.items():
        np.testing.assert_array_equal(chosen.video(id, stream), array.astype(np.float32))
    assert verify(out) == []
    return store


def train(store: Path, run: Path, *arguments: str) -> list[dict[str, Any]]:
    """A short training by the command that a user types; the rows of its table."""
    from aqa_train.cli import app

    fixed = ("--test-fraction", "0.3", "--seeds", "1", "--epochs", "2", "--jobs", "1", "--device", "cpu")
    app(["--features", str(store), "--out", str(run), *fixed, *arguments], standalone_mode=False)
    rows: list[dict[str, Any]] = json.loads((run / "metrics.json").read_text())["rows"]
    return rows


# ---- layouts


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


# ---- again


def test_again_adds_what_is_new_and_says_what_has_changed(tmp_path: Path, labels: Path) -> None:
    folder, out = tmp_path / "f", tmp_path / "s.zarr"
    for id in IDS[:6]:
        save(folder / f"{id}.npy", signal(id))
    bring(folder, out, labels=labels)
    for id in IDS[6:]:
        save(folder / f"{id}.npy", signal(id))
    report = bring(folder, out, labels=labels)
    assert (report.already, report.made) == (6, {"features": IDS[6:]})
    number = describe(out)["number"]
    assert bring(folder, out, labels=labels).already == 12
    assert describe(out)["number"] == number, "nothing is written where nothing is new"
    save(folder / f"{IDS[0]}.npy", signal("other"))
    report = bring(folder, out, labels=labels)
    assert report.exit_code == ExitCode.QUARANTINED
    assert "Ball_001 has other values than in the store, which keeps its own" in report.text()
    assert "fix: --replace takes the new ones" in report.text()
    expect(out, "features", {id: signal(id) for id in IDS})
    report = bring(folder, out, labels=labels, replace_changed=True)
    assert (report.exit_code, report.made) == (ExitCode.OK, {"features": [IDS[0]]})
    expect(out, "features", {id: signal("other" if id == IDS[0] else id) for id in IDS})


def test_what_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "f", tmp_path / "s.zarr"
    for id in IDS:
        save(folder / f"{id}.npy", signal(id))
    commit, count = StoreWriter.commit, iter(range(5))

    def killed(*arguments: Any) -> None:
        if next(count, None) is None:
            raise KeyboardInterrupt
        commit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit", killed)
        with pytest.raises(KeyboardInterrupt):
            bring(folder, out)
    report = bring(folder, out)
    assert (report.already, len(report.made["features"])) == (5, 7)
    expect(out, "features", {id: signal(id) for id in IDS})


def test_damage_is_repaired(tmp_path: Path) -> None:
    folder, out = tmp_path / "f", tmp_path / "s.zarr"
    for id in IDS:
        save(folder / f"{id}.npy", signal(id))
    bring(folder, out)
    (chunk,) = out.glob("blocks/*/features/c.0.0")
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    assert verify(out)
    assert bring(folder, out).made == {}
    assert len(bring(folder, out, repair=True).made["features"]) == 12
    expect(out, "features", {id: signal(id) for id in IDS})


def test_a_stream_beside_extracted_ones(tmp_path: Path) -> None:
    """`a` is the store's a.mp4; another making of a stream that is there is refused."""
    out = tmp_path / "s.zarr"
    spec = ArraySpec("rgb", ("channel",), (6,), "float32", role="feature")
    with StoreWriter.open(out, specs=[spec], settings=ExtractSettings(), provenance={}) as writer:
        for id in IDS:
            writer.commit(f"{id}.mp4", {"rgb": signal(id)}, {})
        writer.finalise()
    for id in IDS:
        save(tmp_path / "f" / f"{id}.npy", signal(id, "x"))
    report = bring(tmp_path / "f", out, streams=["skeleton"])
    assert report.made["skeleton"][0] == "Ball_001.mp4"
    assert bring(tmp_path / "f", out, streams=["skeleton"]).already == 12
    with pytest.raises(StoreError, match=r"made_by: default in the store, not stated now \(rgb\)"):
        bring(tmp_path / "f", out, streams=["rgb"])
    with pytest.raises(StoreError, match=r"transforms: default in the store, \['resample:rows=2'\] now"):
        bring(tmp_path / "f", out, streams=["skeleton"], transforms=["resample:rows=2"])


def test_a_dry_run_reads_and_writes_nothing(tmp_path: Path) -> None:
    save(tmp_path / "f" / "a.npy", signal("a"))
    report = bring(tmp_path / "f", tmp_path / "s.zarr", dry_run=True)
    assert "1 array would be imported" in report.text()
    assert not (tmp_path / "s.zarr").exists()


def test_any_store(tmp_path: Path) -> None:
    save(tmp_path / "f" / "a.npy", signal("a"))
    where = f"memory://{tmp_path.name}-import.zarr"
    import_features(tmp_path / "f", where)
    np.testing.assert_array_equal(FeatureStore.open(where).video("a", "features"), signal("a"))


# ---- what is wrong


BAD: dict[str, tuple[Any, str]] = {
    "nan": (
        np.array([[1.0, np.nan], [2.0, 3.0], [np.nan, np.inf]]),
        r"values that are 2 NaN and 1 infinite, in row 0, 2 of 3",
    ),
    "large": (np.full((3, 2), 1e300), r"values of up to 1e\+300 are too large for float32"),
    "empty": (np.zeros((0, 2)), r"it is empty, its shape is \(0, 2\)"),
    "scalar": (np.float32(3), r"it is empty, its shape is \(\)|its shape is \(\)"),
    "text": (np.array(["a", "b"]), r"its type is <U1, not numbers"),
    "complex": (np.ones((3, 2), complex), r"its type is complex128, not numbers"),
    "calls": (np.array({"a": Path("/")}, dtype=object), r"it asks for pathlib\.\w*Path, and only arrays are read"),
    "ragged": (np.array([[1.0, 2.0], [1.0]], dtype=object), r"its rows differ in length"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_array_is_left_out_and_named(tmp_path: Path, kind: str) -> None:
    value, said = BAD[kind]
    save(tmp_path / "f" / "good.npy", np.ones((3, 2)))
    save(tmp_path / "f" / "bad.npy", value)
    report = bring(tmp_path / "f", tmp_path / "s.zarr")
    assert report.exit_code == ExitCode.QUARANTINED
    ((where, cause, fix),) = report.problems
    assert where == str(tmp_path / "f" / "bad.npy")
    assert re.search(said, cause), cause
    assert fix
    expect(tmp_path / "s.zarr", "features", {"good": np.ones((3, 2))})


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pkl", "a.mat"])
def test_a_damaged_file_is_left_out(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "f"
    save(folder / "good.npy", np.ones((3, 2)))
    save(folder / "a.npy", np.ones((300, 2)))
    np.savez(folder / "a.npz", x=np.ones((300, 2)))
    dump(folder / "a.pkl", np.ones((300, 2)))
    scipy.io.savemat(folder / "a.mat", {"x": np.ones((300, 2))})
    for path in folder.glob("a.*"):
        if path.name == name:
            path.write_bytes(path.read_bytes()[:-900])
        else:
            path.unlink()
    report = bring(folder, tmp_path / "s.zarr")
    ((where, cause, _),) = report.problems
    assert (where, report.made) == (str(folder / name), {"features": ["good"]})
    assert f"cannot be read as {Path(name).suffix}" in cause


def test_a_file_that_claims_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 10)}
    with (folder / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    np.savez_compressed(folder / "b.npz", x=np.zeros((2000, 100)))
    scipy.io.savemat(folder / "c.mat", {"x": np.zeros((2000, 100))}, do_compression=True)
    dump(folder / "d.pkl", np.zeros((2000, 100)))
    monkeypatch.setattr("aqa_pipelines.import_files.available_memory", lambda: 1 << 20)
    with pytest.raises(NoInputError, match=r"it ends too early: 128 bytes, and an array of 80000000000000") as caught:
        bring(folder, tmp_path / "s.zarr")
    assert caught.value.cause.count("MiB, and 0 MiB may be used for it") == 3


def problem(work: Any, kind: type[AqaError], said: str) -> AqaError:
    with pytest.raises(kind, match=said) as caught:
        work()
    assert caught.value.fix
    return caught.value


def test_what_contradicts_itself_writes_nothing(tmp_path: Path, labels: Path) -> None:
    folder, out = tmp_path / "f", tmp_path / "s.zarr"
    save(folder / "a.npy", np.ones((3, 2)))
    save(folder / "b.npy", np.ones((3, 4)))
    problem(lambda: bring(folder, out), UsageError, r"features differ in width: 1 of 2 columns \(.*a.npy\); 1 of 4")
    (folder / "b.npy").unlink()
    dump(folder / "a.pkl", np.ones((3, 2)))
    problem(lambda: bring(folder, out), UsageError, r"the id a would mean two arrays of features: .*a.npy and .*a.pkl")
    (folder / "a.pkl").unlink()
    problem(lambda: bring(folder, out, labels=labels), UsageError, r"none of its 12 labels fits a video")
    problem(
        lambda: bring(folder, out, streams=["rgb=_rgb"]),
        NoInputError,
        r"neither its name nor an array in it is rgb=_rgb",
    )
    problem(lambda: bring(folder, out, columns="0-7"), NoInputError, r"it has 2 columns")
    problem(lambda: bring(folder, out, columns="3-1"), UsageError, r"--columns '3-1'")
    problem(lambda: bring(folder, out, streams=["Rgb"]), UsageError, r"--stream 'Rgb'")
    problem(
        lambda: bring(folder, out, streams=["rgb", "flow=_f"]), UsageError, r"of several streams, say where each is"
    )
    problem(lambda: bring(folder, out, transforms=["dct"]), UsageError, r"--transform 'dct'")
    problem(lambda: bring(folder, out, transforms=["resample"]), UsageError, r"rows: Field required")
    problem(lambda: bring(tmp_path / "none", out), NoInputError, r"no such file or folder")
    problem(lambda: bring(labels, out), NoInputError, r"is not one of .npy, .npz, .pkl")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "a.mp4").touch()
    problem(lambda: bring(tmp_path / "e", out), NoInputError, r"it holds 1 × \*.mp4")
    assert not out.exists()


def test_labels_and_arrays_that_lack_each_other_are_said(
    tmp_path: Path, labels: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for id in [*IDS[:4], "unknown"]:
        save(tmp_path / "f" / f"{id}.npy", signal(id))
    report = bring(tmp_path / "f", tmp_path / "s.zarr", labels=labels)
    said = capsys.readouterr().err.replace("\n", " ")
    assert "8 labels without a video: Ball_005" in said
    assert "1 video without a label: unknown" in said
    assert (report.exit_code, report.labelled) == (ExitCode.OK, 4)


# ---- transforms


def test_windows_dct_is_scipys() -> None:
    x = signal("k", width=76, rows=100).astype(np.float64)
    # JIGSAWS: positions of the four manipulators, in four windows.
    chosen = x[:, [*range(3), *range(19, 22), *range(38, 41), *range(57, 60)]]
    windows = WindowsDct(windows=4, coefficients=3)(chosen)
    assert windows.shape == (4, 36)
    # Window 1, slave left (the third manipulator), y.
    expected = scipy.fft.dct(x[25:50, 2 * 19 + 1], norm="ortho")[:3]
    np.testing.assert_allclose(windows[1].reshape(12, 3)[2 * 3 + 1], expected, rtol=1e-12)
    short = WindowsDct(windows=2, coefficients=4)(chosen[:5]).reshape(2, 12, 4)
    assert np.count_nonzero(short[0, :, 2:]) == 0
    strided = WindowsDct(window=30, stride=20, coefficients=2)(chosen)
    assert strided.shape == (4, 24)
    np.testing.assert_allclose(strided[3].reshape(12, 2)[0], scipy.fft.dct(x[60:90, 0], norm="ortho")[:2])
    assert WindowsDct(window=300, stride=20)(chosen).shape == (1, 12 * 15)
    assert WindowsDct()(chosen).shape == (10, 180)


def test_resampling_keeps_ends_and_lines() -> None:
    line = np.stack([np.arange(7.0), np.arange(7.0) * -2], axis=1)
    np.testing.assert_allclose(Resample(rows=4)(line), [[0, 0], [2, -4], [4, -8], [6, -12]])
    np.testing.assert_allclose(Resample(rows=13)(line)[:, 0], np.arange(13) / 2)
    np.testing.assert_array_equal(Resample(rows=3)(line[:1]), line[[0, 0, 0]])


def test_transforms_are_written_in_full() -> None:
    texts = ["fill", "flatten", "mean", "windows-dct:windows=4", "windows-dct:window=9,stride=3,coefficients=2"]
    assert [written for written, _ in transforms_of(texts)] == [
        "fill:value=0.0",
        "flatten",
        "mean",
        "windows-dct:coefficients=15,windows=4",
        "windows-dct:coefficients=2,stride=3,window=9",
    ]
    with pytest.raises(UsageError, match=r"give windows, or window and stride, not both"):
        transforms_of(["windows-dct:windows=4,window=3,stride=1"])


def test_missing_values_can_be_filled_and_views_averaged(tmp_path: Path) -> None:
    views = np.arange(24.0).reshape(3, 2, 4)
    views[1, 0, 0] = np.nan
    save(tmp_path / "f" / "a.npy", views)
    bring(tmp_path / "f", tmp_path / "s.zarr", transforms=["fill:value=4", "mean"])
    expect(tmp_path / "s.zarr", "features", {"a": np.nan_to_num(views, nan=4).mean(axis=1)})


def test_prepared_sequences_come_in(tmp_path: Path) -> None:
    """What `aqa datasets prepare` writes, with its labels, by the commands of docs/importing.md."""
    root, out = tmp_path / "prmd", tmp_path / "out"
    root.mkdir()
    for person in ("s01", "s02"):
        for wrong in ("", "_inc"):
            rows = signal(f"{person}{wrong}", width=66, rows=40)
            np.savetxt(root / f"m01_{person}_e01_positions{wrong}.txt", rows, delimiter=",")
    prepare("ui-prmd", root, out)
    chosen = {"streams": ["skeleton"], "transforms": ["resample:rows=8"], "labels": out / "labels.csv"}
    report = bring(out / "sequences", tmp_path / "s.zarr", **chosen)
    assert (report.shapes, report.labelled, report.exit_code) == ({"skeleton": (8, 8, 66)}, 4, ExitCode.OK)
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.table["score"].tolist() == [1, 0, 1, 0]
    np.testing.assert_allclose(store.video("m01_s02_e01", "skeleton")[-1], signal("s02", width=66, rows=40)[-1])


# ---- real features


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
