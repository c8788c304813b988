"""Every training of every cell of a grid, by one executor; then each cell's run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from aqa_shared.errors import AqaError
from aqa_train.checkpoint import writing
from aqa_train.experiment import Experiment
from aqa_train.features import FeatureSet, InMemory
from aqa_train.grid import Cell
from aqa_train.outputs import write_places, write_results, write_start
from aqa_train.signals import Stopped, ended_in_order
from aqa_train.train_one import place, run_baselines, run_training
from aqa_train.workers import Executor, Here, Job, Processes, shared_folder


@dataclass(frozen=True)
class Trained:
    """A cell with all that came of it."""

    cell: Cell
    experiment: Experiment
    out: Path
    """Its run folder."""
    results: list[dict[str, Any]]
    baselines: list[dict[str, Any]]
    summary: dict[str, Any]
    """What its metrics.json holds."""
    failures: dict[str, AqaError]
    """By method that was left out while it learned, why."""


def train_cells(
    grid: Sequence[tuple[Cell, Experiment]],
    features: FeatureSet,
    out: Path,
    *,
    device: torch.device,
    jobs: int,
    in_memory: InMemory,
    go_on: str,
    before: Callable[[], None] = lambda: None,
) -> Iterator[Trained]:
    """Train what is not done yet, each cell into its folder of `out`, and yield the cells with their results.

    `features` hold the streams of all cells. `before` is called once they are in place, `go_on` is the command that
    goes on after a signal.
    """
    with shared_folder(jobs) as folder:
        placed = place(features, device, in_memory, jobs, folder)
        grid = [(cell, replace(experiment, features=placed)) for cell, experiment in grid]
        before()
        for cell, experiment in grid:
            if (out / cell.name / "config.json").exists():
                write_places(experiment.config, out / cell.name)
            else:
                write_start(experiment, out / cell.name, str(device))
        executor: Executor = Processes(placed, device, jobs) if jobs > 1 else Here(placed, device)
        every = [
            Job(experiment, t, out / cell.name, f"{cell.name}/{t.name}".lstrip("/"))
            for cell, experiment in grid
            for t in experiment.trainings
        ]
        # By seed, so that comparisons fill up evenly over the whole grid.
        for job in sorted(every, key=lambda j: j.training.split.seed):
            if not job.done:
                executor.submit(job)
        with ended_in_order(go_on):
            try:
                ended = executor.result()
            except Stopped as e:
                e.fix = go_on
                raise
            for cell, experiment in grid:
                own = out / cell.name
                failures = {method: error for (folder, method), error in ended.items() if folder == own}
                whole = [t for t in experiment.trainings if t.method not in failures]
                results = [run_training(experiment, t, placed, own, device) for t in whole]
                baselines = run_baselines(experiment, placed)
                with writing(own):
                    summary = write_results(experiment, own, results, baselines, failures)
                yield Trained(cell, experiment, own, results, baselines, summary, failures)
