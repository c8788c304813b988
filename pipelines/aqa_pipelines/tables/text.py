"""A table's record as Markdown and as CSV: published beside measured, and what is known of the difference."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aqa_shared.errors import UsageError

DIGITS = {"spearman": 3, "kendall": 3, "mae": 2, "rl2_dataset_range": 3, "rl2_test_range": 3, "auc": 3}
NAMES = {
    "spearman": "Spearman", "kendall": "Kendall's τ", "mae": "MAE", "auc": "AUC",
    "rl2_dataset_range": "R-ℓ2 × 100", "rl2_test_range": "R-ℓ2 × 100 over the test range",
}  # fmt: skip
SMALLER_IS_BETTER = ("mae", "rl2_dataset_range", "rl2_test_range")
WIDE = 14
"""Cells of a line; tables with more stand on their side."""


def as_markdown(record: Mapping[str, Any], heading: str = "#") -> str:
    """The table with everything that is known of it; the same record gives the same text."""
    lines = [f"{heading} {record['title']}", "", f"Published: {record['source']}."]
    measures = list(dict.fromkeys(NAMES[c["measure"]] for c in record["columns"]))
    seconds = record["seconds"]
    if seconds:
        lines[-1] += (
            f" Measured on the features {record['features']} by {_machines(record)}, {_time(seconds)} of training."
        )
    lines[-1] += f" {', '.join(measures)}; mean ± deviation over seeds [95 % interval over test videos]."
    if record["reduced"]:
        lines += ["", f"Reduced: {record['reduced']}"]
    lines += ["", *_rows(record), *_protocol(record), *_compared(record)]
    if record.get("cases"):
        lines += ["", "Test videos whose error the last row lessens most, and least:", "", *_cases(record["cases"])]
    if record["differences"]:
        lines += ["", "Known reasons for a difference:", "", *(f"- {reason}" for reason in record["differences"])]
    notes = [f"- {r['name']}: {r['why']}" for r in record["rows"] if r["why"]]
    lacks = _lacking(record)
    if notes or lacks:
        lines += ["", "Rows:", "", *notes, *lacks]
    return "\n".join(lines) + "\n"


def as_csv(record: Mapping[str, Any]) -> str:
    """A row for every row and column of the table."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        [
            *("row", "method", "column", "measure", "x", "series", "published", "end_to_end", "mean", "std", "low"),
            *("high", "within_tolerance", "best_on_validation", "uses_difficulty"),
        ]
    )
    beside = [{"published": {}, "end_to_end": False, "method": r["name"], **r} for r in record["beside"]]
    for row in [*record["rows"], *beside]:
        for column in record["columns"]:
            name = column["name"]
            figure = row["measured"].get(name) or {}
            best = (row.get("best_on_validation", {}).get(name) or {}).get("mean")
            published = row["published"].get(name)
            x = column["x"] if column["x"] is not None else row.get("x")
            ends = figure.get("interval") or (None, None)
            table.writerow(
                [
                    *(row["name"], row["method"], name, column["measure"], x, row.get("series", ""), published),
                    *(row["end_to_end"], figure.get("mean"), figure.get("std"), *ends),
                    *(_within(record, row, name), best, row["uses_difficulty"]),
                ]
            )
    return text.getvalue()


def report(results: Path, beside: Path) -> str:
    """docs/results.md: every table that was measured, from its record; it links pictures from the folder `beside`."""
    records = []
    for file in sorted(results.rglob("*.json")):
        picture = file.with_suffix(".svg")
        drawn = Path(os.path.relpath(picture, beside)).as_posix() if picture.exists() else ""
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as e:
            raise UsageError(f"{file} is damaged: {e}", fix="remove it, or run its aqa table again") from None
        if isinstance(record, dict) and "pipeline" in record:  # else a file of a run
            records.append((record, drawn))
    if not records:
        raise UsageError(f"{results} holds no results", fix="aqa table FILE --features STORE --write " + str(results))
    lines = [
        "# Results",
        "",
        "Written by `aqa results` from the records in `benchmarks/results/tables/`; do not edit. Measured figures are",
        "of the last epoch; no epoch is chosen on test videos. [tables.md](tables.md) explains how to read them.",
        "",
    ]
    records.sort(key=lambda r: (not r[0]["pipeline"].startswith("real/"), r[0]["pipeline"]))
    lines += [*_overview([record for record, _ in records]), ""]
    for record, drawn in records:
        lines += [as_markdown(record, heading="##")]
        if drawn:
            lines += [f"![{record['title']}]({drawn})", ""]
        lines += [f"From `pipelines/{record['pipeline']}.toml`.", ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _overview(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for every table, with the rows of the best mean in each column; of averages where there are some."""
    grid = [["table", "rows", "seeds", "best measured mean"]]
    for record in records:
        measured = sum(1 for row in record["rows"] if row["measured"])
        seeds = {p["seeds"] for p in record["protocol"].values() if p is not None}
        averages = [c for c in record["columns"] if c["average_of"]]
        best = [_best(record, column) for column in averages or record["columns"]]
        title = re.sub(r"([\[\]])", r"\\\1", record["title"])
        link = f"[{title}](#{_anchor(record['title'])})"
        grid.append([link, str(measured), ", ".join(map(str, sorted(seeds))), "; ".join(filter(None, best))])
    return [_line(grid[0]), _line(["---"] * len(grid[0])), *map(_line, grid[1:])]


def _best(record: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    means = {row["name"]: (row["measured"].get(column["name"]) or {}).get("mean") for row in record["rows"]}
    known = {name: mean for name, mean in means.items() if mean is not None}
    if not known:
        return ""
    figures = {name: _number(mean, DIGITS[column["measure"]]) for name, mean in known.items()}
    best = (min if column["measure"] in SMALLER_IS_BETTER else max)(known, key=lambda name: known[name])
    # All that read the same, or the order of rows would decide.
    equal = [name for name, figure in figures.items() if figure == figures[best]]
    return f"{column['name']}: {' and '.join(equal)} {figures[best]}"


def _anchor(title: str) -> str:
    """Where a heading of that text is found, by the rules of GitHub."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _rows(record: Mapping[str, Any]) -> list[str]:
    """Published and measured, and published figures of networks trained end to end in columns of their own."""
    rows, columns = record["rows"], record["columns"]
    frozen, whole, any_best = (
        {
            c["name"]
            for c in columns
            if any(c["name"] in r[kind] and (end is None or r["end_to_end"] == end) for r in rows)
        }
        for kind, end in (("published", False), ("published", True), ("best_on_validation", None))
    )
    difficulty = any(r["uses_difficulty"] for r in [*rows, *record["beside"]])
    header = ["row"]
    for c in columns:
        name = c["name"]
        header += [f"{name}, published"] * (name in frozen)
        header += [f"{name}, published, trained end to end"] * (name in whole)
        header += [f"{name}, measured"]
        header += [f"{name}, best epoch on validation"] * (name in any_best)
    header += ["difficulty"] * difficulty
    grid = [header]
    for row in [*rows, *record["beside"]]:
        if not row["measured"] and not row.get("published") and not row.get("failed"):
            continue  # listed below
        cells = [row["name"]]
        for c in columns:
            name, digits = c["name"], DIGITS[c["measure"]]
            published = row.get("published", {}).get(name)
            text = "" if published is None else f"{published:.{max(digits, _digits(published))}f}"
            own = row.get("end_to_end", False)
            cells += ["" if own else text] * (name in frozen)
            cells += [text if own else ""] * (name in whole)
            cells.append(_measured(record, row, c))
            best = row.get("best_on_validation", {}).get(name)
            cells += ["" if best is None else _number(best["mean"], digits)] * (name in any_best)
        cells += [{True: "used", False: "", None: ""}[row["uses_difficulty"]]] * difficulty
        grid.append(cells)
    if len(header) > WIDE:
        grid = [list(line) for line in zip(*grid, strict=True)]
    return [_line(grid[0]), _line(["---"] * len(grid[0])), *map(_line, grid[1:])]


def _measured(record: Mapping[str, Any], row: Mapping[str, Any], column: Mapping[str, Any]) -> str:
    figure = row["measured"].get(column["name"])
    if (why := row.get("failed", {}).get(column["name"])) is not None:
        return f"failed: {why}"
    if figure is None or figure["mean"] is None:
        return "" if figure is None else "undefined"
    digits = DIGITS[column["measure"]]
    text = _number(figure["mean"], digits)
    if figure["std"] is not None and round(figure["std"], digits) > 0:
        text += f" ± {figure['std']:.{digits}f}"
    if figure["interval"] is not None:
        text += " [" + ", ".join(_number(v, digits) for v in figure["interval"]) + "]"
    if figure.get("defined") is not None and figure["defined"] < figure["of"]:
        text += f" ({figure['defined']} of {figure['of']})"
    within = _within(record, row, column["name"])
    if within is not None:
        text += " ✓" if within else " ≠"
    return text


def _within(record: Mapping[str, Any], row: Mapping[str, Any], column: str) -> bool | None:
    """Whether a figure is as published, within the tolerance; None where that cannot be said."""
    figure, published = row["measured"].get(column), row.get("published", {}).get(column)
    unknown = record["tolerance"] is None or published is None or figure is None or figure["mean"] is None
    return None if unknown or row["end_to_end"] else abs(figure["mean"] - published) <= record["tolerance"]


def _protocol(record: Mapping[str, Any]) -> list[str]:
    said: dict[str, list[str]] = {}
    for name, p in record["protocol"].items():
        if p is None:
            continue
        text = f"{p['labelled']} labelled, {p['unlabelled']} unlabelled, "
        text += f"{p['validation']} validation, " if p["validation"] else ""
        text += f"{p['test']} test videos"
        text += f" in each of {p['folds']} folds ({p['test_all']} in all)" if p["folds"] > 1 else ""
        text += f"; {p['seeds']} seed{'s' if p['seeds'] > 1 else ''}; streams {', '.join(p['streams'])}"
        said.setdefault(text, []).append(name)
    lines = [f"- {'; '.join(names)}: {text}." for text, names in said.items()]
    if record["tolerance"] is not None:
        marks = any(_within(record, r, c["name"]) is not None for r in record["rows"] for c in record["columns"])
        lines += [f"- ✓: within {record['tolerance']:g} of the published figure; ≠: not within it."] * marks
    return ["", *lines] if lines else []


def _compared(record: Mapping[str, Any]) -> list[str]:
    """p values of every row against one, a table for each measure."""
    lines: list[str] = []
    for measure in dict.fromkeys(p["measure"] for p in record["comparisons"]):
        what = f"{NAMES[measure]} compared with `{record['against']}`"
        lines += ["", f"{what}; two-sided p values with Holm's correction over these rows:", ""]
        over = ("p, bootstrap over test videos", "p, Wilcoxon over seeds and folds")
        lines += [_line(["row", "column", "difference", "95 % interval", *over]), _line(["---"] * 6)]
        for p in record["comparisons"]:
            if p["measure"] == measure:
                ends = "" if p["interval"] is None else ", ".join(_number(v, 3) for v in p["interval"])
                values = [_p_value(p[n]) for n in ("bootstrap_holm", "wilcoxon_holm")]
                lines.append(_line([p["a"], p["column"], f"{p['difference']:+.3f}", ends, *values]))
    return lines


def _cases(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(cases[0])
    body = [[c[n] if isinstance(c[n], str) else f"{c[n]:.2f}" for n in names] for c in cases]
    return [_line(names), _line(["---"] * len(names)), *map(_line, body)]


def _lacking(record: Mapping[str, Any]) -> list[str]:
    said: dict[str, list[str]] = {}
    for row in record["rows"]:
        for column, cause in row["lacks"].items():
            said.setdefault(cause, []).append(f"{row['name']} ({column})")
    lines = [f"- not measured, {cause}: {', '.join(where)}" for cause, where in said.items()]
    left = [
        r["name"]
        for r in record["rows"]
        if r["method"] and not r["measured"] and not r["lacks"] and not r.get("failed")
    ]
    return lines + ([f"- not run here: {', '.join(left)}"] if left else [])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"


def _number(value: float | None, digits: int) -> str:
    return "undefined" if value is None else f"{value:.{digits}f}"


def _p_value(value: float | None) -> str:
    return "" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _digits(value: float) -> int:
    """As many as are published."""
    return len(repr(value).partition(".")[2])


def _machines(record: Mapping[str, Any]) -> str:
    return "; ".join(dict.fromkeys(map(_machine, record["environments"])))


def _machine(found: Mapping[str, Any]) -> str:
    device = found["cuda"]["gpu"] if found.get("cuda") and found["device"] != "cpu" else found["device"]
    return f"{device} (torch {found['torch']}, aqa {found['aqa']})"


def _time(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
