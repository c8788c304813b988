"""How the camera moved, from small grey frames: what moves beside it is people.

    frames → 64×64 grey, without slow shades → masked correlation of successive ones → shift, and how sure it is

The correlation coefficient of the overlapping parts is computed for every shift at once by Fourier transforms, with
people masked out of both frames (D. Padfield, Masked Object Registration in the Fourier Domain, IEEE TIP 2012,
doi:10.1109/tip.2011.2181402). The weights on overlap and distance and the constants are ours. Turning and zooming
are not estimated: over one step they are small beside the shift.

The camera is looked at twice as often as people: one that follows a diver shifts the picture by half its height in
a fifth of a second, and two frames that share less than that are seldom told apart from two that share nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]

SIDE = 64
"""Of the small frames. With the parabola through the peak, a shift is good to 0.3 % of the frame."""
SHADE = 9
"""Cells: brightness that varies over more (vignettes, lamps) would hold every pair at shift 0."""
LEAST_OVERLAP = 0.2
"""Of the frame, that two looks must share; a faster pan is not measured."""
SURE = 0.6
"""Correlation from which a shift counts: of rendered pans 95 % of the right ones have 0.71 or more, of the wrong ones
0.57 or less."""
FAR = 0.1
"""What a shift by a whole frame costs: patterns that repeat agree at many shifts."""
CUT = 0.3
"""Correlation below which two looks may be from two cameras,"""
CUT_SHADES = 0.5
"""and share of their grey levels in common below which they are."""
BLOCK = 16
"""Pairs that are transformed at a time."""


@dataclass(frozen=True)
class Motion:
    """Where the background went, look by look."""

    offset: Float[np.ndarray, "looks 2"]
    """Place (x, y) in fractions of the frame of the background point that was at 0 on the first look."""
    cuts: Bool[np.ndarray, " looks"]
    """Whether another camera, or another place, is seen from this look on. The first is not."""


def small(frames: UInt8[Tensor, "n 3 height width"]) -> UInt8[Tensor, "n 64 64"]:
    """Grey means of the cells of a 64×64 grid over each frame."""
    grey = [part.float().mean(1, keepdim=True) for part in frames.split(BLOCK)]
    cells = [F.interpolate(g, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False) for g in grey]
    return torch.cat(cells)[:, 0].round_().to(torch.uint8)


def movement(
    grey: UInt8[Tensor, "n 64 64"],
    positions: Int64[np.ndarray, " n"],
    looks: Int64[np.ndarray, " looks"],
    boxes: Float[np.ndarray, "looks persons 4"],
    people: Bool[np.ndarray, "looks persons"],
) -> Motion:
    """The camera's way from `grey` frames at rising `positions`, for the `looks` among them.

    `boxes` (0..1) of `people` on the looks are left out of account, on a frame between two looks those of both.
    """
    count = len(grey)
    shift, sure, cut = np.zeros((count, 2)), np.ones(count, bool), np.zeros(count, bool)
    if count > 1:
        pixels = grey.cpu().float()
        detail = pixels - _blurred(pixels)
        mask = _background(boxes, people)
        after = np.searchsorted(looks, positions)
        before = np.where(looks[after] == positions, after, after - 1)
        for first in range(0, count - 1, BLOCK):
            rows = slice(first, min(first + BLOCK, count - 1) + 1)
            seen = mask[before[rows]] * mask[after[rows]]
            here = slice(rows.start + 1, rows.stop)
            shift[here], agreement = shifts(detail[rows][:-1], detail[rows][1:], seen[:-1], seen[1:])
            sure[here] = agreement >= SURE
            cut[here] = (agreement < CUT) & (_common(pixels[rows]) < CUT_SHADES)
        steps = np.diff(positions).astype(np.float64)
        rate, known = shift[1:] / steps[:, None], np.flatnonzero(sure[1:])
        # A camera is heavy: where a step cannot be measured it went on as before and after.
        for axis in range(2):
            rate[:, axis] = np.interp(np.arange(count - 1), known, rate[known, axis]) if len(known) else 0.0
        shift[1:] = rate * steps[:, None]
    at = np.searchsorted(positions, looks)
    epoch = np.cumsum(cut)[at]
    return Motion(np.cumsum(shift, axis=0)[at], np.diff(epoch, prepend=epoch[:1]) > 0)


def shifts(
    a: Float[Tensor, "n h w"], b: Float[Tensor, "n h w"], seen_a: Float[Tensor, "n h w"], seen_b: Float[Tensor, "n h w"]
) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """By how much each of `a` is displaced in `b`, (x, y) as fractions of width and height; and the correlation.

    `seen_*` are 1 where a cell counts and 0 where not.
    """
    height, width = a.shape[1:]
    shape = (2 * height, 2 * width)
    # Of a deviation near 1, so that float32 holds the sums of squares.
    a, b = (x * seen / (x.std() + 1e-6) for x, seen in ((a, seen_a), (b, seen_b)))
    ta, tb, sa, sb, qa, qb = torch.fft.rfft2(torch.stack([a, b, seen_a, seen_b, a * a, b * b]), shape)
    pairs = torch.stack(
        [sa.conj() * sb, ta.conj() * sb, sa.conj() * tb, ta.conj() * tb, qa.conj() * sb, sa.conj() * qb]
    )
    shared, sum_a, sum_b, product, square_a, square_b = torch.fft.irfft2(pairs, shape)
    cells = shared.round().clamp(min=1)
    spread = (square_a - sum_a**2 / cells).clamp(min=0) * (square_b - sum_b**2 / cells).clamp(min=0)
    spread = spread.sqrt()
    # A blank wall correlates with anything.
    usable = (shared >= LEAST_OVERLAP * height * width) & (spread > 1e-2 * spread.amax(dim=(1, 2), keepdim=True))
    value = torch.where(usable, (product - sum_a * sum_b / cells) / spread.clamp(min=1e-6), -1.0).double().numpy()

    rows, columns = np.fft.fftfreq(shape[0], 1 / shape[0]), np.fft.fftfreq(shape[1], 1 / shape[1])
    distance = np.hypot(rows[:, None] / height, columns[None] / width)
    # Agreement over a small part is worth less than the same over the whole.
    share = (cells.numpy() / (height * width)).clip(0, 1)
    merit = value * np.sqrt(share) - FAR * distance
    n = np.arange(len(a))
    y, x = np.divmod(merit.reshape(len(a), -1).argmax(axis=1), shape[1])
    best = value[n, y, x]
    dy = rows[y] + _vertex(value[n, (y - 1) % shape[0], x], best, value[n, (y + 1) % shape[0], x])
    dx = columns[x] + _vertex(value[n, y, (x - 1) % shape[1]], best, value[n, y, (x + 1) % shape[1]])
    return np.stack([dx / width, dy / height], axis=-1), best


def _common(grey: Float[Tensor, "n h w"]) -> Float[np.ndarray, " m"]:
    """Share of grey levels, in sixteen steps, that each two successive frames have in common."""
    levels = (grey.flatten(1) / 16).long().clamp(0, 15).numpy()
    counts = np.stack([np.bincount(row, minlength=16) for row in levels])
    return np.minimum(counts[:-1], counts[1:]).sum(axis=1) / levels.shape[1]


def _vertex(before: Floats, at: Floats, after: Floats) -> Floats:
    """Where between -½ and ½ a parabola through three values has its top."""
    bend = before - 2 * at + after
    return np.where(bend < -1e-9, np.clip(0.5 * (before - after) / np.minimum(bend, -1e-9), -0.5, 0.5), 0.0)


def _blurred(grey: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Mean over SHADE×SHADE cells; the frame's edge is repeated."""
    padded = F.pad(grey[:, None], (SHADE // 2,) * 4, mode="replicate")
    return F.avg_pool2d(padded, SHADE, stride=1)[:, 0]


def _background(boxes: Floats, people: NDArray[np.bool_]) -> Float[Tensor, "looks 64 64"]:
    """1 where no person is; somebody who fills half of the frame leaves too little, and is not masked."""
    mask = torch.ones(len(boxes), SIDE, SIDE)
    for look, person in np.argwhere(people):
        low = np.clip(np.floor(boxes[look, person, :2] * SIDE), 0, SIDE).astype(int)
        high = np.clip(np.ceil(boxes[look, person, 2:] * SIDE), 0, SIDE).astype(int)
        if (high - low).prod() < 0.5 * SIDE**2:
            mask[look, low[1] : high[1], low[0] : high[0]] = 0
    return mask
