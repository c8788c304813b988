"""Fis-V: short programmes of ladies' figure skating, scored for elements (TES) and components (PCS).

The folder holds `fs_dataset.csv` (number, total, TES, PCS, deductions, name, year, competition; empty rows end it),
`train_dataset.txt` and `test_dataset.txt` (number, TES, PCS, deductions), and `<number>.mp4`.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

from aqa_shared.datasets.published import About, Finding, Performance, Published, Range, SplitFile
from aqa_shared.datasets.tree import Tree, reading, words
from aqa_shared.manifest_text import decode_table

ABOUT = About(
    title="Fis-V",
    videos="500 short programmes (400 train, 100 test)",
    scores="total, TES, PCS, deductions",
    paper="Xu et al., TCSVT 2020, arXiv:1802.02774",
    where="github.com/chmxu/MS_LSTM (data); videos from Google Drive, linked there",
    licence="none stated",
    ranges=(
        Range(low=16.81, high=80.75),
        Range(low=6.33, high=42.81, column="tes"),
        Range(low=10.48, high=38.28, column="pcs"),
    ),
)

# Rows whose total is not TES + PCS − deductions, as published: most are typing errors of the total.
BREAK_THE_RULE = frozenset({19, 69, 90, 254, 257, 258, 300, 320, 423, 445, 452, 458, 472, 498})


def read(root: Path) -> Published:
    """Every scored programme, by its number."""
    tree = Tree(root)
    path = tree.needed(r".*fs_dataset\.csv", fix=f"take it from {ABOUT.where}")
    data = Published([], [f"{tree.relative(path)}: scores"])
    data.splits = _split(tree, data)
    roles = data.roles
    for number, cells in enumerate(csv.reader(io.StringIO(decode_table(path), newline="")), 1):
        if number == 1 or not any(cells[1:]):
            continue
        with reading(path, f"row {number}"):
            name = str(int(cells[0]))
            total, tes, pcs, deductions = map(float, cells[1:5])
            data.performances.append(
                Performance(
                    id=name,
                    **tree.media(name).fields(),
                    score=total,
                    split=roles.get(name),
                    group=f"{cells[7]} {cells[6]}".strip() or None,
                    columns={"tes": tes, "pcs": pcs, "deductions": deductions, "skater": cells[5]},
                )
            )
        rule = round(tes + pcs - deductions, 2)
        if abs(rule - total) > 0.011:
            where, what = (
                f"{tree.relative(path)}, row {number}",
                f"the total is {total:g}, TES + PCS − deductions {rule:g}",
            )
            known = int(name) in BREAK_THE_RULE
            data.findings.append(Finding(where, what, "kept as published; tes and pcs are columns", known))
    return data


def _split(tree: Tree, data: Published) -> list[SplitFile]:
    rows = []
    for role in ("train", "test"):
        path = tree.first(rf"{role}_dataset\.txt")
        if path is None:
            data.findings.append(
                Finding(str(tree.root), f"no {role}_dataset.txt", f"no split is known; take it from {ABOUT.where}")
            )
            return []
        data.sources.append(f"{tree.relative(path)}: split")
        rows += [(cells[0], role) for _, cells in words(path, columns=4)]
    return [SplitFile("official", "split", rows)]
