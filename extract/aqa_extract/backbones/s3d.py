"""S3D (Xie et al., ECCV 2018, arXiv:1712.04851) as torchvision has it: I3D with separated convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aqa_extract.backbones.record import Output
from aqa_extract.backbones.torchvision_video import KINETICS, OWN, video_network, weights

if TYPE_CHECKING:
    from torch import Tensor


def look(model: Any, clips: Tensor) -> tuple[Tensor, Tensor]:
    """The last map, and the mean of its averages over 2x7x7 windows."""
    map = model.features(clips)
    return map, model.avgpool(map).mean((2, 3, 4))


S3D = video_network(
    "s3d",
    "S3D (Xie et al., ECCV 2018)",
    frames=128,
    resize=(256, 256),
    crop=224,
    normalisation=KINETICS,
    map=Output("map", 1024, stride=(8, 32), last_rounds_down=True),
    look=look,
    # A 1x1x1 convolution commutes with the mean, so it may as well follow it.
    classify=lambda model, feature: model.classifier(feature[:, :, None, None, None]).flatten(1),
    classifier="classifier.1",
    entries=(weights("S3D_Weights.KINETICS400_V1", OWN),),
    least_frames=14,
    sides=(224, None),
)
