"""What holds for every dataset, and MTL-AQA as the example, on files written in its published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.shared.dataset_files import dump, pictures, problems, said, table, write

from aqa_shared.datasets import DATASETS, about, read
from aqa_shared.datasets.check import findings
from aqa_shared.datasets.prepare import prepare
from aqa_shared.errors import AqaError, NoInputError, UsageError
from aqa_shared.manifest import find_videos


def dive(score: float = 60.0, **more: Any) -> dict[str, Any]:
    """20 × difficulty, by marks of which the middle three are 6.5, 6.5 and 7."""
    classes = {"position": 2, "armstand": 0, "rotation_type": 2, "ss_no": 7, "tw_no": 0}
    marks = [6.5, 7.0, 8.0, 6.5, 6.0, 7.5, 5.0]
    known = {"primary_view": 0, "start_frame": 100, "end_frame": 203, "difficulty": 3.0, "final_score": score}
    return {**known, **classes, "judge_scores": marks, "dive_number": "407C", **more}


@pytest.fixture
def mtl(tmp_path: Path) -> Path:
    root = tmp_path / "mtl"
    entries = {(1, n): dive() for n in (1, 2, 3)} | {(2, 7): dive()}
    dump(root / "info" / "final_annotations_dict_with_dive_number.pkl", entries)
    # The official file names dives by NumPy's integers.
    dump(root / "info" / "train_split_0.pkl", [(np.int64(1), 1), (1, 2), (1, 3)])
    dump(root / "info" / "test_split_0.pkl", [(2, 7)])
    dump(root / "smaller_training_sets" / "size_140" / "train_split_0.pkl", [(1, 2)])
    dump(root / "UNLV_Dive_split_4" / "test_split_0.pkl", [(9, 9)])
    dump(root / "info" / "final_captions_dict.pkl", {(np.int64(1), 1): ["<sos>", "a", "dive", "<eos>"]})
    write(root / "info" / "vocab.json", json.dumps({"word_to_ix": {"<eos>": 0, "<sos>": 1, "a": 2, "dive": 3}}))
    write(root / "whole" / "01.mp4")
    pictures(root / "dives" / "02_07", range(103))
    return root


def test_mtl_aqa(mtl: Path, tmp_path: Path) -> None:
    assert said("mtl-aqa", mtl) == []
    data = prepare("mtl-aqa", mtl, tmp_path / "out")
    assert [split.name for split in data.splits] == ["official", "size_140"]
    assert data.splits[1].rows == [("01_02", "train"), ("02_07", "test")]
    videos = {video.id: video for video in find_videos(tmp_path / "out" / "manifest.csv").videos}
    cut, own = videos["01_01"], videos["02_07"]
    assert (cut.path, cut.start, cut.end) == (str(mtl / "whole" / "01.mp4"), 100, 203)
    assert (own.path, own.start, own.end, own.frame_rate) == (str(mtl / "dives" / "02_07"), None, None, 25.0)
    assert (cut.score, cut.difficulty, cut.split, own.split) == (60.0, 3.0, "train", "test")
    assert json.loads(str(cut.extra["caption"])) == ["<sos>", "a", "dive", "<eos>"]
    assert json.loads(str(cut.extra["judge_scores"])) == [6.5, 7.0, 8.0, 6.5, 6.0, 7.5, 5.0]
    assert (cut.extra["dive_number"], cut.extra["ss_no"], cut.extra["score_by_rule"]) == ("407C", "7", "60.0")
    assert cut.extra["group"] == "01"
    assert table(tmp_path / "out" / "splits" / "official.csv")[3] == {"id": "02_07", "split": "test"}
    record = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert record["ranges"] == [{"low": 0.0, "high": 104.5, "column": "score"}]


def test_mtl_aqa_errors_of_the_file_are_found_and_told_from_known_ones(tmp_path: Path) -> None:
    off, marked, wrong = [6.5, 7, 8, 6.5, 6, 7.5, 45.0], [4.0, 4.0, 4.0, 45.0, 3.5, 5.0, 4.0], [5, 6, 6, 6, 6, 7, -1]
    entries = {
        (4, 49): dive(36.0, judge_scores=marked),
        (1, 70): dive(18.15),
        (1, 2): dive(judge_scores=off),
        (1, 3): dive(59.0),
        (1, 4): dive(54.0, judge_scores=wrong),
    }
    dump(tmp_path / "augmented_final_annotations_dict.pkl", entries)
    found = {p.id: p.columns for p in read("mtl-aqa", tmp_path).performances}
    assert found["04_49"]["judge_scores"][3] == 4.5
    assert found["01_02"]["judge_scores"][-1] == 10.0
    assert found["01_04"]["judge_scores"][-1] == 0.0
    assert [name for name, columns in found.items() if columns["breaks_rule"]] == ["01_70", "01_02", "01_03"]
    known = [str(f) for f in findings(read("mtl-aqa", tmp_path)) if f.known]
    assert len(known) == 2
    assert known[0].startswith("04_49: mark 4 is 45, not in 0 … 10; read as 4.5, as CoRe's copy")
    assert "(1, 70): the score is 18.15, the marks and difficulty 3 make 60" in known[1]
    unknown = "\n".join(problems("mtl-aqa", tmp_path))
    assert "01_02: mark 7 is 45, not in 0 … 10; read as 10" in unknown
    assert "(1, 3): the score is 59" in unknown
    assert "no train_split_0.pkl" in unknown


def test_two_copies_of_one_annotation_are_compared(mtl: Path) -> None:
    other = {(1, n): dive() for n in (1, 2, 3)} | {(2, 7): dive(61.0), (3, 3): dive()}
    dump(mtl / "musdl" / "augmented_final_annotations_dict.pkl", other)
    found = problems("mtl-aqa", mtl)
    assert any("(2, 7): final_score is 61.0, and 60.0 in the copy that is read" in text for text in found)
    assert any("(3, 3): is not in the copy that is read" in text for text in found)


def test_check_finds_what_is_missing_and_what_is_in_two_splits(mtl: Path) -> None:
    dump(mtl / "info" / "test_split_0.pkl", [(2, 7), (1, 1), (5, 5)])
    (mtl / "whole" / "01.mp4").unlink()
    (mtl / "dives" / "02_07" / "00102.jpg").unlink()
    assert problems("mtl-aqa", mtl) == [
        "split official: 01_01 is in split train and test; it can be in one only; aqa-train refuses this split",
        "split official: 1 id without a score: 05_05; aqa-train leaves them out",
        "split size_140: 1 id without a score: 05_05; aqa-train leaves them out",
        "01.mp4: is missing, with 3 performances; put it anywhere in the folder",
        "02_07: dives/02_07 has 102 pictures, and the annotation 103 frames; the pictures or the annotation are of "
        "another copy",
    ]


def test_a_part_that_ends_after_the_pictures_is_found(mtl: Path) -> None:
    (mtl / "whole" / "01.mp4").unlink()
    pictures(mtl / "whole" / "01", range(1, 201))
    found = problems("mtl-aqa", mtl)
    assert len(found) == 3
    assert "01_01: whole/01 has 200 pictures, and the part ends at 203" in found[0]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"start_frame": 1}, "entry (1, 1): it has no 'end_frame'"),
        (dive(end_frame=50), r"entry (1, 1): : Value error, end (50) must be greater than start (100)"),
        (dive(final_score="high"), "entry (1, 1)"),
        ("text", "entry (1, 1)"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, entry: object, text: str) -> None:
    path = dump(tmp_path / "final_annotations_dict.pkl", {(1, 1): entry})
    with pytest.raises(UsageError) as error:
        read("mtl-aqa", tmp_path)
    assert error.value.cause.startswith(str(path))
    assert text in error.value.cause
    assert error.value.fix


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_says_what_it_is_and_what_an_empty_folder_lacks(name: str, tmp_path: Path) -> None:
    what = about(name)
    assert all((what.title, what.videos, what.scores, what.paper, what.where, what.licence))
    assert all(r.low < r.high for r in what.ranges)
    with pytest.raises(NoInputError) as error:
        read(name, tmp_path)
    assert str(tmp_path) in error.value.cause
    assert error.value.fix


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="mtl_aqa") as error:
        about("mtl_aqa")
    assert "did you mean mtl-aqa?" in error.value.fix


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("run",))


class Huge:
    def __reduce__(self) -> Any:
        return (np.ndarray, ((2**40,), "f8"))


@pytest.mark.parametrize("value", [Evil(), {(1, 1): Huge()}, [np.dtype("V1000000000")], "text", None])
def test_pickles_hold_data_and_nothing_else(value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dump(tmp_path / "final_annotations_dict.pkl", value)
    with pytest.raises(UsageError, match=r"final_annotations_dict.pkl"):
        read("mtl-aqa", tmp_path)
    assert capsys.readouterr().out == ""


def test_a_pickle_too_large_to_be_one_of_annotations_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "anno_dict.pkl").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UsageError, match="1024 MiB, more than the 256 MiB"):
        read("logo", tmp_path)


def test_folders_that_link_to_each_other_are_searched_once(mtl: Path) -> None:
    (mtl / "whole" / "loop").symlink_to(mtl)
    assert said("mtl-aqa", mtl) == []


def test_what_cannot_be_written_is_said(mtl: Path, tmp_path: Path) -> None:
    with pytest.raises(AqaError, match=r"cannot write .*taken"):
        prepare("mtl-aqa", mtl, write(tmp_path / "taken"))
