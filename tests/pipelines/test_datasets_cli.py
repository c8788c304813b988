"""`aqa datasets` as people type it, from published files to what the two stages read."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest
from tests.extract.clips import Clip
from tests.pipelines.commands import run

from aqa_shared.datasets import DATASETS
from aqa_train.split_files import FileFold, read_split_file

RG = "Video_Name Difficulty_Score Execution_Score Total_Score Penalty Video_length\n"


def aqa(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run("aqa", "datasets", *arguments)


@pytest.fixture
def gymnastics(tmp_path: Path) -> Path:
    """All thousand routines, each scored alike, with a file for each."""
    root = tmp_path / "rg"
    root.mkdir()
    numbers = {a: [i for i in range(1, 252) if i != (134 if a == "Ball" else 251)]
               for a in ("Ball", "Clubs", "Hoop", "Ribbon")}  # fmt: skip
    for role, part in (("train", slice(0, 200)), ("test", slice(200, None))):
        rows = [f"{a}_{i:03d} 9 7 15.5 .5 90\n" for a, each in numbers.items() for i in each[part]]
        (root / f"{role}.txt").write_text(RG + "".join(rows))
    for apparatus, each in numbers.items():
        for i in each:
            (root / f"{apparatus}_{i:03d}.mp4").touch()
    return root


def test_list_names_every_dataset() -> None:
    done = aqa("list")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(name in done.stdout for name in DATASETS)
    rows = json.loads(aqa("list", "--json").stdout)
    assert [row["name"] for row in rows] == list(DATASETS)
    assert {"videos", "scores", "licence", "where", "paper"} <= set(rows[0])


def test_a_whole_copy_is_checked_and_prepared(gymnastics: Path, tmp_path: Path) -> None:
    done = aqa("check", "rhythmic-gymnastics", "--root", gymnastics)
    assert done.returncode == 0, done.stdout + done.stderr
    known = "train.txt, test.txt: Ball_134 is in neither; Ball_251 is there in its place (published so)\n"
    assert done.stdout == known
    assert "1000 performances, 0 problems, 1 known error" in done.stderr
    out = tmp_path / "out"
    done = aqa("prepare", "rhythmic-gymnastics", "--root", gymnastics, "--out", out)
    assert done.returncode == 0, done.stderr
    said = "1000 performances, 1000 with a score, 1000 with a video; splits: official, ball, clubs, hoop, ribbon"
    assert said in done.stdout
    (fold,) = read_split_file(out / "splits" / "official.csv")
    assert (len(fold.train), len(fold.test)) == (800, 200)
    (fold,) = read_split_file(out / "splits" / "hoop.csv")
    assert (len(fold.train), len(fold.test)) == (200, 50)


def test_folds_are_read_by_the_trainer(tmp_path: Path) -> None:
    root = tmp_path / "squats"
    root.mkdir()
    for person in ("s01", "s02", "s10"):
        (root / f"m01_{person}_e01_positions.txt").write_text(",".join(["0.5"] * 66) + "\n")
    done = aqa("prepare", "ui-prmd", "--root", root, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ids = [f"m01_{person}_e01" for person in ("s01", "s02", "s10")]
    assert read_split_file(tmp_path / "out" / "splits" / "by-person.csv") == [
        FileFold(train=[i for i in ids if i != tested], test=[tested]) for tested in ids
    ]


def test_a_copy_with_a_fault_exits_with_3_and_lists_it(gymnastics: Path) -> None:
    (gymnastics / "Hoop_007.mp4").unlink()
    done = aqa("check", "rhythmic-gymnastics", "--root", gymnastics)
    assert done.returncode == 3
    assert done.stdout.startswith("Hoop_007.mp4: is missing; put it anywhere in the folder\n")
    done = aqa("check", "rhythmic-gymnastics", "--root", gymnastics, "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout)[0] == {
        "where": "Hoop_007.mp4",
        "what": "is missing",
        "done": "put it anywhere in the folder",
        "known": False,
    }


def test_videos_are_opened_where_that_is_asked(gymnastics: Path) -> None:
    """Of the thousand only four stay; two of them are videos, one as long as its row says."""
    kept = {"Ball_001": 90 * 5, "Hoop_002": 80 * 5, "Clubs_003": 0, "Ribbon_004": None}
    for path in gymnastics.glob("*.mp4"):
        frames = kept.get(path.stem)
        if frames is None:
            path.unlink()
        elif frames:
            Clip(frames=frames, fps=Fraction(5)).write(path)
    done = aqa("check", "rhythmic-gymnastics", "--root", gymnastics, "--open")
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[:2] == [
        "Clubs_003.mp4: cannot be read: the file has no bytes; copy or download it again (empty_file); "
        "aqa-extract would refuse it",
        "Hoop_002: Hoop_002.mp4 lasts 80.0 s, and the annotation says 90 s; the video or the annotation is of another "
        "copy",
    ]
    assert "open: 3/3" in done.stderr


def test_errors_say_what_to_do(gymnastics: Path, tmp_path: Path) -> None:
    done = aqa("check", "rhythmic-gymnastic", "--root", gymnastics)
    assert done.returncode == 2
    assert "did you mean rhythmic-gymnastics?" in done.stderr
    done = aqa("check", "fis-v", "--root", tmp_path / "none")
    assert (done.returncode, "none is not a folder" in done.stderr) == (4, True)
    done = aqa("check", "fis-v", "--root", gymnastics)
    assert done.returncode == 4
    assert "fs_dataset.csv" in done.stderr
    (gymnastics / "test.txt").write_text(RG + "Ball_001 9 7\n")
    done = aqa("prepare", "rhythmic-gymnastics", "--root", gymnastics, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "test.txt, row 2: 3 cells, expected 6" in done.stderr
