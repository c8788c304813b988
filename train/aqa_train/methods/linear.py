"""Ridge and linear support vector regression on one vector per video, its mean feature; without gradients.

    features → mean over segments → z-score → weights · x + level → score

They learn everything in `prepare`, from labelled videos, and keep it in buffers, so that they are saved and used like
networks. Both are scikit-learn's; cross-validation in `prepare` chooses the strength or the penalty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from aqa_train.batch import Batch, Inputs
from aqa_train.layers import mean_feature
from aqa_train.pool import Pool


class _Linear(nn.Module, ABC):
    """A straight line through mean features."""

    Config: Any
    weights: Tensor
    level: Tensor

    def __init__(self, inputs: Inputs, config: Any = None) -> None:
        super().__init__()
        self.config = config or self.Config()
        self.register_buffer("weights", torch.zeros(sum(inputs.widths.values()), dtype=torch.float64))
        self.register_buffer("level", torch.zeros((), dtype=torch.float64))

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return mean_feature(batch).double() @ self.weights + self.level

    def prepare(self, pool: Pool) -> None:
        x = torch.cat([mean_feature(b) for b in pool.labelled.batches()]).double().cpu().numpy()
        weights, level = self.line(x, pool.labelled.known)
        self.weights.copy_(torch.as_tensor(weights))
        self.level.fill_(float(level))

    @abstractmethod
    def line(self, x: Any, scores: Any) -> tuple[Any, float]:
        """Weights and level from mean features (videos, channels) and scores (videos,)."""


@dataclass(frozen=True)
class RidgeConfig:
    """Settings of ridge."""

    strengths: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = tuple(
        float(f"{s:.4g}") for s in np.logspace(-3, 4, 15)
    )
    """Among which leave-one-out on the labelled videos chooses (ours)."""


class Ridge(_Linear):
    """Ridge regression on mean features as they are."""

    Config = RidgeConfig

    def line(self, x: Any, scores: Any) -> tuple[Any, float]:
        from sklearn.linear_model import RidgeCV

        model = RidgeCV(self.config.strengths).fit(x, scores)
        return model.coef_, model.intercept_


@dataclass(frozen=True)
class SVRConfig:
    """Settings of SVR."""

    penalties: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = (
        1e-3, 1e-2, 1e-1, 1.0, 10.0,
    )  # fmt: skip
    """C, among which cross-validation on the labelled videos chooses (ours)."""
    epsilon: Annotated[float, Field(ge=0)] = 0.1
    """Errors up to this count nothing, in units of the scores' deviation (ours)."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Of that cross-validation, at most as many as there are videos (ours)."""


class SVR(_Linear):
    """Linear support vector regression (libsvm) on z-scored mean features: the baseline of S4AQA's tables."""

    Config = SVRConfig

    def line(self, x: Any, scores: Any) -> tuple[Any, float]:
        from sklearn.model_selection import GridSearchCV, KFold
        from sklearn.svm import SVR as LibSVM

        shift, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale < 1e-6] = 1.0
        middle, wide = scores.mean(), scores.std()
        folds = KFold(min(self.config.folds, len(x)))
        search = GridSearchCV(
            LibSVM(kernel="linear", epsilon=self.config.epsilon),
            {"C": list(self.config.penalties)},
            scoring="neg_mean_absolute_error",
            cv=folds,
        ).fit((x - shift) / scale, (scores - middle) / wide)
        best = search.best_estimator_
        weights = best.coef_[0] * wide / scale
        return weights, best.intercept_[0] * wide + middle - weights @ shift
