"""Rhythmic Gymnastics: routines of four apparatus, scored for difficulty and execution.

The folder holds `train.txt` and
`test.txt` (name, difficulty, execution, total, penalty, seconds) and `Ball_001.mp4` …
Of each apparatus 200 train and 50 test; there is a Ball_251 and no Ball_134.
"""

from __future__ import annotations

from pathlib import Path

from aqa_shared.datasets.published import About, Finding, Performance, Published, Range, SplitFile
from aqa_shared.datasets.tree import Tree, reading, words

ABOUT = About(
    title="Rhythmic Gymnastics",
    videos="1000 routines of four apparatus (800 train, 200 test)",
    scores="total score, its difficulty and execution, penalty",
    paper="Zeng et al. (ACTION-NET), ACM MM 2020, arXiv:2008.05977",
    where="github.com/qinghuannn/ACTION-NET (data); videos and features from OneDrive, linked there",
    licence="none stated",
    ranges=(
        Range(low=3.85, high=23.7, category="Ball"),
        Range(low=6.5, high=24.0, category="Clubs"),
        Range(low=4.45, high=23.65, category="Hoop"),
        Range(low=5.35, high=21.7, category="Ribbon"),
    ),
)

APPARATUS = ("Ball", "Clubs", "Hoop", "Ribbon")
ROUNDING = 0.015
"""17 totals are .01 off: the parts were rounded after they were added."""


def read(root: Path) -> Published:
    """Every routine: those of train.txt, then those of test.txt."""
    tree = Tree(root)
    data = Published([], [])
    for role in ("train", "test"):
        path = tree.needed(rf"{role}\.txt", fix=f"take it from {ABOUT.where}")
        data.sources.append(f"{tree.relative(path)}: scores, split")
        for number, cells in words(path, columns=6, header=True):
            with reading(path, f"row {number}"):
                name = cells[0]
                difficulty, execution, total, penalty, seconds = map(float, cells[1:])
                data.performances.append(
                    Performance(
                        id=name,
                        **tree.media(name).fields(),
                        seconds=seconds,
                        score=total,
                        split=role,
                        category=name.rsplit("_", 1)[0],
                        columns={
                            # Here "difficulty" is a part of the score that judges give, no factor known beforehand.
                            "difficulty_score": difficulty,
                            "execution_score": execution,
                            "penalty": penalty,
                            "seconds": seconds,
                        },
                    )
                )
            rule = difficulty + execution - penalty
            if abs(rule - total) > ROUNDING:
                what = f"the total is {total:g}, difficulty + execution − penalty {rule:g}"
                data.findings.append(
                    Finding(f"{tree.relative(path)}, row {number} ({name})", what, "kept as published")
                )
            if name.rsplit("_", 1)[0] not in APPARATUS:
                what = f"{name} is of none of {', '.join(APPARATUS)}"
                data.findings.append(Finding(f"{tree.relative(path)}, row {number}", what, "kept as published"))
    names = {p.id for p in data.performances}
    for apparatus in APPARATUS:
        absent = [n for i in range(1, 251) if (n := f"{apparatus}_{i:03d}") not in names]
        if absent:
            known = absent == ["Ball_134"] and "Ball_251" in names
            done = "Ball_251 is there in its place" if known else "no such row"
            data.findings.append(Finding("train.txt, test.txt", f"{', '.join(absent)} is in neither", done, known))
    rows = [(p.id, str(p.split)) for p in data.performances]
    data.splits = [SplitFile("official", "split", rows)]
    data.splits += [
        SplitFile(a.lower(), "split", part) for a in APPARATUS if (part := [r for r in rows if r[0].startswith(a)])
    ]
    return data
