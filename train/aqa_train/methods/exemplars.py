"""Exemplars: labelled videos with which another video is compared.

From CoRe (Yu et al., ICCV 2021, arXiv:2108.07797, section 3.1; code: github.com/yuxumin/CoRe). TSA and TPT compare in
the same way. Choices of ours are marked (ours).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs, join
from aqa_train.layers import Quality, difficulty_of
from aqa_train.pool import Pool, PoolPart

SAME = 1e-3
"""Distance of mean features, as a part of their length, up to which videos are the same one. Half precision, in which
checkpoints keep them, rounds by less than .0005; the nearest two of 39 trials of JIGSAWS are .12 apart."""
BLOCK = 64
"""Videos that are read at a time."""


@dataclass(frozen=True)
class Comparing:
    """Settings of methods that compare with exemplars; the values are CoRe's."""

    difficulty: bool = False
    """Exemplars have the video's difficulty, and what is compared is the score divided by it."""
    quality_max: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """The best score divided by difficulty, and the outermost bound of a group: 30 in diving. 0: the best labelled one
    (ours). Without difficulty it is the score range's upper end."""
    voters: Annotated[int, Field(ge=1, le=10)] = 10
    """Exemplars that a video is compared with, at most."""
    across: bool = False
    """Exemplars of any category where the video's own has none (ours); otherwise that is refused."""


class Exemplars(nn.Module):
    """The labelled videos, in the random order in which voters are taken; everything about them is in buffers.

    A video is recognised by `x` (videos, width), a vector of its features, so that it is never its own exemplar.
    """

    x: Tensor
    known: Tensor
    difficulties: Tensor
    categories: Tensor

    def __init__(self, inputs: Inputs, config: Comparing, width: int) -> None:
        super().__init__()
        self.config, self.category = config, inputs.columns.get("category")
        for name, shape in {"x": (0, width), "known": (0,), "difficulties": (0,)}.items():
            self.register_buffer(name, torch.ones(shape))
        self.register_buffer("categories", torch.zeros(0, dtype=torch.int64))

    def keep(
        self, pool: Pool, quality: Quality, read: Callable[[Batch], Sequence[Tensor]]
    ) -> tuple[Batch, list[Tensor]]:
        """Take the labelled videos in random order, with their scores as `quality` scales them.

        `read` gives of some videos `x`, and what else the method will need of an exemplar: that is returned for all of
        them, with the videos themselves, without features. Raises UsageError for a labelled or unlabelled video that
        cannot be compared.
        """
        order = torch.as_tensor(pool.rng.permutation(len(pool.labelled)))
        videos, found = [], []
        for places in order.split(BLOCK):
            batch = pool.labelled.take(places)
            found.append(read(batch))
            videos.append(batch.without_features())
        labelled = join(videos)
        self.x, *others = (torch.cat(parts) for parts in zip(*found, strict=True))
        quality.fit(labelled)
        self.known = quality.to_value(labelled.scores, labelled)
        self.categories, self.difficulties = self._classes(labelled)
        self._refuse_strangers(pool.unlabelled)
        self._distance(labelled, self.x, among=True)
        return labelled, others

    def differences(self, labelled: Batch) -> NDArray[np.float64]:
        """Of the values of all pairs that may be compared; `labelled` as `keep` returned it."""
        far = self._distance(labelled, self.x, among=True)
        alike = ((far == 0) if bool((far == 0).any()) else far.isfinite()).cpu().numpy()
        values = self.known.double().cpu().numpy()
        return pairs(values, alike)

    def voters(
        self, batch: Batch, x: Float[Tensor, "batch width"]
    ) -> tuple[Int[Tensor, "batch voters"], Bool[Tensor, "batch voters"]]:
        """Places of exemplars, and which of them count: of the video's difficulty, else the nearest to it (ours)."""
        far = self._distance(batch, x)
        nearest, places = far.sort(dim=1, stable=True)
        nearest, places = nearest[:, : self.config.voters], places[:, : self.config.voters]
        return places, torch.where(nearest[:, :1] == 0, nearest == 0, nearest.isfinite())

    def draw(self, batch: Batch, x: Float[Tensor, "batch width"]) -> Int[Tensor, "batch"]:
        """Places of one other exemplar each, drawn at random among those of the nearest difficulty."""
        far = self._distance(batch, x)
        nearest = far == far.min(dim=1, keepdim=True).values
        return torch.rand_like(far).masked_fill(~nearest, -1.0).argmax(dim=1)

    def _classes(self, batch: Batch) -> tuple[Int[Tensor, "batch"], Float[Tensor, "batch"]]:
        """Codes of categories, and difficulties; zeros where they are not looked at."""
        category = batch.columns.get("category", torch.zeros_like(batch.scores, dtype=torch.int64))
        return category, difficulty_of(batch) if self.config.difficulty else torch.zeros_like(batch.scores)

    def _distance(
        self, batch: Batch, x: Float[Tensor, "batch width"], *, among: bool = False
    ) -> Float[Tensor, "batch exemplars"]:
        """How far each exemplar's difficulty is from each video's; infinite where it is none for it.

        A video is not its own exemplar, as it is told by features that are equal except for rounding. Raises UsageError
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

    def _refuse_strangers(self, unlabelled: PoolPart) -> None:
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


def mean_of_voters(
    values: Float[Tensor, "batch voters"], counts: Bool[Tensor, "batch voters"]
) -> Float[Tensor, "batch"]:
    """What the voters that count say, on average (equation 9 of CoRe)."""
    return torch.where(counts, values, 0.0).sum(dim=1) / counts.sum(dim=1)


def pairs(values: NDArray[np.float64], alike: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Differences of all pairs of values that are alike, (pairs,)."""
    first, second = np.nonzero(np.triu(alike | alike.T, 1))
    return values[first] - values[second]


def _name(ids: Sequence[str], at: int) -> str:
    return ids[at] if ids else f"video {at}"
