"""What a method is built for, and what it is given at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from aqa_train.columns import Column


@dataclass(frozen=True)
class Inputs:
    """The shapes of what a method will read; kept in its checkpoints."""

    streams: dict[str, tuple[int, ...]]
    """Shape of one segment by stream: `{"rgb": (1024,)}`, or `{"rgb_map": (1024, 2, 7, 7)}`."""
    segments: int
    """The most a video has."""
    columns: dict[str, Column] = field(default_factory=dict)
    """How each column that the method asks for becomes a tensor, with its vocabulary or width."""

    @property
    def widths(self) -> dict[str, int]:
        """Numbers in one segment of every stream."""
        return {name: math.prod(shape) for name, shape in self.streams.items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Inputs:
        """Back from JSON."""
        streams = {k: tuple(v) for k, v in record["streams"].items()}
        return cls(streams, record["segments"], {k: Column.of(v) for k, v in record["columns"].items()})


@dataclass(frozen=True)
class Batch:
    """Segment features of some videos, with their scores where they are known."""

    streams: dict[str, Float[Tensor, "batch time ..."]]
    """By name, each (batch, time, *shape of a segment); zero where not present."""
    scores: Float[Tensor, "batch"]
    """In training units (0 … score_max); NaN where unknown."""
    present: Bool[Tensor, "batch time"] | None = None
    """Which segments exist; None when all do."""
    columns: dict[str, Shaped[Tensor, "batch ..."]] = field(default_factory=dict)
    """What the method's row asks for, by name: numbers (batch,), NaN where unknown; codes of categories (batch,), -1
    where unknown; vectors (batch, width), NaN where unknown; codes of tokens (batch, length), -1 behind the last.
    Those that are labels are unknown of unlabelled videos."""
    ids: tuple[str, ...] = ()
    """For error messages."""

    def __len__(self) -> int:
        return self.scores.shape[0]

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda x: x.to(device), self.ids)

    def take(self, rows: Int[Tensor, "some"]) -> Batch:
        """These of the videos, in this order; one may come several times."""
        return self._each(lambda x: x[rows], tuple(self.ids[i] for i in rows.tolist()) if self.ids else ())

    def _each(self, f: Any, ids: tuple[str, ...]) -> Batch:
        return Batch(
            {k: f(v) for k, v in self.streams.items()},
            f(self.scores),
            None if self.present is None else f(self.present),
            {k: f(v) for k, v in self.columns.items()},
            ids,
        )


def join(batches: Sequence[Batch]) -> Batch:
    """One batch of all their videos."""
    first, *others = batches
    if not others:
        return first
    masks = [b.present for b in batches if b.present is not None]
    return replace(
        first,
        streams={k: torch.cat([b.streams[k] for b in batches]) for k in first.streams},
        scores=torch.cat([b.scores for b in batches]),
        present=torch.cat(masks) if masks else None,
        columns={k: torch.cat([b.columns[k] for b in batches]) for k in first.columns},
        ids=tuple(i for b in batches for i in b.ids),
    )
