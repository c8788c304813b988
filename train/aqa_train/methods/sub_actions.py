"""Unlabelled sub-actions of a video: its states, the few that represent it, and the network that parses them.

From Gedamu et al., SAP-Net (section III-C) and, for the up-sampling decoder, Xu et al., FineDiving, CVPR 2022,
arXiv:2204.03646, code github.com/xujinglin/FineDiving. What neither states is marked (ours).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_train.layers import mlp

STEPS = 96
"""Steps of time that the decoder unfolds a video into."""
HALVINGS = 4
"""How often it halves the channels."""


def resample(
    x: Float[Tensor, "batch time channels"], present: Bool[Tensor, "batch time"] | None, steps: int
) -> Float[Tensor, "batch steps channels"]:
    """So many steps for every video, each a copy of the segment that lies there (ours); padding is left out."""
    time = x.shape[1]
    lengths = torch.full((len(x),), time, device=x.device) if present is None else present.sum(dim=1)
    at = torch.arange(steps, device=x.device) * lengths[:, None] // steps
    return x.gather(1, at.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def kmeans(x: Float[Tensor, "batch time channels"], states: int, rounds: int) -> Float[Tensor, "batch states channels"]:
    """Centres of each video's segments, in the order of time; M states.

    They begin at segments evenly spaced in time (ours), so that a video always has the same ones. A centre that loses
    all its segments stays where it is.
    """
    centres = x[:, torch.linspace(0, x.shape[1] - 1, states).round().long()]
    for _ in range(rounds):
        own = F.one_hot(torch.cdist(x, centres).argmin(dim=2), states).to(x)
        count = own.sum(dim=1).unsqueeze(-1)
        centres = torch.where(count > 0, own.transpose(1, 2) @ x / count.clamp(min=1), centres)
    return centres


def choose_states(distance: Float[Tensor, "batch time states"], count: int) -> Int[Tensor, "batch count"]:
    """Greedy subset selection (algorithm 1): in turn the state that lowers most what the video is away from those
    chosen, Z(Γ) = mean over time of the distance to the nearest (equation 3). In the order of choosing; the first of
    equals.
    """
    nearest = distance.new_full(distance.shape[:2], torch.inf)
    free = torch.ones_like(distance[:, 0], dtype=torch.bool)
    chosen = []
    for _ in range(count):
        cost = torch.minimum(nearest.unsqueeze(-1), distance).mean(dim=1)
        best = cost.masked_fill(~free, torch.inf).argmin(dim=1)
        free = free.scatter(1, best[:, None], False)
        nearest = torch.minimum(
            nearest, distance.gather(2, best[:, None, None].expand_as(distance[:, :, :1])).squeeze(2)
        )
        chosen.append(best)
    return torch.stack(chosen, dim=1)


def pseudo_labels(
    x: Float[Tensor, "batch time channels"],
    refined: Float[Tensor, "batch time channels"],
    states: int,
    count: int,
    rounds: int,
) -> Int[Tensor, "batch time"]:
    """Which of the `count` chosen states each segment belongs to, 0 … count − 1.

    States are centres of `x`, and chosen and assigned by their distance from `refined` (equation 3). They are numbered
    in the order in which they come in the video on the whole (ours): what is to be parsed alike must be named alike.
    """
    distance = torch.cdist(refined, kmeans(x, states, rounds))
    chosen = choose_states(distance, count)
    own = distance.gather(2, chosen[:, None].expand(-1, x.shape[1], -1)).argmin(dim=2)
    member = F.one_hot(own, count).to(x)
    time = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
    size = member.sum(dim=1)
    # A state that has no segment comes last.
    when = torch.where(size > 0, (member * time[:, None]).sum(dim=1) / size.clamp(min=1), torch.inf)
    rank = when.argsort(dim=1, stable=True).argsort(dim=1)
    return rank.gather(1, own)


class Parser(nn.Module):
    """FineDiving's up-sampling decoder: segments are channels, which grow to 96 steps while features are pooled."""

    def __init__(self, segments: int, channels: int, states: int) -> None:
        super().__init__()
        if channels < 2**HALVINGS:
            raise UsageError(
                f"the sub-action parser halves features {HALVINGS} times, and these have {counted(channels, 'number')}",
                fix=f"use features of {2**HALVINGS} numbers or more, or a method that does not parse (i3d+gcl, core)",
            )
        widths = (segments, 12, 24, 48, STEPS, STEPS)
        self.blocks = nn.ModuleList(_double_conv(i, o) for i, o in pairwise(widths))
        self.head = mlp(channels // 2**HALVINGS, 128, 64, states)

    def forward(self, x: Float[Tensor, "batch segments channels"]) -> Float[Tensor, "batch steps states"]:
        """Logits of each state at each step."""
        logits: Tensor = self.head(self.unfold(x))
        return logits

    def unfold(self, x: Float[Tensor, "batch segments channels"]) -> Float[Tensor, "batch steps width"]:
        """What the logits are read from: 96 steps, a sixteenth of the channels wide."""
        for i, block in enumerate(self.blocks):
            x = block(F.max_pool1d(x, 2) if i else x)
        return x


def _double_conv(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv1d(width, outputs, 3, padding=1), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def transitions(probability: Float[Tensor, "batch steps states"]) -> Int[Tensor, "batch states"]:
    """The step at which each state is likeliest within its own of so many equal windows of time (equation 5)."""
    steps, states = probability.shape[1:]
    edges = [steps * k // states for k in range(states + 1)]
    found = [probability[:, a:b, k].argmax(dim=1) + a for k, (a, b) in enumerate(pairwise(edges))]
    return torch.stack(found, dim=1)


def between(starts: Int[Tensor, "batch states"], steps: int) -> Float[Tensor, "batch states steps"]:
    """Weights that average the steps of each sub-action: from its transition to the next, the first from 0 (ours)."""
    at = torch.arange(steps, device=starts.device)
    own = (at >= starts[:, 1:, None]).sum(dim=1)
    member = F.one_hot(own, starts.shape[1]).transpose(1, 2).float()
    return member / member.sum(dim=2, keepdim=True).clamp(min=1)


def two_cuts(x: Float[Tensor, "batch time channels"]) -> Int[Tensor, "batch 2"]:
    """Where the second and the third of three parts begin that are as alike within as can be (ours).

    Of all ways to cut the segments in three, the one with the least sum of squared distances from the parts' means.
    """
    time = x.shape[1]
    x = F.pad((x - x.mean(dim=1, keepdim=True)).double(), (0, 0, 1, 0))
    total, square = x.cumsum(dim=1), x.square().sum(dim=2).cumsum(dim=1)
    at = torch.arange(time + 1, device=x.device)
    length = at - at[:, None]
    # Of segments i … j − 1 what is left around their mean: Σ x² − |Σ x|² / n.
    inside = square[:, None] - square[:, :, None] - torch.cdist(total, total).square() / length.clamp(min=1)
    cost = inside.masked_fill(length < 1, torch.inf)
    whole = cost[:, 0, :, None] + cost + cost[:, None, :, time]
    best = whole.flatten(1).argmin(dim=1)
    return torch.stack([best // (time + 1), best % (time + 1)], dim=1)
