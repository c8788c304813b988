"""torchvision's video networks as backbones: their files, their transforms, and the network taken apart.

The input records repeat torchvision's weight enums, so that a later torchvision cannot change a feature; the tests
compare them with the enums of the installed one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any

from aqa_extract.backbones.record import Backbone, Canvas, Input, Modality, Output
from aqa_extract.weights_fetch import Entry, TorchvisionUrl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from aqa_shared.records import ExtractSettings

ReadOutputs = Callable[[Any, "Tensor"], "tuple[Tensor, Tensor]"]
"""(network, clips) to its last map (b, c, t, h, w) and the pooled feature (b, c)."""
Classify = Callable[[Any, "Tensor"], "Tensor"]
"""(network, pooled features) to logits."""

KINETICS = ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
"""torchvision's mean and deviation of Kinetics-400."""


OWN = "BSD-3-Clause"
PORTED = "BSD-3-Clause (port), Apache-2.0 (weights)"
"""Licences of what torchvision trained itself, and of what it took over from the authors."""


def weights(enum: str, licence: str, note: str = "", by_default: bool = True) -> Entry:
    """Of `enum` in torchvision.models.video, as `S3D_Weights.KINETICS400_V1`; named `s3d-kinetics400`."""
    network, _, trained = enum.partition(".")
    name = f"{network.removesuffix('_Weights')}-{trained.removesuffix('_V1')}".lower().replace("_imagenet", "-imagenet")
    return Entry(
        name=name,
        layout="torchvision",
        converter="aqa_extract.weights_convert:read_torchvision",
        licence=licence,
        sources=(TorchvisionUrl(f"video:{enum}"),),
        note=note or "torchvision's, trained on Kinetics-400",
        by_default=by_default,
    )


def video_network(
    name: str,
    about: str,
    *,
    frames: int,
    resize: int | tuple[int, int],
    crop: int,
    normalisation: tuple[tuple[float, float, float], tuple[float, float, float]],
    map: Output,
    look: ReadOutputs,
    classify: Classify,
    classifier: str,
    entries: tuple[Entry, ...],
    **limits: Any,
) -> Backbone:
    """The record of torchvision's `name`; `classifier` is the name of its last layer, `limits` are fields of Input."""
    mean, std = normalisation
    return Backbone(
        name=name,
        about=about,
        input=Input(frames=frames, canvas=Canvas(resize, "torchvision"), crop=crop, mean=mean, std=std, **limits),
        outputs={"": Output("feature", map.channels), "logits": Output("logits", 400), "map": map},
        weights={"rgb": entries},
        builder=partial(_build, name, look, classify, classifier),
        reader="aqa_extract.weights_convert:read_torchvision_with_layout",
    )


def _build(
    constructor: str,
    look: ReadOutputs,
    classify: Classify,
    classifier: str,
    state: dict[str, Tensor],
    modality: Modality,
    settings: ExtractSettings,
    name: str,
) -> nn.Module:
    """torchvision's network on exactly the tensors of `state`. Raises EnvironmentFault where they do not fit."""
    import torch
    from torch import nn
    from torchvision.models import video

    from aqa_extract.weights_convert import load_exactly

    class Network(nn.Module):
        def __init__(self, model: nn.Module, classes: int) -> None:
            super().__init__()
            self.model, self.classes = model, classes

        def outputs(self, clips: Tensor, names: Collection[str]) -> dict[str, Tensor]:
            map, feature = look(self.model, clips)
            made: dict[str, Callable[[], Tensor]] = {
                "": lambda: feature,
                "map": lambda: map,
                "logits": lambda: classify(self.model, feature),
            }
            return {name: made[name]() for name in names}

    head = state.get(f"{classifier}.weight")
    # On the meta device nothing is initialised: no random numbers are drawn, and none can be left standing.
    with torch.device("meta"):
        model = getattr(video, constructor)(num_classes=400 if head is None else len(head)).eval()
    load_exactly(
        model,
        state,
        f"weights {name} are not those of torchvision's {constructor}",
        f"pass a state dict of torchvision.models.video.{constructor}, or a name of `aqa weights list`",
    )
    return Network(model, 0 if head is None else len(head))
