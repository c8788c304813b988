"""One video from file to device: decoded once, at the sizes that the streams will want."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from aqa_extract import frames as px
from aqa_extract.actor.camera import SIDE as GREY_SIDE
from aqa_extract.actor.camera import small
from aqa_extract.actor.track import Views
from aqa_extract.backbones import Canvas
from aqa_extract.decode.child import Chunk, Decoder, DecodeRequest, Finished, Opened
from aqa_extract.decode.probe import Probe
from aqa_extract.job import VideoJob
from aqa_extract.sampling import FramePlan
from aqa_extract.streams import array_specs, canvases, flow_canvases
from aqa_shared.records import ExtractSettings

ACTOR_SHORT_SIDE = 512
"""Actor crops are cut from frames of at most this short side: a 1080p video would cost 640 MB at full size."""


@dataclass(frozen=True)
class Decoded:
    """What is known of a decoded video, and stays when its pixels are gone."""

    job: VideoJob
    probe: Probe
    plan: FramePlan
    finished: Finished
    positions: np.ndarray
    """int32 (n,), sorted: the timeline positions that segments use, and their successors where flow needs them."""


@dataclass(frozen=True)
class Prepared:
    """A decoded video, waiting for the networks. Row i of every tensor is timeline position `positions[i]`."""

    video: Decoded
    frames: dict[Canvas, Tensor]
    """uint8 (n, 3, h, w) of whole frames, at every size that a stream wants."""
    large: Tensor | None
    """uint8 (n, 3, h', w'), the source of actor crops; None where no stream follows the actor."""
    views: Views | None
    """What decides who the actor is, at source frames; None where no stream follows one."""
    reserved: int
    """Bytes that it takes, to be returned once the device has the pixels."""


def load(
    decoder: Decoder,
    job: VideoJob,
    request: DecodeRequest,
    settings: ExtractSettings,
    device: torch.device,
    detector_size: int | None,
    reserve: Callable[[int], None],
) -> Prepared:
    """Decode `job` as `request` says, and resize as it arrives, so that full-size frames never pile up.

    `detector_size` is the side of the square the detector looks at, None where no stream follows the actor.
    `reserve(bytes)` may block or refuse: it is called once the size is known and before the first frame is kept.
    Raises DecodeFailure, and what `reserve` raises.
    """
    wanted_canvases = canvases(settings)
    opened: Opened | None = None
    finished: Finished | None = None
    frames: dict[Canvas, Tensor] = {}
    large: Tensor | None = None
    views: Views | None = None
    reserved = 0
    for event in decoder.decode(request):
        if isinstance(event, Opened):
            # Sent a second time when the file held fewer frames than it promised: start over.
            opened, frames, large, views = event, {}, None, None
            reserve(reserved := bytes_needed(event, settings, detector_size))
            n, probe = len(opened.wanted), opened.probe
            empty = partial(torch.empty, dtype=torch.uint8, device=device)
            frames = {c: empty((n, 3, *px.canvas_size(probe.height, probe.width, c))) for c in wanted_canvases}
            if detector_size is not None:
                large = empty((n, 3, *_actor_size(probe.height, probe.width)))
                views = Views(
                    opened.looks,
                    empty((len(opened.looks), 3, detector_size, detector_size)),
                    opened.greys,
                    empty((len(opened.greys), GREY_SIDE, GREY_SIDE)),
                )
        elif isinstance(event, Chunk):
            assert opened is not None, "the decoder announces a plan before it sends frames"
            chunk = torch.from_numpy(event.frames).to(device).permute(0, 3, 1, 2)
            # From stored pixels straight to the displayed shape: the frames' own may be of another shape.
            used, target = _rows(event.positions, opened.wanted, device)
            if len(used):
                for canvas, kept in frames.items():
                    size = (kept.shape[-2], kept.shape[-1])
                    kept[target] = px.resize(chunk[used], size, canvas.antialias, canvas.arithmetic)
                if large is not None:
                    large[target] = px.resize(chunk[used], (large.shape[-2], large.shape[-1]))
            if views is not None and detector_size is not None:
                used, target = _rows(event.sources, views.positions, device)
                if len(used):
                    views.frames[target] = px.resize(chunk[used], (detector_size, detector_size))
                used, target = _rows(event.sources, views.grey_positions, device)
                if len(used):
                    views.grey[target] = small(chunk[used])
        else:
            finished = event
    assert opened is not None
    assert finished is not None
    video = Decoded(job, opened.probe, opened.plan, finished, opened.wanted)
    return Prepared(video, frames, large, views, reserved)


def _rows(marks: np.ndarray, wanted: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of `marks` are among the sorted `wanted`, and where there."""
    inside = np.flatnonzero(np.isin(marks, wanted))
    return torch.from_numpy(inside).to(device), torch.from_numpy(np.searchsorted(wanted, marks[inside])).to(device)


def _actor_size(height: int, width: int) -> tuple[int, int]:
    return px.size_at_short_side(height, width, min(ACTOR_SHORT_SIDE, height, width))


def bytes_needed(opened: Opened, settings: ExtractSettings, detector_size: int | None) -> int:
    """What `load` keeps of a video, and what the networks make of it."""
    n = len(opened.wanted)
    height, width = opened.probe.height, opened.probe.width
    with_flow = flow_canvases(settings)
    total = 0
    for canvas in canvases(settings):
        # Three bytes of colour; for flow two float planes and a grey one.
        total += n * (12 if canvas in with_flow else 3) * math.prod(px.canvas_size(height, width, canvas))
    if detector_size is not None:
        total += n * 3 * math.prod(_actor_size(height, width))
        total += len(opened.looks) * 3 * detector_size**2 + len(opened.greys) * 4 * GREY_SIDE**2
    # What the networks say of it: maps of many segments can be larger than the frames.
    row = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in array_specs(settings))
    return total + len(opened.plan.segments) * row
