"""Which trainings of a table are done: in its own runs, or in those of the same table with another number of seeds.

What one seed gives does not depend on how many there are, so a look with one seed is a part of the table with five.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from aqa_pipelines.tables.measured import ENVIRONMENT
from aqa_pipelines.tables.plan import TableRun
from aqa_shared import console
from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_shared.files import beside
from aqa_train.checkpoint import read_json, writing
from aqa_train.config import RunConfig
from aqa_train.experiment import Experiment
from aqa_train.method_settings import settings_digest
from aqa_train.outputs import PACKAGES, environment, read_config, refuse_other_digests, write_run
from aqa_train.train_one import FAILED, RESULT, STATE


class Finished:
    """What was trained in the runs of one folder, on one device."""

    def __init__(self, out: Path, device: str) -> None:
        self.out = out
        self.device = device
        self._runs: dict[str, list[Path]] = {}
        made_by = environment(device)
        for file in sorted(out.glob("*/config.json")):
            folder = file.parent
            try:
                settings = _but_seeds(read_config(folder))
                found = read_json(folder / "environment.json", "")
            except UsageError:
                continue  # damaged, or no run: its own table will say so
            # A run says by what it was made once for all its trainings, and the record of a table repeats it.
            if all(found.get(k) == made_by.get(k) for k in (*ENVIRONMENT, *PACKAGES)):
                self._runs.setdefault(settings, []).append(folder)

    def of(self, one: TableRun) -> dict[str, Path]:
        """Folders with a result, by the names of the trainings; its own where it has one."""
        own = self.out / one.name / "models"
        found = {t.name: own / t.name for t in one.experiment.trainings if (own / t.name / RESULT).exists()}
        if len(found) < len(one.experiment.trainings):
            for folder in self._like(one):
                for name, place in _same_in(folder, one.experiment):
                    if not (own / name).exists():  # begun, it is finished there
                        found.setdefault(name, place)
        return found

    def take(self, works: Sequence[TableRun]) -> None:
        """Begin the runs that others have trainings of, and put these there; raises StoreError."""
        taken = 0
        for one in works:
            own = self.out / one.name
            for name, place in self.of(one).items():
                if place.is_relative_to(own):
                    continue
                with writing(own):
                    if not (own / "config.json").exists():
                        write_run(one.config, one.experiment.data, own, self.device, None, one.experiment.splits)
                    _put(place, own / "models" / name)
                taken += 1
        if taken:
            console.note(f"{counted(taken, 'training')} of runs with another number of seeds taken over")

    def _like(self, one: TableRun) -> Iterator[Path]:
        """Runs that differ in the number of seeds alone."""
        for folder in self._runs.get(_but_seeds(one.config), []):
            try:
                refuse_other_digests(one.config, one.experiment.data, folder)
            except UsageError:
                continue
            yield folder


def _but_seeds(config: RunConfig) -> str:
    return settings_digest(config.model_copy(update={"seeds": 1}))


def _same_in(folder: Path, experiment: Experiment) -> Iterator[tuple[str, Path]]:
    """Names and folders of its trainings that are some of `experiment`, on the same split."""
    for training in experiment.trainings:
        place = folder / "models" / training.name
        if (place / RESULT).exists():
            try:
                split = read_json(place / RESULT, "").get("split_sha256")
            except UsageError:
                continue
            if split == training.split.digest:
                yield training.name, place


def _put(source: Path, target: Path) -> None:
    """Nothing is changed in place, so files are linked, and copied only where there are no links."""
    partial = beside(target)
    try:
        partial.mkdir(parents=True)
        for file in source.iterdir():
            # What it went on from is no result, and who finished it may be removing it now.
            if file.is_file() and file.name not in (STATE, FAILED) and not file.name.startswith("."):
                _link(file, partial / file.name)
        partial.rename(target)
    except OSError:
        if not target.exists():  # else another process was faster
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
