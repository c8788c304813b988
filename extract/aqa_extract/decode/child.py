"""The parent's side of decoding: one child process, its deadline, and what it hands over.

    request ─▶ child: probe ─▶ plan (here) ─▶ child: read ─▶ Opened, Chunk…, Finished
                  │ killed at the deadline, or died: a new child; from decord to PyAV in `auto`

The child only says what it found; planning and every decision happen here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from aqa_extract.actor import views
from aqa_extract.decode.failure import DecodeFailure
from aqa_extract.decode.probe import Probe
from aqa_extract.decode.process import Child, Clock, Reported
from aqa_extract.decode.seek import skipped
from aqa_extract.decode.wire import SLOTS
from aqa_extract.sampling import FramePlan, SamplingError, plan_segments
from aqa_shared.records import ActorSettings, Sampling, UntaggedMatrix, Video

__all__ = ["Chunk", "DecodeFailure", "DecodeRequest", "Decoder", "Finished", "Opened", "decord_seconds"]

SLOT_BYTES = 64 << 20
"""A chunk is cut to this, so that 4K frames do not take gigabytes."""


@dataclass(frozen=True)
class DecodeRequest:
    """One video to decode."""

    path: str
    video: Video
    sampling: Sampling
    decoder: Literal["auto", "decord", "av"] = "auto"
    need_next: bool = False
    """Also deliver the timeline's next frame after every used one, for optical flow."""
    deadline: float = 300.0
    """Seconds that may be spent waiting for the child, or `decode_seconds` where that is more; what the caller does
    with chunks does not count."""
    max_bytes: int = 4 << 30
    """Address space of the child; 0 is no limit."""
    max_pixels: int = 4096 * 4096
    actor: ActorSettings | None = None
    """Also deliver the frames that decide who the actor is, wherever the segments are."""
    untagged_matrix: UntaggedMatrix = "bt601"
    """How to read YCbCr that does not say by which matrix it was made."""
    accept_damaged: bool = False
    """Take what decodes, where more frames than usual are missing or damaged; `Finished.accepted_damage` counts."""
    chunk_frames: int = 16


@dataclass(frozen=True)
class Opened:
    """The video is what it is, and these frames will come. Everything received before is void."""

    probe: Probe
    plan: FramePlan
    wanted: np.ndarray
    """int32 (n,), sorted unique timeline positions that will be delivered."""
    looks: np.ndarray
    """int64 (k,), sorted source frames on which the actor is looked for; they will be delivered, too."""
    greys: np.ndarray
    """int64 (m,), sorted source frames that show how the camera moves, `looks` among them; delivered."""
    end: int
    """Frames from here on are not decoded: the end of the part, or of the video."""
    backend: str = "av"
    """`av` or `decord`."""

    @property
    def delivered(self) -> tuple[np.ndarray, np.ndarray]:
        """(positions, sources), int32 (n,) each, of every frame that will come, in the order of the file.

        The position is -1 where only the actor's looks want the frame.
        """
        beside = np.setdiff1d(self.greys, self.plan.timeline[self.wanted])
        sources = np.concatenate([self.plan.timeline[self.wanted], beside]).astype(np.int32)
        positions = np.concatenate([self.wanted, np.full(len(beside), -1)]).astype(np.int32)
        order = np.argsort(sources, kind="stable")
        return positions[order], sources[order]

    @property
    def skipped(self) -> int:
        """Frames that PyAV may skip, or pictures of a folder that need not be read."""
        if self.probe.container == "pictures":
            return self.end - len(np.unique(self.delivered[1]))
        return skipped(self.probe.entries, self.delivered[1].tolist())

    @property
    def decoded(self) -> int:
        """Frames that the backend decodes."""
        return self.end - (self.skipped if self.backend == "av" else 0)


@dataclass(frozen=True)
class Chunk:
    """Some of the frames to be delivered, in the order of the file."""

    positions: np.ndarray
    """int32 (k,), timeline positions; -1 for a frame that only the actor's looks want."""
    sources: np.ndarray
    """int32 (k,), source frames, in order."""
    frames: np.ndarray
    """uint8 (k, H, W, 3) RGB, in shared memory: valid until the next event is asked for. Turned as displayed, but with
    the pixels that are stored: their shape is `Probe.sample_aspect_ratio`."""


@dataclass(frozen=True)
class Finished:
    """All wanted frames were delivered, and the video is whole."""

    backend: str
    version: str
    decoded: int
    corrupt: int
    accepted_damage: dict[str, int] | None
    """`missing` and `damaged` frames, where the video would have been refused without `accept_damaged`."""
    warnings: list[str]
    seconds: float
    """Spent waiting for the child."""

    @property
    def accepted(self) -> str:
        """`accepted_damage` in words, "" where there is none."""
        damage = self.accepted_damage
        return f"accepted with {damage['missing']} frames missing and {damage['damaged']} damaged" if damage else ""


class Decoder:
    """One child process, started when first needed and again after it was killed.

    Use as a context manager; one thread drives it at a time.
    """

    def __init__(self) -> None:
        self._child: Child | None = None
        self._interrupted = False

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child. Frames still held stay readable."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def interrupt(self) -> None:
        """Kill the child from another thread or a signal handler, for good: every decode from now on, and the one
        under way, raises DecodeFailure."""
        self._interrupted = True
        child = self._child
        if child is not None:
            child.process.kill()

    def open(self, request: DecodeRequest) -> Opened:
        """What `decode` announces first, without decoding. Raises DecodeFailure, as that does."""
        with self._killed_unless_answered() as child:
            return _planned(_ask_probe(child, request, Clock(request.deadline)), request, request.decoder)

    def decode(self, request: DecodeRequest) -> Iterator[Opened | Chunk | Finished]:
        """Decode one video.

        Yields `Opened`, then chunks, then `Finished`; again from `Opened` when the true frame count differs from
        the announced one or when `auto` gives up decord. A generator that is not run to its end costs the child.

        Raises:
            DecodeFailure: with a stable reason; the decoder can be used again.
        """
        clock = Clock(request.deadline)
        notes: list[str] = []
        seen: set[tuple[int, int]] = set()
        backend = request.decoder
        while True:
            try:
                with self._killed_unless_answered() as child:
                    yield from _decode_once(child, request, backend, clock, notes, seen)
                return
            except DecodeFailure as e:
                decords_fault = e.backend == "decord" and e.reason != "changed_during_read"
                if self._interrupted or request.decoder != "auto" or not decords_fault:
                    raise
                notes.append(f"decord_failed: {e.reason}, read with PyAV instead ({e.detail})")
                backend = "av"

    @contextlib.contextmanager
    def _killed_unless_answered(self) -> Iterator[Child]:
        """A running child; anything but an answer to the end, or a reported failure, ends it."""
        if self._child is None:
            self._child = Child()
        if self._interrupted:
            self.close()
            raise DecodeFailure("interrupted", "probe", "the run was stopped")
        try:
            yield self._child
        except Reported as e:
            raise e.failure from None
        except BaseException:
            self.close()
            raise


def decode_seconds(probe: Probe) -> float:
    """How long reading all frames may take: ten times what it needs on a slow core, six hours for one of 1080p."""
    return probe.n_expected * probe.frame_width * probe.frame_height * 1e-7


def decord_seconds(probe: Probe) -> float:
    """How long decord may take in `auto` before PyAV gets its turn."""
    return 10.0 + decode_seconds(probe)


def _decode_once(
    child: Child,
    request: DecodeRequest,
    backend: str,
    clock: Clock,
    notes: list[str],
    seen: set[tuple[int, int]],
) -> Iterator[Opened | Chunk | Finished]:
    probe = _ask_probe(child, request, clock)
    clock.limit = max(clock.limit, decode_seconds(probe))
    seen.add((probe.size, probe.mtime_ns))
    if len(seen) > 1:
        detail = "the file changed between two attempts to read it; run again once it is whole"
        raise Reported(DecodeFailure("changed_during_read", "decode", detail))
    for _ in range(3):
        opened = _planned(probe, request, backend)
        backend = opened.backend
        yield opened
        limit = (
            Clock(min(decord_seconds(probe), clock.left))
            if backend == "decord" and request.decoder == "auto"
            else clock
        )
        last: Finished | Probe | None = None
        for event in _read(child, request, opened, clock, limit):
            if isinstance(event, Chunk):
                yield event
            else:
                last = event
        if isinstance(last, Finished):
            yield replace(last, warnings=[*notes, *probe.warnings, *last.warnings])
            return
        assert isinstance(last, Probe)
        probe = last
    raise DecodeFailure("frame_count_mismatch", "decode", "each reading gives another number of frames", backend)


def _planned(probe: Probe, request: DecodeRequest, backend: str) -> Opened:
    """What is to be delivered, and by which backend where that is `auto`. Raises Reported."""
    if backend == "decord" and probe.decord_refusal:
        detail = f"{probe.decord_refusal}: decord's frames may differ; use --decoder auto or av"
        raise Reported(DecodeFailure("decord_unsupported", "probe", detail, "decord"))
    video = request.video
    try:
        plan = plan_segments(request.sampling, probe.times, probe.fps, video)
    except SamplingError as e:
        raise Reported(DecodeFailure(e.reason, "sampling", e.detail)) from e
    first, end = int(plan.timeline[0]), int(plan.timeline[-1]) + 1
    looks, greys = (
        (which(first, end, request.actor) if request.actor is not None else np.empty(0, np.int64))
        for which in (views.looks, views.greys)
    )
    # A part that ends before the video does is read no further than that.
    whole = video.end is None and video.end_time is None
    opened = Opened(probe, plan, plan.wanted(request.need_next), looks, greys, probe.n_expected if whole else end)
    if backend == "auto":
        # Also where jumps save half of the frames or more, which decord has to decode.
        by_av = probe.decord_refusal or 2 * opened.skipped > probe.n_expected
        backend = "av" if by_av else "decord"
    return replace(opened, backend=backend)


def _ask_probe(child: Child, request: DecodeRequest, clock: Clock) -> Probe:
    command = {
        "do": "probe",
        "path": request.path,
        "frame_rate": request.video.frame_rate,
        "max_bytes": request.max_bytes,
        "max_pixels": request.max_pixels,
        "untagged_matrix": request.untagged_matrix,
        "accept_damaged": request.accept_damaged,
    }
    child.send(command, "probe")
    message, payload = child.receive(clock, clock, "probe", "av")
    if message["event"] != "probed":
        raise DecodeFailure("decoder_error", "probe", f"unexpected answer {message['event']}")
    return _probe_from(message, payload)


def _probe_from(message: dict[str, Any], payload: bytes) -> Probe:
    """The child has read an untrusted file: what it says must at least be a probe."""
    try:
        probe = Probe.from_message({k: v for k, v in message.items() if k != "event"}, payload)
        sound = min(probe.width, probe.height, probe.frame_width, probe.frame_height) > 0
        sound = sound and len(probe.times) == probe.n_expected and probe.fps > 0
    except (TypeError, ValueError, KeyError) as e:
        raise DecodeFailure("decoder_error", "probe", f"the child's answer is not a probe: {e}") from e
    if not sound:
        raise DecodeFailure("decoder_error", "probe", "the child's answer contradicts itself")
    return probe


def _read(
    child: Child, request: DecodeRequest, opened: Opened, clock: Clock, limit: Clock
) -> Iterator[Chunk | Finished | Probe]:
    probe, backend = opened.probe, opened.backend
    positions, sources = opened.delivered
    frame_bytes = probe.frame_height * probe.frame_width * 3
    count = max(1, min(request.chunk_frames, SLOT_BYTES // frame_bytes))
    slot_bytes = count * frame_bytes
    child.buffer.grow(SLOTS * slot_bytes)
    child.reads += 1
    command = {
        "do": "read",
        "serial": child.reads,
        "backend": backend,
        "end": opened.end if opened.end < probe.n_expected else None,
        "chunk_frames": count,
        "slot_bytes": slot_bytes,
        "buffer_bytes": SLOTS * slot_bytes,
    }
    child.send(command, "decode", sources.astype("<i4").tobytes())
    delivered = 0
    while True:
        message, payload = child.receive(clock, limit, "decode", backend)
        event = message.pop("event")
        if event == "chunk":
            first, k, slot = int(message["first"]), int(message["count"]), int(message["slot"])
            if first != delivered or not 0 < k <= count or first + k > len(sources) or slot not in range(SLOTS):
                raise DecodeFailure("decoder_error", "decode", "the child announced frames that cannot be", backend)
            view = child.buffer.view(slot * slot_bytes, k * frame_bytes)
            frames = np.frombuffer(view, np.uint8).reshape(k, probe.frame_height, probe.frame_width, 3)
            delivered += k
            yield Chunk(positions[first : first + k], sources[first : first + k], frames)
            child.send({"do": "go on", "serial": child.reads}, "decode")
        elif event == "probed":
            yield _probe_from(message, payload)
            return
        elif event == "finished":
            if delivered != len(sources):
                raise DecodeFailure("decoder_error", "decode", "the child left frames out", backend)
            yield Finished(seconds=clock.spent, **message)
            return
        else:
            raise DecodeFailure("decoder_error", "decode", f"unexpected answer {event}", backend)
