"""ACTION-NET's dynamic branch: segments in the context of their neighbours, weighted by attention.

Zeng et al.: Hybrid Dynamic-static Context-aware Attention Network for Action Assessment in Long Videos. ACM MM 2020,
arXiv:2008.05977. Code: github.com/qinghuannn/ACTION-NET. The static branch reads single pictures and
is omitted, as in S4AQA's comparison on I3D features. Choices of ours are marked (ours).

    features → two layers → x ─→ graph convolution, twice → context
                            └──── x, context → attention over time → weighted sum → two layers, sigmoid → score
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.batch import Batch, Inputs
from aqa_train.layers import logit, mlp, segments_of

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class ActionNetConfig:
    """Settings of ACTION-NET's dynamic branch; the values are those of the authors' code."""

    width: Positive = 256
    """Of segments, and as much of their context."""
    attention_width: Positive = 128
    regressor_width: Positive = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Before the last layer."""
    reach: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Segments over which the weight of a neighbour falls to 1 / e."""
    regressor_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 5.0
    """Learning rate of the regressor, in multiples of the rest's."""
    start_at_mean: bool = True
    """The last bias starts at the labelled mean (ours); False starts it at random."""


class ActionNet(nn.Module):
    """Context-aware attention over the segments of a video."""

    Config = ActionNetConfig

    def __init__(self, inputs: Inputs, config: ActionNetConfig = ActionNetConfig()) -> None:
        super().__init__()
        self.config, self.top = config, inputs.scale.top
        channels, width = sum(inputs.widths.values()), config.width
        self.embedding = mlp(channels, max(channels // 2, 1), width)
        self.graph = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.attention = mlp(2 * width, config.attention_width, 1)
        start = logit(inputs.scale.mean / inputs.scale.top) if config.start_at_mean else None
        hidden, last = mlp(2 * width, config.regressor_width, 1, start=start)[::2]
        self.regressor = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(config.dropout), last)

    def parameter_groups(self) -> list[dict[str, Any]]:
        regressor = list(self.regressor.parameters())
        rest = [p for part in (self.embedding, self.graph, self.attention) for p in part.parameters()]
        return [{"params": rest}, {"params": regressor, "lr_scale": self.config.regressor_lr}]

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return self.part_of_top(batch) * self.top

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """The error on the scale 0 … 1, as the authors'."""
        return {"score": F.mse_loss(self.part_of_top(labelled), labelled.scores / self.top)}

    def part_of_top(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores on the scale 0 … 1."""
        x, present = F.relu(self.embedding(segments_of(batch))), batch.present
        near = neighbours(x.shape[1], self.config.reach, present, x)
        context = x
        for layer in self.graph:
            context = F.relu(layer(near @ context))
        both = torch.cat([x, context], dim=-1)
        logits = self.attention(both).squeeze(-1)
        weights = (logits if present is None else logits.masked_fill(~present, -torch.inf)).softmax(dim=1)
        return self.regressor((weights.unsqueeze(-1) * both).sum(dim=1)).squeeze(-1).sigmoid()


def neighbours(
    time: int, reach: float, present: Bool[Tensor, "batch time"] | None, like: Tensor
) -> Float[Tensor, "_ time time"]:
    """The fixed graph: exp(−|i − j| / reach), divided by the roots of both ends' sums; of present segments alone."""
    at = torch.arange(time, dtype=like.dtype, device=like.device)
    weight = torch.exp(-(at[:, None] - at).abs() / reach).unsqueeze(0)
    if present is not None:
        weight = weight * (present[:, :, None] & present[:, None, :])
    root = weight.sum(dim=-1).clamp(min=1e-12).rsqrt()
    return root[:, :, None] * weight * root[:, None, :]
