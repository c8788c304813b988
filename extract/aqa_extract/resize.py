"""OpenCV's bilinear resize of bytes, to the last bit, on the frames' own device.

The I3D authors' frames and the detectors' references were made by `cv2.resize` (INTER_LINEAR, uint8). Rounding
differently moves a detection's score in the third decimal, and then now and then the other of two nearly equal boxes
survives the suppression. So every resize without antialiasing follows OpenCV's fixed-point arithmetic
(modules/imgproc/src/resize.cpp): 11-bit weights, four bits dropped between the passes, no antialiasing.
"""

from __future__ import annotations

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

_ONE = 2048
"""INTER_RESIZE_COEF_SCALE: a weight of one."""


def _taps(
    n_in: int, n_out: int, device: torch.device, snap: bool
) -> tuple[Int[Tensor, " out"], Int[Tensor, " out"], Int[Tensor, " out"], Int[Tensor, " out"]]:
    """The two input pixels every output pixel lies between, and the weight of each in parts of `_ONE`."""
    centre = ((torch.arange(n_out, dtype=torch.float64) + 0.5) * (n_in / n_out) - 0.5).float()
    first = centre.floor()
    weight = centre - first
    if snap:  # OpenCV does so along rows only; along columns both taps become the border pixel
        weight = weight.where((first >= 0) & (first < n_in - 1), torch.zeros(()))
    return (
        first.long().clamp(0, n_in - 1).to(device, non_blocking=True),
        (first.long() + 1).clamp(0, n_in - 1).to(device, non_blocking=True),
        ((1 - weight) * _ONE).round().int().to(device, non_blocking=True),
        (weight * _ONE).round().int().to(device, non_blocking=True),
    )


def resize_like_opencv(
    frames: UInt8[Tensor, "*batch height width"], size: tuple[int, int]
) -> UInt8[Tensor, "*batch out_height out_width"]:
    """`frames` at `size` = (height, width), equal to `cv2.resize(frame, (width, height))` in every pixel."""
    if tuple(frames.shape[-2:]) == size:
        return frames
    top, bottom, upper, lower = _taps(frames.shape[-2], size[0], frames.device, snap=False)
    left, right, before, after = _taps(frames.shape[-1], size[1], frames.device, snap=True)

    def along_rows(rows: Tensor) -> Tensor:
        return (rows.index_select(-1, left).int() * before + rows.index_select(-1, right).int() * after) >> 4

    # Gathering within rows is the slow part, so it is done on as few of them as possible; the result is the same.
    if frames.shape[-2] < 2 * size[0]:
        rows = along_rows(frames)
        above, below = rows.index_select(-2, top), rows.index_select(-2, bottom)
    else:
        above, below = along_rows(frames.index_select(-2, top)), along_rows(frames.index_select(-2, bottom))
    mixed = ((above * upper[:, None]) >> 16) + ((below * lower[:, None]) >> 16)
    return ((mixed + 2) >> 2).to(torch.uint8)
