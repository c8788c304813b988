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
from dataclasses import dataclass
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
from aqa_train.experiment import Experiment, OneTraining
from aqa_train.features import FeatureSet
from aqa_train.method_settings import epochs_of
from aqa_train.signals import Stopped, asked_to_stop, starting_workers, worker_asked_to_stop
from aqa_train.train_one import FAILED, RESULT, STATE, run_training


@dataclass(frozen=True)
class Job:
    """One training of one run."""

    experiment: Experiment
    training: OneTraining
    out: Path
    """The run's folder."""
    name: str
    """For people."""

    @property
    def folder(self) -> Path:
        return self.out / "models" / self.training.name

    @property
    def done(self) -> bool:
        return (self.folder / RESULT).exists()

    @property
    def saved(self) -> float:
        """When it was saved last, to go on from there; 0 where it was not."""
        try:
            return (self.folder / STATE).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @property
    def epochs(self) -> int:
        return epochs_of(self.experiment.config, self.training.method)

    @property
    def key(self) -> tuple[Path, str]:
        """Run folder and method: of what fails once, the other seeds and folds are not tried."""
        return self.out, self.training.method


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
    """In this process, one after the other."""

    def __init__(self, features: FeatureSet, device: torch.device) -> None:
        self.features, self.device = features, device
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def result(self) -> Failures:
        failures: Failures = {}
        with console.progress("epochs", sum(j.epochs for j in self.jobs)) as advance, asked_to_stop() as stop:
            for job in self.jobs:
                counted = Counted(advance, job)
                if job.key not in failures:
                    show = shown(job.name, job.epochs, counted)
                    if (error := train_job(job, self.features, self.device, stop, show)) is not None:
                        note_failure(failures, job, error)
                counted.over()
        return failures


class Processes:
    """In several processes of this machine, each of which takes the next job when it is done with one."""

    def __init__(self, features: FeatureSet, device: torch.device, number: int) -> None:
        self.features, self.device, self.number = features, device, number
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
        # Pipes, as a queue takes semaphores, which take a writable /dev/shm.
        pipes = [context.Pipe() for _ in range(min(self.number, len(self.jobs)))]
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
            lost, failure = self._watch(ours, stop, advance, failures)
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
        stop: Callable[[], int],
        advance: Callable[..., None],
        failures: Failures,
    ) -> tuple[list[str], AqaError | None]:
        """Until every process has ended: give out jobs, show progress, pass a signal on; what was lost, what failed."""
        failure: AqaError | None = None
        stopping = False
        waiting = list(range(len(self.jobs)))
        working: dict[Connection, int] = {}
        counted = [Counted(advance, j) for j in self.jobs]
        lost: list[str] = []
        workers = list(talking.values())
        while talking:
            for pipe in wait(list(talking), timeout=0.2):
                assert isinstance(pipe, Connection)
                try:
                    kind, *rest = pipe.recv()
                    if kind == "ready":
                        if pipe in working:
                            counted[working.pop(pipe)].over()
                        job = waiting.pop(0) if waiting and not stopping and not stop() else None
                        if job is not None:
                            working[pipe] = job
                        pipe.send(job)
                except (EOFError, OSError):  # all that it said has been heard
                    worker = talking.pop(pipe)
                    worker.join()
                    if not worker.exitcode:
                        continue
                    if pipe in working:
                        lost += _lost(worker, self.jobs[working[pipe]])
                    if failure is None and not stopping and not stop():
                        failure = AqaError(
                            f"a training process ended with code {worker.exitcode}"
                            + (" (killed: out of memory?)" if worker.exitcode == -signal.SIGKILL else ""),
                            fix="resume with fewer --jobs",
                        )
                    continue
                if kind == "epoch":
                    counted[working[pipe]](rest[0], note=rest[1], before=rest[2])
                elif kind == "failed":
                    note_failure(failures, self.jobs[working[pipe]], rest[0])
                    for n in [n for n in waiting if self.jobs[n].key in failures]:
                        waiting.remove(n)
                        counted[n].over()
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
    """A process: jobs by their number, as long as it is given some."""
    try:
        with worker_asked_to_stop() as stop:
            where = pick_device(device)
            placed = features.on(where)

            def tell(n: int, note: str, before: int) -> None:
                parent.send(("epoch", n, note, before))

            while not stop():
                parent.send(("ready",))
                number = parent.recv()
                if number is None or stop():
                    return
                job = jobs[number]
                # A message an epoch would cost more than a short epoch.
                report = shown(job.name, job.epochs, tell, pause=PAUSE)
                if (error := train_job(job, placed, where, stop, report)) is not None:
                    parent.send(("failed", plain(error)))
    except (Stopped, BrokenPipeError, EOFError):  # of the pipe: who started us is gone, and may be started again
        return
    except AqaError as e:
        parent.send(("error", plain(e)))


def train_job(
    job: Job,
    features: FeatureSet,
    device: torch.device,
    stop: Callable[[], int],
    show: Callable[[int, dict[str, float]], None],
) -> AqaError | None:
    """Do a job; what its method alone fails by is returned where the run leaves such methods out, else raised."""
    try:
        run_training(job.experiment, job.training, features, job.out, device, stop, show)
    except OSError:
        raise
    except Exception as e:
        ours = e if isinstance(e, AqaError) else AqaError(f"{type(e).__name__}: {e}".splitlines()[0])
        shown = ours is not e and os.environ.get("AQA_DEBUG") == "1"
        if shown or not job.experiment.config.leave_out or ours.exit_code not in ITS_OWN:
            raise
        return ours
    return None


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
