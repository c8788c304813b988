"""TSA: a video is parsed into the three steps of its procedure; each is compared with the same step of an exemplar.

Xu, Rao, Yu, Chen, Zhou, Lu: FineDiving: A Fine-grained Dataset for Procedure-aware Action Quality Assessment. CVPR
2022, arXiv:2204.03646 (Temporal Segmentation Attention). Code: github.com/xujinglin/FineDiving. It trains I3D too;
here features are frozen. Choices of ours are marked (ours).

    features → decoder, 96 steps of time → transitions ──────── target: annotated, else the cuts found
                    │                        │
                    └────────────→ three steps, five vectors each ─┐
                                                                   ├→ cross-attention, step by step → difference
    exemplar (every place of its map), likewise → three steps ─────┘
                                       mean difference + the exemplar's score → mean over the exemplars

Exemplars are CoRe's (`exemplars.py`), the decoder is `sub_actions.Parser`, which SAP-Net has too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import Asking, Quality, mlp, pool_time
from aqa_train.methods.exemplars import BLOCK, Comparing, Exemplars, mean_of_voters
from aqa_train.methods.s4aqa import NotNegative, Positive
from aqa_train.methods.sub_actions import HALVINGS, STEPS, Parser, resample, transitions, two_cuts
from aqa_train.pool import Pool

PARTS, POINTS = 3, 5
"""Steps of a procedure, and vectors that each is interpolated to."""


@dataclass(frozen=True)
class TSAConfig(Comparing):
    """Settings of TSA; the values are those of the authors' code."""

    transition_weight: NotNegative = 1.0
    """Of the cross-entropy of the transitions."""
    difference_weight: NotNegative = 1.0
    """Of the squared error of the difference, in both directions."""
    given: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the epochs, from the first, that cut steps at the target transitions instead of the parser's."""
    heads: Positive = 8
    """Of attention; a sixteenth of the features must be a multiple."""
    layers: Positive = 3
    """Cross-attention layers from a step to the exemplar's."""
    widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (256, 64)
    """Hidden widths of the regressor."""
    grid: Positive = 4
    """Rows and columns that a map is averaged to (ours; theirs is as large for pictures of 112 pixels)."""


class TSA(nn.Module):
    """Procedure segmentation, procedure-aware cross-attention, contrastive regression."""

    Config = TSAConfig
    features: Tensor
    cells: Tensor
    cuts: Tensor
    given: Tensor

    def __init__(self, inputs: Inputs, config: TSAConfig = TSAConfig()) -> None:
        super().__init__()
        self.config, self.segments = config, inputs.segments
        self.maps = [n for n, shape in inputs.streams.items() if len(shape) == 4]
        plain = {n: w for n, w in inputs.widths.items() if n not in self.maps}
        mapped = sum(inputs.streams[n][0] for n in self.maps)
        channels = sum(plain.values()) or mapped
        if self.maps and mapped != channels:
            raise UsageError(
                f"features of {channels} numbers and maps of {mapped} are parsed by one network",
                fix="give a map for every stream, as --streams rgb,rgb:map, or none",
            )
        if inputs.segments < PARTS:
            raise UsageError(
                f"videos of {counted(inputs.segments, 'segment')} cannot be parsed into {PARTS} steps",
                fix=f"extract {PARTS} segments a video or more",
            )
        self.parser = Parser(inputs.segments, channels, PARTS - 1)
        width = channels // 2**HALVINGS
        if width % config.heads:
            raise UsageError(
                f"{channels} features / {2**HALVINGS} = {width} is not a multiple of heads = {config.heads}",
                fix="set heads to one of its divisors",
            )
        self.asking = nn.ModuleList(Asking(width, config.heads, 0.0) for _ in range(config.layers))
        self.regressor = mlp(width, *config.widths, 1)
        self.quality = Quality(inputs.scale, config.difficulty, config.quality_max)
        self.exemplars = Exemplars(inputs, config, channels)
        places = config.grid**2 if self.maps else 0
        self.register_buffer("features", torch.zeros(0, self.segments, channels))
        self.register_buffer("cells", torch.zeros(0, places, self.segments, channels))
        self.register_buffer("cuts", torch.zeros(0, PARTS - 1, dtype=torch.int64))
        self.register_buffer("given", torch.ones((), dtype=torch.bool))

    # ---- before training

    def prepare(self, pool: Pool) -> None:
        """Keep the labelled videos as exemplars, with all their segments and where their steps should begin."""

        def read(batch: Batch) -> list[Tensor]:
            x, features, cells = self._read(batch)
            return [x, features, cells, self.cuts_of(batch, features)]

        _, (self.features, self.cells, self.cuts) = self.exemplars.keep(pool, self.quality, read)

    def begin_epoch(self, pool: Pool) -> None:
        """Whether steps are cut where they should be."""
        self.given.fill_(pool.epoch <= self.config.given * pool.epochs)

    def _read(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What a video is known by, its features, and those of every place of its maps, of one length all."""
        maps = [batch.streams[n].mean(dim=3) for n in self.maps]
        plain = [x.flatten(2) for n, x in batch.streams.items() if n not in self.maps]
        x = torch.cat(plain or [m.mean(dim=(3, 4)) for m in maps], dim=2)
        features = resample(x, batch.present, self.segments)
        cells = features.new_zeros(len(x), 0, *features.shape[1:])
        if maps:
            grid = self.config.grid
            small = [F.adaptive_avg_pool2d(m.flatten(0, 1), grid).view(*m.shape[:3], grid**2) for m in maps]
            by_place = torch.cat(small, dim=2).permute(0, 3, 1, 2)
            cells = torch.stack([resample(c, batch.present, self.segments) for c in by_place.unbind(1)], dim=1)
        return pool_time(x, batch.present), features, cells

    def cuts_of(self, batch: Batch, features: Float[Tensor, "batch segments channels"]) -> Int[Tensor, "batch 2"]:
        """Steps of time at which the procedure's second and third step begin: from the annotation, −1 where a video
        has none; where no video has one, from the features (ours)."""
        if "steps" in batch.columns:
            return annotated_cuts(batch.columns["steps"])
        return two_cuts(features) * STEPS // self.segments

    # ---- training and use

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        x, features, cells = self._read(batch)
        places, counts = self.exemplars.voters(batch, x)
        (mine, _), _ = self.steps(features, cells[:, :0])
        # Each exemplar is parsed once, however many it votes for.
        asked, at = places.unique(return_inverse=True)
        theirs = torch.cat([self.steps(self.features[p], self.cells[p])[0][1] for p in asked.split(BLOCK)])
        difference = self.compare(mine.repeat_interleave(places.shape[1], dim=0), theirs[at.flatten()])
        values = (difference + self.exemplars.known[places.flatten()]).view(places.shape)
        return self.quality.to_score(mean_of_voters(values, counts), batch)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms, from labelled videos alone; every pair in both directions."""
        x, features, cells = self._read(labelled)
        other = self.exemplars.draw(labelled, x)
        cuts = torch.cat([self.cuts_of(labelled, features), self.cuts[other]])
        both = (torch.cat([features, self.features[other]]), torch.cat([cells, self.cells[other]]))
        (own, keys), logits = self.steps(*both, cuts if self.given else None)
        (mine, theirs), (my_keys, their_keys) = own.chunk(2), keys.chunk(2)
        delta = self.quality.to_value(labelled.scores, labelled) - self.exemplars.known[other]
        there = F.mse_loss(self.compare(mine, their_keys), delta)
        back = F.mse_loss(self.compare(theirs, my_keys), -delta)
        return {"transition": transition_loss(logits, cuts), "difference": there + back}

    def steps(
        self,
        features: Float[Tensor, "batch segments channels"],
        cells: Float[Tensor, "batch places segments channels"],
        cuts: Int[Tensor, "batch 2"] | None = None,
    ) -> tuple[tuple[Tensor, Tensor], Float[Tensor, "batch steps 2"]]:
        """Its steps (batch, 3, 5, width), those of every place of its map (batch, 3, 5 · places, width), which are its
        own where there is no map, and logits of the transitions. Cut where `cuts` says, or, where that is −1 or None,
        where the parser does."""
        # Normalised together: prediction has one set of statistics for both (ours).
        unfolded = self.parser.unfold(torch.cat([features, cells.flatten(0, 1)]))
        own, by_place = unfolded[: len(features)], unfolded[len(features) :]
        logits: Tensor = self.parser.head(own)
        probability = logits.sigmoid()
        at = transitions(probability)
        if cuts is not None:
            at = torch.where(cuts < 0, at, cuts)
        # A broken parser must be seen in the score, and argmax alone would hide it.
        mine = cut_in_steps(own, at) + 0.0 * probability.detach().sum()
        if not cells.shape[1]:
            return (mine, mine), logits
        count = cells.shape[1]
        placed = cut_in_steps(by_place, at.repeat_interleave(count, dim=0)).unflatten(0, (-1, count))
        return (mine, placed.transpose(1, 2).flatten(2, 3)), logits

    def compare(
        self, video: Float[Tensor, "pairs 3 5 width"], exemplar: Float[Tensor, "pairs 3 keys width"]
    ) -> Float[Tensor, "pairs"]:
        """By how much the first is better: every step of it asks the same step of the second."""
        asking, keys = video.flatten(0, 1), exemplar.flatten(0, 1)
        for layer in self.asking:
            asking, _ = layer(asking, keys, None)
        return self.regressor(asking).view(len(video), -1).mean(dim=1)


def annotated_cuts(steps: Int[Tensor, "batch frames"]) -> Int[Tensor, "batch 2"]:
    """From the step of every frame (−1 behind the last): of 96 frames, evenly spaced, the last before the first change
    and the last before the last change, as the authors' loader has them. −1 where nothing changes, or all is unknown.
    """
    frames = (steps >= 0).sum(dim=1, keepdim=True)
    at = torch.linspace(0, 1, STEPS, device=steps.device, dtype=torch.float64) * (frames - 1).clamp(min=0)
    sampled = steps.gather(1, (at + 1e-6).long())
    changes = sampled.diff(dim=1) != 0
    place = torch.arange(STEPS - 1, device=steps.device)
    first = torch.where(changes, place, STEPS).amin(dim=1)
    last = torch.where(changes, place, -1).amax(dim=1)
    return torch.stack([first, last], dim=1).masked_fill((last < 0)[:, None], -1)


def transition_loss(logits: Float[Tensor, "batch steps 2"], cuts: Int[Tensor, "batch 2"]) -> Float[Tensor, ""]:
    """Binary cross-entropy: 1 at each transition, 0 elsewhere; the mean over steps, and videos of which it is known."""
    known = (cuts >= 0).all(dim=1)
    target = F.one_hot(cuts[known], STEPS).transpose(1, 2).to(logits)
    if not len(target):
        return 0.0 * logits.sum()
    return F.binary_cross_entropy_with_logits(logits[known], target)


def cut_in_steps(
    x: Float[Tensor, "batch time width"], cuts: Int[Tensor, "batch 2"]
) -> Float[Tensor, "batch 3 5 width"]:
    """Three parts, each interpolated to five vectors, from its first to its last; none is empty."""
    time = x.shape[1]
    first = cuts[:, :1].clamp(1, time - 2)
    second = torch.maximum(cuts[:, 1:], first + 1).clamp(max=time - 1)
    edges = torch.cat([torch.zeros_like(first), first, second, torch.full_like(first, time)], dim=1)
    share = torch.linspace(0, 1, POINTS, device=x.device)
    at = edges[:, :-1, None] + share * (edges.diff(dim=1)[..., None] - 1)
    low = at.floor().long()
    part = (at - low).unsqueeze(-1)
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    return torch.lerp(x[rows, low], x[rows, (low + 1).clamp(max=time - 1)], part)
