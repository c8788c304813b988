"""A run made ready: methods × folds × seeds, on data that were opened and checked before anything is trained.

Everything a training needs is a function of the configuration and the store, so a worker is told only which of
the run's trainings are its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from aqa_shared.console import Say, counted
from aqa_shared.errors import UsageError
from aqa_shared.files import temporary_folder
from aqa_shared.records import ExtractSettings
from aqa_train import protocol
from aqa_train.config import RunConfig
from aqa_train.features import FeatureSet
from aqa_train.methods import ALL, LINEAR, METHODS, VIEWS
from aqa_train.needs import unmet, without_streams
from aqa_train.splits import Split
from aqa_train.stream_names import adds_streams, array_of


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
    unmet = without_streams(methods, config, store)
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


def open_features(configs: Sequence[RunConfig], say: Say) -> FeatureSet:
    """What several runs on one store, with the same labels, read of it."""
    methods = tuple(dict.fromkeys(m for c in configs for m in c.methods))
    streams = tuple(dict.fromkeys(s for c in configs for s in c.streams))
    union = {**configs[0].model_dump(), "methods": methods, "streams": streams, "settings": {}, "training": {}}
    return open_data(RunConfig.model_validate(union), say).features


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
    wrong = {m: e for m in config.methods if (e := data.unmet.get(m) or unmet(m, config, features, splits)) is not None}
    if wrong and not (config.leave_out and len(wrong) < len(config.methods)):
        raise next(iter(wrong.values()))
    for method, error in wrong.items():
        say(f"{method} is left out: {error.cause}")
    return replace(experiment, left_out={m: e.cause for m, e in wrong.items()})


def _outside_range(experiment: Experiment, say: Say) -> None:
    if experiment.config.score_range is None:
        return
    low, high = experiment.config.score_range
    scores = experiment.features.column("score").astype(np.float64)
    outside = int(((scores < low) | (scores > high)).sum())
    if outside:
        say(f"{counted(outside, 'score')} outside the score range {low:g} … {high:g}")
