"""Published beside measured: one record of a table, from the run folders of its cells."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aqa_pipelines.tables.plan import TablePlan, TableRun
from aqa_pipelines.tables.record import PaperTable, TableColumn, TableRow
from aqa_train import metrics, protocol
from aqa_train.checkpoint import read_json
from aqa_train.comparisons import Figures, Pair, Predictions, corrected
from aqa_train.intervals import Interval
from aqa_train.method_settings import training_of
from aqa_train.predict import load_checkpoint
from aqa_train.summary import WITH_INTERVAL, average_of_all

BEST = "best-on-validation"
BF16 = "Networks are computed in bfloat16, which the paper does not say of its own."
ENVIRONMENT = ("python", "platform", "device", "aqa", "torch", "cuda")


def measure(plan: TablePlan, name: str, out: Path) -> dict[str, Any]:
    """The record of a table: rows with published and measured figures, trivial rows, comparisons, what was run."""
    table = plan.table
    runs = {(s.row.name, s.column.name): one for one in plan.works for s in one.spots}
    # Of a run that lacks something now, what it measured before was of other features.
    read = {one.name: None if one.arranged is None else _summary(one, out) for one in plan.works}
    found = {key: read[one.name] for key, one in runs.items()}
    predicted = _Predicted(plan, out, found)
    rows = [_row(table, row, found, runs, predicted) for row in table.rows]
    return {
        "pipeline": name,
        **table.model_dump(include={"title", "source", "dataset", "kind", "tolerance", "reduced"}),
        "differences": [
            *table.differences,
            *([BF16] if table.run.get("precision") == "bf16" else []),
            *_scaled(table, runs),
            *_on_fewer_videos(table, found),
        ],
        "against": table.against,
        "columns": [
            {"name": c.name, "measure": table.measure_of(c), "x": c.x, "average_of": c.average_of}
            for c in table.columns
        ],
        "rows": rows,
        "beside": _beside(table, found),
        "comparisons": _comparisons(table, predicted),
        "protocol": {c.name: _protocol(table, c, found) for c in table.columns if not c.average_of},
        "seconds": round(sum(s["protocol"]["seconds"] for s in read.values() if s is not None), 1),
        "environments": _environments(plan, out),
    }


def _environments(plan: TablePlan, out: Path) -> list[dict[str, Any]]:
    """Where the runs were begun, each once."""
    files = [out / one.name / "environment.json" for one in plan.works if one.arranged is not None]
    fix = "restore it, or remove the folder: the same command trains it again"
    found = [read_json(file, fix) for file in files if file.exists()]
    kept = [{k: v for k, v in one.items() if k in ENVIRONMENT} for one in found]
    return [one for n, one in enumerate(kept) if one not in kept[:n]]


def _summary(one: TableRun, out: Path) -> dict[str, Any] | None:
    """metrics.json of a run, where it is done."""
    file = out / one.name / "metrics.json"
    return json.loads(file.read_text()) if file.exists() else None


def _row(
    table: PaperTable,
    row: TableRow,
    found: Mapping[tuple[str, str], dict[str, Any] | None],
    runs: Mapping[tuple[str, str], TableRun],
    predicted: _Predicted,
) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    best: dict[str, Any] = {}
    lacks: dict[str, str] = {}
    failed: dict[str, str] = {}
    difficulty = None
    for column in table.columns:
        key = row.name, column.name
        if (one := runs.get(key)) is not None and one.lacks is not None:
            # Results travel, and where the store lay does not matter elsewhere.
            lacks[column.name] = one.lacks.cause.replace(one.config.features, Path(one.config.features).name)
        if one is not None and one.failed is not None:
            failed[column.name] = one.failed.cause
        if (summary := found.get(key)) is None:
            continue
        for mine in summary["rows"]:
            if mine["method"] != row.method:
                continue
            kept = best if mine["selection"] == BEST else measured
            kept[column.name] = _figure(mine, table.measure_of(column))
            difficulty = mine["uses_difficulty"]
    for kept in (measured, best):
        _average(table, kept)
    for column in table.columns:
        if column.average_of and column.name in measured:
            measured[column.name]["interval"] = predicted.interval(row, column)
    return {
        "name": row.name,
        "method": row.method,
        **row.model_dump(include={"settings", "source", "end_to_end", "why", "x", "series", "published"}),
        "uses_difficulty": difficulty,
        "measured": measured,
        "best_on_validation": best,
        "lacks": lacks,
        "failed": failed,
    }


def _figure(row: Mapping[str, Any], measure: str) -> dict[str, Any]:
    """`interval` is over test videos, where there is one."""
    return {k: row[measure].get(k) for k in ("mean", "std", "interval", "by_seed", "defined", "of")}


def _average(table: PaperTable, measured: dict[str, Any]) -> None:
    """Fill in the columns that average others, by seed first."""
    for column in table.columns:
        parts = [measured.get(name) for name in column.average_of]
        if not parts or any(p is None or p["mean"] is None for p in parts):
            continue
        measure, seeds = table.measure_of(column), [p["by_seed"] for p in parts if p is not None]
        if len({len(one) for one in seeds}) > 1:
            continue  # which seeds are lacking is not known here
        by_seed = [average_of_all(measure, values) for values in zip(*seeds, strict=True)]
        mean, std = metrics.mean_std(by_seed)
        measured[column.name] = {"mean": mean, "std": std, "interval": None, "by_seed": by_seed}


def _first_of(column: TableColumn, found: Mapping[tuple[str, str], dict[str, Any] | None]) -> dict[str, Any] | None:
    return next((s for (_, c), s in found.items() if c == column.name and s is not None), None)


def _beside(table: PaperTable, found: Mapping[tuple[str, str], dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The trivial rows, which every run has on its own splits: those of a column's first run."""
    own = {row.method for row in table.rows}
    rows: dict[str, dict[str, Any]] = {}
    for column in table.columns:
        summary = _first_of(column, found)
        for mine in summary["rows"] if summary is not None else ():
            if mine["selection"] == "baseline" and mine["method"] not in own:
                row = rows.setdefault(mine["method"], {"uses_difficulty": mine["uses_difficulty"], "measured": {}})
                row["measured"][column.name] = _figure(mine, table.measure_of(column))
    for row in rows.values():
        _average(table, row["measured"])
    return [{"name": name, **row} for name, row in rows.items()]


def _on_fewer_videos(table: PaperTable, found: Mapping[tuple[str, str], dict[str, Any] | None]) -> list[str]:
    """The cells that are not about all test videos of their column."""
    said = []
    for column in table.columns:
        tested = {r: s["protocol"]["test_all"] for (r, c), s in found.items() if c == column.name and s is not None}
        most = max(tested.values(), default=0)
        said += [
            f"{row} ({column.name}) is tested on {number} of {most} videos: the rest lack a stream that it reads."
            for row, number in tested.items()
            if number < most
        ]
    return said


def _protocol(
    table: PaperTable, column: TableColumn, found: Mapping[tuple[str, str], dict[str, Any] | None]
) -> dict[str, Any] | None:
    """Who trained and was tested in a column's runs."""
    summary = _first_of(column, found)
    if summary is None:
        return None
    names = ("streams", "videos", "labelled", "unlabelled", "validation", "test", "test_all", "folds", "seeds")
    return {name: summary["protocol"][name] for name in names}


class _Predicted:
    """What the rows that are done predicted in every column, read once."""

    def __init__(self, plan: TablePlan, out: Path, found: Mapping[tuple[str, str], dict[str, Any] | None]) -> None:
        self.table, self.out = plan.table, out
        self.runs: dict[str, dict[str, TableRun]] = {}
        for one in plan.ready:
            for spot in one.spots:
                if found[spot.row.name, spot.column.name] is not None:
                    self.runs.setdefault(spot.column.name, {})[spot.row.name] = one
        self.known: dict[str, Predictions] = {}
        self.drawn: dict[str, Figures] = {}

    def of(self, column: TableColumn) -> Figures | None:
        """Of the columns that it averages, or of itself, drawn once; None where no row is done in one.

        In the column's measure, or one that has no intervals: in Spearman.
        """
        names, measure = column.average_of or (column.name,), self.table.measure_of(column)
        if not all(name in self.runs for name in names):
            return None
        if column.name not in self.drawn:
            named = measure if measure in WITH_INTERVAL else "spearman"
            self.drawn[column.name] = Figures([self._column(name) for name in names], named)
        return self.drawn[column.name]

    def interval(self, row: TableRow, column: TableColumn) -> Interval | None:
        """Of a row's average."""
        figures = self.of(column)
        if figures is None or figures.measure != self.table.measure_of(column):
            return None
        return figures.interval(row.name) if all(row.name in one.by_row for one in figures.sets) else None

    def _column(self, column: str) -> Predictions:
        if column not in self.known:
            results = {row: _results(one, self.out) for row, one in self.runs[column].items()}
            every = [one.experiment for one in self.runs[column].values()]
            # A row may have videos that the first lacks, whose streams are others.
            tested = protocol.comparison(
                every[0].config, [e.features for e in every], [r for own in results.values() for r in own]
            )
            self.known[column] = Predictions(
                tested, {row: tested.predictions(own, "last") for row, own in results.items()}
            )
        return self.known[column]


def _scaled(table: PaperTable, runs: Mapping[tuple[str, str], TableRun]) -> list[str]:
    """Which rows read scaled features; where a row does so in some columns only, these say it."""
    kinds: dict[str, set[str]] = {}
    for (row, _), one in runs.items():
        kinds.setdefault(row, set()).add(training_of(one.config, one.config.methods[0]).standardise)
    found = []
    for kind, said in {"z-score": "z-scored", "centre": "centred"}.items():
        names = [row.name for row in table.rows if kinds.get(row.name) == {kind}]
        if names:
            which = "all rows" if len(names) == len(kinds) else ", ".join(names)
            found.append(f"Features are {said} for {which} (`standardise`; docs/methods/supervised.md).")
    return found


def _comparisons(table: PaperTable, predicted: _Predicted) -> list[dict[str, Any]]:
    """Every measured row beside the one of `against`, column by column, or where columns are averaged, their average.

    Holm's correction is over all of a measure.
    """
    if table.against is None:
        return []
    pairs: list[tuple[str, Pair]] = []
    for column in [c for c in table.columns if c.average_of] or table.columns:
        here = predicted.of(column)
        if here is not None and all(table.against in one.by_row for one in here.sets):
            pairs += [(column.name, pair) for pair in here.pairs(table.against)]
    records = []
    for what in dict.fromkeys(pair.measure for _, pair in pairs):
        mine = [(name, pair) for name, pair in pairs if pair.measure == what]
        for (where, _), pair in zip(mine, corrected([p for _, p in mine]), strict=True):
            records.append({"column": where, **asdict(_turned(pair, table.against))})
    return records


def _turned(pair: Pair, against: str) -> Pair:
    """The pair as other row − `against`."""
    if pair.a != against or pair.difference is None:
        return pair
    ends = None if pair.interval is None else (-pair.interval[1], -pair.interval[0])
    return replace(pair, a=pair.b, b=pair.a, difference=-pair.difference, interval=ends)


def _results(one: TableRun, out: Path) -> list[dict[str, Any]]:
    """What a run predicted of its last epochs, as results of trainings."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    with (out / one.name / "predictions.csv").open(newline="", encoding="utf-8") as file:
        for r in csv.DictReader(file):
            if r["method"] != one.config.methods[0] or r["selection"] != "last":
                continue
            fold, seed = int(r["fold"]), int(r["seed"])
            mine = found.setdefault(
                (fold, seed), {"fold": fold, "seed": seed, "ids": [], "true": [], "predicted": {"last": []}}
            )
            mine["ids"].append(r["id"])
            mine["true"].append(float(r["true"]))
            mine["predicted"]["last"].append(float(r["predicted"]))
    return list(found.values())


def cases(plan: TablePlan, out: Path, number: int = 3) -> list[dict[str, Any]]:
    """Test videos by how much smaller the last row's error is than the first's: the `number` at either end.

    Of the first column; errors of the mean prediction over seeds.
    """
    column = plan.table.columns[0].name
    rows = [one for one in plan.ready for s in one.spots if s.column.name == column]
    sides = []
    for one in (rows[0], rows[-1]) if len(rows) > 1 else ():
        values: dict[str, list[float]] = {}
        true: dict[str, float] = {}
        for r in _results(one, out):
            for i, t, p in zip(r["ids"], r["true"], r["predicted"]["last"], strict=True):
                values.setdefault(i, []).append(p)
                true[i] = t
        sides.append({i: float(np.mean(v)) for i, v in values.items()})
    if not sides:
        return []
    names = [rows[0].spots[0].row.name, rows[-1].spots[0].row.name]
    gain = {i: abs(sides[0][i] - true[i]) - abs(sides[1][i] - true[i]) for i in sides[0] if i in sides[1]}
    order = sorted(gain, key=lambda i: -gain[i])
    shown: Sequence[str] = order if len(order) <= 2 * number else [*order[:number], *order[-number:]]
    return [
        {"id": i, "true": true[i], **{name: side[i] for name, side in zip(names, sides, strict=True)}, "gain": gain[i]}
        for i in shown
    ]


def embedding(plan: TablePlan, out: Path) -> dict[str, list[dict[str, Any]]]:
    """By row, where its first network places the unlabelled videos: f of S4AQA, in two dimensions by t-SNE."""
    from sklearn.manifold import TSNE

    found: dict[str, list[dict[str, Any]]] = {}
    cpu = torch.device("cpu")
    for one in plan.ready:
        experiment = one.experiment
        split = experiment.splits[0]
        features = experiment.features
        rows = protocol.rows_of(features, split.unlabelled)
        folder = out / one.name / "models" / one.config.methods[0] / f"fold{split.fold}-seed{split.seed}"
        model = load_checkpoint(folder)
        network: Any = model.network
        read = model.seen(features.select(list(model.inputs.streams))).on(cpu)
        with torch.no_grad():
            parts = [read.load(part, cpu) for part in read.parts(rows)]
            f = np.concatenate([torch.cat(network.summaries(b.streams, b.present), dim=1).numpy() for b in parts])
        places = TSNE(perplexity=min(30.0, (len(f) - 1) / 3), random_state=0).fit_transform(f)
        scores = features.column("score").astype(np.float64)[rows]
        found[one.spots[0].row.name] = [
            {"id": features.ids[r], "x": float(x), "y": float(y), "score": None if np.isnan(s) else float(s)}
            for r, (x, y), s in zip(rows, places, scores, strict=True)
        ]
    return found
