"""A grid: methods × labelled fractions × variants of settings × seeds × folds, and one tidy table of what came of it.

A cell is one fraction with one value of every variant: an ordinary run, whose folder has all that a run has. All
cells share the features, which are read once, and one executor, which takes their trainings in the order of seeds.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aqa_shared.errors import UsageError
from aqa_shared.files import replacing
from aqa_shared.settings import explain
from aqa_train.checkpoint import writing
from aqa_train.config import HELP, RunConfig, Training
from aqa_train.method_settings import method_config, training_of
from aqa_train.methods import METHODS
from aqa_train.outputs import write_records
from aqa_train.summary import MEASURES

RESULTS = "results.csv"


@dataclass(frozen=True)
class Cell:
    """One run of a grid."""

    name: str
    """Its folder in the grid's; "" where it is the only one."""
    labelled: float
    variant: Mapping[str, str]
    """Value of every variant."""
    config: RunConfig


def cells(config: RunConfig) -> list[Cell]:
    """The runs that a configuration asks for. A method that lacks a variant's setting is trained with one value."""
    for name in config.variants:
        if not any(reads(m, name) for m in config.methods):
            raise UsageError(
                f"--variant {name}: {', '.join(config.methods)} has no such setting",
                fix="aqa-train --print-config shows the settings",
            )
        if own := [key for key in config.settings if key.endswith(f".{name}")]:
            raise UsageError(
                f"--variant {name} would change nothing where {', '.join(own)} is set",
                fix=f"omit {own[0]}, or vary it: --variant {own[0]}={','.join(config.variants[name])}",
            )
    found = []
    for fraction, values in product(config.fractions, list(product(*config.variants.values()))):
        chosen = dict(zip(config.variants, values, strict=True))
        other = [name for name, value in chosen.items() if value != config.variants[name][0]]
        methods = tuple(m for m in config.methods if all(reads(m, name) for name in other))
        if not methods:
            continue
        read = {n: v for n, v in chosen.items() if any(reads(m, n) for m in methods)}
        trained = {n: v for n, v in read.items() if n in Training.model_fields}
        # What is set for a method that is left out here.
        idle = {k for k in config.settings if _has(config.methods, k) and not _has(methods, k)}
        try:
            one = RunConfig.model_validate(
                {
                    **config.model_dump(exclude={"variants", "training"}),
                    "labelled": fraction,
                    "methods": methods,
                    "training": {**config.training.model_dump(exclude_unset=True), **trained},
                    "settings": {k: v for k, v in config.settings.items() if k not in idle}
                    | {n: v for n, v in read.items() if n not in trained},
                }
            )
        except ValidationError as e:
            raise UsageError(f"--variant: {explain(e)}", fix=HELP) from None
        for method in methods:
            method_config(one, method)
            training_of(one, method)
        axes = {"labelled": f"{fraction:g}"} if len(config.fractions) > 1 else {}
        several = {n: v for n, v in chosen.items() if len(config.variants[n]) > 1}
        name = re.sub(r"[^\w.=+,-]", "_", ",".join(f"{k}={v}" for k, v in {**axes, **several}.items()))
        found.append(Cell(name, fraction, chosen, one))
    return found


def _has(methods: Sequence[str], setting: str) -> bool:
    """Whether a setting is of one of the methods, whatever it changes."""
    owner, dot, name = setting.rpartition(".")
    return owner in methods if dot else any(name in METHODS[m].settings() for m in methods)


def reads(method: str, setting: str) -> bool:
    """Whether a setting, `name` or `method.name`, changes anything for a method."""
    row = METHODS[method]
    owner, dot, name = setting.rpartition(".")
    if dot and owner != method:
        return False
    if name in Training.model_fields:
        # Features are standardised for methods that are fitted in one step too.
        return hasattr(row.load(), "losses") or name == "standardise"
    return name in row.settings() - row.fixed.keys()


def tidy(found: Sequence[tuple[Cell, Sequence[Mapping[str, Any]]]]) -> Iterator[dict[str, Any]]:
    """A row for every training, fold and selection of every cell; what does not depend on a variant comes once."""
    seen = set()
    for cell, results in found:
        for r in results:
            variant = {n: v if reads(r["method"], n) else "" for n, v in cell.variant.items()}
            for selection, measured in r["metrics"].items():
                axes = {
                    "method": r["method"],
                    "labelled": cell.labelled,
                    "seed": r["seed"],
                    "fold": r["fold"],
                    **variant,
                }
                # A baseline of one cell may be a method of another.
                key = tuple(axes.values()) if selection == "baseline" else (*axes.values(), selection)
                if key in seen:
                    continue
                seen |= {key, tuple(axes.values())}
                yield {
                    **axes,
                    "selection": selection,
                    "uses_difficulty": r["uses_difficulty"],
                    "test_videos": measured["n"],
                    **{m: measured[m] for m in MEASURES},
                    "epochs": r["best_epoch"] if selection.startswith("best") else r["epochs"],
                    "seconds": r["seconds"],
                }


def write_comparisons(out: Path, found: Sequence[tuple[Cell, Sequence[Mapping[str, Any]]]]) -> None:
    """`comparisons.csv` of a grid: those of every cell, Holm's correction within the cell, behind the cell's axes."""
    rows = [{"labelled": c.labelled, **c.variant, **pair} for c, pairs in found for pair in pairs]
    if rows:
        with writing(out):
            write_records(out / "comparisons.csv", rows)


def write_tidy(out: Path, found: Sequence[tuple[Cell, Sequence[Mapping[str, Any]]]]) -> None:
    """`results.csv`, whole or not at all."""
    rows = list(tidy(found))
    if not rows:
        return
    with writing(out), replacing(out / RESULTS) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
