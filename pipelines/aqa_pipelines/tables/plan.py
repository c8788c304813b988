"""What a table takes: its cells as runs of aqa-train, which of them can be run on a store, and for how long."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aqa_pipelines.tables.record import PaperTable, TableColumn, TableRow, settings
from aqa_shared import console
from aqa_shared.errors import AqaError, UsageError
from aqa_train.checkpoint import read_json
from aqa_train.config import RunConfig, absolute
from aqa_train.estimate import seconds_of
from aqa_train.experiment import Data, Experiment, arrange, open_data
from aqa_train.folds import source_of_tests
from aqa_train.method_settings import settings_digest, training_of
from aqa_train.methods import METHODS
from aqa_train.protocol import once
from aqa_train.schedule import videos_an_epoch
from aqa_train.splits import role_named
from aqa_train.train_one import RESULT, place
from aqa_train.trainer import Diverged


@dataclass(frozen=True)
class Spot:
    """Where a run's figures stand in the table."""

    row: TableRow
    column: TableColumn


@dataclass
class TableRun:
    """One run of one method, which may serve several columns that measure it differently."""

    config: RunConfig
    spots: list[Spot]
    arranged: Experiment | None = None
    """None where it cannot be run."""
    lacks: UsageError | None = None
    """What it lacks."""
    failed: AqaError | None = None
    """What its training came to grief by."""

    @property
    def experiment(self) -> Experiment:
        """What is run; of those that can be."""
        assert self.arranged is not None
        return self.arranged

    @cached_property
    def name(self) -> str:
        """Its folder: the method, what is set for it, and a digest of all settings but places, defaults too.

        Of a split file, a digest of what is in it when the run is first named: published lists differ, wherever they
        lie.
        """
        row, column = self.spots[0].row, self.spots[0].column
        said = {k: v for k, v in {**column.run, **row.settings}.items() if k not in ("split", "recipe")}
        digests = [settings_digest(self.config)[:8]]
        if self.config.split is not None:
            digests.append(hashlib.sha256(Path(self.config.split).read_bytes()).hexdigest()[:8])
        text = ",".join([str(row.method), *(f"{k}={v}" for k, v in said.items())])
        return "-".join([re.sub(r"[^\w.=+,-]", "_", text)[:80], *digests])


@dataclass(frozen=True)
class TablePlan:
    """A table on a store."""

    table: PaperTable
    works: list[TableRun]
    lacking: dict[tuple[str, str], list[Spot]] = field(default_factory=dict)
    """Cause and fix → where it is missing."""
    otherwise: list[str] = field(default_factory=list)
    """What of the features is known not to be as in the paper."""

    @property
    def ready(self) -> list[TableRun]:
        """Those that can be run, and did not fail."""
        return [w for w in self.works if w.arranged is not None and w.failed is None]

    @property
    def failures(self) -> dict[str, AqaError]:
        """By row and column, what its training came to grief by."""
        return {f"{s.row.name} ({s.column.name})": w.failed for w in self.works if w.failed for s in w.spots}


def works_of(table: PaperTable, features: str, given: Mapping[str, Any], only: Sequence[str] = ()) -> list[TableRun]:
    """The runs of a table, or of `only` these rows, each once."""
    found: dict[str, TableRun] = {}
    if "epochs" in given and (own := [c.name for c in table.columns if "epochs" in c.run]):
        raise UsageError(f"--epochs would train the columns {', '.join(own)} alike", fix="omit it")
    for row in table.chosen(only):
        for column in table.columns:
            if row.method is None or column.average_of or (row.columns and column.name not in row.columns):
                continue
            if (name := {**table.run, **column.run}.get("score_column")) and not given.get("labels"):
                raise UsageError(
                    f"column {column.name!r} learns the scores {name!r} of a table",
                    fix="give it with --labels: the manifest.csv or labels.csv of aqa datasets prepare",
                )
            config = absolute(settings(table, row, column, features, given))
            work = TableRun(config, [Spot(row, column)])
            found.setdefault(config.model_dump_json(), work)
            if (same := found[config.model_dump_json()]) is not work:
                same.spots.append(work.spots[0])
    return list(found.values())


def examine(
    table: PaperTable, features: str, given: Mapping[str, Any] | None = None, only: Sequence[str] = ()
) -> TablePlan:
    """Open the store and arrange every run; one that lacks something is kept with what it lacks."""
    works = works_of(table, features, given or {}, only)
    say = once(console.warn)
    opened: dict[tuple[Any, ...], Data | UsageError] = {}
    lacking: dict[tuple[str, str], list[Spot]] = {}
    for one in works:
        config = one.config
        _refuse_absent(config)
        needs = METHODS[config.methods[0]].streams
        key = (config.streams, config.labels, config.score_column, config.id_column, config.dataset, needs)
        if key not in opened:
            try:
                opened[key] = open_data(config, say)
            except UsageError as e:
                opened[key] = e
        try:
            data = opened[key]
            if isinstance(data, UsageError):
                raise data
            _refuse_other_protocol(config, data)
            one.config = config.model_copy(update={"streams": data.config.streams})
            arranged = arrange(one.config, data, say)
            if table.kind == "embedding":
                _refuse_too_few(len(arranged.splits[0].unlabelled))
            one.arranged = arranged
        except UsageError as e:
            one.lacks = e
            lacking.setdefault((e.cause, e.fix), []).extend(one.spots)
    read = [data for data in opened.values() if isinstance(data, Data)]
    return TablePlan(table, works, lacking, list(dict.fromkeys(w for data in read for w in _otherwise(table, data))))


def _otherwise(table: PaperTable, data: Data) -> list[str]:
    """Of imported features nothing is known."""
    imported = all("made_by" in made for made in data.made.values())
    if table.protocol is None or data.extract is None or imported:
        return []
    found = data.extract.sampling.protocol
    return [] if found == table.protocol else [f"features of --protocol {found}, the paper's are of {table.protocol}"]


def _refuse_absent(config: RunConfig) -> None:
    """A file that is not there is a slip, and nothing that rows lack."""
    for name in ("labels", "dataset", "split"):
        if (file := getattr(config, name)) is not None and not Path(file).is_file():
            raise UsageError(f"{name}: there is no file {file}", fix="check the path")


def _refuse_too_few(unlabelled: int) -> None:
    if unlabelled < 2:
        raise UsageError(
            f"t-SNE places two unlabelled videos or more, and there are {unlabelled}",
            fix="lower labelled in the table's file, or add videos without scores",
        )


def _refuse_other_protocol(config: RunConfig, data: Data) -> None:
    """Tables have published test videos: folds of our own would be other ones."""
    role = np.array([role_named(str(r)) for r in data.features.column("split")], dtype=object)
    if source_of_tests(config, role) == "cross-validation":
        raise UsageError(
            f"no video of {config.features} is marked test in the column split",
            fix="extract with the manifest of aqa datasets prepare, or give it with --labels",
        )


def time_of(plan: TablePlan, finished: Mapping[str, Collection[Path]], device: torch.device) -> dict[str, float]:
    """Seconds of one training of every run that can be run, by its name.

    Of what is `finished`, folders by the run's name, what it took; of the rest a few epochs of one run of each method
    are tried, and what they took is scaled by the number of videos of the others. What fails in them is marked so.
    """
    found: dict[str, float] = {}
    tried: dict[tuple[Any, ...], tuple[float, int]] = {}
    for one in plan.ready:
        if done := finished[one.name]:
            fix = "remove it: the same command trains it again"
            seconds_each = [read_json(folder / RESULT, fix)["seconds"] for folder in done]
            found[one.name] = float(np.mean(seconds_each))
            continue
        (method,), config = one.config.methods, one.config
        key = tuple(map(str, (method, config.streams, config.settings, config.training, config.recipe)))
        first = one.experiment.splits[0]
        videos = videos_an_epoch(len(first.labelled), len(first.unlabelled), training_of(config, method))
        if key not in tried:
            placed = place(one.experiment.features, device, "auto")
            try:
                tried[key] = seconds_of(method, one.experiment, placed, device), videos
            except (UsageError, Diverged) as e:
                one.failed = e
                continue
        seconds, of = tried[key]
        found[one.name] = seconds * videos / max(of, 1)
    return found
