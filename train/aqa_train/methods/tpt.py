"""TPT: learned queries parse a video into successive parts, which are compared with those of an exemplar.

Bai, Zhou, Zhang, Wang, Ding, Guan, Long, Wang: Action Quality Assessment with Temporal Parsing Transformer. ECCV 2022,
arXiv:2207.09270. Code: github.com/baiyang4/aqa_tpt. It trains I3D too; here features are frozen. Choices of ours are
marked (ours).

    features → cross-attention of learned queries, twice → part per query ───┐
               │                                                             ├→ pair, part by part → mean
               │                       an exemplar's parts, likewise ────────┘     ├→ which group of differences
               └ centres in the order of time, each attention narrow               └→ position in it
                                        difference + the exemplar's score → mean over the exemplars

Exemplars, groups and their losses are CoRe's (`exemplars.py`, `groups.py`); the tree is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import Quality, lengths_of, mean_feature, order_in_time, segments_of
from aqa_train.methods.exemplars import Comparing, Exemplars, mean_of_voters
from aqa_train.methods.groups import cut_mirrored, group_losses, value_of
from aqa_train.methods.s4aqa import NotNegative, Positive, Probability
from aqa_train.pool import Pool


@dataclass(frozen=True)
class TPTConfig(Comparing):
    """Settings of TPT; the values are the paper's and the authors' code's."""

    group_weight: NotNegative = 1.0
    """Of the loss that tells groups of differences apart."""
    position_weight: NotNegative = 1.0
    """Of the squared error of the place within the group."""
    ranking_weight: NotNegative = 1.0
    """Of the order of the parts in time."""
    sparsity_weight: NotNegative = 0.05
    """Of each part being short."""
    margin: NotNegative = 0.16
    """By which centres of successive parts, and the ends, are to be apart, as a part of the video: 3.2 of 20 clips."""
    parts: Annotated[int, Field(ge=2)] = 5
    """Queries."""
    groups: Annotated[int, Field(ge=2, multiple_of=2)] = 16
    """Of differences, mirrored at 0."""
    width: Positive = 512
    forward_width: Positive = 512
    """Of the feed-forward layers."""
    heads: Positive = 8
    """Of the queries' attention to each other; `width` must be a multiple."""
    head_width: Positive = 128
    """Hidden width of the two heads that read a pair."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.07
    """Of the attention to time, at the start: it is learned."""
    dropout: Probability = 0.1
    head_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0
    """Learning rate of the two heads, in multiples of the rest's."""


class TPT(nn.Module):
    """Temporal parsing transformer with the group-aware contrastive regression head."""

    Config = TPTConfig
    bounds: Tensor
    segments: Tensor
    present: Tensor

    def __init__(self, inputs: Inputs, config: TPTConfig = TPTConfig()) -> None:
        super().__init__()
        if config.width % config.heads:
            raise UsageError(f"width = {config.width} is not a multiple of heads = {config.heads}", fix="change one")
        self.config, self.top = config, inputs.scale.top
        channels, width = sum(inputs.widths.values()), config.width
        self.quality = Quality(inputs.scale, config.difficulty, config.quality_max)
        self.exemplars = Exemplars(inputs, config, channels)
        self.register_buffer("segments", torch.zeros(0, inputs.segments, channels))
        self.register_buffer("present", torch.zeros(0, inputs.segments, dtype=torch.bool))
        self.register_buffer("bounds", torch.ones(config.groups + 1))
        self.query = nn.Parameter(torch.empty(config.parts, width))
        self.parsing = nn.ModuleList(_Parsing(channels, config, among=not i) for i in range(2))
        for p in (self.query, *self.parsing.parameters()):
            if p.ndim > 1:
                nn.init.xavier_uniform_(p)
        self.pair = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(), nn.Dropout(config.dropout), nn.Linear(width, width)
        )
        self.group, self.position = (
            nn.Sequential(nn.Linear(width, config.head_width), nn.ReLU(), nn.Linear(config.head_width, config.groups))
            for _ in range(2)
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The heads learn ten times as fast."""
        heads = [*self.group.parameters(), *self.position.parameters()]
        own = {id(p) for p in heads}
        return [
            {"params": [p for p in self.parameters() if id(p) not in own]},
            {"params": heads, "lr_scale": self.config.head_lr},
        ]

    def prepare(self, pool: Pool) -> None:
        """Keep the labelled videos as exemplars, with all their segments, and cut their differences in groups."""
        labelled, (self.segments, self.present) = self.exemplars.keep(pool, self.quality, self._read)
        bounds = cut_mirrored(self.exemplars.differences(labelled), self.config.groups, self.top)
        self.bounds = torch.as_tensor(bounds, dtype=torch.float32).to(self.bounds.device)

    def _read(self, batch: Batch) -> list[Tensor]:
        x = segments_of(batch)
        present = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if batch.present is None else batch.present
        return [mean_feature(batch), x, present]

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        x, segments, present = self._read(batch)
        places, counts = self.exemplars.voters(batch, x)
        mine, _ = self.parse(segments, present)
        # Each exemplar is parsed once, however many it votes for.
        asked, at = places.unique(return_inverse=True)
        theirs, _ = self.parse(self.segments[asked], self.present[asked])
        voters = places.shape[1]
        said = self.compare(theirs[at.flatten()], mine.repeat_interleave(voters, dim=0))
        values = (value_of(*said, self.bounds) + self.exemplars.known[places.flatten()]).view(places.shape)
        return self.quality.to_score(mean_of_voters(values, counts), batch)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms, from labelled videos alone; every pair in both directions."""
        x, segments, present = self._read(labelled)
        other = self.exemplars.draw(labelled, x)
        mine, looked = self.parse(segments, present)
        theirs, looked_there = self.parse(self.segments[other], self.present[other])
        delta = self.quality.to_value(labelled.scores, labelled) - self.exemplars.known[other]
        terms = [
            group_losses(*self.compare(theirs, mine), delta, self.bounds),
            group_losses(*self.compare(mine, theirs), -delta, self.bounds),
        ]
        group, position = (torch.stack(term).sum() for term in zip(*terms, strict=True))
        lengths = torch.cat([lengths_of(labelled), self.present[other].sum(dim=1)])
        ranking, sparsity = self._in_order([torch.cat(a) for a in zip(looked, looked_there, strict=True)], lengths)
        return {"group": group, "position": position, "ranking": ranking, "sparsity": sparsity}

    def parse(
        self, x: Float[Tensor, "batch time channels"], present: Bool[Tensor, "batch time"]
    ) -> tuple[Float[Tensor, "batch part width"], list[Float[Tensor, "batch part time"]]]:
        """The parts of every video, and where each query looked, by layer."""
        parts, looked = torch.zeros(len(x), *self.query.shape, device=x.device), []
        for layer in self.parsing:
            parts, where = layer(parts, self.query, x, present)
            looked.append(where)
        return parts, looked

    def compare(
        self, exemplar: Float[Tensor, "pairs part width"], video: Float[Tensor, "pairs part width"]
    ) -> tuple[Float[Tensor, "pairs groups"], Float[Tensor, "pairs groups"]]:
        """Logarithms of the probabilities of the groups of differences, and the place in each."""
        both = self.pair(torch.cat([exemplar, video], dim=-1)).mean(dim=1)
        return self.group(both).log_softmax(dim=-1), self.position(both).sigmoid()

    def _in_order(
        self, looked: list[Float[Tensor, "batch part time"]], lengths: Tensor
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The ranking and the sparsity loss, added up over layers; of the former a sum over pairs of parts."""
        there = torch.ones(looked[0].shape[:2], dtype=torch.bool, device=lengths.device)
        terms = [order_in_time(a, there, lengths, self.config.margin * lengths) for a in looked]
        gaps, ends, spread = (torch.stack(term).sum() for term in zip(*terms, strict=True))
        return (self.config.parts - 1) * gaps + ends, spread


class _Parsing(nn.Module):
    """Queries look at time, one head with a temperature; then a feed-forward layer, and in the first each other."""

    def __init__(self, channels: int, config: TPTConfig, *, among: bool) -> None:
        super().__init__()
        width = config.width
        self.temperature = nn.Parameter(torch.tensor(config.temperature))
        self.key, self.value = nn.Linear(channels, width), nn.Linear(channels, width)
        self.ask = nn.Linear(width, width)
        self.forth = nn.Sequential(
            nn.Linear(width, config.forward_width),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.forward_width, width),
        )
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(3 if among else 2))
        self.dropout = nn.Dropout(config.dropout)
        self.among = nn.MultiheadAttention(width, config.heads, config.dropout, batch_first=True) if among else None

    def forward(
        self,
        parts: Float[Tensor, "batch part width"],
        query: Float[Tensor, "part width"],
        x: Float[Tensor, "batch time channels"],
        present: Bool[Tensor, "batch time"],
    ) -> tuple[Float[Tensor, "batch part width"], Float[Tensor, "batch part time"]]:
        match = self.ask(parts + query) @ self.key(x).transpose(1, 2) / parts.shape[-1] / self.temperature
        where = match.masked_fill(~present[:, None], -torch.inf).softmax(dim=-1)
        parts = self.norm[0](parts + self.dropout(where @ self.value(x)))
        parts = self.norm[1](parts + self.dropout(self.forth(parts)))
        if self.among is not None:
            asked = parts + query
            parts = self.norm[2](parts + self.dropout(self.among(asked, asked, parts, need_weights=False)[0]))
        return parts, where
