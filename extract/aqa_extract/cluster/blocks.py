"""A pass of a run on a Dask cluster: which videos go together, and what follows from what became of them.

    jobs ─▶ blocks ─▶ tasks, one a slot ─▶ workers ─▶ store
              ▲                              │
              └── lost, or failed there ◀── manifests

A video's own failure is remembered, as in any run. The machine's is tried on other workers, that video alone, and is
never remembered. Blocks are lost with their worker, who may have committed some of their videos: those are made again,
to the same bytes.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from aqa_extract import faults
from aqa_extract.cluster.worker import Terms, extract_block, load_networks
from aqa_extract.config import Options
from aqa_extract.faults import Fault
from aqa_extract.identity import identify
from aqa_extract.job import VideoJob
from aqa_extract.plan import Plan
from aqa_extract.run import Report, Told, conclude
from aqa_extract.sampling import coverage
from aqa_extract.signals import GRACE, Signals
from aqa_extract.streams import identified
from aqa_shared import console
from aqa_shared.errors import AqaError, ExitCode
from aqa_shared.records import ExtractSettings, Failure
from aqa_shared.sessions import Trouble
from aqa_shared.store import Objects, Run, StoreWriter, disk_errors, expect
from aqa_shared.workers import Duties, Ended, Workers

if TYPE_CHECKING:
    from distributed import Client

TRIES = 3
"""Workers that may fail with a video before it is given up."""
LOSSES = 10
"""Workers that may die while they have it: something else may be what kills them."""
BLOCK_SECONDS = 30.0
"""Of work in a block: long beside a message and the start of a decoder, short beside what a lost worker costs."""
LARGEST, FIRST = 64, 2
"""Videos of a block; and while nobody knows how long they take."""
DUTIES = Duties(load_networks, extract_block, "load the networks")


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


def run_pass(
    client: Client,
    jobs: Sequence[VideoJob],
    todo: Plan,
    settings: ExtractSettings,
    options: Options,
    overwrite: bool,
    asked: Run,
    report: Report,
    signals: Signals,
) -> set[str]:
    """Extract `jobs` on the cluster, as `aqa_extract.run` does here; returns the ids that were committed."""
    place, theirs = str(report.store), options.model_copy(update={"scheduler": None, "command": ""})
    place = place if "://" in place else os.path.abspath(place)
    where, wait = options.scheduler or "", options.scheduler_wait
    workers: Workers[Block] = Workers(
        client,
        DUTIES,
        lambda run, device: Terms(run, settings, theirs, place, device),
        where=where,
        device=options.device,
        wait=wait,
    )
    objects = Objects.at(report.store, write=True)
    try:
        made_with = workers.first_ready().offer
        specs = identified(settings, made_with["weights"])
        StoreWriter.open(objects, specs=specs, settings=settings, provenance=made_with, overwrite=overwrite)
        expect(objects, asked)
        with disk_errors(objects, "write to the store"):
            objects.put(workers.terms.token, b"")
        with console.progress("extract", len(jobs)) as advance:
            work = _Pass(workers, jobs, todo, advance, report, options.stop_after)
            work.signalled = bool(signals.received)  # in an earlier pass, at its end
            signals.hand_to(work.finish, lambda: None)
            stopped_by = work.run()
    finally:
        workers.leave()
        with suppress(AqaError, OSError):
            objects.remove([workers.terms.token])
    conclude(report, jobs, work.told.committed, signals, stopped_by)
    if said := coverage(work.looked_at, settings.sampling):
        console.note(said)
    return work.told.committed


class _Pass:
    """What is still to do, what is under way, what has come of it."""

    def __init__(
        self,
        workers: Workers[Block],
        jobs: Sequence[VideoJob],
        todo: Plan,
        advance: Callable[..., None],
        report: Report,
        most: int,
    ) -> None:
        self.workers, self.todo, self.report, self.most = workers, todo, report, most
        self.told = Told(report, jobs, advance, set(), lambda: self.frames)
        self.looked_at: list[tuple[int, int]] = []
        self.frames = 0
        self.fresh = deque(jobs)
        self.again: deque[Block] = deque()
        """Of one video each, but for those whose worker was unfit."""
        self.seconds = 0.0
        self.finished = 0
        self.in_a_row = 0
        self.signalled = False
        self.stopped_by: str | None = None

    def run(self) -> str | None:
        """Work until nothing is left, or the run is to end early: why, None for a signal."""
        while self.workers.at_work or not self._over:
            while not self._over and self.workers.at_work < sum(self.workers.slots.values()):
                block = self.again.popleft() if self.again else self._next()
                ids = {i for job in block.jobs for i in job.ids}
                self.workers.submit(
                    block, (block.jobs, self.todo.damaged & ids, self.todo.replaced & ids), self._elsewhere(block)
                )
            if (ended := self.workers.step()) is not None:
                self._settle(ended)
            if self.signalled and not self.workers.stopping:
                self.workers.stop()
        return self.stopped_by

    def finish(self, number: int) -> None:
        """A signal came, perhaps amid a message to the scheduler: what has begun is finished."""
        self.signalled = True
        blocks = console.counted(self.workers.at_work, "block")
        how = "again to stop now" if number == signal.SIGINT else f"for at most {GRACE:.0f} s"
        console.note(f"finishing what the workers have begun in {blocks}; {how}")

    @property
    def _stops(self) -> bool:
        return self.signalled or self.workers.stopping

    @property
    def _over(self) -> bool:
        return self._stops or not (self.fresh or self.again)

    def _next(self) -> Block:
        """As many videos as take `BLOCK_SECONDS`, and towards the end fewer, so that all workers end together."""
        slots = sum(self.workers.slots.values())
        enough = int(BLOCK_SECONDS * self.finished / self.seconds) if self.finished else FIRST
        count = max(1, min(enough, LARGEST, len(self.fresh) // (2 * slots)))
        return Block(tuple(self.fresh.popleft() for _ in range(count)))

    def _elsewhere(self, block: Block) -> frozenset[str]:
        """Fit workers that have not failed with it."""
        return frozenset(self.workers.slots) - block.not_on

    def _settle(self, ended: Ended[Block]) -> None:
        block, manifest = ended.task, ended.result
        if manifest is None:
            for job in block.jobs:
                self._lost(job, block, ended.losses)
            return
        self.frames += manifest.frames
        self.looked_at += manifest.looked_at
        self.report.without_actor = sorted({*self.report.without_actor, *manifest.without_actor})
        self.report.add_stages(manifest.stages)
        failures = {failure.id: failure for failure in manifest.failures}
        left = []
        for job in block.jobs:
            committed = set(job.ids) & set(manifest.committed)
            self.told.committed |= committed
            if failed := failures.get(job.video.id):
                self._failed(job, failed, block, manifest.worker)
            elif len(committed) == len(job.ids):
                self._ended(None)
            else:
                left.append(job)
        self.seconds += ended.seconds
        self.finished += len(block.jobs) - len(left)
        if manifest.trouble is None:
            self.again.extend(replace(block, jobs=(job,)) for job in left)  # a run that is stopped leaves them
            if manifest.committed or block.tries or not faults.ours(manifest.failures):
                self.workers.succeeded(manifest.worker)
            else:
                self.workers.failed(manifest.worker, _all_failed(manifest.failures))
        else:
            self._in_trouble(left, block, manifest.worker, manifest.trouble)

    def _in_trouble(self, left: Sequence[VideoJob], block: Block, worker: str, trouble: Trouble) -> None:
        changed = [job for job in left if trouble.unfit and _changed(job)]
        for job in changed:  # for the client too: no worker is to blame
            self._ended(job.failed("changed_during_read", "decode", CHANGED))
        if not changed:
            self.workers.failed(worker, trouble)
        if trouble.unfit:
            if rest := tuple(job for job in left if job not in changed):
                self.again.append(replace(block, jobs=rest))
            return
        for job in left:
            alone = replace(block, jobs=(job,), tries=block.tries + 1, not_on=block.not_on | {worker})
            if alone.tries < TRIES:
                self.again.append(alone)
            else:
                detail = f"{console.counted(alone.tries, 'worker')} failed with it; the last: {trouble.cause}"
                self._ended(job.failed("worker_failed", "features", detail))

    def _failed(self, job: VideoJob, failed: Failure, block: Block, worker: str) -> None:
        """A fault of the machine is tried on another one."""
        alone = replace(block, jobs=(job,), tries=block.tries + 1, not_on=block.not_on | {worker})
        ours = faults.fault(failed.reason) is Fault.OURS
        if ours and alone.tries < TRIES and self._elsewhere(alone) and not self._stops:
            console.note(f"{console.printable(job.video.id)} failed ({failed.reason}) on {worker}: again on another")
            self.again.append(alone)
        else:
            self._ended(failed)

    def _lost(self, job: VideoJob, block: Block, losses: int) -> None:
        alone = replace(block, jobs=(job,), losses=block.losses + losses)
        if alone.losses < LOSSES:
            self.again.append(alone)
        else:
            detail = f"{alone.losses} workers died while they had it: of memory, perhaps; see their logs"
            self._ended(job.failed("worker_failed", "features", detail))

    def _ended(self, failed: Failure | None) -> None:
        self.told.ended(failed)
        self.in_a_row = 0 if failed is None else self.in_a_row + 1
        if self.most and self.in_a_row >= self.most and (self.fresh or self.again):
            self.stopped_by = f"{self.in_a_row} failures in a row"
            self.workers.stop()


def _all_failed(failures: Sequence[Failure]) -> Trouble:
    """Of a block of which nothing was made, for reasons that are not its videos'."""
    last = faults.ours(failures)[-1]
    return Trouble(faults.told(last), "run `aqa doctor` there", ExitCode.ENVIRONMENT, unfit=False)


CHANGED = "the file changed since the run began; rerun once it is whole"


def _changed(job: VideoJob) -> bool:
    """Whether a file is no longer what the run was planned for."""
    return any(known and identify(video.path) != known for video, known in ((job.video, job.identity), *job.twins))
