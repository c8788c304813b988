"""Manifests: CSV, JSON and lists of rows become videos with labels; wrong rows are named all at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aqa_shared.errors import ExitCode, NoInputError, UsageError
from aqa_shared.manifest import find_videos

from .manifest_cases import files, ids, refused, table


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
