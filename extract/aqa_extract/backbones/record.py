"""What a backbone is: its weights and with them the input they were trained on, its outputs by name, how it is built.

Nothing here or in a backbone's own file imports torch, so that tables of them can be printed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from aqa_extract.weights_fetch import Entry
from aqa_shared.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from aqa_shared.records import ExtractSettings, Pixels

Modality = Literal["rgb", "flow"]


@dataclass(frozen=True)
class Canvas:
    """How whole frames are made smaller, before anything is cut out of them."""

    resize: int | tuple[int, int]
    """The short side in pixels, or (height, width) whatever the frame's shape."""
    arithmetic: Literal["opencv", "torchvision"]
    """Whose bilinear resize, and whose rounding of sizes and of centres."""
    antialias: bool = False


@dataclass(frozen=True)
class Input:
    """What the weights were trained on, and so what the network is given."""

    frames: int
    """Of a clip, and so of a segment, unless `segment_frames` says otherwise."""
    canvas: Canvas
    crop: int
    """Side of the square that the network sees, in pixels."""
    mean: tuple[float, float, float]
    """Of red, green and blue in 0..1: what becomes 0. Flow is in [-1, 1] already."""
    std: tuple[float, float, float]
    fit: Literal["crop", "squash"] = "crop"
    """The middle of the canvas, or all of it at another aspect ratio."""
    channels: Literal["RGB", "BGR"] = "RGB"
    least_frames: int = 1
    most_frames: int | None = None
    sides: tuple[int, int | None] = (32, None)
    """The least and the largest `crop` that the network takes."""

    def adjusted(self, pixels: Pixels) -> Input:
        """With what a run sets in their place. Raises UsageError for a crop that cannot be."""
        given: dict[str, Any] = {}
        if pixels.normalise is not None:
            given["mean"], given["std"] = NORMALISATIONS[pixels.normalise]
        if pixels.crop is not None:
            given["crop"] = pixels.crop
        if pixels.fit is not None:
            given["fit"] = pixels.fit
        resize = self.canvas.resize if pixels.short_side is None else pixels.short_side
        antialias = self.canvas.antialias if pixels.antialias is None else pixels.antialias
        found = replace(self, **given, canvas=replace(self.canvas, resize=resize, antialias=antialias))
        short = min(resize) if isinstance(resize, tuple) else resize
        if found.fit == "crop" and found.crop > short:
            raise UsageError(f"crop ({found.crop}) must not exceed short_side ({short})", fix="choose a smaller --crop")
        return found


NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "kinetics": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and deviation by name: `kinetics` maps 0..255 to [-1, 1]."""


@dataclass(frozen=True)
class Output:
    """One thing that the network says of a clip."""

    role: Literal["feature", "map", "logits"]
    channels: int
    stride: tuple[int, int] = (1, 1)
    """Of a map: frames and pixels that one of its cells stands for."""
    last_rounds_down: bool = False
    """Halvings of an odd size round up; here all but the last do."""

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes, beside that of the segments."""
        if self.role == "map":
            return ("channel", "map_time", "map_row", "map_column")
        return ("class",) if self.role == "logits" else ("channel",)

    def shape(self, frames: int, crop: int) -> tuple[int, ...]:
        """Of clips of `frames` frames and `crop` pixels."""
        if self.role != "map":
            return (self.channels,)
        last = 2 if self.last_rounds_down else 1
        time, side = (-(-n * last // step) // last for n, step in zip((frames, crop), self.stride, strict=True))
        return (self.channels, time, side, side)


@dataclass(frozen=True)
class Backbone:
    """One row of the table."""

    name: str
    about: str
    input: Input
    outputs: Mapping[str, Output]
    """By name; the pooled feature has the empty one."""
    weights: Mapping[Modality, tuple[Entry, ...]]
    """By what they read, in the order of `default`."""
    builder: Callable[[dict[str, Tensor], Modality, ExtractSettings, str], nn.Module]
    """Of (state dict, modality, settings, name of the weights): a network on exactly these, in eval mode on the CPU,
    with a method `outputs(clips, names)`, and `classes`, how many its logits are (0 without a classifier). Raises
    EnvironmentFault for weights that do not fit."""
    reader: str
    """`module:function` of a user's file: its state dict under our names, and whose names the file had."""
    settings: tuple[str, ...] = ()
    """Fields of `ExtractSettings` that only this backbone reads."""

    def network(self, modality: Modality) -> str:
        """By which name its weights are asked for and recorded: `rgb` for I3D, `rgb@swin3d_b` for others."""
        return modality if self.name == DEFAULT else f"{modality}@{self.name}"


DEFAULT = "i3d"
"""The backbone of a stream that names none."""
