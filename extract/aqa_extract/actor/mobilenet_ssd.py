"""SSD MobileNetV3-Large 320 of the TensorFlow detection zoo, as a PyTorch module.

The zoo's `ssd_mobilenet_v3_large_coco_2020_01_14` (SSD: Liu et al., ECCV 2016, arXiv:1512.02325;
MobileNetV3 and SSDLite with the reduced tail: Howard et al., ICCV 2019, arXiv:1905.02244, section 6.3).
torchvision has the same parts, and they are used here as they are; what differs is ours:

    padding    TensorFlow's "SAME": at stride 2 an even map is padded more at its end, not alike at both ends
    anchors    3 a cell on the first map, 6 on the others; scores are sigmoids, without a background class
    order      boxes are coded (y, x, h, w)
    gates      a sixth is 0.16667

    frame 320×320 in [-1, 1] → MobileNetV3 ─┬ 20×20 ┐
                                            └ 10×10 ├→ SSDLite head → (2034, 4) codes, (2034, 91) class logits
                          → 5×5, 3×3, 2×2, 1×1 ─────┘
"""

from __future__ import annotations

from functools import partial
from math import sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large
from torchvision.models.detection.ssdlite import SSDLiteFeatureExtractorMobileNet, SSDLiteHead
from torchvision.models.mobilenetv3 import InvertedResidual
from torchvision.ops import SqueezeExcitation

SIZE = 320
CLASSES = 91
"""COCO's 90 category ids and the unused column 0."""
PERSON = 1
GRIDS = (20, 10, 5, 3, 2, 1)
ANCHORS_PER_CELL = (3, 6, 6, 6, 6, 6)
LEVEL_CHANNELS = (672, 480, 512, 256, 256, 128)
_C4 = 13
"""The block whose expansion is the first feature map: the first of stride 32."""
_SQUEEZED = (3, 4, 5, 10, 11, 12, 13, 14)
"""Inverted residuals with squeeze-and-excitation (table 1 of the MobileNetV3 paper)."""


class RoundedHardSigmoid(nn.Module):
    """min(max(x + 3, 0), 6) × 0.16667: in its squeeze-and-excitation the zoo wrote a sixth in five decimals.

    With an exact sixth, box codes move by up to 1e-3 over the eight such blocks.
    """

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return F.relu6(x + 3) * 0.16667


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding.

    For n values, kernel k and stride s it is max(k - (n mod s or s), 0) in all, the smaller half first.
    """

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d oh ow"]:
        pad: list[int] = []
        for n, k, s in zip(input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            total = max(k - (n % s or s), 0)
            pad += [total // 2, total - total // 2]
        return F.conv2d(F.pad(input, pad), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _pad_as_tensorflow(module: nn.Module) -> None:
    """Replace every strided convolution below `module`; at stride 1 and odd kernels both paddings agree."""
    for name, child in module.named_children():
        if type(child) is nn.Conv2d and child.stride != (1, 1):
            same = SameConv2d(
                child.in_channels,
                child.out_channels,
                (child.kernel_size[0], child.kernel_size[1]),
                stride=(child.stride[0], child.stride[1]),
                groups=child.groups,
                bias=child.bias is not None,
            )
            setattr(module, name, same)
        else:
            _pad_as_tensorflow(child)


def anchors() -> Float[Tensor, "2034 4"]:
    """Anchor boxes (cx, cy, w, h) as fractions of the frame, cell by cell in raster order, finest map first.

    TensorFlow's SSD anchor generator with its detection-zoo settings: six maps with scales 0.2 … 0.95, on the
    first map one small square and two oblong boxes only, on the others five aspect ratios and a square of the
    scale between this map's and the next one's.
    """
    scales = [0.2 + (0.95 - 0.2) * k / 5 for k in range(6)] + [1.0]
    maps: list[Tensor] = []
    for k, grid in enumerate(GRIDS):
        if k == 0:
            boxes = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
        else:
            boxes = [(scales[k], ratio) for ratio in (1.0, 2.0, 0.5, 3.0, 0.3333)]
            boxes.append((sqrt(scales[k] * scales[k + 1]), 1.0))
        shapes = torch.tensor([(s * sqrt(r), s / sqrt(r)) for s, r in boxes], dtype=torch.float64)
        centres = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
        cy, cx = torch.meshgrid(centres, centres, indexing="ij")
        cells = torch.stack([cx, cy], dim=-1).reshape(-1, 1, 2).expand(-1, len(boxes), -1)
        maps.append(torch.cat([cells, shapes.expand(len(cells), -1, -1)], dim=-1).reshape(-1, 4))
    return torch.cat(maps).float()


class MobileNetSSD(nn.Module):
    """The network without its post-processing, randomly initialised; the graph's weights are its state."""

    size = SIZE
    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)
    """(pixel - mean) / std with pixels in 0..255, RGB: [-1, 1]."""
    nms_iou = 0.6
    clip_before_nms = False
    """The zoo suppresses boxes as predicted; torchvision clips them to the frame first."""

    def __init__(self) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.03)
        gate = partial(SqueezeExcitation, scale_activation=RoundedHardSigmoid)
        block = partial(InvertedResidual, se_layer=gate)
        trunk = mobilenet_v3_large(weights=None, norm_layer=norm, reduced_tail=True, block=block).features
        self.extractor = SSDLiteFeatureExtractorMobileNet(trunk, _C4, norm)
        self.head = SSDLiteHead(list(LEVEL_CHANNELS), list(ANCHORS_PER_CELL), CLASSES, norm)
        _pad_as_tensorflow(self)

    def anchors(self) -> Float[Tensor, "anchors 4"]:
        return anchors()

    def raw(
        self, x: Float[Tensor, "batch 3 320 320"]
    ) -> tuple[Float[Tensor, "batch 2034 4"], Float[Tensor, "batch 2034 91"]]:
        """Box codes (y, x, h, w) and the logits of every class: the outputs of the TensorFlow graph."""
        out = self.head(list(self.extractor(x).values()))
        return out["bbox_regression"], out["cls_logits"]

    def forward(
        self, x: Float[Tensor, "batch 3 320 320"]
    ) -> tuple[Float[Tensor, "batch 2034 4"], Float[Tensor, "batch 2034"]]:
        """Box codes (x, y, w, h) and the probability of a person, float32, for each anchor."""
        maps = list(self.extractor(x).values())
        codes = self.head.regression_head(maps).float()
        logits = []
        # The sigmoid needs no other class, so of the last layer only the rows of `person` are computed.
        for y, block in zip(maps, self.head.classification_head.module_list, strict=True):
            depthwise, last = block
            person = F.conv2d(depthwise(y), last.weight[PERSON::CLASSES], last.bias[PERSON::CLASSES])
            logits.append(person.permute(0, 2, 3, 1).flatten(1))
        return codes[..., [1, 0, 3, 2]], torch.cat(logits, dim=1).float().sigmoid()


def scopes() -> dict[str, str]:
    """Name in `MobileNetSSD` → scope in the TensorFlow graph, for every convolution with what follows it."""
    net, names = (
        "FeatureExtractor/MobilenetV3",
        {"extractor.features.0.0": "FeatureExtractor/MobilenetV3/Conv"},
    )
    for i in range(15):
        scope = f"{net}/expanded_conv" + (f"_{i}" if i else "")
        stages = ["expand"] * (i > 0) + ["depthwise"] + ["squeeze_excite"] * (i in _SQUEEZED) + ["project"]
        for k, stage in enumerate(stages):
            if i + 1 < _C4:
                name = f"extractor.features.0.{i + 1}.block.{k}"
            elif i + 1 == _C4:  # torchvision cuts this block after its expansion, where the first map is taken
                name = f"extractor.features.0.{_C4}" if k == 0 else f"extractor.features.1.0.{k}"
            else:
                name = f"extractor.features.1.{i + 1 - _C4}.block.{k}"
            if stage == "squeeze_excite":
                names |= {f"{name}.fc1": f"{scope}/{stage}/Conv", f"{name}.fc2": f"{scope}/{stage}/Conv_1"}
            else:
                names[name] = f"{scope}/{stage}"
    names["extractor.features.1.3"] = f"{net}/Conv_1"
    for j, width in enumerate(LEVEL_CHANNELS[2:]):
        wide = f"{net}/layer_17_2_Conv2d_{j + 2}_3x3_s2_{width}"
        names[f"extractor.extra.{j}.0"] = f"{net}/layer_17_1_Conv2d_{j + 2}_1x1_{width // 2}"
        names[f"extractor.extra.{j}.1"] = f"{wide}_depthwise"
        names[f"extractor.extra.{j}.2"] = wide
    for m in range(len(GRIDS)):
        for head, predictor in (("regression", "BoxEncodingPredictor"), ("classification", "ClassPredictor")):
            names[f"head.{head}_head.module_list.{m}.0"] = f"BoxPredictor_{m}/{predictor}_depthwise"
            names[f"head.{head}_head.module_list.{m}.1"] = f"BoxPredictor_{m}/{predictor}"
    return names
