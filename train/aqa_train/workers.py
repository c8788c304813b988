"""Trainings one after the other, or spread over processes, with the same results.

An `Executor` takes jobs and makes sure that they are done. A job that is done is a folder with result.json, so that
nothing has to come back but trouble; whatever is done is not done again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

import torch

from aqa_shared import console
from aqa_shared.errors import AqaError, ExitCode, UsageError
from aqa_shared.files import scratch
from aqa_shared.machine import available_cores, pick_device
from aqa_train.checkpoint import read_json, write_json
from aqa_train.features import FeatureSet
from aqa_train.jobs import Job, bundles
from aqa_train.signals import Stopped, asked_to_stop, starting_workers, worker_asked_to_stop
from aqa_train.train_one import FAILED, run_together, run_training

Show = Callable[[int, dict[str, float]], None]
"""Is told of an epoch, and its losses."""
Failures = dict[tuple[Path, str], AqaError]
"""By run folder and method, what a method of a run that leaves such out failed by; UsageError where it refused."""
PAUSE = 1.0
"""Seconds between two words of how far a training is."""
ITS_OWN = (ExitCode.USAGE, ExitCode.INTERNAL)
"""Codes of what a method alone fails by; all others are faults of the machine or of the store, and end the run."""


class Executor(Protocol):
    """Where trainings are done."""

    def submit(self, job: Job) -> None:
        """Have it done."""

    def result(self) -> Failures:
        """When all that was submitted is done. Raises the first failure that is not among those that it returns;
        `Stopped` when asked to, after saving."""


def shared_folder(jobs: int) -> AbstractContextManager[Path | None]:
    """A folder for features that several processes map, while they are at work; None for one process."""
    return scratch("aqa-features-") if jobs > 1 else nullcontext()


def choose_jobs(jobs: int | None, trainings: int, device: torch.device, threads: int) -> int:
    """As many processes as cores can feed, at most one a training; one on a GPU."""
    if jobs is not None:
        return max(1, min(jobs, trainings))
    if device.type != "cpu":
        return 1
    return max(1, min(available_cores() // threads, trainings))


class Here:
    """In this process, one after the other, or so many together."""

    def __init__(self, features: FeatureSet, device: torch.device, together: int = 1) -> None:
        self.features, self.device, self.together = features, device, together
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def result(self) -> Failures:
        failures: Failures = {}
        with console.progress("epochs", sum(j.epochs for j in self.jobs)) as advance, asked_to_stop() as stop:
            for bundle in bundles(self.jobs, self.together):
                counted = [Counted(advance, job) for job in bundle]
                shows = [shown(job.name, job.epochs, count) for job, count in zip(bundle, counted, strict=True)]
                work = [(j, show) for j, show in zip(bundle, shows, strict=True) if j.key not in failures]
                train_jobs(work, self.features, self.device, stop, partial(note_failure, failures))
                for count in counted:
                    count.over()
        return failures


class Processes:
    """In several processes of this machine, each of which takes the next job, or so many, when it is done."""

    def __init__(self, features: FeatureSet, device: torch.device, number: int, together: int = 1) -> None:
        self.features, self.device, self.number, self.together = features, device, number, together
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def result(self) -> Failures:
        failures: Failures = {}
        if self.jobs:
            with console.progress("epochs", sum(j.epochs for j in self.jobs)) as advance, asked_to_stop() as stop:
                self._run(stop, advance, failures)
        return failures

    def _run(self, stop: Callable[[], int], advance: Callable[..., None], failures: Failures) -> None:
        context = multiprocessing.get_context("spawn")
        # As many bundles as processes, where there are jobs for them.
        together = min(self.together, -(-len(self.jobs) // self.number))
        waiting = [[self.jobs.index(job) for job in bundle] for bundle in bundles(self.jobs, together)]
        # Pipes, as a queue takes semaphores, which take a writable /dev/shm.
        pipes = [context.Pipe() for _ in range(min(self.number, len(waiting)))]
        workers = [
            context.Process(target=_work, args=(self.jobs, self.features, str(self.device), theirs), daemon=True)
            for _, theirs in pipes
        ]
        with starting_workers():
            for w, (_, theirs) in zip(workers, pipes, strict=True):
                w.start()
                theirs.close()  # theirs alone now, so that it ends with them
        ours: dict[Connection, BaseProcess] = dict(zip([mine for mine, _ in pipes], workers, strict=True))
        try:
            lost, failure = self._watch(ours, waiting, stop, advance, failures)
        except KeyboardInterrupt:
            # A second Ctrl-C does not wait for a save; what was saved before stays whole.
            for w in workers:
                w.kill()
            raise
        if failure is not None:
            raise failure
        # Somebody may have told a process of ours alone to stop: it saved, and what is left is not for us to do.
        ended = all(j.done or j.key in failures for j in self.jobs)
        if number := stop() or (0 if ended else signal.SIGTERM):
            kept = "; ".join(lost) or "every training saved where it stands"
            raise Stopped(number, f"stopped by signal {int(number)}; {kept}")

    def _watch(
        self,
        talking: dict[Connection, BaseProcess],
        waiting: list[list[int]],
        stop: Callable[[], int],
        advance: Callable[..., None],
        failures: Failures,
    ) -> tuple[list[str], AqaError | None]:
        """Until every process has ended: give out jobs, show progress, pass a signal on; what was lost, what failed."""
        failure: AqaError | None = None
        stopping = False
        working: dict[Connection, list[int]] = {}
        counted = [Counted(advance, j) for j in self.jobs]
        lost: list[str] = []
        workers = list(talking.values())
        while talking:
            for pipe in wait(list(talking), timeout=0.2):
                assert isinstance(pipe, Connection)
                try:
                    kind, *rest = pipe.recv()
                    if kind == "ready":
                        for n in working.pop(pipe, ()):
                            counted[n].over()
                        given = waiting.pop(0) if waiting and not stopping and not stop() else None
                        if given is not None:
                            working[pipe] = given
                        pipe.send(given)
                except (EOFError, OSError):  # all that it said has been heard
                    worker = talking.pop(pipe)
                    worker.join()
                    if not worker.exitcode:
                        continue
                    lost += [said for n in working.get(pipe, ()) for said in _lost(worker, self.jobs[n])]
                    if failure is None and not stopping and not stop():
                        failure = AqaError(
                            f"a training process ended with code {worker.exitcode}"
                            + (" (killed: out of memory?)" if worker.exitcode == -signal.SIGKILL else ""),
                            fix="resume with fewer --jobs or a smaller --together",
                        )
                    continue
                if kind == "epoch":
                    counted[rest[0]](rest[1], note=rest[2], before=rest[3])
                elif kind == "failed":
                    note_failure(failures, self.jobs[rest[0]], rest[1])
                    for bundle in waiting:
                        for n in [n for n in bundle if self.jobs[n].key in failures]:
                            bundle.remove(n)
                            counted[n].over()
                    waiting[:] = [bundle for bundle in waiting if bundle]
                elif kind == "error" and failure is None:
                    failure = rest[0]
            if (failure is not None or stop()) and not stopping:
                # They save, then end; what they finished stays.
                stopping = True
                for w in workers:
                    w.terminate()
        return lost, failure


class Counted:
    """`advance` of one job, all of whose epochs count once it is over, however it ended."""

    def __init__(self, advance: Callable[..., None], job: Job) -> None:
        self.advance, self.left = advance, job.epochs

    def __call__(self, n: int, note: str = "", before: int = 0) -> None:
        self.left -= n + before
        self.advance(n, note=note, before=before)

    def over(self) -> None:
        if self.left:
            self(0, before=self.left)


def _lost(worker: BaseProcess, job: Job) -> list[str]:
    if job.done:
        return []
    return [f"a process ended with code {worker.exitcode}, and what it did since its last save is lost: {job.name}"]


def shown(
    name: str, epochs: int, advance: Callable[..., None], pause: float = 0.0
) -> Callable[[int, dict[str, float]], None]:
    """Tells `advance` of epochs, at most every `pause` seconds; those of an earlier run come with the first, as
    `before`."""
    told: int | None = None
    last = 0.0

    def show(epoch: int, row: dict[str, float]) -> None:
        nonlocal told, last
        before, told = (epoch - 1, epoch - 1) if told is None else (0, told)
        now = time.monotonic()
        if now - last >= pause or epoch == epochs:
            advance(epoch - told, note=f"{name} loss {row['total']:.4g}", before=before)
            told, last = epoch, now

    return show


def _work(jobs: Sequence[Job], features: FeatureSet, device: str, parent: Connection) -> None:
    """A process: jobs by their numbers, as long as it is given some."""
    try:
        with worker_asked_to_stop() as stop:
            where = pick_device(device)
            placed = features.on(where)

            def tell(number: int, n: int, note: str, before: int) -> None:
                parent.send(("epoch", number, n, note, before))

            def failed(job: Job, error: AqaError) -> None:
                parent.send(("failed", jobs.index(job), plain(error)))

            while not stop():
                parent.send(("ready",))
                numbers = parent.recv()
                if numbers is None or stop():
                    return
                # A message an epoch would cost more than a short epoch.
                work = [(jobs[n], shown(jobs[n].name, jobs[n].epochs, partial(tell, n), pause=PAUSE)) for n in numbers]
                train_jobs(work, placed, where, stop, failed)
    except (Stopped, BrokenPipeError, EOFError):  # of the pipe: who started us is gone, and may be started again
        return
    except AqaError as e:
        parent.send(("error", plain(e)))


def train_jobs(
    work: Sequence[tuple[Job, Show]],
    features: FeatureSet,
    device: torch.device,
    stop: Callable[[], int],
    failed: Callable[[Job, AqaError], None],
) -> None:
    """Do jobs, several as one model. `failed` is told at once of what a method alone fails by, where its run leaves
    such methods out; anything else is raised."""
    jobs = [job for job, _ in work]

    def note(i: int, error: Exception) -> list[int]:
        ours = error if isinstance(error, AqaError) else AqaError(f"{type(error).__name__}: {error}".splitlines()[0])
        shown = ours is not error and os.environ.get("AQA_DEBUG") == "1"
        mine = jobs[i].experiment.config.leave_out and ours.exit_code in ITS_OWN and not isinstance(error, OSError)
        if shown or not mine:
            raise error
        failed(jobs[i], ours)
        return [k for k, job in enumerate(jobs) if job.key == jobs[i].key]

    if len(work) > 1:
        every = [(job.experiment, job.training, job.out) for job in jobs]
        run_together(every, features, device, stop, lambda i, *epoch: work[i][1](*epoch), note)
        return
    for job, show in work:
        try:
            run_training(job.experiment, job.training, features, job.out, device, stop, show)
        except Exception as e:
            note(0, e)


def note_failure(failures: Failures, job: Job, error: AqaError) -> None:
    if job.key not in failures:
        failures[job.key] = error
        refused = isinstance(error, UsageError)
        write_json(job.folder / FAILED, {"why": error.cause, "refused": refused})
        console.warn(f"{job.name} {'is left out' if refused else 'failed'}: {error.cause}")


def failures_of(jobs: Sequence[Job]) -> Failures:
    """What methods failed by, whoever found out; of several trainings, the first one in order says why."""
    found: Failures = {}
    for job in jobs:
        file = job.folder / FAILED
        if job.key not in found and not job.done and file.exists():
            try:
                said = read_json(file, "remove it; aqa-train --resume then tries that method again")
            except UsageError:
                if file.exists():
                    raise
                continue  # another process is done with it just now
            found[job.key] = (UsageError if said["refused"] else AqaError)(said["why"])
    return found


def plain(error: AqaError) -> AqaError:
    """The same of a class that comes through a pipe, which not every error does."""
    plain = (UsageError if isinstance(error, UsageError) else AqaError)(error.cause, fix=error.fix)
    plain.exit_code = error.exit_code
    return plain
