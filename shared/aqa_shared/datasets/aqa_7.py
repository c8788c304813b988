"""AQA-7: six sports of one official split: diving, vault, big air on skis and snowboard, synchronised diving.

The folder holds `split_4_train_list.mat` and `split_4_test_list.mat`
(rows [sport 1 … 7, number, score]) and `<sport>/001.avi`, or pictures `<sport>-out/001/img_00001.jpg`, 103 of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aqa_shared.datasets.published import About, Finding, Performance, Published, Range, SplitFile
from aqa_shared.datasets.tree import Tree, reading
from aqa_shared.errors import UsageError
from aqa_shared.pickles import refuse_large

# What public code rescales to 0 … 100 by; the extremes of test videos are among them.
RANGES = {
    "diving": (21.6, 102.6),
    "gym_vault": (12.3, 16.87),
    "ski_big_air": (8.0, 50.0),
    "snowboard_big_air": (8.0, 50.0),
    "sync_diving_3m": (46.2, 104.88),
    "sync_diving_10m": (49.8, 99.36),
}

ABOUT = About(
    title="AQA-7",
    videos="1106 performances of six sports (803 train, 303 test)",
    scores="final score",
    paper="Parmar and Morris, WACV 2019, arXiv:1812.06367",
    where="rtis.oit.unlv.edu/datasets.html",
    licence="none stated",
    ranges=tuple(Range(low=low, high=high, category=sport) for sport, (low, high) in RANGES.items()),
)

SPORTS = (
    "diving",
    "gym_vault",
    "ski_big_air",
    "snowboard_big_air",
    "sync_diving_3m",
    "sync_diving_10m",
    "trampoline",
)
"""By number, from 1; the published split has no trampoline."""
FRAMES = 103


def read(root: Path) -> Published:
    """Every scored performance: the training list, then the test list."""
    tree = Tree(root)
    data = Published([], [])
    rows: list[tuple[str, str]] = []
    for role in ("train", "test"):
        path = tree.needed(rf"split_4_{role}_list\.mat", fix=f"take the folder Split_4 of AQA-7 from {ABOUT.where}")
        data.sources.append(f"{tree.relative(path)}: scores, split")
        for number, row in enumerate(_matrix(path, f"consolidated_{role}_list"), 1):
            with reading(path, f"row {number}"):
                performance = _performance(tree, row, role)
            sport = str(performance.category)
            score = performance.score or 0.0
            rows.append((performance.id, role))
            low, high = RANGES.get(sport, (-float("inf"), float("inf")))
            if not low <= score <= high:
                data.findings.append(
                    Finding(performance.id, f"score {score:g}, outside of {low:g} … {high:g}", "kept as published")
                )
            data.performances.append(performance)
    data.splits = [SplitFile("official", "split", rows)]
    data.splits += [SplitFile(s, "split", part) for s in SPORTS if (part := [r for r in rows if r[0].startswith(s)])]
    return data


def _performance(tree: Tree, row: Any, role: str) -> Performance:
    kind, number = int(row[0]), int(row[1])
    if not 1 <= kind <= len(SPORTS) or (kind, number) != (row[0], row[1]):
        raise ValueError(f"sport and number are {row[0]:g} and {row[1]:g}, expected whole ones, the sport in 1 … 7")
    sport = SPORTS[kind - 1]
    place = tree.media(f"{sport}/{number:03d}", f"{sport}-out/{number:03d}", suffix=".avi")
    return Performance(
        id=f"{sport}/{number:03d}",
        **place.fields(),
        frames=FRAMES if place.pictures is not None else None,
        score=row[2],
        split=role,
        category=sport,
    )


def _matrix(path: Path, name: str) -> Any:
    """The (rows, 3 or more) matrix of a MATLAB file. Raises UsageError for anything else."""
    from scipy.io import loadmat

    refuse_large(path)
    try:
        matrix = loadmat(path, variable_names=[name])[name]
    except KeyError:
        raise UsageError(f"{path}: no variable {name}", fix="take the file as it is published") from None
    except Exception as e:
        # Damaged files raise nearly anything.
        raise UsageError(f"{path} is not a MATLAB file of version 5: {e}"[:300], fix="download it again") from None
    if matrix.ndim != 2 or matrix.shape[1] < 3 or matrix.dtype.kind not in "fiu":
        raise UsageError(
            f"{path}: {name} is {matrix.dtype} {matrix.shape}, expected numbers of (rows, 3)",
            fix="take the file as it is published",
        )
    return matrix
