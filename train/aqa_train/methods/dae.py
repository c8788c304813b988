"""DAE: the score as a normal distribution, whose width is the network's uncertainty.

Zhang et al.: Auto-Encoding Score Distribution Regression for Action Quality Assessment. Neural Computing and
Applications 2023, arXiv:2111.11029. Code: github.com/Luciferbobo/DAE-AQA, which trains I3D too, learns from the squared
error of one draw of the distribution, and also tests such a draw. Choices of ours are marked (ours).

    features → mean over segments → 1024 → 256 → 128 → μ, log σ² → likelihood of the label
                                                       μ is the score; μ + σ ε a draw of it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.batch import Batch, Inputs
from aqa_train.draws import randn_like
from aqa_train.layers import mean_feature, mlp
from aqa_train.methods.mean_mlp import Widths

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class DAEConfig:
    """Settings of DAE."""

    likelihood_weight: NotNegative = 1.0
    """Of the negative logarithm of the label's likelihood (ours: the paper adds two terms by .6 and .4, which the
    released code does not have)."""
    draw_weight: NotNegative = 0.0
    """Of the squared error of one draw, the loss of the released code (ours: off)."""
    widths: Widths = (256, 128)
    """Hidden widths."""
    start_at_mean: bool = True
    """μ's bias starts at the labelled mean (ours); False starts it at random."""


class DAE(nn.Module):
    """A mean and a variance for every video."""

    Config = DAEConfig
    together = True

    def __init__(self, inputs: Inputs, config: DAEConfig = DAEConfig()) -> None:
        super().__init__()
        self.config = config
        self.hidden = nn.Sequential(mlp(sum(inputs.widths.values()), *config.widths), nn.ReLU())
        self.mean = mlp(config.widths[-1], 1, start=inputs.scale.mean if config.start_at_mean else None)
        self.log_variance = nn.Linear(config.widths[-1], 1)

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units: μ, which depends on no draw."""
        return self.distribution(batch)[0]

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        mean, log_variance = self.distribution(labelled)
        draw = mean + (log_variance / 2).exp() * randn_like(mean)
        terms = {
            "likelihood": negative_log_likelihood(mean, log_variance, labelled.scores),
            "draw": F.mse_loss(draw, labelled.scores),
        }
        return {name: term for name, term in terms.items() if getattr(self.config, f"{name}_weight") > 0}

    has_uncertainty = True

    def uncertainty(self, batch: Batch) -> Float[Tensor, "batch"]:
        """σ in training units."""
        return (self.distribution(batch)[1] / 2).exp()

    def distribution(self, batch: Batch) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """μ and log σ² in training units; σ within e^±4, so that no loss overflows (ours)."""
        hidden = self.hidden(mean_feature(batch))
        return self.mean(hidden).squeeze(-1), self.log_variance(hidden).squeeze(-1).clamp(-8, 8)


def negative_log_likelihood(
    mean: Float[Tensor, "batch"], log_variance: Float[Tensor, "batch"], scores: Float[Tensor, "batch"]
) -> Float[Tensor, ""]:
    """Of normal distributions, without the constant log 2π / 2."""
    return ((mean - scores).square() * (-log_variance).exp() + log_variance).mean() / 2
