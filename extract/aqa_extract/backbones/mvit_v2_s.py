"""MViTv2, small (Li et al., CVPR 2022, arXiv:2112.01526) as torchvision has it: 16 frames of 224 pixels, no others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aqa_extract.backbones.record import Output
from aqa_extract.backbones.torchvision_video import PORTED, video_network, weights

if TYPE_CHECKING:
    from torch import Tensor


def look(model: Any, clips: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of the last block as a map, and the class token, which is what the classifier reads."""
    x = model.pos_encoding(model.conv_proj(clips).flatten(2).transpose(1, 2))
    size = (model.pos_encoding.temporal_size, *model.pos_encoding.spatial_size)
    for block in model.blocks:
        x, size = block(x, size)
    x = model.norm(x)
    return x[:, 1:].transpose(1, 2).unflatten(2, tuple(size)), x[:, 0]


MVIT_V2_S = video_network(
    "mvit_v2_s",
    "MViTv2, small (Li et al., CVPR 2022)",
    frames=16,
    resize=256,
    crop=224,
    normalisation=((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),
    map=Output("map", 768, stride=(2, 32)),
    look=look,
    classify=lambda model, feature: model.head(feature),
    classifier="head.1",
    entries=(weights("MViT_V2_S_Weights.KINETICS400_V1", PORTED),),
    least_frames=16,
    most_frames=16,
    sides=(224, 224),
)
