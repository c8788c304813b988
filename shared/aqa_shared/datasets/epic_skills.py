"""EPIC-Skills 2018: which of two videos shows more skill, for seven tasks. An order, and no score.

The folder holds `annotations/<Task>/<task>_gt.csv` (two videos and the better one), `splits/<task>_train_1.csv` and
`…_val_1.csv` (better, worse; four splits of the pairs), and a video of each name, below a folder of the task.
Pairs of one video are in training and in test, as published: what is held out are pairs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from aqa_shared.datasets.published import About, Finding, JudgedPair, Performance, Published
from aqa_shared.datasets.tree import Tree, reading
from aqa_shared.errors import NoInputError
from aqa_shared.manifest_text import decode_table

ABOUT = About(
    title="EPIC-Skills 2018",
    videos="pairs of videos of seven tasks, in four splits of the pairs",
    scores="no score: which of two is better",
    paper="Doughty et al., CVPR 2018, arXiv:1703.09913",
    where="github.com/hazeld/EPIC-Skills2018; dough rolling: CMU-MMAC, surgery: JIGSAWS",
    licence="none stated",
)


def read(root: Path) -> Published:
    """Every video that a pair names. Its score is empty: `wins` of `compared` pairs say an order, no distance."""
    tree = Tree(root)
    tables = tree.files(r".+_gt\.csv")
    if not tables:
        raise NoInputError(f"{root}: no <task>_gt.csv in it or below", fix=f"take the folder from {ABOUT.where}")
    data = Published([], [])
    for path in tables:
        task = path.name.removesuffix("_gt.csv")
        data.sources.append(f"{tree.relative(path)}: pairs")
        roles = _roles(tree, task)
        seen: dict[frozenset[str], str] = {}
        wins: dict[str, int] = {}
        compared: dict[str, int] = {}
        for number, (one, two, better) in _rows(path, 3):
            where = f"{tree.relative(path)}, row {number}"
            if better not in (one, two) or one == two:
                data.findings.append(Finding(where, f"{better!r} is none of {one!r} and {two!r}", "left out"))
                continue
            worse = two if better == one else one
            if (before := seen.get(frozenset((one, two)))) is not None:
                contradicts = before != better
                what = f"{one} and {two} are compared before, " + ("the other way round" if contradicts else "alike")
                data.findings.append(Finding(where, what, "the first counts", known=not contradicts))
                continue
            seen[frozenset((one, two))] = better
            for name in (one, two):
                compared[name] = compared.get(name, 0) + 1
                wins[name] = wins.get(name, 0) + (name == better)
            data.pairs.append(JudgedPair(f"{task}/{better}", f"{task}/{worse}", task, roles.get((better, worse), {})))
        for name in sorted(compared):
            place = tree.media(f"{task}/{name}", name, f"{task}_{name}_capture2")
            data.performances.append(
                Performance(
                    id=f"{task}/{name}",
                    **place.fields(),
                    category=task,
                    columns={"wins": wins[name], "compared": compared[name]},
                )
            )
    return data


def _roles(tree: Tree, task: str) -> dict[tuple[str, str], dict[str, str]]:
    """(better, worse) → number of the split → train or test."""
    roles: dict[tuple[str, str], dict[str, str]] = {}
    for kind, role in (("train", "train"), ("val", "test")):
        for path in tree.files(rf"{task}_{kind}_\d+\.csv"):
            for _, (better, worse) in _rows(path, 2):
                roles.setdefault((better, worse), {})[path.stem.rsplit("_", 1)[1]] = role
    return roles


def _rows(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """The rows below the header; a comma that ends a row adds no cell."""
    for number, cells in enumerate(csv.reader(io.StringIO(decode_table(path), newline="")), 1):
        given = [c.strip() for c in cells if c.strip()]
        if number == 1 or not given:
            continue
        with reading(path, f"row {number}"):
            if len(given) != columns:
                raise ValueError(f"{len(given)} names, expected {columns}")
        yield number, given
