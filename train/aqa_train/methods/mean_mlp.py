"""I3D+MLP: a small regression head on a video's mean feature, the simplest network in the comparisons.

A row of CoRe's tables (Yu et al., ICCV 2021, arXiv:2108.07797) and of SAP-Net's. Neither states the widths; these are
USDL's (ours).

    features → mean over segments → 1024 → 256 → 128 → 1 → score
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.batch import Batch, Inputs
from aqa_train.layers import mean_feature, mlp

Widths = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]


@dataclass(frozen=True)
class MeanMLPConfig:
    """Settings of I3D+MLP."""

    widths: Widths = (256, 128)
    """Hidden widths (ours)."""
    start_at_mean: bool = True
    """The last bias starts at the labelled mean (ours); False starts it at random."""


class MeanMLP(nn.Module):
    """Three fully connected layers on the mean feature."""

    Config = MeanMLPConfig
    together = True

    def __init__(self, inputs: Inputs, config: MeanMLPConfig = MeanMLPConfig()) -> None:
        super().__init__()
        self.config = config
        start = inputs.scale.mean if config.start_at_mean else None
        self.head = mlp(sum(inputs.widths.values()), *config.widths, 1, start=start)

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return self.head(mean_feature(batch)).squeeze(-1)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        return {"score": F.mse_loss(self(labelled), labelled.scores)}
