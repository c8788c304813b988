"""UI-PRMD: ten rehabilitation movements by ten people, right and deliberately wrong, as skeletons without videos.

The folder holds, anywhere below it, one of:

- the release's `m01_s01_e01_positions.txt` and, for the wrong ones, `…_positions_inc.txt` below `Kinect/Positions`
  (22 joints × 3, a row a frame): the score is 1 or 0;
- the deep squats of Liao et al. 2020: `…Labels_Correct.csv` and `…Labels_Incorrect.csv` (a quality in 0 … 1, a row a
  repetition), with `…Autoencoder_Output_Correct.csv` and `…Incorrect.csv` (240 times 4 values a row).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aqa_shared.datasets.published import About, Finding, Performance, Published, Range, SplitFile
from aqa_shared.datasets.tree import Tree, reading
from aqa_shared.errors import NoInputError, UsageError
from aqa_shared.manifest_text import decode_table

ABOUT = About(
    title="UI-PRMD",
    videos="2000 skeleton sequences, no videos: 10 movements, 10 people, 10 repetitions, right and wrong",
    scores="right (1) or wrong (0); a quality in 0 … 1 for 180 deep squats",
    paper="Vakanski et al., Data 2018, doi:10.3390/data3010002; qualities: Liao et al., TNSRE 2020",
    where="webpages.uidaho.edu/ui-prmd; qualities: github.com/avakanski/"
    "A-Deep-Learning-Framework-for-Assessing-Physical-Rehabilitation-Exercises",
    licence="Open Data Commons PDDL",
    ranges=(Range(low=0.0, high=1.0),),
    fps=30.0,
)

NAME = re.compile(r"(m\d{2})_(s\d{2})_(e\d{2})_positions(_inc)?\.txt")
COLUMNS = 66
SQUAT = 240
"""Times of a deep squat, each with 4 values."""


def read(root: Path) -> Published:
    """Every sequence: by movement, person and repetition, or by row."""
    tree = Tree(root)
    kinect = [p for p in tree.files(NAME.pattern) if "Vicon" not in p.parts]
    return _release(tree, kinect) if kinect else _squats(tree)


def _release(tree: Tree, files: list[Path]) -> Published:
    data = Published([], [f"…_positions.txt, …_positions_inc.txt: {len(files)} files"])
    paths: dict[str, Path] = {}
    for path in sorted(files, key=lambda path: path.name):
        found = NAME.fullmatch(path.name)
        assert found is not None
        movement, person, repetition, wrong = found.groups()
        name = "_".join((movement, person, repetition)) + ("_inc" if wrong else "")
        if name in paths:
            what = f"is there as well as {tree.relative(paths[name])}"
            data.findings.append(Finding(tree.relative(path), what, "the first counts"))
            continue
        paths[name] = path
        data.performances.append(Performance(id=name, score=0.0 if wrong else 1.0, category=movement, group=person))
    people = [(p.id, str(p.group)) for p in data.performances]
    if len({person for _, person in people}) > 1:
        data.splits = [SplitFile("by-person", "fold", people)]
    data.sequences = lambda: ((name, _numbers(path, COLUMNS).astype(np.float32)) for name, path in paths.items())
    return data


def _squats(tree: Tree) -> Published:
    data = Published([], [])
    outputs: dict[str, tuple[Path, int]] = {}
    for kind in ("Correct", "Incorrect"):
        labels, output = tree.first(rf".*Labels_{kind}\.csv"), tree.first(rf".*Autoencoder_Output_{kind}\.csv")
        if labels is None:
            raise NoInputError(
                f"{tree.root}: no m01_s01_e01_positions.txt and no Labels_{kind}.csv in it or below",
                fix=f"take the dataset from {ABOUT.where}",
            )
        data.sources.append(f"{tree.relative(labels)}: qualities")
        values = _numbers(labels, 1)[:, 0]
        for i, value in enumerate(values):
            name = f"m01_{kind.lower()}_{i + 1:02d}"
            data.performances.append(
                Performance(id=name, score=float(value), category="m01", columns={"correct": kind == "Correct"})
            )
            if not 0 <= value <= 1:
                what = f"quality {value:g}, not in 0 … 1"
                data.findings.append(Finding(f"{tree.relative(labels)}, row {i + 1}", what, "kept as published"))
            if output is not None:
                outputs[name] = output, i
        if output is not None:
            data.sources.append(f"{tree.relative(output)}: sequences")
            if (rows := len(decode_table(output).split())) != len(values):
                what = f"{rows} sequences, and {len(values)} qualities in {labels.name}"
                data.findings.append(Finding(tree.relative(output), what, "matched by row"))
    if outputs:
        data.sequences = lambda: _squat_sequences(outputs)
    return data


def _squat_sequences(outputs: dict[str, tuple[Path, int]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    tables = {path: _numbers(path, SQUAT * 4) for path in {path for path, _ in outputs.values()}}
    for name, (path, row) in outputs.items():
        if row < len(tables[path]):
            yield name, tables[path][row].reshape(SQUAT, 4).astype(np.float32)


def _numbers(path: Path, columns: int) -> NDArray[np.float64]:
    """(rows, columns) of a table of numbers without a header. Raises UsageError that names the row."""
    rows = []
    for number, line in enumerate(decode_table(path).splitlines(), 1):
        if cells := line.replace(",", " ").split():
            with reading(path, f"row {number}"):
                if len(cells) != columns:
                    raise ValueError(f"{len(cells)} numbers, expected {columns}")
                rows.append([float(c) for c in cells])
    if not rows:
        raise UsageError(f"{path} is empty", fix="take the file as it is published")
    return np.array(rows)
