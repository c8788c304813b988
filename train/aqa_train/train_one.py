"""One training of a run: it learns, is tested, and leaves a folder that a later call finds and skips.

The baselines, which every method is compared with, are trained in the same way and leave nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aqa_shared.console import counted
from aqa_train import metrics, protocol
from aqa_train.batch import Inputs
from aqa_train.checkpoint import read_json, write_json
from aqa_train.experiment import Experiment, OneTraining
from aqa_train.features import FeatureSet, InMemory
from aqa_train.memory import enough_memory
from aqa_train.method_settings import method_config, training_of
from aqa_train.methods import METHODS
from aqa_train.needs import what_it_reads
from aqa_train.order import Rows
from aqa_train.predict import save_model
from aqa_train.scores import identities, learned_from
from aqa_train.splits import Split
from aqa_train.storage import load_state, rounded, unread
from aqa_train.together import Failed, fit_together
from aqa_train.trainer import Diverged, Fitted, Task, begun, fit, predict

RESULT, FAILED, STATE = "result.json", "failed.json", "state.safetensors"
"""In a training's folder: what it found, once it is done; why it ended, of a method that is left out for it; where it
stands, until it is done."""
ABANDONED = 3600.0
"""Seconds after which nobody writes to a half-written file any more."""
LESS_MEMORY = "use --in-memory no, a smaller --set batch, fewer --jobs or a smaller --together"


@enough_memory(LESS_MEMORY)
def run_training(
    experiment: Experiment,
    training: OneTraining,
    features: FeatureSet,
    out: Path,
    device: torch.device,
    stop: Callable[[], int] = lambda: 0,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> dict[str, Any]:
    """Train, evaluate and write one training's folder; one that is complete is read back."""
    folder = out / "models" / training.name
    if (folder / RESULT).exists():
        return result_of(training, out)
    remove_abandoned(folder)
    torch.set_num_threads(experiment.config.training.threads)
    learned = _learn(experiment, training, features, device, state=folder / STATE, stop=stop, on_epoch=on_epoch)
    return _finish(experiment, training, learned, folder, device)


@enough_memory(LESS_MEMORY)
def run_together(
    trainings: Sequence[tuple[Experiment, OneTraining, Path]],
    features: FeatureSet,
    device: torch.device,
    stop: Callable[[], int],
    on_epoch: Callable[[int, int, dict[str, float]], None],
    failed: Failed,
) -> None:
    """As `run_training` of each, computed as one model; what has a result is left as it is.

    `failed` and `on_epoch` are told the place of the training first (`aqa_train.together`).
    """
    folders = [out / "models" / training.name for _, training, out in trainings]
    lessons: dict[int, _Lesson] = {}
    for i, (experiment, training, _) in enumerate(trainings):
        if (folders[i] / RESULT).exists():
            continue
        remove_abandoned(folders[i])
        torch.set_num_threads(experiment.config.training.threads)
        try:
            lessons[i] = _lesson(experiment, training, features)
        except Exception as e:
            failed(i, _told(e))
    todo = list(lessons)
    fitted = fit_together(
        [partial(begun, **lessons[i].asked, device=device, state=folders[i] / STATE) for i in todo],
        device,
        stop=stop,
        on_epoch=lambda k, *epoch: on_epoch(todo[k], *epoch),
        failed=lambda k, error: [todo.index(i) for i in failed(todo[k], _told(error)) if i in todo],
    )
    wrong: dict[int, Exception] = {}
    for i, found in zip(todo, fitted, strict=True):
        if found is not None:
            learned = _Learned(found, lessons[i].read, lessons[i].inputs)
            try:
                _finish(*trainings[i][:2], learned, folders[i], device, len(todo))
            except Exception as e:
                wrong[i] = e
    for i, error in wrong.items():
        failed(i, _told(error))


def _told(error: Exception) -> Exception:
    """What `enough_memory` makes of it."""
    try:
        with enough_memory(LESS_MEMORY):
            raise error
    except Exception as e:
        return e


def _finish(
    experiment: Experiment,
    training: OneTraining,
    learned: _Learned,
    folder: Path,
    device: torch.device,
    together: int = 1,
) -> dict[str, Any]:
    """Test it and write its folder; `together`: of how many that were computed as one model it is one."""
    result = {**_test(experiment, training, learned, folder, device), "together": together}
    write_json(folder / RESULT, result)
    for left in (folder / STATE, folder / FAILED):
        left.unlink(missing_ok=True)
    return result


def result_of(training: OneTraining, out: Path) -> dict[str, Any]:
    """What a training that is done found."""
    folder = out / "models" / training.name
    again = f"remove {folder / RESULT}; aqa-train --resume then does this training again"
    found: dict[str, Any] = read_json(folder / RESULT, again)
    return found


def remove_abandoned(folder: Path) -> None:
    """What processes left that were killed while they saved; what is young, another one may be writing now."""
    for left in folder.glob(".*.partial"):
        with suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > ABANDONED:
                left.unlink()


@dataclass(frozen=True)
class _Learned:
    """A trained method with what it read."""

    fitted: Fitted
    read: FeatureSet
    inputs: Inputs


@dataclass(frozen=True)
class _Lesson:
    """What a training learns from."""

    asked: dict[str, Any]
    """What `fit` is to be given: build, task, training and seed."""
    read: FeatureSet
    inputs: Inputs


def _learn(
    experiment: Experiment, training: OneTraining, features: FeatureSet, device: torch.device, **going_on: Any
) -> _Learned:
    """Learn from the split's videos; `fit` takes `going_on` (state, stop, on_epoch)."""
    lesson = _lesson(experiment, training, features)
    return _Learned(fit(**lesson.asked, device=device, **going_on), lesson.read, lesson.inputs)


def _lesson(experiment: Experiment, training: OneTraining, features: FeatureSet) -> _Lesson:
    """Of the split's videos; scores of test videos are not in it."""
    config, split = experiment.config, training.split
    rows = {r: protocol.rows_of(features, getattr(split, r)) for r in ("labelled", "unlabelled", "validation", "test")}
    scores = features.column("score").astype(np.float64)
    how = training_of(config, training.method)
    scale = protocol.score_scale(config, scores[rows["labelled"]], how.score_max)
    read, inputs = what_it_reads(config, training.method, split, features, how.standardise)
    inputs = replace(inputs, scale=scale)
    hidden = np.where(np.isin(np.arange(len(scores)), rows["test"]), np.nan, scale.to_training(scores))
    settings, cls = method_config(config, training.method), METHODS[training.method].load()
    scored = _scored(read, inputs, split)
    asked = {
        "build": lambda: cls(inputs, settings),
        "task": Task(read, rows["labelled"], rows["unlabelled"], rows["validation"], hidden, scored),
        "training": how,
        "seed": [split.seed, split.fold],
    }
    return _Lesson(asked, read, inputs)


def _scored(features: FeatureSet, inputs: Inputs, split: Split) -> Rows:
    """Who is scored: every video of the store; by a method that reads columns, those that the split names.

    Of the others nobody promised the columns, nor that a category is one that was learned from.
    """
    if all(column.label for column in inputs.columns.values()):
        return np.arange(len(features.ids))
    return protocol.rows_of(features, split.labelled + split.unlabelled + split.validation + split.test)


def _test(
    experiment: Experiment, training: OneTraining, learned: _Learned, folder: Path, device: torch.device
) -> dict[str, Any]:
    """Scores by what was learned, figures of the test videos, and checkpoints in `folder`."""
    config, split, row = experiment.config, training.split, METHODS[training.method]
    fitted, features = learned.fitted, experiment.features
    labelled, test = (protocol.rows_of(features, ids) for ids in (split.labelled, split.test))
    scored = _scored(features, learned.inputs, split)
    scores = features.column("score").astype(np.float64)
    how = training_of(config, training.method)
    meta = {
        "method": training.method,
        "config": asdict(method_config(config, training.method)),
        "training": how.model_dump(mode="json"),
        "inputs": asdict(learned.inputs),
        "extract": None if experiment.extract is None else experiment.extract.model_dump(mode="json"),
        "weights": experiment.weights,
        "made": experiment.made,
        "split": {"fold": split.fold, "seed": split.seed, "sha256": split.digest},
        "learned_from": identities(features, np.flatnonzero(learned_from(features, split, config))),
        "not_stored": unread(fitted.model, learned.read.load(labelled[:2], device)),
    }
    result: dict[str, Any] = {
        "method": training.method,
        "fold": split.fold,
        "seed": split.seed,
        "split_sha256": split.digest,
        "uses_difficulty": row.uses_difficulty or any(name in learned.inputs.columns for name in row.declares),
        "labelled": len(split.labelled),
        "unlabelled": len(split.unlabelled),
        "parameters": sum(p.numel() for p in fitted.model.parameters()),
        "seconds": round(fitted.seconds, 3),
        "epochs": len(fitted.history),
        "best_epoch": fitted.best_epoch,
        "history": fitted.history,
        "ids": [features.ids[r] for r in test],
        "true": scores[test].tolist(),
        "predicted": {},
        "metrics": {},
    }
    spans = protocol.spans(config, features)
    for selection, state in _selections(fitted):
        load_state(fitted.model, state)
        # All at once, and in one way: the last bit depends on which videos are scored together.
        values = np.full(len(scores), np.nan)
        values[scored] = learned.inputs.scale.to_scores(predict(fitted.model, learned.read, scored, device))
        if not np.isfinite(values[scored]).all():
            raise Diverged(
                f"{training.name} ({selection}) gives {features.ids[scored[~np.isfinite(values[scored])][0]]} a score "
                "that is not a finite number",
                fix="lower --lr, or standardise the features (--set standardise=z-score)",
            )
        if selection == "last":
            result["scores"] = [None if np.isnan(v) else v for v in values.tolist()]
        predicted = values[test]
        result["predicted"][selection] = predicted.tolist()
        result["metrics"][selection] = metrics.evaluate(predicted, scores[test], spans[test])
        method: Any = fitted.model
        if len(test) and getattr(method, "has_uncertainty", False):
            doubt = predict(method, learned.read, test, device, method.uncertainty)
            result.setdefault("uncertainty", {})[selection] = learned.inputs.scale.difference(doubt).tolist()
        epochs = {"last": len(fitted.history), "best": fitted.best_epoch}
        name = selection.split("-")[0]
        if name == "last" or epochs["best"] != epochs["last"]:
            save_model(folder / f"{name}.safetensors", state, learned.read.standardise, {**meta, "epoch": epochs[name]})
    return result


def _selections(fitted: Fitted) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """As they will be stored, so that what is tested is what can be used."""
    last = rounded(fitted.model.state_dict())
    return [("last", last)] + ([("best-on-validation", rounded(fitted.best))] if fitted.best is not None else [])


@enough_memory(LESS_MEMORY)
def run_baselines(experiment: Experiment, features: FeatureSet) -> list[dict[str, Any]]:
    """The rows every method is compared with, on the same splits: those of the table that stand beside every result."""
    scores, device = features.column("score").astype(np.float64), torch.device("cpu")
    features, spans = features.on(device), protocol.spans(experiment.config, features)
    wanted = [name for name, row in METHODS.items() if row.baseline and name not in experiment.config.methods]
    found = []
    for split in experiment.splits:
        if not split.test:
            continue
        for name in wanted:
            if not _tells(features, name, split):
                continue
            learned = _learn(experiment, OneTraining(name, split), features, device)
            test = protocol.rows_of(features, split.test)
            predicted = learned.inputs.scale.to_scores(predict(learned.fitted.model, learned.read, test, device))
            measured = metrics.evaluate(predicted, scores[test], spans[test])
            found.append(
                {
                    "method": name,
                    "fold": split.fold,
                    "seed": split.seed,
                    "uses_difficulty": METHODS[name].uses_difficulty,
                    "epochs": 0,
                    "seconds": round(learned.fitted.seconds, 3),
                    "ids": [features.ids[r] for r in test],
                    "true": scores[test].tolist(),
                    "predicted": {"baseline": predicted.tolist()},
                    "metrics": {"baseline": measured},
                }
            )
    return found


def _tells(features: FeatureSet, method: str, split: Split) -> bool:
    """Whether the columns that a baseline reads are known of all labelled and test videos, and differ."""
    known = {*split.labelled, *split.test}
    for name in METHODS[method].columns:
        cells = [cell for i, cell in zip(features.ids, features.cells(name), strict=True) if i in known]
        if None in cells or len(set(cells)) < 2:
            return False
    return True


@enough_memory(LESS_MEMORY)
def place(
    features: FeatureSet, device: torch.device, in_memory: InMemory, jobs: int = 1, folder: Path | None = None
) -> FeatureSet:
    """The features where training wants them, and a word when they are streamed.

    With a `folder` they are kept there for `jobs` processes to share, each of which copies them to a GPU alone;
    without one, each of `jobs` has its own.
    """
    here = device if folder is None else torch.device("cpu")
    placed = features.place(here, in_memory, jobs if device.type != "cpu" or folder is None else 1, folder)
    if placed.resident is None:
        size = placed.nbytes / 2**30
        placed.say(
            f"{size:.1f} GiB of features are streamed in {counted(len(placed.blocks), 'block')}, not kept in memory"
        )
    return placed
