"""TRS: a student learns from labels, and from the most certain predictions so far of a teacher and a reference.

Yun, Qi, Peng, Ma: Semi-Supervised Teacher-Reference-Student Architecture for Action Quality Assessment. ECCV 2024,
arXiv:2407.19675. github.com/wuli55555/TRS outlines the networks but not the training, so this is a reconstruction. It
has frozen features and S4AQA's encoder and regressor, instead of I3D and an MLP-Mixer. Choices of ours are marked
(ours).

    labelled, unlabelled  → E → R → score, σ²                     the student, which predicts
             moving average of E and R → score, σ² ─────┐         the teacher
             its f beside a labelled f → difference, σ² ┴→ memory of the least σ² → the student's labels
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.batch import Batch, Inputs, join
from aqa_train.layers import follow, mlp
from aqa_train.methods.s4aqa import AA, AAConfig, NotNegative, refuse_none
from aqa_train.pool import Pool


@dataclass(frozen=True)
class TRSConfig(AAConfig):
    """Settings of TRS, and of AA's encoder and regressor."""

    relative_weight: NotNegative = 1.0
    """Of the reference's score differences between labelled videos (ours)."""
    pseudo_weight: NotNegative = 1.0
    """Of the remembered labels of unlabelled videos (ours)."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """What the teacher keeps of itself at every step; at first less, 1 − 1 / (step + 1) (ours)."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the epochs that learn from labelled videos alone; then remembering begins (ours)."""


class _Scorer(AA):
    """E and R, and how far R may be off: log σ² of a normal distribution around the score (ours)."""

    def __init__(self, inputs: Inputs, config: TRSConfig) -> None:
        super().__init__(inputs, config)
        self.doubt = mlp(self.width * len(inputs.widths), config.regressor_width, 1, start=0.0)

    def encode(self, batch: Batch) -> Float[Tensor, "batch width"]:
        return torch.cat(self.summaries(batch.streams, batch.present), dim=-1)

    def told(self, f: Float[Tensor, "batch width"]) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """Scores and their variances."""
        return self.regress([f]), variance(self.doubt(f).squeeze(-1))


class TRS(nn.Module):
    """Student, teacher and reference, and what is remembered of every unlabelled video."""

    Config = TRSConfig
    rows: Tensor
    labels: Tensor
    variances: Tensor
    steps: Tensor

    def __init__(self, inputs: Inputs, config: TRSConfig = TRSConfig()) -> None:
        super().__init__()
        self.config = config
        self.student = _Scorer(inputs, config)
        self.reference = mlp(2 * self.student.width * len(inputs.widths), config.regressor_width, 2, start=0.0)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("rows", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("labels", torch.zeros(2, 0, dtype=torch.float64))
        self.register_buffer("variances", torch.zeros(2, 0, dtype=torch.float64))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """The student's scores, in training units."""
        scores: Tensor = self.student(batch)
        return scores

    def begin_epoch(self, pool: Pool) -> None:
        """Room to remember, once the warm-up is over."""
        if pool.epoch >= round(self.config.warmup * pool.epochs) and not len(self.rows):
            self.rows = torch.as_tensor(pool.unlabelled.rows, device=self.steps.device)
            self.labels = self.labels.new_zeros(2, len(self.rows))
            self.variances = self.variances.new_full((2, len(self.rows)), torch.inf)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms: labels of scores and of their differences, and after the warm-up what is remembered."""
        refuse_none(unlabelled)
        f = self.student.encode(join([labelled, unlabelled]))
        score, spread = self.student.told(f)
        known, others = f[: len(labelled)], torch.randperm(len(labelled), device=f.device)
        apart = labelled.scores - labelled.scores[others]
        there, back = self.difference(known, known[others]), self.difference(known[others], known)
        terms = {
            "score": F.gaussian_nll_loss(score[: len(labelled)], labelled.scores, spread[: len(labelled)]),
            "relative": (F.gaussian_nll_loss(there[0], apart, there[1]) + F.gaussian_nll_loss(back[0], -apart, back[1]))
            / 2,
        }
        if len(self.rows):
            terms["pseudo"] = F.mse_loss(score[len(labelled) :], self.remembered(labelled, unlabelled))
        return terms

    def difference(
        self, f: Float[Tensor, "*batch width"], other: Float[Tensor, "*batch width"]
    ) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """By how much the first scores higher, and the variance of that."""
        said = self.reference(torch.cat([f, other], dim=-1))
        return said[..., 0], variance(said[..., 1])

    @torch.no_grad()
    def remembered(self, labelled: Batch, unlabelled: Batch) -> Float[Tensor, "unlabelled"]:
        """Labels of the teacher and the reference, each the surest it ever gave, averaged by 1 / σ² (ours)."""
        self.teacher.eval()
        f, known = self.teacher.encode(unlabelled), self.teacher.encode(labelled)
        pairs = (len(unlabelled), len(labelled), f.shape[-1])
        apart, doubt = self.difference(f[:, None].expand(pairs), known.expand(pairs))
        score, spread = self.teacher.told(f)
        labels = torch.stack([score, (labelled.scores + apart).mean(dim=1)]).double()
        variances = torch.stack([spread, doubt.mean(dim=1)]).double()

        assert unlabelled.rows is not None
        at = torch.searchsorted(self.rows, unlabelled.rows)
        surer = variances < self.variances[:, at]
        self.labels[:, at] = torch.where(surer, labels, self.labels[:, at])
        self.variances[:, at] = torch.where(surer, variances, self.variances[:, at])
        weights = 1 / self.variances[:, at]
        return ((weights * self.labels[:, at]).sum(dim=0) / weights.sum(dim=0)).to(f.dtype)

    def after_step(self) -> None:
        """The teacher follows the student, in its batch statistics too."""
        self.steps += 1
        follow(self.teacher, self.student, self.config.decay, float(self.steps))


def variance(doubt: Tensor) -> Tensor:
    """σ² of log σ², kept between e⁻⁵ and e⁵, so that no video is ever beyond doubt (ours)."""
    return doubt.clamp(-5, 5).exp()
