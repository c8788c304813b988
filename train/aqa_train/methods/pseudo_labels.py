"""Pseudo-labels: the target of an unlabelled video is the mean score of the labelled videos nearest to it.

A baseline of S4AQA (Zhang et al., TCSVT 2022), after Hou et al., Semi-supervised Adaptive Label Distribution Learning
for Facial Age Estimation, AAAI 2017: nearest neighbours in the embedding, and a weight of 0.5. Encoder and regressor
are S4AQA's AA; what neither paper states is marked (ours).

    labelled    → E → f → R → score ─── labels
                      ╲ the k nearest, once an epoch: their mean score
    unlabelled  → E → f → R → score ─── that mean
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs, join
from aqa_train.layers import mean_feature
from aqa_train.methods.s4aqa import AA, AAConfig, NotNegative, refuse_none
from aqa_train.pool import Pool, PoolPart


@dataclass(frozen=True)
class PseudoLabelsConfig(AAConfig):
    """Settings of pseudo-labels, and of AA's encoder and regressor."""

    pseudo_weight: NotNegative = 0.5
    """Of unlabelled videos (S4AQA, section IV-A)."""
    k: Annotated[int, Field(ge=1)] = 5
    """Labelled videos whose scores are averaged, each weighted by 1 / distance (ours)."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the epochs that learn from labelled videos alone: 50 of 1000 (ours)."""
    embedding: Literal["learned", "features"] = "learned"
    """Where distances are measured (ours): between the f of the epoch that begins, or between mean features."""


class PseudoLabels(AA):
    """AA with labels of its own making."""

    Config = PseudoLabelsConfig
    config: PseudoLabelsConfig
    rows: Tensor
    labels: Tensor

    def __init__(self, inputs: Inputs, config: PseudoLabelsConfig = PseudoLabelsConfig()) -> None:
        super().__init__(inputs, config)
        self.register_buffer("rows", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("labels", torch.zeros(0))

    def prepare(self, pool: Pool) -> None:
        if self.config.k > len(pool.labelled):
            raise UsageError(
                f"the {self.config.k} nearest of {len(pool.labelled)} labelled videos are asked for",
                fix=f"--set k={len(pool.labelled)} or less, or score more videos",
            )

    def begin_epoch(self, pool: Pool) -> None:
        """Labels of all unlabelled videos, once the warm-up is over."""
        if pool.epoch < round(self.config.warmup * pool.epochs) or not len(pool.unlabelled):
            return
        known, unknown = self._embedded(pool.labelled), self._embedded(pool.unlabelled)
        self.labels = nearest_mean(unknown, known, pool.labelled.scores, self.config.k)
        self.rows = torch.as_tensor(pool.unlabelled.rows, device=self.labels.device)

    def _embedded(self, part: PoolPart) -> Float[Tensor, "part width"]:
        if self.config.embedding == "features":
            return torch.cat([mean_feature(b) for b in part.batches()])
        return torch.cat([torch.cat(self.summaries(b.streams, b.present), dim=-1) for b in part.batches()])

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms: the labels', and after the warm-up the pseudo-labels'."""
        refuse_none(unlabelled)
        scores = self(join([labelled, unlabelled]))
        terms = {"score": F.mse_loss(scores[: len(labelled)], labelled.scores)}
        if len(self.rows):
            assert unlabelled.rows is not None
            labels = self.labels[torch.searchsorted(self.rows, unlabelled.rows)]
            terms["pseudo"] = F.mse_loss(scores[len(labelled) :], labels)
        return terms


def nearest_mean(
    x: Float[Tensor, "videos width"], known: Float[Tensor, "labelled width"], scores: Float[Tensor, "labelled"], k: int
) -> Float[Tensor, "videos"]:
    """Mean score of the `k` nearest, weighted by 1 / Euclidean distance."""
    far = torch.cdist(x, known, compute_mode="donot_use_mm_for_euclid_dist")
    near = far.topk(k, dim=1, largest=False)
    weights = 1 / near.values.clamp(min=1e-8)
    return (weights * scores[near.indices]).sum(dim=1) / weights.sum(dim=1)
