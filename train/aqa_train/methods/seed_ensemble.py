"""A seed ensemble: several networks of one method, whose mean score is the prediction.

Lakshminarayanan, Pritzel, Blundell: Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles. NeurIPS
2017, arXiv:1612.01474. The members see the same batches; their initial weights, dropout and hidden segments differ.

    batch → member 1 … member n → scores → mean
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs


class SeedEnsemble(nn.Module):
    """What is the same of all ensembles; `ensemble_of` adds what their members ask of the trainer."""

    Config: Any
    member: Any
    number: int

    def __init__(self, inputs: Inputs, config: Any = None) -> None:
        super().__init__()
        self.config = config or self.Config()
        self.members = nn.ModuleList(self.member(inputs, self.config) for _ in range(self.number))

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """The members' mean score, in training units."""
        return torch.stack([m(batch) for m in self.members]).mean(dim=0)

    has_uncertainty = True

    def uncertainty(self, batch: Batch) -> Float[Tensor, "batch"]:
        """The members' deviation (n − 1), in training units."""
        return torch.stack([m(batch) for m in self.members]).std(dim=0)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """The members' mean terms; each member's gradient is what it is alone."""
        by_member: list[dict[str, Tensor]] = [m.losses(labelled, unlabelled) for m in self.members]  # type: ignore[operator]
        sums = {name: torch.stack([terms[name] for terms in by_member]).sum() for name in by_member[0]}
        return {name: s - (1 - 1 / self.number) * s.detach() for name, s in sums.items()}


@cache
def ensemble_of(cls: Any, number: int) -> Any:
    """The class of `number` of `cls`, with those of the trainer's hooks that `cls` has."""
    if not hasattr(cls, "losses"):
        raise UsageError(
            f"{cls.__name__} has no seed: {number} of it would all say the same", fix="name the method alone"
        )
    own: dict[str, Any] = {"Config": cls.Config, "member": cls, "number": number}
    own |= {name: _each(name) for name in ("prepare", "begin_epoch", "after_step") if hasattr(cls, name)}
    if hasattr(cls, "phases"):
        own["phases"] = lambda self: self.members[0].phases()
        own["phase"] = property(lambda self: self.members[0].phase, _set_phase)
    if hasattr(cls, "parameter_groups"):
        own["parameter_groups"] = lambda self: [g for m in self.members for g in m.parameter_groups()]
    return type(f"{cls.__name__}x{number}", (SeedEnsemble,), own)


def _each(name: str) -> Callable[..., None]:
    def call(self: SeedEnsemble, *given: Any) -> None:
        for member in self.members:
            getattr(member, name)(*given)

    return call


def _set_phase(self: SeedEnsemble, phase: str) -> None:
    for member in self.members:
        member.phase = phase  # type: ignore[assignment]
