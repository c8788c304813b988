"""The device stage: detection, flow and I3D on prepared videos, in batches that cross video boundaries.

Every I3D batch has the same shape (the last one is filled up with zeros), because kernels chosen by shape may
round differently: a feature must not depend on which videos happened to be beside it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aqa_extract import frames as px
from aqa_extract.actor.track import Track, follow
from aqa_extract.flow.inputs import motion, to_gray, to_input
from aqa_extract.flow.tvl1 import tvl1
from aqa_extract.loading import Prepared
from aqa_extract.networks import Networks
from aqa_extract.streams import StreamKind, chosen, needs_actor, needs_flow
from aqa_shared.console import warn
from aqa_shared.errors import AqaError, EnvironmentFault
from aqa_shared.records import ExtractSettings

DETECT_BATCH = 32


@dataclass
class Done:
    """A finished video: what the store commits."""

    prepared: Prepared
    arrays: dict[str, np.ndarray]
    meta: dict[str, float | None]


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
    kind: StreamKind
    segment: int
    pixels: Tensor


class Compute:
    """Feed it prepared videos, from one thread or several; it returns those that are complete.

    `batch` is the number of segments per I3D call; it is halved, loudly, when the device runs out of memory.
    On a CPU every calling thread computes on its own core: TV-L1's many small steps gain nothing from more, and
    the threads of one step wait for each other whenever the machine is shared.
    """

    def __init__(self, networks: Networks, settings: ExtractSettings, batch: int, flow_batch: int) -> None:
        self.networks = networks
        self.settings = settings
        self.batch = batch
        self.flow_batch = flow_batch
        self.kinds = chosen(settings)
        self.lock = threading.Lock()
        self.queues: dict[str, deque[_Clip]] = {kind.modality: deque() for kind in self.kinds}
        """By modality: clips of any stream and any video."""
        self.frames = 0
        """Decoded frames taken in so far, for the progress line."""

    @torch.inference_mode()
    def submit(self, prepared: Prepared) -> list[Done]:
        """Take a video in; return the videos this completed.

        Raises EnvironmentFault for a fault of the device; any other error concerns this video alone, and leaves no
        trace of it behind.
        """
        if self.networks.device.type == "cpu":
            torch.set_num_threads(1)  # of the calling thread
        ticket = _Ticket(Done(prepared, {}, {}), len(prepared.plan.segments) * len(self.kinds))
        completed: list[Done] = []
        try:
            for clip in self._clips(ticket):
                completed += self._enqueue(clip)
        except AqaError:
            raise
        except torch.AcceleratorError as e:
            raise EnvironmentFault(f"the device failed: {e}", fix="see `aqa doctor`, then rerun") from e
        except Exception:
            with self.lock:
                ticket.dropped = True
            raise
        finally:
            # The clips were copied out: the pixels must not outlive this call.
            prepared.large = prepared.detect_frames = None
            prepared.frames = prepared.frames[:0].clone()
            with self.lock:
                self.frames += len(prepared.positions)
        return completed

    @torch.inference_mode()
    def flush(self) -> list[Done]:
        """Run what is left, in batches filled up to the usual shape."""
        completed: list[Done] = []
        for modality, queue in self.queues.items():
            while queue:
                completed += self._run(modality, [queue.popleft() for _ in range(min(self.batch, len(queue)))])
        return completed

    def _enqueue(self, clip: _Clip) -> list[Done]:
        queue = self.queues[clip.kind.modality]
        with self.lock:
            queue.append(clip)
            if len(queue) < self.batch:
                return []
            clips = [queue.popleft() for _ in range(self.batch)]
        return self._run(clip.kind.modality, clips)

    def _run(self, modality: str, clips: list[_Clip]) -> list[Done]:
        """One I3D call; returns the videos it completed."""
        pixels = torch.stack([clip.pixels for clip in clips]).transpose(1, 2)  # (b, c, t, h, w)
        try:
            outputs = self.networks.i3d(modality, pixels, max(self.batch, len(clips)))
        except torch.OutOfMemoryError as e:
            return self._run_in_halves(modality, clips, e)
        completed = []
        for row, clip in enumerate(clips):
            done = clip.ticket.done
            for suffix, values in outputs.items():
                with self.lock:
                    array = done.arrays.setdefault(
                        clip.kind.array + suffix,
                        np.full((len(done.prepared.plan.segments), *values.shape[1:]), np.nan, np.float32),
                    )
                array[clip.segment] = values[row]
            with self.lock:
                clip.ticket.waiting -= 1
                if clip.ticket.waiting == 0 and not clip.ticket.dropped:
                    completed.append(done)
        return completed

    def _run_in_halves(self, modality: str, clips: list[_Clip], error: Exception) -> list[Done]:
        if self.batch == 1:
            raise EnvironmentFault(
                f"out of device memory with a single segment of {modality}",
                fix="use --precision bf16, a smaller --crop, or --device cpu",
            ) from error
        self.batch = max(1, self.batch // 2)
        warn(f"out of device memory: going on with batches of {self.batch} segments")
        torch.cuda.empty_cache()
        completed = []
        for start in range(0, len(clips), self.batch):
            completed += self._run(modality, clips[start : start + self.batch])
        return completed

    def _clips(self, ticket: _Ticket) -> Iterator[_Clip]:
        """Every segment of every stream of one video; fills in what the store keeps beside the features."""
        prepared, arrays, meta = ticket.done.prepared, ticket.done.arrays, ticket.done.meta
        plan, probe = prepared.plan, prepared.probe
        rows = np.searchsorted(prepared.positions, plan.segments)
        frame_index = plan.frames
        arrays["frame_index"] = frame_index.astype(np.int32)
        arrays["segment_start_time"] = probe.times[frame_index[:, 0]]
        # A segment ends when its last frame stops being shown.
        arrays["segment_end_time"] = probe.times[frame_index[:, -1]] + (1 / probe.fps if probe.fps else 0.0)
        boxes: Tensor | None = None
        if needs_actor(self.settings):
            track = self._track(prepared)
            at = prepared.positions
            arrays["actor_box"] = track.boxes[at][rows]
            arrays["actor_score"] = track.scores[at][rows]
            meta["actor_coverage"] = float(track.coverage)
            boxes = torch.from_numpy(track.boxes[at]).to(prepared.frames.device)
        flow: Tensor | None = None
        if needs_flow(self.settings):
            flow, meta["motion"] = self._flow(prepared)
        for kind in self.kinds:
            pixels = self._region(kind, prepared, flow, boxes)
            index = torch.from_numpy(rows).to(pixels.device)
            for segment in range(len(rows)):
                yield _Clip(ticket, kind, segment, pixels[index[segment]])

    def _track(self, prepared: Prepared) -> Track:
        assert self.networks.detector is not None, "streams that follow the actor come with a detector"
        assert prepared.detect_frames is not None, "streams that follow the actor keep frames for the detector"
        found = [self.networks.detector.detect(part) for part in prepared.detect_frames.split(DETECT_BATCH)]
        return follow(
            prepared.positions[prepared.detect_rows],
            torch.cat([f.boxes for f in found]).cpu().numpy(),
            torch.cat([f.scores for f in found]).cpu().numpy(),
            len(prepared.plan.timeline),
            (prepared.probe.height, prepared.probe.width),
            self.settings.actor,
        )

    def _flow(self, prepared: Prepared) -> tuple[Tensor, float]:
        """Flow (rows, 2, h, w) in pixels from each used timeline position to the next, and its mean magnitude.

        Rows that exist only as a successor repeat their predecessor's flow; no segment reads them.
        """
        positions = prepared.positions
        used = np.unique(prepared.plan.segments)
        last = len(prepared.plan.timeline) - 1
        # The timeline's last frame has no successor: its flow is that of the pair before it.
        starts = np.unique(np.where(used == last, max(last - 1, 0), used))
        starts = starts[np.isin(starts + 1, positions)]
        height, width = prepared.frames.shape[-2:]
        flow = prepared.frames.new_zeros((len(positions), 2, height, width), dtype=torch.float32)
        if not len(starts):  # a single frame: nothing moves
            return flow, 0.0
        gray = to_gray(prepared.frames)
        first = torch.from_numpy(np.searchsorted(positions, starts)).to(gray.device)
        second = torch.from_numpy(np.searchsorted(positions, starts + 1)).to(gray.device)
        total = 0.0
        for a, b in zip(first.split(self.flow_batch), second.split(self.flow_batch), strict=True):
            flow[a] = tvl1(gray, a, b, self.networks.tvl1)
            total += float(motion(flow[a])) * len(a)
        end = np.searchsorted(positions, last)
        if end < len(positions) and positions[end] == last and end > 0:
            flow[end] = flow[end - 1]
        return flow, total / len(starts)

    def _region(self, kind: StreamKind, prepared: Prepared, flow: Tensor | None, boxes: Tensor | None) -> Tensor:
        """(rows, channels, crop, crop): uint8 RGB, or flow already in [-1, 1]."""
        side = self.settings.pixels.crop
        if kind.modality == "rgb":
            if kind.region == "frame":
                return px.centre_crop(prepared.frames, side)
            assert prepared.large is not None
            assert boxes is not None
            return px.crop_boxes(prepared.large, boxes, side).round_().to(torch.uint8)
        assert flow is not None
        if kind.region == "frame":
            return to_input(px.centre_crop(flow, side), self.settings.flow)
        assert boxes is not None
        # A crop that is enlarged k times shows motion that is k times as many pixels long.
        width = (boxes[:, 2] - boxes[:, 0]).clamp_min(1e-6) * flow.shape[-1]
        cropped = px.crop_boxes(flow, boxes, side) * (side / width)[:, None, None, None]
        return to_input(cropped, self.settings.flow)
