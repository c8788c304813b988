"""Adapters of surgery, exercises and everyday skills, on files written in their published layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.shared.dataset_files import dump, problems, table, write

from aqa_shared.datasets import read
from aqa_shared.datasets.check import findings
from aqa_shared.datasets.jigsaws import kinematics
from aqa_shared.datasets.prepare import prepare
from aqa_shared.errors import UsageError
from aqa_shared.manifest import find_videos


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
