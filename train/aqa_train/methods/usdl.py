"""USDL and MUSDL learn a distribution instead of a number: over the final score, or over each judge's mark.

Tang et al.: Uncertainty-Aware Score Distribution Learning for Action Quality Assessment. CVPR 2020, arXiv:2006.07665.
Code: github.com/nzl-thu/MUSDL, which trains I3D too; here features are frozen.

    features → mean over segments → 1024 → 256 → 128 → bins, softmax → its highest bin → score          USDL
    features → mean over segments → one such head per judge → highest bins → marks                      MUSDL
               marks → without the `drop` highest and lowest → sum → × difficulty → score

The target is a normal distribution around the label; the loss is the Kullback-Leibler divergence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_shared.records import Finite
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import mean_feature, mlp, refuse_unknown
from aqa_train.methods.mean_mlp import Widths
from aqa_train.pool import Pool

Decoding = Literal["argmax", "expectation"]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class USDLConfig:
    """Settings of USDL; the values are the authors' for MTL-AQA. On JIGSAWS they took bins = 25 and sigma = 1."""

    bins: Annotated[int, Field(ge=2)] = 101
    """Number of bins, from the lowest to the highest score of the scale."""
    sigma: Above = 5.0
    """Standard deviation of the target around a label, in bins."""
    decoding: Decoding = "argmax"
    """The likeliest bin is the score; `expectation` (ours) takes the mean, which has no ties."""
    widths: Widths = (256, 128)
    """Hidden widths."""
    start_at_mean: bool = True
    """The last biases start as a normal distribution around the labelled mean, a quarter of the scale wide (ours);
    False starts them at random."""


class USDL(nn.Module):
    """One distribution over the final score."""

    Config = USDLConfig
    together = True

    def __init__(self, inputs: Inputs, config: USDLConfig = USDLConfig()) -> None:
        super().__init__()
        self.config = config
        self.step = inputs.scale.top / (config.bins - 1)
        middle = torch.tensor(inputs.scale.mean / self.step)
        start = log_density(middle, config.bins, config.bins / 4) if config.start_at_mean else None
        self.head = mlp(sum(inputs.widths.values()), *config.widths, config.bins, start=start)

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return decode(self.head(mean_feature(batch)), self.config.decoding) * self.step

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        target = soft_label(labelled.scores / self.step, self.config.bins, self.config.sigma)
        return {"distribution": divergence(self.head(mean_feature(labelled)), target)}


@dataclass(frozen=True)
class MUSDLConfig:
    """Settings of MUSDL; the values are the authors' for MTL-AQA."""

    bins: Annotated[int, Field(ge=2)] = 21
    """Number of bins for a mark, from `lowest` to `highest`."""
    sigma: Above = 5.0
    """Standard deviation of the target around a mark, in bins."""
    lowest: Finite = 0.0
    """Mark of the first bin."""
    highest: Finite = 10.0
    """Mark of the last bin."""
    drop: Annotated[int, Field(ge=0)] = 2
    """How many of the highest, and of the lowest, marks do not count: of seven, two and two."""
    decoding: Decoding = "argmax"
    """The likeliest bin is the mark; `expectation` (ours) takes the mean, which has no ties."""
    widths: Widths = (256, 128)
    """Hidden widths of every judge's head."""


class MUSDL(nn.Module):
    """One distribution a judge, and the sport's rule."""

    Config = MUSDLConfig
    together = True

    def __init__(self, inputs: Inputs, config: MUSDLConfig = MUSDLConfig()) -> None:
        super().__init__()
        self.config, self.scale = config, inputs.scale
        (self.marks,) = [name for name, column in inputs.columns.items() if column.label]
        self.by_difficulty = "difficulty" in inputs.columns
        judges = inputs.columns[self.marks].width
        if judges <= 2 * config.drop:
            raise UsageError(
                f"videos have {counted(judges, 'mark')} in {self.marks}: without the {config.drop} highest and the "
                f"{config.drop} lowest none is left",
                fix=f"correct the column, or set drop to at most {max(judges - 1, 0) // 2}",
            )
        if config.highest <= config.lowest:
            raise UsageError(f"marks from {config.lowest:g} to {config.highest:g}: the highest must be greater")
        width = sum(inputs.widths.values())
        self.judges = nn.ModuleList(mlp(width, *config.widths, config.bins) for _ in range(judges))

    def prepare(self, pool: Pool) -> None:
        """Nothing is kept: marks that are missing or out of range are said before the training."""
        for batch in pool.labelled.batches():
            refuse_unknown(batch, self.marks)
            marks = batch.columns[self.marks]
            outside = ((marks < self.config.lowest) | (marks > self.config.highest)).any(dim=1).nonzero().flatten()
            if len(outside):
                raise UsageError(
                    f"{batch.ids[int(outside[0])]} has the {self.marks} "
                    f"{', '.join(f'{m:g}' for m in marks[outside[0]].tolist())}, not all within "
                    f"{self.config.lowest:g} … {self.config.highest:g}",
                    fix="correct them, or set lowest and highest",
                )

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units, by the rule of the sport."""
        config, scale = self.config, self.scale
        size = (config.highest - config.lowest) / (config.bins - 1)
        marks = torch.stack([decode(x, config.decoding) for x in self.logits(batch)], dim=1) * size + config.lowest
        score = by_rule(marks, config.drop)
        if self.by_difficulty:
            refuse_unknown(batch, "difficulty")
            score = score * batch.columns["difficulty"]
        return (score - scale.low) * (scale.top / (scale.high - scale.low))

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """One term, the sum over judges."""
        config = self.config
        place = (labelled.columns[self.marks] - config.lowest) * ((config.bins - 1) / (config.highest - config.lowest))
        targets = soft_label(place, config.bins, config.sigma).unbind(dim=1)
        terms = [divergence(x, t) for x, t in zip(self.logits(labelled), targets, strict=True)]
        return {"distribution": torch.stack(terms).sum()}

    def logits(self, batch: Batch) -> list[Float[Tensor, "batch bins"]]:
        """Of every judge's distribution."""
        x = mean_feature(batch)
        return [head(x) for head in self.judges]


def log_density(place: Float[Tensor, "*shape"], bins: int, sigma: float) -> Float[Tensor, "*shape bins"]:
    """Logarithm of a normal density at 0 … bins − 1, up to a constant; `place` and `sigma` in bins."""
    at = torch.arange(bins, dtype=place.dtype, device=place.device)
    return -((at - place.unsqueeze(-1)) / sigma).square() / 2


def soft_label(place: Float[Tensor, "*shape"], bins: int, sigma: float) -> Float[Tensor, "*shape bins"]:
    """The normal distribution around `place`, divided by its sum over the bins (equations 1 and 2)."""
    return log_density(place, bins, sigma).softmax(dim=-1)


def divergence(logits: Float[Tensor, "batch bins"], target: Float[Tensor, "batch bins"]) -> Float[Tensor, ""]:
    """Kullback-Leibler divergence (equation 4), averaged over videos and bins as the authors' code does."""
    # As F.kl_div, which torch.func.vmap does one by one.
    return (torch.xlogy(target, target) - target * logits.log_softmax(dim=-1)).mean()


def decode(logits: Float[Tensor, "batch bins"], how: Decoding) -> Float[Tensor, "batch"]:
    """From a distribution to a place among the bins."""
    if how == "argmax":
        # What is not a number must be seen in the score, and argmax alone would hide it.
        return logits.argmax(dim=-1).to(logits.dtype) + 0.0 * logits.detach().sum(dim=-1)
    return logits.softmax(dim=-1) @ torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)


def by_rule(marks: Float[Tensor, "batch judges"], drop: int) -> Float[Tensor, "batch"]:
    """Sum of the marks without the `drop` highest and lowest; NaN where any mark is."""
    return marks.sort(dim=1).values[:, drop : marks.shape[1] - drop].sum(dim=1) + 0.0 * marks.detach().sum(dim=1)
