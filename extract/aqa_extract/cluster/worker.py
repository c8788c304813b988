"""What a Dask worker does: keep the networks of a run, and extract a block of videos into the store with them.

Only a `Manifest` goes back. A worker writes into the store by its path or URL itself, so it first makes sure that this
is the store that the client sees, and that the videos are those that the client planned for: whatever it finds
otherwise is said of the worker, never of a video.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aqa_extract.config import Options
from aqa_extract.decode.child import Decoder
from aqa_extract.identity import identify
from aqa_extract.job import VideoJob
from aqa_shared.errors import EnvironmentFault
from aqa_shared.machine import available_memory, pick_device
from aqa_shared.records import ExtractSettings, Failure
from aqa_shared.sessions import Ready, Trouble, device_here, gpu_name, idle_gpus, session, trouble
from aqa_shared.store import Objects, StoreWriter, disk_errors

if TYPE_CHECKING:
    import torch
    from distributed import Worker

    from aqa_extract.networks import Networks
    from aqa_extract.work import Work


@dataclass(frozen=True)
class Terms:
    """What a run asks of its workers; goes with every block."""

    run: str
    """A name of its own: what a worker keeps of a run goes by it."""
    settings: ExtractSettings
    options: Options
    store: str
    device: str
    """`cpu`, `cuda:1`, or `cuda` for each worker's own."""

    @property
    def token(self) -> str:
        """Key of the object that only the store of this run has; `aqa compact` removes what a killed client left."""
        return f"staged/session-{self.run}.npz"


@dataclass
class Manifest:
    """What became of a block. A video that is in neither list was not finished."""

    worker: str
    committed: list[str] = field(default_factory=list)
    """Ids, twins included."""
    failures: list[Failure] = field(default_factory=list)
    without_actor: list[str] = field(default_factory=list)
    looked_at: list[tuple[int, int]] = field(default_factory=list)
    frames: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    trouble: Trouble | None = None


class Session:
    """What a process keeps of a run between its blocks."""

    def __init__(self, terms: Terms, device: str) -> None:
        import torch

        from aqa_extract.networks import Networks

        torch.set_num_threads(1)
        self.terms = terms
        self.device: torch.device = pick_device(device)
        self.said: list[str] = []
        self.networks: Networks = Networks.load(terms.settings, self.device, self.said.append)
        self.at_work: list[Work] = []
        self.stopped = False
        self._of_thread = threading.local()
        self.decoders = Decoders()
        weakref.finalize(self, self.decoders.close)

    def writer(self) -> StoreWriter:
        """The calling thread's own."""
        from aqa_extract.run import open_writer

        found: StoreWriter | None = getattr(self._of_thread, "writer", None)
        if found is None:
            terms, networks = self.terms, self.networks
            objects = Objects.at(terms.store, write=True)
            if not _sees(objects, terms.token):
                raise EnvironmentFault(
                    f"{terms.store} is not the store there that it is here",
                    fix="give --out a folder that all machines see under the same path, or a URL (s3://…)",
                )
            found = open_writer(objects, networks)
            self._of_thread.writer = found
        return found

    def stop(self) -> None:
        """Let what has begun come to its end, and begin nothing more."""
        self.stopped = True
        for work in list(self.at_work):
            work.stop.set()
            work.kill_decoders()


class Decoders:
    """Decode children that wait between blocks: to start one takes seconds of a core."""

    def __init__(self) -> None:
        self._waiting: list[Decoder] = []

    @contextmanager
    def of_block(self) -> Iterator[Callable[[], AbstractContextManager[Decoder]]]:
        """What lends each loader of a block a child, which waits for the next block where this one ends well.

        A block that fails interrupts its decoders, for good: so they are not lent again, nor to another thread before
        the block has ended.
        """
        lent: list[Decoder] = []

        def lend() -> AbstractContextManager[Decoder]:
            try:
                decoder = self._waiting.pop()
            except IndexError:
                decoder = Decoder()
            lent.append(decoder)
            return nullcontext(decoder)

        try:
            yield lend
        except BaseException:
            _close(lent)
            raise
        self._waiting += lent

    def close(self) -> None:
        """End those that wait."""
        _close(self._waiting)


def _close(decoders: list[Decoder]) -> None:
    for decoder in decoders:
        decoder.close()


LOOKS = 3
"""At the store, a second apart."""


def _session(terms: Terms, places: Mapping[str, int]) -> Session:
    return session(terms.run, lambda: Session(terms, device_here(terms.device, places)))


def load_networks(terms: Terms, places: Mapping[str, int]) -> Ready | Trouble:
    """Get ready; offers what the store says of what this worker makes: weights, versions …"""
    from aqa_extract.run import provenance

    try:
        ours = _session(terms, places)
    except Exception as e:
        return trouble(e, unfit=True)
    said = [*ours.said, *idle_gpus(terms.device, terms.options.device)]
    if why := ours.networks.slow_flow:
        said.append(
            f"flow takes ten times as long as it could on the workers, as torch computes it: {why} (docs/flow.md)"
        )
    return Ready(provenance(ours.networks), gpu_name(ours.device), tuple(said))


def extract_block(
    terms: Terms, places: Mapping[str, int], jobs: Sequence[VideoJob], damaged: set[str], replaced: set[str]
) -> Manifest:
    """Extract these videos and commit each; `damaged` and `replaced` of them are written though the store has them."""
    from distributed import get_worker

    worker = get_worker()
    manifest = Manifest(str(worker.contact_address))
    work: Work | None = None
    unfit = True
    try:
        ours = _session(terms, places)
        writer = ours.writer()
        for job in jobs:
            _refuse_other_files(job)
        unfit = False
        writer.forget(damaged)
        writer.replace(replaced)
        with ours.decoders.of_block() as decoder:
            work = _work(ours, writer, worker, decoder)
            _run(ours, work, jobs, manifest)
    except Exception as e:
        manifest.trouble = trouble(e, unfit)
    if work is not None:
        manifest.committed = sorted(work.committed)
        manifest.without_actor, manifest.looked_at = work.without_actor, work.looked_at
    return manifest


def _run(ours: Session, work: Work, jobs: Sequence[VideoJob], manifest: Manifest) -> None:
    from aqa_extract.pipeline import Pipeline
    from aqa_extract.run import decode_children, new_compute

    options, cuda = ours.terms.options, ours.device.type == "cuda"
    compute = new_compute(ours.networks, options, cores=1)
    # A thread of a CPU worker is one core: a decode child and the networks take turns on it.
    children = decode_children(options, ours.device, len(jobs)) if cuda else options.workers or 1

    def ended(failed: Failure | None) -> None:
        if failed is not None:
            manifest.failures.append(failed)

    ours.at_work.append(work)
    try:
        if ours.stopped:
            return
        outcome = Pipeline(work, compute, ended, workers=min(children, len(jobs)), stop_after=0).run(jobs)
        manifest.stages = vars(outcome.times)
    finally:
        ours.at_work.remove(work)
        manifest.frames = compute.frames


def _work(
    ours: Session, writer: StoreWriter, worker: Worker, decoder: Callable[[], AbstractContextManager[Decoder]]
) -> Work:
    from aqa_extract.budget import ByteBudget
    from aqa_extract.run import memory_budget
    from aqa_extract.work import Work

    budget = memory_budget(ours.device)
    if ours.device.type == "cpu":
        limit = worker.memory_manager.memory_limit or available_memory()
        budget = min(budget, limit // 4) // worker.state.nthreads
    return Work(ours.networks, writer, ours.terms.options, ByteBudget(budget, threading.Event()), decoder=decoder)


def _refuse_other_files(job: VideoJob) -> None:
    """Raises EnvironmentFault where this machine does not see the file that the client saw."""
    for video, known in ((job.video, job.identity), *job.twins):
        if known is None:  # nor did the client: its decoder says why
            continue
        if (found := identify(video.path)) is None:
            raise EnvironmentFault(
                f"there is no readable {video.path} there",
                fix="mount the videos under the same path on every machine, or start workers where they are",
            )
        if found != known:
            raise EnvironmentFault(
                f"{video.path} is another file there: of another size or time",
                fix="mount the videos under the same path on every machine, or copy them with their times (rsync -a)",
            )


def _sees(objects: Objects, key: str) -> bool:
    """Whether there is such an object; a network file system may show it a little later than it was written."""
    with disk_errors(objects, "read the store"):
        for _ in range(LOOKS):
            if objects.get(key) is not None:
                return True
            time.sleep(1)
    return False
