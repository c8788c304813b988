"""What `aqa import-features` leaves out or refuses, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from tests.pipelines.import_cases import IDS, bring, dump, expect, left_out, problem, save, signal

from aqa_shared.errors import ExitCode, NoInputError, UsageError

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
    "calls": (np.array({"a": Path("/")}, dtype=object), r"it asks for pathlib\.[\w.]*Path, and only arrays are read"),
    "ragged": (np.array([[1.0, 2.0], [1.0]], dtype=object), r"its rows differ in length"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_array_is_left_out_and_named(tmp_path: Path, kind: str) -> None:
    value, said = BAD[kind]
    save(tmp_path / "f" / "good.npy", np.ones((3, 2)))
    save(tmp_path / "f" / "bad.npy", value)
    left_out(bring(tmp_path / "f", tmp_path / "s.zarr"), tmp_path / "f" / "bad.npy", said)
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
    left_out(report, folder / name, f"cannot be read as {Path(name).suffix}")
    assert report.made == {"features": ["good"]}


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
