"""Random numbers of a method's `losses`: of torch's own generator, or where trainings are computed together, of each's.

Drawn here, not with torch.rand, a training draws the same numbers alone and beside others (`aqa_train.together`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

Make = Callable[[torch.Generator | None], Tensor]
"""Draws from a generator, or from torch's own where it is None."""
_beside: ContextVar[tuple[Tensor, Sequence[torch.Generator]] | None] = ContextVar("beside", default=None)


def draw(make: Make) -> Tensor:
    """What `make` draws; of trainings that are computed together, from the generator of each."""
    if (beside := _beside.get()) is None:
        return make(None)
    drawn: Tensor = _Draw.apply(*beside, make)
    return drawn


def rand(shape: Sequence[int], device: torch.device) -> Tensor:
    """Uniform in [0, 1)."""
    return draw(lambda g: torch.rand(tuple(shape), generator=g, device=device))


def randn_like(x: Tensor) -> Tensor:
    """Standard normal, of the shape and kind of `x`."""
    return draw(lambda g: torch.randn(x.shape, generator=g, dtype=x.dtype, device=x.device))


@contextmanager
def drawing(run: Tensor, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Inside torch.func.vmap over trainings: `run` is this one's number, and `generators` those of all."""
    before = _beside.set((run, generators))
    try:
        yield
    finally:
        _beside.reset(before)


class _Draw(torch.autograd.Function):
    """One draw a training, side by side."""

    @staticmethod
    def forward(run: Tensor, generators: Sequence[torch.Generator], make: Make) -> Tensor:
        raise RuntimeError("draws of several trainings are made in vmap alone")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing has a gradient."""

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, run: Tensor, generators: Sequence[torch.Generator], make: Make
    ) -> tuple[Tensor, int]:
        return torch.stack([make(g) for g in generators]), 0
