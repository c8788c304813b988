"""Extraction as a function: the networks, the pipeline, the store.

videos ─▶ plan ─▶ pipeline ─▶ store ─▶ finalise with labels
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import InitVar, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from aqa_extract import faults, quarantine
from aqa_extract.config import Options
from aqa_extract.faults import Fault
from aqa_extract.job import VideoJob
from aqa_extract.plan import Plan, only, pinned, read_plan, shard
from aqa_extract.sampling import coverage
from aqa_extract.signals import GRACE, Interrupted, Signals, caught
from aqa_extract.streams import array_specs, completed, identified
from aqa_shared import __version__, console
from aqa_shared.errors import AqaError, EnvironmentFault, ExitCode, NoInputError
from aqa_shared.machine import available_cores, available_memory, pick_device
from aqa_shared.records import ExtractSettings, Failure, Video
from aqa_shared.store import Objects, Run, StoreWriter, Where, expect, finalise, label

if TYPE_CHECKING:
    import torch

    from aqa_extract.compute import Compute
    from aqa_extract.networks import Networks
    from aqa_extract.pipeline import Pipeline
    from aqa_extract.work import Work

PACKAGES = ("torch", "torchvision", "av", "decord", "zarr", "numpy")


@dataclass
class Report:
    """What a run did."""

    store: Where
    extracted: int = 0
    already: int = 0
    failures: list[Failure] = field(default_factory=list)
    kept_out: set[str] = field(default_factory=set)
    """Ids of the failures that are an earlier run's, and were not tried again."""
    without_actor: list[str] = field(default_factory=list)
    """Ids extracted by this run in which nobody could be followed."""
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds each stage was busy: load (summed over loaders), device, write."""

    def add_stages(self, seconds: Mapping[str, float]) -> None:
        """Those of one more pass or block."""
        for stage, more in seconds.items():
            self.stages[stage] = self.stages.get(stage, 0.0) + more

    @property
    def exit_code(self) -> ExitCode:
        """5 where a failure is the machine's or a library's, else 3 where some video is quarantined."""
        return faults.exit_code(self.failures)

    def text(self) -> str:
        """The result as a person reads it."""
        head = f"{self.store}: {self.extracted} extracted, {self.already} already there"
        nobody = [f"  no actor in {listed(self.without_actor)}: the full frame was used"] if self.without_actor else []
        if not self.failures:
            return "\n".join([f"{head} ({self.seconds:.1f} s)", *nobody])
        rows = [
            f"  {faults.told(f)}" + (" [as before; --retry-failed tries it again]" if f.id in self.kept_out else "")
            for f in self.failures
        ]
        ours = len(faults.ours(self.failures))
        counts = [f"{len(self.failures) - ours} cannot be used"] if ours < len(self.failures) else []
        counts += [f"{ours} failed through no fault of the video"] if ours else []
        return "\n".join([f"{head}, {', '.join(counts)} ({self.seconds:.1f} s):", *rows, *nobody])


def listed(ids: Sequence[str], most: int = 5) -> str:
    """The first of many ids, and how many more there are."""
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return ", ".join(console.printable(i) for i in ids[:most]) + more


def extract(
    videos: Sequence[Video],
    out: Where,
    settings: ExtractSettings,
    options: Options = Options(),
    *,
    labelled: bool | None = None,
) -> Report:
    """Extract `videos` into the store at `out`, going on where an earlier run stopped.

    A store that has other streams gets those of `settings` as well; what it has is not made again. Where `labelled`,
    the labels (scores, splits …) of the videos replace those in the store, empty ones too; else the store keeps what
    it has. None means: if any video carries a label. With `options.shard` only a part of the videos, and nothing is
    finalised. Raises StoreError (incompatible, damaged, not writable), EnvironmentFault (device, weights, too many
    failures in a row) and Interrupted after a signal; whatever was finished by then is committed.
    """
    started = time.monotonic()
    if not videos:
        raise NoInputError("no videos were given", fix="name a folder, files, a list or a manifest; see --help")
    settings = completed(settings)
    labelled = any(video.has_labels for video in videos) if labelled is None else labelled
    if options.shard is not None:
        videos = shard(videos, *options.shard)
    out = Objects.at(out, write=True)  # one for all: what is committed is read once
    with caught() as signals:
        todo, known = read_plan(videos, out, settings, options)
        report = Report(out, 0, len(todo.already), todo.kept_out + todo.refused, {f.id for f in todo.kept_out})
        committed: set[str] = set()
        overwrite = options.overwrite
        arrays = tuple(spec.name for spec in array_specs(settings))
        asked = Run(options.command, arrays, tuple(video.id for video in videos), options.shard)
        with _by(options) if todo.passes else nullcontext(_run) as run_pass:
            for streams, jobs in todo.passes.items():
                one = only(pinned(settings, known), streams)
                committed |= run_pass(jobs, todo, one, options, overwrite, asked, report, signals)
                overwrite = False
        if options.shard is not None and not todo.passes:
            if known is None:
                StoreWriter.open(out, specs=(), provenance={})
            expect(out, asked)  # it has begun, though it found nothing to do
        if known is not None or todo.jobs:
            # What is known about a new version of a file says nothing about the features of the old one, which stay
            # where the new one is refused or could not be used.
            others = {failure.id for failure in todo.refused} | (todo.replaced - committed)
            if labelled:
                label(out, {video.id: video for video in videos if video.id not in others})
            if options.shard is None:
                finalise(out)
            quarantine.release(out, committed.union(todo.already))
    report.seconds = time.monotonic() - started
    return report


@contextmanager
def _by(options: Options) -> Iterator[Callable[..., set[str]]]:
    """What runs a pass: this process, or the workers of a cluster."""
    if options.scheduler is None:
        yield _run
        return
    from aqa_extract.cluster.blocks import run_pass
    from aqa_shared.workers import reached

    with reached(options.scheduler, options.device) as client:
        yield partial(run_pass, client)


def _run(
    jobs: Sequence[VideoJob],
    todo: Plan,
    settings: ExtractSettings,
    options: Options,
    overwrite: bool,
    asked: Run,
    report: Report,
    signals: Signals,
) -> set[str]:
    """One pass: the part that needs torch and the networks; returns the ids it committed."""
    from aqa_extract.budget import ByteBudget
    from aqa_extract.work import Work

    networks = load_networks(settings, options)
    with open_writer(report.store, networks, overwrite) as writer:
        expect(report.store, asked)
        writer.forget(todo.damaged)
        writer.replace(todo.replaced)
        work = Work(networks, writer, options, ByteBudget(memory_budget(networks.device), threading.Event()))

        with console.progress("extract", len(jobs)) as advance:
            told = Told(report, jobs, advance, work.committed, lambda: pipeline.compute.frames)
            pipeline = new_pipeline(work, told.ended, len(jobs))

            def finish(number: int) -> None:
                work.stop.set()
                work.kill_decoders()
                count = f"finishing {pipeline.in_flight} video{'s' if pipeline.in_flight != 1 else ''}"
                how = "again to stop now" if number == signal.SIGINT else f"for at most {GRACE:.0f} s"
                console.note(f"{count}; {how}")

            signals.hand_to(finish, pipeline.abandoned.set)
            if signals.received:  # between two passes: the one that was over could not end this one
                work.stop.set()
            outcome = pipeline.run(jobs)
        report.add_stages(vars(outcome.times))
        report.without_actor = sorted({*report.without_actor, *work.without_actor})
        conclude(report, jobs, work.committed, signals, outcome.stopped_by)
        if said := coverage(work.looked_at, settings.sampling):
            console.note(said)
    return work.committed


@dataclass
class Told:
    """How a pass is going, as its user sees it."""

    report: Report
    jobs: InitVar[Sequence[VideoJob]]
    advance: Callable[..., None]
    committed: set[str]
    """Ids, growing."""
    frames: Callable[[], int]
    """Decoded so far."""

    def __post_init__(self, jobs: Sequence[VideoJob]) -> None:
        self.begun = time.monotonic()
        self._by_id = {job.video.id: job for job in jobs}

    def ended(self, failed: Failure | None) -> None:
        """One more video has come to its end; its failure is remembered where it is the video's."""
        for one in _with_twins(self._by_id[failed.id], failed) if failed is not None else ():
            if one.id not in self.committed:
                if faults.fault(one.reason) is not Fault.OURS:
                    quarantine.write(self.report.store, one)
                self.report.failures.append(one)
                console.warn(f"{console.printable(one.id)} failed ({one.reason})")  # all of it at the end
        seconds = max(time.monotonic() - self.begun, 1e-9)
        pace = f"{seconds / len(self.committed):.1f} s a video, " if self.committed else ""
        self.advance(1, note=f"{pace}{self.frames() / seconds:.0f} frames/s")


def conclude(
    report: Report, jobs: Sequence[VideoJob], committed: set[str], signals: Signals, stopped_by: str | None
) -> None:
    """A pass is over. Raises what it ended with, where that was not its last video."""
    report.extracted += len(committed)
    if signals.received:
        raise Interrupted(
            signals.received[0],
            f"interrupted; videos extracted by this run, which the next one keeps: {report.extracted}",
        )
    if stopped_by:
        last = report.failures[-1]
        rerun = "the same command" if faults.fault(last.reason) is Fault.OURS else "with --retry-failed"
        raise EnvironmentFault(
            f"stopped after {stopped_by}; the last was {faults.told(last)}",
            fix=f"remove the cause (`aqa doctor` examines this machine) and rerun {rerun}, "
            "or go on regardless with --stop-after 0",
        )
    lost = {id for job in jobs for id in job.ids} - committed - {f.id for f in report.failures}
    if lost:
        raise AqaError(f"{len(lost)} videos were neither extracted nor named as failed: {', '.join(sorted(lost)[:5])}")
    # A signal that comes only now finds the work done: the run ends as if it had not come.


def _with_twins(job: VideoJob, failed: Failure) -> list[Failure]:
    """The failure of a file, for every file with the same bytes."""
    return [
        failed,
        *(
            failed.model_copy(update={"id": v.id, "path": v.path, "size": i.size, "mtime_ns": i.mtime_ns})
            for v, i in job.twins
        ),
    ]


def load_networks(settings: ExtractSettings, options: Options) -> Networks:
    """On the device of `options`, for a process that gives each of its threads one core. Raises EnvironmentFault."""
    import torch

    from aqa_extract.networks import Networks

    torch.set_num_threads(1)
    networks = Networks.load(settings, pick_device(options.device), console.note)
    if why := networks.slow_flow:
        console.warn(f"flow takes ten times as long as it could, as torch computes it: {why} (docs/flow.md)")
    return networks


def new_pipeline(work: Work, ended: Callable[[Failure | None], None], jobs: int) -> Pipeline:
    """The stages of so many jobs, with all that this process may use; on a CPU each core is a device of its own."""
    from aqa_extract.pipeline import Pipeline

    networks, options = work.networks, work.options
    return Pipeline(
        work,
        new_compute(networks, options),
        ended,
        workers=decode_children(options, networks.device, jobs),
        drivers=min(available_cores(), jobs) if networks.device.type == "cpu" else 1,
        stop_after=options.stop_after,
    )


def open_writer(store: Where, networks: Networks, overwrite: bool = False) -> StoreWriter:
    """The store, for what these networks make. Raises StoreError where it holds features of others."""
    settings, made_with = networks.settings, provenance(networks)
    specs = identified(settings, networks.weights)
    return StoreWriter.open(store, specs=specs, settings=settings, provenance=made_with, overwrite=overwrite)


def decode_children(options: Options, device: torch.device, jobs: int) -> int:
    """How many videos are decoded at a time."""
    cores = available_cores()
    # On a CPU the networks need the cores themselves: one decode child keeps two of them fed.
    return options.workers or max(1, min(jobs, cores if device.type != "cpu" else (cores + 1) // 2))


def new_compute(networks: Networks, options: Options, cores: int | None = None) -> Compute:
    """The device stage, with the batches that suit the device; on a CPU for so many cores, or all."""
    from aqa_extract.compute import Compute

    cuda = networks.device.type == "cuda"
    batch = options.batch or (32 if cuda else 2)
    return Compute(
        networks,
        networks.settings,
        batch=batch,
        flow_batch=64 if cuda else 8,
        cores=1 if cuda else cores or available_cores(),
    )


def memory_budget(device: torch.device) -> int:
    """Bytes of decoded pixels that may wait for the device: a quarter of the memory they wait in."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    return available_memory() // 4


def provenance(networks: Networks) -> dict[str, Any]:
    """What the store says of features that these networks make here."""
    return {
        "weights": networks.weights,
        "versions": versions(),
        "tool": f"aqa {__version__}",
        "flow_engine": networks.flow_engine,
    }


def versions() -> dict[str, str]:
    """Of every package that can change a feature."""
    import torch

    found = {"aqa": __version__, "cudnn": str(torch.backends.cudnn.version())}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
