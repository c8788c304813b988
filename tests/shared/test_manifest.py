"""A folder, file, glob, list or manifest becomes videos with stable ids, or an error that says what to mend."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from aqa_shared.errors import AqaError, ExitCode, NoInputError, UsageError
from aqa_shared.manifest import find_videos
from aqa_shared.manifest_files import printable_id


def files(root: Path, *names: str) -> Path:
    """Empty files: the manifest opens none of them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def ids(source: object, **options: object) -> list[str]:
    return [v.id for v in find_videos(source, **options).videos]  # type: ignore[arg-type]


def refused(kind: type[AqaError], source: object, **options: object) -> AqaError:
    with pytest.raises(kind) as caught:
        find_videos(source, **options)  # type: ignore[arg-type]
    assert caught.value.fix
    return caught.value


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


# --- manifests --------------------------------------------------------------------------------------------


def table(tmp_path: Path, text: str | bytes, name: str = "manifest.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_manifest_gives_parts_labels_and_extras(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4", "sub/b.mp4")
    csv = (
        "judge,path,id,start,end,start_time,end_time,score,difficulty,split,category\n"
        "J1,a.mp4,dive,54,154,,,80.5,3.2,train,platform\n"
        ",sub/b.mp4,,,,1.5,3,,,test,\n"
        "007,a.mp4,,10,20,,,1e1,,,\n"
        ",a.mp4,,,,,,,,,\n"
    )
    manifest = find_videos(table(tmp_path, csv))
    dive, b, part, whole = manifest.videos
    assert (dive.id, dive.start, dive.end, dive.score, dive.difficulty) == ("dive", 54, 154, 80.5, 3.2)
    assert (dive.split, dive.category, dive.extra) == ("train", "platform", {"judge": "J1"})
    assert (b.id, b.path, b.start_time, b.score) == ("sub/b.mp4#1.5s-3s", str(tmp_path / "sub/b.mp4"), 1.5, None)
    assert (part.id, part.score, part.extra) == ("a.mp4#10-20", 10.0, {"judge": "007"})
    assert whole.id == "a.mp4"
    assert manifest.labelled == 2
    assert manifest.labels_sources == [tmp_path / "manifest.csv"]


@pytest.mark.parametrize(("columns", "cells", "read"), [("path,score", ",", True), ("path,start", ",0", False)])
def test_a_manifest_with_an_empty_score_column_is_a_label_table(
    tmp_path: Path, columns: str, cells: str, read: bool
) -> None:
    files(tmp_path, "a.mp4")
    manifest = table(tmp_path, f"{columns}\na.mp4{cells}\n")
    assert find_videos(manifest).labels_sources == ([manifest] if read else [])


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4", "b.mp4")
    rows = [
        {"path": "a.mp4", "score": 3, "category": 2, "judges": [1, 2.5], "ok": True, "note": None, "n": 4},
        {"video": "ignored", "path": "b.mp4", "id": 17, "start": 5},
    ]
    text = "\n".join(map(json.dumps, rows)) + "\n\n"
    a, b = find_videos(table(tmp_path, text, "m.jsonl")).videos
    assert (a.score, a.category) == (3.0, "2")
    assert a.extra == {"judges": "[1, 2.5]", "ok": True, "note": None, "n": 4}
    assert (b.id, b.start, b.end) == ("17", 5, None)


@pytest.mark.parametrize(
    "text",
    [
        '[{"path": "a.mp4", "score": 3}, {"path": "b.mp4", "score": null}]',
        '{"path": {"0": "a.mp4", "1": "b.mp4"}, "score": {"0": 3, "1": null}}',
        '{"path": ["a.mp4", "b.mp4"], "score": [3, null]}',
        '{"a.mp4": {"path": "a.mp4", "score": 3}, "b.mp4": {"path": "b.mp4"}}',
        '{"Path": "a.mp4", "Score": 3}\n{"Path": "b.mp4"}\n',
    ],
)
@pytest.mark.parametrize("pretty", [False, True])
def test_json_in_every_shape_that_programs_write(tmp_path: Path, text: str, pretty: bool) -> None:
    files(tmp_path, "a.mp4", "b.mp4")
    if pretty and "\n" not in text:
        text = json.dumps(json.loads(text), indent=2)
    for name in ("m.json", "m.jsonl"):
        a, b = find_videos(table(tmp_path, text, name)).videos
        assert (a.id, a.path, a.score, b.id, b.score) == ("a.mp4", str(tmp_path / "a.mp4"), 3.0, "b.mp4", None)


def test_paths_written_on_windows(tmp_path: Path) -> None:
    files(tmp_path, "sub/b.mp4", "odd\\name.mp4")
    manifest = find_videos(table(tmp_path, "path\nsub\\b.mp4\nodd\\name.mp4\n"))
    assert [v.path for v in manifest.videos] == [f"{tmp_path}/sub/b.mp4", f"{tmp_path}/odd\\name.mp4"]


def test_a_spreadsheet_named_as_input_is_no_video(tmp_path: Path) -> None:
    files(tmp_path, "videos.xlsx")
    assert "save it as CSV" in refused(UsageError, tmp_path / "videos.xlsx").fix


def test_wrong_rows_are_named_all_at_once(tmp_path: Path) -> None:
    csv = 'path,start,end,score\na.mp4,1,2,high\n\nb.mp4,x,2,\nc.mp4,9,3,\n,1,2,\nd.mp4,-1,2,inf\ne.mp4,1,2,"87,5"\n'
    files(tmp_path, "a.mp4", "b.mp4")
    error = refused(UsageError, table(tmp_path, csv))
    assert error.exit_code == ExitCode.USAGE
    for line in (
        "manifest.csv: 5 wrong rows",
        "row 2, column score: 'high' — is not a number",
        "row 4, column start: 'x' — is not a whole number",
        "row 7, column start: '-1' — input should be greater than or equal to 0",
        "row 7, column score: 'inf' — is not finite",
        "row 8, column score: '87,5' — is not a number (write 87.5)",
    ):
        assert line in error.cause
    mended = csv.replace("high", "1").replace(",x,", ",1,").replace("-1", "1").replace("inf", "").replace('"87,5"', "1")
    error = refused(UsageError, table(tmp_path, mended))
    assert "row 5 — end (3) must be greater than start (9)" in error.cause
    assert "row 6, column path is empty" in error.cause


def test_frames_and_seconds_do_not_mix(tmp_path: Path) -> None:
    error = refused(UsageError, table(tmp_path, "path,start,end_time\na.mp4,1,2\n"))
    assert "not both" in error.cause


def test_no_more_than_twenty_rows_are_shown(tmp_path: Path) -> None:
    error = refused(UsageError, table(tmp_path, "path,score\n" + "a.mp4,x\n" * 50))
    assert error.cause.count("is not a number") == 20
    assert "… and 30 more" in error.cause


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("manifest.csv", "path,score\na.mp4,1\nb\0c.mp4,2\n"),
        ("manifest.tsv", "score\tvideo\n1\ta.mp4\n2\tb\0c.mp4\n"),
        ("manifest.jsonl", '\n{"path": "a.mp4"}\n{"path": "b\\u0000c.mp4"}\n'),
    ],
)
def test_a_nul_byte_in_a_path_is_named_with_its_row(tmp_path: Path, name: str, text: str) -> None:
    files(tmp_path, "a.mp4")
    error = refused(UsageError, table(tmp_path, text, name))
    assert name in error.cause
    assert "row 3, column path: 'b" in error.cause
    assert "holds a NUL byte" in error.cause


def test_rows_as_long_as_the_header(tmp_path: Path) -> None:
    error = refused(UsageError, table(tmp_path, "path,score\na.mp4,1,2\nb.mp4\n"))
    assert "row 2 has 3 cells, the header 2" in error.cause
    assert "row 3 has 1 cells, the header 2" in error.cause


def test_quoted_line_breaks_do_not_shift_the_row_numbers(tmp_path: Path) -> None:
    error = refused(UsageError, table(tmp_path, 'path,note,score\na.mp4,"two\nlines",1\nb.mp4,,x\n'))
    assert "row 4, column score" in error.cause


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "m.csv", "the file is empty"),
        ("vidoe,score\na,1\n", "m.csv", "no column path or video or file"),
        ("path,path\na,1\n", "m.csv", "names path twice"),
        ('path,score\n"a.mp4,1\n', "m.csv", "cannot be read as CSV"),
        ("path,\na.mp4,1\n", "m.csv", "has no column name"),
        ('{"path": "a.mp4"}\n{nonsense\n', "m.jsonl", "row 2"),
        ("[1]\n", "m.jsonl", "is not a JSON object"),
        (b"path,score\na.mp4,1\nb\xe9.mp4,2\n", "m.csv", r"byte 20 \(row 3\) is 0xe9, which is not UTF-8"),
        (b"\xff\xfea", "m.csv", "broken UTF-16"),
        (b"PK\x03\x04rest", "m.csv", "not a text table but a spreadsheet"),
        (b"anything", "m.xlsx", "not a text table but a spreadsheet"),
        (b"PAR1rest", "m.parquet", "not a text table but a table in binary"),
        (b"\x80\x04.", "m.pkl", "not a text table but Python"),
        ('[{"path": "a.mp4"},\n {nonsense}]', "m.json", "row 2"),
        ('{\n "a.mp4": {"path": }\n}', "m.json", "row 2"),
        ("[1]", "m.json", "row 1: '1' is not a JSON object"),
        ("a.mp4,78.5\nb.mp4,3\n", "m.csv", "first row is not a header but data: 'a.mp4', '78.5'"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str | bytes, name: str, message: str) -> None:
    path = table(tmp_path, text, name)
    with pytest.raises(UsageError, match=message) as caught:
        find_videos(path)
    assert str(path) in caught.value.cause
    assert caught.value.fix


def test_did_you_mean(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4")
    assert refused(UsageError, table(tmp_path, "paths,score\na,1\n")).fix == "rename 'paths' to 'path'"
    manifest = find_videos(table(tmp_path, "path,catagory\na.mp4,x\n"))
    assert manifest.videos[0].extra == {"catagory": "x"}
    assert "did you mean 'category'" in manifest.warnings[0]


def test_ids_are_unique_or_the_rows_are_named(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4", "b.mp4")
    error = refused(UsageError, table(tmp_path, "id,path\nx,a.mp4\ny,a.mp4\nx,b.mp4\n"))
    assert "row 4, column id: 'x' is the id of row 2 of manifest.csv as well" in error.cause
    error = refused(UsageError, table(tmp_path, "path\na.mp4\na.mp4\n"))
    assert "row 3" in error.cause
    manifest = table(tmp_path, "id,path\na.mp4,b.mp4\n")
    error = refused(UsageError, [manifest, tmp_path / "a.mp4"])
    assert f"a.mp4: row 2 of manifest.csv and {tmp_path}/a.mp4" in error.cause


def test_a_manifest_in_the_wrong_folder(tmp_path: Path) -> None:
    error = refused(NoInputError, table(tmp_path, "path\nv/a.mp4\n"))
    assert f"the first would be {tmp_path}/v/a.mp4" in error.cause
    assert str(tmp_path) in error.fix
    files(tmp_path, "b.mp4")
    assert ids(table(tmp_path, "path\nv/a.mp4\nb.mp4\n")) == ["v/a.mp4", "b.mp4"]
