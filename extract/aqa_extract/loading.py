"""One video from file to device: decoded once, at the sizes that the streams will want."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqa_extract import frames as px
from aqa_extract.decode.child import Chunk, DecodeFailure, Decoder, DecodeRequest, Finished, Opened
from aqa_extract.decode.probe import Probe
from aqa_extract.sampling import Plan
from aqa_extract.streams import needs_flow
from aqa_shared.records import ExtractSettings

ACTOR_SHORT_SIDE = 512
"""Actor crops are cut from frames of at most this short side: a 1080p video would cost 640 MB at full size."""

WIDEST = 10
"""Longer side over shorter: scaled to a short side of 256, a ribbon of 16x16384 would take 200 MB a frame."""


@dataclass
class Prepared:
    """A decoded video, waiting for the networks. Row i of every tensor is timeline position `positions[i]`."""

    probe: Probe
    plan: Plan
    finished: Finished
    positions: np.ndarray
    """int32 (n,), sorted: the timeline positions that segments use, and their successors where flow needs them."""
    frames: Tensor
    """uint8 (n, 3, h, w) at the short side of `Pixels`."""
    large: Tensor | None
    """uint8 (n, 3, h', w'), the source of actor crops; None where no stream follows the actor."""
    detect_rows: np.ndarray
    """int64 (k,): which rows the detector looks at."""
    detect_frames: Tensor | None
    """uint8 (k, 3, size, size): those rows at the detector's own input size."""
    job: Any = None
    """Whose video it is; the loader's caller sets it."""
    reserved: int = 0
    """Bytes taken from the budget, to be given back once the device has the pixels."""


def load(
    decoder: Decoder,
    request: DecodeRequest,
    settings: ExtractSettings,
    device: torch.device,
    detector_size: int | None,
    reserve: Callable[[int], None],
) -> Prepared:
    """Decode `request` and resize as it arrives, so that full-size frames never pile up.

    `detector_size` is the side of the square the detector looks at, None where no stream follows the actor.
    `reserve(bytes)` may block or refuse: it is called once the size is known and before the first frame is kept.
    Raises DecodeFailure, and what `reserve` raises.
    """
    opened: Opened | None = None
    finished: Finished | None = None
    frames: Tensor | None = None
    large: Tensor | None = None
    detect_frames: Tensor | None = None
    rows: np.ndarray = np.empty(0, np.int64)
    for event in decoder.decode(request):
        if isinstance(event, Opened):
            # Sent a second time when the file held fewer frames than it promised: start over.
            opened, frames, large, detect_frames = event, None, None, None
            if detector_size is not None:
                rows = detection_rows(len(event.wanted), settings.actor.every)
            if max(event.probe.width, event.probe.height) > WIDEST * min(event.probe.width, event.probe.height):
                raise DecodeFailure(
                    "bad_shape",
                    "probe",
                    f"{event.probe.width}x{event.probe.height} is more than {WIDEST} times as long as wide: no video "
                    "of a performance",
                )
            reserve(_bytes_needed(event, settings, len(rows), detector_size))
        elif isinstance(event, Chunk):
            assert opened is not None, "the decoder announces a plan before it sends frames"
            chunk = torch.from_numpy(event.frames).to(device).permute(0, 3, 1, 2)
            at = np.searchsorted(opened.wanted, event.positions)
            # From stored pixels straight to the displayed shape: the frames' own may be of another shape.
            small = px.resize(chunk, _small_size(opened, settings), settings.pixels.antialias)
            if frames is None:
                frames = small.new_empty((len(opened.wanted), *small.shape[1:]))
                if detector_size is not None:
                    height, width = _actor_size(opened.probe.height, opened.probe.width)
                    large = chunk.new_empty((len(opened.wanted), 3, height, width))
                    detect_frames = chunk.new_empty((len(rows), 3, detector_size, detector_size))
            target = torch.from_numpy(at).to(device)
            frames[target] = small
            if large is not None and detect_frames is not None:
                large[target] = px.resize(chunk, (large.shape[-2], large.shape[-1]))
                in_rows = np.flatnonzero(np.isin(at, rows))
                if len(in_rows):
                    size = detect_frames.shape[-1]
                    detect_frames[torch.from_numpy(np.searchsorted(rows, at[in_rows])).to(device)] = px.resize(
                        chunk[torch.from_numpy(in_rows).to(device)], (size, size)
                    )
        else:
            finished = event
    assert opened is not None
    assert finished is not None
    assert frames is not None, "the decoder ended without frames"
    return Prepared(opened.probe, opened.plan, finished, opened.wanted, frames, large, rows, detect_frames)


def detection_rows(n: int, every: int) -> np.ndarray:
    """Every k-th row and the last, so that interpolation never has to extrapolate: n=10, k=4 gives 0 4 8 9."""
    rows = np.arange(0, n, every, dtype=np.int64)
    return rows if n == 0 or rows[-1] == n - 1 else np.append(rows, n - 1)


def _small_size(opened: Opened, settings: ExtractSettings) -> tuple[int, int]:
    return px.size_at_short_side(opened.probe.height, opened.probe.width, settings.pixels.short_side)


def _actor_size(height: int, width: int) -> tuple[int, int]:
    return px.size_at_short_side(height, width, min(ACTOR_SHORT_SIDE, height, width))


def _bytes_needed(opened: Opened, settings: ExtractSettings, detections: int, detector_size: int | None) -> int:
    n = len(opened.wanted)
    height, width = opened.probe.height, opened.probe.width
    small = _small_size(opened, settings)
    total = n * 3 * small[0] * small[1]
    if needs_flow(settings):  # two float planes and a grey one
        total += n * 9 * small[0] * small[1]
    if detector_size is not None:
        large = _actor_size(height, width)
        total += n * 3 * large[0] * large[1] + detections * 3 * detector_size**2
    return total
