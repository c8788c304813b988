"""The trainings of a run or grid, those of one part of it, and those that are missing.

A part is a function of the configuration and the data, so that processes on several machines do theirs into one folder
without a word to each other; what is done is a training's folder with its result.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aqa_shared.shards import all_parts, dealt
from aqa_train.config import RunConfig
from aqa_train.experiment import Experiment
from aqa_train.grid import Cell
from aqa_train.jobs import Job
from aqa_train.method_settings import epochs_of, training_of
from aqa_train.methods import METHODS
from aqa_train.schedule import videos_an_epoch
from aqa_train.splits import Split
from aqa_train.workers import failures_of

Grid = Sequence[tuple[Cell, Experiment]]
"""The runs of a grid, or the only one."""


def jobs_of(grid: Grid, out: Path) -> list[Job]:
    """All trainings in the order in which they are run: by seed, so that comparisons fill up evenly."""
    every = [
        Job(experiment, t, out / cell.name, f"{cell.name}/{t.name}".lstrip("/"))
        for cell, experiment in grid
        for t in experiment.trainings
    ]
    return sorted(every, key=lambda job: job.training.split.seed)


def part_of(jobs: Sequence[Job], part: tuple[int, int] | None) -> list[Job]:
    """Those of the i-th of n parts, from 1; all of them where there is no part."""
    if part is None:
        return list(jobs)
    return [jobs[k] for k in dealt(*_to_deal(jobs), *part)]


def missing(jobs: Sequence[Job], out: Path, parts: int | None) -> list[dict[str, Any]]:
    """What is neither done nor failed, with the command that makes only that: a row for each part that lacks some.

    JSON-able, as the rows of what a store lacks. `parts`: how many the run was begun in; None for one process.
    """
    failed = failures_of(jobs)
    rows = []
    cut = [range(len(jobs))] if parts is None else all_parts(*_to_deal(jobs), parts)
    for i, places in enumerate(cut, start=1):
        part = None if parts is None else (i, parts)
        if ids := [jobs[k].name for k in places if not jobs[k].done and jobs[k].key not in failed]:
            rows.append({"command": go_on(out, part), "missing": len(ids), "ids": ids, "shard": part})
    return rows


def missing_parts(jobs: Sequence[Job], parts: int) -> list[int]:
    """Of so many parts, from 1, those of which something is neither done nor failed."""
    return [row["shard"][0] for row in missing(jobs, Path(), parts)]


def go_on(out: Path, part: tuple[int, int] | None = None) -> str:
    """The command that does what is left of a run, or of a part of it."""
    return f"aqa-train --resume {shlex.quote(str(out))}" + (f" --shard {part[0]}/{part[1]}" if part else "")


def _to_deal(jobs: Sequence[Job]) -> tuple[Callable[[int], float], list[str]]:
    """Work and name of each."""
    work = [_work(job.experiment.config, job.training.method, job.training.split) for job in jobs]
    return work.__getitem__, [job.name for job in jobs]


def _work(config: RunConfig, method: str, split: Split) -> float:
    """About how much there is to compute: epochs by videos. How long a video takes a method, only trying would tell.

    Trainings of one method and one size come together when they are dealt, so each part gets as many of them.
    """
    if not hasattr(METHODS[method].load(), "losses"):
        return 1.0
    videos = videos_an_epoch(len(split.labelled), len(split.unlabelled), training_of(config, method))
    return float(epochs_of(config, method) * videos * METHODS[method].members)
