"""The device stage: detection, flow and I3D on prepared videos, in batches that cross video boundaries.

Every I3D batch has the same shape (the last one is filled up with zeros), because kernels chosen by shape may
round differently: a feature must not depend on which videos happened to be beside it.
"""

from __future__ import annotations

from collections import deque
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
    waiting: int = 0


class Compute:
    """Feed it prepared videos; it returns those that are complete.

    `batch` is the number of segments per I3D call; it is halved, loudly, when the device runs out of memory.
    """

    def __init__(self, networks: Networks, settings: ExtractSettings, batch: int, flow_batch: int) -> None:
        self.networks = networks
        self.settings = settings
        self.batch = batch
        self.flow_batch = flow_batch
        self.kinds = chosen(settings)
        self.queues: dict[str, deque[tuple[_Ticket, StreamKind, int, Tensor]]] = {
            kind.modality: deque() for kind in self.kinds
        }
        """Clips of one modality, from any video, waiting to fill a batch."""
        self.open: list[_Ticket] = []
        self.frames = 0
        """Decoded frames taken in so far, for the progress line."""

    @torch.inference_mode()
    def submit(self, prepared: Prepared) -> list[Done]:
        """Take a video in; return the videos this completed.

        Raises EnvironmentFault for a fault of the device; any other error concerns this video alone, and leaves no
        trace of it behind.
        """
        self.frames += len(prepared.positions)
        ticket = _Ticket(Done(prepared, {}, {}))
        self.open.append(ticket)
        try:
            self._take_in(ticket)
        except AqaError:
            raise
        except Exception as e:
            if isinstance(e, torch.AcceleratorError):
                raise EnvironmentFault(f"the device failed: {e}", fix="see `aqa doctor`, then rerun") from e
            self.open.remove(ticket)
            for queue in self.queues.values():
                kept = [item for item in queue if item[0] is not ticket]
                queue.clear()
                queue.extend(kept)
            raise
        finally:
            # The clips were copied out: the pixels must not outlive this call.
            prepared.large = prepared.detect_frames = None
            prepared.frames = prepared.frames[:0].clone()
        return self._completed()

    def _take_in(self, ticket: _Ticket) -> None:
        """Everything about one video up to its clips in the queues, running every batch that fills."""
        prepared, arrays, meta = ticket.done.prepared, ticket.done.arrays, ticket.done.meta
        plan, probe = prepared.plan, prepared.probe
        rows = np.searchsorted(prepared.positions, plan.segments)
        times = np.asarray(probe.times)
        frame_index = plan.frames
        spacing = 1 / probe.fps if probe.fps else 0.0
        arrays["frame_index"] = frame_index.astype(np.int32)
        arrays["segment_start_time"] = times[frame_index[:, 0]]
        # A segment ends when its last frame stops being shown.
        arrays["segment_end_time"] = times[frame_index[:, -1]] + spacing
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
            arrays[kind.array] = np.full((len(rows), 1024), np.nan, np.float32)
            pixels = self._region(kind, prepared, flow, boxes)
            index = torch.from_numpy(rows).to(pixels.device)
            queue = self.queues[kind.modality]
            for segment in range(len(rows)):
                queue.append((ticket, kind, segment, pixels[index[segment]]))
                ticket.waiting += 1
                while len(queue) >= self.batch:
                    self._run(kind.modality, self.batch)

    @torch.inference_mode()
    def flush(self) -> list[Done]:
        """Run what is left, in batches filled up to the usual shape."""
        for modality, queue in self.queues.items():
            while queue:
                self._run(modality, min(self.batch, len(queue)))
        return self._completed()

    def _completed(self) -> list[Done]:
        ready = [ticket.done for ticket in self.open if ticket.waiting == 0]
        self.open = [ticket for ticket in self.open if ticket.waiting]
        return ready

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
            assert prepared.large is not None and boxes is not None
            return px.crop_boxes(prepared.large, boxes, side).round_().to(torch.uint8)
        assert flow is not None
        if kind.region == "frame":
            return to_input(px.centre_crop(flow, side), self.settings.flow)
        assert boxes is not None
        # A crop that is enlarged k times shows motion that is k times as many pixels long.
        width = (boxes[:, 2] - boxes[:, 0]).clamp_min(1e-6) * flow.shape[-1]
        cropped = px.crop_boxes(flow, boxes, side) * (side / width)[:, None, None, None]
        return to_input(cropped, self.settings.flow)

    def _run(self, modality: str, count: int) -> None:
        """One I3D call on the `count` oldest clips of `modality`."""
        queue = self.queues[modality]
        items = [queue[i] for i in range(count)]
        clips = torch.stack([clip for *_, clip in items]).transpose(1, 2)  # (b, c, t, h, w)
        try:
            outputs = self.networks.i3d(modality, clips, self.batch)
        except torch.OutOfMemoryError as e:
            if self.batch == 1:
                raise EnvironmentFault(
                    f"out of device memory with a single segment of {modality}",
                    fix="use --precision bf16, a smaller --crop, or --device cpu",
                ) from e
            self.batch = max(1, self.batch // 2)
            warn(f"out of device memory: going on with batches of {self.batch} segments")
            torch.cuda.empty_cache()
            return
        for _ in range(count):
            queue.popleft()
        for row, (ticket, kind, segment, _) in enumerate(items):
            for suffix, values in outputs.items():
                name = kind.array + suffix
                if name not in ticket.done.arrays:
                    shape = (len(ticket.done.arrays[kind.array]), *values.shape[1:])
                    ticket.done.arrays[name] = np.full(shape, np.nan, np.float32)
                ticket.done.arrays[name][segment] = values[row]
            ticket.waiting -= 1
