"""The workers of a Dask cluster as one run sees them: who is fit, and what each has to do.

Dask chooses a worker for every task, and another one when it dies. What is decided here is between which it chooses: a
worker is fit when it has the versions of the client, a GPU of its own where one is needed, and what the work needs
(networks, features), until it shows that it sees other files or fails again and again.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import Future as Answer
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from aqa_shared import console
from aqa_shared.errors import AqaError, EnvironmentFault, ExitCode
from aqa_shared.machine import pick_device
from aqa_shared.scheduler import LOCAL, address, connected, dashboard, differing, versions_of, workers
from aqa_shared.sessions import Ready, Trouble, leave, stop

if TYPE_CHECKING:
    from distributed import Client, Future

STRIKES = 3
"""Tasks in a row with which a worker may fail before it gets no more."""
TICK = 0.5
"""Seconds between looks at the cluster."""
SAY = 10.0
"""Seconds of waiting for workers after which it is said."""
DIED = "see its log; it may lack memory"


@contextmanager
def reached(where: str, device: str) -> Iterator[Client]:
    """A client of the cluster at `where`; workers of our own declare a GPU where `device` is one."""
    gpu = where.startswith(LOCAL) and pick_device(device).type == "cuda"
    with connected(where, gpu=gpu) as client:
        link = dashboard(client)
        console.note(f"Dask scheduler {address(client)}{f', dashboard {link}' if link else ''}")
        yield client


T = TypeVar("T")


@dataclass(frozen=True)
class Duties:
    """What a run has its workers do: functions of a module that they have too.

    Both are called with the run's terms and the places of workers (`aqa_shared.sessions.device_here`).
    """

    ready: Callable[..., Ready | Trouble]
    """Get ready; what the worker lacks for that is its trouble."""
    work: Callable[..., Any]
    """Called with what `Workers.submit` was given besides; nothing of the worker's may be raised."""
    loads: str
    """What getting ready is, for people: `load the networks`."""
    alone: bool = False
    """One task at a time in a process, whatever its threads."""


@dataclass(frozen=True)
class Ended(Generic[T]):
    """A task that Dask has done with. Where it was lost, without a result, `losses` workers died with it."""

    task: T
    seconds: float
    result: Any
    losses: int = 0


@dataclass(frozen=True)
class _Sent(Generic[T]):
    """What Dask has: a task, or, where that is None, the question to one worker whether it is ready."""

    task: T | None
    on: frozenset[str]
    """The workers that may do it."""
    since: float


class Workers(Generic[T]):
    """Those of a client's cluster, for one pass of a run.

    `where` and `wait` are `--scheduler` and `--scheduler-wait`. `terms` makes of a name for the run and of the device
    (`cpu`, `cuda:1`, or `cuda` for each worker's own) what workers are told with every task.
    """

    def __init__(
        self, client: Client, duties: Duties, terms: Callable[[str, str], Any], *, where: str, device: str, wait: float
    ) -> None:
        self.client, self.duties, self.where, self.wait = client, duties, where, wait
        self.asked = device
        self.local = int(where.removeprefix(LOCAL)) if where.startswith(LOCAL) else 0
        """How many the cluster of our own has; 0 where it is another's."""
        self.slots: dict[str, int] = {}
        """Fit worker → tasks that it does at a time."""
        self.stopping = False
        self._aside: dict[str, Trouble] = {}
        """Those that get no work of this pass."""
        self._places: dict[str, int] = {}
        """Worker → its number among those of its host that compute on GPUs, from 0."""
        self._gpu_of: dict[str, str] = {}
        """Fit worker → the GPU that it computes on."""
        self._deaths: dict[str, int] = {}
        """Host → workers of it that died while they got ready, since the last one that was."""
        self._strikes: dict[str, int] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._asking: dict[str, Answer[Mapping[str, str | None] | None]] = {}
        """New worker → its versions, for which it was asked."""
        self._tasks: dict[Future, _Sent[T]] = {}
        self._count = 0
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._orphans: deque[Ended[T]] = deque()
        self._first: Ready | None = None
        self._looked = 0.0
        self._waits_since: float | None = None
        self._said: set[str] = set()
        self.run, self.device = uuid.uuid4().hex[:12], self._device()
        self.terms = terms(self.run, self.device)

    @property
    def at_work(self) -> int:
        """How many tasks Dask has."""
        return sum(sent.task is not None for sent in self._tasks.values()) + len(self._orphans)

    def first_ready(self) -> Ready:
        """What the first fit worker says. Raises EnvironmentFault where there is none in time."""
        while self._first is None:
            self.step()
        return self._first

    def submit(self, task: T, arguments: tuple[Any, ...], on: frozenset[str] = frozenset()) -> None:
        """Hand a task to Dask, for one of these fit workers, or for any."""
        self._submit(self.duties.work, arguments, task, on or frozenset(self.slots))

    def step(self) -> Ended[T] | None:
        """See who is there, and wait a moment for a task to end.

        Raises EnvironmentFault where the scheduler is gone, and what the workers lack where none has been fit for
        `wait` seconds.
        """
        try:
            if time.monotonic() - self._looked > TICK:
                self._look()
                self._looked = time.monotonic()
            if self._orphans:
                return self._orphans.popleft()
            future = self._done.get(timeout=TICK)
            return self._ended(future) if future in self._tasks else None  # it may have been given up
        except queue.Empty:
            return None
        except OSError as e:
            raise self._scheduler_is_gone() from e

    def failed(self, address: str, trouble: Trouble) -> None:
        """A worker could not do a task: one that could not do any, or fails too often, gets no more."""
        self._strikes[address] = self._strikes.get(address, 0) + 1
        if trouble.unfit or self._strikes[address] >= STRIKES:
            self._put_aside(address, trouble)
        else:
            self._warn("failed", address, trouble.cause, trouble.fix)

    def succeeded(self, address: str) -> None:
        """A worker has done a task."""
        self._strikes.pop(address, None)

    def stop(self) -> None:
        """Let workers finish what they have begun, and begin nothing more."""
        self.stopping = True
        for future in [f for f, sent in self._tasks.items() if sent.task is None]:
            self._give_up(future)
        self._tell(stop)

    def leave(self) -> None:
        """Nothing of ours stays on the cluster."""
        with suppress(Exception):  # a scheduler that is gone has nothing of ours
            if self._tasks:
                self.client.cancel(list(self._tasks), force=True)
            self._tasks.clear()
            for answer in self._asking.values():
                answer.cancel()
            self._tell(leave, patience=5)

    # workers

    def _device(self) -> str:
        """Of all workers, as a GPU rounds otherwise: with `auto` a GPU, where one of them declares any."""
        if self.local:
            return str(pick_device(self.asked))
        if self.asked != "auto":
            return self.asked
        while not (there := workers(self.client)):
            self._wait(f"no worker is connected to {self.where}", self._start())
            time.sleep(TICK)
        return "cuda" if any(_gpus(worker) for worker in there.values()) else "cpu"

    @property
    def _gpu(self) -> bool:
        return self.device != "cpu"

    def _look(self) -> None:
        """Ask new workers what they have; forget those that are gone, and what waits for them alone."""
        present = self.client.nthreads().keys()
        left = {gone: self._known.pop(gone) for gone in self._known.keys() - present}
        for gone in left:
            self.slots.pop(gone, None)
            self._aside.pop(gone, None)
            self._strikes.pop(gone, None)
            self._places.pop(gone, None)
            self._gpu_of.pop(gone, None)
        for future, sent in list(self._tasks.items()):
            if not sent.on & present:
                self._give_up(future)
                if sent.task is None:
                    for gone in sent.on & left.keys():
                        self._died(gone, left[gone]["host"])
                else:
                    self._orphans.append(Ended(sent.task, 0.0, None, losses=1))
        for gone in self._asking.keys() - present:
            self._asking.pop(gone).cancel()
        if not self.stopping and (new := present - self._known.keys()):
            self._meet_those_that_answer(new)
        asked = [sent.since for sent in self._tasks.values() if sent.task is None]
        if self.slots or self.stopping or asked:
            self._waits_since = None
            if not self.slots and asked and time.monotonic() - min(asked) > SAY:
                self._say(f"waiting for workers to {self.duties.loads}; they may be busy with other work", console.note)
        elif not self._known:
            none = f"no worker of {self.where} answers" if self._asking else f"no worker is connected to {self.where}"
            self._wait(none, self._start())
        else:
            address, trouble = next(reversed(self._aside.items()))
            what = f"no worker of {self.where} can do the work; {self._who(address)}: {trouble.cause}"
            self._wait(what, trouble.fix, trouble.exit_code)

    def _meet_those_that_answer(self, new: Set[str]) -> None:
        """Ask for their versions, each on its own: one that hangs keeps nobody waiting."""
        if fresh := new - self._asking.keys():
            self._asking.update({worker: versions_of(self.client, worker) for worker in fresh})
            wait([self._asking[worker] for worker in fresh], timeout=TICK)
        answers = {worker: self._asking.pop(worker).result() for worker in new if self._asking[worker].done()}
        # One that came after `new` was read is met next time: the one it replaces may not be counted yet.
        for worker, about in workers(self.client).items() if answers else ():
            if (theirs := answers.get(worker)) is not None:
                self._known[worker] = about
                self._meet(worker, about, differing(theirs))

    def _meet(self, address: str, worker: dict[str, Any], differs: str) -> None:
        """Put a new worker aside, or have it get ready."""
        if differs:
            fix = "install the same versions there, and start it again"
            self._put_aside(address, Trouble(f"it has {differs}", fix, ExitCode.ENVIRONMENT, unfit=True))
        elif self._gpu and not _gpus(worker):
            fix = f"for each GPU {self._start()}; or use --device cpu"
            self._put_aside(address, Trouble("it declares no GPU", fix, ExitCode.ENVIRONMENT, unfit=True))
        elif (deaths := self._deaths.get(worker["host"], 0)) >= STRIKES:  # what restarts it would do so for ever
            cause = f"{deaths} workers of its host died while they were to {self.duties.loads}"
            self._put_aside(address, Trouble(cause, DIED, ExitCode.ENVIRONMENT, unfit=True))
        else:
            if self._gpu:
                taken = {n for w, n in self._places.items() if self._known[w]["host"] == worker["host"]}
                self._places[address] = next(n for n in itertools.count() if n not in taken)
            self._submit(self.duties.ready, (), None, frozenset([address]))

    def _answered(self, address: str, answer: Ready | Trouble | None) -> None:
        if address not in self._known:
            return
        if answer is None:
            cause = f"it died while it was to {self.duties.loads}"
            answer = Trouble(cause, DIED, ExitCode.ENVIRONMENT, unfit=True)
        elif isinstance(answer, Ready) and (other := self._shares(answer.gpu)):
            fix = (
                "give each worker of a host a GPU of its own, as CUDA_VISIBLE_DEVICES=1 dask worker …, or end this one"
            )
            answer = Trouble(f"its GPU is also that of {self._who(other)}", fix, ExitCode.ENVIRONMENT, unfit=True)
        if isinstance(answer, Trouble):
            self._put_aside(address, answer)
            return
        for text in answer.said:
            self._say(text, console.note)
        self._first = self._first or answer
        self._gpu_of[address] = answer.gpu
        worker = self._known[address]
        self._deaths.pop(worker["host"], None)
        if self._gpu and (declared := _gpus(worker)) > 1:
            cause = f"it declares GPU={declared}, and a worker is one process, which takes one"
            self._warn("computes on one GPU", address, cause, self._start(declared))
        slots = min(worker["nthreads"], _gpus(worker)) if self._gpu else worker["nthreads"]
        self.slots[address] = 1 if self.duties.alone else max(1, slots)

    def _died(self, address: str, host: str) -> None:
        self._deaths[host] = self._deaths.get(host, 0) + 1
        self._say(f"worker {address} died while it was to {self.duties.loads}; {DIED}", console.warn)

    def _shares(self, gpu: str) -> str:
        """A fit worker that computes on it."""
        return next((worker for worker, its in self._gpu_of.items() if gpu and its == gpu), "")

    def _put_aside(self, address: str, trouble: Trouble) -> None:
        self.slots.pop(address, None)
        self._gpu_of.pop(address, None)
        self._aside[address] = trouble
        self._warn("gets no work", address, trouble.cause, trouble.fix)

    def _who(self, address: str) -> str:
        host = self._known.get(address, {}).get("host", "")
        return f"worker {address}" + ("" if not host or host in address else f" on {host}")

    def _warn(self, what: str, address: str, cause: str, fix: str) -> None:
        """Once for many workers of which the same is true."""
        said = f"{what}: {cause}; {fix}"
        if said not in self._said:
            self._said.add(said)
            console.warn(f"{self._who(address)} {said}")

    def _say(self, text: str, how: Any) -> None:
        if text not in self._said:
            self._said.add(text)
            how(text)

    def _start(self, number: int = 1) -> str:
        more = (f" --nworkers {number}" if number > 1 else "") + (" --resources GPU=1" if self.asked != "cpu" else "")
        return f"start workers with `dask worker {address(self.client)} --nthreads 1{more}`"

    def _wait(self, what: str, fix: str, exit_code: ExitCode = ExitCode.ENVIRONMENT) -> None:
        """Raises EnvironmentFault when there has been no fit worker for too long."""
        now = time.monotonic()
        self._waits_since = self._waits_since or now
        waited = now - self._waits_since
        # Of our own cluster nobody else is to come where all are there; one that died is replaced.
        if waited >= self.wait or 0 < self.local <= len(self._known):
            error = EnvironmentFault(what, fix=fix)
            error.exit_code = exit_code
            raise error
        if waited >= SAY:
            self._say(f"waiting up to {console.as_time(self.wait)}: {what}", console.note)

    # tasks

    def _submit(self, function: Any, arguments: tuple[Any, ...], task: T | None, on: frozenset[str]) -> None:
        self._count += 1
        future = self.client.submit(
            function,
            self.terms,
            {worker: n for worker, n in self._places.items() if worker in on},
            *arguments,
            key=f"{function.__name__}-{self.run}-{self._count}",
            workers=sorted(on),
            resources={"GPU": 1} if self._gpu else None,
            pure=False,
        )
        self._tasks[future] = _Sent(task, on, time.monotonic())
        future.add_done_callback(self._done.put)

    def _ended(self, future: Future) -> Ended[T] | None:
        from distributed.scheduler import KilledWorker

        sent = self._tasks[future]
        losses, result = 0, None
        if future.status == "cancelled":
            raise self._scheduler_is_gone()
        try:
            result = future.result(timeout=10)
        except TimeoutError:  # its worker died with the result: Dask computes it again
            future.add_done_callback(self._done.put)
            return None
        except KilledWorker as e:
            losses = e.allowed_failures + 1
        except Exception as e:
            if future.status != "error":  # it was done, and could not be fetched
                raise self._scheduler_is_gone() from e
            if sent.task is not None:
                raise AqaError(f"a task failed on the cluster: {type(e).__name__}: {e}") from e
            result = Trouble(f"{type(e).__name__}: {e}", "see its log", ExitCode.ENVIRONMENT, unfit=True)
        del self._tasks[future]
        future.release()
        if sent.task is not None:
            return Ended(sent.task, time.monotonic() - sent.since, result, losses)
        (address,) = sent.on
        self._answered(address, result)
        return None

    def _give_up(self, future: Future) -> None:
        del self._tasks[future]
        self.client.cancel([future], force=True)

    def _tell(self, function: Any, patience: float = 0) -> None:
        """Have every worker call it, without waiting for one that does not answer."""
        present = list(self._known)

        def call() -> None:
            with suppress(Exception):
                self.client.run(function, self.run, workers=present, on_error="ignore")

        thread = threading.Thread(target=call, name="tell-workers", daemon=True)
        thread.start()
        thread.join(patience)

    def _scheduler_is_gone(self) -> EnvironmentFault:
        return EnvironmentFault(
            f"the Dask scheduler {address(self.client)} no longer answers; what was done is kept",
            fix="see what ended it, start it again, and rerun the same command",
        )


def _gpus(worker: dict[str, Any]) -> int:
    return int(worker["resources"].get("GPU", 0))
