"""JIGSAWS: trials of three surgical tasks by eight surgeons, two views each, with six ratings and kinematics.

The folder holds, anywhere below it:

- `label.pkl` (trial → six ratings 1 … 5) and `splits.pkl` (task → four folds), as MUSDL published them, or the
  release's own `meta_file_<Task>.txt` (trial, skill level, sum, six ratings): where both are there, they must agree;
- `<Task>_<U><NNN>_capture1.avi` and `…_capture2.avi`: the left and the right view; the left is the video of a trial;
- `kinematics/AllGestures/<trial>.txt`: 76 columns at 30 Hz.

The four published folds mix surgeons; the splits by surgeon leave one out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqa_shared.datasets.published import About, Finding, Performance, Published, Range, SplitFile
from aqa_shared.datasets.tree import Tree, reading, words
from aqa_shared.errors import NoInputError, UsageError

ABOUT = About(
    title="JIGSAWS",
    videos="103 trials of three tasks by eight surgeons, two views each, in four folds",
    scores="sum of six ratings, the ratings, skill level; kinematics",
    paper="Gao et al., M2CAI 2014; folds: Tang et al. (MUSDL), CVPR 2020",
    where="cirl.lcsr.jhu.edu/research/hmm/datasets/jigsaws_release (a form); folds: github.com/nzl-thu/MUSDL",
    licence="by the form: research only",
    ranges=(
        Range(low=8.0, high=30.0, category="Suturing"),
        Range(low=7.0, high=24.0, category="Needle_Passing"),
        Range(low=6.0, high=22.0, category="Knot_Tying"),
    ),
    fps=30.0,
)

TASKS = ("Suturing", "Needle_Passing", "Knot_Tying")
RATINGS = (
    "respect for tissue",
    "suture and needle handling",
    "time and motion",
    "flow of operation",
    "overall performance",
    "quality of final product",
)
"""What the six are, in the order of the meta files."""

COLUMNS = 76
"""19 of each of four manipulators (left and right master, left and right slave): position 3, rotation 9, velocity 3,
angular velocity 3, gripper 1."""


def read(root: Path) -> Published:
    """Every rated trial."""
    tree = Tree(root)
    data = Published([], [])
    ratings, skill = _ratings(tree, data)
    folds = _folds(tree, data)
    fold_of = dict(row for split in folds for row in split.rows)
    for trial, marks in ratings.items():
        task, _, performed = trial.rpartition("_")
        other = tree.media(f"{trial}_capture2")
        columns: dict[str, Any] = {"ratings": marks}
        columns |= {"fold": fold_of[trial]} if trial in fold_of else {}
        columns |= {"skill": skill[trial]} if trial in skill else {}
        columns |= {} if other.missing else {"other_view": other.path}
        data.performances.append(
            Performance(
                id=trial,
                **tree.media(f"{trial}_capture1", suffix=".avi").fields(),
                score=sum(marks),
                category=task,
                group=performed[0],
                columns=columns,
            )
        )
        if len(marks) != 6 or any(m not in (1, 2, 3, 4, 5) for m in marks):
            what = f"ratings are {marks}, expected six of 1 … 5"
            data.findings.append(Finding(trial, what, "the score is their sum all the same"))
    data.splits = folds
    for task in TASKS:
        rows = [(p.id, str(p.group)) for p in data.performances if p.category == task]
        if len({surgeon for _, surgeon in rows}) > 1:
            data.splits.append(SplitFile(f"by-surgeon-{task.lower()}", "fold", rows))
    if tree.files(r".+_[A-Z]\d{3}\.txt"):
        data.sources.append("kinematics: sequences")
        data.sequences = lambda: _kinematics(tree, data.performances)
    return data


def _ratings(tree: Tree, data: Published) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Six ratings and, from the meta files, the skill level, by trial."""
    ratings: dict[str, list[int]] = {}
    skill: dict[str, str] = {}
    published = tree.first(r"label\.pkl")
    if published is not None:
        data.sources.append(f"{tree.relative(published)}: ratings")
        for trial, marks in tree.pickle(published, dict).items():
            with reading(published, trial):
                ratings[str(trial)] = [int(m) for m in marks]
    for path in tree.files(r"meta_file_\w+\.txt"):
        data.sources.append(f"{tree.relative(path)}: ratings, skill")
        for number, cells in words(path, columns=9):
            with reading(path, f"row {number}"):
                trial, total, marks = cells[0], int(cells[2]), [int(c) for c in cells[3:]]
            where = f"{tree.relative(path)}, row {number} ({trial})"
            if sum(marks) != total:
                data.findings.append(Finding(where, f"the sum of {marks} is not {total}", "the ratings count"))
            if trial in ratings and ratings[trial] != marks:
                what = f"ratings {marks}, and {ratings[trial]} in label.pkl"
                data.findings.append(Finding(where, what, "label.pkl counts"))
            if published is None or trial in ratings:
                ratings.setdefault(trial, marks)
                skill[trial] = cells[1]
            else:
                data.findings.append(Finding(where, "is not in label.pkl", "left out", known=True))
    if not ratings:
        raise NoInputError(
            f"{tree.root}: no label.pkl and no meta_file_<Task>.txt in it or below", fix=f"take them from {ABOUT.where}"
        )
    return ratings, skill


def _folds(tree: Tree, data: Published) -> list[SplitFile]:
    """The published folds of all tasks together, then those of each task."""
    path = tree.first(r"splits\.pkl")
    if path is None:
        data.findings.append(Finding(str(tree.root), "no splits.pkl", "the published folds are not known"))
        return []
    data.sources.append(f"{tree.relative(path)}: folds")
    splits = []
    for task, folds in tree.pickle(path, dict).items():
        with reading(path, task):
            rows = [(str(trial), str(k)) for k, fold in enumerate(folds) for trial in fold]
        splits.append(SplitFile(f"folds-{str(task).lower()}", "fold", rows))
    return [SplitFile("folds", "fold", [row for split in splits for row in split.rows]), *splits]


def kinematics(path: Path) -> NDArray[np.float64]:
    """(time, 76) at 30 Hz. Raises UsageError that names the row."""
    rows = []
    for number, cells in words(path, columns=COLUMNS):
        with reading(path, f"row {number}"):
            rows.append([float(c) for c in cells])
    if not rows:
        raise UsageError(f"{path} is empty", fix="take the file as it is published")
    return np.array(rows)


def _kinematics(tree: Tree, performances: list[Performance]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for performance in performances:
        if (path := tree.first(rf"{re.escape(performance.id)}\.txt")) is not None:
            yield performance.id, kinematics(path).astype(np.float32)
