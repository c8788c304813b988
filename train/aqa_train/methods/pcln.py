"""PCLN: the differences of regressed scores agree with those that a second network predicts for every pair.

Li, Zhang, Lei, Fan, Liu, Du: Pairwise Contrastive Learning Network for Action Quality Assessment. ECCV 2022,
doi:10.1007/978-3-031-19772-7_27. Code: github.com/hqu-cst-mmc/PCLN. It reads ResNet-50 features of 160 pictures; here
features are those of segments. Choices of ours are marked (ours).

    features → two layers, each halves time → e → fully connected → score ─────────────── label
                                              │                       │ difference ─ agree ─┐
    every pair of a batch: e_i, e_j → products of their channels ─→ two convolutions → absolute difference ─ labels'

Prediction needs only the first line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import Quality, logit, mlp, segments_of
from aqa_train.methods.s4aqa import NotNegative, Positive, Probability
from aqa_train.methods.sub_actions import resample
from aqa_train.pool import Pool


@dataclass(frozen=True)
class PCLNConfig:
    """Settings of PCLN; the values are those of the authors' code for AQA-7."""

    pair_weight: NotNegative = 1.0
    """Of the pairs' differences being the labels'."""
    consistency_weight: NotNegative = 1.0
    """Of the differences of the scores being those of the pairs."""
    difficulty: bool = False
    """What is learned is the score divided by difficulty, as the authors do on MTL-AQA."""
    quality_max: NotNegative = 0.0
    """The best score divided by difficulty, which is 1 in the losses: 30 in diving. 0: the best labelled one (ours)."""
    encoder: tuple[Positive, Positive] = (256, 512)
    """Widths of the two layers, each of which takes the larger of two successive segments."""
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (4096, 2048)
    """Hidden widths of the regressor."""
    joint: Annotated[int, Field(ge=32, multiple_of=32)] = 256
    """Channels of a video, each of which is multiplied with each channel of the other video."""
    dropout: Probability = 0.3
    """Of whole segments, after each of the two layers."""
    start_at_mean: bool = True
    """The last bias starts at the labelled mean (ours); False starts it at random."""


class PCLN(nn.Module):
    """A regressor, and a network that compares pairs while training."""

    Config = PCLNConfig

    def __init__(self, inputs: Inputs, config: PCLNConfig = PCLNConfig()) -> None:
        super().__init__()
        self.config, self.top, self.segments = config, inputs.scale.top, inputs.segments
        self.quality = Quality(inputs.scale, config.difficulty, config.quality_max)
        first, second = config.encoder
        self.encoder = nn.ModuleList([nn.Linear(sum(inputs.widths.values()), first), nn.Linear(first, second)])
        length = -(-inputs.segments // 4)
        self.regressor = mlp(length * second, *config.widths, 1)
        self.joint = nn.Linear(second, config.joint)
        self.compare = nn.ModuleList([nn.Conv2d(2 * config.joint, 32, 1), nn.Conv2d(32, 8, 1)])
        self.difference = mlp(config.joint // 4, 32, 8, 1)

    def prepare(self, pool: Pool) -> None:
        """The scale of scores, and where the output starts."""
        labelled = pool.labelled.without_features()
        if len(labelled) < 2:
            raise UsageError(
                f"PCLN compares labelled videos, and there is {len(labelled)}", fix="label two videos or more"
            )
        self.quality.fit(labelled)
        if self.config.start_at_mean:
            mean = self.quality.to_value(labelled.scores, labelled).mean() / self.top
            self.regressor[-1].bias.fill_(logit(float(mean)))  # type: ignore[operator]

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return self.quality.to_score(self.score(self.encode(batch)) * self.top, batch)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms on the scale 0 … 1, of labelled videos and all pairs of them."""
        target = self.quality.to_value(labelled.scores, labelled) / self.top
        encoded = self.encode(labelled)
        score = self.score(encoded)
        terms = {"score": F.mse_loss(score, target)}
        if self.config.pair_weight > 0 or self.config.consistency_weight > 0:
            said = self.pairs(encoded)
            if self.config.pair_weight > 0:
                terms["pair"] = F.mse_loss(said, apart(target))
            if self.config.consistency_weight > 0:
                terms["consistency"] = F.mse_loss(apart(score), said)
        return terms

    def encode(self, batch: Batch) -> Float[Tensor, "batch quarter width"]:
        """A quarter as long; every video has as many segments as the longest (ours)."""
        x = resample(segments_of(batch), batch.present, self.segments)
        for layer in self.encoder:
            x = layer(x)
            keep = torch.ones_like(x[..., :1])
            x = F.relu(x * F.dropout(keep, self.config.dropout, self.training))
            # Of an odd number the last stays alone (ours); theirs are 160.
            x = F.max_pool1d(x.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)
        return x

    def score(self, encoded: Float[Tensor, "batch quarter width"]) -> Float[Tensor, "batch"]:
        """0 … 1."""
        scores: Tensor = self.regressor(encoded.transpose(1, 2).flatten(1)).squeeze(-1).sigmoid()
        return scores

    def pairs(self, encoded: Float[Tensor, "batch quarter width"]) -> Float[Tensor, "pairs"]:
        """By how much the videos of each pair differ, 0 … 1; in the order of `apart`."""
        x = self.joint(encoded)
        first, second = torch.triu_indices(len(x), len(x), 1, device=x.device)
        # How strongly each channel of one goes with each of the other, over time; as their code folds it.
        together = x[first].transpose(1, 2) @ x[second]
        together = together.reshape(len(first), 2 * self.config.joint, self.config.joint // 8, 4)
        for layer in self.compare:
            together = F.max_pool2d(layer(together), 2)
        said: Tensor = self.difference(together.flatten(1)).squeeze(-1).sigmoid()
        return said


def apart(scores: Float[Tensor, "batch"]) -> Float[Tensor, "pairs"]:
    """Absolute differences of all pairs: of the first and the others, of the second and those behind it, …"""
    first, second = torch.triu_indices(len(scores), len(scores), 1, device=scores.device)
    return (scores[first] - scores[second]).abs()
