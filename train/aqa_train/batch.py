"""What a method is built for, and what it is given at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from aqa_train.columns import ColumnEncoder


@dataclass(frozen=True)
class ScoreScale:
    """Linear map from the dataset's units to 0 … top. Its ends never come from test scores."""

    low: float
    high: float
    top: float = 5.0
    mean: float = 0.0
    """Of the labelled training scores, as 0 … top: where the outputs of regression heads start."""

    def to_training(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return (scores - self.low) * (self.top / (self.high - self.low))

    def to_scores(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        return self.difference(values) + self.low

    def difference(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """Differences of scores, or deviations, in the dataset's units."""
        return values.astype(np.float64) * ((self.high - self.low) / self.top)


@dataclass(frozen=True)
class Inputs:
    """The shapes of what a method will read; kept in its checkpoints."""

    streams: dict[str, tuple[int, ...]]
    """Shape of one segment by stream: `{"rgb": (1024,)}`, or `{"rgb_map": (1024, 2, 7, 7)}`."""
    segments: int
    """The most a video has."""
    columns: dict[str, ColumnEncoder] = field(default_factory=dict)
    """How each column that the method asks for becomes a tensor, with its vocabulary or width."""
    scale: ScoreScale = ScoreScale(0.0, 5.0)
    """What scores in training units are in the dataset's."""

    @property
    def widths(self) -> dict[str, int]:
        """Numbers in one segment of every stream."""
        return {name: math.prod(shape) for name, shape in self.streams.items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Inputs:
        """Back from JSON."""
        streams = {k: tuple(v) for k, v in record["streams"].items()}
        columns = {k: ColumnEncoder.of(v) for k, v in record["columns"].items()}
        return cls(streams, record["segments"], columns, ScoreScale(**record["scale"]))


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
    rows: Int[Tensor, "batch"] | None = None
    """Places in the table of the run's videos, by which a method finds what it remembers of one; as `Part.rows`."""

    def __len__(self) -> int:
        return self.scores.shape[0]

    def to(self, device: torch.device) -> Batch:
        return self._each(lambda x: x.to(device), self.ids)

    def take(self, rows: Int[Tensor, "some"]) -> Batch:
        """These of the videos, in this order; one may come several times."""
        return self._each(lambda x: x[rows], tuple(self.ids[i] for i in rows.tolist()) if self.ids else ())

    def without_features(self) -> Batch:
        return replace(self, streams={}, present=None)

    def _each(self, f: Any, ids: tuple[str, ...]) -> Batch:
        return Batch(
            {k: f(v) for k, v in self.streams.items()},
            f(self.scores),
            None if self.present is None else f(self.present),
            {k: f(v) for k, v in self.columns.items()},
            ids,
            None if self.rows is None else f(self.rows),
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
        rows=None if any(b.rows is None for b in batches) else torch.cat([b.rows for b in batches]),  # type: ignore[misc]
    )
