"""Around TV-L1: colour frames to its grey input, and its flow to the network's input.

I3D's flow network saw flow clipped to ±20 px, stored as 8-bit images and scaled to [-1, 1]; the pipeline that
wrote those images truncated. Source: google/mediapipe, FlowQuantizerModel and
tvl1_flow_and_rgb_from_file.pbtxt, which kinetics-i3d names as its preprocessing.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from aqa_shared.records import FlowSettings

# OpenCV's fixed-point weights of R, G and B, which sum to 2**15 (BT.601).
_RED, _GREEN, _BLUE, _SHIFT = 9798, 19235, 3735, 15


def to_gray(frames: UInt8[Tensor, "n 3 height width"]) -> UInt8[Tensor, "n height width"]:
    """RGB to grey exactly as OpenCV's RGB2GRAY does for uint8: fixed point, rounded half up."""
    red, green, blue = frames.to(torch.int32).unbind(1)
    total = red * _RED + green * _GREEN + blue * _BLUE + (1 << (_SHIFT - 1))
    return (total >> _SHIFT).to(torch.uint8)


def to_input(
    flow: Float[Tensor, "*batch 2 height width"], settings: FlowSettings
) -> Float[Tensor, "*batch 2 height width"]:
    """Flow in px to network input in [-1, 1]: clip to ±bound, quantise to 8 bits as asked, scale.

    256 levels have no middle one: no motion becomes -1/255 (`mediapipe`, truncating, as I3D was trained),
    +1/255 (`round`) or 0 (`none`).
    """
    bound = settings.bound
    clipped = flow.clamp(-bound, bound)
    if settings.quantise == "none":
        return clipped / bound
    level = (clipped + bound) / (2 * bound) * 255
    # Half goes up, as in the 8-bit flow of TSN-style code; torch.round sends half to the even level.
    level = level.floor() if settings.quantise == "mediapipe" else (level + 0.5).floor()
    return level * (2 / 255) - 1


def motion(flow: Float[Tensor, "pairs 2 height width"]) -> Float[Tensor, ""]:
    """Mean length of the flow vectors in px, before any clipping: how much moves."""
    return torch.linalg.vector_norm(flow, dim=-3).mean()
