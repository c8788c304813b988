"""Adapters of published datasets, on files that these tests write in the published layouts."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

from aqa_shared.datasets import DATASETS, about, read
from aqa_shared.datasets.check import findings
from aqa_shared.datasets.jigsaws import kinematics
from aqa_shared.datasets.prepare import prepare
from aqa_shared.errors import AqaError, NoInputError, UsageError
from aqa_shared.manifest import find_videos
from aqa_shared.manifest_labels import apply_labels


def dump(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return path


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def pictures(folder: Path, numbers: range) -> None:
    """Only names count here: nothing decodes them."""
    folder.mkdir(parents=True)
    for i in numbers:
        (folder / f"{i:05d}.jpg").touch()


def said(name: str, root: Path) -> list[str]:
    return [str(finding) for finding in findings(read(name, root))]


def problems(name: str, root: Path) -> list[str]:
    return [str(finding) for finding in findings(read(name, root)) if not finding.known]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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


def aqa_7(root: Path, train: list[list[float]], test: list[list[float]]) -> Path:
    root.mkdir(exist_ok=True)
    for role, rows in (("train", train), ("test", test)):
        scipy.io.savemat(root / f"split_4_{role}_list.mat", {f"consolidated_{role}_list": np.array(rows)})
    return root


def test_aqa_7(tmp_path: Path) -> None:
    root = aqa_7(tmp_path / "in", [[1, 4, 80.5], [6, 1, 70.0]], [[2, 12, 15.0]])
    write(root / "Actions" / "diving" / "004.avi")
    pictures(root / "gym_vault-out" / "012", range(103))
    pictures(root / "sync_diving_10m-out" / "001", range(90))
    data = prepare("aqa-7", root, tmp_path / "out")
    assert [(p.id, p.score, p.split, p.category) for p in data.performances] == [
        ("diving/004", 80.5, "train", "diving"),
        ("sync_diving_10m/001", 70.0, "train", "sync_diving_10m"),
        ("gym_vault/012", 15.0, "test", "gym_vault"),
    ]
    assert [p.path for p in data.performances] == [
        "Actions/diving/004.avi",
        "sync_diving_10m-out/001",
        "gym_vault-out/012",
    ]
    assert [s.name for s in data.splits] == ["official", "diving", "gym_vault", "sync_diving_10m"]
    assert len(problems("aqa-7", root)) == 1
    assert "has 90 pictures, and the annotation 103 frames" in problems("aqa-7", root)[0]


def test_aqa_7_refuses_what_is_no_such_list(tmp_path: Path) -> None:
    aqa_7(tmp_path, [[9, 4, 80.5]], [[2, 12, 15.0]])
    with pytest.raises(UsageError, match=r"split_4_train_list.mat, row 1: sport and number are 9 and 4"):
        read("aqa-7", tmp_path)
    aqa_7(tmp_path, [[1, 4]], [[2, 12]])
    with pytest.raises(UsageError, match=r"consolidated_train_list is .* \(1, 2\), expected numbers"):
        read("aqa-7", tmp_path)
    write(tmp_path / "split_4_train_list.mat", "damaged")
    with pytest.raises(UsageError, match="is not a MATLAB file"):
        read("aqa-7", tmp_path)


def motion(rows: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, 76))


@pytest.fixture
def jigsaws(tmp_path: Path) -> Path:
    root = tmp_path / "jigsaws"
    marks = {f"Suturing_{who}00{i}": [i, 2, 3, 4, 5, 1] for who in "BC" for i in (1, 2)}
    dump(root / "label.pkl", marks)
    dump(root / "splits.pkl", {"Suturing": [["Suturing_B001", "Suturing_C002"], ["Suturing_B002", "Suturing_C001"]]})
    rows = [f"{name}\tN\t{sum(six)}\t" + "\t".join(map(str, six)) for name, six in marks.items()]
    write(root / "Suturing" / "meta_file_Suturing.txt", "\n".join([*rows, "Suturing_H002 E 6 1 1 1 1 1 1"]) + "\n\n")
    for name in marks:
        write(root / "Suturing" / "video" / f"{name}_capture1.avi")
    write(root / "Suturing" / "video" / "Suturing_B001_capture2.avi")
    folder = root / "Suturing" / "kinematics" / "AllGestures"
    folder.mkdir(parents=True)
    np.savetxt(folder / "Suturing_B001.txt", motion(64))
    return root


def test_jigsaws(jigsaws: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = prepare("jigsaws", jigsaws, out)
    assert [str(f) for f in findings(data) if not f.known] == []
    first = data.performances[0]
    assert (first.id, first.score, first.group, first.category) == ("Suturing_B001", 16.0, "B", "Suturing")
    assert first.columns == {
        "ratings": [1, 2, 3, 4, 5, 1],
        "fold": "0",
        "skill": "N",
        "other_view": "Suturing/video/Suturing_B001_capture2.avi",
    }
    assert table(out / "splits" / "by-surgeon-suturing.csv")[2] == {"id": "Suturing_C001", "fold": "C"}
    assert (out / "splits" / "folds.csv").read_text() == (out / "splits" / "folds-suturing.csv").read_text()
    assert [video.path for video in find_videos(out / "manifest.csv").videos] == [
        str(jigsaws / "Suturing" / "video" / f"Suturing_{who}_capture1.avi") for who in ("B001", "B002", "C001", "C002")
    ]
    sequence = np.load(out / "sequences" / "Suturing_B001.npy")
    np.testing.assert_allclose(sequence, motion(64), rtol=1e-6)


def test_jigsaws_finds_what_contradicts(jigsaws: Path) -> None:
    meta = jigsaws / "Suturing" / "meta_file_Suturing.txt"
    write(meta, "Suturing_B001 N 17 1 2 3 4 5 1\nSuturing_C001 N 17 2 2 3 4 5 1\n")
    found = problems("jigsaws", jigsaws)
    assert any("row 1 (Suturing_B001): the sum of [1, 2, 3, 4, 5, 1] is not 17" in text for text in found)
    assert any("row 2 (Suturing_C001): ratings [2, 2, 3, 4, 5, 1], and [1, 2, 3, 4, 5, 1] in" in text for text in found)
    (jigsaws / "label.pkl").unlink()
    assert len(read("jigsaws", jigsaws).performances) == 2
    write(meta, "Suturing_B001 N 17 1 2 3 4 5\n")
    with pytest.raises(UsageError, match=r"meta_file_Suturing.txt, row 1: 8 cells, expected 9"):
        read("jigsaws", jigsaws)


def test_kinematics_have_76_columns(tmp_path: Path) -> None:
    signal = motion(100)
    np.savetxt(tmp_path / "k.txt", signal)
    np.testing.assert_allclose(kinematics(tmp_path / "k.txt"), signal)
    np.savetxt(tmp_path / "k.txt", signal[:, :75])
    with pytest.raises(UsageError, match=r"k.txt, row 1: 75 cells, expected 76"):
        kinematics(tmp_path / "k.txt")


RG = "Video_Name\tDifficulty_Score    Execution_Score Total_Score\tPenalty\tVideo_length\n"


def test_rhythmic_gymnastics(tmp_path: Path) -> None:
    write(tmp_path / "train.txt", RG + "Ball_001\t10.50\t8.30\t18.80\t0.00\t92\nHoop_002 7.2 4.2 10.8 0.6 93\n")
    write(tmp_path / "test.txt", RG + "Ribbon_003\t9.00\t6.95\t15.00\t0.00\t90\n")
    for name in ("Ball_001", "Hoop_002", "Ribbon_003"):
        write(tmp_path / "videos" / f"{name}.mp4")
    data = read("rhythmic-gymnastics", tmp_path)
    hoop = data.performances[1]
    assert (hoop.score, hoop.category, hoop.split, hoop.columns["penalty"]) == (10.8, "Hoop", "train", 0.6)
    assert hoop.columns["seconds"] == 93
    found = problems("rhythmic-gymnastics", tmp_path)
    assert found[0].startswith("test.txt, row 2 (Ribbon_003): the total is 15, difficulty + execution − penalty 15.95")
    assert "Ball_002, Ball_003" in found[1]
    write(tmp_path / "test.txt", RG + "Ribbon_003\t9.00\tgood\t15.00\t0.00\t90\n")
    with pytest.raises(UsageError, match=r"test.txt, row 2: could not convert string to float: 'good'"):
        read("rhythmic-gymnastics", tmp_path)


def finediving(root: Path) -> dict[tuple[str, int], list[Any]]:
    entries = {("Men3m_r1", n): ["107B", 68.2 + n, 3.1, 0, [1] * 4 + [7] * 3 + [9] * 2] for n in range(3)}
    dump(root / "fine-grained_annotation_aqa.pkl", entries)
    named = {
        key: {
            "sub-action_types": {1: "Forward"},
            "dive_score": np.float64(e[1]),
            "difficulty": e[2],
            "judge_scores": [7.5, 7.0, 7.5],
            "frames_labels": np.array(e[4]),
            "steps_transit_frames": np.array([493.0, 496.0]),
        }
        for key, e in entries.items()
    }
    named["Men3m_r1", 2]["dive_score"] = 12.0
    dump(root / "FineDiving_fine-grained_annotation.pkl", named)
    dump(root / "train_split.pkl", [("Men3m_r1", 0), ("Men3m_r1", 1)])
    dump(root / "test_split.pkl", [("Men3m_r1", 2)])
    return entries


def test_finediving(tmp_path: Path) -> None:
    entries = finediving(tmp_path / "Annotations")
    pictures(tmp_path / "FINADiving_MTL_256s" / "FINADiving_MTL_256s" / "Men3m_r1" / "0", range(489, 498))
    pictures(tmp_path / "FINADiving_MTL_256s" / "FINADiving_MTL_256s" / "Men3m_r1" / "1", range(489, 499))
    data = read("finediving", tmp_path)
    first = data.performances[0]
    assert (first.id, first.path) == ("Men3m_r1/0", "FINADiving_MTL_256s/FINADiving_MTL_256s/Men3m_r1/0")
    assert (first.score, first.difficulty, first.split, first.group) == (68.2, 3.1, "train", "Men3m_r1")
    assert first.columns["action_type"] == "107B"
    assert first.columns["transitions"] == [3, 6]
    assert first.columns["judge_scores"] == [7.5, 7.0, 7.5]
    assert "the copy that published code trains on" in data.sources[0]
    assert [str(f) for f in findings(data) if f.known] == [
        "Annotations/FineDiving_fine-grained_annotation.pkl, ('Men3m_r1', 2): score is 12.0, and 70.2 in the copy that "
        "is read; fine-grained_annotation_aqa.pkl counts"
    ]
    found = problems("finediving", tmp_path)
    assert found[0].startswith("Men3m_r1/2.mp4: is missing")
    assert found[1].startswith("Men3m_r1/1: FINADiving_MTL_256s/FINADiving_MTL_256s/Men3m_r1/1 has 10 pictures")
    many = {("Men3m_r1", n): entries["Men3m_r1", 0] for n in range(3, 45)}
    dump(tmp_path / "Annotations" / "fine-grained_annotation_aqa.pkl", {**entries, **many})
    assert sum("is only in the copy that is read" in text for text in problems("finediving", tmp_path)) == 42
    dump(tmp_path / "Annotations" / "fine-grained_annotation_aqa.pkl", entries)
    # A second copy of the same file that says something else is compared as well.
    other = {**entries, ("Men3m_r1", 0): ["107B", 68.2, 3.1, 0, [1] * 9]}
    dump(tmp_path / "old" / "copy" / "fine-grained_annotation_aqa.pkl", other)
    assert any("('Men3m_r1', 0): steps differ" in text for text in said("finediving", tmp_path))


def test_finediving_cuts_the_whole_video_where_there_are_no_pictures(tmp_path: Path) -> None:
    entries = finediving(tmp_path)
    coarse = {key: {"action_type": "107B", "start_frame": 489, "end_frame": 497} for key in entries}
    dump(tmp_path / "FineDiving_coarse_annotation.pkl", coarse)
    write(tmp_path / "FINADiving" / "Men3m_r1.mp4")
    first = read("finediving", tmp_path).performances[0]
    assert (first.path, first.start, first.end) == ("FINADiving/Men3m_r1.mp4", 489, 498)


def test_logo(tmp_path: Path) -> None:
    entries = {
        ("WorldChampionship2019_free_final", n): ["free", 90.25 + n, 0, [2, 4], [12, 12, 3, 3, 3]] for n in (0, 1)
    }
    dump(tmp_path / "anno_dict.pkl", entries)
    dump(tmp_path / "train_split3.pkl", [("WorldChampionship2019_free_final", 1)])
    dump(tmp_path / "test_split3.pkl", [("WorldChampionship2019_free_final", 0)])
    pictures(tmp_path / "LOGO" / "WorldChampionship2019_free_final" / "0", range(5))
    pictures(tmp_path / "LOGO" / "WorldChampionship2019_free_final" / "1", range(5))
    data = read("logo", tmp_path)
    assert findings(data) == []
    assert [(p.score, p.category, p.split) for p in data.performances] == [
        (90.25, "free", "test"),
        (91.25, "free", "train"),
    ]
    assert data.splits[0].name == "official-3"
    dump(tmp_path / "test_split3.pkl", [("no pair", 0, 1)])
    with pytest.raises(UsageError, match=r"test_split3.pkl, entry \['no pair', 0, 1\]: too many values"):
        read("logo", tmp_path)


def programme(**more: Any) -> dict[str, Any]:
    element = {"element": "3Lz+3T", "coarse_class": "jump", "jump_comb": 1, "bv": 10.1, "judge_score": [2, 2, 3]}
    return {
        "competition": "GP2018",
        "competition_index": 3,
        "total_segment_score": 69.5,
        "total_element_score": 36.0,
        "total_program_component_score(factored)": 34.5,
        "factor": 0.8,
        "total_program_component_score_not_factored": 43.1,
        "deductions": -1.0,
        "element_score": [16.0, 20.0],
        "component_score_not_factored": [8.5, 8.5, 8.75, 8.75, 8.6],
        "executed_element": {"element1": {**element, "goe": 1.4, "score_of_panel": 11.5, "time": "1-05,1-09"}},
        **more,
    }


def test_finefs(tmp_path: Path) -> None:
    for number, entry in ((0, programme()), (12, programme()), (729, programme(total_segment_score=71.0))):
        write(tmp_path / "data" / "annotation" / f"{number}.json", json.dumps(entry))
        write(tmp_path / "data" / "video" / f"{number}.mp4")
        write(tmp_path / "data" / "video_features" / f"{number}.pkl")
    data = read("finefs", tmp_path)
    assert [(p.id, p.category, p.path) for p in data.performances] == [
        ("0", "SP", "data/video/0.mp4"),
        ("12", "SP", "data/video/12.mp4"),
        ("729", "FS", "data/video/729.mp4"),
    ]
    columns = data.performances[0].columns
    assert (columns["tes"], columns["pcs"], columns["deductions"], columns["factor"]) == (36.0, 34.5, 1.0, 0.8)
    assert (columns["elements"][0]["start"], columns["elements"][0]["end"]) == (65, 69)
    assert problems("finefs", tmp_path) == [
        "data/annotation/729.json: the segment score is 71, TES + PCS − deductions 69.50; kept as published"
    ]
    write(tmp_path / "data" / "annotation" / "12.json", "{")
    with pytest.raises(UsageError, match=r"12.json: Expecting property name"):
        read("finefs", tmp_path)


def test_fis_v(tmp_path: Path) -> None:
    rows = ["number,total,tes,pcs,ded,,,", "1,57.07,28.71,29.36,1,Kaetlyn OSMOND,2015,NHK"]
    rows += [
        "2,54.96,28.88,27.08,1,Mariko KIHARA,2015,NHK",
        "3,60.00,28.79,27.89,1,A B,2015,NHK",
        "4,,,,,,,",
        " ,,,,,,,",
    ]
    write(tmp_path / "data" / "fs_dataset.csv", "\n".join(rows))
    write(tmp_path / "data" / "train_dataset.txt", "1 28.71 29.36 1\n3 28.79 27.89 1\n")
    write(tmp_path / "data" / "test_dataset.txt", "2 28.88 27.08 1\n")
    for i in (1, 2, 3):
        write(tmp_path / "videos" / f"{i}.mp4")
    data = read("fis-v", tmp_path)
    assert [(p.id, p.score, p.split, p.group) for p in data.performances] == [
        ("1", 57.07, "train", "NHK 2015"),
        ("2", 54.96, "test", "NHK 2015"),
        ("3", 60.0, "train", "NHK 2015"),
    ]
    assert problems("fis-v", tmp_path) == [
        "data/fs_dataset.csv, row 4: the total is 60, TES + PCS − deductions 55.68; kept as published; tes and pcs are "
        "columns"
    ]
    prepare("fis-v", tmp_path, tmp_path / "out")
    manifest = find_videos(tmp_path / "out" / "manifest.csv")
    by_elements = apply_labels(manifest.videos, tmp_path / "out" / "manifest.csv", str(tmp_path), {"score": "tes"})
    assert [v.score for v in by_elements.videos] == [28.71, 28.88, 28.79]


def test_mit_skate(tmp_path: Path) -> None:
    write(tmp_path / "annotations.txt", "1_MEN-abc 59.28 29.57 30.71 100 199\n2_MEN-abc 60.00 30.5 29.8 300 399\n")
    write(tmp_path / "MEN-abc.mp4")
    data = read("mit-skate", tmp_path)
    first = data.performances[0]
    assert (first.path, first.start, first.end, first.columns["deductions"]) == ("MEN-abc.mp4", 100, 200, 1)
    assert problems("mit-skate", tmp_path) == [
        "annotations.txt, row 2: TES + PCS less the total are 0.30 points; kept as published"
    ]
    write(tmp_path / "clips" / "1_MEN-abc.mp4")
    assert read("mit-skate", tmp_path).performances[0].end is None


def test_ui_prmd(tmp_path: Path) -> None:
    skeleton = np.random.default_rng(0).normal(size=(7, 66)).round(4)
    for person in ("s01", "s02"):
        for folder, ending in (("Segmented Movements", ""), ("Incorrect Segmented Movements", "_inc")):
            place = tmp_path / "in" / folder / "Kinect" / "Positions" / f"m03_{person}_e01_positions{ending}.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            np.savetxt(place, skeleton, delimiter=",")
    # The same names below Vicon are of another sensor, with other columns.
    write(tmp_path / "in" / "Segmented Movements" / "Vicon" / "Positions" / "m03_s01_e01_positions.txt", "1,2,3")
    data = prepare("ui-prmd", tmp_path / "in", tmp_path / "out")
    assert findings(data) == []
    assert [(p.id, p.score, p.category, p.group) for p in data.performances[:2]] == [
        ("m03_s01_e01", 1.0, "m03", "s01"),
        ("m03_s01_e01_inc", 0.0, "m03", "s01"),
    ]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "sequences" / "m03_s02_e01.npy"), np.float32(skeleton))
    assert "path" not in table(tmp_path / "out" / "labels.csv")[0]
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_ui_prmd_of_another_width_names_the_row(tmp_path: Path) -> None:
    write(tmp_path / "in" / "m03_s01_e01_positions.txt", "1,2,3\n")
    with pytest.raises(UsageError, match=r"m03_s01_e01_positions.txt, row 1: 3 numbers, expected 66"):
        prepare("ui-prmd", tmp_path / "in", tmp_path / "out")


def test_epic_skills_is_an_order_and_no_score(tmp_path: Path) -> None:
    folder = tmp_path / "annotations" / "Dough_Rolling"
    # The published rows end with a comma that the header lacks, or do not.
    rows = [
        "Vid1,Vid2,Best,",
        "S08,S33,S33,",
        "S07,S08,S07",
        "S33,S07,S07,",
        "S08,S33,S33,",
        "S07,S33,S33,",
        "S07,S08,S09,",
    ]
    write(folder / "dough_rolling_gt.csv", "\n".join(rows) + "\n")
    write(folder / "splits" / "dough_rolling_train_1.csv", "Better,Worse,\nS33,S08,\nS07,S33,\n")
    write(folder / "splits" / "dough_rolling_val_1.csv", "Better,Worse,\nS07,S08,\n")
    for name in ("S07", "S08", "S33"):
        write(tmp_path / "videos" / "dough_rolling" / f"{name}.mp4")
    data = prepare("epic-skills", tmp_path, tmp_path / "out")
    assert all(p.score is None and p.split is None for p in data.performances)
    assert {p.id: (p.columns["wins"], p.columns["compared"]) for p in data.performances} == {
        "dough_rolling/S07": (2, 2),
        "dough_rolling/S08": (0, 2),
        "dough_rolling/S33": (1, 2),
    }
    assert table(tmp_path / "out" / "pairs.csv") == [
        {"better": f"dough_rolling/{b}", "worse": f"dough_rolling/{w}", "category": "dough_rolling", "split_1": role}
        for b, w, role in (("S33", "S08", "train"), ("S07", "S08", "test"), ("S07", "S33", "train"))
    ]
    assert [str(f).rsplit("dough_rolling_gt.csv, ")[-1] for f in findings(data)] == [
        "row 6: S07 and S33 are compared before, the other way round; the first counts",
        "row 7: 'S09' is none of 'S07' and 'S08'; left out",
        "row 5: S08 and S33 are compared before, alike; the first counts",
    ]
    assert [v.score for v in find_videos(tmp_path / "out" / "manifest.csv").videos] == [None] * 3


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
