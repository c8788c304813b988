"""R(2+1)D, 18 layers (Tran et al., CVPR 2018, arXiv:1711.11248) as torchvision has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aqa_extract.backbones.record import Output
from aqa_extract.backbones.torchvision_video import KINETICS, OWN, video_network, weights

if TYPE_CHECKING:
    from torch import Tensor


def look(model: Any, clips: Tensor) -> tuple[Tensor, Tensor]:
    """The last map and its mean."""
    map = model.layer4(model.layer3(model.layer2(model.layer1(model.stem(clips)))))
    return map, model.avgpool(map).flatten(1)


R2PLUS1D_18 = video_network(
    "r2plus1d_18",
    "R(2+1)D, 18 layers (Tran et al., CVPR 2018)",
    frames=16,
    resize=(128, 171),
    crop=112,
    normalisation=KINETICS,
    map=Output("map", 512, stride=(8, 16)),
    look=look,
    classify=lambda model, feature: model.fc(feature),
    classifier="fc",
    entries=(weights("R2Plus1D_18_Weights.KINETICS400_V1", OWN),),
)
