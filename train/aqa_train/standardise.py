"""Features brought to a common scale by statistics of the training videos."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

Moments = dict[str, tuple[NDArray, NDArray]]
"""Mean and deviation of every number of a segment, by stream."""


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
