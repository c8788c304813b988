"""MIT-Skate: short programmes cut out of broadcasts of figure skating.

The folder holds `annotations.txt` as MS_LSTM published it (name, total, TES, PCS, first and last frame in the
broadcast; the name is a number and that of the broadcast), and `<name>.mp4` of each, or `<broadcast>.mp4` whole.
"""

from __future__ import annotations

from pathlib import Path

from aqa_shared.datasets.published import About, Finding, Performance, Published, Range
from aqa_shared.datasets.tree import Tree, reading, words

ABOUT = About(
    title="MIT-Skate",
    videos="150 short programmes of 13 broadcasts",
    scores="total, TES, PCS",
    paper="Pirsiavash et al., ECCV 2014; this list: Xu et al., TCSVT 2020, arXiv:1802.02774",
    where="github.com/chmxu/MS_LSTM (data/annotations.txt); videos from YouTube",
    licence="none stated",
    ranges=(Range(low=30.88, high=99.86),),
)

ABOVE_ITS_PARTS = "1_2014_US_Champs_Ladies_Short_Program-cUafO8xqRWA"
"""Its total is a point more than TES + PCS, as published."""


def read(root: Path) -> Published:
    """Every scored programme, in the order of the file. TES + PCS less the total are deductions, whole points."""
    tree = Tree(root)
    path = tree.needed(r".*annotations\.txt", fix=f"take it from {ABOUT.where}")
    data = Published([], [f"{tree.relative(path)}: scores, parts"])
    for number, cells in words(path, columns=6):
        with reading(path, f"row {number}"):
            name = cells[0]
            broadcast = name.split("_", 1)[1]
            total, tes, pcs = map(float, cells[1:4])
            start, end = int(cells[4]), int(cells[5])
            data.performances.append(
                Performance(
                    id=name,
                    **tree.part(name, broadcast, start, end + 1),
                    frames=end + 1 - start,
                    score=total,
                    group=broadcast,
                    columns={"tes": tes, "pcs": pcs, "deductions": round(tes + pcs - total)},
                )
            )
        lost = tes + pcs - total
        if lost < -0.015 or abs(lost - round(lost)) > 0.015:
            where, what = f"{tree.relative(path)}, row {number}", f"TES + PCS less the total are {lost:.2f} points"
            data.findings.append(Finding(where, what, "kept as published", name == ABOVE_ITS_PARTS))
    return data
