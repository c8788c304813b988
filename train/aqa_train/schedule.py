"""What a training's settings mean for its loop: sizes of batches, phases by epoch, and the optimiser."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from aqa_train.config import Training


def videos_an_epoch(labelled: int, unlabelled: int, training: Training) -> int:
    """Those of the set that an epoch goes through once."""
    return max(labelled, unlabelled) if training.epoch_of == "larger" else labelled


def sizes_of(labelled: int, unlabelled: int, training: Training) -> tuple[list[int], list[int]]:
    """Sizes of the labelled and the unlabelled batches of an epoch, as even as possible.

    None is a stray video, which batch normalisation refuses: of an odd number in twos, one batch takes three.
    """
    larger = videos_an_epoch(labelled, unlabelled, training)
    steps = max(1, min(math.ceil(larger / training.batch), larger // 2))

    def sizes(n: int) -> list[int]:
        if n == larger:
            return [n * (i + 1) // steps - n * i // steps for i in range(steps)]
        return [min(n, training.batch)] * steps

    return sizes(labelled), sizes(unlabelled)


def phases_of(model: nn.Module, epochs: int) -> dict[int, str]:
    """First epoch of every phase, with its name: one phase, unless the method's `phases()` gives shares by name."""
    if not hasattr(model, "phases"):
        return {0: ""}
    shares: dict[str, float] = model.phases()  # type: ignore[operator]
    ends = np.cumsum([0.0, *shares.values()]) / sum(shares.values())
    first = {round(float(end) * epochs): name for end, name in zip(ends, shares, strict=False)}
    return {epoch: name for epoch, name in first.items() if epoch < epochs}


def optimiser_of(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """A fresh one for everything that the method learns."""
    # A part whose loss is left out has no gradient; the optimisers pass over such parameters.
    parameters: list[Any] = list(model.parameters())
    if hasattr(model, "parameter_groups"):
        parameters = model.parameter_groups()  # type: ignore[operator]
    if not parameters:
        parameters = [torch.zeros(0)]  # of a method without gradients; none is asked for
    common: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay, "fused": True}
    if training.optimiser == "sgd":
        return torch.optim.SGD(parameters, momentum=training.momentum, **common)
    cls: Any = torch.optim.Adam if training.optimiser == "adam" else torch.optim.AdamW
    optimiser: torch.optim.Optimizer = cls(parameters, **common)
    return optimiser
