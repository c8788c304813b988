"""What a Dask worker does: keep a run's features, and train what it is told to from where it was saved last.

It opens the run by its folder, as `--resume` does, and writes there as any process does. Only an `Outcome` goes back.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aqa_shared.errors import AqaError, EnvironmentFault, ExitCode
from aqa_shared.files import try_writing
from aqa_shared.machine import available_memory, pick_device
from aqa_shared.sessions import Ready, Trouble, device_here, gpu_name, idle_gpus, session, trouble
from aqa_shared.workers import Duties
from aqa_train.checkpoint import writing
from aqa_train.config import PLACES
from aqa_train.features import InMemory
from aqa_train.outputs import read_config
from aqa_train.parts import jobs_of
from aqa_train.signals import Stopped
from aqa_train.train_one import place
from aqa_train.workers import PAUSE, plain, shown, train_jobs

if TYPE_CHECKING:
    from distributed import Worker

TOPIC = "aqa-train"
"""Of the events that say how far trainings are."""
MOUNT = "keep the run folder, features and tables where all machines see them under the same path, or features at a URL"


@dataclass(frozen=True)
class Terms:
    """What a run asks of its workers; goes with every training."""

    run: str
    """A name of its own: what a worker keeps of a run goes by it."""
    out: Path
    """Its folder, absolute."""
    runs: tuple[str, ...]
    """Folders in it by which workers open what is to be trained (`aqa_train.run.reopen`)."""
    in_memory: InMemory
    asked: str
    """`--device`."""
    device: str
    """`cpu`, `cuda:1`, or `cuda` for each worker's own."""

    @property
    def token(self) -> Path:
        """A file that only the folder of this run has, while it runs."""
        return self.out / f".session-{self.run}.partial"


@dataclass(frozen=True)
class Outcome:
    """What became of a training, which is done where nothing else is said."""

    worker: str
    failed: AqaError | None = None
    """Why its method is left out."""
    error: AqaError | None = None
    """Why the run is to end."""
    trouble: Trouble | None = None
    stopped: bool = False
    """It was saved where it stands."""


_alone = threading.Lock()
"""Torch's generators are the process's: of two trainings, neither would draw what it draws alone."""


class Session:
    """A run as a worker has it between trainings."""

    def __init__(self, terms: Terms, device: str, copies: int) -> None:
        from aqa_train.run import reopen

        self.stopped = 0
        self.device = pick_device(device)
        if not terms.token.exists():
            raise EnvironmentFault(f"{terms.out} is not the run folder there that it is here", fix=MOUNT)
        with writing(terms.out, fix=f"mount it there so that it can be written; {MOUNT}"):
            try_writing(terms.out)
        configs = [read_config(terms.out / run) for run in terms.runs]
        for file in dict.fromkeys(getattr(config, name) for config in configs for name in PLACES):
            if file is not None and "://" not in file and not os.path.exists(file):
                raise EnvironmentFault(f"there is no {file} there", fix=MOUNT)
        grid, features = reopen(terms.out, terms.runs)
        self.features = place(features, self.device, terms.in_memory, copies)
        placed = [(cell, replace(experiment, features=self.features)) for cell, experiment in grid]
        self.jobs = {job.name: job for job in jobs_of(placed, terms.out)}

    def stop(self) -> None:
        """Save what has begun, and begin nothing more."""
        self.stopped = signal.SIGTERM


def open_there(terms: Terms, places: Mapping[str, int]) -> Ready | Trouble:
    """Get ready: open what is to be trained, load its features."""
    try:
        with _alone:  # methods are tried on a small batch
            ours = _session(terms, places)
    except Exception as e:
        found = trouble(e, unfit=True)
        # The client has opened the same run: whatever is wrong with it is the worker's.
        return replace(found, exit_code=ExitCode.ENVIRONMENT) if found.exit_code == ExitCode.USAGE else found
    return Ready(gpu=gpu_name(ours.device), said=idle_gpus(terms.device, terms.asked))


def train_there(terms: Terms, places: Mapping[str, int], name: str) -> Outcome:
    """Do a training, from where it was saved last."""
    from distributed import get_worker

    worker = get_worker()
    address, key = str(worker.contact_address), worker.get_current_task()
    ours: Session | None = None

    def tell(n: int, note: str, before: int) -> None:
        event = {"run": terms.run, "name": name, "worker": address, "n": n, "note": note, "before": before}
        worker.log_event(TOPIC, event)

    def stop() -> int:
        assert ours is not None
        return ours.stopped or (signal.SIGTERM if _nobody_waits(worker, key) else 0)

    try:
        with _alone:
            ours = _session(terms, places)
            if stop():
                return Outcome(address, stopped=True)
            job = ours.jobs[name]
            # A message an epoch would cost more than a short epoch.
            show = shown(name, job.epochs, tell, pause=PAUSE)
            failed: list[AqaError] = []
            train_jobs([(job, show)], ours.features, ours.device, stop, lambda job, error: failed.append(plain(error)))
            return Outcome(address, failed=failed[0] if failed else None)
    except Stopped:
        return Outcome(address, stopped=True)
    except Exception as e:
        if ours is None or _machines(e):
            return Outcome(address, trouble=trouble(e, unfit=ours is None))
        if isinstance(e, AqaError):
            return Outcome(address, error=plain(e))
        traceback.print_exc()
        fix = f"this is a fault of ours, please report it; the log of worker {address} shows where"
        return Outcome(address, error=AqaError(f"{type(e).__name__}: {e}", fix=fix))


DUTIES = Duties(open_there, train_there, "load the features", alone=True)


def _session(terms: Terms, places: Mapping[str, int]) -> Session:
    from distributed import get_worker

    limit = get_worker().memory_manager.memory_limit
    copies = ceil(available_memory() / limit) if limit else 1
    return session(terms.run, lambda: Session(terms, device_here(terms.device, places), copies))


def _nobody_waits(worker: Worker, key: Any) -> bool:
    """Whether the client is gone, Dask gave the task to another worker, or will, as this one is to end."""
    from distributed.core import Status

    task = worker.state.tasks.get(key)
    return task is None or task.state == "cancelled" or worker.status in (Status.closing, Status.closing_gracefully)


def _machines(error: Exception) -> bool:
    if isinstance(error, AqaError):
        return error.exit_code in (ExitCode.ENVIRONMENT, ExitCode.STORE)
    return isinstance(error, OSError | MemoryError)
