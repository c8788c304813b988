"""Labels are matched by id, path or an unambiguous name; whatever dialect the table was saved in."""

from __future__ import annotations

from pathlib import Path

import pytest

from aqa_shared.errors import UsageError
from aqa_shared.manifest import Manifest, find_videos

from .manifest_cases import files, refused, table


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three videos: a.mp4, s/b.mp4, s/c.mov."""
    return files(tmp_path / "videos", "a.mp4", "s/b.mp4", "s/c.mov")


def scores(manifest: Manifest) -> list[float | None]:
    return [v.score for v in manifest.videos]


def test_labels_in_the_folder_are_found(folder: Path) -> None:
    table(folder, "id,score,difficulty,split,category,judge\na.mp4,1.5,2,train,x,7\ns/b.mp4,,,test,,\n", "labels.csv")
    manifest = find_videos(folder)
    a, b, c = manifest.videos
    assert (a.score, a.difficulty, a.split, a.category, a.extra) == (1.5, 2.0, "train", "x", {"judge": "7"})
    assert (b.score, b.split, b.extra) == (None, "test", {"judge": None})
    assert (c.score, c.extra) == (None, {})
    assert manifest.labels_sources == [folder / "labels.csv"]
    assert manifest.labelled == 1
    assert manifest.skipped == []


def test_labels_beside_the_folder_are_found_if_they_fit(folder: Path) -> None:
    labels = table(folder.parent, "id,score\na.mp4,2\n", "labels.csv")
    assert scores(find_videos(folder)) == [2.0, None, None]
    labels.write_text("id,score\nsomething,2\nelse,3\n")
    manifest = find_videos(folder)
    assert scores(manifest) == [None] * 3
    assert (manifest.labels_sources, manifest.unmatched) == ([], {})
    labels.write_text("colour,taste\nred,sweet\n")
    warning = find_videos(folder).warnings[0]
    assert "not used as labels" in warning
    labels.write_text("Id,Punkte\na.mp4,2\n")
    warning = find_videos(folder).warnings[0]
    assert "no column score; it has 'id', 'Punkte'" in warning
    assert "to use it: add a column 'score' (or --score-column NAME)" in warning
    table(folder, "id,score\na.mp4,9\n", "labels.csv")
    assert scores(find_videos(folder)) == [9.0, None, None]


def test_labels_of_which_none_fits_are_an_error(folder: Path) -> None:
    labels = table(folder, "id,score\nsomething,2\nelse,3\n", "labels.csv")
    for options in ({}, {"labels": labels}):
        error = refused(UsageError, folder, **options)
        assert f"{labels}: none of its 2 labels fits a video: something, else; the videos are a.mp4, s/b" in error.cause
    # Beside a file it may be about the others; asked for none, it is not looked at.
    manifest = find_videos(folder / "a.mp4")
    assert (scores(manifest), manifest.labels_sources) == ([None], [])
    assert manifest.warnings == [f"{labels}: not used, none of its labels fits a video"]
    assert find_videos(folder, with_labels=False).warnings == []


def test_what_is_wrong_with_labels_that_miss_is_named(folder: Path) -> None:
    error = refused(UsageError, folder, labels=table(folder, "id,score,clip\n7,2,a\n8,3,b\n9,1,zzz\n", "l.csv"))
    assert "its column 'clip' fits 2 of them" in error.cause
    assert error.fix == "choose it with --id-column clip"
    error = refused(UsageError, folder, labels=table(folder, "id,score\n1.2E+11,2\n", "l.csv"))
    assert "a spreadsheet made numbers of its ids" in error.cause


def test_ids_that_lost_their_leading_zeros_fit_as_numbers(tmp_path: Path) -> None:
    files(tmp_path, "0001.mp4", "0002.mp4", "0010.mp4", "0000.mp4")
    manifest = find_videos(tmp_path, labels=table(tmp_path, "id,score\n1,10\n2.0,20\n10.mp4,30\n", "l.csv"))
    assert scores(manifest) == [None, 10.0, 20.0, 30.0]
    assert "3 ids matched as numbers (1 for 0001.mp4)" in manifest.warnings[0]
    # What a name says exactly, or a path beside a running number, is not guessed at.
    files(tmp_path, "1.mp4")
    table(tmp_path, "id,score,path\n1,10,0002.mp4\n2,20,0001.mp4\n3,30,0000.mp4\n", "l.csv")
    assert scores(find_videos(tmp_path, labels=tmp_path / "l.csv")) == [30.0, 20.0, None, None, 10.0]
    (tmp_path / "1.mp4").unlink()
    assert scores(find_videos(tmp_path, labels=tmp_path / "l.csv")) == [30.0, 20.0, 10.0, None]
    files(tmp_path, "01.mp4", "3.mp4")
    table(tmp_path, "id,score\n1,10\n", "l.csv")
    assert "fits several videos: 0001.mp4, 01.mp4" in refused(UsageError, tmp_path, labels=tmp_path / "l.csv").cause


def test_columns_of_other_names(folder: Path) -> None:
    text = "Clip,score,Total,id\na.mp4,0,1.5,77\ns/b.mp4,0,2,78\n"
    labels = table(folder, text, "l.csv")
    manifest = find_videos(folder, labels=labels, columns={"id": "Clip", "score": "total"})
    assert scores(manifest) == [1.5, 2.0, None]
    assert manifest.videos[0].extra == {"other_score": "0", "other_id": "77"}
    cause = refused(UsageError, folder, labels=labels, columns={"id": "Clop", "score": "Sum"})
    assert cause.cause.startswith(f"{labels}: no column 'Clop' and no column 'Sum'; it has 'Clip', 'score'")
    assert "did you mean Clip?" in cause.fix
    manifest_table = table(folder, "video,Total\na.mp4,4\n", "m.csv")
    assert scores(find_videos(manifest_table, columns={"score": "Total"})) == [4.0]
    assert "no table of labels" in refused(UsageError, folder, columns={"score": "Total"}).cause


def test_all_missing_columns_are_named_at_once(folder: Path) -> None:
    error = refused(UsageError, folder, labels=table(folder, "Name,Points\na,1\n", "l.csv"))
    assert "no column id or path or video or file or filename or video_path and no column score; it has" in error.cause
    assert "--id-column" in error.fix
    assert "--score-column" in error.fix


def test_each_folder_has_its_own_labels_whatever_else_is_named(tmp_path: Path) -> None:
    files(tmp_path, "x/a.mp4", "y/b.mp4", "z/c.mp4", "z/d.mp4")
    table(tmp_path / "x", "id,score\na.mp4,1\n", "labels.csv")
    table(tmp_path / "y", "id,score\nb.mp4,2\na.mp4,9\n", "labels.csv")
    table(tmp_path, "id,score\nz/c.mp4,3\nx/a.mp4,7\n", "labels.csv")
    inputs = [tmp_path / name for name in ("x", "y", "z")]
    together = find_videos(inputs)
    assert scores(together) == [1.0, 2.0, 3.0, None]
    assert {v.id: v.score for one in inputs for v in find_videos(one).videos} == {
        v.id: v.score for v in together.videos
    }
    assert together.unmatched == {tmp_path / "y/labels.csv": ["a.mp4"], tmp_path / "labels.csv": ["x/a.mp4"]}


@pytest.mark.parametrize(("cell", "says"), [("", False), ("calm", True)])
def test_an_empty_column_of_a_manifest_is_no_label(folder: Path, cell: str, says: bool) -> None:
    manifest = find_videos(table(folder, f"path,notes\na.mp4,{cell}\n", "m.csv"))
    assert bool(manifest.labels_sources) is says


def test_labels_beside_a_file_a_glob_and_a_list(folder: Path) -> None:
    table(folder, "id,score\na.mp4,9\n", "labels.csv")
    assert scores(find_videos(folder / "a.mp4")) == [9.0]
    assert scores(find_videos(f"{folder}/*.mp4")) == [9.0]
    assert scores(find_videos(table(folder, "a.mp4\n", "list.txt"))) == [9.0]


def test_a_manifests_own_labels_are_replaced_only_by_request(folder: Path) -> None:
    table(folder, "id,score\na.mp4,9\n", "labels.csv")
    manifest = table(folder, "path,score\na.mp4,1\ns/b.mp4,2\n", "m.csv")
    assert scores(find_videos(manifest)) == [1.0, 2.0]
    assert scores(find_videos(manifest, labels=folder / "labels.csv")) == [9.0, 2.0]


@pytest.mark.parametrize(
    "text",
    [
        b"id,score\na.mp4,1.5\ns/b.mp4,2\n",
        b"\xef\xbb\xbfid,score\r\na.mp4,1.5\r\ns/b.mp4,2\r\n",
        b"ID;Score\na.mp4;1.5\ns/b.mp4;2\n",
        b"score\tid\n1.5\ta.mp4\n2\ts/b.mp4\n",
        b'"score","video"\n"1.5","a.mp4"\n"2","s/b.mp4"\n',
        b"score,file,note\n1.5,a.mp4,a;b;c;d\n2,s/b.mp4,\n",
        b" id , score ,\n a.mp4 , 1.5 ,\n\ns/b.mp4,2,\n",
        "id\tscore\na.mp4\t1.5\ns/b.mp4\t2\n".encode("utf-16"),
        b"path,score\n./a.mp4,1.5\ns/b,2\n",
        b"path,score\na,1.5\nb,2\n",
        b"path,score\na.avi,1.5\nb.mp4,2\n",
        b"path,score\nframes/of/a,1.5\ns\\b.mp4,2\n",
        b"id,path,score\nclip one,a.mp4,1.5\n2,s/b.mp4,2\n",
        b",id,score\n0,a.mp4,1.5\n1,s/b.mp4,2\n",
        b",id,score\n17,a.mp4,1.5\n3,s/b.mp4,2\n",
        b"Unnamed: 0,id,score\n0,a.mp4,1.5\n1,s/b.mp4,2\n",
        b",score\na.mp4,1.5\ns/b.mp4,2\n",
        b"sep=;\r\nid;score\r\na.mp4;1.5\r\ns/b.mp4;2\r\n",
        b'"sep=|"\nscore|id\n1.5|a.mp4\n2|s/b.mp4\n',
        b"id|score\na.mp4|1.5\ns/b.mp4|2\n",
        b"\n;\nid;score\na.mp4;1,5\ns/b.mp4;2\n",
        b"id\tscore\na.mp4\t1,5\ns/b.mp4\t2,0\n",
        b"video,SCORE\nA.MP4,1.5\ns/B,2\n",
        b"id,score\nC:\\clips\\a.mp4,1.5\nC:\\clips\\s\\b.mp4,2\n",
    ],
)
def test_every_dialect_says_the_same(folder: Path, text: bytes) -> None:
    manifest = find_videos(folder, labels=table(folder.parent, text, "mine.csv"))
    assert scores(manifest) == [1.5, 2.0, None]
    assert manifest.unmatched == {}


def test_labels_by_absolute_path_and_relative_to_their_own_folder(folder: Path) -> None:
    labels = table(folder.parent, f"path,score\n{folder}/a.mp4,1\nvideos/s/b.mp4,2\n", "l.csv")
    assert scores(find_videos(folder, labels=labels)) == [1.0, 2.0, None]


def test_both_ways_to_write_an_accent_are_the_same_file(tmp_path: Path) -> None:
    files(tmp_path, "e\u0301t\u00e9.mp4")
    labels = table(tmp_path, "id,score\n\u00e9te\u0301.mp4,4\n", "labels.csv")
    assert labels.exists()
    assert scores(find_videos(tmp_path)) == [4.0]


def test_a_name_that_fits_several_videos_lists_them(tmp_path: Path) -> None:
    files(tmp_path, "x/a.mp4", "y/a.mp4", "b.mp4", "b.mov")
    table(tmp_path, "id,score\na,1\n", "labels.csv")
    assert "row 2, column id: 'a' fits several videos: x/a.mp4, y/a.mp4" in refused(UsageError, tmp_path).cause
    table(tmp_path, "id,score\nb,1\n", "labels.csv")
    assert "b.mov, b.mp4" in refused(UsageError, tmp_path).cause
    table(tmp_path, "id,score\nb.mp4,1\nx/a,2\n", "labels.csv")
    assert scores(find_videos(tmp_path)) == [None, 1.0, 2.0, None]


def test_parts_of_one_file_need_their_ids(tmp_path: Path) -> None:
    files(tmp_path, "a.mp4")
    manifest = table(tmp_path, "path,start,end\na.mp4,0,5\na.mp4,5,9\n")
    labels = table(tmp_path, "id,score\na.mp4,1\n", "l.csv")
    assert "a.mp4#0-5, a.mp4#5-9" in refused(UsageError, manifest, labels=labels).cause
    labels = table(tmp_path, "id,score\na.mp4#5-9,1\n", "l.csv")
    assert scores(find_videos(manifest, labels=labels)) == [None, 1.0]


def test_the_same_video_twice(folder: Path) -> None:
    table(folder, "id,score\na.mp4,1\na,1\n", "labels.csv")
    manifest = find_videos(folder)
    assert scores(manifest) == [1.0, None, None]
    assert "rows 2 and 3 label the same video (a)" in manifest.warnings[0]
    table(folder, "id,score\na.mp4,1\na,2\n", "labels.csv")
    assert "row 3, column score: '2.0' contradicts row 2 (1.0) for a" in refused(UsageError, folder).cause


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,score\na.mp4,nan\n", "row 2, column score: 'nan' — is not finite"),
        ("id,score\na.mp4,-inf\n", "row 2, column score: '-inf' — is not finite"),
        ("id,score\na.mp4,good\n", "row 2, column score: 'good' — is not a number"),
        ("id,score\n,3\n", "row 2, column id is empty"),
        ("id,score\na.mp4,85 %\n", "'85 %' — is not a number (write 85, without the sign)"),
        ("id\tscore\na.mp4\t1,234\n", "'1,234' — is not a number (write 1.234)"),
        (",score\n0,3\n1,4\n", "no column id or path"),
        (",id,score\n0,a.mp4,3\nx,b.mp4,4\n", "its first column has no name; row 2 has '0' there"),
        ("id,scores\na.mp4,3\n", "no column score; it has 'id', 'scores'"),
        ("name,score\na.mp4,3\n", "no column id or path or video or file"),
    ],
)
def test_wrong_labels_are_errors_with_rows(folder: Path, text: str, message: str) -> None:
    table(folder, text, "labels.csv")
    assert message in refused(UsageError, folder).cause


def test_labels_that_are_not_there(folder: Path) -> None:
    assert "cannot read" in refused(UsageError, folder, labels=folder / "none.csv").cause


def test_the_report_says_what_did_not_fit(folder: Path) -> None:
    files(folder, "x.png", "y.png", "n.txt")
    table(folder, "id,score\na.mp4,1\n" + "".join(f"gone{i},{i}\n" for i in range(7)), "labels.csv")
    manifest = find_videos(folder)
    notes: list[str] = []
    warnings: list[str] = []
    manifest.report(notes.append, warnings.append)
    assert notes == [
        f"3 videos in {folder}, 1 with a score (labels from {folder / 'labels.csv'})",
        "skipped 3 files: 2 not a video (.png), 1 not a video (.txt)",
    ]
    assert warnings == [f"{folder / 'labels.csv'}: no video for 7 labels: gone0, gone1, gone2, gone3, gone4, …"]
