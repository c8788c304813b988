"""Is `auto` as good as the better of ridge and S4AQA? Rows of the table of methods on four sets, on the same draws.

    python benchmarks/auto.py --features shared/features --dives dives/feats.zarr --rows auto,ridge,ridge-z --draws 20
    python benchmarks/auto.py --features shared/features --dives dives/feats.zarr --rows s4aqa --draws 10 --epochs 150
    python benchmarks/auto.py --table

`--features` holds jigsaws_suturing_i3d_rgb.npz, finger_tapping.npz and ui_prmd_kinect.npz, which are not part of this
repository; `--dives` is a store of at least 60 rendered dives (several: one after the other). A value is a draw's
figure over its folds; it is appended to `--out`, and what stands there is not computed again. `--first` numbers the
draws: the design was chosen on those below 100. Trained by the trainer's own `fit`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct

from aqa_shared.errors import UsageError
from aqa_shared.store import FeatureStore
from aqa_train.batch import ScoreScale
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods import METHODS
from aqa_train.metrics import area_under_curve, fisher_mean, spearman
from aqa_train.trainer import Task, fit, predict

CPU = torch.device("cpu")
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "auto": ("auto", {}),
    "ridge": ("ridge", {}),
    "ridge-z": ("ridge", {"standardise": "z-score"}),
    "aa": ("aa", {}),
    "s4aqa": ("s4aqa", {}),
    "aa+rda": ("aa+rda", {}),
}
"""Method and training of a row; `--epochs` is for those that take any."""
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Fold:
    """Who is who in one training, rows of `features`."""

    features: FeatureSet
    labelled: NDArray[np.int64]
    unlabelled: NDArray[np.int64]
    test: NDArray[np.int64]


def draw_labels(scores: Numbers, rows: NDArray[np.int64], number: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """One of each of `number` equal parts of the order of scores, ties in random order."""
    order = rows[np.lexsort((rng.random(len(rows)), scores[rows]))]
    return np.sort([rng.choice(part) for part in np.array_split(order, number)])


def _fold(features: FeatureSet, test: NDArray[np.int64], number: int | None, rng: np.random.Generator) -> Fold:
    scores = features.column("score")
    train = np.setdiff1d(np.arange(len(scores)), test)
    labelled = train if number is None else draw_labels(scores, train, number, rng)
    return Fold(features, labelled, np.setdiff1d(train, labelled), test)


def _arrays(x: NDArray[np.float32], scores: Numbers) -> FeatureSet:
    return FeatureSet.from_arrays({"features": x}, {"score": scores.astype(np.float64)}).place(CPU, "yes")


@cache
def _jigsaws(folder: Path) -> tuple[FeatureSet, NDArray[np.int64]]:
    z = np.load(folder / "jigsaws_suturing_i3d_rgb.npz")
    return _arrays(z["features"].astype(np.float32), z["score"]), z["fold"]


def jigsaws(folder: Path, fraction: float, draw: int) -> Iterator[Fold]:
    """The published folds."""
    features, fold = _jigsaws(folder)
    rng = np.random.default_rng([draw, 1])
    for k in np.unique(fold):
        test = np.flatnonzero(fold == k)
        number = None if fraction == 1 else round(fraction * (len(fold) - len(test)))
        yield _fold(features, test, number, rng)


@cache
def _finger(folder: Path) -> tuple[FeatureSet, NDArray[np.int64]]:
    z = np.load(folder / "finger_tapping.npz")
    x = np.where(np.isnan(z["features"]), np.nanmedian(z["features"], axis=0), z["features"])
    return _arrays(x[:, None].astype(np.float32), z["score"]), z["person"]


def finger(folder: Path, number: int, draw: int) -> Iterator[Fold]:
    """A quarter of the people tested."""
    features, person = _finger(folder)
    rng = np.random.default_rng([draw, 2])
    people = rng.permutation(np.unique(person))
    yield _fold(features, np.flatnonzero(np.isin(person, people[: len(people) // 4])), number, rng)


@cache
def _skeletons(folder: Path, movement: int, segments: bool) -> tuple[FeatureSet, NDArray[np.int64]]:
    z = np.load(folder / "ui_prmd_kinect.npz")
    rows = np.flatnonzero(z["movement"] == np.unique(z["movement"])[movement])
    data, offset = z["data"], z["offset"]
    whole = [data[offset[i] : offset[i + 1]] for i in rows]
    if segments:
        x = np.stack([[part.mean(axis=0) for part in np.array_split(w, 8)] for w in whole])
    else:
        x = np.stack([dct(w, axis=0, norm="ortho")[:8].reshape(1, -1) / np.sqrt(len(w)) for w in whole])
    return _arrays(x.astype(np.float32), z["correct"][rows]), z["subject"][rows]


def skeletons(folder: Path, number: int | None, segments: bool, draw: int) -> Iterator[Fold]:
    """One of the ten movements, and five folds of two subjects each; columns are eight coefficients of its cosine
    transform over time for each joint's coordinates, or a mean of each of eight parts of the time as segments."""
    features, subject = _skeletons(folder, draw % 10, segments)
    rng = np.random.default_rng([draw, 3])
    for pair in rng.permutation(np.unique(subject)).reshape(5, 2):
        yield _fold(features, np.flatnonzero(np.isin(subject, pair)), number, rng)


@cache
def _dives(store: Path) -> FeatureSet:
    return FeatureSet.from_store(FeatureStore.open(store), ("rgb", "actor-rgb")).place(CPU, "yes")


def dives(store: Path, number: int | None, draw: int) -> Iterator[Fold]:
    """40 dives train, as in the demo."""
    features, rng = _dives(store), np.random.default_rng([draw, 4])
    yield _fold(features, np.sort(rng.permutation(len(features.ids))[40:]), number, rng)


def _rank(predicted: Numbers, true: Numbers) -> float:
    return spearman(predicted, true) or 0.0


Draw = Callable[[int], Iterator[Fold]]


def sets(features: Path | None, stores: list[Path]) -> dict[str, Draw]:
    found: dict[str, Draw] = {}
    if features is not None:
        found |= {"suturing, 50 %": partial(jigsaws, features, 0.5), "suturing, all": partial(jigsaws, features, 1.0)}
        found |= {f"finger tapping, {n} labels": partial(finger, features, n) for n in (25, 50, 100)}
        for segments, what in ((False, ""), (True, " as segments")):
            for number in (16, None):
                label = f"skeletons{what}, {number or 'all'} labels"
                found[label] = partial(skeletons, features, number, segments)
    for i, store in enumerate(stores):
        for number in (16, None):
            found[f"dives{' ' + 'abcdef'[i] if len(stores) > 1 else ''}, {number or 'all 40'} labels"] = partial(
                dives, store, number
            )
    return found


def train(row: str, fold: Fold, seed: list[int], epochs: int | None) -> Numbers:
    """Scores of the test videos."""
    method, settings = ROWS[row]
    cls = METHODS[method].load()
    how = Training(**{**METHODS[method].recipe(""), **settings, **({"epochs": epochs} if epochs else {})})
    scores = fold.features.column("score")
    known = scores[fold.labelled]
    scale = ScoreScale(float(known.min()), float(known.max()))
    targets = np.full(len(scores), np.nan)
    targets[fold.labelled] = scale.to_training(known)
    seen = np.union1d(fold.labelled, fold.unlabelled)
    read, inputs = fold.features.prepared({}, {}, seen, fold.labelled, how.standardise)
    inputs = replace(inputs, scale=replace(scale, mean=float(np.nanmean(targets))))
    task = Task(read, fold.labelled, fold.unlabelled, np.arange(0), targets)
    config = cls.Config(**METHODS[method].fixed)
    model = fit(lambda: cls(inputs, config), task, how, seed=seed, device=CPU).model
    return scale.to_scores(predict(model, read, fold.test, CPU))


def measure(row: str, name: str, draw_of: Draw, draw: int, epochs: int | None) -> dict[str, Any]:
    """One value: a draw's figure over its folds."""
    values, errors, folds = [], [], list(draw_of(draw))
    figure, begun = area_under_curve if name.startswith("skeletons") else _rank, time.process_time()
    for i, fold in enumerate(folds):
        told, true = train(row, fold, [draw, i], epochs), fold.features.column("score")[fold.test]
        values.append(figure(told, true))
        errors.append(float(np.abs(told - true).mean()))
    over = float(np.mean(values)) if name.startswith("skeletons") else fisher_mean(values)
    seconds = (time.process_time() - begun) / len(values)
    return {
        "row": row, "set": name, "draw": draw, "epochs": epochs, "value": over, "mae": float(np.mean(errors)),
        "seconds": round(seconds, 3),
    }  # fmt: skip


def table(found: list[dict[str, Any]]) -> str:
    """Means over the draws, and what auto has over each row on the draws of both ± the standard error of that.

    A row is called by its epochs too, where they are not its recipe's.
    """
    by: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for r in found:
        row = r["row"] if r["epochs"] is None else f"{r['row']} {r['epochs']}"
        by[r["set"]][row][r["draw"]] = r["value"]
    lines = [f"{'':34}{'row':10}{'draws':>5}  value ± s.e.     auto's gain ± s.e."]
    for name, rows in by.items():
        for row, values in rows.items():
            v = np.array(list(values.values()))
            line = f"{name:34}{row:10}{len(v):5d}  {v.mean():.3f} ± {_error(v):.3f}"
            both = sorted(values.keys() & rows.get("auto", {}).keys())
            if row != "auto" and both:
                gain = np.array([rows["auto"][d] - values[d] for d in both])
                line += f"   {gain.mean():+.3f} ± {_error(gain):.3f}"
            lines.append(line)
    return "\n".join(lines)


def _error(values: Numbers) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--dives", type=Path, action="append", default=[])
    parser.add_argument("--rows", default="auto,ridge,ridge-z", help=f"among {', '.join(ROWS)}")
    parser.add_argument("--sets", default="", help="only those whose names begin so, separated by semicolons")
    parser.add_argument("--first", type=int, default=100)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "auto.jsonl")
    parser.add_argument("--table", action="store_true", help="only show what stands in --out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {(r["row"], r["set"], r["draw"], r["epochs"]) for r in found}
    wanted = tuple(options.sets.split(";"))
    with options.out.open("a") as file:
        for row in () if options.table else options.rows.split(","):
            epochs = options.epochs if hasattr(METHODS[ROWS[row][0]].load(), "losses") else None
            for name, draw_of in sets(options.features, options.dives).items():
                for draw in range(options.first, options.first + options.draws):
                    if not name.startswith(wanted) or (row, name, draw, epochs) in done:
                        continue
                    try:
                        found.append(measure(row, name, draw_of, draw, epochs))
                    except UsageError as e:
                        print(f"{row} on {name}: {e}")
                        break
                    file.write(json.dumps(found[-1]) + "\n")
                    file.flush()
    print(table(found))


if __name__ == "__main__":
    main()
