"""`aqa import-features` of HDF5: the layouts, and what of a file is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tests.pipelines.import_cases import IDS, bring, dump, expect, left_out, problem, save, signal

from aqa_shared.errors import ExitCode, NoInputError, UsageError
from aqa_shared.store import FeatureStore


def write(path: Path, tree: dict[str, Any], **how: Any) -> Path:
    """Arrays by path in the file; None is an array without values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in tree.items():
            many = getattr(values, "size", 1) > 1
            file.create_dataset(name, data=h5py.Empty("f4") if values is None else values, **(how if many else {}))
    return path


@pytest.mark.parametrize("suffix", [".h5", ".hdf5"])
def test_a_file_a_video_with_one_array(tmp_path: Path, labels: Path, suffix: str) -> None:
    for id in IDS:
        write(tmp_path / "f" / f"{id}{suffix}", {"i3d": signal(id)}, chunks=True, compression="gzip")
    report = bring(tmp_path / "f", tmp_path / "s.zarr", labels=labels)
    assert (report.exit_code, report.labelled) == (ExitCode.OK, 12)
    expect(tmp_path / "s.zarr", "features", {id: signal(id) for id in IDS})
    assert bring(tmp_path / "f", tmp_path / "s.zarr", labels=labels).already == 12


def test_a_file_a_video_with_streams(tmp_path: Path) -> None:
    """Under their names, or under others that the command says; numbers beside them are no features."""
    for id in IDS[:3]:
        values = signal(id)
        write(tmp_path / "f" / f"{id}.h5", {"rgb": values, "flow": values[:, :2], "fps": np.float32(25)})
        write(tmp_path / "g" / f"{id}.h5", {"net/dynamic": values, "net/static": values[:, :2]})
    bring(tmp_path / "f", tmp_path / "f.zarr")
    store = expect(tmp_path / "f.zarr", "flow", {id: signal(id)[:, :2] for id in IDS[:3]})
    assert store.streams == ("flow", "rgb")
    with pytest.raises(NoInputError, match=r"which of dynamic, static of net is meant\?"):
        bring(tmp_path / "g", tmp_path / "g.zarr")


def test_one_file_of_many_videos(tmp_path: Path, labels: Path) -> None:
    """An array a video; groups of streams; groups of videos, as in TVSum's and SumMe's files."""
    values = {id: signal(id) for id in IDS}
    write(tmp_path / "ids.h5", values)
    write(tmp_path / "streams.h5", {f"{stream}/{id}": x for id, x in values.items() for stream in ("rgb", "flow")})
    groups = {f"{id}/{name}": x for id, x in values.items() for name, x in (("features", x), ("n_frames", 120))}
    write(tmp_path / "videos.h5", groups | {f"{id}/video_name": id for id in IDS})
    for name, stream, more in (
        ("ids", "features", {}),
        ("streams", "flow", {}),
        ("videos", "features", {"streams": ["features=features"]}),
    ):
        report = bring(tmp_path / f"{name}.h5", tmp_path / f"{name}.zarr", labels=labels, **more)
        assert (report.exit_code, report.labelled) == (ExitCode.OK, 12)
        expect(tmp_path / f"{name}.zarr", stream, values)
    problem(
        lambda: bring(tmp_path / "videos.h5", tmp_path / "v.zarr"),
        UsageError,
        r"which of features, n_frames, video_name of Ball_001 is meant\?",
    )
    # Of one video, too: its group is its id.
    write(tmp_path / "one.h5", {"dive/rgb": signal("dive"), "dive/flow": signal("dive", "flow")[:3]})
    bring(tmp_path / "one.h5", tmp_path / "one.zarr")
    expect(tmp_path / "one.zarr", "rgb", {"dive": signal("dive")})


def test_files_of_many_videos_by_the_ends_of_their_names(tmp_path: Path) -> None:
    for part, ids in (("Ball", IDS[:6]), ("Hoop", IDS[6:])):
        write(tmp_path / "f" / f"{part}_rgb_VST.h5", {id: signal(id) for id in ids})
    bring(tmp_path / "f", tmp_path / "s.zarr", streams=["rgb=_rgb_VST"])
    expect(tmp_path / "s.zarr", "rgb", {id: signal(id) for id in IDS})


@pytest.mark.parametrize("kind", [object, bytes, "column"])
def test_a_table_with_texts_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    ids = [f"{id}é" if kind is object else id for id in IDS]
    texts: Any = np.array(ids, dtype=object) if kind is object else np.array([id.encode() for id in ids])
    if kind == "column":
        texts = np.array(ids, dtype=object)[:, None]
    monkeypatch.setattr("aqa_pipelines.import_hdf5._AT_ONCE", 50_000)  # a few texts at a time
    features = np.stack([signal(id, rows=5) for id in IDS])
    write(tmp_path / "t.h5", {"id": texts, "features": features, "score": np.arange(12.0), "note": None})
    assert bring(tmp_path / "t.h5", tmp_path / "s.zarr").labelled == 12
    store = expect(tmp_path / "s.zarr", "features", dict(zip(ids, features, strict=True)))
    assert store.table["score"][3] == 3


def outside(file: h5py.File, folder: Path) -> None:
    file["a"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((4, 2), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", (4, 2))
    file.create_virtual_dataset("a", layout)


def raw(file: h5py.File, folder: Path) -> None:
    file.create_dataset("a", (4, 2), "f8", external=[(str(folder / "secret.h5"), 0, 64)])


def soft_outside(file: h5py.File, folder: Path) -> None:
    file["b/c"] = np.ones((4, 2))
    file["a"] = h5py.SoftLink("/b/nothing")


def soft_through(file: h5py.File, folder: Path) -> None:
    file["a"] = h5py.SoftLink("/b/x")
    file["b"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")


def references(file: h5py.File, folder: Path) -> None:
    file["b"] = np.ones((4, 2))
    file.create_dataset("a", data=np.array([file["b"].ref]), dtype=h5py.ref_dtype)


def lists(file: h5py.File, folder: Path) -> None:
    file.create_dataset("a", (2,), h5py.vlen_dtype(np.float32))


def in_a_circle(file: h5py.File, folder: Path) -> None:
    file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")


def name_of_bytes(file: h5py.File, folder: Path) -> None:
    file["a"] = np.ones((4, 2))
    file.move("a", b"\xff\xfe")


def kinds(file: h5py.File, folder: Path) -> None:
    file["a"] = np.dtype("f8")


def itself(file: h5py.File, folder: Path) -> None:
    group = file.create_group("a")
    group["again"] = group


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (outside, r"/a is a link to another file, which is not followed"),
        (virtual, r"/a is virtual or has its values in another file, which is not read"),
        (raw, r"/a is virtual or has its values in another file, which is not read"),
        (soft_outside, r"/a is a link to /b/nothing, which is no array in it"),
        (soft_through, r"is a link to "),
        (references, r"/a holds objects or references"),
        (lists, r"/a holds objects or references"),
        (in_a_circle, r"/a is a link to /[ab], which is no array in it"),
        (name_of_bytes, r"the name b'\\xff\\xfe' in / is not UTF-8"),
        (kinds, r"/a is a Datatype, and only arrays are read"),
        (itself, r"/a/again.*/again lies more than 8 groups deep, or holds itself"),
    ],
)
def test_what_is_not_an_array_of_the_file_is_refused(
    tmp_path: Path, make: Callable[[h5py.File, Path], None], said: str
) -> None:
    write(tmp_path / "secret.h5", {"x": np.ones((4, 2))})
    save(tmp_path / "f" / "good.npy", np.ones((3, 2)))
    with h5py.File(tmp_path / "f" / "bad.h5", "w") as file:
        make(file, tmp_path)
    left_out(bring(tmp_path / "f", tmp_path / "s.zarr"), tmp_path / "f" / "bad.h5", f"^cannot be read as .h5: .*{said}")
    expect(tmp_path / "s.zarr", "features", {"good": np.ones((3, 2))})


def test_a_file_that_holds_nothing_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "f" / "good.h5", {"x": np.ones((3, 2))})
    write(tmp_path / "f" / "none.h5", {})
    left_out(bring(tmp_path / "f", tmp_path / "s.zarr"), tmp_path / "f" / "none.h5", "^it holds no array$")


EMPTY: dict[str, Any] = {}


@pytest.mark.parametrize("suffix", [".h5", ".pkl"])
@pytest.mark.parametrize(
    ("tree", "streams", "empty"),
    [
        ({"a": 1, "b": 1, "gone": EMPTY}, {"features": "ab"}, "gone"),
        ({"a": {"x": 1}, "b": {"x": 1, "meta": EMPTY}, "gone": {"x": EMPTY}}, {"features": "ab"}, "gone"),
        ({"rgb": {"a": 1, "b": 1, "gone": EMPTY}}, {"rgb": "ab"}, "rgb.gone"),
        ({"a": {"rgb": 1, "flow": 1}, "b": {"rgb": 1, "flow": EMPTY}}, {"rgb": "ab", "flow": "a"}, "b.flow"),
        ({"rgb": {"a": 1, "b": 1}, "flow": EMPTY}, {"rgb": "ab"}, "flow"),
    ],
)
def test_an_empty_group_is_listed_as_an_empty_array_is(
    tmp_path: Path, suffix: str, tree: dict[str, Any], streams: dict[str, str], empty: str
) -> None:
    """In whichever place of whichever layout; what is 1 here is an array."""
    path = tmp_path / f"file{suffix}"

    def filled(tree: dict[str, Any]) -> dict[str, Any]:
        return {name: filled(value) if isinstance(value, dict) else signal("x") for name, value in tree.items()}

    def grouped(group: h5py.Group, tree: dict[str, Any]) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                grouped(group.create_group(name), value)
            else:
                group[name] = value

    if suffix == ".pkl":
        dump(path, filled(tree))
    else:
        with h5py.File(path, "w") as file:
            grouped(file, filled(tree))
    report = bring(path, tmp_path / "s.zarr")
    assert report.exit_code == ExitCode.QUARANTINED
    assert report.problems == [(f"{path} [{empty}]", "it holds no array", "make it again, or remove it")]
    for stream, ids in streams.items():
        expect(tmp_path / "s.zarr", stream, dict.fromkeys(ids, signal("x")))


def test_an_empty_group_beside_the_array_of_a_video_or_in_a_table_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There it is no video: people keep attributes in groups."""
    write(tmp_path / "f" / "dive.h5", {"i3d": signal("dive")})
    write(tmp_path / "t.h5", {"features": np.stack([signal("x", rows=3)] * 2), "score": np.arange(2.0)})
    for path in (tmp_path / "f" / "dive.h5", tmp_path / "t.h5"):
        with h5py.File(path, "r+") as file:
            file.create_group("meta").attrs["network"] = "I3D"
    for source, ids in ((tmp_path / "f", ["dive"]), (tmp_path / "t.h5", ["0", "1"])):
        report = bring(source, tmp_path / f"{source.stem}.zarr")
        assert (report.exit_code, report.made["features"]) == (ExitCode.OK, ids)
        assert "skipped: meta in .h5, which holds no array" in capsys.readouterr().err


def test_a_file_of_empty_groups_alone_is_no_input(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_group("first/rgb")
    problem(lambda: bring(tmp_path / "a.h5", tmp_path / "s.zarr"), NoInputError, r"a\.h5 \[first\]: it holds no array")


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"data": np.ones((10, 3)), "offset": 5}, "its offsets do not rise from 0"),
        ({"data": np.ones((10, 3)), "lengths": np.array(["4", "6"], dtype=object)}, "its offsets do not rise from 0"),
        ({"features": 1.0, "id": np.array(["a", "b"], dtype=object)}, "features is one value, expected an entry for"),
    ],
)
def test_a_table_whose_arrays_do_not_fit_is_refused(tmp_path: Path, tree: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "t.h5", tree)
    problem(lambda: bring(path, tmp_path / "s.zarr"), UsageError, f"t.h5: {said}")


def test_a_soft_link_within_the_file_is_its_array(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["all/first"] = signal("first")
        file["rgb/dive"] = h5py.SoftLink("/all/first")
        file["rgb/jump"] = h5py.SoftLink("../all/first")
        file["rgb/twin"] = file["all/first"]
        file["rgb/again"] = h5py.SoftLink("/rgb/dive")
    # As HDF5 reads paths, there is no "..".
    with pytest.raises(UsageError, match=r"/rgb/jump"):
        bring(tmp_path / "a.h5", tmp_path / "s.zarr")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["rgb/jump"]
    bring(tmp_path / "a.h5", tmp_path / "s.zarr")
    expect(tmp_path / "s.zarr", "rgb", {id: signal("first") for id in ("again", "dive", "twin")})


def test_what_would_not_fit_into_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "f"
    write(folder / "a.h5", {"x": np.zeros((2000, 100))}, chunks=True, compression="gzip")
    with h5py.File(folder / "b.h5", "w") as file:  # nothing was written, and reading gives zeros
        file.create_dataset("x", (10**9, 1000), "f8", chunks=(1000, 1000))
    with h5py.File(folder / "c.h5", "w") as file:  # a small array in a large chunk
        file.create_dataset("x", (1, 1), "f8", chunks=(10**4, 1000), maxshape=(None, None))
    with h5py.File(folder / "e.h5", "w") as file:  # a small file of chunks, of each of which HDF5 keeps a record
        file.create_dataset("x", (10**4, 1), "f4", chunks=(1, 1))
    with h5py.File(folder / "d.h5", "w") as file:  # one long text, and many short ones that take as much room
        texts = file.create_dataset("id", (3000,), h5py.string_dtype())
        texts[0], texts[1:] = "x" * 1000, "y"
    monkeypatch.setattr("aqa_pipelines.import_files.available_memory", lambda: 1 << 20)
    with pytest.raises(NoInputError) as caught:
        bring(folder, tmp_path / "s.zarr")
    assert caught.value.cause.count("MiB, and 0 MiB may be used for it") == 5


def test_a_damaged_file_is_left_out(tmp_path: Path) -> None:
    save(tmp_path / "f" / "good.npy", np.ones((3, 2)))
    whole = write(tmp_path / "f" / "a.h5", {"x": np.ones((300, 2))}).read_bytes()
    for damage in (whole[:-900], b"\x89HDF\r\n\x1a\n" + b"\xff" * 500, b"nothing of the kind"):
        (tmp_path / "f" / "a.h5").write_bytes(damage)
        left_out(bring(tmp_path / "f", tmp_path / "s.zarr"), tmp_path / "f" / "a.h5", "cannot be read as .h5")
    assert FeatureStore.open(tmp_path / "s.zarr").ids == ["good"]


def test_without_h5py_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.h5", {"x": np.ones((3, 2))})
    monkeypatch.setitem(sys.modules, "h5py", None)
    error = problem(lambda: bring(path, tmp_path / "s.zarr"), UsageError, r"h5py, which reads \.h5 files, is not inst")
    assert "pip install h5py" in error.fix
