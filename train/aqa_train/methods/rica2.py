"""RICA²: the steps of a rubric are queries to the video; their answers are combined as the rubric combines the steps.

Majeedi, Gajjala, GNVV, Li: RICA²: Rubric-Informed, Calibrated Assessment of Actions. ECCV 2024, arXiv:2408.02138.
Code: github.com/abrarmajeedi/rica2_aqa, which trains I3D too and embeds the names of the steps by a language model;
here features are frozen and steps are learned vectors (ours). Other choices of ours are marked (ours).

    features → convolutions → transformer encoder ─┐
    steps of the rubric ─────→ cross-attention, twice → one embedding per step
         (stochastic: sampled from a normal distribution per step) → mean by part → mean of parts → score

The steps of a dive are those that its columns name (armstand, rotation, position, somersaults, twists) and the entry;
its parts are take-off, flight and entry. If a dataset has no such column, there are `steps` steps in one part (ours).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import Asking, difficulty_of, lengths_of, mlp, order_in_time, segments_of
from aqa_train.pool import Pool

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]

PARTS = {"armstand": 0, "rotation_type": 0, "position": 1, "ss_no": 1, "tw_no": 1}
"""Columns of a dive in the order of its steps, with the part each belongs to; the entry is the last part."""
NONE_IS_NO_STEP = ("armstand", "ss_no", "tw_no")
"""Columns whose 0 says that there is no such step."""


@dataclass(frozen=True)
class RICA2Config:
    """Settings of RICA²; widths and layers are those of the authors' code."""

    ranking_weight: NotNegative = 1e-4
    """Of the order of the steps in time; the authors' .05 beside squared errors in points of MTL-AQA."""
    sparsity_weight: NotNegative = 1e-4
    """Of each step being short; the authors' .05, likewise."""
    information_weight: NotNegative = 2e-8
    """Of what steps tell beyond a standard normal distribution, if stochastic; the authors' 1e-5, likewise."""
    stochastic: bool = False
    """Steps are distributions, and scores the mean over `samples` draws of them; otherwise the deterministic form."""
    samples: Positive = 20
    """Draws for a prediction; the same for every video (ours)."""
    difficulty: bool = False
    """What is learned is the score divided by difficulty."""
    steps: Positive = 5
    """Where no column names the steps (ours)."""
    width: Positive = 512
    heads: Positive = 8
    """Of attention; `width` must be an even multiple."""
    layers: Positive = 2
    """Convolutions, encoder layers, and times that the steps ask."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    start_at_mean: bool = True
    """The last bias starts at the labelled mean (ours); False starts it at random."""


class RICA2(nn.Module):
    """Rubric-informed assessment."""

    Config = RICA2Config
    parts: Tensor

    def __init__(self, inputs: Inputs, config: RICA2Config = RICA2Config()) -> None:
        super().__init__()
        if config.width % (2 * config.heads):
            raise UsageError(
                f"width = {config.width} is not an even multiple of heads = {config.heads}", fix="change one of them"
            )
        self.config, self.scale = config, inputs.scale
        self.words = {name: inputs.columns[name].words for name in PARTS if name in inputs.columns}
        part = [PARTS[name] for name, words in self.words.items() for _ in words]
        part = [*part, 2] if part else [0] * config.steps
        self.register_buffer("parts", F.one_hot(torch.tensor(part)).T.bool())
        width, half = config.width, config.width // 2
        widths = [sum(inputs.widths.values()), *[width] * config.layers]
        self.convolutions = nn.ModuleList(nn.Conv1d(i, o, 3, padding=1) for i, o in pairwise(widths))
        encoder = nn.TransformerEncoderLayer(
            width, config.heads, width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(encoder, config.layers, nn.LayerNorm(width), False)
        self.query = nn.Parameter(torch.randn(len(part), width) * 0.1)
        self.asking = nn.ModuleList(Asking(width, config.heads, config.dropout) for _ in range(config.layers))
        self.step = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, half), nn.ReLU())
        if config.stochastic:
            self.spread = mlp(half, half, 2 * half)
        self.part = mlp(half, half, half)
        self.head = mlp(half, half, 1)

    def prepare(self, pool: Pool) -> None:
        """Where the output starts; what labelled videos lack is said before the training."""
        execution = []
        for batch in pool.labelled.batches():
            execution.append((batch.scores - self._points(batch, torch.zeros(()))) / self._factor(batch))
        if self.config.start_at_mean:
            self.head[-1].bias.fill_(float(torch.cat(execution).mean()))  # type: ignore[operator]

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        found, _ = self.find(batch)
        present = self.present(batch)
        if not self.config.stochastic:
            return self._points(batch, self.execution(found, present))
        mean, variance = self.distribution(found)
        draws = torch.randn(
            self.config.samples, *mean.shape[1:], generator=torch.Generator().manual_seed(0)
        ).to(mean)  # fmt: skip
        scores = torch.stack([self.execution(mean + variance.sqrt() * draw, present) for draw in draws])
        return self._points(batch, scores.mean(dim=0))

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        found, attention = self.find(labelled)
        present = self.present(labelled)
        terms = {}
        if self.config.stochastic:
            mean, variance = self.distribution(found)
            found = mean + variance.sqrt() * torch.randn_like(mean)
            terms["information"] = information(mean, variance, present)
        terms["score"] = F.mse_loss(self._points(labelled, self.execution(found, present)), labelled.scores)
        lengths = lengths_of(labelled)
        rows = len(attention) // len(labelled)
        # Centres of successive steps are a segment apart and more.
        gaps, ends, sparsity = order_in_time(attention, present.repeat(rows, 1), lengths.repeat(rows), 1.0)
        return {**terms, "ranking": gaps + ends, "sparsity": sparsity}

    @property
    def has_uncertainty(self) -> bool:
        return self.config.stochastic

    def uncertainty(self, batch: Batch) -> Float[Tensor, "batch"]:
        """How wide the steps are, if stochastic: the root of their mean variance, harmonic mean over channels."""
        present = self.present(batch)[..., None]
        variance = (self.distribution(self.find(batch)[0])[1] * present).sum(dim=1) / present.sum(dim=1)
        return 1 / variance.rsqrt().mean(dim=-1)

    def present(self, batch: Batch) -> Bool[Tensor, "batch step"]:
        """Which steps of the rubric a video has."""
        there = []
        for name, words in self.words.items():
            kind = F.one_hot(batch.columns[name] + 1, len(words) + 1)[:, 1:].bool()
            if name in NONE_IS_NO_STEP and "0" in words:
                kind[:, words.index("0")] = False
            there.append(kind)
        rest = self.query.shape[0] - sum(k.shape[1] for k in there)
        return torch.cat([*there, torch.ones(len(batch), rest, dtype=torch.bool, device=self.query.device)], dim=1)

    def find(self, batch: Batch) -> tuple[Float[Tensor, "batch step half"], Float[Tensor, "rows step time"]]:
        """What every step finds, and where it looked: by layer, head and video, in this order."""
        x, present = segments_of(batch), batch.present
        for i, convolution in enumerate(self.convolutions):
            x = F.relu(convolution(x.transpose(1, 2)).transpose(1, 2))
            x = F.dropout(x, self.config.dropout, self.training and i < len(self.convolutions) - 1)
            x = x if present is None else x * present[..., None]
        absent = None if present is None else ~present
        x = self.encoder(x, src_key_padding_mask=absent)
        steps, looked = self.query.expand(len(batch), -1, -1), []
        for asking in self.asking:
            steps, where = asking(steps, x, absent)
            looked.append(where.transpose(0, 1).flatten(0, 1))
        return self.step(steps), torch.cat(looked)

    def distribution(
        self, found: Float[Tensor, "batch step half"]
    ) -> tuple[Float[Tensor, "batch step half"], Float[Tensor, "batch step half"]]:
        """Mean and variance of every step's embedding."""
        mean, log_variance = self.spread(found).chunk(2, dim=-1)
        return mean, log_variance.exp()

    def execution(
        self, found: Float[Tensor, "batch step half"], present: Bool[Tensor, "batch step"]
    ) -> Float[Tensor, "batch"]:
        """From steps to parts to the whole, each the mean of what there is of the one before."""
        members = (present[:, None] & self.parts).to(found.dtype)
        count = members.sum(dim=-1, keepdim=True)
        by_part = self.part(members @ found / count.clamp(min=1))
        there = (count > 0).to(found.dtype)
        whole = (by_part * there).sum(dim=1) / there.sum(dim=1)
        return self.head(whole).squeeze(-1)

    def _factor(self, batch: Batch) -> Tensor:
        if not self.config.difficulty:
            return torch.ones(())
        return difficulty_of(batch)

    def _points(self, batch: Batch, execution: Tensor) -> Tensor:
        """Times difficulty, which multiplies points from their own zero on, not from the scale's lower end."""
        low = self.scale.low * self.scale.top / (self.scale.high - self.scale.low) if self.config.difficulty else 0.0
        return execution * self._factor(batch) - low


def information(
    mean: Float[Tensor, "batch step half"],
    variance: Float[Tensor, "batch step half"],
    present: Bool[Tensor, "batch step"],
) -> Float[Tensor, ""]:
    """Divergence of the present steps from a standard normal distribution, by video and channel."""
    each = (mean.square() + variance - variance.log() - 1).sum(dim=-1) / 2
    return (each * present).sum() / (len(mean) * mean.shape[-1])
