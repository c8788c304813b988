"""Mean Teacher: a student learns to agree with its own moving average, on all videos.

Tarvainen and Valpola: Mean teachers are better role models. NeurIPS 2017, arXiv:1703.01780. The paper classifies
images; here encoder and regressor are S4AQA's AA, as for all semi-supervised baselines in S4AQA. What the paper leaves
to the task is marked (ours).

    features + noise → student → score ──── labels
                          ↓ ╲
          moving average  ↓  agree (unlabelled and labelled)
                          ↓ ╱
    features + noise → teacher → score, the prediction
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.batch import Batch, Inputs, join
from aqa_train.layers import add_noise, follow
from aqa_train.methods.s4aqa import AA, AAConfig, NotNegative
from aqa_train.pool import Pool


@dataclass(frozen=True)
class MeanTeacherConfig(AAConfig):
    """Settings of Mean Teacher, and of AA's encoder and regressor."""

    consistency_weight: NotNegative = 1.0
    """Of the agreement, once it has grown to its full weight (ours)."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """α: what the teacher keeps of itself at every step (section 3.2); at first less, 1 − 1 / (step + 1)."""
    rampup: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the epochs over which the agreement grows, by exp(−5 (1 − x)²) (section 3)."""
    noise: NotNegative = 0.1
    """Deviation of the noise that student and teacher see, each its own, relative to a feature's (ours)."""


class MeanTeacher(nn.Module):
    """A student that is trained, and a teacher that is its moving average and predicts."""

    Config = MeanTeacherConfig
    together = True
    ramp: Tensor
    steps: Tensor

    def __init__(self, inputs: Inputs, config: MeanTeacherConfig = MeanTeacherConfig()) -> None:
        super().__init__()
        self.config = config
        self.student = AA(inputs, config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("ramp", torch.tensor(0.0))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """The teacher's scores, in training units."""
        scores: Tensor = self.teacher(batch)
        return scores

    def begin_epoch(self, pool: Pool) -> None:
        grown = min(1.0, pool.epoch / max(self.config.rampup * pool.epochs, 1e-9))
        self.ramp.fill_(math.exp(-5 * (1 - grown) ** 2))

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms: the labels', and the agreement on all videos (equation 1)."""
        everything = join([labelled, unlabelled])
        student = self.student(add_noise(everything, self.config.noise))
        with torch.no_grad():
            teacher = self.teacher(add_noise(everything, self.config.noise))
        return {
            "score": F.mse_loss(student[: len(labelled)], labelled.scores),
            "consistency": self.ramp * F.mse_loss(student, teacher),
        }

    def after_step(self) -> None:
        """The teacher follows (equation 2), in its batch statistics too."""
        self.steps += 1
        follow(self.teacher, self.student, self.config.decay, float(self.steps))
