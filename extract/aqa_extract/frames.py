"""From decoded frames to network pixels: resize to a short side, crop, normalise; on the frames' own device.

Everything stays uint8 until a batch is made, because a 103-frame video is 36 MB as uint8 and 144 MB as float.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from aqa_extract.backbones import Canvas, Input
from aqa_extract.resize import resize_like_opencv
from aqa_extract.streams import View


def canvas_size(height: int, width: int, canvas: Canvas) -> tuple[int, int]:
    """(height, width) of frames on `canvas`."""
    if isinstance(canvas.resize, tuple):
        return canvas.resize
    short = canvas.resize
    if canvas.arithmetic == "opencv":
        return size_at_short_side(height, width, short)
    # torchvision.transforms.functional.resize drops what is left of the long side.
    return (short, short * width // height) if height <= width else (short * height // width, short)


def size_at_short_side(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) with the shorter one equal to `side`, the other rounded: 360x640 at 256 is 256x455."""
    if height <= width:
        return side, round(width * side / height)
    return round(height * side / width), side


def resize(
    frames: UInt8[Tensor, "n channels height width"],
    size: tuple[int, int],
    antialias: bool = False,
    like: str = "opencv",
) -> UInt8[Tensor, "n channels out_height out_width"]:
    """Bilinear: OpenCV's INTER_LINEAR to the last bit, torchvision's, or, with `antialias`, PIL's to within one grey
    level.

    Without `antialias` a strong reduction skips pixels, as the I3D authors' OpenCV path does.
    """
    if like == "opencv" and not antialias:
        return resize_like_opencv(frames, size)
    if tuple(frames.shape[-2:]) == size:
        return frames
    scaled = F.interpolate(frames.float(), size, mode="bilinear", align_corners=False, antialias=antialias)
    return scaled.round_().clamp_(0, 255).to(torch.uint8)


def centre_crop(frames: Tensor, side: int, like: str = "opencv") -> Tensor:
    """The middle (..., side, side) of (..., height, width).

    An odd remainder leaves the extra pixel at the end, or, as in torchvision, at the end that Python's rounding to
    even says.
    """
    height, width = frames.shape[-2:]
    if like == "torchvision":
        top, left = round((height - side) / 2), round((width - side) / 2)
    else:
        top, left = (height - side) // 2, (width - side) // 2
    return frames[..., top : top + side, left : left + side]


def fit(frames: Tensor, given: Input) -> Tensor:
    """The square (n, c, side, side) that a network sees of canvases (n, c, height, width): uint8 RGB, or flow in px.

    Flow that is squashed is squashed with its vectors.
    """
    like, side = given.canvas.arithmetic, given.crop
    if given.fit == "crop":
        return centre_crop(frames, side, like)
    if frames.dtype == torch.uint8:
        return resize(frames, (side, side), given.canvas.antialias, like)
    height, width = frames.shape[-2:]
    scale = frames.new_tensor([side / width, side / height])[:, None, None]
    return F.interpolate(frames, (side, side), mode="bilinear", align_corners=False) * scale


def viewed(clip: Tensor, view: View, vectors: bool = False) -> Tensor:
    """(time, c, side, side) as `view` shows it; with `vectors`, (time, 2, …) of displacements to the right and down.

    Turning or mirroring a video turns or mirrors what moves in it, so both the field and its vectors change: exactly
    what the motion in the viewed video is. (TV-L1 of the viewed frames would differ from it by the solver's own error:
    its differences lean to the right and down. tests/extract/test_views.py measures by how much.)
    """
    if view.mirrored:
        clip = clip.flip(-1)
        if vectors:
            clip = clip * clip.new_tensor([-1.0, 1.0])[:, None, None]
    for _ in range(view.turns):
        clip = torch.rot90(clip, 1, (-2, -1))
        if vectors:  # what pointed right points up, what pointed down points right
            right, down = clip.unbind(-3)
            clip = torch.stack((down, -right), -3)
    return clip


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
    clips: Float[Tensor, "batch 3 time height width"], given: Input
) -> Float[Tensor, "batch 3 time height width"]:
    """RGB in 0..255 to what the network was trained on."""
    scale = torch.tensor([1 / (255 * std) for std in given.std], dtype=torch.float64).to(clips)
    shift = torch.tensor([mean / std for mean, std in zip(given.mean, given.std, strict=True)], dtype=torch.float64)
    clips = clips * scale.view(3, 1, 1, 1) - shift.to(clips).view(3, 1, 1, 1)
    return clips.flip(1) if given.channels == "BGR" else clips
