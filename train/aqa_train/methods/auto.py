"""Auto: what `aqa-train` trains unless a method is named. Ridge regressions on several kernels, averaged (ours).

    features → means of the quarters of the video → to normal scores, by the training videos' ranks; and their roots
             → linear and Gaussian kernels of each → ridge of several strengths → mean, by leave-one-out error → score

For a few dozen labelled videos, which is what most people have. Every part is in closed form: training takes less than
a second, is not random, and needs no tuning. On average it ranked better than ridge on mean features on every data set
where it was measured (docs/methods/auto.md). Unlabelled videos give the distribution of each column and the distances
between videos; other uses of them were tried and did not help.

Normal scores make all columns count alike, whatever their units are; roots leave more to those that vary most, which
of a network's channels are those that saw something. Roots of features: Perronnin et al., Improving the Fisher Kernel,
ECCV 2010, section 3.2.

Leave-one-out residuals of a ridge in closed form: Rasmussen and Williams, Gaussian Processes for Machine Learning, MIT
Press 2006, section 5.4.2. Weights by leave-one-out error: Yao et al., Bayesian Analysis 2018, section 3.3
(pseudo-BMA), arXiv:1704.02030; ours are closer to equal. Landmarks: Williams and Seeger, NeurIPS 2000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.batch import Batch, Inputs
from aqa_train.layers import mean_feature, segments_of
from aqa_train.pool import Pool, PoolPart

Positive = Annotated[int, Field(ge=1)]
AboveZero = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class AutoConfig:
    """Settings of auto; the defaults are meant to be left alone (all ours)."""

    parts: Positive = 4
    """Equal parts of a video whose means are read; with 1, and of videos of one segment, there are no roots."""
    gaussians: tuple[AboveZero, ...] = (0.3, 1.0, 2.0)
    """Kernels exp(−g d² / median d²) beside the linear one."""
    strengths: Annotated[tuple[AboveZero, ...], Field(min_length=1)] = tuple(10.0 ** (i / 2) for i in range(-6, 9))
    """Of the ridge regressions, for kernels whose diagonal has the mean 1."""
    trust: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.3
    """A regression counts by its mean squared leave-one-out error ^ (−trust n / 2) on n labelled videos: at 0 all count
    alike, at 1 by the likelihood, of which dozens of videos that are not independent tell too little."""
    knots: Annotated[int, Field(ge=2)] = 64
    """Quantiles by which a column's distribution is kept; of fewer videos every value."""
    most: Annotated[int, Field(ge=2)] = 1000
    """Training videos that distributions and distances are taken from, and labelled ones that kernels compare with;
    of more, evenly chosen ones. Scores are always learned from all."""


class Auto(nn.Module):
    """Averaged kernel ridge regressions."""

    Config = AutoConfig
    has_uncertainty = True
    shift: Tensor
    scale: Tensor
    knots: Tensor
    normal: Tensor
    ends: Tensor
    middle: Tensor
    spread: Tensor
    centres: Tensor
    sizes: Tensor
    weights: Tensor
    levels: Tensor
    share: Tensor
    error: Tensor

    def __init__(self, inputs: Inputs, config: AutoConfig = AutoConfig()) -> None:
        super().__init__()
        self.config = config
        self.parts = min(config.parts, inputs.segments)
        self.widths = tuple(inputs.widths.values())
        columns = sum(self.widths) * self.parts
        views = 2 if self.parts > 1 else 1
        self.register_buffer("shift", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(columns))
        self.register_buffer("knots", torch.zeros(columns, 0))
        """Values of every column, ascending, after shift and scale."""
        self.register_buffer("normal", torch.zeros(columns, 0))
        """What they become."""
        self.register_buffer("ends", torch.zeros(2, columns * (views - 1), dtype=torch.float64))
        """The lowest and the highest root of every column: beyond them nothing is known."""
        self.register_buffer("middle", torch.zeros(columns * (views - 1)))
        self.register_buffer("spread", torch.ones(columns * (views - 1)))
        """Of the roots: the mean of every column, and the deviation of all columns of a stream."""
        self.register_buffer("centres", torch.zeros(0, columns * views))
        """Labelled videos that kernels compare with, in both views."""
        self.register_buffer("sizes", torch.ones(views, 2, dtype=torch.float64))
        """By view: mean squared length, and median squared distance, of training videos."""
        self.register_buffer("weights", torch.zeros(0, 0, dtype=torch.float64))
        """(kernels, centres), of each kernel's regressions together."""
        self.register_buffer("levels", torch.zeros(0, dtype=torch.float64))
        self.register_buffer("share", torch.zeros(0, dtype=torch.float64))
        """How much each kernel counts."""
        self.register_buffer("error", torch.zeros((), dtype=torch.float64))
        """Root mean square of the left-out residuals of the score."""

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return self.share @ self.answers(batch)

    def uncertainty(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Expected error in training units: leave-one-out error, and how far the kernels' answers are apart."""
        answers = self.answers(batch)
        return (self.error.square() + self.share @ (answers - self.share @ answers).square()).sqrt()

    def answers(self, batch: Batch) -> Float[Tensor, "kernels batch"]:
        """The score by every kernel alone."""
        compared = self.kernels(self.columns(batch), self.centres.double())
        return torch.stack([k @ w + v for k, w, v in zip(compared, self.weights, self.levels, strict=True)])

    def prepare(self, pool: Pool) -> None:
        """Distributions and distances from all training videos, then weights from labelled ones."""
        config = self.config
        labelled = self._raw(pool.labelled)
        seen = torch.cat([labelled, self._raw(pool.unlabelled)]) if len(pool.unlabelled) else labelled
        seen = seen[_evenly(len(seen), config.most)]
        self.shift, self.scale = seen.mean(dim=0), seen.std(dim=0, correction=0).clamp(min=1e-6)
        # Rounded as the checkpoint stores them, so that the weights fit what is stored.
        values = torch.sort((seen - self.shift) / self.scale, dim=0).values
        if len(values) > config.knots:
            at = torch.linspace(0, len(values) - 1, config.knots, device=values.device).round().long()
            values = values[at]
        self.knots = _stored(values.T.contiguous())
        self.normal = _stored(normal_scores(self.knots))
        if self.parts > 1:
            roots = root(seen)
            # In double precision, which a checkpoint does not halve.
            self.ends = torch.stack([roots.amin(dim=0), roots.amax(dim=0)]).double()
            self.middle = roots.mean(dim=0)
            self.spread = self._by_stream((roots - self.middle).square().mean(dim=0))
        x, y = self._normalised(labelled), pool.labelled.scores.double()
        order = y.argsort(stable=True)
        self.centres = _stored(x[order[_evenly(len(x), config.most)]].float())
        around = self._normalised(seen)
        self.sizes = torch.stack([torch.stack(_size(v)) for v in self._views(around)])
        x, centres = x.double(), self.centres.double()
        found = [
            ridge(k, between, y, config.strengths)
            for k, between in zip(self.kernels(x, centres), self.kernels(centres, centres), strict=True)
        ]
        weights, levels, left_out = (torch.stack(parts) for parts in zip(*found, strict=True))
        loss = left_out.square().mean(dim=2).clamp(min=1e-12).log()
        share = torch.softmax(-config.trust * len(y) / 2 * loss.flatten(), dim=0).view_as(loss)
        self.share = share.sum(dim=1)
        within = share / self.share.clamp(min=1e-300)[:, None]
        self.weights = torch.einsum("ks,ksc->kc", within, weights)
        self.levels = (within * levels).sum(dim=1)
        self.error = torch.einsum("ks,ksv->v", share, left_out).square().mean().sqrt()

    def columns(self, batch: Batch) -> Float[Tensor, "batch columns"]:
        """A video's columns in both views: the normal scores of its parts' means, and their roots."""
        return self._normalised(self._columns(batch)).double()

    def kernels(self, x: Float[Tensor, "a columns"], z: Float[Tensor, "b columns"]) -> list[Float[Tensor, "a b"]]:
        """Of every view the linear kernel and the Gaussian ones."""
        found = []
        for a, b, (length, distance) in zip(self._views(x), self._views(z), self.sizes, strict=True):
            apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square() / distance
            found += [a @ b.T / length, *(torch.exp(-g * apart) for g in self.config.gaussians)]
        return found

    def _raw(self, part: PoolPart) -> Float[Tensor, "part columns"]:
        return torch.cat([self._columns(b) for b in part.batches()])

    def _columns(self, batch: Batch) -> Float[Tensor, "batch columns"]:
        return mean_feature(batch) if self.parts == 1 else in_parts(batch, self.parts).flatten(1)

    def _normalised(self, columns: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch all"]:
        normal = interpolate((columns - self.shift) / self.scale, self.knots, self.normal)
        if self.parts == 1:
            return normal
        roots = root(columns).clamp(*self.ends.to(columns.dtype))
        return torch.cat([normal, (roots - self.middle) / self.spread], dim=1)

    def _views(self, x: Float[Tensor, "batch all"]) -> tuple[Tensor, ...]:
        return x.chunk(len(self.sizes), dim=1)

    def _by_stream(self, variance: Float[Tensor, "columns"]) -> Float[Tensor, "columns"]:
        """The deviation of all columns of a stream, at each of them: streams may have different units."""
        streams = variance.view(self.parts, -1).split(self.widths, dim=1)
        deviations = [x.mean().sqrt().clamp(min=1e-6).expand_as(x) for x in streams]
        return torch.cat(deviations, dim=1).flatten()


def root(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The square root of each value's size, with its sign."""
    return x.sign() * x.abs().sqrt()


def ridge(
    k: Float[Tensor, "videos centres"],
    between: Float[Tensor, "centres centres"],
    y: Float[Tensor, "videos"],
    strengths: tuple[float, ...],
) -> tuple[Float[Tensor, "strengths centres"], Float[Tensor, "strengths"], Float[Tensor, "strengths videos"]]:
    """Kernel ridge regressions with a free level: weights of the centres, levels, residuals of each video left out.

    With all videos as centres they are exact; with some of them, those of Nyström's approximation.
    """
    length, basis = torch.linalg.eigh(between)
    kept = length > 1e-10 * length[-1].clamp(min=1e-300)
    to_features = basis[:, kept] / length[kept].sqrt()
    x = k @ to_features
    middle = x.mean(dim=0)
    u, s, vt = torch.linalg.svd(x - middle, full_matrices=False)
    along, strength = u.T @ (y - y.mean()), torch.tensor(strengths).to(s)[:, None]
    shrunk = s.square() / (s.square() + strength)
    free = (1 - 1 / len(y) - shrunk @ u.square().T).clamp(min=1e-9)
    left_out = (y - y.mean() - (shrunk * along) @ u.T) / free
    beta = s / (s.square() + strength) * along @ vt
    return beta @ to_features.T, y.mean() - beta @ middle, left_out


def normal_scores(knots: Float[Tensor, "columns knots"]) -> Float[Tensor, "columns knots"]:
    """Quantiles of the normal distribution at each value's rank (from 1/2 of the count on; equal values share one)."""
    below, to = (torch.searchsorted(knots, knots, right=right) for right in (False, True))
    return torch.special.ndtri((below + to).double() / (2 * knots.shape[1])).to(knots.dtype)


def interpolate(
    x: Float[Tensor, "batch columns"], knots: Float[Tensor, "columns knots"], values: Float[Tensor, "columns knots"]
) -> Float[Tensor, "batch columns"]:
    """Linear between the knots of each column, constant beyond its ends."""
    across = x.T.contiguous()
    last = knots.shape[1] - 1
    right = torch.searchsorted(knots, across).clamp(max=last)
    left = (right - 1).clamp(min=0)
    (x0, x1), (y0, y1) = ((t.gather(1, left), t.gather(1, right)) for t in (knots, values))
    share = ((across - x0) / (x1 - x0).clamp(min=1e-30)).clamp(0, 1)
    return torch.where(x1 > x0, torch.lerp(y0, y1, share), y1).T


def in_parts(batch: Batch, parts: int) -> Float[Tensor, "batch parts channels"]:
    """Means of equal parts of each video's own length, all streams side by side; the first are longer by one segment
    where it must be, and a video of fewer segments repeats them."""
    x = segments_of(batch)
    if batch.present is None:
        return _means(x, parts)
    found = x.new_zeros(len(x), parts, x.shape[2])
    lengths = batch.present.sum(dim=1)
    for length in lengths.unique().tolist():
        mine = lengths == length
        found[mine] = _means(x[mine, :length], parts)
    return found


def _means(x: Float[Tensor, "batch time channels"], parts: int) -> Float[Tensor, "batch parts channels"]:
    time = x.shape[1]
    if time < parts:
        return x[:, torch.arange(parts, device=x.device) * time // parts]
    return torch.stack([part.mean(dim=1) for part in x.tensor_split(parts, dim=1)], dim=1)


def _size(view: Float[Tensor, "videos columns"]) -> tuple[Tensor, Tensor]:
    """Mean squared length, and median squared distance of pairs; 1 where there is none."""
    x = view.double()
    length, apart = x.square().sum(dim=1).mean(), F.pdist(x).square()
    median = apart.median() if len(apart) else length
    one = torch.ones_like(length)
    return torch.where(length > 0, length, one), torch.where(median > 0, median, one)


def _evenly(n: int, most: int) -> Tensor:
    """Places of at most `most` of n."""
    return torch.arange(min(n, most)) * n // min(n, most)


def _stored(x: Tensor) -> Tensor:
    """As half precision keeps it."""
    return x.half().float()
