"""Find people: three SSD networks behind one `PersonDetector.detect(frames) -> Persons`.

torchvision's own post-processing loops over images and 90 classes in Python and waits for the GPU in every
turn. Here only the column `person` is kept, and everything after the network is a fixed number of batched
operations that never asks the device for a value:

    uint8 frames → square → network → codes, p(person) → top 64 → boxes → greedy suppression → best 16

The three networks: the TensorFlow zoo's SSD MobileNetV3-Large 320 (`mobilenet_ssd`), torchvision's
SSD300-VGG16 and SSDlite320-MobileNetV3. Which one a weights file belongs to is read from its keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from aqa_extract.resize import resize_like_opencv
from aqa_shared.console import Say
from aqa_shared.errors import EnvironmentFault

CANDIDATES = 64
"""Anchors of each frame that enter the suppression."""
PERSONS = 16
"""Boxes of each frame that are reported."""
_CODE_SCALE = (10.0, 10.0, 5.0, 5.0)
"""SSD's box coder variances, the same in all three networks."""
_LARGEST_LOG = math.log(1000 / 16)
"""torchvision's bound on a coded width; no trained network comes near it, a broken one must not give inf."""


@dataclass(frozen=True)
class Persons:
    """Up to `PERSONS` people of each frame, best first."""

    boxes: Float[Tensor, "batch persons 4"]
    """x1, y1, x2, y2 in 0..1 of the frame, float32, as the network says: the zoo's may reach beyond the frame,
    torchvision's end at it. Zeros where there is none."""
    scores: Float[Tensor, "batch persons"]
    """Probability, float32; 0 where there is none."""


@runtime_checkable
class Network(Protocol):
    """What `PersonDetector` asks of an SSD; each is an `nn.Module`."""

    size: int
    """Side of its square input."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Of RGB pixels in 0..255."""
    nms_iou: float
    clip_before_nms: bool

    def anchors(self) -> Float[Tensor, "anchors 4"]:
        """(cx, cy, w, h) as fractions of the frame."""

    def __call__(
        self, x: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch anchors 4"], Float[Tensor, "batch anchors"]]:
        """Box codes (x, y, w, h) and the probability of a person, float32."""


class TorchvisionSSD(nn.Module):
    """Backbone and head of a torchvision SSD, without its transform and its post-processing."""

    clip_before_nms = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parts = cast(Any, model)
        self.backbone: nn.Module = parts.backbone
        self.head: nn.Module = parts.head
        self.size: int = parts.transform.fixed_size[0]
        # torchvision's means are of pixels in 0..1.
        self.mean = tuple(255 * m for m in parts.transform.image_mean)
        self.std = tuple(255 * s for s in parts.transform.image_std)
        self.nms_iou: float = parts.nms_thresh
        self._default_boxes = parts.anchor_generator

    def anchors(self) -> Float[Tensor, "anchors 4"]:
        from torchvision.models.detection.image_list import ImageList

        blank = torch.zeros(1, 3, self.size, self.size)
        with torch.inference_mode():
            maps = list(self.backbone(blank).values())  # the generator wants the maps for their sizes
        corners = self._default_boxes(ImageList(blank, [(self.size, self.size)]), maps)[0] / self.size
        low, high = corners[:, :2], corners[:, 2:]
        return torch.cat([(low + high) / 2, high - low], dim=1)

    def forward(
        self, x: Float[Tensor, "batch 3 size size"]
    ) -> tuple[Float[Tensor, "batch anchors 4"], Float[Tensor, "batch anchors"]]:
        out = self.head(list(self.backbone(x).values()))
        # Column 0 is the background, column 1 the person.
        return out["bbox_regression"].float(), out["cls_logits"].float().softmax(-1)[..., 1]


def decode(codes: Float[Tensor, "*batch 4"], anchors: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 4"]:
    """SSD's box codes (x, y, w, h) relative to anchors (cx, cy, w, h) → corners x1, y1, x2, y2."""
    shift = codes[..., :2] / _CODE_SCALE[0]
    grow = (codes[..., 2:] / _CODE_SCALE[2]).clamp(max=_LARGEST_LOG).exp()
    centre = anchors[..., :2] + shift * anchors[..., 2:]
    half = anchors[..., 2:] * grow / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def overlaps(boxes: Float[Tensor, "batch k 4"]) -> Float[Tensor, "batch k k"]:
    """Intersection over union of every two boxes of a frame; 0 for boxes without area."""
    low = torch.maximum(boxes[:, :, None, :2], boxes[:, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], boxes[:, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)
    union = area[:, :, None] + area[:, None, :] - shared
    return shared / union.clamp(min=torch.finfo(union.dtype).tiny)


def suppress(boxes: Float[Tensor, "batch k 4"], iou: float) -> Bool[Tensor, "batch k"]:
    """Greedy non-maximum suppression of boxes sorted best first: which of them stay.

    The k steps do not depend on the values, so the host never waits for the device.
    """
    count = boxes.shape[1]
    covers = (overlaps(boxes) > iou).triu(diagonal=1)
    keep = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for k in range(count - 1):
        keep = keep & ~(covers[:, k] & keep[:, k, None])
    return keep


def _fold_normalisation(module: nn.Module) -> None:
    """Work every batch normalisation into the convolution before it: a fifth of the time, 2e-5 of a box code."""
    for child in module.children():
        _fold_normalisation(child)
    if isinstance(module, nn.Sequential):
        for i in range(len(module) - 1):
            conv, norm = module[i], module[i + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()


class PersonDetector(nn.Module):
    """An SSD that sees only people. `.to(device)` moves it; frames must be on the same device.

    It takes `network` over: normalisation is folded in place, so load weights before.
    """

    def __init__(self, network: Network, candidates: int = CANDIDATES, persons: int = PERSONS) -> None:
        super().__init__()
        module = cast(nn.Module, network)
        _fold_normalisation(module.eval().requires_grad_(False))
        self.network = module.to(memory_format=torch.channels_last)
        self.size = network.size
        self.nms_iou = network.nms_iou
        self.clip_before_nms = network.clip_before_nms
        self.candidates = candidates
        self.persons = persons
        # Of a uint8 pixel, (pixel - mean) / std in one multiply-add.
        std = torch.tensor(network.std).view(3, 1, 1)
        self.register_buffer("gain", 1 / std, persistent=False)
        self.register_buffer("offset", -torch.tensor(network.mean).view(3, 1, 1) / std, persistent=False)
        self.register_buffer("anchors", network.anchors(), persistent=False)

    gain: Tensor
    offset: Tensor
    anchors: Tensor

    @torch.inference_mode()
    def detect(self, frames: UInt8[Tensor, "batch 3 height width"] | Tensor) -> Persons:
        """The people of each RGB frame. Frames of another size than `size` are resized as OpenCV would."""
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3:
            raise ValueError(f"got {tuple(frames.shape)} {frames.dtype}, expected uint8 (batch, 3, height, width)")
        square = resize_like_opencv(frames, (self.size, self.size))
        x = torch.addcmul(self.offset, square.float(), self.gain)
        codes, scores = self.network(x.contiguous(memory_format=torch.channels_last))
        best, at = scores.topk(min(self.candidates, scores.shape[1]), dim=1)
        boxes = decode(codes.gather(1, at[..., None].expand(-1, -1, 4)), self.anchors[at])
        if self.clip_before_nms:
            boxes = boxes.clamp(0, 1)
        kept = best * suppress(boxes, self.nms_iou)
        best, at = kept.topk(min(self.persons, kept.shape[1]), dim=1)
        boxes = boxes.gather(1, at[..., None].expand(-1, -1, 4))
        return Persons(boxes * (best > 0)[..., None], best)


def build_detector(state: dict[str, Tensor]) -> PersonDetector:
    """The detector whose weights `state` holds, told by its keys.

    Raises `EnvironmentFault` when the keys or shapes are of no known network.
    """
    from torchvision.models import detection

    from aqa_extract.actor.mobilenet_ssd import MobileNetSSD

    fix = "use the weights of ssd-mobilenet-v3, ssd300_vgg16 or ssdlite320"
    classes = 91
    model: nn.Module
    if "extractor.features.0.0.0.weight" in state:
        name, model = "ssd-mobilenet-v3", MobileNetSSD()
    elif "backbone.scale_weight" in state:
        name = "ssd300_vgg16"
        model = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=classes)
    elif "backbone.features.0.0.0.weight" in state:
        name = "ssdlite320"
        model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes)
    else:
        first = next(iter(state), "no key at all")
        raise EnvironmentFault(f"the actor weights are of no known detector (first key: {first})", fix=fix)
    # Converted files lack the step counters of batch normalisation, which inference does not read.
    blank = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    try:
        model.load_state_dict(blank | state)
    except RuntimeError as e:
        raise EnvironmentFault(f"the actor weights do not fit {name}: {e}", fix=fix) from e
    network = model if isinstance(model, MobileNetSSD) else TorchvisionSSD(model)
    return PersonDetector(cast(Network, network))


def load_detector(weights: str, say: Say) -> tuple[PersonDetector, dict[str, Any]]:
    """The detector named `weights` (registry name, `default` or a file), on the CPU, and its provenance.

    `say` receives what a person should know while it loads. Raises `EnvironmentFault` when the weights are
    missing, not what their digest says, or of no known network.
    """
    from aqa_extract.weights import resolve

    loaded = resolve(weights, "actor", say)
    return build_detector(loaded.state), loaded.record
