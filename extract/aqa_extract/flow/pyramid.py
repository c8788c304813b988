"""The image pyramid of TV-L1: OpenCV's INTER_LINEAR resize and gradients, made once per frame.

Sizes and sampling positions follow cv::resize exactly, because a pyramid shifted by a fraction of a pixel
is a different flow: with a scale factor given, the positions use it and not the ratio of the rounded sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SMALLEST_SIDE = 16
"""A level with a side below this is not used (OpenCV)."""


def level_sizes(height: int, width: int, scales: int, step: float) -> list[tuple[int, int]]:
    """(height, width) of every level, finest first; each is the last times `step`, half to even."""
    sizes = [(height, width)]
    while len(sizes) < scales:
        smaller = (round(sizes[-1][0] * step), round(sizes[-1][1] * step))
        if min(smaller) < SMALLEST_SIDE:
            break
        sizes.append(smaller)
    return sizes


def resize_linear(
    x: Float[Tensor, "*batch height width"], size: tuple[int, int], step: float | None = None
) -> Float[Tensor, "*batch out_height out_width"]:
    """cv::resize INTER_LINEAR of float planes: half-pixel centres, no antialiasing, edges repeated.

    `step` is OpenCV's fx = fy; without it the ratio of the sizes is used. (F.interpolate floors the size
    where OpenCV rounds.)
    """
    for dim, out in ((-1, size[1]), (-2, size[0])):
        length = x.shape[dim]
        ratio = 1 / step if step is not None else length / out
        at = ((torch.arange(out, dtype=torch.float64) + 0.5) * ratio - 0.5).to(torch.float32)
        below = at.floor()
        weight = at - below
        weight[(below < 0) | (below >= length - 1)] = 0
        left = below.long().clamp(0, length - 1)
        right = (left + 1).clamp(max=length - 1)
        weight = weight.to(x.device)
        if dim == -2:
            weight = weight[:, None]
        left, right = left.to(x.device), right.to(x.device)
        x = x.index_select(dim, left) * (1 - weight) + x.index_select(dim, right) * weight
    return x


def build(
    frames: Float[Tensor, "n height width"], scales: int, step: float
) -> list[Float[Tensor, "n level_height level_width"]]:
    """Every level of every frame, finest first; each is resized from the one before."""
    levels = [frames]
    for size in level_sizes(frames.shape[-2], frames.shape[-1], scales, step)[1:]:
        levels.append(resize_linear(levels[-1], size, step))
    return levels


def enlarge(
    flow: Float[Tensor, "n 2 height width"], size: tuple[int, int], step: float
) -> Float[Tensor, "n 2 out_height out_width"]:
    """Flow of a level as the start of the next finer one: resized, and its pixels made `1 / step` longer."""
    return resize_linear(flow, size) * (1 / step)


def gradients(image: Float[Tensor, "n height width"]) -> Float[Tensor, "n 3 height width"]:
    """The image with its x and y derivatives: central differences, edges repeated."""
    padded = F.pad(image[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    along_x = 0.5 * (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2])
    along_y = 0.5 * (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1])
    return torch.stack((image, along_x, along_y), dim=1)
