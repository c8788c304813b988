"""Groups of differences, or of scores, with equally many in each, and the position in a group.

From CoRe (Yu et al., ICCV 2021, arXiv:2108.07797, section 3.2; code: github.com/yuxumin/CoRe, `Group_helper`); TPT uses
them too.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


def cut(values: NDArray[np.float64], groups: int, ends: tuple[float, float]) -> NDArray[np.float64]:
    """Bounds of groups of equally many values (equation 5), (groups + 1,) ascending.

    `ends`: the outermost bounds, which the values do not pass but by rounding; theirs are then the values' own.
    """
    ordered = np.sort(values)
    bounds = ordered[[math.floor((len(ordered) - 1) * i / groups) for i in range(groups + 1)]]
    bounds[0], bounds[-1] = min(ends[0], ordered[0]), max(ends[1], ordered[-1])
    return bounds


def cut_mirrored(differences: NDArray[np.float64], groups: int, top: float) -> NDArray[np.float64]:
    """As the authors' code does: groups of absolute differences up to `top`, and the same below 0."""
    half = cut(np.abs(differences), groups // 2, (0.0, top))
    return np.concatenate([-half[:0:-1], half])


def group_of(values: Float[Tensor, "batch"], bounds: Float[Tensor, "bounds"]) -> Int[Tensor, "batch"]:
    """The group of each value: [left, right) from 0 upwards, (left, right] below; a group of no width has none."""
    inner = bounds[1:-1].contiguous()
    return torch.where(values >= 0, torch.bucketize(values, inner, right=True), torch.bucketize(values, inner))


def place_of(
    values: Float[Tensor, "batch"], groups: Int[Tensor, "batch"], bounds: Float[Tensor, "bounds"]
) -> Float[Tensor, "batch"]:
    """Where in its group each value is, 0 … 1."""
    width = bounds.diff()[groups]
    return (values - bounds[:-1][groups]) / torch.where(width > 0, width, 1.0)


def group_losses(
    log_share: Float[Tensor, "batch groups"],
    place: Float[Tensor, "batch groups"],
    target: Float[Tensor, "batch"],
    bounds: Float[Tensor, "bounds"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """As the authors' code has them: the likelihood of the right group, and the squared error of the place in it.

    The error is averaged over each group's videos, and added over groups, so that a group counts as much as another.
    """
    own = group_of(target, bounds)
    chosen = F.one_hot(own, len(bounds) - 1).to(place)
    error = (place - place_of(target, own, bounds)[:, None]).square() * chosen
    return F.nll_loss(log_share, own), (error.sum(dim=0) / chosen.sum(dim=0).clamp(min=1)).sum()


def value_of(
    log_share: Float[Tensor, "batch groups"], place: Float[Tensor, "batch groups"], bounds: Float[Tensor, "bounds"]
) -> Float[Tensor, "batch"]:
    """The place in the likeliest group (equation 7)."""
    # A broken classifier must be seen in the value, and argmax alone would hide it.
    best, group = log_share.max(dim=1)
    left, width = bounds[:-1][group], bounds.diff()[group]
    return left + place.gather(1, group[:, None]).squeeze(1) * torch.where(width > 0, width, 1.0) + 0.0 * best
