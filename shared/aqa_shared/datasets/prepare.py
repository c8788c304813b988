"""A published dataset as the tables that the two stages read."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from aqa_shared.datasets import about, read
from aqa_shared.datasets.check import findings
from aqa_shared.datasets.published import About, Performance, Published
from aqa_shared.errors import UsageError
from aqa_shared.files import replace_text, replacing

FIELDS = ("id", "path", "start", "end", "score", "difficulty", "split", "category", "group")


def prepare(name: str, root: Path, out: Path) -> Published:
    """Write what `aqa-extract` and `aqa-train` read into `out`, and return what was read.

    - `manifest.csv`: a row a performance; `labels.csv`, without paths, where the dataset has no videos. Lists (marks,
      commentary) are JSON in a cell;
    - `splits/*.csv`: the published splits (`--split`);
    - `pairs.csv`, where the dataset is one of comparisons: better, worse, and the role in each split of the pairs;
    - `sequences/*.npy`, where signals come with it: (time, channels) a performance;
    - `dataset.json`: what it is, the range of its scores, what was read, and what is wrong in the files.
    """
    what, data = about(name), read(name, root)
    if not data.performances:
        raise UsageError(
            f"{root}: the files of {what.title} name no performance", fix="take them as they are published"
        )
    try:
        (out / "splits").mkdir(parents=True, exist_ok=True)
        videos = any(p.path is not None for p in data.performances)
        _write(out / ("manifest.csv" if videos else "labels.csv"), _rows(data.performances, what, root, out))
        for split in data.splits:
            file_name = re.sub(r"[^\w.-]", "_", split.name) + ".csv"
            _write(out / "splits" / file_name, [{"id": i, split.column: value} for i, value in split.rows])
        if data.pairs:
            _write(out / "pairs.csv", _pairs(data))
        if data.sequences is not None:
            (out / "sequences").mkdir(exist_ok=True)
            for i, values in data.sequences():
                with replacing(out / "sequences" / f"{i}.npy") as partial, partial.open("wb") as file:
                    np.save(file, values)
        replace_text(out / "dataset.json", json.dumps(_record(name, what, data), indent=1, ensure_ascii=False) + "\n")
    except OSError as e:
        raise UsageError(f"cannot write {e.filename or out}: {e.strerror}", fix="choose another --out") from e
    return data


def _rows(performances: Iterable[Performance], what: About, root: Path, out: Path) -> list[dict[str, Any]]:
    rows = []
    for p in performances:
        row: dict[str, Any] = {field: getattr(p, field) for field in FIELDS}
        if p.path is not None:
            row["path"] = _from(out, root / p.path)
        if p.pictures is not None:
            row["fps"] = what.fps
        rows.append({**row, **p.columns})
    return rows


def _from(folder: Path, path: Path) -> str:
    """`path` relative to `folder`, so that both can be moved together."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return str(path.absolute())


def _pairs(data: Published) -> list[dict[str, Any]]:
    rows = []
    for pair in data.pairs:
        roles = {f"split_{number}": role for number, role in sorted(pair.roles.items())}
        rows.append({"better": pair.better, "worse": pair.worse, "category": pair.category, **roles})
    return rows


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV of the columns that any row fills."""
    columns = list(dict.fromkeys(column for row in rows for column, value in row.items() if value is not None))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    replace_text(path, text.getvalue())


def _cell(value: Any) -> Any:
    """Lists, objects and truth values as JSON, numbers and texts as they are."""
    if isinstance(value, list | dict | bool):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return "" if value is None else value


def _record(name: str, what: About, data: Published) -> dict[str, Any]:
    return {
        "name": name,
        **what.model_dump(exclude_none=True),
        "performances": len(data.performances),
        "split": dict(Counter(p.split or "" for p in data.performances)),
        "read": data.sources,
        "findings": [{"where": f.where, "what": f.what, "done": f.done, "known": f.known} for f in findings(data)],
    }
