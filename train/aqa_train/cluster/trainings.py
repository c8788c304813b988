"""Trainings by the workers of a Dask cluster, with the same results.

    trainings ─▶ one a worker ─▶ run folder
        ▲                          │
        └── lost, failed there ◀── outcomes

A worker opens the run by its folder, as `--resume` does, is told the names of trainings, and writes them there as any
process does. So a training whose worker was lost goes on, on another one, where it was saved last.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aqa_shared import console
from aqa_shared.errors import AqaError, EnvironmentFault, ExitCode
from aqa_shared.sessions import Trouble
from aqa_shared.workers import Ended, Workers
from aqa_train.checkpoint import writing
from aqa_train.cluster.worker import DUTIES, MOUNT, TOPIC, Terms
from aqa_train.features import InMemory
from aqa_train.jobs import Job
from aqa_train.signals import Stopped, asked_to_stop
from aqa_train.train_one import remove_abandoned
from aqa_train.workers import Counted, Failures, note_failure

if TYPE_CHECKING:
    from distributed import Client

TRIES = 3
"""Workers that may fail with a training before the run ends."""
LOSSES = 10
"""Workers that may die in a row with a training that does not get on: something else may be what kills them."""
LOOKS = 30
"""At a result, a second apart: a network file system may show it a little later than it was written."""


@dataclass
class _Todo:
    """A training that is not done."""

    job: Job
    worker: str = ""
    """The one that has it."""
    told: int = 0
    """Epochs that it told of."""
    tries: int = 0
    losses: int = 0
    """Workers that died with it since it was saved last, at `saved`."""
    saved: float = 0.0
    not_on: frozenset[str] = frozenset()
    """Workers that failed with it."""


class OnCluster:
    """On the workers of a Dask cluster, one at a time on each."""

    def __init__(
        self,
        client: Client,
        out: Path,
        runs: Sequence[str],
        *,
        where: str,
        device: str,
        wait: float,
        in_memory: InMemory,
    ) -> None:
        self.client = client
        self.workers: Workers[_Todo] = Workers(
            client,
            DUTIES,
            lambda run, found: Terms(run, Path(os.path.abspath(out)), tuple(runs), in_memory, device, found),
            where=where,
            device=device,
            wait=wait,
        )
        self.jobs: list[Job] = []

    @property
    def device(self) -> str:
        """Of the workers."""
        return self.workers.device

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def result(self) -> Failures:
        failures: Failures = {}
        if not self.jobs:
            return failures
        with (
            console.progress("epochs", sum(j.epochs for j in self.jobs)) as advance,
            asked_to_stop() as stop,
            self._begun() as heard,
        ):
            work = _Trainings(self.workers, self.jobs, heard, advance, stop, failures)
            work.run()
        if work.failure is not None:
            raise work.failure
        if number := stop():
            kept = "; ".join(work.lost) or "every training saved where it stands"
            raise Stopped(number, f"stopped by signal {int(number)}; {kept}")
        return failures

    @contextmanager
    def _begun(self) -> Iterator[queue.SimpleQueue[dict[str, Any]]]:
        """Workers may come; yields what they tell. Nothing of the run stays on them."""
        token, heard = self.workers.terms.token, queue.SimpleQueue[dict[str, Any]]()
        remove_abandoned(token.parent)
        with writing(token.parent):
            token.touch()
        try:
            self.client.subscribe_topic(TOPIC, lambda event: heard.put(event[1]))
            yield heard
        finally:
            self.workers.leave()
            token.unlink(missing_ok=True)


class _Trainings:
    """What is still to do, who does what, what has come of it."""

    def __init__(
        self,
        workers: Workers[_Todo],
        jobs: list[Job],
        heard: queue.SimpleQueue[dict[str, Any]],
        advance: Callable[..., None],
        stop: Callable[[], int],
        failures: Failures,
    ) -> None:
        self.workers, self.heard, self.stop, self.failures = workers, heard, stop, failures
        self.counted = {job.name: Counted(advance, job) for job in jobs}
        self.waiting = [_Todo(job) for job in jobs]
        self.working: dict[str, _Todo] = {}
        """By worker."""
        self.failure: AqaError | None = None
        self.lost: list[str] = []

    def run(self) -> None:
        """Work until nothing is left, or the run is to end early: then until all have saved."""
        while self.workers.at_work or not self._over:
            while not self._over and (todo := self._next()) is not None:
                self.working[todo.worker] = todo
                self.workers.submit(todo, (todo.job.name,), frozenset([todo.worker]))
            ended = self.workers.step()
            self._show()
            if ended is not None:
                self._settle(ended)
            if self._ends and not self.workers.stopping:
                if self.stop() == signal.SIGINT:
                    count = console.counted(len(self.working), "training")
                    console.note(f"saving {count} on the workers; again to stop now")
                self.workers.stop()

    @property
    def _ends(self) -> bool:
        return bool(self.stop()) or self.failure is not None

    @property
    def _over(self) -> bool:
        return self._ends or not self.waiting

    def _next(self) -> _Todo | None:
        """The next that a free worker can do, with that worker."""
        fit = set(self.workers.slots)
        for todo in self.waiting:
            if able := (fit - todo.not_on or fit) - self.working.keys():
                self.waiting.remove(todo)
                todo.worker = min(able)
                return todo
        return None

    def _show(self) -> None:
        with suppress(queue.Empty):
            while True:
                told = self.heard.get_nowait()
                todo = self.working.get(told["worker"])
                if told["run"] != self.workers.run or todo is None or todo.job.name != told["name"]:
                    continue
                counted = self.counted[todo.job.name]
                todo.told += told["n"] + told["before"]
                # What is done again after a loss does not count twice.
                if (more := todo.told - (todo.job.epochs - counted.left)) > 0:
                    counted(min(told["n"], more), note=told["note"], before=max(more - told["n"], 0))

    def _settle(self, ended: Ended[_Todo]) -> None:
        todo, outcome = ended.task, ended.result
        del self.working[todo.worker]
        todo.told = 0
        if outcome is None:
            self._lost(todo, ended.losses)
        elif outcome.trouble is not None:
            self._troubled(todo, outcome.trouble)
        elif outcome.error is not None:
            self.failure = self.failure or outcome.error
        elif outcome.stopped:
            self.waiting.insert(0, todo)
        elif outcome.failed is not None:
            note_failure(self.failures, todo.job, outcome.failed)
            self._over_with(todo)
            for other in [t for t in self.waiting if t.job.key in self.failures]:
                self.waiting.remove(other)
                self._over_with(other)
        elif self._seen(todo.job):
            self.workers.succeeded(todo.worker)
            self._over_with(todo)
        else:
            cause = f"what it wrote into {todo.job.folder} is not seen here"
            self._troubled(todo, Trouble(cause, MOUNT, ExitCode.ENVIRONMENT, unfit=True))

    def _over_with(self, todo: _Todo) -> None:
        self.counted[todo.job.name].over()

    def _troubled(self, todo: _Todo, trouble: Trouble) -> None:
        """Another worker is to try; the fault is the machine's, as far as one can tell."""
        self.workers.failed(todo.worker, trouble)
        if not trouble.unfit:
            todo.tries, todo.not_on = todo.tries + 1, todo.not_on | {todo.worker}
        if todo.tries < TRIES:
            self.waiting.insert(0, todo)
        elif self.failure is None:
            cause = f"{console.counted(todo.tries, 'worker')} failed with {todo.job.name}; the last: {trouble.cause}"
            self.failure = AqaError(cause, fix=trouble.fix)
            self.failure.exit_code = trouble.exit_code

    def _lost(self, todo: _Todo, losses: int) -> None:
        name, saved = todo.job.name, todo.job.saved
        todo.losses = losses + (todo.losses if saved == todo.saved else 0)
        todo.saved = saved
        if self._ends:
            self.lost.append(f"a worker was lost, and what it did since its last save with it: {name}")
        elif todo.losses < LOSSES:
            self.waiting.insert(0, todo)
            console.note(f"{name} lost its worker, and goes on from its last save on another")
        else:
            self.failure = EnvironmentFault(
                f"{todo.losses} workers died while they trained {name}: of memory, perhaps; see their logs",
                fix="give workers more memory, or use --in-memory no, then resume",
            )

    def _seen(self, job: Job) -> bool:
        for _ in range(LOOKS):
            if job.done:
                return True
            time.sleep(1)
        return False
