"""CoRe: score a video by comparing it with others whose scores are known.

Yu, Rao, Zhao, Lu, Zhou: Group-aware Contrastive Regression for Action Quality Assessment. ICCV 2021, arXiv:2108.07797.
Code: github.com/yuxumin/CoRe. Theirs trains I3D too; here features are frozen, and the choices marked (ours) are ours.

    exemplar → mean feature ─┐
    exemplar's score ────────┼→ tree → which group of differences, and where in it → difference + exemplar's score
    video → mean feature ────┘                                                       → mean over the exemplars

The tree (GART) decides level by level between two halves of the groups; every leaf is one group. The rows of the
paper's tables are settings: without `compare` one video is looked at alone, with `head = mlp` a number is regressed.

    I3D + MLP     compare = False, head = mlp          CoRe + MLP     compare = True, head = mlp
    I3D + GART    compare = False, head = gart         CoRe + GART    compare = True, head = gart

Scores are divided by the difficulty where `difficulty` is set, and multiplied by it again at the end (section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import difficulty_of, mean_feature, mlp
from aqa_train.methods.s4aqa import NotNegative, Positive
from aqa_train.pool import Part, Pool

SAME = 1e-3
"""Distance of mean features, as a part of their length, up to which videos are the same one. Half precision, in which
checkpoints keep them, rounds by less than .0005; the nearest two of 39 trials of JIGSAWS are .12 apart."""


@dataclass(frozen=True)
class CoReConfig:
    """Settings of CoRe; the tree's depth and width, and the voters, are the paper's (section 4.1)."""

    compare: bool = True
    """With exemplars (CoRe), or each video alone (I3D)."""
    head: Literal["gart", "mlp"] = "gart"
    """The group-aware regression tree, or one number from fully connected layers."""
    difficulty: bool = False
    """Exemplars have the video's difficulty, and what is compared is the score divided by it."""
    variant: Literal["code", "paper"] = "code"
    """`code`: 2^(depth − 1) groups, mirrored at 0, a leaf's share of the likelihood of the path to it, leaves without
    sigmoid, every pair in both directions. `paper`: 2^depth groups by equation 5, cross-entropy of every leaf for
    itself, sigmoid, one direction (section 3.2)."""
    depth: Annotated[int, Field(ge=2, le=10)] = 5
    """d of the tree."""
    width: Positive = 256
    """Of a node's feature."""
    mlp_widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (256, 128)
    """Hidden widths of `head = mlp`, of which the paper tells that there are two (ours; USDL's)."""
    voters: Annotated[int, Field(ge=1, le=10)] = 10
    """Exemplars that a video is compared with, at most (M of equation 9)."""
    across: bool = False
    """Exemplars of any category where the video's own has none (ours); otherwise that is refused."""
    quality_max: NotNegative = 0.0
    """The best score divided by difficulty, ε of equation 4 and the outermost bound of a group: 30 in diving. 0: the
    best labelled one (ours). Without difficulty it is the score range's upper end."""
    start_at_mean: bool = True
    """Without exemplars: the last bias of `head = mlp` starts at the labelled mean (ours)."""
    group_weight: NotNegative = 1.0
    """Of the loss that tells groups apart (equation 6)."""
    position_weight: NotNegative = 1.0
    """Of the squared error of the place within the group (equation 6)."""


class CoRe(nn.Module):
    """A head over one video or over pairs; its exemplars are buffers."""

    Config = CoReConfig
    x: Tensor
    known: Tensor
    difficulties: Tensor
    categories: Tensor
    bounds: Tensor
    best: Tensor

    def __init__(self, inputs: Inputs, config: CoReConfig = CoReConfig()) -> None:
        super().__init__()
        self.config, self.scale = config, inputs.scale
        self.category = inputs.columns.get("category")
        width = sum(inputs.widths.values())
        read = 2 * width + 1 if config.compare else width
        self.head: GART | nn.Sequential = (
            GART(read, config.width, config.depth if config.variant == "paper" else config.depth - 1)
            if config.head == "gart"
            else mlp(read, *config.mlp_widths, 1)
        )
        for name, shape in {"x": (0, width), "known": (0,), "difficulties": (0,), "bounds": (0,), "best": ()}.items():
            self.register_buffer(name, torch.ones(shape))
        self.register_buffer("categories", torch.zeros(0, dtype=torch.int64))

    # ---- before training

    def prepare(self, pool: Pool) -> None:
        """Keep the labelled videos, in an order by chance in which voters are taken, and cut differences in groups."""
        labelled = pool.labelled.take(torch.as_tensor(pool.rng.permutation(len(pool.labelled))))
        if self.config.difficulty:
            raw = self._raw(labelled.scores) / difficulty_of(labelled)
            self.best.fill_(self.config.quality_max or float(raw.max()))
        self.known = self._to_value(labelled.scores, labelled)
        if not self.config.compare:
            values = self.known.double().cpu().numpy()
            if isinstance(self.head, GART):
                self.bounds = self._bounds(cut(values, self.head.leaves, (0.0, self.scale.top)))
            elif self.config.start_at_mean:
                nn.init.constant_(self.head[-1].bias, float(values.mean()))  # type: ignore[arg-type]
            return
        self.x = mean_feature(labelled)
        self.categories, self.difficulties = self._classes(labelled)
        self._refuse_strangers(pool.unlabelled)
        far = self._distance(labelled, self.x, among=True)
        if isinstance(self.head, GART):
            alike = (far == 0) if bool((far == 0).any()) else far.isfinite()
            differences = pairs(self.known.double().cpu().numpy(), alike.cpu().numpy())
            self.bounds = self._bounds(self._cut(differences))

    def _cut(self, differences: NDArray[np.float64]) -> NDArray[np.float64]:
        assert isinstance(self.head, GART)
        if self.config.variant == "paper":
            both = np.concatenate([differences, -differences])
            return cut(both, self.head.leaves, (-self.scale.top, self.scale.top))
        half = cut(np.abs(differences), self.head.leaves // 2, (0.0, self.scale.top))
        return np.concatenate([-half[:0:-1], half])

    def _bounds(self, bounds: NDArray[np.float64]) -> Float[Tensor, "bounds"]:
        return torch.as_tensor(bounds, dtype=torch.float32).to(self.known.device)

    # ---- scores as they are compared

    def _raw(self, scores: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """In the dataset's units."""
        return scores * ((self.scale.high - self.scale.low) / self.scale.top) + self.scale.low

    def _to_value(self, scores: Float[Tensor, "batch"], batch: Batch) -> Float[Tensor, "batch"]:
        """0 … top: scores in training units, or divided by difficulty, so that the best possible is `top`."""
        if not self.config.difficulty:
            return scores
        return self._raw(scores) / difficulty_of(batch) * (self.scale.top / self.best)

    def _to_score(self, values: Float[Tensor, "batch"], batch: Batch) -> Float[Tensor, "batch"]:
        if not self.config.difficulty:
            return values
        raw = values * (self.best / self.scale.top) * difficulty_of(batch)
        return (raw - self.scale.low) * (self.scale.top / (self.scale.high - self.scale.low))

    # ---- exemplars

    def _classes(self, batch: Batch) -> tuple[Int[Tensor, "batch"], Float[Tensor, "batch"]]:
        """Codes of categories, and difficulties; zeros where they are not looked at."""
        category = batch.columns.get("category", torch.zeros_like(batch.scores, dtype=torch.int64))
        return category, difficulty_of(batch) if self.config.difficulty else torch.zeros_like(batch.scores)

    def _distance(
        self, batch: Batch, x: Float[Tensor, "batch width"], *, among: bool = False
    ) -> Float[Tensor, "batch exemplars"]:
        """How far each exemplar's difficulty is from each video's; infinite where it is none for it.

        A video is not its own exemplar, as it is told by features that are equal but for rounding. Raises UsageError
        where a video has none; `among`: these are the labelled videos themselves.
        """
        category, difficulty = self._classes(batch)
        far = (difficulty[:, None] - self.difficulties).abs()
        apart = torch.cdist(x.float(), self.x, compute_mode="donot_use_mm_for_euclid_dist")
        far = far.masked_fill(apart <= SAME * self.x.norm(dim=1), torch.inf)
        same = (category[:, None] == self.categories) & (category >= 0)[:, None]
        other = far.masked_fill(~same, torch.inf)
        alone = other.isinf().all(dim=1)
        if self.config.across:
            other = torch.where(alone[:, None], far, other)
            alone = other.isinf().all(dim=1)
        if bool(alone.any()):
            at = int(alone.nonzero()[0])
            self._refuse(_name(batch.ids, at), int(category[at]), among=among)
        return other

    def _refuse(self, name: str, category: int, *, among: bool) -> None:
        if self.category is None:
            raise UsageError(
                f"{name} is the only labelled video, and cannot be compared",
                fix="label at least two videos, or use a method that looks at each video alone (i3d+mlp)",
            )
        if category < 0:
            fault = "its category is not known, or is none of those that it was trained on"
        else:
            word = self.category.words[category]
            only = f"it is the only labelled video of the category {word}"
            fault = only if among else f"no labelled video is of the category {word}"
        raise UsageError(
            f"{name} cannot be compared: {fault}",
            fix="label more videos of the category, correct it in the labels, compare across categories "
            "(--set across=true), or use a method that looks at each video alone (i3d+mlp)",
        )

    def _refuse_strangers(self, unlabelled: Part) -> None:
        """Unlabelled videos will be scored in the end: what is missing then is better known now."""
        if not len(unlabelled):
            return
        if self.config.difficulty:
            nothing = (~(unlabelled.column("difficulty") > 0)).nonzero().flatten()
            difficulty_of(unlabelled.take(nothing))
        if self.category is not None and not self.config.across:
            categories = unlabelled.column("category")
            strange = (~torch.isin(categories, self.categories) | (categories < 0)).nonzero().flatten()
            if len(strange):
                first = unlabelled.take(strange[:1])
                self._refuse(_name(first.ids, 0), int(categories[strange[0]]), among=False)

    def voters(
        self, batch: Batch, x: Float[Tensor, "batch width"]
    ) -> tuple[Int[Tensor, "batch voters"], Bool[Tensor, "batch voters"]]:
        """Places of exemplars, and which of them count: of the video's difficulty, else the nearest to it (ours)."""
        far = self._distance(batch, x)
        nearest, places = far.sort(dim=1, stable=True)
        nearest, places = nearest[:, : self.config.voters], places[:, : self.config.voters]
        return places, torch.where(nearest[:, :1] == 0, nearest == 0, nearest.isfinite())

    def draw(self, batch: Batch, x: Float[Tensor, "batch width"]) -> Int[Tensor, "batch"]:
        """Places of one other exemplar each, by chance among those of the nearest difficulty."""
        far = self._distance(batch, x)
        nearest = far == far.min(dim=1, keepdim=True).values
        return torch.rand_like(far).masked_fill(~nearest, -1.0).argmax(dim=1)

    # ---- training and use

    def pair(
        self, exemplar: Float[Tensor, "pairs width"], video: Float[Tensor, "pairs width"], known: Float[Tensor, "pairs"]
    ) -> Float[Tensor, "pairs both"]:
        """What the head sees of two videos and the first one's score (equation 4)."""
        return torch.cat([exemplar, video, known[:, None] / self.scale.top], dim=1)

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        x = mean_feature(batch)
        if not self.config.compare:
            return self._to_score(self._read(x), batch)
        places, counts = self.voters(batch, x)
        flat = places.flatten()
        both = self.pair(self.x[flat], x.repeat_interleave(places.shape[1], dim=0), self.known[flat])
        values = (self._read(both) + self.known[flat]).view(places.shape)
        mean = torch.where(counts, values, 0.0).sum(dim=1) / counts.sum(dim=1)
        return self._to_score(mean, batch)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms, from labelled videos alone: `group` and `position`, or one of the numbers."""
        x, value = mean_feature(labelled), self._to_value(labelled.scores, labelled)
        if not self.config.compare:
            return self._terms(x, [value])
        other = self.draw(labelled, x)
        both = [self.pair(self.x[other], x, self.known[other])]
        deltas = [value - self.known[other]]
        if self.config.variant == "code":
            both.append(self.pair(x, self.x[other], value))
            deltas.append(-deltas[0])
        return self._terms(torch.cat(both), deltas)

    def _read(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch"]:
        """The number that the head says: of the likeliest group its place, or the regressed one (equation 7)."""
        if not isinstance(self.head, GART):
            return self.head(x).squeeze(-1)
        log_share, position = self._leaves(x)
        # A broken classifier must be seen in the score, and argmax alone would hide it.
        best, leaf = log_share.max(dim=1)
        left, width = self.bounds[:-1][leaf], self.bounds.diff()[leaf]
        place = position.gather(1, leaf[:, None]).squeeze(1)
        return left + place * torch.where(width > 0, width, 1.0) + 0.0 * best

    def _leaves(self, x: Float[Tensor, "batch width"]) -> tuple[Tensor, Tensor]:
        assert isinstance(self.head, GART)
        log_share, position = self.head(x)
        return log_share, position.sigmoid() if self.config.variant == "paper" else position

    def _terms(self, x: Float[Tensor, "all width"], targets: Sequence[Float[Tensor, "batch"]]) -> dict[str, Tensor]:
        """Losses of one or two directions, whose videos follow one another in `x`."""
        if not isinstance(self.head, GART):
            said = self.head(x).squeeze(-1).split(len(targets[0]))
            name = "difference" if self.config.compare else "score"
            return {name: torch.stack([F.mse_loss(s, t) for s, t in zip(said, targets, strict=True)]).sum()}
        size = len(targets[0])
        log_share, position = (y.split(size) for y in self._leaves(x))
        group, place = x.new_zeros(()), x.new_zeros(())
        for log_p, where, target in zip(log_share, position, targets, strict=True):
            own = group_of(target, self.bounds)
            chosen = F.one_hot(own, len(self.bounds) - 1).to(log_p)
            if self.config.variant == "paper":
                # log(1 − P) from log P, away from P = 1 where it has no end.
                rest = torch.log1p(-log_p.exp().clamp(max=1 - 1e-6))
                group = group - (chosen * log_p + (1 - chosen) * rest).sum(dim=1).mean()
            else:
                group = group + F.nll_loss(log_p, own)
            error = (where - _place(target, own, self.bounds)[:, None]).square() * chosen
            if self.config.variant == "paper":
                place = place + error.sum(dim=1).mean()
            else:
                # The mean of every group's videos, so that a group counts as much as another.
                place = place + (error.sum(dim=0) / chosen.sum(dim=0).clamp(min=1)).sum()
        return {"group": group, "position": place}


class GART(nn.Module):
    """The group-aware regression tree (section 3.2): `levels` decisions, 2^levels leaves, a number at each."""

    def __init__(self, read: int, width: int, levels: int) -> None:
        super().__init__()
        self.leaves = 2**levels
        nodes = [2**i for i in range(levels)]
        self.root = nn.Linear(read, width)
        self.split = nn.ModuleList(nn.Conv1d(n * width, 2 * n * width, 1, groups=n) for n in nodes)
        self.choose = nn.ModuleList(nn.Conv1d(n * width, 2 * n, 1, groups=n) for n in nodes)
        self.place = nn.Conv1d(self.leaves * width, self.leaves, 1, groups=self.leaves)

    def forward(
        self, x: Float[Tensor, "batch width"]
    ) -> tuple[Float[Tensor, "batch leaves"], Float[Tensor, "batch leaves"]]:
        """Logarithms of the leaves' probabilities, which add up along the path, and the number at each leaf."""
        node = F.relu(self.root(x)).unsqueeze(-1)
        log_share = x.new_zeros(len(x), 1)
        for split, choose in zip(self.split, self.choose, strict=True):
            step = F.log_softmax(choose(node).view(len(x), -1, 2), dim=-1)
            log_share = (log_share.unsqueeze(-1) + step).flatten(1)
            node = F.relu(split(node))
        return log_share, self.place(node).squeeze(-1)


def pairs(values: NDArray[np.float64], alike: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Differences of all pairs of values that are alike, (pairs,)."""
    first, second = np.nonzero(np.triu(alike | alike.T, 1))
    return values[first] - values[second]


def cut(values: NDArray[np.float64], groups: int, ends: tuple[float, float]) -> NDArray[np.float64]:
    """Bounds of groups of equally many values (equation 5), (groups + 1,) ascending.

    `ends`: the outermost bounds, which the values do not pass but by rounding; theirs are then the values' own.
    """
    ordered = np.sort(values)
    bounds = ordered[[math.floor((len(ordered) - 1) * i / groups) for i in range(groups + 1)]]
    bounds[0], bounds[-1] = min(ends[0], ordered[0]), max(ends[1], ordered[-1])
    return bounds


def group_of(values: Float[Tensor, "batch"], bounds: Float[Tensor, "bounds"]) -> Int[Tensor, "batch"]:
    """The group of each value: [left, right) from 0 upwards, (left, right] below; a group of no width has none."""
    inner = bounds[1:-1].contiguous()
    return torch.where(values >= 0, torch.bucketize(values, inner, right=True), torch.bucketize(values, inner))


def _place(
    values: Float[Tensor, "batch"], groups: Int[Tensor, "batch"], bounds: Float[Tensor, "bounds"]
) -> Float[Tensor, "batch"]:
    """Where in its group each value is, 0 … 1."""
    width = bounds.diff()[groups]
    return (values - bounds[:-1][groups]) / torch.where(width > 0, width, 1.0)


def _name(ids: Sequence[str], at: int) -> str:
    return ids[at] if ids else f"video {at}"
