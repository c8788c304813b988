"""A whole run: methods × folds × seeds, each trained by the same loop, in one process or in several.

Everything a training needs is a function of the configuration and the store, so a worker is told only which of
the run's trainings are its own, and what it finishes is a folder that a later call finds and skips.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_shared.files import replace_text, temporary_folder
from aqa_shared.records import ExtractSettings
from aqa_train import metrics, protocol
from aqa_train.batch import Batch, Inputs
from aqa_train.checkpoint import writing
from aqa_train.columns import Kind
from aqa_train.config import RunConfig
from aqa_train.features import FeatureSet, InMemory, adds_streams, array_of, enough_memory
from aqa_train.method_settings import method_config, training_of
from aqa_train.methods import ALL, DEFAULT, LINEAR, METHODS, VIEWS
from aqa_train.order import Rows
from aqa_train.predict import save_model
from aqa_train.scores import identities, learned_from
from aqa_train.splits import Split
from aqa_train.storage import load_state, rounded, unread
from aqa_train.trainer import Diverged, Fitted, Task, fit, predict

Say = Callable[[str], None]
LESS_MEMORY = "use --in-memory no, a smaller --set batch, or fewer --jobs"
NOT_STOPPED: Callable[[], int] = lambda: 0  # noqa: E731


@dataclass(frozen=True)
class OneTraining:
    """One training of a run."""

    method: str
    split: Split

    @property
    def name(self) -> str:
        """Its folder under `models/`."""
        return f"{self.method}/fold{self.split.fold}-seed{self.split.seed}"


@dataclass(frozen=True)
class Experiment:
    """A configuration with its data opened and its videos given roles."""

    config: RunConfig
    features: FeatureSet
    splits: list[Split]
    extract: ExtractSettings | None
    weights: dict[str, Any]
    data: dict[str, str | None]
    """Digests of everything that was read: the store's content and the labels file."""
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By stream, what decided its values: one store may hold streams of several ways."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """By method that was not named and does not fit the data, why."""

    @property
    def trainings(self) -> list[OneTraining]:
        """In the order they are run: by seed, so that comparisons fill up evenly."""
        by_seed = sorted(self.splits, key=lambda s: (s.seed, s.fold))
        return [OneTraining(m, s) for s in by_seed for m in self.methods]

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that fit the data."""
        return tuple(m for m in self.config.methods if m not in self.left_out)


@dataclass(frozen=True)
class Data:
    """A store with its labels, opened once for all runs of a grid."""

    config: RunConfig
    """As it was, with the streams that the store has where none were named."""
    features: FeatureSet
    extract: ExtractSettings | None
    weights: dict[str, Any]
    digests: dict[str, str | None]
    made: dict[str, dict[str, Any]]
    unmet: Mapping[str, UsageError]
    """By method whose streams the store does not have."""

    @property
    def named(self) -> RunConfig:
        """With the methods by name, where all were asked for; those that stand beside every result come first."""
        if self.config.methods != (ALL,):
            return self.config
        ordered = sorted(METHODS, key=lambda m: (not METHODS[m].baseline, m == LINEAR))
        return self.config.model_copy(update={"methods": tuple(ordered), "leave_out": True})


def open_data(config: RunConfig, say: Say) -> Data:
    """Open the store lazily and apply the labels file."""
    from aqa_shared.store import FeatureStore

    temporary_folder()  # torch looks for one when the first optimiser is made, after all that takes time here
    store = FeatureStore.open(config.features)
    if not config.streams:
        if not store.streams:
            raise UsageError(
                f"{store.path} holds no features, which most methods and the baselines read, only "
                f"{', '.join(store.specs) or 'a table'}",
                fix=f"add them: {adds_streams(store.path, ['rgb'])}",
            )
        plain = [n for n in store.streams if n.split("_")[0] not in VIEWS] or store.streams
        names = tuple(str(store.specs[n].attrs.get("stream", n.replace("_", "-"))) for n in plain)
        config = config.model_copy(update={"streams": names})
    every = config.methods == (ALL,)
    methods = tuple(METHODS) if every else config.methods
    unmet = _without_streams(methods, config, store)
    if unmet and not (len(unmet) < len(methods) and (every or config.leave_out)):
        raise next(iter(unmet.values()))
    needed = [array_of(s) for m in methods if m not in unmet for s in METHODS[m].streams]
    streams = dict.fromkeys([*map(array_of, config.streams), *needed])
    features = FeatureSet.from_store(store, list(streams), say=say)
    labels = None
    if config.labels is not None:
        from aqa_train.labels import relabel

        columns = {"id": config.id_column, "score": config.score_column}
        features = relabel(features, Path(config.labels), {k: v for k, v in columns.items() if v is not None})
        labels = hashlib.sha256(Path(config.labels).read_bytes()).hexdigest()
    weights = dict(store.provenance.get("weights") or {})
    read = store.select(*features.channels)
    made = {name: dict(store.specs[name].identity) for name in features.channels}
    digests = {"content": read.content, "labels_sha256": labels}
    if config.dataset is not None:
        protocol.spans(config, features)  # what it lacks is said now
        digests["dataset_sha256"] = hashlib.sha256(Path(config.dataset).read_bytes()).hexdigest()
    return Data(config, features, read.settings, weights, digests, made, unmet)


def prepare(config: RunConfig, say: Say) -> Experiment:
    """Open the data and arrange one run on it."""
    data = open_data(config, say)
    return arrange(data.named, data, say)


def arrange(config: RunConfig, data: Data, say: Say) -> Experiment:
    """Make the splits, and try every method on one small batch."""
    features = data.features
    splits = protocol.make_splits(config, features, say)
    experiment = Experiment(config, features, splits, data.extract, data.weights, data.digests, data.made)
    _outside_range(experiment, say)
    wrong = {m: e for m in config.methods if (e := data.unmet.get(m) or _unmet(experiment, m)) is not None}
    if wrong and not (config.leave_out and len(wrong) < len(config.methods)):
        raise next(iter(wrong.values()))
    for method, error in wrong.items():
        say(f"{method} is left out: {error.cause}")
    return replace(experiment, left_out={m: e.cause for m, e in wrong.items()})


@enough_memory(LESS_MEMORY)
def run_training(
    experiment: Experiment,
    training: OneTraining,
    features: FeatureSet,
    out: Path,
    device: torch.device,
    stop: Callable[[], int] = NOT_STOPPED,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> dict[str, Any]:
    """Train, evaluate and write one training's folder; one that is complete is read back."""
    folder = out / "models" / training.name
    result_file = folder / "result.json"
    if result_file.exists():
        found: dict[str, Any] = json.loads(result_file.read_text())
        return found
    for left in folder.glob(".*.partial"):
        left.unlink(missing_ok=True)  # of a process that was killed while it saved
    torch.set_num_threads(experiment.config.training.threads)
    learned = _learn(experiment, training, features, device, folder / "state.safetensors", stop, on_epoch)
    result = _test(experiment, training, learned, folder, device)
    write_json(result_file, result)
    (folder / "state.safetensors").unlink(missing_ok=True)
    return result


@dataclass(frozen=True)
class _Learned:
    """A trained method with what it read."""

    fitted: Fitted
    read: FeatureSet
    inputs: Inputs


def _learn(
    experiment: Experiment,
    training: OneTraining,
    features: FeatureSet,
    device: torch.device,
    state: Path | None = None,
    stop: Callable[[], int] = NOT_STOPPED,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> _Learned:
    config, split = experiment.config, training.split
    rows = {r: protocol.rows_of(features, getattr(split, r)) for r in ("labelled", "unlabelled", "validation", "test")}
    scores = features.column("score").astype(np.float64)
    how = training_of(config, training.method)
    scale = protocol.score_scale(config, scores[rows["labelled"]], how.score_max)
    read, inputs = what_it_reads(config, training.method, split, features, how.standardise)
    inputs = replace(inputs, scale=scale)
    hidden = np.where(np.isin(np.arange(len(scores)), rows["test"]), np.nan, scale.to_training(scores))
    settings, cls = method_config(config, training.method), METHODS[training.method].load()
    fitted = fit(
        lambda: cls(inputs, settings),
        Task(read, rows["labelled"], rows["unlabelled"], rows["validation"], hidden, _scored(read, inputs, split)),
        how,
        seed=[split.seed, split.fold],
        device=device,
        state=state,
        stop=stop,
        on_epoch=on_epoch,
    )
    return _Learned(fitted, read, inputs)


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

    With a `folder` they are kept there for `jobs` processes to share, each of which copies them to a GPU alone.
    """
    here = device if folder is None else torch.device("cpu")
    placed = features.place(here, in_memory, jobs if device.type != "cpu" else 1, folder)
    if placed.resident is None:
        size = placed.nbytes / 2**30
        placed.say(
            f"{size:.1f} GiB of features are streamed in {counted(len(placed.blocks), 'block')}, not kept in memory"
        )
    return placed


def write_json(path: Path, value: Any) -> None:
    """Atomically, and never with NaN."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=True))


def _selections(fitted: Fitted) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """As they will be stored, so that what is tested is what can be used."""
    last = rounded(fitted.model.state_dict())
    return [("last", last)] + ([("best-on-validation", rounded(fitted.best))] if fitted.best is not None else [])


def _outside_range(experiment: Experiment, say: Say) -> None:
    if experiment.config.score_range is None:
        return
    low, high = experiment.config.score_range
    scores = experiment.features.column("score").astype(np.float64)
    outside = int(((scores < low) | (scores > high)).sum())
    if outside:
        say(f"{counted(outside, 'score')} outside the score range {low:g} … {high:g}")


def epochs_of(config: RunConfig, method: str) -> int:
    """Epochs that one method takes; one that learns all at once counts as one."""
    return training_of(config, method).epochs if hasattr(METHODS[method].load(), "losses") else 1


def what_it_reads(
    config: RunConfig, method: str, split: Split, features: FeatureSet, standardise: str
) -> tuple[FeatureSet, Inputs]:
    """The streams and columns that a method asks for, as the training videos of `split` tell to read them."""
    row = METHODS[method]
    chosen = features.select([array_of(s) for s in row.streams or config.streams])
    labelled, seen = (protocol.rows_of(features, ids) for ids in (split.labelled, split.labelled + split.unlabelled))
    columns = {**row.columns, **_known(features, row.optional, seen)}
    labels = {**row.labels, **_known(features, row.optional_labels, labelled)}
    return chosen.prepared(columns, labels, seen, labelled, standardise)


def _known(features: FeatureSet, columns: Mapping[str, Kind], rows: Rows) -> dict[str, Kind]:
    """Those of the columns that at least one of these videos has."""
    cells = {name: features.cells(name) for name in columns}
    return {name: kind for name, kind in columns.items() if any(cells[name][r] is not None for r in rows)}


def _without_streams(methods: Sequence[str], config: RunConfig, store: Any) -> dict[str, UsageError]:
    """Those of the methods that read streams which the store does not have, with what adds them."""
    needs = {m: METHODS[m].streams for m in methods}
    lacking = {m: [s for s in streams if array_of(s) not in store.specs] for m, streams in needs.items()}
    return {
        m: UsageError(
            f"method {m} needs {', '.join(missing)}, and {store.path} holds {', '.join(store.streams) or 'no streams'}",
            fix=f"add them: {adds_streams(store.path, [*config.streams, *needs[m]])}",
        )
        for m, missing in lacking.items()
        if missing
    }


def _unmet(experiment: Experiment, method: str) -> UsageError | None:
    """What a method needs that the data do not have, by the name of what gives it, or why it cannot be built."""
    row, features = METHODS[method], experiment.features
    for name in (*row.columns, *row.labels):
        if all(cell is None for cell in features.cells(name)):
            return UsageError(
                f"method {method} reads the column {name}, and no video has it",
                fix=f"give it with --labels FILE, a table with the columns id,score,{name}",
            )
    if row.unlabelled and not all(s.unlabelled for s in experiment.splits):
        return UsageError(
            f"method {method} learns from unlabelled videos, and there are none",
            fix=f"use --method {DEFAULT}, add videos without scores, or hide scores to try it (--labelled 0.4)",
        )
    try:
        _probe(experiment, method)
    except UsageError as e:
        return e
    return None


def _probe(experiment: Experiment, method: str) -> None:
    """Build the method and evaluate its losses once on random features, so that a wrong setting ends the run now.

    What `prepare` and `begin_epoch` need are real videos, so the losses of a method with those are not tried.
    """
    split, config = experiment.splits[0], method_config(experiment.config, method)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        read, inputs = what_it_reads(experiment.config, method, split, experiment.features, "none")
        try:
            with enough_memory("use smaller --set widths"):
                model = METHODS[method].load()(inputs, config)
                if hasattr(model, "losses") and not (hasattr(model, "prepare") or hasattr(model, "begin_epoch")):
                    labelled, unlabelled = (
                        _imagined(read, protocol.rows_of(read, ids)[:2]) for ids in (split.labelled, split.unlabelled)
                    )
                    model.losses(replace(labelled, scores=torch.tensor([0.0, 1.0])), unlabelled)
        except (ValueError, RuntimeError) as e:
            raise UsageError(f"method {method} cannot work with these features: {e}") from e


def _imagined(features: FeatureSet, rows: Rows) -> Batch:
    """These videos with random features, without reading them."""
    n = len(rows)
    streams = {name: torch.rand(n, features.segments, *shape) for name, shape in features.shapes.items()}
    present = torch.ones(n, features.segments, dtype=torch.bool) if features.ragged else None
    columns = {name: values[torch.as_tensor(rows)] for name, values in features.columns.items()}
    return Batch(streams, torch.full((n,), torch.nan), present, columns)
