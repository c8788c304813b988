"""Extraction that goes on: the networks stay on the device, and videos come one at a time.

The same plan, decode children, device stage and commits as `aqa_extract.run`; only that nobody knows what comes next,
and that each video is answered for by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aqa_extract import faults, quarantine
from aqa_extract.budget import ByteBudget
from aqa_extract.compute import Done
from aqa_extract.config import Options
from aqa_extract.faults import Fault
from aqa_extract.job import Asked, JobFailed, VideoJob
from aqa_extract.loading import Prepared
from aqa_extract.plan import pinned, plan, read_plan
from aqa_extract.run import load_networks, memory_budget, new_pipeline, open_writer
from aqa_extract.streams import completed
from aqa_extract.work import Work
from aqa_shared.errors import StoreError
from aqa_shared.records import ExtractSettings, Failure, Video
from aqa_shared.store import Objects, Where

MANY = 1 << 20
"""Videos that are yet to come, as far as the numbers of threads and decode children go."""


@dataclass
class _Work(Work):
    """Work whose videos can be called off, and that says when one is in the store."""

    ended: Callable[[str, Failure | None], None] = lambda video_id, failure: None
    asked: dict[str, Asked] = field(default_factory=dict)
    """By id, what is being extracted."""
    called_off: set[int] = field(default_factory=set)
    """By number."""

    @contextmanager
    def loader(self) -> Iterator[Callable[[VideoJob], Prepared]]:
        with super().loader() as load:

            def unless_called_off(job: VideoJob) -> Prepared:
                self.refuse_called_off(job)
                prepared = load(job)
                try:
                    self.refuse_called_off(job)
                except JobFailed:
                    self.budget.give(prepared.reserved)
                    raise
                return prepared

            yield unless_called_off

    def commit(self, done: Done) -> None:
        job = done.video.job
        self.refuse_called_off(job)
        super().commit(done)
        # Nobody reads these at the end, which never comes.
        self.committed.clear()
        self.looked_at.clear()
        self.without_actor.clear()
        self.through(job.video.id, None)

    def through(self, video_id: str, failure: Failure | None) -> None:
        """It has ended."""
        self.called_off.discard(self.asked.pop(video_id).number)
        self.ended(video_id, failure)

    def refuse_called_off(self, job: VideoJob) -> None:
        if self.asked[job.video.id].number in self.called_off:
            raise JobFailed(job.failed("interrupted", "decode", "it was cancelled"))


class Warm:
    """What is loaded once. Raises StoreError and EnvironmentFault as `run.extract` does.

    Without `create` the store has to be there: one that was lost meanwhile is not begun again in an empty place.
    """

    def __init__(self, store: Where, settings: ExtractSettings, options: Options, *, create: bool = True) -> None:
        self.store, self.options = store, options
        settings = completed(settings)
        objects = Objects.at(store, write=True)
        _, known = read_plan((), objects, settings, options)  # refuses a store of others before the networks are loaded
        if known is None and not create:
            raise StoreError(f"{store}: the store is gone", fix="put it back where it was; nothing else was lost")
        self.networks = load_networks(pinned(settings, known), options)
        self.writer = open_writer(objects, self.networks)
        self.failed_before = quarantine.read(store)
        self.stale = threading.Event()
        """Set when others have changed the store: it is read again before the next video."""
        self.work: _Work | None = None

    @property
    def device(self) -> str:
        """As torch names it."""
        return str(self.networks.device)

    def run(self, ask: Callable[[], Asked | None], ended: Callable[[str, Failure | None], None]) -> None:
        """Extract what `ask` gives, which is called again at once where it answers None, until it raises StopIteration.

        `ended(id, failure)` is called once a video, from several threads: None is in the store. Raises what no single
        video is to blame for; what was finished by then is committed.
        """
        budget = ByteBudget(memory_budget(self.networks.device), threading.Event())
        options = self.options.model_copy(update={"stop_after": 0})
        self.work = work = _Work(self.networks, self.writer, options, budget, ended=ended)

        def jobs() -> Iterator[VideoJob]:
            while not work.stop.is_set():
                try:
                    asked = ask()
                except StopIteration:
                    return
                if asked is None:
                    continue
                work.asked[asked.video.id] = asked
                job, failure = self._planned(asked.video)
                if job is not None:
                    yield job
                else:
                    work.through(asked.video.id, failure)

        def told(failure: Failure | None) -> None:
            pipeline.outcome.failures.clear()
            if failure is not None:
                if work.asked[failure.id].remember and faults.fault(failure.reason) is not Fault.OURS:
                    self.failed_before[failure.id] = failure
                    quarantine.write(self.store, failure)
                work.through(failure.id, failure)

        pipeline = new_pipeline(work, told, MANY)
        pipeline.run(jobs())

    def call_off(self, number: int) -> None:
        """Do not commit what was asked for with this number, unless it is; decoding goes on to its end."""
        if self.work is not None:
            self.work.called_off.add(number)

    def _planned(self, video: Video) -> tuple[VideoJob | None, Failure | None]:
        """What is to be done of a video, or why it cannot be; neither where the store has it.

        A video of which the store has some streams is made in all of them again: what is there stays.
        """
        if self.stale.is_set():
            self.stale.clear()
            self.writer.refresh()
            self.failed_before = quarantine.read(self.store)
        found = plan([video], self.writer.known, self.failed_before, set(), self.networks.settings, self.options)
        failures = [*found.kept_out, *found.refused]
        if not failures and self.failed_before.pop(video.id, None) is not None:
            quarantine.release(self.store, [video.id])  # the file has changed, or the store has it by now
        return (found.jobs[0] if found.jobs else None), (failures[0] if failures else None)
