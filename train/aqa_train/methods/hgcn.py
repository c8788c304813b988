"""HGCN: clips are refined by their neighbours and combined into scenes; each scene contributes a part of the score.

Zhou, Ma, Shum, Liang: Hierarchical Graph Convolutional Networks for Action Quality Assessment. IEEE TCSVT 2023,
doi:10.1109/TCSVT.2023.3281413. Code: github.com/ZhouKanglei/HGCN_AQA. Choices of ours are marked (ours).

    clips → edges by difference to the neighbours → refined clips ─→ graph, attention → shots ──┐
                                                              └───→ graph, attention → weights → scenes
    scenes (→ graph of those before) → μ, log σ² of each → the sum of μ is the score, of μ + σ ε a draw of it
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import segments_of

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class HGCNConfig:
    """Settings of HGCN; the values are those of the authors' code."""

    score_weight: NotNegative = 0.4
    """Of the squared error of μ (ours: at every step, where theirs adds it every tenth epoch)."""
    draw_weight: NotNegative = 0.6
    """Of the squared error of a draw."""
    scenes: Positive = 7
    reach: Positive = 3
    """Shots up to reach − 1 places apart are neighbours; of clips, two."""
    groups: Positive = 8
    """Of convolutions; channels and widths must be multiples."""
    factor: Positive = 4
    """By which attention is narrower than what it reads."""
    widths: tuple[Positive, Positive, Positive] = (512, 256, 128)
    """Of refined clips, of scenes, and of what scores are read from."""
    motion: bool = False
    """Scenes see those before them; off where their code is called without settings."""
    start_at_mean: bool = True
    """μ's bias starts at the labelled mean, each scene with its part (ours); False starts it at random."""


class HGCN(nn.Module):
    """Hierarchical graph convolutions over the clips of a video, all of one length."""

    Config = HGCNConfig
    near: Tensor

    def __init__(self, inputs: Inputs, config: HGCNConfig = HGCNConfig()) -> None:
        super().__init__()
        self.config, self.clips = config, inputs.segments
        channels = sum(inputs.widths.values())
        clip, scene, last = config.widths
        for name, width in (("features", channels), *(("widths", w) for w in config.widths)):
            if width % (config.groups * (1 if width == last else config.factor)):
                raise UsageError(
                    f"{width} channels of {name} cannot be divided into {config.groups} groups, {config.factor} times "
                    "narrower for attention",
                    fix="set groups and factor such that their product divides the features and the widths",
                )
        self.register_buffer("near", torch.stack([_neighbours(self.clips, k) for k in (2, config.reach)]))
        self.state = _convolution(channels, channels // config.factor, config.groups)
        self.refine = _convolution(channels, clip, config.groups)
        self.shots = _Attention(clip, clip // config.factor, self.clips, config.groups)
        self.gather = _convolution(clip, scene, config.groups)
        self.transfer = _Attention(clip, clip // config.factor, self.clips, 1)
        self.weigh = _convolution(clip, config.scenes, 1)
        self.weight = nn.Parameter(torch.ones(config.scenes, self.clips))
        self.weight_of_clips = nn.Parameter(torch.ones(()))
        if config.motion:
            self.before = _Attention(scene, scene // config.factor, config.scenes, config.groups)
        self.read = _convolution(scene, last, config.groups)
        self.mean, self.log_variance = nn.Conv1d(last, 1, 1), nn.Conv1d(last, 1, 1)
        if config.start_at_mean:
            nn.init.constant_(self.mean.bias, inputs.scale.mean / config.scenes)  # type: ignore[arg-type]

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units: the sum over scenes, without a draw."""
        return self.distribution(batch)[0].sum(dim=-1)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        mean, log_variance = self.distribution(labelled)
        draw = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return {
            "score": F.mse_loss(mean.sum(dim=-1), labelled.scores),
            "draw": F.mse_loss(draw.sum(dim=-1), labelled.scores),
        }

    def distribution(self, batch: Batch) -> tuple[Float[Tensor, "batch scene"], Float[Tensor, "batch scene"]]:
        """μ and log σ² of every scene; log σ² within ±8, so that no loss overflows (ours)."""
        scenes = self.scenes(batch)
        if self.config.motion:
            order = torch.ones(self.config.scenes, self.config.scenes, device=scenes.device).tril()
            scenes = scenes @ (order * self.before(scenes)).softmax(dim=-1)
        v = self.read(scenes)
        return self.mean(v).squeeze(1), self.log_variance(v).squeeze(1).clamp(-8, 8)

    def scenes(self, batch: Batch) -> Float[Tensor, "batch width scene"]:
        """Clips that a video lacks are zero, and stay so (ours)."""
        x, there = self._of_one_length(batch)
        state = self.state(x)
        edges = (state.unsqueeze(-1) - state.unsqueeze(-2)).tanh().mean(dim=1)
        edges = (edges + torch.eye(self.clips, device=x.device)) * self.near[0]
        x = self.refine(x @ edges) * there
        shots = self.gather(x @ (self.near[1] + self.shots(x)).softmax(dim=-1)) * there
        of_clips = self.weigh(x @ (self.near[1] + self.transfer(x)).softmax(dim=-1))
        return shots @ (self.weight + self.weight_of_clips * of_clips).transpose(1, 2)

    def _of_one_length(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Channels before clips, as many as in training, and which of them are there."""
        x = segments_of(batch)
        there = torch.ones(x.shape[:2], device=x.device) if batch.present is None else batch.present.to(x.dtype)
        if bool(there[:, self.clips :].any()):
            raise UsageError(
                f"a video of {x.shape[1]} segments does not fit hgcn, trained with {self.clips}",
                fix="extract as many segments as for training",
            )
        missing = max(self.clips - x.shape[1], 0)
        x, there = F.pad(x, (0, 0, 0, missing))[:, : self.clips], F.pad(there, (0, missing))[:, : self.clips]
        return x.transpose(1, 2), there[:, None]


class _Attention(nn.Module):
    """A graph of its own, learned, plus that of attention between the nodes."""

    def __init__(self, channels: int, width: int, nodes: int, groups: int) -> None:
        super().__init__()
        self.query = nn.Conv1d(channels, width, 1, groups=groups, bias=False)
        self.key = nn.Conv1d(channels, width, 1, groups=groups, bias=False)
        self.own = nn.Parameter(torch.eye(nodes))
        self.share = nn.Parameter(torch.ones(()))

    def forward(self, x: Float[Tensor, "batch channels node"]) -> Float[Tensor, "batch node node"]:
        query = self.query(x)
        return self.own + self.share * (query.transpose(1, 2) @ self.key(x)) / math.sqrt(query.shape[1])


def _convolution(channels: int, width: int, groups: int) -> nn.Sequential:
    """Of each place by itself, and ReLU."""
    return nn.Sequential(nn.Conv1d(channels, width, 1, groups=groups), nn.ReLU())


def _neighbours(nodes: int, reach: int) -> Float[Tensor, "node node"]:
    """1 between places less than `reach` apart."""
    at = torch.arange(nodes)
    return ((at[:, None] - at).abs() < reach).float()
