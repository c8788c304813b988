"""What a run found: the rows of metrics.json, how sure they are, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqa_shared.console import as_time, counted
from aqa_train import intervals, metrics
from aqa_train.config import OverFolds
from aqa_train.intervals import Interval, Numbers, Resamples
from aqa_train.methods import CONSTANT, LINEAR

MEASURES = ("spearman", "kendall", "mae", "rl2_dataset_range", "rl2_test_range", "auc")
WITH_INTERVAL = ("spearman", "mae", "rl2_dataset_range", "auc")
_RANKS = ("spearman", "kendall")


@dataclass(frozen=True)
class Comparison:
    """The test videos of every fold, in one order for all rows, and draws of them."""

    key: dict[tuple[int, str], int]
    """Place of (fold, id)."""
    true: Numbers
    fold: NDArray[np.int64]
    seeds: tuple[int, ...]
    over_folds: OverFolds
    span: Numbers
    """By video, highest − lowest score, which R-ℓ2 divides by."""
    names: tuple[str, ...]
    """By video, of what is drawn: the video itself, or its group."""
    strata: NDArray[np.int64]
    """By video, within which it is drawn."""
    unit: str
    """What is drawn: `videos` or `groups`."""
    units: int
    draws: Resamples

    @classmethod
    def of(
        cls,
        results: Sequence[Mapping[str, Any]],
        over_folds: OverFolds,
        span: float | Mapping[str, float],
        group: Mapping[str, str],
        rng: np.random.Generator,
    ) -> Comparison:
        """From results with `fold`, `ids` and `true`; `group` by id, "" or missing for a video on its own.

        `span`: highest − lowest score, of all or by id.
        """
        found = {(r["fold"], i): t for r in results for i, t in zip(r["ids"], r["true"], strict=True)}
        names = tuple(f"group {group[i]}" if group.get(i) else f"video {i}" for _, i in found)
        unit = np.unique(np.array(names), return_inverse=True)[1]
        fold = np.array([f for f, _ in found])
        strata = np.zeros_like(fold) if over_folds == "pooled" else fold
        return cls(
            key={k: place for place, k in enumerate(found)},
            true=np.array(list(found.values()), dtype=np.float64),
            fold=fold,
            seeds=tuple(sorted({r["seed"] for r in results})),
            over_folds=over_folds,
            span=np.array([span if isinstance(span, float) else span[i] for _, i in found], dtype=np.float64),
            names=names,
            strata=strata,
            unit="groups" if any(group.values()) else "videos",
            units=int(unit.max(initial=-1)) + 1,
            draws=Resamples.draw(unit, strata, rng),
        )

    def predictions(self, results: Sequence[Mapping[str, Any]], selection: str, what: str = "predicted") -> Numbers:
        """(seeds, videos): what one method predicted, or its `uncertainty`; NaN where there is none."""
        found = np.full((len(self.seeds), len(self.true)), np.nan)
        for r in results:
            if selection in r.get(what, {}):
                places = [self.key[r["fold"], i] for i in r["ids"]]
                found[self.seeds.index(r["seed"]), places] = r[what][selection]
        return found

    def measure(self, predicted: Numbers) -> tuple[dict[str, float | None], dict[str, int]]:
        """The figures of one prediction of every video (NaN: none) over the folds as asked, and of how many folds."""
        found = [self._evaluate(predicted, part) for part in self._parts()]
        values = {name: average(name, [f[name] for f in found]) for name in MEASURES}
        if self.over_folds == "mean":
            return values, {name: sum(f[name] is not None for f in found) for name in MEASURES}
        folds = len(np.unique(self.fold[~np.isnan(predicted)]))
        return values, {name: 0 if value is None else folds for name, value in values.items()}

    def by_draw(self, name: str, predicted: Numbers) -> Numbers:
        """A figure in every draw: the mean over those seeds of `predicted` (seeds, videos) that have one, else 0."""
        return over_seeds(self.by_seed_and_draw(name, predicted))

    def by_seed_and_draw(self, name: str, predicted: Numbers) -> Numbers:
        """(seeds, draws): a figure over the folds; NaN where it is undefined."""
        parts = self._parts()
        return np.stack([self._by_draw(name, p, parts) for p in predicted])

    def by_training(self, name: str, predicted: Numbers) -> Numbers:
        """A figure by seed and fold, in this order, of `predicted` (seeds, videos); NaN where it is undefined."""
        parts = [np.flatnonzero(self.fold == f) for f in np.unique(self.fold)]
        found = [self._evaluate(p, part)[name] for p in predicted for part in parts]
        return np.array([np.nan if v is None else v for v in found], dtype=np.float64)

    def interval(self, name: str, predicted: Numbers, value: float | None) -> Interval | None:
        """Of a figure whose value is `value`."""
        if value is None or not self.draws.tell:
            return None
        if name == "spearman" and abs(value) >= metrics.CLIP:
            return intervals.of_perfect_order(value, self.draws.freedom)
        if name == "auc" and value in (0.0, 1.0):
            return intervals.of_perfect_separation(
                value, float((self.true == self.true.max()).mean()), self.draws.freedom
            )
        return self.draws.interval(self.by_draw(name, predicted))

    @cached_property
    def _two_values(self) -> bool:
        """Of all folds together: any two videos differ in score, and an area under their curve would say nothing."""
        return len(np.unique(self.true)) == 2

    def _parts(self) -> list[NDArray[np.int64]]:
        if self.over_folds == "pooled":
            return [np.arange(len(self.true))]
        return [np.flatnonzero(self.fold == f) for f in np.unique(self.fold)]

    def _evaluate(self, predicted: Numbers, part: NDArray[np.int64]) -> dict[str, float | int | None]:
        part = part[~np.isnan(predicted[part])]
        found = metrics.evaluate(predicted[part], self.true[part], self.span[part])
        if not self._two_values:
            found["auc"] = None
        if self._ranks_nothing(predicted, part):
            found |= dict.fromkeys(_RANKS) | ({} if found["auc"] is None else {"auc": 0.5})
        return found

    def _ranks_nothing(self, predicted: Numbers, part: NDArray[np.int64]) -> bool:
        """Constant within every fold: that the folds' constants differ says nothing about a video."""
        folds = self.fold[part]
        return all(np.ptp(predicted[part][folds == f]) == 0 for f in np.unique(folds))

    def _by_draw(self, name: str, predicted: Numbers, parts: Sequence[NDArray[np.int64]]) -> Numbers:
        found = []
        for part in parts:
            part = part[~np.isnan(predicted[part])]
            p, t, counts = predicted[part], self.true[part], self.draws.counts[:, part]
            no_order = name in ("spearman", "auc") and self._ranks_nothing(predicted, part)
            if not len(part) or (name == "spearman" and no_order) or (name == "auc" and not self._two_values):
                # The figure itself leaves such a fold or seed out.
                found.append(np.full(len(counts), np.nan))
            elif name == "spearman":
                found.append(intervals.spearman(intervals.ranks(p, counts), intervals.ranks(t, counts), counts))
            elif name == "auc":
                found.append(intervals.area_under_curve(intervals.ranks(p, counts) * (not no_order), t, counts))
            else:
                error = np.abs(p - t) if name == "mae" else np.square((p - t) / self.span[part]) * 100
                found.append(intervals.mean(error, counts))
        return average_by_draw(name, found)


def average(measure: str, values: Sequence[float | int | None]) -> float | None:
    """Fisher's mean of correlations, the plain mean of anything else; of those that are defined."""
    return metrics.fisher_mean(values) if measure in _RANKS else metrics.mean_std(values)[0]


def average_of_all(measure: str, values: Sequence[float | int | None]) -> float | None:
    """Over datasets, none of which may lack a figure: it may be the easy one."""
    return None if any(v is None for v in values) else average(measure, values)


def average_by_draw(measure: str, values: Sequence[Numbers]) -> Numbers:
    """`average` for every draw; NaN where nothing is defined."""
    return intervals.fisher_mean(values) if measure in _RANKS else mean_defined(values)


def over_seeds(values: Numbers) -> Numbers:
    """(draws,): the mean of (seeds, draws) over the seeds that have a figure; 0 where none has in any draw."""
    found = mean_defined(values)
    return np.zeros_like(found) if np.isnan(found).all() else found


def mean_defined(values: Sequence[Numbers] | Numbers) -> Numbers:
    """The mean over the first axis of what is defined; NaN where nothing is."""
    stacked = np.asarray(values)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(stacked, axis=0) / (~np.isnan(stacked)).sum(axis=0))


def summarise(results: Sequence[Mapping[str, Any]], tested: Comparison) -> list[dict[str, Any]]:
    """A row a method and selection: a figure a seed, over its folds; then mean and deviation over seeds.

    Undefined values are left out, so every measure says how many of the run's folds × seeds are `defined`.
    `seconds` are those of one training, on average. `interval` is that of the mean over other test videos; `ensemble`
    has the figures of the mean prediction of the seeds; `against` the differences to the baselines, and `verdict` what
    they come to.
    """
    runs = len({(r["fold"], r["seed"]) for r in results})
    rows, drawn = [], []
    for method in dict.fromkeys(r["method"] for r in results):
        mine = [r for r in results if r["method"] == method]
        for selection in dict.fromkeys(s for r in mine for s in r["predicted"]):
            predicted = tested.predictions(mine, selection)
            row: dict[str, Any] = {"method": method, "selection": selection}
            row["uses_difficulty"], row["epochs"] = (mine[0].get(n) for n in ("uses_difficulty", "epochs"))
            row["seeds"], row["folds"] = (len({r[name] for r in mine}) for name in ("seed", "fold"))
            row["seconds"], _ = metrics.mean_std([r["seconds"] for r in mine])
            row["test_videos"] = int((~np.isnan(predicted)).any(axis=0).sum())
            values, defined = zip(*(tested.measure(p) for p in predicted), strict=True)
            for name in MEASURES:
                by_seed = [v[name] for v in values]
                center, deviation = metrics.mean_std(by_seed)
                row[name] = {"mean": center, "std": deviation, "by_seed": by_seed}
                row[name] |= {"defined": sum(d[name] for d in defined), "of": runs}
            together = mean_defined(predicted)
            row["ensemble"] = {name: {"value": v} for name, v in tested.measure(together)[0].items()}
            if (found := _sure(tested, mine, selection, predicted)) is not None:
                row["uncertainty"] = found
            for name in WITH_INTERVAL:
                row[name]["interval"] = tested.interval(name, predicted, row[name]["mean"])
                found = row["ensemble"][name]
                found["interval"] = tested.interval(name, together[None], found["value"])
            rows.append(row)
            drawn.append(predicted)
    _judge(rows, drawn, tested)
    return rows


def _sure(
    tested: Comparison, results: Sequence[Mapping[str, Any]], selection: str, predicted: Numbers
) -> dict[str, Any] | None:
    """How well a method's uncertainty tells its errors, by seed over the test videos of all folds; None without one.

    `kept` is the share of the surest videos that `mae` is of, `best` what it would be were the surest those with the
    smallest errors.
    """
    doubts = tested.predictions(results, selection, "uncertainty")
    known = [~(np.isnan(d) | np.isnan(p)) for d, p in zip(doubts, predicted, strict=True)]
    pairs = [(d[k], np.abs(p - tested.true)[k]) for d, p, k in zip(doubts, predicted, known, strict=True) if k.any()]
    if not pairs:
        return None
    by_seed = [metrics.calibration(u, e) for u, e in pairs]
    center, deviation = metrics.mean_std(by_seed)
    curves = {
        "mae": mean_defined([metrics.selective(u, e) for u, e in pairs]),
        "best": mean_defined([metrics.selective(e, e) for _, e in pairs]),
    }
    return {
        "calibration": {"mean": center, "std": deviation, "by_seed": by_seed, "bins": metrics.BINS},
        "kept": [(i + 1) / metrics.BINS for i in range(metrics.BINS)],
        **{name: [None if np.isnan(v) else float(v) for v in curve] for name, curve in curves.items()},
    }


def _judge(rows: Sequence[dict[str, Any]], predicted: Sequence[Numbers], tested: Comparison) -> None:
    """Add `against` and `verdict` to every row but the mean score's, which ranks nothing."""
    place = {r["method"]: i for i, r in enumerate(rows) if r["selection"] in ("baseline", "last")}
    for row, mine in zip(rows, predicted, strict=True):
        if row["method"] == CONSTANT:
            row["against"], row["verdict"] = {}, None
            continue
        row["against"] = {CONSTANT: {"spearman": _difference(row["spearman"]["mean"], row["spearman"]["interval"])}}
        for name in (CONSTANT, LINEAR):
            if name not in place or row["method"] == name:
                continue
            found = row["against"].setdefault(name, {})
            # Where a fold of this row is missing, the other's counts no more: it may be the easy one.
            theirs = np.where(np.isnan(mine), np.nan, predicted[place[name]])
            measured = [tested.measure(p)[0] for p in theirs]
            for measure in ("mae",) if name == CONSTANT else ("spearman", "mae"):
                other, _ = metrics.mean_std([m[measure] for m in measured])
                value = (row[measure]["mean"] or 0.0) - (other or 0.0)
                interval = None
                if tested.draws.tell:
                    a, b = (tested.by_draw(measure, p) for p in (mine, theirs))
                    interval = tested.draws.interval(a - b)
                found[measure] = _difference(value, interval)
        row["verdict"] = _verdict(row["against"], tested)


def _difference(value: float | None, interval: Interval | None) -> dict[str, Any]:
    return {"difference": value, "interval": interval}


def _verdict(against: Mapping[str, Any], tested: Comparison) -> str:
    n = f"(n={tested.units}{' groups' if tested.unit == 'groups' else ''})"
    if not tested.draws.tell:
        return f"too few test {tested.unit} to tell {n.replace(' groups', '')}"
    words = []
    for name, found in against.items():
        value, interval = found["spearman"]["difference"], found["spearman"]["interval"]
        named = name if name == LINEAR else f"the {name.replace('-', ' ')}"
        if interval is not None and interval[0] > 0:
            words.append(f"beats {named}")
            continue
        surely_not = value is None or value <= 0
        words.append(f"does not beat {named}" if surely_not else f"cannot be told from {named} {n}")
        break
    # Who beats ridge beats the mean score: the last word says both.
    text = words[-1] if words[-1].startswith("beats") else ", ".join(words)
    errors = against[CONSTANT].get("mae", {}).get("interval")
    if errors is not None and errors[0] > 0:
        text += f"; its errors are larger than the {CONSTANT.replace('-', ' ')}'s"
    return text


def as_text(summary: Mapping[str, Any]) -> str:
    """The rows of metrics.json as a table, and the verdicts below it; as wide as it is, since a result is never cut."""
    p, rows = summary["protocol"], summary["rows"]
    title = "+".join(p["streams"]).replace("_", "-")
    title += f": {p['labelled']} labelled, {p['unlabelled']} unlabelled, {p['test']} test videos; "
    title += counted(p["seeds"], "seed")
    if p["folds"] > 1:
        how = {"pooled": "pooled", "mean": "averaged"}[p["over_folds"]]
        title += f" × {p['folds']} folds, {how}: {p['test_all']} test videos in all"
    epoch = {"last": "last", "best-on-validation": "best on val.", "baseline": "–"}
    # Of exercises done right or wrong, the area under the curve says more than errors.
    two_values = ["AUC"] * any(r["auc"]["mean"] is not None for r in rows)
    table = [["method", "epoch", "Spearman", *two_values, "MAE", "R-ℓ2 ×100"]]
    difficulty = any(r["uses_difficulty"] for r in rows)
    table[0] += [*(["difficulty"] * difficulty), "time"]
    for r in rows:
        cells = [_cell(r["spearman"], 3, spread=True), *(_cell(r["auc"], 3, spread=True) for _ in two_values)]
        cells += [_cell(r["mae"], 2), _cell(r["rl2_dataset_range"], 2)]
        cells += [*(["used" if r["uses_difficulty"] else "–"] * difficulty), _time(r["seconds"])]
        table.append([r["method"], "–" if r["epochs"] == 0 else epoch[r["selection"]], *cells])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["   ".join([c.ljust(w) for c, w in zip(row, widths, strict=True)]).rstrip() for row in table]
    lines.insert(1, "─" * (sum(widths) + 3 * (len(widths) - 1)))
    legend = ["time: of one training"]
    if any(_varies(r["spearman"], 3) for r in rows):
        legend.append("± deviation over seeds")
    if any(r[m]["interval"] for r in rows for m in WITH_INTERVAL):
        legend.append(f"[{p['interval']['level']:.0%} interval over test {p['interval']['of']}]")
    named = {"best-on-validation": " (best on val.)"}
    verdicts = [f"{r['method']}{named.get(r['selection'], '')}: {r['verdict']}" for r in rows if r["verdict"]]
    for r in rows:
        if (sure := r.get("uncertainty")) is not None and (tau := sure["calibration"]["mean"]) is not None:
            verdicts.append(f"{r['method']}: its uncertainty ranks its errors by τ = {tau:.2f} ({metrics.BINS} bins)")
    left = [f"{r['method']} {'failed' if r['failed'] else 'is left out'}: {r['why']}" for r in summary["left_out"]]
    return "\n".join([title, "", *lines, "", "   ".join(legend), "", *verdicts, *([""] if left else []), *left])


def _time(seconds: float) -> str:
    return as_time(seconds) if seconds >= 9.5 else f"{seconds:.2g} s" if seconds >= 0.01 else "< 0.01 s"


def _varies(value: Mapping[str, Any], digits: int) -> bool:
    """Whether seeds differ: `± 0.000` beside what no seed changes, as ridge, would look like certainty."""
    return value["std"] is not None and round(value["std"], digits) > 0


def _cell(value: Mapping[str, Any], digits: int, *, spread: bool = False) -> str:
    if value["mean"] is None:
        return "–"
    text = f"{value['mean']:.{digits}f}"
    if spread and _varies(value, digits):
        text += f" ± {value['std']:.{digits}f}"
    if value["interval"] is not None:
        text += " [" + ", ".join(f"{v:.{digits}f}" for v in value["interval"]) + "]"
    return text if value["defined"] == value["of"] else f"{text} ({value['defined']} of {value['of']})"
