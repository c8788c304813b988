"""The workers of a Dask cluster as one pass of a run sees them: who is fit, and what each has to do.

Dask chooses a worker for every task, and another one when it dies. What is decided here is between which it chooses: a
worker is fit when it has the versions of the client, a GPU where one is needed, and the networks, until it shows that
it sees other files or fails again and again.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aqa_extract.cluster.worker import Manifest, Offer, Terms, Trouble, extract_block, leave, offer, stop
from aqa_extract.config import Options
from aqa_extract.job import VideoJob
from aqa_shared import console
from aqa_shared.errors import AqaError, EnvironmentFault, ExitCode
from aqa_shared.machine import pick_device
from aqa_shared.records import ExtractSettings
from aqa_shared.scheduler import LOCAL, address, connected, dashboard, refused, workers

if TYPE_CHECKING:
    from distributed import Client, Future

STRIKES = 3
"""Blocks in a row with which a worker may fail before it gets no more."""
TICK = 0.5
"""Seconds between looks at the cluster."""
SAY = 10.0
"""Seconds of waiting for workers after which it is said."""


@contextmanager
def reached(where: str, device: str) -> Iterator[Client]:
    """A client of the cluster at `where`; workers of our own declare a GPU where `device` is one."""
    gpu = where.startswith(LOCAL) and pick_device(device).type == "cuda"
    with connected(where, gpu=gpu) as client:
        link = dashboard(client)
        console.note(f"Dask scheduler {address(client)}{f', dashboard {link}' if link else ''}")
        yield client


@dataclass(frozen=True)
class Block:
    """Videos for one worker."""

    jobs: tuple[VideoJob, ...]
    tries: int = 0
    """Workers that failed with it."""
    losses: int = 0
    """Times that a worker died with it, as far as Dask says."""
    not_on: frozenset[str] = frozenset()
    """Those that failed with it."""


@dataclass(frozen=True)
class Ended:
    """A block that Dask has done with. Where it was lost, without a manifest, `losses` workers died with it."""

    block: Block
    seconds: float
    manifest: Manifest | None
    losses: int = 0


@dataclass(frozen=True)
class _Task:
    """What Dask has: a block, or, where that is None, the question to one worker what it computes with."""

    block: Block | None
    on: frozenset[str]
    """The workers that may do it."""
    since: float


class Workers:
    """Those of a client's cluster, for the videos of one pass."""

    def __init__(self, client: Client, settings: ExtractSettings, options: Options, store: object) -> None:
        self.client, self.options, self.local = client, options, (options.scheduler or "").startswith(LOCAL)
        self.slots: dict[str, int] = {}
        """Fit worker → blocks that it computes at a time."""
        self.stopping = False
        self._aside: dict[str, Trouble] = {}
        """Those that get no work of this pass."""
        self._strikes: dict[str, int] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._tasks: dict[Future, _Task] = {}
        self._count = 0
        self._done: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self._orphans: deque[Ended] = deque()
        self._first: Offer | None = None
        self._looked = 0.0
        self._waits_since: float | None = None
        self._said: set[str] = set()
        place = str(store)
        self.terms = Terms(
            uuid.uuid4().hex[:12],
            settings,
            options.model_copy(update={"scheduler": None, "command": ""}),
            place if "://" in place else os.path.abspath(place),
            self._device(),
        )

    @property
    def blocks(self) -> int:
        """How many Dask has."""
        return sum(task.block is not None for task in self._tasks.values()) + len(self._orphans)

    def first_offer(self) -> Offer:
        """What the first fit worker computes with. Raises EnvironmentFault where there is none in time."""
        while self._first is None:
            self.step()
        return self._first

    def submit(self, block: Block, damaged: set[str], replaced: set[str]) -> None:
        """Hand a block to Dask, for any fit worker that has not failed with it if there is one."""
        ids = {i for job in block.jobs for i in job.ids}
        on = self.elsewhere(block) or frozenset(self.slots)
        self._submit(extract_block, (block.jobs, damaged & ids, replaced & ids), block, on)

    def elsewhere(self, block: Block) -> frozenset[str]:
        """Fit workers that have not failed with it."""
        return frozenset(self.slots) - block.not_on

    def step(self) -> Ended | None:
        """See who is there, and wait a moment for a block to end.

        Raises EnvironmentFault where the scheduler is gone, and what the workers lack where none has been fit for
        `scheduler_wait` seconds.
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
        """A worker could not do a block: one that could not do any, or fails too often, gets no more."""
        self._strikes[address] = self._strikes.get(address, 0) + 1
        if trouble.unfit or self._strikes[address] >= STRIKES:
            self._put_aside(address, trouble)
        else:
            self._warn("failed", address, trouble)

    def succeeded(self, address: str) -> None:
        """A worker has done a block."""
        self._strikes.pop(address, None)

    def stop(self) -> None:
        """Let workers finish what they have begun, and begin nothing more."""
        self.stopping = True
        for future in [f for f, task in self._tasks.items() if task.block is None]:
            self._give_up(future)
        self._tell(stop)

    def leave(self) -> None:
        """Nothing of ours stays on the cluster."""
        with suppress(Exception):  # a scheduler that is gone has nothing of ours
            if self._tasks:
                self.client.cancel(list(self._tasks), force=True)
            self._tasks.clear()
            self._tell(leave, patience=5)

    # workers

    def _device(self) -> str:
        """Of all workers, as a GPU rounds otherwise: with `auto` a GPU, where one of them declares any."""
        asked = self.options.device
        if self.local:
            found = pick_device(asked)
            return "cuda:*" if found.type == "cuda" and found.index is None else str(found)
        if asked != "auto":
            return asked
        while not (there := workers(self.client)):
            self._wait(f"no worker is connected to {self.options.scheduler}", self._start())
            time.sleep(TICK)
        return "cuda" if any(_gpus(worker) for worker in there.values()) else "cpu"

    @property
    def _gpu(self) -> bool:
        return self.terms.device != "cpu"

    def _look(self) -> None:
        """Ask new workers what they have; forget those that are gone, and what waits for them alone."""
        present = self.client.nthreads().keys()
        for gone in self._known.keys() - present:
            del self._known[gone]
            self.slots.pop(gone, None)
            self._aside.pop(gone, None)
            self._strikes.pop(gone, None)
        if not self.stopping and present - self._known.keys():
            wrong = refused(self.client)
            for address, worker in workers(self.client).items():
                if address not in self._known:
                    self._known[address] = worker
                    self._meet(address, worker, wrong.get(address, ""))
        for future, task in list(self._tasks.items()):
            if not task.on & present:
                self._give_up(future)
                if task.block is not None:
                    self._orphans.append(Ended(task.block, 0.0, None, losses=1))
        asked = [task.since for task in self._tasks.values() if task.block is None]
        if self.slots or self.stopping or asked:
            self._waits_since = None
            if not self.slots and asked and time.monotonic() - min(asked) > SAY:
                self._say("waiting for workers to load the networks; they may be busy with other work", console.note)
        elif not self._known:
            self._wait(f"no worker is connected to {self.options.scheduler}", self._start())
        else:
            address, trouble = next(reversed(self._aside.items()))
            what = f"no worker of {self.options.scheduler} can do the work; {self._who(address)}: {trouble.cause}"
            self._wait(what, trouble.fix, trouble.exit_code)

    def _meet(self, address: str, worker: dict[str, Any], differs: str) -> None:
        """Put a new worker aside, or have it load the networks."""
        if differs:
            fix = "install the same versions there, and start it again"
            self._put_aside(address, Trouble(f"it has {differs}", fix, ExitCode.ENVIRONMENT, unfit=True))
        elif self._gpu and not _gpus(worker):
            fix = f"for each GPU {self._start()}; or use --device cpu"
            self._put_aside(address, Trouble("it declares no GPU", fix, ExitCode.ENVIRONMENT, unfit=True))
        else:
            self._submit(offer, (), None, frozenset([address]))

    def _answered(self, address: str, answer: Offer | Trouble | None) -> None:
        if address not in self._known:
            return
        if answer is None:
            fix = "see its log; it may lack memory"
            answer = Trouble("it died while it loaded the networks", fix, ExitCode.ENVIRONMENT, unfit=True)
        if isinstance(answer, Trouble):
            self._put_aside(address, answer)
            return
        for text in answer.said:
            self._say(text, console.note)
        self._first = self._first or answer
        worker = self._known[address]
        self.slots[address] = max(1, min(worker["nthreads"], _gpus(worker)) if self._gpu else worker["nthreads"])

    def _put_aside(self, address: str, trouble: Trouble) -> None:
        self.slots.pop(address, None)
        self._aside[address] = trouble
        self._warn("gets no work", address, trouble)

    def _who(self, address: str) -> str:
        host = self._known.get(address, {}).get("host", "")
        return f"worker {address}" + ("" if not host or host in address else f" on {host}")

    def _warn(self, what: str, address: str, trouble: Trouble) -> None:
        """Once for many workers of which the same is true."""
        said = f"{trouble.cause}; {trouble.fix}"
        if said not in self._said:
            self._said.add(said)
            console.warn(f"{self._who(address)} {what}: {said}")

    def _say(self, text: str, how: Any) -> None:
        if text not in self._said:
            self._said.add(text)
            how(text)

    def _start(self) -> str:
        more = " --resources GPU=1" if self.options.device != "cpu" else ""
        return f"start workers with `dask worker {address(self.client)} --nthreads 1{more}`"

    def _wait(self, what: str, fix: str, exit_code: ExitCode = ExitCode.ENVIRONMENT) -> None:
        """Raises EnvironmentFault when there has been no fit worker for too long."""
        now = time.monotonic()
        self._waits_since = self._waits_since or now
        waited = now - self._waits_since
        # Of our own cluster no other worker can be expected, unless it is to replace one that died.
        if waited >= self.options.scheduler_wait or (self.local and self._known):
            error = EnvironmentFault(what, fix=fix)
            error.exit_code = exit_code
            raise error
        if waited >= SAY:
            self._say(f"waiting up to {console.as_time(self.options.scheduler_wait)}: {what}", console.note)

    # tasks

    def _submit(self, function: Any, arguments: tuple[Any, ...], block: Block | None, on: frozenset[str]) -> None:
        self._count += 1
        future = self.client.submit(
            function,
            self.terms,
            *arguments,
            key=f"{function.__name__}-{self.terms.run}-{self._count}",
            workers=sorted(on),
            resources={"GPU": 1} if self._gpu else None,
            pure=False,
        )
        self._tasks[future] = _Task(block, on, time.monotonic())
        future.add_done_callback(self._done.put)

    def _ended(self, future: Future) -> Ended | None:
        from distributed.scheduler import KilledWorker

        task = self._tasks[future]
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
            if task.block is not None:
                raise AqaError(f"a task failed on the cluster: {type(e).__name__}: {e}") from e
            result = Trouble(f"{type(e).__name__}: {e}", "see its log", ExitCode.ENVIRONMENT, unfit=True)
        del self._tasks[future]
        future.release()
        if task.block is not None:
            return Ended(task.block, time.monotonic() - task.since, result, losses)
        (address,) = task.on
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
                self.client.run(function, self.terms.run, workers=present, on_error="ignore")

        thread = threading.Thread(target=call, name="tell-workers", daemon=True)
        thread.start()
        thread.join(patience)

    def _scheduler_is_gone(self) -> EnvironmentFault:
        return EnvironmentFault(
            f"the Dask scheduler {address(self.client)} no longer answers; what was committed is kept",
            fix="see what ended it, start it again, and rerun the same command",
        )


def _gpus(worker: dict[str, Any]) -> int:
    return int(worker["resources"].get("GPU", 0))
