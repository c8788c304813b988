"""The schedule of a run: loaders → device → writer, overlapped.

    loader threads ──(bounded by bytes)──▶ ready ──▶ driver threads ──▶ to_write ──▶ writer thread
    Work.loader, a decode child each                 Compute.submit                  Work.commit

One bad video becomes a Failure and never stops the run or touches another video. What does stop it: a signal,
a fault of the machine (store, device), or so many failures in a row that the videos cannot be the cause.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import dataclass, field
from functools import partial

from aqa_extract.budget import Cancelled
from aqa_extract.compute import Compute, Done
from aqa_extract.job import JobFailed, VideoJob
from aqa_extract.loading import Prepared
from aqa_extract.work import Work
from aqa_shared.errors import AqaError
from aqa_shared.records import Failure


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


class Pipeline:
    """The threads of one run and what they share; it runs once.

    `report` is called once for every job that ends, with its Failure or None, from one thread at a time. `workers`
    are decode children and the threads that feed on them, `drivers` the threads that call the device: one for a GPU,
    one per core for a CPU, each computing on its own. `stop_after` failures in a row end the run, if anything is left
    to do; 0 never does.
    """

    def __init__(
        self,
        work: Work,
        compute: Compute,
        report: Callable[[Failure | None], None],
        *,
        workers: int = 1,
        drivers: int = 1,
        stop_after: int = 20,
    ) -> None:
        self.work, self.compute, self.report = work, compute, report
        self.workers, self.drivers, self.stop_after = workers, drivers, stop_after
        self.stop = work.stop
        self.abandoned = threading.Event()
        """Set by whoever cannot wait for the threads: then `run` raises without waiting for them."""
        self.in_flight = 0
        """Videos that the device has begun and not finished: what an orderly stop still waits for."""
        self.ready: queue.Queue[Prepared | Failure | None] = queue.Queue(maxsize=workers + 1)
        self.to_write: queue.Queue[Done | None] = queue.Queue(maxsize=16)
        self.lock, self.taking = threading.Lock(), threading.Lock()
        self.outcome = Outcome()
        self.total = self.driven = 0
        """Jobs, and those of them that came out of loading: when these are all, a stop would spare nothing."""
        self.in_a_row = 0
        self.crash: BaseException | None = None

    def run(self, jobs: Iterable[VideoJob]) -> Outcome:
        """Handle every job, or stop early and say why. Raises what is not a single video's fault.

        Jobs without a length come one by one: waiting for the next is what their iterator does, until `stop` is set.
        Meanwhile the device computes what waits for others to fill its batch.
        """
        self.endless = not isinstance(jobs, Sized)
        self.total, self.pending = (0 if self.endless else len(jobs)), iter(jobs)  # type: ignore[arg-type]
        loaders = [self._thread(self._load, f"load-{i}") for i in range(self.workers)]
        drivers = [self._thread(self._drive, f"device-{i}") for i in range(self.drivers)]
        writer = self._thread(self._write, "write")
        try:
            # The caller's thread only waits, so that a signal's handler runs at once.
            _join(loaders)
            for _ in drivers:
                self._put(None)
            _join(drivers)
            # After a signal too: else the last clips of what was begun would wait for others to fill their batch.
            if self.crash is None:
                _join([self._thread(lambda: self._hand_over(self._timed(self.compute.flush)), "flush")])
        except BaseException as e:
            self._crashed(e)
        finally:
            if not self.abandoned.is_set():
                self._drain(loaders, drivers)
                self.to_write.put(None)
                _join([writer])
        if self.crash is not None:
            raise self.crash
        if self.stop.is_set() and self.outcome.stopped_by is None:
            self.outcome.stopped_by = "signal"
        return self.outcome

    # loaders

    def _load(self) -> None:
        with self.work.loader() as load_one:
            while not self.stop.is_set():
                with self.taking:
                    job = next(self.pending, None)
                if job is None:
                    return
                started = time.monotonic()
                try:
                    item: Prepared | Failure = load_one(job)
                except JobFailed as e:
                    item = e.failure
                with self.lock:
                    self.outcome.times.load += time.monotonic() - started
                self._put(item)

    def _put(self, item: Prepared | Failure | None) -> None:
        """Wait for room, but not beyond a stop: then the item is dropped, as no driver will take it."""
        while True:
            try:
                self.ready.put(item, timeout=0.2)
                return
            except queue.Full:
                if self.stop.is_set():
                    return

    # drivers

    def _drive(self) -> None:
        while not self.stop.is_set():
            try:
                item = self.ready.get(timeout=0.2)
            except queue.Empty:
                if self.endless and self.in_flight:
                    self._hand_over(self._timed(self.compute.flush))
                continue
            if item is None or self.stop.is_set():
                return
            with self.lock:
                self.driven += 1
            if isinstance(item, Failure):
                self._ended(item)
            else:
                self._compute(item)
            del item  # and with it its pixels, before the next is waited for

    def _compute(self, prepared: Prepared) -> None:
        with self.lock:
            self.in_flight += 1
        try:
            done = self._timed(partial(self.compute.submit, prepared))
        except AqaError:
            raise
        except Exception as e:
            with self.lock:
                self.in_flight -= 1
            self._ended(prepared.video.job.failed("internal_error", "features", f"{type(e).__name__}: {e}"))
            return
        finally:
            self.work.budget.give(prepared.reserved)
        with self.lock:
            self.in_a_row = 0
        self._hand_over(done)

    def _timed(self, call: Callable[[], Sequence[Done]]) -> Sequence[Done]:
        started = time.monotonic()
        try:
            return call()
        finally:
            with self.lock:
                self.outcome.times.device += time.monotonic() - started

    def _hand_over(self, done: Sequence[Done]) -> None:
        for finished in done:
            with self.lock:
                self.in_flight -= 1
            self.to_write.put(finished)

    # the writer

    def _write(self) -> None:
        """Ends only at the sentinel, so that handing over never blocks for ever."""
        while (done := self.to_write.get()) is not None:
            if self.crash is not None:
                continue
            try:
                self._commit(done)
            except BaseException as e:
                self._crashed(e)

    def _commit(self, done: Done) -> None:
        started = time.monotonic()
        try:
            self.work.commit(done)
        except JobFailed as e:
            self._ended(e.failure)
            return
        with self.lock:
            self.outcome.times.write += time.monotonic() - started
            self.outcome.finished += 1
            self.report(None)

    # ends

    def _ended(self, failure: Failure) -> None:
        with self.lock:
            self.outcome.failures.append(failure)
            self.report(failure)
            self.in_a_row += 1
            too_many = self.stop_after and self.in_a_row >= self.stop_after
            if not too_many or self.driven == self.total:
                return
            # Another driver may count one more before all have stopped.
            self.outcome.stopped_by = self.outcome.stopped_by or f"{self.in_a_row} failures in a row"
        self._halt()

    def _crashed(self, error: BaseException) -> None:
        with self.lock:
            self.crash = self.crash or error
        self._halt()

    def _halt(self) -> None:
        self.stop.set()
        self.work.kill_decoders()  # loaders may be waiting for them

    def _drain(self, loaders: Sequence[threading.Thread], drivers: Sequence[threading.Thread]) -> None:
        """Let everybody notice that it is over, and see the threads end."""
        if self.crash is not None or self.outcome.stopped_by is not None:
            self.stop.set()
        while any(thread.is_alive() for thread in (*loaders, *drivers)):
            try:
                self.ready.get(timeout=0.1)
            except queue.Empty:
                continue

    def _thread(self, target: Callable[[], None], name: str) -> threading.Thread:
        def guarded() -> None:
            try:
                target()
            except Cancelled:
                pass
            except BaseException as e:
                self._crashed(e)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        return thread


def _join(threads: Sequence[threading.Thread]) -> None:
    """Wait in short steps: a signal's handler runs between them."""
    for thread in threads:
        while thread.is_alive():
            thread.join(0.2)
