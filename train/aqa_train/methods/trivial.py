"""Baselines that do not look at the video: the mean score, chance, difficulty, duration, category.

Every method has to beat them. On MTL-AQA difficulty alone has a rank correlation of .56; on JIGSAWS knot tying,
duration alone .73; on FineDiving the mean of the category .59. That is as much as published methods with few labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from aqa_train.batch import Batch, Inputs
from aqa_train.pool import Pool


@dataclass(frozen=True)
class Nothing:
    """There is nothing to set."""


class Constant(nn.Module):
    """The mean labelled score for every video; it ranks nothing."""

    Config = Nothing
    level: Tensor

    def __init__(self, inputs: Inputs, config: Nothing = Nothing()) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("level", torch.zeros((), dtype=torch.float64))

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return self.level.expand(len(batch))

    def prepare(self, pool: Pool) -> None:
        self.level.fill_(float(pool.labelled.known.mean()))


class Random(nn.Module):
    """One of the labelled scores, drawn by the bits of a video's features: chance, but the same for the same video."""

    Config = Nothing
    levels: Tensor
    key: Tensor

    def __init__(self, inputs: Inputs, config: Nothing = Nothing()) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("levels", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("key", torch.randint(2**62, ()))

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        (features, *_) = batch.streams.values()
        # + 0: standardised, the zeros behind a shorter video may be -0, which is not all bits 0.
        bits = (features.flatten(2).float() + 0.0).contiguous().view(torch.int32).long()
        # Sums of integers are exact, so neither the batch nor the zeros behind a shorter video change the draw.
        places = torch.arange(bits[0].numel(), device=bits.device).view(bits.shape[1:])
        drawn = self.key + (bits * (2 * places + 1)).sum((1, 2))
        for factor in (0x2127599BF4325C37, 0x6C62272E07BB0142 | 1):  # spreads every bit over the upper ones
            drawn = (drawn ^ (drawn >> 32)) * factor
        return self.levels[(drawn >> 32) % len(self.levels)]

    def prepare(self, pool: Pool) -> None:
        self.levels = torch.as_tensor(pool.labelled.known, dtype=torch.float64, device=self.levels.device)


class Line(nn.Module):
    """A straight line through the one number that the row asks for; the mean score where a video lacks it."""

    Config = Nothing
    slope: Tensor
    level: Tensor
    middle: Tensor

    def __init__(self, inputs: Inputs, config: Nothing = Nothing()) -> None:
        super().__init__()
        self.config = config
        (self.column,) = inputs.columns
        for name in ("slope", "level", "middle"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        x = batch.columns[self.column].double()
        return torch.where(x.isnan(), self.level, self.level + self.slope * (x - self.middle))

    def prepare(self, pool: Pool) -> None:
        x, y = pool.labelled.column(self.column).cpu().double().numpy(), pool.labelled.known
        known = ~np.isnan(x)
        self.level.fill_(float(y.mean()))
        if known.any() and np.ptp(x[known]) > 0:
            slope, level = np.polyfit(x[known] - x[known].mean(), y[known], 1)
            self.slope.fill_(float(slope))
            self.level.fill_(float(level))
            self.middle.fill_(float(x[known].mean()))


class CategoryMean(nn.Module):
    """The labelled mean of a video's category; the mean of all where it has none."""

    Config = Nothing
    means: Tensor

    def __init__(self, inputs: Inputs, config: Nothing = Nothing()) -> None:
        super().__init__()
        self.config = config
        # The last is for videos of no category, whose code is -1, and for categories without a score.
        self.register_buffer("means", torch.zeros(len(inputs.columns["category"].words) + 1, dtype=torch.float64))

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return self.means[batch.columns["category"]]

    def prepare(self, pool: Pool) -> None:
        code, scores = pool.labelled.column("category").cpu().numpy(), pool.labelled.known
        for i in range(len(self.means)):
            own = scores[code == i]
            self.means[i] = float((own if len(own) else scores).mean())
