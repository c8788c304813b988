"""The device stage: detection, flow and the backbones on prepared videos, in batches that cross video boundaries.

Every batch has the same shape (the last one is filled up with zeros), because kernels chosen by shape may
round differently: a feature must not depend on which videos happened to be beside it. For the same reason every part
of the work is computed by one thread: on a CPU several cores take several parts at once, and how many there are
changes no bit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from aqa_extract import frames as px
from aqa_extract.actor.find import find
from aqa_extract.actor.track import full_frame
from aqa_extract.backbones import Canvas
from aqa_extract.flow.inputs import motion, to_gray, to_input
from aqa_extract.flow.tvl1 import tvl1
from aqa_extract.loading import Decoded, Prepared
from aqa_extract.networks import Networks
from aqa_extract.streams import VIEWS, Stream, chosen, flow_canvases, needs_actor
from aqa_shared.console import warn
from aqa_shared.errors import AqaError, EnvironmentFault
from aqa_shared.records import ExtractSettings

Given = TypeVar("Given")
Result = TypeVar("Result")

ROWS = 64
"""Frames that are in float at a time: minutes of video would take tens of gigabytes."""


@contextmanager
def device_faults() -> Iterator[None]:
    """What the device refuses is not a video's fault."""
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise EnvironmentFault(
            f"out of device memory: {e}", fix="use --workers 1, a smaller --short-side or --crop, or --device cpu"
        ) from e
    except torch.AcceleratorError as e:
        raise EnvironmentFault(f"the device failed: {e}", fix="see `aqa doctor`, then rerun the same command") from e


@dataclass
class Done:
    """A finished video: what the store commits."""

    video: Decoded
    arrays: dict[str, np.ndarray]
    meta: dict[str, float | None]
    warnings: list[str] = field(default_factory=list)
    without_actor: bool = False
    """Nobody could be followed: the actor's streams see the full frame."""


@dataclass
class _Ticket:
    """A video, and how many of its segments are still on their way through the networks."""

    done: Done
    waiting: int
    dropped: bool = False


@dataclass(frozen=True)
class _Clip:
    """One segment of one stream, waiting to fill a batch."""

    ticket: _Ticket
    stream: Stream
    segment: int
    pixels: Tensor


@torch.inference_mode()
def _infer(work: Callable[[Given], Result], part: Given) -> Result:
    """Inference mode is a thread's own."""
    return work(part)


class Compute:
    """Feed it prepared videos, from one thread or several; it returns those that are complete.

    `batch` is the number of segments per call of a network; it is halved, loudly, when the device runs out of memory.
    `cores` is how many threads compute, however few threads feed: the parts of one video spread over them. On a
    CPU each part is one thread's: TV-L1's many small steps gain nothing from more, and the threads of one step wait
    for each other whenever the machine is shared.
    """

    def __init__(
        self, networks: Networks, settings: ExtractSettings, batch: int, flow_batch: int, cores: int = 1
    ) -> None:
        self.networks = networks
        self.settings = settings
        self.batch = batch
        self.flow_batch = flow_batch
        self.cores = cores
        self.streams = chosen(settings)
        self.outputs = {
            network: [
                o for o in stream.backbone.outputs if any(o in s.outputs for s in self.streams if s.network == network)
            ]
            for network, stream in ((s.network, s) for s in self.streams)
        }
        """By network, what any of its streams keeps."""
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(cores, "compute", torch.set_num_threads, (1,)) if cores > 1 else None
        self.queues: dict[str, deque[_Clip]] = {stream.network: deque() for stream in self.streams}
        """By network: clips of any of its streams and of any video."""
        self.completed: list[Done] = []
        self.frames = 0
        """Decoded frames taken in so far, for the progress line."""

    @torch.inference_mode()
    def submit(self, prepared: Prepared) -> list[Done]:
        """Take a video in; return the videos that are complete by now.

        Raises EnvironmentFault for a fault of the device; any other error concerns this video alone, and leaves no
        trace of it behind. Videos that were completed on the way are returned by the next call.
        """
        if self.networks.device.type == "cpu":
            torch.set_num_threads(1)  # of the calling thread
        ticket = _Ticket(Done(prepared.video, {}, {}), len(prepared.video.plan.segments) * len(self.streams))
        try:
            with device_faults():
                for _ in self._spread(self._run, self._batches(self._clips(ticket, prepared))):
                    pass
        except Exception:
            with self.lock:
                ticket.dropped = True
            raise
        finally:
            with self.lock:
                self.frames += len(prepared.video.positions)
        return self._take_completed()

    @torch.inference_mode()
    def flush(self) -> list[Done]:
        """Run what is left, in batches filled up to the usual shape."""
        with self.lock:
            left = [(network, list(queue)) for network, queue in self.queues.items() if queue]
            for queue in self.queues.values():
                queue.clear()
        with device_faults():
            for _ in self._spread(self._run, left):
                pass
        return self._take_completed()

    def _take_completed(self) -> list[Done]:
        with self.lock:
            completed, self.completed = self.completed, []
        return completed

    def _spread(self, work: Callable[[Given], Result], parts: Iterable[Given]) -> Iterator[Result]:
        """`work` of every part, in order, on all cores; what is taken of `parts` is little ahead of what is done."""
        if self.pool is None:
            yield from map(work, parts)
            return
        begun: deque[Future[Result]] = deque()
        try:
            for part in parts:
                begun.append(self.pool.submit(_infer, work, part))
                if len(begun) > self.cores:
                    yield begun.popleft().result()
        finally:
            # Also after an error: a batch holds clips of other videos, which wait for it.
            while begun:
                yield begun.popleft().result()

    def _batches(self, clips: Iterable[_Clip]) -> Iterator[tuple[str, list[_Clip]]]:
        """Full batches; what does not fill one waits for the clips of another video, or for `flush`."""
        for clip in clips:
            queue = self.queues[clip.stream.network]
            with self.lock:
                queue.append(clip)
                if len(queue) < self.batch:
                    continue
                full = [queue.popleft() for _ in range(self.batch)]
            yield clip.stream.network, full

    def _run(self, batch: tuple[str, list[_Clip]]) -> None:
        """One call of a network, or several where the device has no memory for that many segments at once."""
        network, clips = batch
        while clips:
            size = self.batch  # once: another thread may halve it meanwhile
            part = clips[:size]
            outputs = self._outputs(network, part, size)
            if outputs is None:
                self._halve(network, size)
                continue
            self._deliver(part, outputs)
            clips = clips[size:]

    def _outputs(self, network: str, clips: list[_Clip], size: int) -> dict[str, np.ndarray] | None:
        """What the network says of these clips; None when the device ran out of memory.

        By then the error is gone, and with its traceback the tensors of the failed call: they would fill the memory
        that the next, smaller call needs. Clips of several videos share a call, so an error is not a single video's.
        """
        try:
            pixels = torch.stack([clip.pixels for clip in clips]).transpose(1, 2)  # (b, c, t, h, w)
            return self.networks.run(network, pixels, size, self.outputs[network])
        except torch.OutOfMemoryError:
            return None
        except (torch.AcceleratorError, AqaError):
            raise
        except Exception as e:
            raise EnvironmentFault(
                f"the network {network} failed on a batch of {len(clips)} segments: {type(e).__name__}: {e}",
                fix="see `aqa doctor`, then rerun the same command",
            ) from e

    def _halve(self, network: str, failed: int) -> None:
        """Go on with half of the batch that failed, unless another thread has seen to it."""
        if failed == 1:
            raise EnvironmentFault(
                f"out of device memory with a single segment of {network}",
                fix="use --precision bf16, a smaller --crop, or --device cpu",
            )
        torch.cuda.empty_cache()
        with self.lock:
            if self.batch < failed:
                return
            self.batch = failed // 2
        warn(f"out of device memory: going on with batches of {failed // 2} segments")

    def _deliver(self, clips: list[_Clip], outputs: dict[str, np.ndarray]) -> None:
        """Put every row where it belongs; a video that has all of them is complete."""
        for row, clip in enumerate(clips):
            arrays = clip.ticket.done.arrays
            for output in clip.stream.outputs:
                name, values = clip.stream.array(output), outputs[output]
                with self.lock:
                    if name not in arrays:  # a row that were forgotten would stay NaN, which the store refuses
                        rows = len(clip.ticket.done.video.plan.segments)
                        arrays[name] = np.full((rows, *values.shape[1:]), np.nan, np.float32)
                arrays[name][clip.segment] = values[row]
            with self.lock:
                clip.ticket.waiting -= 1
                if clip.ticket.waiting == 0 and not clip.ticket.dropped:
                    self.completed.append(clip.ticket.done)

    def _clips(self, ticket: _Ticket, prepared: Prepared) -> Iterator[_Clip]:
        """Every segment of every stream of one video; fills in what the store keeps beside the features."""
        video, arrays, meta = ticket.done.video, ticket.done.arrays, ticket.done.meta
        plan, probe = video.plan, video.probe
        rows = np.searchsorted(video.positions, plan.segments)
        frame_index = plan.frames
        arrays["frame_index"] = frame_index.astype(np.int32)
        arrays["segment_start_time"] = probe.times[frame_index[:, 0]]
        # A segment ends when its last frame stops being shown.
        arrays["segment_end_time"] = probe.times[frame_index[:, -1]] + (1 / probe.fps if probe.fps else 0.0)
        boxes: Tensor | None = None
        if needs_actor(self.settings):
            boxes = torch.from_numpy(self._follow(ticket.done, prepared, rows)).to(self.networks.device)
        flows: dict[Canvas, Tensor] = {}
        for canvas in reversed(flow_canvases(self.settings)):  # the motion that is kept is that of the first
            flows[canvas], meta["motion"] = self._flow(video, prepared.frames[canvas])
        index = torch.from_numpy(rows).to(self.networks.device)
        for stream in self.streams:
            for segment, at in enumerate(index):
                yield _Clip(ticket, stream, segment, self._pixels(stream, prepared, at, flows, boxes))

    def _follow(self, done: Done, prepared: Prepared, rows: np.ndarray) -> np.ndarray:
        """The actor's crop on every position, (n, 4); what the store keeps of him goes to `done`."""
        video, arrays, wanted = done.video, done.arrays, self.settings.actor
        assert self.networks.detector is not None, "streams that follow the actor come with a detector"
        assert prepared.views is not None, "streams that follow the actor keep frames for the detector"
        looks, size = prepared.views.positions, (video.probe.height, video.probe.width)
        first, length = int(looks[0]), int(looks[-1] - looks[0]) + 1
        tracks = find(self.networks.detector, prepared.views, length, size, wanted, self._spread).tracks
        nobody = full_frame(length, size, len(looks))
        if not tracks:
            done.without_actor = True
            done.warnings.append(
                f"no_actor: nobody was detected for sure on {wanted.min_coverage:.0%} of {len(looks)} looks; the "
                "actor's streams see the full frame"
            )
        best = tracks[0] if tracks else nobody
        done.meta["actor_coverage"] = best.coverage
        at = video.plan.timeline[video.positions] - first
        arrays["actor_box"], arrays["actor_score"] = best.boxes[at][rows], best.scores[at][rows]
        if wanted.actors > 1:
            others = (tracks[1:] + [nobody] * wanted.actors)[: wanted.actors - 1]
            arrays["other_box"] = np.stack([track.boxes[at][rows] for track in others], axis=1)
            arrays["other_score"] = np.stack([track.scores[at][rows] for track in others], axis=1)
            coverage = np.array([track.coverage for track in others], np.float32)
            arrays["other_coverage"] = np.tile(coverage, (len(rows), 1))
        return best.boxes[at]

    def _flow(self, video: Decoded, frames: Tensor) -> tuple[Tensor, float]:
        """Flow (rows, 2, h, w) in pixels from each used timeline position to the next, and its mean magnitude.

        Rows that exist only as a successor stay zero; no segment reads them.
        """
        positions = video.positions
        used = np.unique(video.plan.segments)
        last = len(video.plan.timeline) - 1
        # The timeline's last frame has no successor: its flow is that of the pair before it.
        starts = np.unique(np.where(used == last, max(last - 1, 0), used))
        starts = starts[np.isin(starts, positions) & np.isin(starts + 1, positions)]
        height, width = frames.shape[-2:]
        flow = frames.new_zeros((len(positions), 2, height, width), dtype=torch.float32)
        if not len(starts):  # a single frame: nothing moves
            return flow, 0.0
        gray = torch.cat([to_gray(part) for part in frames.split(ROWS)])
        first = torch.from_numpy(np.searchsorted(positions, starts)).to(gray.device)
        second = torch.from_numpy(np.searchsorted(positions, starts + 1)).to(gray.device)
        total = flow.new_zeros(())

        def solve(pairs: tuple[Tensor, Tensor]) -> Tensor:
            flow[pairs[0]] = found = tvl1(gray, *pairs, self.networks.tvl1)
            return motion(found) * len(found)

        for moved in self._spread(solve, zip(first.split(self.flow_batch), second.split(self.flow_batch), strict=True)):
            total += moved
        end = np.searchsorted(positions, last)
        if end < len(positions) and positions[end] == last and end > 0:
            flow[end] = flow[end - 1]
        return flow, float(total) / len(starts)

    def _pixels(
        self, stream: Stream, prepared: Prepared, rows: Tensor, flows: dict[Canvas, Tensor], boxes: Tensor | None
    ) -> Tensor:
        """(time, channels, crop, crop) of these rows as the stream's view: uint8 RGB, or flow already in [-1, 1]."""
        view, moving = VIEWS[stream.view], stream.modality == "flow"
        frames = len(rows)
        if view.still:
            rows = rows[:1]
        flow = flows[stream.input(self.settings).canvas] if moving else None
        clip = px.viewed(self._region(stream, prepared, rows, flow, boxes), view, vectors=moving)
        if moving:
            return to_input(clip, self.settings.flow)
        return clip.expand(frames, *clip.shape[1:]) if view.still else clip

    def _region(
        self, stream: Stream, prepared: Prepared, rows: Tensor, flow: Tensor | None, boxes: Tensor | None
    ) -> Tensor:
        """(time, channels, crop, crop) of these rows, as displayed: uint8 RGB, or flow in pixels of the crop."""
        given = stream.input(self.settings)
        if not stream.actor:
            return px.fit((prepared.frames[given.canvas] if flow is None else flow)[rows], given)
        assert boxes is not None
        if flow is None:
            assert prepared.large is not None
            return px.crop_boxes(prepared.large[rows], boxes[rows], given.crop).round_().to(torch.uint8)
        # A crop that is enlarged k times shows motion that is k times as many pixels long.
        width = (boxes[rows, 2] - boxes[rows, 0]).clamp_min(1e-6) * flow.shape[-1]
        return px.crop_boxes(flow[rows], boxes[rows], given.crop) * (given.crop / width)[:, None, None, None]
