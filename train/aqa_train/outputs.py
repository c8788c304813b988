"""The run folder: what was run, on what, with what result."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aqa_shared.errors import AqaError, UsageError
from aqa_shared.files import replace_text, replacing, write_new
from aqa_train import scores
from aqa_train.checkpoint import as_json, read_json, write_json, writing
from aqa_train.comparisons import Predictions, compare
from aqa_train.config import PLACES, RunConfig
from aqa_train.experiment import Experiment
from aqa_train.intervals import LEVEL
from aqa_train.method_settings import as_toml, settings_digest, spelt_out
from aqa_train.protocol import comparison
from aqa_train.splits import Split
from aqa_train.summary import MEASURES, WITH_INTERVAL, Comparison, summarise

PACKAGES = ("aqa", "torch", "numpy", "scipy", "scikit-learn", "zarr", "dask", "safetensors")


START = ("config.toml", "environment.json", "data.json", "splits")
"""What a run folder holds before config.json, which makes it a run."""
LOOKS = 50
"""At a file that another process may be writing, a tenth of a second apart."""


def write_run(
    config: RunConfig,
    data: dict[str, str | None],
    out: Path,
    device: str,
    part: tuple[int, int] | None,
    splits: Sequence[Split] = (),
) -> None:
    """What a folder is the run or the grid of; config.json comes last, and says that the rest is whole.

    data.json comes first, and whoever makes it decides: raises UsageError where that was another process, with other
    settings or data, before anything of its own is overwritten.
    """
    place = {"folder": os.path.abspath(out), **({"parts": part[1]} if part else {})}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        _begin_as(config, data, out)
        for split in splits:
            (out / "splits").mkdir(exist_ok=True)
            split.save(out / "splits" / f"fold{split.fold}-seed{split.seed}.json")
        write_json(out / "environment.json", {**environment(device), **place})
        _write_settings(spelt_out(config), out)


def _begin_as(config: RunConfig, data: dict[str, str | None], out: Path) -> None:
    file, ours = out / "data.json", {**data, "settings_sha256": settings_digest(config)}
    if write_new(file, as_json(ours)):
        return
    _until_whole(file)
    refuse_other_digests(config, data, out)
    if read_json(file, "start a new run with another --out").get("settings_sha256") != ours["settings_sha256"]:
        raise UsageError(
            f"a run with other settings begins in {out} at this moment",
            fix=f"name another --out; if a process that began there was killed at once, remove {file}",
        )


def _until_whole(file: Path) -> None:
    """Wait a little for who made it: without hard links it is there before its text is (`write_new`)."""
    for _ in range(LOOKS):
        with suppress(OSError, ValueError):
            json.loads(file.read_text())
            return
        time.sleep(0.1)


def write_places(config: RunConfig, out: Path) -> None:
    """Of a run that was resumed: where its store and tables are now, for the next time."""
    whole = spelt_out(config)
    if read_config(out) != whole:
        with writing(out):
            _write_settings(whole, out)


def _write_settings(whole: RunConfig, out: Path) -> None:
    """With every default, so that a run goes on as it began where another version has others."""
    replace_text(out / "config.toml", as_toml(whole))
    write_json(out / "config.json", whole.model_dump(mode="json"))


def where_it_is(config: RunConfig, out: Path) -> RunConfig:
    """`config` of the run in `out`, with what is no longer at its place looked for where it lay beside the run folder.

    So a folder that holds both may be moved. Raises UsageError for what is not there either.
    """
    try:
        began_in = json.loads((out / "environment.json").read_text()).get("folder", "")
    except (OSError, ValueError, AttributeError):
        began_in = ""
    found: dict[str, str] = {}
    for name in PLACES:
        path = getattr(config, name)
        if path is None or "://" in path or os.path.exists(path):
            continue
        beside = os.path.normpath(os.path.join(os.path.abspath(out), os.path.relpath(path, began_in or os.curdir)))
        if not began_in or not os.path.exists(beside):
            raise UsageError(
                f"{path}, which the run in {out} was begun with, is no longer there",
                fix=f"say where it is now with --{name}",
            )
        found[name] = beside
    return config.model_copy(update=found)


def refuse_other_digests(config: RunConfig, data: dict[str, str | None], out: Path) -> None:
    """Features or labels that changed since the run began would mix two experiments."""
    fix = "restore {}, or start a new run with another --out"
    file = out / "data.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as e:
        raise UsageError(
            f"{file} cannot be read ({e}): whether the data are the same is not known", fix=fix.format("it")
        ) from None
    names = {
        "content": f"the store {config.features}",
        "labels_sha256": "the labels file",
        "dataset_sha256": f"the ranges in {config.dataset}",
    }
    changed = [what for key, what in names.items() if found.get(key) != data.get(key)]
    if changed:
        raise UsageError(
            f"{' and '.join(changed)} changed since the run in {out} began", fix=fix.format("what changed")
        )


def refuse_other_data(experiment: Experiment, out: Path) -> None:
    """As `refuse_other_digests`, and so would other splits."""
    refuse_other_digests(experiment.config, experiment.data, out)
    for split in experiment.splits:
        file = out / "splits" / f"fold{split.fold}-seed{split.seed}.json"
        if not file.exists() or Split.load(file).digest != split.digest:
            raise UsageError(
                f"{file} does not match what the settings give now: the splits changed",
                fix="restore the settings, or start a new run with another --out",
            )


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


def write_results(
    experiment: Experiment,
    out: Path,
    results: list[dict[str, Any]],
    baselines: list[dict[str, Any]],
    failures: Mapping[str, AqaError],
) -> dict[str, Any]:
    """metrics.json, metrics.csv, predictions.csv, scores.csv, losses.csv; returns what metrics.json holds."""
    config = experiment.config
    tested = None if config.all_scores else comparison(config, [experiment.features], [*results, *baselines])
    rows = [] if tested is None else summarise([*results, *baselines], tested)
    every = list(scores.every_video(experiment.features, config, experiment.splits, results))
    pairs = [] if tested is None else _pairs([*results, *baselines], rows, tested)
    summary: dict[str, Any] = {
        "protocol": _protocol(experiment, results, tested),
        "rows": rows,
        "comparisons": pairs,
        "left_out": [
            *({"method": m, "failed": False, "why": why} for m, why in experiment.left_out.items()),
            *({"method": m, "failed": not isinstance(e, UsageError), "why": e.cause} for m, e in failures.items()),
        ],
        "scores": {"videos": len(experiment.features.ids), "learned_by_all": scores.without(every)},
        "runs": [
            {k: r[k] for k in r if k not in ("history", "ids", "true", "predicted", "scores", "uncertainty")}
            for r in [*results, *baselines]
        ],
    }
    write_json(out / "metrics.json", summary)
    counts = ("method", "selection", "uses_difficulty", "seeds", "folds", "test_videos", "seconds")
    statistics = ("mean", "std", "defined", "of")
    ends = ("low", "high")
    _write_csv(
        out / "metrics.csv",
        [
            *(*counts, *(f"{m}_{s}" for m in MEASURES for s in statistics)),
            *(*(f"{m}_{e}" for m in WITH_INTERVAL for e in ends), "verdict"),
        ],
        (
            [
                *(*(r[c] for c in counts), *(r[m][s] for m in MEASURES for s in statistics)),
                *(*(v for m in WITH_INTERVAL for v in r[m]["interval"] or (None, None)), r["verdict"]),
            ]
            for r in rows
        ),
    )
    unsure = any("uncertainty" in r for r in results)
    _write_csv(
        out / "predictions.csv",
        [
            *("id", "true", "predicted", "residual", "method", "selection", "fold", "seed", "split"),
            *(["uncertainty"] if unsure else []),
        ],
        (
            [i, t, p, p - t, r["method"], selection, r["fold"], r["seed"], "test", *([u] if unsure else [])]
            for r in [*results, *baselines]
            for selection, predicted in r["predicted"].items()
            for i, t, p, u in zip(
                r["ids"], r["true"], predicted, r.get("uncertainty", {}).get(selection, [None] * len(predicted)),
                strict=True,
            )
        ),
    )  # fmt: skip
    if pairs:
        write_records(out / "comparisons.csv", pairs)
    if unsure:
        _write_csv(
            out / "selective.csv",
            ["method", "selection", "calibration", "kept", "mae", "best"],
            (
                [r["method"], r["selection"], r["uncertainty"]["calibration"]["mean"], *point]
                for r in rows
                if "uncertainty" in r
                for point in zip(*(r["uncertainty"][n] for n in ("kept", "mae", "best")), strict=True)
            ),
        )
    _write_csv(out / "scores.csv", scores.COLUMNS, every)
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


def _pairs(
    results: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], tested: Comparison
) -> list[dict[str, Any]]:
    """Every two of the table's rows but the best epochs', as records; what ranks nothing has no difference."""
    predicted = {
        r["method"]: tested.predictions([o for o in results if o["method"] == r["method"]], r["selection"])
        for r in rows
        if r["selection"] in ("last", "baseline")
    }
    return [asdict(pair) for pair in compare([Predictions(tested, predicted)])]


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """A CSV of records of one kind; an interval becomes two columns."""
    flat = [
        {k: v for name, value in r.items() for k, v in (_ends(value) if name == "interval" else {name: value}).items()}
        for r in records
    ]
    _write_csv(path, list(flat[0]), (r.values() for r in flat))


def _ends(interval: Sequence[float] | None) -> dict[str, float | None]:
    return dict(zip(("low", "high"), interval or (None, None), strict=True))


def _protocol(experiment: Experiment, results: list[dict[str, Any]], tested: Comparison | None) -> dict[str, Any]:
    config, split = experiment.config, experiment.splits[0]
    return {
        "features": config.features,
        "streams": list(experiment.features.channels),
        "videos": len(experiment.features.ids),
        "labelled_fraction": config.fraction,
        "draw": config.draw,
        "labelled": len(split.labelled),
        "unlabelled": len(split.unlabelled),
        "validation": len(split.validation),
        "test": len(split.test),
        "folds": len({s.fold for s in experiment.splits}),
        **({} if tested is None else _tests(tested)),
        "seeds": config.seeds,
        "selection": "last epoch; best epoch on validation videos where there are any; never on test",
        "transductive": config.transductive,
        "uses_difficulty": any(r["uses_difficulty"] for r in results),
        "end_to_end": False,
        "splits_sha256": {f"fold{s.fold}-seed{s.seed}": s.digest for s in experiment.splits},
        "seconds": round(sum(r["seconds"] for r in results), 1),
    }


def _tests(tested: Comparison) -> dict[str, Any]:
    return {
        "test_all": len(tested.true),
        "over_folds": tested.over_folds,
        "interval": {
            "level": LEVEL,
            "method": "bootstrap, expanded percentiles, paired over rows, mean over seeds",
            "of": tested.unit,
            "n": tested.units,
            "draws": len(tested.draws.counts),
        },
    }


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with (
        replacing(path) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def read_config(out: Path) -> RunConfig:
    """The configuration of an earlier run."""
    try:
        return RunConfig.model_validate(json.loads((out / "config.json").read_text()))
    except FileNotFoundError:
        raise UsageError(
            f"{out} is not a run folder of aqa-train (no config.json)", fix="name the --out of a run"
        ) from None
    except OSError as e:
        raise UsageError(
            f"{out / 'config.json'} cannot be read: {e.strerror or e}", fix="let it be read, or name another run"
        ) from None
    except ValueError as e:
        raise UsageError(
            f"{out / 'config.json'} is damaged or of another version: {e}",
            fix="copy the run folder again, or start a new run with another --out",
        ) from None
