"""How well does every row of the table of methods rank a small set's videos, on published folds?

    python benchmarks/rows.py features.npz --methods core,gdlt,usdl --labelled 0.5,1 --steps 300 --score-range 6,30

The file holds `features` (videos, segments, channels), `score` and `fold`. Each method is trained with its recipe for
`--recipe`, but for the epochs: as many as make `--steps` steps of the optimiser, its own at most, with a batch of
`--batch` at least. Every fold is tested by what learned from the others, whose labels are drawn by score; what has no
label is there to learn from. Prints, and appends to `--out`, Spearman (Fisher mean over folds), the mean absolute
error and seconds of CPU a training, and those of ridge on the same draws. A method of two streams is given the same
features twice.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter

from aqa_shared.console import counted
from aqa_train.batch import ScoreScale
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods import METHODS
from aqa_train.metrics import fisher_mean, mean_absolute_error, spearman
from aqa_train.splits import label
from aqa_train.stream_names import array_of
from aqa_train.trainer import Task, fit, predict

CPU = torch.device("cpu")


def settings_of(name: str, given: list[str]) -> Any:
    """Of the method, with what `--set METHOD.NAME=VALUE` says of it."""
    row = METHODS[name]
    own = dict(g.removeprefix(f"{name}.").split("=") for g in given if g.startswith(f"{name}."))
    return TypeAdapter(row.load().Config).validate_python({**own, **row.fixed})


def how(name: str, options: argparse.Namespace, labelled: int, unlabelled: int) -> Training:
    """The recipe with a batch that is not too small and epochs that are not too many."""
    recipe = Training(**METHODS[name].recipe(options.recipe))
    batch = max(recipe.batch, options.batch)
    videos = max(labelled, unlabelled) if recipe.epoch_of == "larger" else labelled
    steps = max(1, min(math.ceil(videos / batch), videos // 2))
    return recipe.model_copy(update={"batch": batch, "epochs": min(recipe.epochs, math.ceil(options.steps / steps))})


def measure(name: str, data: Any, options: argparse.Namespace, fraction: float, draw: int) -> dict[str, Any]:
    """Of one draw over all folds."""
    row, config = METHODS[name], settings_of(name, options.set)
    x, scores, fold = data["features"].astype(np.float32), data["score"].astype(np.float64), data["fold"]
    names = [array_of(s) for s in row.streams] or ["rgb"]
    found = FeatureSet.from_arrays(dict.fromkeys(names, x), {"score": scores}).place(CPU, "yes")
    rho, errors, seconds, none = [], [], [], np.arange(0)
    low, high = options.score_range
    for f in np.unique(fold):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        labelled = train[label(scores[train], fraction, np.random.default_rng([draw, int(f)]))]
        unlabelled = np.setdiff1d(train, labelled)
        scale = ScoreScale(low, high, 5.0)
        targets = scale.to_training(scores)
        scale = ScoreScale(low, high, 5.0, float(targets[labelled].mean()))
        read, inputs = found.prepared({}, {}, train, labelled, "none")
        inputs = type(inputs)(inputs.streams, inputs.segments, inputs.columns, scale)
        task = Task(read, labelled, unlabelled, none, targets)
        training = how(name, options, len(labelled), len(unlabelled))
        started = time.process_time()
        model = fit(lambda i=inputs: row.load()(i, config), task, training, seed=[draw, int(f)], device=CPU).model  # type: ignore[misc]
        seconds.append(time.process_time() - started)
        told = scale.to_scores(predict(model, read, test, CPU))
        rho.append(spearman(told, scores[test]))
        errors.append(mean_absolute_error(told, scores[test]))
    return {
        "spearman": fisher_mean(rho), "mae": float(np.mean([e for e in errors if e is not None])),
        "seconds": float(np.mean(seconds)), "epochs": training.epochs, "batch": training.batch,
        "trains": hasattr(row.load(), "losses"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--methods", required=True)
    parser.add_argument("--labelled", default="0.5,1")
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8, help="the least")
    parser.add_argument("--recipe", default="")
    parser.add_argument("--score-range", default="6,30", type=lambda s: tuple(map(float, s.split(","))))
    parser.add_argument("--set", action="append", default=[], metavar="METHOD.NAME=VALUE")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = dict(np.load(options.file, allow_pickle=False))
    header = f"{options.file.stem}: at most {options.steps} steps, batches of {options.batch} or more, "
    header += f"{counted(options.draws, 'draw')}, recipe {options.recipe or 'default'}"
    lines = [header, f"{'method':16} {'labels':>6} {'Spearman':>8} {'MAE':>6} {'s':>7} {'epochs':>6} {'batch':>5}"]
    if options.out and options.out.exists():
        lines = []
    for line in lines:
        print(line, flush=True)
    for name in ["ridge", *options.methods.split(",")]:
        for fraction in map(float, options.labelled.split(",")):
            if METHODS[name].unlabelled and fraction == 1:
                continue  # nothing is left to learn from
            draws = options.draws if fraction < 1 or name != "ridge" else 1
            found = [measure(name, data, options, fraction, draw) for draw in range(draws)]
            rho = [r["spearman"] for r in found if r["spearman"] is not None]
            values = [f"{np.mean(rho):8.3f}" if rho else f"{'–':>8}"]
            values += [f"{np.mean([r[k] for r in found]):{w}.2f}" for k, w in (("mae", 6), ("seconds", 7))]
            values += [f"{found[-1][k] if found[-1]['trains'] else '–':>{w}}" for k, w in (("epochs", 6), ("batch", 5))]
            lines.append(f"{name:16} {fraction:6.0%} {' '.join(values)}")
            print(lines[-1], flush=True)
    if options.out:
        with options.out.open("a") as file:
            file.writelines(line + "\n" for line in lines)


if __name__ == "__main__":
    main()
