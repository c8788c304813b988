"""What a method is given at every step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Segment features of some videos, with their scores where they are known."""

    features: Float[Tensor, "batch time channels"]
    """Of all streams, concatenated along channels in the order of `FeatureSet.channels`; zero where not present."""
    scores: Float[Tensor, "batch"]
    """In training units (0 … score_max); NaN where unknown."""
    present: Bool[Tensor, "batch time"] | None = None
    """Which segments exist; None when all do."""
    ids: tuple[str, ...] = field(default=())
    """For error messages."""

    def __len__(self) -> int:
        return self.features.shape[0]

    def to(self, device: torch.device) -> Batch:
        present = None if self.present is None else self.present.to(device)
        return Batch(self.features.to(device), self.scores.to(device), present, self.ids)
