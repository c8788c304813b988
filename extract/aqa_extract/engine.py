"""The schedule: loaders → device → writer, overlapped; it knows no network and no codec.

    loader threads ──(bounded by bytes)──▶ ready ──▶ driver threads ──▶ done ──▶ writer thread
    one decode child each                            device.submit               commit

One bad video becomes a Failure and never stops the run or touches another video. What does stop it: a signal,
a fault of the machine (store, device), or so many failures in a row that the videos cannot be the cause.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
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


Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)


class Device(Protocol[Taken, Given]):
    """What happens between loading and writing."""

    def submit(self, loaded: Taken, /) -> Sequence[Given]: ...

    def flush(self) -> Sequence[Given]: ...


class TooLarge(Exception):
    """One video wants more bytes than the process can spare for it, however long it waits."""

    def __init__(self, wanted: int, ceiling: int) -> None:
        super().__init__(f"{wanted} bytes, the most is {ceiling}")
        self.wanted = wanted
        self.ceiling = ceiling


class ByteBudget:
    """Lets loaders run ahead of the device by at most `limit` bytes; a video that is alone may take twice that.

    With a quarter of the memory as `limit` (run.memory_budget) half of it is the most for one video.
    """

    def __init__(self, limit: int, stop: threading.Event) -> None:
        self.limit = limit
        self.ceiling = 2 * limit
        self.stop = stop
        self.used = 0
        self.changed = threading.Condition()

    def refuse(self, amount: int) -> None:
        """Raises TooLarge for what never fits."""
        if amount > self.ceiling:
            raise TooLarge(amount, self.ceiling)

    def take(self, amount: int) -> None:
        """Block until `amount` fits. Raises Stopped, and TooLarge for what never will."""
        self.refuse(amount)
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

    `loader(budget)` opens what one loader thread needs (its decode child) and yields `load(job) -> Loaded`, which may
    raise JobFailed; `device_failure(loaded, error)` names the failure of a video on the device.
    """

    loader: Callable[[ByteBudget], AbstractContextManager[Callable[[Job], Loaded]]]
    device: Device[Loaded, Finished]
    commit: Callable[[Finished], None]
    device_failure: Callable[[Loaded, Exception], Failure]
    report: Callable[[Failure | None], None]
    """Called once for every job that ends: with its Failure, or None; from one thread at a time."""
    workers: int
    budget: ByteBudget
    bytes_of: Callable[[Loaded], int]
    stop: threading.Event
    drivers: int = 1
    """Threads that call `device.submit`: one for a GPU; one per core for a CPU, each computing on its own."""
    stop_after: int = 20
    """This many failures in a row end the run, if anything is left to do; 0 never does."""
    on_stop: Callable[[], None] = lambda: None
    """Called when the run ends early, to wake loaders that wait for something outside."""
    in_flight: int = field(default=0, init=False)
    """Videos that the device has begun and not finished: what an orderly stop still waits for."""
    abandoned: threading.Event = field(default_factory=threading.Event, init=False)
    """Set by whoever cannot wait for them: `run` raises without waiting for its threads."""

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Handle every job, or stop early and say why. Raises what is no single video's fault."""
        return _Run(self, jobs).go()


class _Run(Generic[Job, Loaded, Finished]):
    """The threads of one `Engine.run` and what they share."""

    def __init__(self, engine: Engine[Job, Loaded, Finished], jobs: Sequence[Job]) -> None:
        self.engine = engine
        self.stop = engine.stop
        self.pending = iter(jobs)
        self.total = len(jobs)
        self.driven = 0
        """Jobs that came out of loading: when that is all of them, a stop would spare nothing."""
        self.ready: queue.Queue[Loaded | Failure | None] = queue.Queue(maxsize=engine.workers + 1)
        self.to_write: queue.Queue[Finished | None] = queue.Queue(maxsize=16)
        self.lock = threading.Lock()
        self.outcome = Outcome()
        self.in_a_row = 0
        self.crash: BaseException | None = None

    def go(self) -> Outcome:
        loaders = [self._thread(self._load, f"load-{i}") for i in range(self.engine.workers)]
        drivers = [self._thread(self._drive, f"device-{i}") for i in range(self.engine.drivers)]
        writer = self._thread(self._write, "write")
        try:
            # The caller's thread only waits, so that a signal's handler runs at once.
            _join(loaders)
            for _ in drivers:
                self._put(self.ready, None)
            _join(drivers)
            # After a signal too: else the last clips of what was begun would wait for others to fill their batch.
            if self.crash is None:
                _join([self._thread(lambda: self._hand_over(self._timed_device(self.engine.device.flush)), "flush")])
        except BaseException as e:
            self._crashed(e)
        finally:
            if not self.engine.abandoned.is_set():
                self._drain(loaders, drivers)
                self.to_write.put(None)
                _join([writer])
        if self.crash is not None:
            raise self.crash
        if self.stop.is_set() and self.outcome.stopped_by is None:
            self.outcome.stopped_by = "signal"
        return self.outcome

    def _thread(self, target: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                target()
            except Stopped:
                pass
            except BaseException as e:
                self._crashed(e)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread

    def _crashed(self, error: BaseException) -> None:
        with self.lock:
            self.crash = self.crash or error
        self._halt()

    def _halt(self) -> None:
        self.stop.set()
        self.engine.on_stop()

    def _load(self) -> None:
        with self.engine.loader(self.engine.budget) as load_one:
            while not self.stop.is_set():
                with self.lock:
                    job = next(self.pending, None)
                if job is None:
                    return
                started = time.monotonic()
                try:
                    item: Loaded | Failure = load_one(job)
                except JobFailed as e:
                    item = e.failure
                with self.lock:
                    self.outcome.times.load += time.monotonic() - started
                self._put(self.ready, item)

    def _drive(self) -> None:
        while not self.stop.is_set():
            try:
                item = self.ready.get(timeout=0.2)
            except queue.Empty:
                continue
            if item is None or self.stop.is_set():
                return
            with self.lock:
                self.driven += 1
                self.engine.in_flight += not isinstance(item, Failure)
            if isinstance(item, Failure):
                self._ended(item)
                continue
            try:
                done = self._timed_device(partial(self.engine.device.submit, item))
            except AqaError:
                raise
            except Exception as e:
                with self.lock:
                    self.engine.in_flight -= 1
                self._ended(self.engine.device_failure(item, e))
                continue
            finally:
                self.engine.budget.give(self.engine.bytes_of(item))
                item = None  # and with it its pixels
            with self.lock:
                self.in_a_row = 0
            self._hand_over(done)

    def _timed_device(self, call: Callable[[], Sequence[Finished]]) -> Sequence[Finished]:
        started = time.monotonic()
        try:
            return call()
        finally:
            with self.lock:
                self.outcome.times.device += time.monotonic() - started

    def _hand_over(self, done: Sequence[Finished]) -> None:
        for finished in done:
            with self.lock:
                self.engine.in_flight -= 1
            self.to_write.put(finished)

    def _write(self) -> None:
        """Ends only at the sentinel, so that handing over never blocks for ever."""
        while (item := self.to_write.get()) is not None:
            if self.crash is not None:
                continue
            try:
                self._commit(item)
            except BaseException as e:
                self._crashed(e)

    def _commit(self, item: Finished) -> None:
        started = time.monotonic()
        try:
            self.engine.commit(item)
        except JobFailed as e:
            self._ended(e.failure)
            return
        with self.lock:
            self.outcome.times.write += time.monotonic() - started
            self.outcome.finished += 1
            self.engine.report(None)

    def _ended(self, failure: Failure) -> None:
        with self.lock:
            self.outcome.failures.append(failure)
            self.engine.report(failure)
            self.in_a_row += 1
            too_many = self.engine.stop_after and self.in_a_row >= self.engine.stop_after
            if not too_many or self.driven == self.total:
                return
            self.outcome.stopped_by = f"{self.in_a_row} failures in a row"
        self._halt()

    def _put(self, where: queue.Queue, item: object) -> None:
        """Wait for room, but not beyond a stop: then the item is dropped, as no driver will take it."""
        while True:
            try:
                where.put(item, timeout=0.2)
                return
            except queue.Full:
                if self.stop.is_set():
                    return

    def _drain(self, loaders: Sequence[threading.Thread], drivers: Sequence[threading.Thread]) -> None:
        """Let everybody notice that it is over, and see the threads end."""
        if self.crash is not None or self.outcome.stopped_by is not None:
            self.stop.set()
        while any(thread.is_alive() for thread in (*loaders, *drivers)):
            try:
                self.ready.get(timeout=0.1)
            except queue.Empty:
                continue


def _join(threads: Sequence[threading.Thread]) -> None:
    """Wait in short steps: a signal's handler runs between them."""
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
