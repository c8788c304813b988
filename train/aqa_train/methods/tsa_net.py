"""TSA-Net: self-attention over the places of the feature map inside the tube that follows the actor.

Wang, Yang, Zhai, Chen, Zhang: TSA-Net: Tube Self-Attention Network for Action Quality Assessment. ACM MM 2021,
arXiv:2201.03746. Code: github.com/Shunli-Wang/TSA-Net. The authors have the attention inside I3D, which is trained too;
here it follows I3D, on the map before the pool (ours). Choices of ours are marked (ours).

    map (time × rows × columns) ─→ places in the tube ─→ self-attention ─→ put back ─→ mean → USDL's head → score
    the actor's boxes ───────────→ ↑

The boxes are the crop boxes of the store's actor streams, which cover the body with a margin. The authors' come from a
tracker and are released for some datasets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import mlp, pool_time
from aqa_train.methods.mean_mlp import Widths
from aqa_train.methods.usdl import Above, Decoding, decode, divergence, log_density, soft_label
from aqa_train.pool import Pool

BOXES = "actor_box"


@dataclass(frozen=True)
class TSANetConfig:
    """Settings of TSA-Net; those of its head are USDL's for MTL-AQA."""

    attention: bool = True
    """False leaves the map as it is, to measure the effect of the attention."""
    scaled: bool = False
    """Products are divided by the root of the channels before the softmax (ours). Without it, as in the authors'
    code, a place of many channels attends to hardly anything but itself."""
    fit: Literal["crop", "squash"] = "crop"
    """How the store's pictures were made from the frame: the middle of it, or all of it squashed to a square."""
    crop: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Part of the picture's short side that the network saw: 224 of 256."""
    bins: Annotated[int, Field(ge=2)] = 101
    sigma: Above = 5.0
    """Standard deviation of the target around a label, in bins."""
    decoding: Decoding = "argmax"
    """The likeliest bin is the score; `expectation` (ours) takes the mean, which has no ties."""
    widths: Widths = (256, 128)
    """Hidden widths of the head."""
    start_at_mean: bool = True
    """The last biases start as USDL's (ours); False starts them at random."""


class TSANet(nn.Module):
    """Tube self-attention on a spatial map, and a distribution over scores."""

    Config = TSANetConfig

    def __init__(self, inputs: Inputs, config: TSANetConfig = TSANetConfig()) -> None:
        super().__init__()
        self.config, self.top = config, inputs.scale.top
        maps = [n for n, shape in inputs.streams.items() if len(shape) == 4]
        if len(maps) != 1 or BOXES not in inputs.streams:
            raise UsageError(
                f"TSA-Net reads one map and the actor's boxes, got {', '.join(inputs.streams)}",
                fix="extract both: --streams rgb:map,actor-rgb",
            )
        (self.map,) = maps
        channels = inputs.streams[self.map][0]
        self.value, self.back = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.norm = nn.BatchNorm1d(channels)
        # As theirs: at the start the tube changes nothing.
        nn.init.zeros_(self.norm.weight)
        start = None
        if config.start_at_mean:
            place = torch.tensor(inputs.scale.mean / inputs.scale.top * (config.bins - 1))
            start = log_density(place, config.bins, config.bins / 4)
        self.head = mlp(channels, *config.widths, config.bins, start=start)

    def prepare(self, pool: Pool) -> None:
        """Nothing is kept: boxes that are none are said before the training."""
        for batch in pool.labelled.batches():
            boxes = batch.streams[BOXES]
            there = boxes if batch.present is None else boxes[batch.present]
            if not bool((there[..., 2:] > there[..., :2]).all()):
                raise UsageError(
                    "the actor's boxes are not boxes: the right or lower edge is not beyond the left or upper one",
                    fix="leave them as they were extracted (--set standardise=none), or extract actor-rgb again",
                )

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        size = self.top / (self.config.bins - 1)
        return decode(self.head(self.features(batch)), self.config.decoding) * size

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        place = labelled.scores * ((self.config.bins - 1) / self.top)
        target = soft_label(place, self.config.bins, self.config.sigma)
        return {"distribution": divergence(self.head(self.features(labelled)), target)}

    def features(self, batch: Batch) -> Float[Tensor, "batch channels"]:
        """The mean over the map of all segments, after the attention."""
        # (batch, segments, time, rows, columns, channels)
        x = batch.streams[self.map].movedim(2, -1)
        if self.config.attention:
            inside = self.tube(batch.streams[BOXES], tuple(x.shape[2:5]))
            if batch.present is not None:
                inside = inside & batch.present[:, :, None, None, None]
            x = x.masked_scatter(inside[..., None], self.attend(x[inside], inside.flatten(1).sum(dim=1).tolist()))
        return pool_time(x.mean(dim=(2, 3, 4)), batch.present)

    def tube(self, boxes: Float[Tensor, "batch segments frames 4"], shape: tuple[int, ...]) -> Bool[Tensor, "..."]:
        """Which places of the map a box touches in any of the frames that they stand for."""
        time, rows, columns = shape
        seen = seen_in_crop(boxes, self.config.fit, self.config.crop)
        across, down = (
            ((seen[..., i, None] < torch.arange(1, n + 1, device=boxes.device) / n)
             & (seen[..., i + 2, None] > torch.arange(n, device=boxes.device) / n))
            for i, n in ((0, columns), (1, rows))
        )  # fmt: skip
        touched = down[..., None] & across[..., None, :]
        when = torch.arange(boxes.shape[2], device=boxes.device) * time // boxes.shape[2]
        return torch.stack([touched[:, :, when == t].any(dim=2) for t in range(time)], dim=2)

    def attend(self, x: Float[Tensor, "places channels"], sizes: list[int]) -> Float[Tensor, "places channels"]:
        """A non-local block over each video's places by themselves; batch norm over those of all videos (ours)."""
        if len(x) < (2 if self.training else 1):
            return x  # the actor is nowhere in the picture
        scale = x.shape[1] ** -0.5 if self.config.scaled else 1.0
        found = [(scale * own @ own.T).softmax(dim=1) @ self.value(own) for own in x.split(sizes)]
        return x + self.norm(self.back(torch.cat(found)))


def seen_in_crop(
    boxes: Float[Tensor, "*shape 4"], fit: Literal["crop", "squash"], crop: float
) -> Float[Tensor, "*shape 4"]:
    """Corners in parts of the picture that the network saw, from parts of the frame; boxes are square in pixels."""
    side = torch.full_like(boxes[..., :2], 1.0)
    if fit == "crop":
        # (x2 − x1) · width = (y2 − y1) · height, and the picture is as wide as the shorter of both.
        aspect = (boxes[..., 3] - boxes[..., 1]) / (boxes[..., 2] - boxes[..., 0]).clamp(min=1e-6)
        side = torch.stack([aspect.clamp(min=1), (1 / aspect.clamp(min=1e-6)).clamp(min=1)], dim=-1)
    return (boxes - 0.5) * side.repeat(*[1] * (side.ndim - 1), 2) / crop + 0.5
