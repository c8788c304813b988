"""The training videos as a whole: what a method learns from before and between epochs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from aqa_train.batch import Batch, join
from aqa_train.features import FeatureSet
from aqa_train.order import Rows


@dataclass(frozen=True)
class PoolPart:
    """The labelled or the unlabelled videos."""

    features: FeatureSet
    rows: Rows
    known: NDArray[np.float64]
    """Scores in training units, as long as `rows`; NaN for unlabelled videos."""
    device: torch.device

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def scores(self) -> Float[Tensor, "part"]:
        return torch.as_tensor(self.known, dtype=torch.float32).to(self.device)

    def column(self, name: str) -> Tensor:
        """As in `Batch.columns`, of all videos of the part."""
        return self.features.columns[name][torch.as_tensor(self.rows)].to(self.device)

    def take(self, places: Int[Tensor, "some"]) -> Batch:
        """The videos at these places of the part, in this order."""
        at = places.cpu().numpy()
        return self._scored(at, self.features.load(self.rows[at], self.device))

    def batches(self, size: int = 256) -> Iterator[Batch]:
        """Every video once, in the part's order; read a block at a time."""
        for part in self.features.parts(self.rows, size):
            yield self._scored(np.searchsorted(self.rows, part), self.features.load(part, self.device))

    def whole(self) -> Batch:
        """All videos at once: for few, or for what is small. Empty parts give an empty batch."""
        return join(list(self.batches()) or [self.take(torch.empty(0, dtype=torch.int64))])

    def without_features(self) -> Batch:
        """All videos at once, with columns and scores alone."""
        return join([batch.without_features() for batch in self.batches()])

    def _scored(self, at: NDArray[np.int64], batch: Batch) -> Batch:
        return replace(batch, scores=torch.as_tensor(self.known[at], dtype=torch.float32).to(self.device))


@dataclass(frozen=True)
class Pool:
    """What `prepare` and `begin_epoch` are given."""

    labelled: PoolPart
    unlabelled: PoolPart
    epoch: int
    """The epoch that begins, from 0."""
    epochs: int
    rng: np.random.Generator
    """Of this call alone: the same numbers whether the training was stopped between or not."""
