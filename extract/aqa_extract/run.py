"""Extraction as a function: what is to be done, the networks, the engine, the store.

    videos ─▶ plan: done already / quarantined before / to do ─▶ engine ─▶ store ─▶ finalise with labels
"""

from __future__ import annotations

import errno
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aqa_extract.identity import Identity, identify, same_bytes
from aqa_shared import __version__, console
from aqa_shared.errors import AqaError, EnvironmentFault, ExitCode, StoreError, UsageError
from aqa_shared.records import ExtractSettings, Failure, Video
from aqa_shared.store import FeatureStore, StoreWriter, peek

PACKAGES = ("torch", "torchvision", "av", "decord", "zarr", "numpy")
RETRYABLE = frozenset({"decoder_crashed", "out_of_memory"})
"""Failures that may be the machine's rather than the video's: one more try in a clean process."""


@dataclass(frozen=True)
class Options:
    """How to run; nothing here changes the value of a feature."""

    device: str = "auto"
    batch: int | None = None
    workers: int | None = None
    decoder: str = "auto"
    timeout: float = 300.0
    stop_after: int = 20
    retry_failed: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Job:
    """One file part to extract, and the other ids that hold the same bytes."""

    video: Video
    identity: Identity | None
    twins: tuple[tuple[Video, Identity], ...] = ()


@dataclass
class Plan:
    """What a run would do."""

    jobs: list[Job]
    already: int
    quarantined: list[Failure]
    """Failed before, unchanged since, and not to be retried."""
    conflicts: list[Failure]
    store: Path

    @property
    def to_do(self) -> int:
        """Videos that would be extracted."""
        return sum(1 + len(job.twins) for job in self.jobs)

    def text(self) -> str:
        """For --dry-run."""
        lines = [f"store        {self.store}", f"to extract   {self.to_do}", f"already in   {self.already}",
                 f"quarantined  {len(self.quarantined)} (kept out; --retry-failed tries them again)"]
        size = sum(job.identity.size for job in self.jobs if job.identity)
        lines.append(f"input        {size / 1e6:.1f} MB of video")
        return "\n".join(lines)


@dataclass
class Report:
    """What a run did."""

    store: Path
    extracted: int
    already: int
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

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


def plan(videos: Sequence[Video], out: Path, settings: ExtractSettings, options: Options) -> Plan:
    """Compare what is asked with what the store holds; reads no video beyond samples, loads no network."""
    known = None if options.overwrite else peek(out)
    committed: Mapping[str, Mapping[str, Any]] = known.committed if known else {}
    before = {f.id: f for f in read_quarantine(out)} if known else {}
    result = Plan([], 0, [], [], out)
    fresh: list[Job] = []
    for video in videos:
        meta = committed.get(video.id)
        if meta is not None:
            recorded = meta["identity"] or {}
            if stat_matches(video.path, recorded) or _identity_matches(video.path, recorded):
                result.already += 1
            else:
                result.conflicts.append(_conflict(video, recorded))
            continue
        failed = before.get(video.id)
        if failed is not None and not options.retry_failed and _unchanged(video.path, failed):
            result.quarantined.append(failed)
            continue
        fresh.append(Job(video, identify(video.path)))
    result.jobs = _without_twins(fresh)
    return result


def extract(
    videos: Sequence[Video], out: Path, settings: ExtractSettings, options: Options = Options()
) -> Report:
    """Extract `videos` into the store at `out`, resuming what is there.

    Raises StoreError (incompatible, damaged, not writable), EnvironmentFault (device, weights), and
    `Interrupted` after a signal, with everything finished so far committed.
    """
    started = time.monotonic()
    todo = plan(videos, out, settings, options)
    labels = {video.id: video for video in videos}
    report = Report(out, 0, todo.already, [*todo.quarantined, *todo.conflicts])
    if todo.jobs:
        _extract_jobs(todo, out, settings, options, labels, report)
    else:
        known = peek(out)
        if known is not None:
            if known.settings != settings:
                # Says the difference, as it would with something to do.
                StoreWriter.check_settings(out, settings)
            StoreWriter.resume(out).finalise(labels)
    report.seconds = time.monotonic() - started
    return report


def _extract_jobs(
    todo: Plan,
    out: Path,
    settings: ExtractSettings,
    options: Options,
    labels: Mapping[str, Video],
    report: Report,
) -> None:
    """The part of a run that needs torch."""
    import torch

    from aqa_extract.compute import Compute, Done
    from aqa_extract.decode.child import DecodeFailure, Decoder, DecodeRequest
    from aqa_extract.engine import ByteBudget, Engine, JobFailed
    from aqa_extract.loading import Prepared, load
    from aqa_extract.networks import Networks
    from aqa_extract.streams import array_specs, needs_flow

    device = pick_device(options.device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if device.type == "cpu":
        torch.set_num_threads(cores)
    workers = options.workers or max(1, min(len(todo.jobs), cores if device.type != "cpu" else (cores + 1) // 2))
    batch = options.batch or (32 if device.type == "cuda" else 2)
    flow_batch = 64 if device.type == "cuda" else 8
    networks = Networks.load(_pinned(settings, out, options), device, console.note)
    writer = StoreWriter.open(
        out, specs=array_specs(settings), settings=settings, overwrite=options.overwrite,
        provenance={"weights": networks.weights, "versions": versions(), "tool": f"aqa {__version__}"},
    )
    stop = threading.Event()
    decoders: list[Decoder] = []

    @contextmanager
    def loader(budget: ByteBudget) -> Iterator[Callable[[Job], Prepared]]:
        with Decoder() as decoder:
            decoders.append(decoder)

            def load_one(job: Job) -> Prepared:
                request = DecodeRequest(
                    path=job.video.path, video=job.video, sampling=settings.sampling, decoder=options.decoder,
                    need_next=needs_flow(settings), deadline=options.timeout,
                )
                for attempt in (1, 2):
                    reserved = 0

                    def reserve(amount: int) -> None:
                        nonlocal reserved
                        budget.take(amount - reserved)
                        reserved = amount

                    begun = time.monotonic()
                    try:
                        prepared = load(decoder, request, settings, device, networks.detector_size, reserve)
                    except DecodeFailure as e:
                        budget.give(reserved)
                        if attempt == 1 and e.reason in RETRYABLE and not stop.is_set():
                            continue
                        raise JobFailed(
                            _failure(job, e.reason, e.stage, e.detail, e.backend, time.monotonic() - begun)
                        ) from e
                    except BaseException:
                        budget.give(reserved)
                        raise
                    prepared.job, prepared.reserved = job, reserved
                    return prepared
                raise AssertionError("the second attempt returns or raises")

            yield load_one

    def commit(done: Done) -> None:
        job: Job = done.prepared.job
        holders = [(job.video, job.identity), *job.twins]
        for video, identity in holders:
            meta = {**_meta(done.prepared), **done.meta, "path": video.path,
                    "identity": identity.record() if identity else None}
            if video is not job.video:
                meta["same_bytes_as"] = job.video.id
            try:
                writer.commit(video.id, done.arrays, meta)
            except OSError as e:
                raise _store_fault(out, e) from e
        report.extracted += len(holders)

    def device_failure(prepared: Prepared, error: Exception) -> Failure:
        return _failure(prepared.job, "internal_error", "features", f"{type(error).__name__}: {error}", "", 0.0)

    quarantine = Quarantine(out)
    frames_done = 0
    begun = time.monotonic()
    with console.progress("extract", len(todo.jobs)) as advance, _signals(stop, decoders) as received:

        def told(failure: Failure | None) -> None:
            if failure is not None:
                quarantine.add(failure)
                report.failures.append(failure)
            rate = (report.extracted + len(report.failures)) / max(time.monotonic() - begun, 1e-9)
            advance(1, note=f"{rate:.2f} videos/s" + (f", {len(report.failures)} quarantined" if report.failures else ""))

        compute = Compute(networks, settings, batch, flow_batch)
        engine = Engine(
            loader=loader, device=compute, commit=commit, device_failure=device_failure, report=told,
            workers=workers, budget=ByteBudget(_memory_budget(device), stop),
            bytes_of=lambda prepared: prepared.reserved, stop=stop, stop_after=options.stop_after,
        )
        outcome = engine.run(todo.jobs)
    report.stages = vars(outcome.times)
    if received:
        raise Interrupted(received[0], f"{report.extracted} videos are safe in {out}")
    if outcome.stopped_by:
        raise EnvironmentFault(
            f"stopped after {outcome.stopped_by}; the last: {report.failures[-1].reason} — {report.failures[-1].detail}",
            fix="mend the cause and rerun with --retry-failed, or go on regardless with --stop-after 0",
        )
    writer.finalise(labels)
