"""Video Swin Transformers (Liu et al., CVPR 2022, arXiv:2106.13230) as torchvision has them.

`swin3d_b` is the nearest thing to the VST features of GDLT and PAMFN: their network, which they had trained on
Kinetics-600. Clips of 32 frames; a map cell stands for 2 frames and 32 pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aqa_extract.backbones.record import NORMALISATIONS, Backbone, Output
from aqa_extract.backbones.torchvision_video import PORTED, video_network, weights
from aqa_extract.weights_fetch import Entry

if TYPE_CHECKING:
    from torch import Tensor


def look(model: Any, clips: Tensor) -> tuple[Tensor, Tensor]:
    """The map after the last normalisation, and its mean."""
    map = model.norm(model.features(model.patch_embed(clips))).permute(0, 4, 1, 2, 3)
    return map, model.avgpool(map).flatten(1)


def _swin3d(name: str, size: str, channels: int, entries: tuple[Entry, ...]) -> Backbone:
    return video_network(
        name,
        f"Video Swin Transformer, {size} (Liu et al., CVPR 2022)",
        frames=32,
        resize=256,
        crop=224,
        normalisation=NORMALISATIONS["imagenet"],
        map=Output("map", channels, stride=(2, 32)),
        look=look,
        classify=lambda model, feature: model.head(feature),
        classifier="head",
        entries=entries,
    )


SWIN3D_T = _swin3d("swin3d_t", "tiny", 768, (weights("Swin3D_T_Weights.KINETICS400_V1", PORTED),))
SWIN3D_S = _swin3d("swin3d_s", "small", 768, (weights("Swin3D_S_Weights.KINETICS400_V1", PORTED),))
SWIN3D_B = _swin3d(
    "swin3d_b",
    "base",
    1024,
    (
        weights("Swin3D_B_Weights.KINETICS400_IMAGENET22K_V1", PORTED, "from ImageNet-22k, then Kinetics-400"),
        weights("Swin3D_B_Weights.KINETICS400_V1", PORTED, "from ImageNet-1k, then Kinetics-400", by_default=False),
    ),
)
