"""`--dry-run`: what a run would do and what it would cost, found out without writing anything.

videos ─▶ plan ─▶ device, folder, weights (refused as the run would) ─▶ every video probed ─▶ a few tried ─▶ sums
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from aqa_extract import faults
from aqa_extract.budget import ByteBudget, TooLarge
from aqa_extract.config import Options
from aqa_extract.decode.child import DecodeFailure, Decoder, DecodeRequest, Opened
from aqa_extract.job import VideoJob
from aqa_extract.plan import Plan, only, pinned, read_plan, shard
from aqa_extract.run import decode_children, memory_budget, new_compute
from aqa_extract.sampling import coverage, part
from aqa_extract.streams import array_specs, by_network, completed, identified, needs_actor
from aqa_shared import console
from aqa_shared.console import as_time, counted
from aqa_shared.errors import ExitCode, StoreError
from aqa_shared.files import free_bytes
from aqa_shared.machine import available_cores, pick_device
from aqa_shared.records import ExtractSettings, Failure, Video
from aqa_shared.store import Contents, Objects, Where, disk_errors, refuse_other

if TYPE_CHECKING:
    import torch

    from aqa_extract.networks import Networks
    from aqa_extract.weights_outlook import Outlook

PROBE_SECONDS = 30.0
"""Videos beyond are counted like those that were opened within, in random order."""
TRY_SECONDS = 60.0
"""No further video is tried after."""
TRIED = 3
TRY_FRAMES = 300
"""Of each tried video only its first frames are decoded."""


@dataclass(frozen=True)
class OpenedVideo:
    """A video that was opened and not decoded."""

    job: VideoJob
    opened: Opened

    @property
    def frames(self) -> int:
        """Of the part that is to be extracted."""
        first, end = part(self.opened.probe.times, self.opened.probe.fps, self.job.video)
        return end - first

    @property
    def segments(self) -> int:
        return len(self.opened.plan.segments)

    @property
    def pixels(self) -> int:
        """That a run decodes for it."""
        return self.opened.decoded * self.opened.probe.frame_width * self.opened.probe.frame_height

    @property
    def seconds(self) -> float:
        return self.frames / self.opened.probe.fps


@dataclass
class Speed:
    """What a few videos took on this machine, one after the other."""

    videos: int
    load: float
    """Seconds for a decoded pixel."""
    compute: float | None
    """Seconds for a segment; None where the networks' weights are not here yet."""


@dataclass
class Estimate:
    """What `aqa-extract --dry-run` prints."""

    plan: Plan
    settings: ExtractSettings
    store: Where = ""
    looks: list[OpenedVideo] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    """Videos that could not be opened: they would fail in a run."""
    device: str = ""
    children: int = 1
    cores: int = 1
    weights: dict[str, Outlook] = field(default_factory=dict)
    speed: Speed | None = None
    in_store: int = 0
    """Bytes that the store has now."""
    free: float = math.inf

    @property
    def exit_code(self) -> ExitCode:
        """As the run's."""
        return faults.exit_code([*self.failures, *self.plan.kept_out, *self.plan.refused])

    @property
    def scale(self) -> float:
        """Videos for each that was opened."""
        opened = len(self.looks) + len(self.failures)
        return len(self.plan.jobs) / opened if opened else 1.0

    @property
    def segments(self) -> float:
        return self.scale * sum(look.segments for look in self.looks)

    @property
    def new_bytes(self) -> float:
        """Of the arrays that the store will hold more, twins included."""
        one = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in array_specs(self.settings))
        return one * self.scale * sum(look.segments * len(look.job.ids) for look in self.looks)

    @property
    def room(self) -> float:
        """Bytes that must be free: for new videos as they come, and again where they are put together at the end."""
        return 2 * self.new_bytes

    @property
    def decoding(self) -> float | None:
        """Seconds that decoding takes, by all decoders together."""
        if self.speed is None:
            return None
        return self.speed.load * self.scale * sum(look.pixels for look in self.looks) / self.children

    @property
    def duration(self) -> float | None:
        """Seconds that a run would take: stages overlap, and on a CPU they share its cores."""
        if self.speed is None or self.speed.compute is None or self.decoding is None:
            return None
        load = self.decoding * self.children
        compute = self.speed.compute * self.segments
        # On a CPU the trial's segments had all cores, which decoding takes some of.
        shared = load / self.cores if self.device == "cpu" else 0.0
        return max(self.decoding, compute + shared)

    def refuse_without_room(self) -> None:
        """Raises StoreError where the disk would be full before the end."""
        if self.room > self.free:
            raise StoreError(
                f"{self.store}: the run needs {_size(self.room)}, {_size(self.free)} are free",
                fix="free some space, choose another --out, or extract fewer segments or streams",
            )

    def text(self) -> str:
        """The whole as a person reads it."""
        jobs, all_ids = self.plan.jobs, sum(len(job.ids) for job in self.plan.jobs)
        rows = [("store", f"{self.store} ({_size(self.in_store) if self.in_store else 'new'})")]
        if jobs:
            seconds = self.scale * sum(look.seconds for look in self.looks)
            frames = self.scale * sum(look.frames for look in self.looks)
            twins = f" ({all_ids - len(jobs)} of them equal to others)" if all_ids > len(jobs) else ""
            files = sum({job.video.path: job.identity.size for job in jobs if job.identity}.values())
            rows.append(
                (
                    "to extract",
                    f"{counted(all_ids, 'video')}{twins}: {frames:.0f} frames, {as_time(seconds)} of video "
                    f"({seconds / 3600:.2f} h), {_size(files)} of files",
                )
            )
            if self.scale > 1:
                rows.append(("", f"estimated from {len(self.looks)} of {len(jobs)}, opened at random"))
        else:
            rows.append(("to extract", "nothing"))
        rows.append(("already in", str(len(self.plan.already))))
        if self.plan.kept_out:
            rows.append(
                (
                    "kept out",
                    f"{counted(len(self.plan.kept_out), 'video')} that failed before; --retry-failed tries again",
                )
            )
        rows += [("to replace", console.printable(id)) for id in sorted(self.plan.replaced)]
        for failure in (*self.plan.refused, *self.failures[:20]):
            name = "refused" if failure in self.plan.refused else "would fail"
            rows.append((name, faults.told(failure)))
        if len(self.failures) > 20:
            rows.append(("", f"… and {len(self.failures) - 20} more"))
        if jobs:
            rows += self._costs()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:{width}}  {text}" for name, text in rows)

    def _costs(self) -> list[tuple[str, str]]:
        counts = [look.segments for look in self.looks] or [0]
        each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        sampling = self.settings.sampling
        rows = [
            (
                "segments",
                f"{self.segments:.0f} ({each} a video; {sampling.protocol}, {sampling.frames} frames each)",
            )
        ]
        if said := coverage([look.opened.plan.looked_at for look in self.looks], sampling):
            rows.append(("", said))
        flow = "" if self.settings.flow.mode == "off" else f"; TV-L1 {self.settings.flow.mode}"
        rows.append(("streams", ", ".join(self.settings.streams) + flow))
        rows += [(f"{role} weights", str(found)) for role, found in self.weights.items()]
        rows.append(("device", f"{self.device}, {counted(self.cores, 'core')}, {self.children} decoding"))
        rows.append(
            (
                "to write",
                f"{_size(self.new_bytes)} more in the store; {_size(self.room)} must be free, {_size(self.free)} are",
            )
        )
        if self.speed is None or self.decoding is None:
            rows.append(("time", "not known: no video could be tried"))
            return rows
        tried = (
            f"estimated from the first {TRY_FRAMES} frames of {counted(self.speed.videos, 'short video')}, tried now"
        )
        if self.duration is None:
            names = " ".join(found.name for found in self.weights.values() if not found.ready)
            rows.append(("time", f"about {as_time(self.decoding)} to decode, {tried}"))
            rows.append(("", f"of the networks not known until their weights are here: aqa weights fetch {names}"))
        else:
            rows.append(("time", f"about {as_time(self.duration)}, {tried}; a busier machine takes longer"))
        return rows


def estimate(videos: Sequence[Video], out: Where, settings: ExtractSettings, options: Options) -> Estimate:
    """What `extract` would do with the same arguments. Raises what it would raise; writes nothing, fetches nothing."""
    settings = completed(settings)
    if options.shard is not None:
        videos = shard(videos, *options.shard)
    objects = Objects.at(out)
    todo, known = read_plan(videos, objects, settings, options)
    missing = [s for s in settings.streams if any(s in streams for streams in todo.passes)]
    settings = only(settings, missing or settings.streams)
    result = Estimate(todo, settings, out)
    result.in_store = objects.size() if known is not None else 0
    if not result.plan.jobs:
        return result
    import torch

    torch.set_num_threads(1)  # as a run does
    device = pick_device(options.device)
    result.device, result.cores = device.type, available_cores()
    result.children = decode_children(options, device, len(result.plan.jobs))
    if objects.folder is not None:
        with disk_errors(out, "open the store for writing"):
            result.free = free_bytes(objects.folder)
    settings = pinned(settings, known)
    result.weights = _outlooks(settings)
    networks = None
    if all(found.ready for found in result.weights.values()):
        networks = _networks(settings, out, known, device)
    budget = ByteBudget(memory_budget(device), threading.Event())
    _look(result, settings, options, budget, networks.detector_size if networks is not None else None)
    if result.looks:
        result.speed = _try(result.looks, networks, settings, device, options, budget)
    return result


def _outlooks(settings: ExtractSettings) -> dict[str, Outlook]:
    from aqa_extract.weights_outlook import outlook

    names = [*by_network(settings), *(["actor"] if needs_actor(settings) else [])]
    asked = settings.weights
    return {name: outlook(asked.get(name, "default"), name, asked.get("rgb", "default")) for name in names}


def _networks(settings: ExtractSettings, out: Where, known: Contents | None, device: torch.device) -> Networks:
    """Loaded as the run would, and refused where the store has features of others."""
    from aqa_extract.networks import Networks

    networks = Networks.load(settings, device, lambda _: None)
    if known is not None:
        refuse_other(out, known.used, identified(settings, networks.weights))
    return networks


def _look(
    result: Estimate, settings: ExtractSettings, options: Options, budget: ByteBudget, detector_size: int | None
) -> None:
    """Open the videos in random order, until all are or time is up."""
    from aqa_extract.loading import bytes_needed
    from aqa_extract.work import too_long

    jobs = list(result.plan.jobs)
    random.Random(0).shuffle(jobs)
    end = time.monotonic() + PROBE_SECONDS
    with Decoder() as decoder, console.progress("open", len(jobs)) as advance:
        for job in jobs:
            if time.monotonic() > end:
                break
            try:
                opened = decoder.open(_request(job.video, settings, options))
                budget.refuse(bytes_needed(opened, settings, detector_size))
            except DecodeFailure as e:
                result.failures.append(job.failed(e.reason, e.stage, e.detail, e.backend))
            except TooLarge as e:
                result.failures.append(job.failed("too_long", "sampling", too_long(e)))
            else:
                result.looks.append(OpenedVideo(job, opened))
            advance()


def _request(video: Video, settings: ExtractSettings, options: Options) -> DecodeRequest:
    from aqa_extract.work import request_for

    return request_for(video, settings, options)


def _try(
    looks: Sequence[OpenedVideo],
    networks: Networks | None,
    settings: ExtractSettings,
    device: torch.device,
    options: Options,
    budget: ByteBudget,
) -> Speed | None:
    """Load and compute the beginnings of a few videos, those with the least to do, and forget the result.

    Without `networks` they are only loaded.
    """
    from aqa_extract.loading import load

    compute = new_compute(networks, options) if networks is not None else None
    detector_size = networks.detector_size if networks is not None else None
    measured: list[tuple[float, float, int, int]] = []
    end = time.monotonic() + TRY_SECONDS
    least = sorted(looks, key=lambda look: (look.segments, look.pixels))[: TRIED + 1]
    # The first one pays for what is only done once, so it is tried again where there is no other.
    with Decoder() as decoder, console.progress("try", len(least)) as advance:
        for look in least if len(least) > 1 else least * 2:
            probe = look.opened.probe
            n = min(TRY_FRAMES, probe.n_expected)
            whole = look.job.video
            video = Video(id=whole.id, path=whole.path, start=0, end=n, frame_rate=whole.frame_rate)
            request = _request(video, settings, options)
            begun = time.monotonic()
            try:
                prepared = load(decoder, look.job, request, settings, device, detector_size, budget.refuse)
                loaded = time.monotonic()
                if compute is not None:
                    compute.submit(prepared)
                    compute.flush()
            except (DecodeFailure, TooLarge):
                continue
            pixels = prepared.video.finished.decoded * probe.frame_width * probe.frame_height
            measured.append((loaded - begun, time.monotonic() - loaded, pixels, len(prepared.video.plan.segments)))
            advance()
            if time.monotonic() > end:
                break
    if not measured:
        return None
    counted = measured[1:] or measured
    load_seconds, compute_seconds, pixels, segments = (sum(column) for column in zip(*counted, strict=True))
    return Speed(len(counted), load_seconds / pixels, None if compute is None else compute_seconds / segments)


def _size(count: float) -> str:
    if not math.isfinite(count):
        return "any number of bytes"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
