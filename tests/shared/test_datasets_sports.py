"""Adapters of sports other than MTL-AQA's dives, on files written in their published layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from tests.shared.dataset_files import dump, pictures, problems, said, write

from aqa_shared.datasets import read
from aqa_shared.datasets.check import findings
from aqa_shared.datasets.prepare import prepare
from aqa_shared.errors import UsageError
from aqa_shared.manifest import find_videos
from aqa_shared.manifest_labels import apply_labels


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
