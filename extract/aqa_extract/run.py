"""Extraction as a function: what is to be done, the networks, the engine, the store.

videos ─▶ plan: in already / quarantined before / to do ─▶ engine ─▶ store ─▶ finalise with labels
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from aqa_extract import quarantine
from aqa_extract.identity import identify, stat_matches
from aqa_extract.job import Job, without_twins
from aqa_extract.streams import array_specs
from aqa_shared import __version__, console
from aqa_shared.errors import AqaError, EnvironmentFault, ExitCode, NoInputError
from aqa_shared.records import ExtractSettings, Failure, Video
from aqa_shared.store import StoreWriter, peek

if TYPE_CHECKING:
    import torch

    from aqa_extract.work import Work

CONFLICT = (
    "the store holds this id from another version of the file; to extract it anew, give it another id in a "
    "manifest, or use --overwrite for the whole store"
)
PACKAGES = ("torch", "torchvision", "av", "decord", "zarr", "numpy")


class Interrupted(AqaError):
    """A signal ended the run; what was finished is committed."""

    def __init__(self, number: int, cause: str) -> None:
        super().__init__(cause, fix="rerun the same command to go on")
        self.exit_code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED


@dataclass(frozen=True)
class Options:
    """How to run; nothing here changes the value of a feature."""

    device: str = "auto"
    batch: int | None = None
    workers: int | None = None
    decoder: Literal["auto", "decord", "av"] = "auto"
    timeout: float = 300.0
    stop_after: int = 20
    retry_failed: bool = False
    overwrite: bool = False


@dataclass
class Plan:
    """What a run would do."""

    store: Path
    jobs: list[Job]
    already: list[str]
    kept_out: list[Failure]
    """Failed before and unchanged since, or in conflict with what the store holds."""

    def text(self) -> str:
        """For --dry-run."""
        videos = sum(len(job.ids) for job in self.jobs)
        size = sum(job.identity.size for job in self.jobs if job.identity)
        return "\n".join(
            [
                f"store        {self.store}",
                f"to extract   {videos} videos, {size / 1e6:.1f} MB",
                f"already in   {len(self.already)}",
                f"kept out     {len(self.kept_out)} (quarantined before; --retry-failed tries them again)",
            ]
        )


@dataclass
class Report:
    """What a run did."""

    store: Path
    extracted: int = 0
    already: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds each stage was busy: load (summed over loaders), device, write."""

    @property
    def exit_code(self) -> ExitCode:
        """3 exactly when some video is quarantined."""
        return ExitCode.QUARANTINED if self.failures else ExitCode.OK

    def text(self) -> str:
        """The result as a person reads it."""
        head = f"{self.store}: {self.extracted} extracted, {self.already} already there"
        if not self.failures:
            return f"{head} ({self.seconds:.1f} s)"
        rows = [f"  {console.printable(f.id)}: {f.reason} — {console.printable(f.detail)}" for f in self.failures]
        return "\n".join([f"{head}, {len(self.failures)} quarantined ({self.seconds:.1f} s):", *rows])


def plan(videos: Sequence[Video], out: Path, options: Options) -> Plan:
    """Compare what is asked with what the store holds; opens no video with a decoder and loads no network."""
    known = None if options.overwrite else peek(out)
    before = quarantine.read(out) if known else {}
    result = Plan(out, [], [], [])
    fresh: list[Job] = []
    for video in videos:
        recorded = known.committed.get(video.id) if known else None
        failed = before.get(video.id)
        if recorded is not None:
            was = recorded.get("identity") or {}
            if stat_matches(video.path, was) or ((now := identify(video.path)) and now.matches(was)):
                result.already.append(video.id)
            else:
                result.kept_out.append(Job(video, now).failed("id_conflict", "probe", CONFLICT))
        elif failed is not None and not options.retry_failed and _unchanged(video.path, failed):
            result.kept_out.append(failed)
        else:
            fresh.append(Job(video, identify(video.path)))
    result.jobs = without_twins(fresh)
    return result


def _unchanged(path: str, failed: Failure) -> bool:
    if failed.size is None:  # there was no regular file; look again only if there is one now
        return identify(path) is None
    return stat_matches(path, {"size": failed.size, "mtime_ns": failed.mtime_ns})


def extract(videos: Sequence[Video], out: Path, settings: ExtractSettings, options: Options = Options()) -> Report:
    """Extract `videos` into the store at `out`, going on where an earlier run stopped.

    Raises StoreError (incompatible, damaged, not writable), EnvironmentFault (device, weights, too many failures in
    a row) and Interrupted after a signal; whatever was finished by then is committed.
    """
    started = time.monotonic()
    if not videos:
        raise NoInputError("no videos were given")
    todo = plan(videos, out, options)
    report = Report(out, 0, len(todo.already), list(todo.kept_out))
    labels = {video.id: video for video in videos}
    in_store = set(todo.already)
    if todo.jobs:
        try:
            in_store |= _run(todo, settings, options, labels, report)
        finally:
            report.seconds = time.monotonic() - started
    elif (known := peek(out)) is not None:
        # Nothing to extract: the labels may have changed, and other settings are refused as ever.
        with StoreWriter.open(
            out, specs=array_specs(settings), settings=settings, provenance=known.provenance
        ) as writer:
            writer.finalise(labels)
    quarantine.settle(out, report.failures, in_store)
    report.seconds = time.monotonic() - started
    return report


def _run(
    todo: Plan, settings: ExtractSettings, options: Options, labels: Mapping[str, Video], report: Report
) -> set[str]:
    """The part that needs torch and the networks; returns the ids it committed."""
    import torch

    from aqa_extract.compute import Compute
    from aqa_extract.engine import ByteBudget, Engine
    from aqa_extract.networks import Networks
    from aqa_extract.work import Work

    device = pick_device(options.device)
    cores = available_cores()
    torch.set_num_threads(1)
    # On a CPU the networks need the cores themselves: one decode child keeps two of them fed.
    workers = options.workers or max(1, min(len(todo.jobs), cores if device.type != "cpu" else (cores + 1) // 2))
    networks = Networks.load(pinned(settings, report.store, options), device, console.note)
    provenance = {
        "weights": networks.weights,
        "versions": versions(),
        "tool": f"aqa {__version__}",
        "flow_engine": networks.flow_engine,
    }
    with StoreWriter.open(
        report.store,
        specs=array_specs(settings),
        settings=settings,
        provenance=provenance,
        overwrite=options.overwrite,
    ) as writer:
        stop = threading.Event()
        work = Work(settings, device, networks.detector_size, writer, options.decoder, options.timeout, stop)
        compute = Compute(
            networks,
            settings,
            batch=options.batch or (32 if device.type == "cuda" else 2),
            flow_batch=64 if device.type == "cuda" else 8,
        )
        begun = time.monotonic()
        with console.progress("extract", len(todo.jobs)) as advance, _signals(stop, work) as received:

            def ended(failed: Failure | None) -> None:
                if failed is not None:
                    quarantine.append(report.store, failed)
                    report.failures.append(failed)
                    console.warn(f"{failed.id}: {failed.reason} — {console.printable(failed.detail)}")
                seconds = max(time.monotonic() - begun, 1e-9)
                rate = f"{len(work.committed) / seconds:.2f} videos/s, {compute.frames / seconds:.0f} frames/s"
                advance(1, note=rate)

            outcome = Engine(
                loader=work.loader,
                device=compute,
                commit=work.commit,
                device_failure=lambda p, e: p.job.failed("internal_error", "features", f"{type(e).__name__}: {e}"),
                report=ended,
                workers=workers,
                budget=ByteBudget(memory_budget(device), stop),
                bytes_of=lambda prepared: prepared.reserved,
                stop=stop,
                drivers=cores if device.type == "cpu" else 1,
                stop_after=options.stop_after,
            ).run(todo.jobs)
        report.stages = vars(outcome.times)
        report.extracted = len(work.committed)
        if received:
            raise Interrupted(received[0], f"interrupted; {report.extracted} videos of this run are in {report.store}")
        if outcome.stopped_by:
            last = report.failures[-1]
            raise EnvironmentFault(
                f"stopped after {outcome.stopped_by}; the last was {last.id}: {last.reason} — {last.detail}",
                fix="mend the cause and rerun with --retry-failed, or go on regardless with --stop-after 0",
            )
        writer.finalise(labels)
    return work.committed


@contextmanager
def _signals(stop: threading.Event, work: Work) -> Iterator[list[int]]:
    """SIGINT and SIGTERM (and SIGUSR1, SLURM's warning) end the run in order; yields the signals received."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def on_signal(number: int, _: object) -> None:
        received.append(number)
        stop.set()
        work.kill_decoders()

    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises EnvironmentFault; never another device than the one asked for."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise EnvironmentFault(f"--device {name!r} is no device", fix="choose auto, cpu, cuda or cuda:N") from e
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentFault(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA devices",
            fix="check the driver with `aqa doctor`, or use --device cpu",
        )
    if device.type not in ("cpu", "cuda"):
        raise EnvironmentFault(f"--device {name}: only cpu and cuda are supported", fix="choose auto, cpu or cuda")
    return device


def available_cores() -> int:
    """Cores this process may use, which a cluster often limits."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_budget(device: torch.device) -> int:
    """Bytes of decoded pixels that may wait for the device: a quarter of the memory they wait in."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 4
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4
    except (AttributeError, ValueError, OSError):
        return 2 << 30


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


def pinned(settings: ExtractSettings, out: Path, options: Options) -> ExtractSettings:
    """`settings` with every `default` weight replaced by what the store was begun with, where it was begun.

    Else a store begun offline could not be continued once better weights can be reached.
    """
    known = None if options.overwrite else peek(out)
    if known is None:
        return settings
    begun_with = known.provenance.get("weights", {})
    names = {
        f"{role}_weights": begun_with[role]["name"]
        for role in ("rgb", "flow", "actor")
        if role in begun_with and getattr(settings, f"{role}_weights") == "default"
    }
    return settings.model_copy(update=names)
