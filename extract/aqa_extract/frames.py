"""From decoded frames to network pixels: resize to a short side, crop, normalise; on the frames' own device.

Everything stays uint8 until a batch is made, because a 103-frame video is 36 MB as uint8 and 144 MB as float.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from aqa_extract.resize import resize_like_opencv

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def size_at_short_side(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with the shorter one equal to `side`, the other rounded: 360x640 at 256 is 256x455."""
    if height <= width:
        return side, round(width * side / height)
    return round(height * side / width), side


def resize(
    frames: UInt8[Tensor, "n channels height width"], size: tuple[int, int], antialias: bool = False
) -> UInt8[Tensor, "n channels out_height out_width"]:
    """Bilinear: OpenCV's INTER_LINEAR to the last bit, or, with `antialias`, PIL's to within one grey level.

    Without `antialias` a strong reduction skips pixels, as the I3D authors' OpenCV path does.
    """
    if not antialias:
        return resize_like_opencv(frames, size)
    if tuple(frames.shape[-2:]) == size:
        return frames
    scaled = F.interpolate(frames.float(), size, mode="bilinear", align_corners=False, antialias=True)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def centre_crop(frames: Tensor, side: int) -> Tensor:
    """The middle (..., side, side) of (..., height, width); an odd remainder leaves the extra pixel at the end."""
    height, width = frames.shape[-2:]
    top, left = (height - side) // 2, (width - side) // 2
    return frames[..., top : top + side, left : left + side]


def crop_boxes(frames: Tensor, boxes: Float[Tensor, "n 4"], side: int) -> Float[Tensor, "n channels side side"]:
    """Each frame's box (x1, y1, x2, y2 in 0..1 of the frame), resampled to side x side.

    Bilinear with half-pixel centres; what a box asks for beyond the frame repeats the frame's edge.
    """
    x1, y1, x2, y2 = boxes.to(frames.device, torch.float32).unbind(-1)
    steps = (torch.arange(side, device=frames.device, dtype=torch.float32) + 0.5) / side
    xs = x1[:, None] + (x2 - x1)[:, None] * steps
    ys = y1[:, None] + (y2 - y1)[:, None] * steps
    grid = torch.stack((xs[:, None, :].expand(-1, side, -1), ys[:, :, None].expand(-1, -1, side)), dim=-1)
    return F.grid_sample(frames.float(), grid * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False)


def normalise(
    clips: Float[Tensor, "batch 3 time height width"], kind: str
) -> Float[Tensor, "batch 3 time height width"]:
    """0..255 to what the network was trained on: `kinetics` [-1, 1], or `imagenet` mean and deviation."""
    if kind == "kinetics":
        return clips * (2 / 255) - 1
    shape = (1, 3, 1, 1, 1)
    mean = torch.tensor(IMAGENET_MEAN, device=clips.device, dtype=clips.dtype).view(shape)
    std = torch.tensor(IMAGENET_STD, device=clips.device, dtype=clips.dtype).view(shape)
    return (clips / 255 - mean) / std
