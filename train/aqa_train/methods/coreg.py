"""COREG: two nearest-neighbour regressors with different distances label unlabelled videos for each other.

Zhou and Li: Semi-supervised Regression with Co-training. IJCAI 2005; settings as in github.com/nealjean/coreg, on mean
features as in S4AQA (section IV-A). There are no gradients: everything is learned in `prepare`.

    mean feature → the 3 nearest by Minkowski 2 ─┐
                                                 ├─ mean → score
    mean feature → the 3 nearest by Minkowski 5 ─┘

In every round each regressor labels a pool of unlabelled videos. It passes one of them, with its label, to the *other*
regressor: the video that most improves its own regression of that video's labelled neighbours. Training ends when
neither finds such a video. The public code passes on the true score, as if it were known; here it is the predicted one
(algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import mean_feature
from aqa_train.methods.s4aqa import refuse_none
from aqa_train.pool import Pool

Count = Annotated[int, Field(ge=1)]
Power = Annotated[float, Field(ge=1)]


@dataclass(frozen=True)
class COREGConfig:
    """Settings of COREG; all are the public code's."""

    k: Count = 3
    """Neighbours of both regressors."""
    powers: tuple[Power, Power] = (2.0, 5.0)
    """Of their Minkowski distances."""
    rounds: Annotated[int, Field(ge=0)] = 99
    """At most; the code counts from 1 to below 100."""
    pool: Count = 100
    """Unlabelled videos tried in a round, drawn again for each."""


class COREG(nn.Module):
    """Two sets of scored videos, and what their nearest say."""

    Config = COREGConfig
    x: Tensor
    scores: Tensor

    def __init__(self, inputs: Inputs, config: COREGConfig = COREGConfig()) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("x", torch.zeros(0, sum(inputs.widths.values())))
        self.register_buffer("scores", torch.zeros(2, 0, dtype=torch.float64))

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        x = mean_feature(batch)
        told = [
            _nearest(_distance(x, self.x, power).masked_fill(scores.isnan(), torch.inf), scores, self.config.k)
            for power, scores in zip(self.config.powers, self.scores, strict=True)
        ]
        return (told[0] + told[1]) / 2

    def prepare(self, pool: Pool) -> None:
        refuse_none(pool.unlabelled)
        labelled = len(pool.labelled)
        if self.config.k > labelled:
            raise UsageError(
                f"the {self.config.k} nearest of {labelled} labelled videos are asked for",
                fix=f"--set k={labelled} or less, or score more videos",
            )
        x = torch.cat([mean_feature(b) for part in (pool.labelled, pool.unlabelled) for b in part.batches()])
        # Of all videos to those that have a score, and not to all: that would be the square of their number.
        far = [lambda to, power=power: _distance(x, x[to], power) for power in self.config.powers]
        known = torch.as_tensor(pool.labelled.known, device=x.device)
        scores = co_train(far, known, len(x), self.config.k, self.config.rounds, self.config.pool, pool.rng)
        used = ~scores.isnan().all(dim=0)
        self.x, self.scores = x[used], scores[:, used]


Far = Callable[[Int[Tensor, "some"]], Float[Tensor, "videos some"]]
"""Distances of all videos to some."""


@dataclass
class Learner:
    """A nearest-neighbour regressor while it learns."""

    far: Far
    own: Int[Tensor, "own"]
    """Videos that it has a score of."""
    scores: Float[Tensor, "own"]
    to_own: Float[Tensor, "videos own"]
    """Distances of all videos to these; a column is computed once."""

    @classmethod
    def of(cls, far: Far, known: Float[Tensor, "labelled"]) -> Learner:
        own = torch.arange(len(known), device=known.device)
        return cls(far, own, known, far(own))

    def learn(self, video: int, score: float) -> None:
        new = torch.tensor([video], device=self.own.device)
        self.own = torch.cat([self.own, new])
        self.scores = torch.cat([self.scores, self.scores.new_tensor([score])])
        self.to_own = torch.cat([self.to_own, self.far(new)], dim=1)


def co_train(
    far: Sequence[Far],
    known: Float[Tensor, "labelled"],
    videos: int,
    k: int,
    rounds: int,
    pool: int,
    rng: np.random.Generator,
) -> Float[Tensor, "2 videos"]:
    """Scores that either regressor learned, NaN where it learned none, by the distances of each.

    The labelled videos come first of the `videos`, unlabelled ones behind them.
    """
    learners = [Learner.of(f, known.double()) for f in far]
    left = np.arange(len(known), videos)
    for _ in range(rounds):
        if not len(left):
            break
        tried = torch.as_tensor(rng.permutation(left)[:pool], device=known.device)
        chosen = [best(learner, tried, k) for learner in learners]
        for other, found in zip(reversed(learners), chosen, strict=True):
            if found is not None:
                other.learn(*found)
        if chosen == [None, None]:
            break
        left = np.setdiff1d(left, [found[0] for found in chosen if found is not None])
    scores = known.new_full((2, videos), torch.nan, dtype=torch.float64)
    for row, learner in zip(scores, learners, strict=True):
        row[learner.own] = learner.scores
    return scores


def best(learner: Learner, tried: Int[Tensor, "tried"], k: int) -> tuple[int, float] | None:
    """The video among `tried` whose label lowers the squared error of its neighbours most, with its label.

    None where none lowers it. A labelled video counts among its own neighbours, as in the public code.
    """
    y = learner.scores
    near = learner.to_own[learner.own].topk(k, dim=1, largest=False)
    said = y[near.indices].mean(dim=1)
    # What a new video nearer than the k-th neighbour pushes out.
    edge, pushed = near.values[:, -1], y[near.indices[:, -1]]

    around = learner.to_own[tried].topk(k, dim=1, largest=False)
    label = y[around.indices].mean(dim=1)
    enters = around.values < edge[around.indices]
    after = said[around.indices] + enters * (label[:, None] - pushed[around.indices]) / k
    error = (y - said).square()[around.indices]
    # Often two videos have the same neighbours: of equal gains, except for rounding, the first drawn is taken.
    gain = (error - (y[around.indices] - after).square()).sum(dim=1).round(decimals=9)
    at = int(gain.argmax())
    return (int(tried[at]), float(label[at])) if gain[at] > 0 else None


def _distance(x: Tensor, y: Tensor, power: float) -> Float[Tensor, "_ _"]:
    """Minkowski distances, each pair for itself, so that they do not depend on what else is asked."""
    return torch.cdist(x.double(), y.double(), p=power, compute_mode="donot_use_mm_for_euclid_dist")


def _nearest(far: Float[Tensor, "batch videos"], scores: Float[Tensor, "videos"], k: int) -> Float[Tensor, "batch"]:
    return scores[far.topk(k, dim=1, largest=False).indices].mean(dim=1)
