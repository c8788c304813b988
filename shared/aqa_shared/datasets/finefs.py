"""FineFS: figure skating, short programmes (0 … 728) and free skating (729 … 1166), scored by element.

The folder holds `annotation/<number>.json` and `video/<number>.mp4` at 25 frames a second. The paper splits 583/146
and 350/88; no list of it was published, so there is no split file.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from aqa_shared.datasets.published import About, Finding, Performance, Published, Range
from aqa_shared.datasets.tree import Tree, reading
from aqa_shared.errors import NoInputError, UsageError

ABOUT = About(
    title="FineFS",
    videos="1167 programmes: 729 short (SP), 438 free (FS)",
    scores="segment score, TES, PCS, deductions; elements with marks and times",
    paper="Ji et al., ACM MM 2023, doi:10.1145/3581783.3613795",
    where="github.com/yanliji/FineFS-dataset (Baidu)",
    licence="none stated",
    ranges=(
        Range(low=16.68, high=65.98, category="SP", column="tes"),
        Range(low=30.37, high=129.14, category="FS", column="tes"),
    ),
)

SHORT = 729
"""Numbers below are short programmes."""
ROUNDING = 0.02


def read(root: Path) -> Published:
    """Every programme, by its number."""
    tree = Tree(root)
    files = sorted(tree.files(r"\d+\.json"), key=lambda path: int(path.stem))
    if not files:
        raise NoInputError(
            f"{root}: no annotation/<number>.json in it or below", fix=f"take the folder annotation from {ABOUT.where}"
        )
    data = Published([], [f"{tree.relative(files[0].parent) or '.'}/*.json: {len(files)} files"])
    for path in files:
        entry = _json(path)
        with reading(path, "its values"):
            name = path.stem
            tes, pcs = float(entry["total_element_score"]), float(entry["total_program_component_score(factored)"])
            total, deductions = float(entry["total_segment_score"]), abs(float(entry["deductions"]))
            elements = [_element(e) for e in entry["executed_element"].values()]
            data.performances.append(
                Performance(
                    id=name,
                    **tree.media(f"video/{name}", name).fields(),
                    score=total,
                    category="SP" if int(name) < SHORT else "FS",
                    group=str(entry["competition"]),
                    columns={
                        "tes": tes,
                        "pcs": pcs,
                        "deductions": deductions,
                        "factor": float(entry["factor"]),
                        "components": [float(c) for c in entry["component_score_not_factored"]],
                        "elements": elements,
                    },
                )
            )
            rules = (
                ("the segment score", total, "TES + PCS − deductions", tes + pcs - deductions),
                ("TES", tes, "the sum of element_score", sum(map(float, entry["element_score"]))),
            )
        for what, said, rule, made in rules:
            if abs(said - made) > ROUNDING:
                data.findings.append(
                    Finding(tree.relative(path), f"{what} is {said:g}, {rule} {made:.2f}", "kept as published")
                )
    return data


def _json(path: Path) -> dict[str, Any]:
    try:
        entry = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as e:
        raise UsageError(f"{path}: {e}", fix="take the file as it is published") from None
    if not isinstance(entry, dict):
        raise UsageError(
            f"{path} holds a {type(entry).__name__}, not an object", fix="take the file as it is published"
        )
    return entry


def _element(entry: dict[str, Any]) -> dict[str, Any]:
    """One element with its marks, and its time in seconds where that can be read (`1-05,1-09` is 65 to 69)."""
    found = re.fullmatch(r"\s*(\d+)-(\d+)\s*,\s*(\d+)-(\d+)\s*", str(entry.get("time", "")))
    times = {} if found is None else {
        "start": int(found[1]) * 60 + int(found[2]), "end": int(found[3]) * 60 + int(found[4])
    }  # fmt: skip
    return {
        "element": entry["element"],
        "class": entry["coarse_class"],
        "base_value": entry["bv"],
        "goe": entry["goe"],
        "marks": entry["judge_score"],
        "score": entry["score_of_panel"],
        **times,
    }
