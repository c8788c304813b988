"""Features brought to a common scale by statistics of the training videos."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aqa_train.order import Rows

if TYPE_CHECKING:
    from aqa_train.features import FeatureSet

Moments = dict[str, tuple[NDArray, NDArray]]
"""Mean and deviation of every number of a segment, by stream."""


def moments(features: FeatureSet, rows: Rows) -> Moments:
    """Of all segments of these videos."""
    # Summed video by video, so that streamed and resident features give the same bits.
    total = {n: np.zeros(s) for n, s in features.shapes.items()}
    square = {n: np.zeros(s) for n, s in features.shapes.items()}
    count = max(int(features.lengths[rows].sum()), 1)
    for part in features.parts(np.sort(rows)):
        for name, x in features.load(part, torch.device("cpu")).streams.items():
            for video in x.numpy().astype(np.float64):
                total[name] += video.sum(axis=0)
                square[name] += np.square(video).sum(axis=0)
    found = {}
    for name in features.shapes:
        mean = total[name] / count
        variance = np.maximum(square[name] / count - np.square(mean), 0.0)
        found[name] = mean.astype(np.float32), np.sqrt(variance).astype(np.float32)
    return found


@dataclass(frozen=True)
class Standardiser:
    """x → (x − shift) × scale by stream and channel; padding stays zero."""

    shift: dict[str, Tensor]
    scale: dict[str, Tensor]

    @classmethod
    def of(cls, moments: Moments, how: str) -> Standardiser:
        """`z-score` or `centre`; a channel that never changes keeps its scale."""
        shift, scale = {}, {}
        for name, (mean, deviation) in moments.items():
            wide = torch.from_numpy(deviation)
            shift[name] = torch.from_numpy(mean)
            factor = torch.where(wide > 1e-6, 1 / wide.clamp(min=1e-6), torch.ones(()))
            scale[name] = factor if how == "z-score" else torch.ones_like(factor)
        return cls(shift, scale)

    def __call__(self, name: str, x: Tensor, present: Tensor | None) -> Tensor:
        """One stream's features (batch, time, …)."""
        x = (x - self.shift[name].to(x.device)) * self.scale[name].to(x.device)
        return x if present is None else x * present.view(*present.shape, *[1] * (x.ndim - 2))
