"""A run folder from its opening to its tables: every training of every cell by one executor, or a part of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from aqa_shared import console
from aqa_shared.errors import AqaError, UsageError
from aqa_shared.files import existing, try_writing
from aqa_train.checkpoint import read_json, writing
from aqa_train.cluster.options import Cluster
from aqa_train.config import RunConfig, absolute
from aqa_train.experiment import Data, Experiment, arrange, open_data, open_features
from aqa_train.features import FeatureSet, InMemory
from aqa_train.grid import Cell, cells
from aqa_train.jobs import Job
from aqa_train.method_settings import differences
from aqa_train.outputs import (
    START,
    read_config,
    refuse_other_data,
    refuse_other_digests,
    write_places,
    write_results,
    write_run,
)
from aqa_train.parts import Grid, go_on, jobs_of, part_of
from aqa_train.protocol import once
from aqa_train.signals import Stopped, ended_in_order
from aqa_train.train_one import place, result_of, run_baselines
from aqa_train.workers import Executor, Here, Processes, failures_of, shared_folder


@dataclass(frozen=True)
class Opened:
    """A run or a grid with its data, and the folder that it is in or will be."""

    data: Data
    grid: Grid
    out: Path
    begun: bool

    @property
    def config(self) -> RunConfig:
        """That of the folder."""
        return self.grid[0][1].config if len(self.grid) == 1 else self.data.named

    @property
    def jobs(self) -> list[Job]:
        """All its trainings."""
        return jobs_of(self.grid, self.out)

    @property
    def parts(self) -> int | None:
        """In how many parts it was begun; None for one process."""
        said = read_json(self.out / "environment.json", "copy the run folder again, or start a new run")
        found: int | None = said.get("parts")
        return found

    def begin(self, device: str, part: tuple[int, int] | None) -> None:
        """What a folder of several cells says of itself, before any of them begins."""
        if len(self.grid) == 1:
            return
        if holds_config(self.out, self.config):
            refuse_other_digests(self.config, self.data.digests, self.out)
            write_places(self.config, self.out)
        else:
            write_run(self.config, self.data.digests, self.out, device, part)


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


def open_run(settings: RunConfig, out: Path | None, *, resume: bool = False) -> Opened:
    """Open the data and arrange every cell; `out` None: a folder that is not there yet.

    Raises UsageError where `out` holds another run, other data or something else.
    """
    say = once(console.warn)
    data = open_data(settings, say)
    grid = [(cell, arrange(cell.config, data, say)) for cell in cells(data.named)]
    found = Opened(data, grid, out or default_folder(data.config), resume)
    begun = resume or holds_this_run(found.out, found.config, {cell.name for cell, _ in grid})
    if begun:
        refuse_other_digests(found.config, data.digests, found.out)
        for cell, experiment in grid:
            if (found.out / cell.name / "config.json").exists():
                refuse_other_data(experiment, found.out / cell.name)
    return replace(found, begun=begun)


def default_folder(settings: RunConfig) -> Path:
    """runs/<time>-<methods>, not used yet."""
    from datetime import datetime

    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{'-'.join(settings.methods)}"
    names = (stem, *(f"{stem}-{i}" for i in range(2, 1000)))
    return next(p for p in (Path("runs") / n for n in names) if not p.exists())


def holds_this_run(out: Path, config: RunConfig, parts: set[str], *, quiet: bool = False) -> bool:
    """Whether `out` has this very run or grid, begun or finished; raises for any other and for a foreign folder."""
    # Listed before it is asked for: another process may be beginning this run now, and config.json says that it has.
    exists = out.exists()
    names = [p.name for p in out.iterdir()] if out.is_dir() else []
    if holds_config(out, config):
        if not quiet:
            console.note(f"{out} holds this run: going on where it stands")
        return True
    # A run that was cut off before it began leaves these, which are written again.
    begun = out.is_dir() and all(name in {*START, *parts} or name.endswith(".partial") for name in names)
    if exists and not begun:
        raise UsageError(f"{out} exists and is not a run folder", fix="name another --out")
    return False


def holds_config(out: Path, config: RunConfig) -> bool:
    """Whether a run of these settings has begun in `out`; raises UsageError for one of others."""
    if not (out / "config.json").exists():
        return False
    if changed := differences(absolute(read_config(out)), absolute(config)):
        raise UsageError(
            f"{out} already holds a run with other settings: {'; '.join(changed)}",
            fix="name another --out, or give the settings of that run to go on with it",
        )
    return True


def refuse_unwritable(jobs: Iterable[Job], tables: Iterable[Path] = ()) -> None:
    """Find out now, not after hours, whether what is left to train and `tables`, folders, can be written.

    They need not be there yet. Raises StoreError.
    """
    seen: set[Path] = set()
    for where in (*tables, *(job.folder for job in jobs if not job.done)):
        with writing(where, fix=_UNWRITABLE):
            if (folder := existing(where)) not in seen:
                try_writing(folder)
                seen.add(folder)


_UNWRITABLE = (
    "let it be written (owner, permissions, mount), or name another folder; "
    "a run that has begun may be copied, and its copy resumed"
)


def train_cells(
    grid: Grid,
    features: FeatureSet,
    out: Path,
    *,
    device: torch.device,
    jobs: int,
    in_memory: InMemory,
    again: str,
    together: int = 1,
    before: Callable[[], None] = lambda: None,
) -> Iterator[Trained]:
    """Train what is not done yet, each cell into its folder of `out`, and yield the cells with their results.

    `features` hold the streams of all cells. Each of `jobs` processes computes up to `together` trainings as one model.
    `before` is called once they are in place, `again` is the command that
    goes on after a signal.
    """
    with _placed(grid, features, device, in_memory, jobs) as (grid, placed), ended_in_order(again):
        before()
        _begin(grid, out, str(device), None)
        _train(jobs_of(grid, out), _executor(placed, device, jobs, together), again)
        yield from _gathered(grid, out)


def train_part(
    opened: Opened, part: tuple[int, int], *, device: torch.device, jobs: int, in_memory: InMemory, together: int = 1
) -> list[Job]:
    """Train what is not done yet of the i-th of n parts; its trainings, without tables, which are of all parts."""
    mine = part_of(opened.jobs, part)
    if all(job.done for job in mine):
        return mine
    again = go_on(opened.out, part)
    with (
        _placed(opened.grid, opened.data.features, device, in_memory, jobs) as (grid, placed),
        ended_in_order(again),
    ):
        opened.begin(str(device), part)
        _begin(grid, opened.out, str(device), part)
        _train(part_of(jobs_of(grid, opened.out), part), _executor(placed, device, jobs, together), again)
    return mine


def train_on(
    cluster: Cluster,
    grid: Grid,
    out: Path,
    *,
    device: str,
    in_memory: InMemory,
    again: str,
    part: tuple[int, int] | None = None,
    runs: Sequence[str] = ("",),
    before: Callable[[str], None] = lambda device: None,
) -> None:
    """Train what is not done yet, of all or of the i-th of n parts, on the workers of a cluster; without tables.

    `runs` are folders in `out` by which workers open the grid: that of the run or grid itself, or those of its cells
    where they are runs that have nothing else in common. `before` is told the device of the workers.
    """
    from aqa_shared.workers import reached
    from aqa_train.cluster.trainings import OnCluster

    where, wait = cluster
    with reached(where, device) as client:
        workers = OnCluster(client, out, runs, where=where, device=device, wait=wait, in_memory=in_memory)
        with ended_in_order(again):
            before(workers.device)
            _begin(grid, out, workers.device, part)
            _train(part_of(jobs_of(grid, out), part), workers, again)


def gather(grid: Grid, features: FeatureSet, out: Path) -> Iterator[Trained]:
    """Yield the cells with the results of all trainings, which are done or have failed."""
    with _placed(grid, features, torch.device("cpu"), "auto", 1) as (placed, _):
        yield from _gathered(placed, out)


def reopen(out: Path, runs: Sequence[str]) -> tuple[Grid, FeatureSet]:
    """As `train_on` says: what was begun in folders of `out`, as one grid, with the features that all of it reads."""
    opened = {name: open_run(read_config(out / name), out / name, resume=True) for name in runs}
    found = list(opened.values())
    features = found[0].data.features if len(found) == 1 else open_features([o.config for o in found], console.warn)
    grid = [
        (replace(cell, name=f"{name}/{cell.name}".strip("/")), experiment)
        for name, one in opened.items()
        for cell, experiment in one.grid
    ]
    return grid, features


@contextmanager
def _placed(
    grid: Grid, features: FeatureSet, device: torch.device, in_memory: InMemory, jobs: int
) -> Iterator[tuple[Grid, FeatureSet]]:
    """The features where training wants them."""
    with shared_folder(jobs) as folder:
        placed = place(features, device, in_memory, jobs, folder)
        yield [(cell, replace(experiment, features=placed)) for cell, experiment in grid], placed


def _begin(grid: Grid, out: Path, device: str, part: tuple[int, int] | None) -> None:
    """What each cell's folder says before anything is trained. Others may be writing the same now."""
    for cell, experiment in grid:
        # Asked again: while the features were read, another process may have begun.
        if holds_config(out / cell.name, experiment.config):
            refuse_other_data(experiment, out / cell.name)
            write_places(experiment.config, out / cell.name)
        else:
            write_run(experiment.config, experiment.data, out / cell.name, device, part, experiment.splits)


def _executor(features: FeatureSet, device: torch.device, number: int, together: int) -> Executor:
    return Processes(features, device, number, together) if number > 1 else Here(features, device, together)


def _train(every: list[Job], executor: Executor, again: str) -> None:
    for job in every:
        if not job.done:
            executor.submit(job)
    try:
        executor.result()
    except Stopped as e:
        e.fix = again
        raise


def _gathered(grid: Grid, out: Path) -> Iterator[Trained]:
    ended = failures_of(jobs_of(grid, out))
    for cell, experiment in grid:
        own = out / cell.name
        failures = {method: error for (folder, method), error in ended.items() if folder == own}
        results = [result_of(t, own) for t in experiment.trainings if t.method not in failures]
        baselines = run_baselines(experiment, experiment.features)
        with writing(own):
            summary = write_results(experiment, own, results, baselines, failures)
        yield Trained(cell, experiment, own, results, baselines, summary, failures)
