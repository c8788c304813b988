"""The run folder: what was run, on what, with what result."""

from __future__ import annotations

import csv
import json
import platform
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from aqa_shared.errors import UsageError
from aqa_shared.files import replacing
from aqa_train.checkpoint import writing
from aqa_train.config import RunConfig, as_toml, spelt_out
from aqa_train.experiment import Experiment, write_json
from aqa_train.metrics import fisher_mean, mean_std
from aqa_train.splits import Split

PACKAGES = ("aqa", "torch", "numpy", "scipy", "scikit-learn", "zarr", "dask", "safetensors")
MEASURES = ("spearman", "kendall", "mae", "rl2_dataset_range", "rl2_test_range")


START = ("config.toml", "environment.json", "data.json", "splits")
"""What a run folder holds before config.json, which makes it a run."""


def write_start(experiment: Experiment, out: Path, device: str) -> None:
    """Configuration, environment, digests of the data and splits, before anything is trained."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.toml").write_text(as_toml(spelt_out(experiment.config)))
        write_json(out / "environment.json", environment(device))
        write_json(out / "data.json", experiment.data)
        (out / "splits").mkdir(exist_ok=True)
        for split in experiment.splits:
            split.save(out / "splits" / f"fold{split.fold}-seed{split.seed}.json")
        write_json(out / "config.json", experiment.config.model_dump(mode="json"))


def refuse_other_data(experiment: Experiment, out: Path) -> None:
    """Features, labels or splits that changed since the run began would mix two experiments."""
    fix = "restore them, or start anew with another --out"
    file = out / "data.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise UsageError(f"{file} cannot be read ({e}): whether the data are the same is not known", fix=fix) from None
    names = {"content": f"the store {experiment.config.features}", "labels_sha256": "the labels file"}
    changed = [what for key, what in names.items() if found.get(key) != experiment.data[key]]
    if changed:
        raise UsageError(f"{' and '.join(changed)} changed since the run in {out} began", fix=fix)
    for split in experiment.splits:
        file = out / "splits" / f"fold{split.fold}-seed{split.seed}.json"
        if not file.exists() or Split.load(file).digest != split.digest:
            raise UsageError(f"{file} does not match what the settings give now: the splits changed", fix=fix)


def environment(device: str) -> dict[str, Any]:
    """Versions, machine and commit: what a number may depend on."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform(), "device": device}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if torch.cuda.is_available():
        found["cuda"] = {"version": torch.version.cuda, "gpu": torch.cuda.get_device_name()}
    found["git"] = _commit()
    found["command"] = sys.argv
    return found


def _commit() -> str | None:
    """The commit of the source tree this runs from, when it is one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def summarise(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a method and selection: over the folds of a seed Fisher mean of correlations, mean of errors; then
    mean and deviation over seeds.

    Undefined values are left out, so every measure says how many of the run's folds × seeds are `defined`.
    """
    results = list(results)
    runs = len({(r["fold"], r["seed"]) for r in results})
    rows = []
    for method in dict.fromkeys(r["method"] for r in results):
        mine = [r for r in results if r["method"] == method]
        for selection in dict.fromkeys(s for r in mine for s in r["metrics"]):
            row: dict[str, Any] = {"method": method, "selection": selection}
            seeds = sorted({r["seed"] for r in mine})
            row["seeds"], row["folds"] = len(seeds), len({r["fold"] for r in mine})
            row["test_videos"] = sum(len(r["ids"]) for r in mine) // len(seeds)
            for measure in MEASURES:
                values = [(r["seed"], r["metrics"].get(selection, {}).get(measure)) for r in mine]
                by_seed = [_over_folds(measure, [v for of, v in values if of == s]) for s in seeds]
                mean, deviation = mean_std(by_seed)
                defined = sum(v is not None for _, v in values)
                row[measure] = {"mean": mean, "std": deviation, "by_seed": by_seed, "defined": defined, "of": runs}
            rows.append(row)
    return rows


def _over_folds(measure: str, values: list[float | None]) -> float | None:
    return fisher_mean(values) if measure in ("spearman", "kendall") else mean_std(values)[0]


def write_results(
    experiment: Experiment, out: Path, results: list[dict[str, Any]], baselines: list[dict[str, Any]]
) -> dict[str, Any]:
    """metrics.json, metrics.csv, predictions.csv, losses.csv; returns what metrics.json holds."""
    config = experiment.config
    rows = summarise([*results, *baselines])
    summary: dict[str, Any] = {
        "protocol": _protocol(experiment, results),
        "rows": rows,
        "checkpoint": f"models/{experiment.trainings[0].name}/last.safetensors",
        "runs": [
            {k: r[k] for k in r if k not in ("history", "ids", "true", "predicted")} for r in [*results, *baselines]
        ],
    }
    write_json(out / "metrics.json", summary)
    counts = ("method", "selection", "seeds", "folds", "test_videos")
    statistics = ("mean", "std", "defined", "of")
    _write_csv(
        out / "metrics.csv",
        [*counts, *(f"{m}_{s}" for m in MEASURES for s in statistics)],
        (
            [*(r[c] for c in counts), *(r[m][s] for m in MEASURES for s in statistics)]
            for r in rows
        ),
    )  # fmt: skip
    _write_csv(
        out / "predictions.csv",
        ["id", "true", "predicted", "residual", "method", "selection", "fold", "seed", "split"],
        (
            [i, t, p, p - t, r["method"], selection, r["fold"], r["seed"], "test"]
            for r in [*results, *baselines]
            for selection, predicted in r["predicted"].items()
            for i, t, p in zip(r["ids"], r["true"], predicted, strict=True)
        ),
    )
    terms = list(dict.fromkeys(k for r in results for row in r["history"][:1] for k in row))
    if config.validation or any(len(s.validation) for s in experiment.splits):
        terms = [*[t for t in terms if t != "validation_spearman"], "validation_spearman"]
    _write_csv(
        out / "losses.csv",
        ["method", "fold", "seed", "epoch", *terms],
        (
            [r["method"], r["fold"], r["seed"], epoch, *(row.get(t) for t in terms)]
            for r in results
            for epoch, row in enumerate(r["history"], start=1)
        ),
    )
    return summary


def _protocol(experiment: Experiment, results: list[dict[str, Any]]) -> dict[str, Any]:
    config, split = experiment.config, experiment.splits[0]
    return {
        "features": config.features,
        "streams": list(experiment.features.channels),
        "videos": len(experiment.features.ids),
        "labelled_fraction": config.labelled,
        "draw": config.draw,
        "labelled": len(split.labelled),
        "unlabelled": len(split.unlabelled),
        "validation": len(split.validation),
        "test": len(split.test),
        "folds": len({s.fold for s in experiment.splits}),
        "seeds": config.seeds,
        "selection": "last epoch; best epoch on validation videos where there are any; never on test",
        "transductive": config.transductive,
        "uses_difficulty": False,
        "end_to_end": False,
        "splits_sha256": {f"fold{s.fold}-seed{s.seed}": s.digest for s in experiment.splits},
        "seconds": round(sum(r["seconds"] for r in results), 1),
    }


def _write_csv(path: Path, header: list[str], rows: Iterable[Iterable[Any]]) -> None:
    with (
        replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def as_table(summary: dict[str, Any]) -> Table:
    """The rows of metrics.json for a terminal."""
    p = summary["protocol"]
    title = (
        f"{p['labelled']} labelled, {p['unlabelled']} unlabelled, {p['test']} test videos; "
        f"{p['seeds']} seed(s) × {p['folds']} fold(s)"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    table.add_column("epoch", no_wrap=True)
    for name in ("Spearman", "MAE", "R-ℓ2 ×100"):
        table.add_column(name, justify="right", no_wrap=True)
    names = {"last": "last", "best-on-validation": "best on val.", "baseline": "–"}
    for r in summary["rows"]:
        cells = [_cell(r["spearman"], 3), _cell(r["mae"], 2), _cell(r["rl2_dataset_range"], 2)]
        table.add_row(r["method"], names[r["selection"]], *cells)
    return table


def _cell(value: dict[str, Any], digits: int) -> str:
    if value["mean"] is None:
        return "–"
    spread = "" if value["std"] is None else f" ± {value['std']:.{digits}f}"
    part = "" if value["defined"] == value["of"] else f" ({value['defined']} of {value['of']})"
    return f"{value['mean']:.{digits}f}{spread}{part}"


def read_config(out: Path) -> RunConfig:
    """The configuration of an earlier run."""
    try:
        return RunConfig.model_validate(json.loads((out / "config.json").read_text()))
    except FileNotFoundError:
        raise UsageError(
            f"{out} is no run folder of aqa-train (no config.json)", fix="name the --out of a run"
        ) from None
    except ValueError as e:
        raise UsageError(f"{out / 'config.json'} is damaged or of another version: {e}") from None
