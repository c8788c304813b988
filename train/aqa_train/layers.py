"""Parts that several methods are built from, as plain functions and small modules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, ScoreScale
from aqa_train.draws import draw, randn_like

Pooling = Literal["mean", "max", "flatten"]


class _ReverseGradient(torch.autograd.Function):
    """Identity forwards, −scale × gradient backwards."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.scale * gradients[0], None


def reverse_gradient(x: Float[Tensor, "*shape"], scale: float = 1.0) -> Float[Tensor, "*shape"]:
    """Gradient reversal layer: `x` itself, whose gradient comes back multiplied by −`scale`.

    Ganin et al., Domain-adversarial training of neural networks, JMLR 2016, equation 17.
    """
    reversed_: Tensor = _ReverseGradient.apply(x, scale)
    return reversed_


def mlp(*widths: int, start: float | Float[Tensor, "out"] | None = None) -> nn.Sequential:
    """Fully connected layers of these widths with ReLU between them, none after the last.

    `start`: where the outputs start, which is the last bias; None leaves that to chance.
    """
    linear = [nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths)]
    if start is not None:
        linear[-1].bias.data[:] = start
    return nn.Sequential(*[m for layer in linear for m in (nn.ReLU(), layer)][1:])


def logit(share: float) -> float:
    """Where an output behind a sigmoid starts to be `share`; its ends are kept a hundredth away from."""
    share = min(max(share, 0.01), 0.99)
    return math.log(share / (1 - share))


class Dropout(nn.Dropout):
    """nn.Dropout, whose choices cost a CPU a seventh: sixteen random bits decide each, drawn four at a time.

    Torch's draws are a seventh of a step of S4AQA in bf16. The probability is met to within 2^-17.
    """

    def forward(self, input: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        if not (self.training and self.p > 0):
            return input
        n, shape, device = input.numel(), input.shape, input.device

        def kept(generator: torch.Generator | None) -> Tensor:
            bits = torch.empty(-(-n // 4), dtype=torch.int64, device=device)
            bits = bits.random_(-(2**63), None, generator=generator).view(torch.int16)
            return bits[:n].view(shape) >= round(self.p * 2**16) - 2**15

        return input * (draw(kept).to(input.dtype) * (1 / (1 - self.p)))


class TemporalConv(nn.Module):
    """Conv1d over time (stride 1, same length), batch norm, ReLU, dropout.

    One product multiplies every segment with all taps of the kernel, and every position adds up what it and its
    neighbours give it: on CPU faster than Conv1d, whose layout wants time last, and than a product over copies of the
    neighbours. It lets padded positions drop out before batch norm, so that a padded video gives exactly what it gives
    alone, and products be used twice. Same initialisation as Conv1d.
    """

    def __init__(self, channels: int, out: int, *, kernel: int, dropout: float, norm_first: bool = True) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"kernel must be odd to keep the length, got {kernel}")
        self.kernel = kernel
        whole = nn.Linear(kernel * channels, out)
        self.weight = nn.Parameter(whole.weight.data.unflatten(1, (kernel, channels)).transpose(0, 1).flatten(0, 1))
        """(kernel × out, channels): a leaf, or autocast would cast it anew for every product."""
        self.bias = whole.bias
        self.norm = nn.BatchNorm1d(out)
        self.dropout = Dropout(dropout)
        self.norm_first = norm_first

    def forward(
        self, x: Float[Tensor, "batch time channels"], present: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time out"]:
        """The result is zero where not `present`."""
        return self.gather(self.products(x, present), present)

    def products(
        self, x: Float[Tensor, "batch time channels"], present: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time taps"]:
        """Every segment times the kernel, tap by tap; zero where not `present`."""
        if present is None:
            return F.linear(x, self.weight)
        return where_present(F.linear(x[present], self.weight), present)

    def gather(
        self, products: Float[Tensor, "batch time taps"], present: Bool[Tensor, "batch time"] | None = None
    ) -> Float[Tensor, "batch time out"]:
        """What `forward` makes of `products`."""
        rows: Tensor = _AddNeighbours.apply(products.unflatten(2, (self.kernel, -1)), self.bias)
        shape = rows.shape
        rows = rows.flatten(0, 1) if present is None else rows[present]
        rows = F.relu(self.norm(rows)) if self.norm_first else self.norm(F.relu(rows))
        rows = self.dropout(rows)
        return rows.view(shape) if present is None else where_present(rows, present)


class _AddNeighbours(torch.autograd.Function):
    """Products (batch, time, kernel, out) and a bias, added up at the positions (batch, time, out) they count for.

    By hand, since autograd would make a tensor as large as all products for every tap.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(products: Tensor, bias: Tensor) -> Tensor:
        reach = products.shape[2] // 2
        found = products[:, :, reach] + bias.to(products.dtype)
        for away in range(1, reach + 1):
            found[:, away:] += products[:, :-away, reach - away]
            found[:, :-away] += products[:, away:, reach + away]
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.kernel, ctx.bias = inputs[0].shape[2], inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        time, reach = gradients[0].shape[1], ctx.kernel // 2
        padded = F.pad(gradients[0], (0, 0, reach, reach))
        taps = [padded[:, 2 * reach - i : 2 * reach - i + time] for i in range(ctx.kernel)]
        return torch.stack(taps, dim=2), gradients[0].sum(dim=(0, 1)).to(ctx.bias)


def where_present(
    rows: Float[Tensor, "segments width"], present: Bool[Tensor, "batch time"]
) -> Float[Tensor, "batch time width"]:
    """Rows of the segments that there are, back in their places; zeros elsewhere.

    Not by masked_scatter, whose gradient on CPU numbers every element of the result, in eight bytes each.
    """
    return rows.new_zeros(*present.shape, rows.shape[-1]).index_put((present,), rows)


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch norm inside still normalises by its batch, but what evaluation will use learns nothing from it."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d)]
    before = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, before, strict=True):
            m.momentum = momentum


def pool_time(
    x: Float[Tensor, "batch time channels"],
    present: Bool[Tensor, "batch time"] | None = None,
    how: Pooling = "mean",
) -> Float[Tensor, "batch pooled"]:
    """One vector a video, of its present positions; `flatten` keeps all positions (padding as zeros)."""
    if how == "flatten":
        return x.flatten(1)
    if how == "max":
        return (x if present is None else x.masked_fill(~present.unsqueeze(-1), -torch.inf)).amax(dim=1)
    if present is None:
        return x.mean(dim=1)
    return x.sum(dim=1) / present.sum(dim=1, keepdim=True)


def mean_feature(batch: Batch) -> Float[Tensor, "batch channels"]:
    """The mean over the segments that a video has, of all streams side by side."""
    return torch.cat([pool_time(x.flatten(2), batch.present) for x in batch.streams.values()], dim=-1)


def segments_of(batch: Batch) -> Float[Tensor, "batch time channels"]:
    """Every segment as one vector, of all streams side by side."""
    return torch.cat([x.flatten(2) for x in batch.streams.values()], dim=-1)


def lengths_of(batch: Batch) -> Int[Tensor, "batch"]:
    """How many segments every video has."""
    first = next(iter(batch.streams.values()))
    if batch.present is None:
        return torch.full(first.shape[:1], first.shape[1], device=first.device)
    return batch.present.sum(dim=1)


def order_in_time(
    attention: Float[Tensor, "rows step time"],
    present: Bool[Tensor, "rows step"],
    lengths: Int[Tensor, "rows"],
    margin: float | Float[Tensor, "rows"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """How far steps that attend to time are from being in order, from the ends, and short: what each lacks.

    Bai et al., Action Quality Assessment with Temporal Parsing Transformer, ECCV 2022, arXiv:2207.09270; code:
    github.com/baiyang4/aqa_tpt. A step's centre is the mean place it attends to, of segments 1 … `lengths`. Centres of
    successive steps are to be `margin` apart, on the mean over all pairs; the first as far behind segment 1, the last
    before the last one; and the mean distance of what a step attends to from its centre small. Steps that are not
    `present` count as 0 there, and nowhere else.
    """
    attention = attention * present[..., None]
    at = torch.arange(1, attention.shape[-1] + 1, dtype=attention.dtype, device=attention.device)
    centre = attention @ at
    spread = ((at - centre[..., None]).abs() * attention).sum(dim=-1).mean()
    # Steps that are there move to the front, in order.
    order = (~present).to(torch.int8).argsort(dim=1, stable=True)
    centre, there = centre.gather(1, order), present.gather(1, order)
    apart = torch.as_tensor(margin, dtype=centre.dtype, device=centre.device).expand(len(centre))
    pairs = there[:, 1:]
    gaps = F.relu(apart[:, None] - (centre[:, 1:] - centre[:, :-1])) * pairs
    last = centre.gather(1, there.sum(dim=1, keepdim=True) - 1).squeeze(1)
    ends = F.relu(apart - (centre[:, 0] - 1)).mean() + F.relu(apart - (lengths - last)).mean()
    return gaps.sum() / pairs.sum().clamp(min=1), ends, spread


def add_noise(batch: Batch, deviation: float) -> Batch:
    """The same videos with normal noise, `deviation` times as wide as the features of the stream in this batch."""

    def noisy(x: Tensor) -> Tensor:
        noise = randn_like(x) * (deviation * x.std())
        there = batch.present
        return x + (noise if there is None else noise * there.view(*there.shape, *[1] * (x.ndim - 2)))

    return replace(batch, streams={n: noisy(x) for n, x in batch.streams.items()})


def refuse_unknown(batch: Batch, column: str) -> None:
    """Raises UsageError where a video of the batch has no value in a column of numbers, vectors or codes."""
    x = batch.columns[column]
    unknown = x.isnan() if x.is_floating_point() else x < 0
    missing = unknown.flatten(1).all(dim=1) if x.ndim > 1 else unknown
    if bool(missing.any()):
        names = [i for i, gone in zip(batch.ids, missing.tolist(), strict=True) if gone]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise UsageError(
            f"{', '.join(names[:5])}{more}: no {column}, which this method reads of every such video",
            fix=f"give it with --labels FILE, a table with the columns id,score,{column}, or use another method",
        )


def difficulty_of(batch: Batch) -> Float[Tensor, "batch"]:
    """By which scores are divided. Raises UsageError where a video has none, or one that is not above 0."""
    difficulty = batch.columns["difficulty"]
    wrong = (~(difficulty > 0)).nonzero().flatten().tolist()
    if wrong:
        name = batch.ids[wrong[0]] if batch.ids else f"video {wrong[0]}"
        raise UsageError(
            f"{name} has the difficulty {difficulty[wrong[0]].item():g}, by which scores are divided",
            fix="give every video its difficulty (--labels FILE), or use a method that does without, such as i3d+mlp",
        )
    return difficulty


class Asking(nn.Module):
    """Cross-attention and a feed-forward layer, norms before both; those who ask do not see each other."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.forth = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            Dropout(dropout),
            nn.Linear(4 * width, width),
            Dropout(dropout),
        )

    def forward(
        self,
        steps: Float[Tensor, "batch step width"],
        x: Float[Tensor, "batch time width"],
        absent: Bool[Tensor, "batch time"] | None,
    ) -> tuple[Float[Tensor, "batch step width"], Float[Tensor, "batch heads step time"]]:
        x = self.norm[1](x)
        found, where = self.attention(
            self.norm[0](steps), x, x, key_padding_mask=absent, need_weights=True, average_attn_weights=False
        )
        steps = steps + found
        return steps + self.forth(self.norm[2](steps)), where


class Quality(nn.Module):
    """Scores as a method learns them: in training units as they are, or divided by the declared difficulty."""

    best: Tensor

    def __init__(self, scale: ScoreScale, by_difficulty: bool, best: float = 0.0) -> None:
        """`best`: the best possible score divided by difficulty, in the dataset's units; 0: the best labelled one."""
        super().__init__()
        self.scale, self.by_difficulty, self.known_best = scale, by_difficulty, best
        self.register_buffer("best", torch.ones(()))

    def fit(self, labelled: Batch) -> None:
        """To be done once, with all labelled videos. Raises UsageError where one has no difficulty."""
        if self.by_difficulty:
            self.best.fill_(self.known_best or float((self._raw(labelled.scores) / difficulty_of(labelled)).max()))

    def to_value(self, scores: Float[Tensor, "batch"], batch: Batch) -> Float[Tensor, "batch"]:
        """0 … top: scores in training units, or divided by difficulty, so that the best possible is `top`."""
        if not self.by_difficulty:
            return scores
        return self._raw(scores) / difficulty_of(batch) * (self.scale.top / self.best)

    def to_score(self, values: Float[Tensor, "batch"], batch: Batch) -> Float[Tensor, "batch"]:
        """Back in training units."""
        if not self.by_difficulty:
            return values
        raw = values * (self.best / self.scale.top) * difficulty_of(batch)
        return (raw - self.scale.low) * (self.scale.top / (self.scale.high - self.scale.low))

    def _raw(self, scores: Float[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """In the dataset's units."""
        return scores * ((self.scale.high - self.scale.low) / self.scale.top) + self.scale.low


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, decay: float, step: float) -> None:
    """Step 1, 2, … of a moving average over parameters and buffers, which keeps `decay` of itself, at first less."""
    decay = min(decay, 1 - 1 / (step + 1))
    for mine, theirs in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
        if mine.is_floating_point():
            mine.lerp_(theirs, 1 - decay)
        else:
            mine.copy_(theirs)
