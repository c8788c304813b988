"""The schedule: loaders → device → writer, overlapped; it knows no network and no codec.

    loader threads ──(bounded by bytes)──▶ ready ──▶ the caller's thread ──▶ done ──▶ writer thread
    one decode child each                            compute.submit                   commit

One bad video becomes a Failure and never stops the run or touches another video. What does stop it: a signal,
a fault of the machine (store, device), or so many failures in a row that the videos cannot be the cause.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from aqa_shared.errors import AqaError
from aqa_shared.records import Failure

Job = TypeVar("Job")
Loaded = TypeVar("Loaded")
Finished = TypeVar("Finished")


class JobFailed(Exception):
    """This video cannot be used; the run goes on."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.id}: {failure.reason}")
        self.failure = failure


class Stopped(Exception):
    """The run was asked to stop."""


class Device(Protocol[Loaded, Finished]):
    """What happens between loading and writing."""

    def submit(self, loaded: Loaded) -> Sequence[Finished]: ...

    def flush(self) -> Sequence[Finished]: ...


class ByteBudget:
    """Lets loaders run ahead of the device by at most `limit` bytes (one video always may)."""

    def __init__(self, limit: int, stop: threading.Event) -> None:
        self.limit = limit
        self.stop = stop
        self.used = 0
        self.changed = threading.Condition()

    def take(self, amount: int) -> None:
        """Block until `amount` fits. Raises Stopped."""
        with self.changed:
            while self.used and self.used + amount > self.limit:
                if self.stop.is_set():
                    raise Stopped
                self.changed.wait(0.2)
            self.used += amount

    def give(self, amount: int) -> None:
        """Return `amount` bytes."""
        with self.changed:
            self.used -= amount
            self.changed.notify_all()


@dataclass
class StageTimes:
    """Seconds each stage was busy; loaders add up over their threads."""

    load: float = 0.0
    device: float = 0.0
    write: float = 0.0


@dataclass
class Outcome:
    """What a run did."""

    failures: list[Failure] = field(default_factory=list)
    finished: int = 0
    stopped_by: str | None = None
    """None when every job was handled, else why the run ended early."""
    times: StageTimes = field(default_factory=StageTimes)


@dataclass
class Engine(Generic[Job, Loaded, Finished]):
    """Run `jobs` through `load`, `device` and `commit`.

    `loader()` opens what one loader thread needs (its decode child) and yields `load(job) -> Loaded`, which may
    raise JobFailed; `failed(loaded, error)` names the failure of a video on the device.
    """

    loader: Callable[[ByteBudget], AbstractContextManager[Callable[[Job], Loaded]]]
    device: Device[Loaded, Finished]
    commit: Callable[[Finished], None]
    device_failure: Callable[[Loaded, Exception], Failure]
    report: Callable[[Failure | None], None]
    """Called once for every job that ends: with its Failure, or None."""
    workers: int
    budget: ByteBudget
    bytes_of: Callable[[Loaded], int]
    stop: threading.Event
    stop_after: int = 20
    """This many failures in a row end the run; 0 never does."""

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Handle every job, or stop early and say why. Raises what is no single video's fault."""
        outcome = Outcome()
        ready: queue.Queue[Loaded | Failure | BaseException | None] = queue.Queue(maxsize=self.workers + 1)
        to_write: queue.Queue[Finished | None] = queue.Queue(maxsize=16)
        crashed: list[BaseException] = []
        pending = iter(jobs)
        lock = threading.Lock()

        def next_jobs() -> Iterator[Job]:
            while not self.stop.is_set():
                with lock:
                    job = next(pending, None)
                if job is None:
                    return
                yield job

        def load() -> None:
            try:
                with self.loader(self.budget) as load_one:
                    for job in next_jobs():
                        started = time.monotonic()
                        try:
                            item: Loaded | Failure = load_one(job)
                        except JobFailed as e:
                            item = e.failure
                        with lock:
                            outcome.times.load += time.monotonic() - started
                        ready.put(item)
            except Stopped:
                pass
            except BaseException as e:
                ready.put(e)
            finally:
                ready.put(None)

        def write() -> None:
            while (item := to_write.get()) is not None:
                if crashed:
                    continue  # keep draining, so that nobody waits for room
                started = time.monotonic()
                try:
                    self.commit(item)
                except BaseException as e:
                    crashed.append(e)
                    self.stop.set()
                    continue
                outcome.times.write += time.monotonic() - started
                outcome.finished += 1
                self.report(None)

        loaders = [threading.Thread(target=load, name=f"load-{i}", daemon=True) for i in range(self.workers)]
        writer = threading.Thread(target=write, name="write", daemon=True)
        for thread in (*loaders, writer):
            thread.start()
        try:
            self._drive(ready, to_write, outcome)
        finally:
            self.stop.set()
            _drain(ready, loaders)
            to_write.put(None)
            writer.join()
        if crashed:
            raise crashed[0]
        return outcome

    def _drive(
        self,
        ready: queue.Queue[Loaded | Failure | BaseException | None],
        to_write: queue.Queue[Finished | None],
        outcome: Outcome,
    ) -> None:
        """The caller's thread: everything that touches the device."""
        in_a_row = 0
        alive = self.workers
        while alive:
            try:
                item = ready.get(timeout=0.2)
            except queue.Empty:
                if self.stop.is_set():
                    outcome.stopped_by = "signal"
                    return
                continue
            if self.stop.is_set():
                outcome.stopped_by = "signal"
                return
            if item is None:
                alive -= 1
                continue
            if isinstance(item, BaseException):
                raise item
            failure: Failure | None = None
            done: Sequence[Finished] = ()
            if isinstance(item, Failure):
                failure = item
            else:
                started = time.monotonic()
                size = self.bytes_of(item)
                try:
                    done = self.device.submit(item)
                except AqaError:
                    raise
                except Exception as e:
                    failure = self.device_failure(item, e)
                finally:
                    self.budget.give(size)
                    outcome.times.device += time.monotonic() - started
            for finished in done:
                to_write.put(finished)
            if failure is None:
                in_a_row = 0
                continue
            outcome.failures.append(failure)
            self.report(failure)
            in_a_row += 1
            if self.stop_after and in_a_row >= self.stop_after:
                outcome.stopped_by = f"{in_a_row} failures in a row"
                return
        started = time.monotonic()
        for finished in self.device.flush():
            to_write.put(finished)
        outcome.times.device += time.monotonic() - started


def _drain(ready: queue.Queue, loaders: Sequence[threading.Thread]) -> None:
    """Make room until every loader has noticed that it should stop."""
    while any(thread.is_alive() for thread in loaders):
        try:
            ready.get(timeout=0.1)
        except queue.Empty:
            continue
