"""A folder, file, glob or list becomes videos with stable ids, or an error that says what to mend."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from aqa_shared.errors import ExitCode, NoInputError, UsageError
from aqa_shared.manifest import find_videos
from aqa_shared.manifest_files import printable_id

from .manifest_cases import files, ids, refused

# --- folders ----------------------------------------------------------------------------------------------


def test_a_folder_is_searched_and_ids_keep_suffix_and_folder(tmp_path: Path) -> None:
    files(tmp_path, "b.MP4", "a.mp4", "a.mov", "sub/a.mp4", "sub/deep/x.mkv", "notes.md", "p.png", "g.gif", ".h.mp4")
    manifest = find_videos(tmp_path)
    assert [v.id for v in manifest.videos] == ["a.mov", "a.mp4", "b.MP4", "sub/a.mp4", "sub/deep/x.mkv"]
    assert manifest.videos[3].path == str(tmp_path / "sub/a.mp4")
    assert manifest.root == tmp_path
    why = {Path(p).name: w for p, w in manifest.skipped}
    assert why == {
        ".h.mp4": "hidden",
        "notes.md": "not a video (.md)",
        "p.png": "not a video (.png)",
        "g.gif": "not a video (.gif)",
    }
    assert ids(str(tmp_path)) == ids(tmp_path)


def test_every_known_suffix_is_found(tmp_path: Path) -> None:
    names = [
        f"x.{s}"
        for s in [
            "mp4",
            "m4v",
            "mov",
            "mkv",
            "webm",
            "avi",
            "mpg",
            "mpeg",
            "ts",
            "mts",
            "m2ts",
            "flv",
            "wmv",
            "asf",
            "3gp",
        ]
    ]
    assert ids(files(tmp_path, *names)) == sorted(names)


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    files(tmp_path / "in", "z/v.mp4", "z/deep/w.mp4")
    files(tmp_path / "elsewhere", "o.mp4")
    (tmp_path / "in/a_link").symlink_to(tmp_path / "in/z")
    (tmp_path / "in/z/loop").symlink_to(tmp_path / "in")
    (tmp_path / "in/self").symlink_to("self")
    (tmp_path / "in/out").symlink_to(tmp_path / "elsewhere")
    manifest = find_videos(tmp_path / "in")
    assert [v.id for v in manifest.videos] == ["out/o.mp4", "z/deep/w.mp4", "z/v.mp4"]
    assert sum("searched already" in why for _, why in manifest.skipped) == 2


def test_what_is_named_as_a_video_but_is_none_stays_for_the_probe(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4", "dir.mp4/inner.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nowhere")
    (tmp_path / "loop.mp4").symlink_to("loop.mp4")
    assert ids(tmp_path) == ["a.mp4", "dangling.mp4", "dir.mp4/inner.mp4", "loop.mp4", "pipe.mp4"]
    assert ids(tmp_path / "pipe.mp4") == ["pipe.mp4"]
    assert ids(tmp_path / "dangling.mp4") == ["dangling.mp4"]


def test_a_store_inside_the_input_is_not_searched(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4", "feats.zarr/zarr.json", "feats.zarr/rgb/c.0.mp4")
    manifest = find_videos(tmp_path)
    assert [v.id for v in manifest.videos] == ["a.mp4"]
    assert [why for _, why in manifest.skipped] == ["a Zarr store"]


def test_an_unreadable_folder_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, "a.mp4", "locked/b.mp4")
    real = os.scandir

    def scandir(path: str) -> object:  # the tests may run as root, whom no permission stops
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    manifest = find_videos(tmp_path)
    assert [v.id for v in manifest.videos] == ["a.mp4"]
    assert manifest.skipped == [(str(tmp_path / "locked"), "cannot be searched: Permission denied")]


def test_odd_names_become_printable_ids_that_stay_different(tmp_path: Path) -> None:
    names = [
        "a\nb.mp4",
        "-rf.mp4",
        "s p.mp4",
        "😀.mp4",
        "'\".mp4",
        "[b]*.mp4",
        "b\\nb.mp4",
        "ÿ.mp4",
        "n" * 251 + ".mp4",
    ]
    files(tmp_path, *names)
    if sys.platform == "linux":
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.mp4"))).touch()
    found = {v.id: v.path for v in find_videos(tmp_path).videos}
    assert all(i.isprintable() for i in found)
    assert found["a\\nb.mp4"].endswith("a\nb.mp4")
    assert found["b\\\\nb.mp4"].endswith("b\\nb.mp4")
    assert "ÿ.mp4" in found
    if sys.platform == "linux":
        assert os.fsencode(found["\\udcff.mp4"]).endswith(b"/\xff.mp4")
    assert len(found) == len(set(found)) == len(names) + (sys.platform == "linux")


def test_printable_id_is_injective_on_what_it_escapes() -> None:
    texts = ["\x80", "\udc80", "\\x80", "\\udc80", "\n", "\\n", "\\\\n", "\u200b", "a", "\\"]
    assert len({printable_id(t) for t in texts}) == len(texts)
    assert all(printable_id(t).isprintable() for t in texts)


def test_a_large_folder_is_read_without_opening_anything(tmp_path: Path) -> None:
    for i in range(3000):
        (tmp_path / f"{i:05}.mp4").symlink_to("/dev/zero")
    assert len(ids(tmp_path)) == 3000


# --- nothing found ----------------------------------------------------------------------------------------


def test_nothing_found_says_what_was_seen(tmp_path: Path) -> None:
    files(tmp_path, *(f"{i}.jpg" for i in range(3)), "README")
    error = refused(NoInputError, tmp_path)
    assert error.exit_code == ExitCode.NO_INPUT
    assert "3 × .jpg, 1 × no suffix" in error.cause
    assert "a folder of pictures is a row of a manifest" in error.fix
    (tmp_path / "empty").mkdir()
    assert "nothing at all" in refused(NoInputError, tmp_path / "empty").cause
    assert ".mkv" in refused(NoInputError, tmp_path / "empty").fix
    refused(NoInputError, [])


@pytest.mark.parametrize("source", ["nowhere", "http://host/a.mp4", "concat:a.mp4|b.mp4", "file:///etc/passwd", "a\nb"])
def test_a_path_is_a_local_path_and_nothing_else(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "no such file or folder" in refused(NoInputError, source).cause


# --- files, globs, lists, several inputs ------------------------------------------------------------------


def test_one_file_is_a_video_whatever_its_suffix(tmp_path: Path) -> None:
    files(tmp_path, "v/a.mp4", "v/b.dat")
    assert ids(tmp_path / "v/a.mp4") == ["a.mp4"]
    assert ids(tmp_path / "v/b.dat") == ["b.dat"]


def test_a_glob_keeps_the_ids_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files(tmp_path, "v/a.mp4", "v/b.mp4", "v/s/c.mp4", "v/n.txt", "v/[x].mp4")
    assert ids(f"{tmp_path}/v/*.mp4") == ["[x].mp4", "a.mp4", "b.mp4"]
    assert ids(f"{tmp_path}/v/**/*.mp4") == ["[x].mp4", "a.mp4", "b.mp4", "s/c.mp4"]
    assert ids(f"{tmp_path}/v/**") == ["[x].mp4", "a.mp4", "b.mp4", "s/c.mp4"]
    assert ids(f"{tmp_path}/*") == ["v/[x].mp4", "v/a.mp4", "v/b.mp4", "v/s/c.mp4"]
    assert ids(tmp_path / "v/[x].mp4") == ["[x].mp4"]
    monkeypatch.chdir(tmp_path)
    assert ids("v/[ab].mp4") == ["a.mp4", "b.mp4"]
    assert "no videos in" in refused(NoInputError, "v/*.mkv").cause


def test_an_id_does_not_depend_on_what_else_is_named(tmp_path: Path) -> None:
    files(tmp_path, "x/a.mp4", "y/b.mp4", "y/deep/c.mp4", "z/d.mp4")
    (tmp_path / "z/list.txt").write_text("d.mp4\n")
    inputs = {
        tmp_path / "x/a.mp4": ["a.mp4"],
        tmp_path / "y": ["b.mp4", "deep/c.mp4"],
        f"{tmp_path}/z/*.mp4": ["d.mp4"],
        tmp_path / "z/list.txt": ["d.mp4"],
    }
    for one, expected in inputs.items():
        assert ids(one) == expected
        for other in inputs:
            assert sorted(ids([one, other])) == sorted({*expected, *inputs[other]})
    assert ids(list(inputs)) == ["a.mp4", "b.mp4", "deep/c.mp4", "d.mp4"]


def test_two_files_of_one_id_are_named_with_the_fix(tmp_path: Path) -> None:
    files(tmp_path, "x/a.mp4", "y/a.mp4")
    x, y = tmp_path / "x", tmp_path / "y"
    for inputs in ([x, y], [x / "a.mp4", y / "a.mp4"], [x, y / "a.mp4"]):
        error = refused(UsageError, inputs)
        assert error.cause == f"1 id would mean two videos: a.mp4: {x}/a.mp4 and {y}/a.mp4"
        assert f"give the folder that holds them, {tmp_path}, or a manifest" in error.fix
    assert ids(tmp_path) == ["x/a.mp4", "y/a.mp4"]


def test_a_file_named_twice_has_one_id_or_is_refused(tmp_path: Path) -> None:
    files(tmp_path, "y/a.mp4", "y/s/b.mp4")
    y = tmp_path / "y"
    assert ids([y, y / "a.mp4", y]) == ["a.mp4", "s/b.mp4"]
    error = refused(UsageError, [y, y / "s/b.mp4"])
    assert error.cause == f"{y}/s/b.mp4 is named twice, as s/b.mp4 and as b.mp4"


def test_a_text_list(tmp_path: Path) -> None:
    files(tmp_path, "v/a.mp4", "v/b c.mp4", "#odd.mp4", "other/o.mp4")
    listed = tmp_path / "v/list.txt"
    text = f"\ufeff# comment\r\na.mp4\r\n\r\n b c.mp4 \n../#odd.mp4\n{tmp_path}/other/o.mp4\na.mp4\nhttp://h/x.mp4\n"
    listed.write_bytes(text.encode() + b"\xff.mp4\n")
    manifest = find_videos(listed)
    assert [v.id for v in manifest.videos] == [
        "a.mp4",
        "b c.mp4",
        f"{tmp_path}/#odd.mp4",
        f"{tmp_path}/other/o.mp4",
        "http:/h/x.mp4",
        "\\udcff.mp4",
    ]
    assert manifest.videos[4].path == f"{tmp_path}/v/http:/h/x.mp4"
    listed.write_text("nowhere.mp4\nnothere.mp4\n")
    assert "none of its 2 files exists" in refused(NoInputError, listed).cause


def test_a_nul_byte_in_a_list_is_the_lists_fault(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4")
    listed = tmp_path / "list.txt"
    listed.write_bytes(b"# comment\na.mp4\nb\0c.mp4\n")
    assert r"list.txt: row 3 (b\x00c.mp4) holds a NUL byte" in refused(UsageError, listed).cause
    listed.write_bytes("a.mp4\n".encode("utf-16"))
    assert "UTF-8" in refused(UsageError, listed).fix
