"""S4L: score videos while learning to predict by how much they are rotated.

Zhai, Oliver, Kolesnikov, Beyer: S4L: Self-Supervised Semi-Supervised Learning. ICCV 2019, arXiv:1905.03670; applied to
videos in S4AQA (section IV-A), with its own encoder and regressor. What neither paper states is marked (ours).

    rgb, rot90-rgb, rot180-rgb, rot270-rgb → E → f → linear → which of the four
    rgb                                    → E → f → R → score
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs, join
from aqa_train.layers import running_statistics_kept
from aqa_train.methods.s4aqa import AA, AAConfig, NotNegative, Streams, refuse_none

TURNS = ("", "rot90_", "rot180_", "rot270_")


@dataclass(frozen=True)
class S4LConfig(AAConfig):
    """Settings of S4L, and of AA's encoder and regressor."""

    rotation_weight: NotNegative = 1.0
    """Of the cross-entropy over the four rotations (ours)."""
    scored: Literal["upright", "all"] = "upright"
    """Which rotations of labelled videos the regressor learns from (ours)."""


class S4L(AA):
    """AA and a linear layer that tells rotations."""

    Config = S4LConfig
    config: S4LConfig

    def __init__(self, inputs: Inputs, config: S4LConfig = S4LConfig()) -> None:
        self.upright = tuple(n for n in inputs.streams if not n.startswith(TURNS[1:]))
        wanted = [turn + n for n in self.upright for turn in TURNS[1:]]
        if missing := [n.replace("_", "-") for n in wanted if n not in inputs.streams]:
            raise UsageError(
                f"rotations are told apart, and the store lacks {', '.join(missing)}",
                fix=f"add {','.join(missing)} to --streams of aqa-extract",
            )
        super().__init__(replace(inputs, streams={n: inputs.streams[n] for n in self.upright}), config)
        self.rotation = nn.Linear(self.width * len(self.upright), len(TURNS))

    def products(self, streams: Streams, present: Tensor | None) -> Streams:
        """Of every upright stream, or of what stands in for it."""
        return super().products({n: streams[n] for n in self.upright}, present)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms: the labels', and the cross-entropy of the rotations of all videos."""
        refuse_none(unlabelled)
        videos = join([labelled, unlabelled])
        scores = self(videos)[None, : len(labelled)]
        # All four normalised together, or each would look alike; prediction sees upright videos alone (ours).
        with running_statistics_kept(self):
            turned = {n: torch.cat([videos.streams[turn + n] for turn in TURNS]) for n in self.upright}
            present = None if videos.present is None else videos.present.repeat(len(TURNS), 1)
            f = self.summaries(turned, present)
        if self.config.scored == "all":
            scores = self.regress(f).view(len(TURNS), -1)[:, : len(labelled)]
        turns = torch.arange(len(TURNS), device=scores.device).repeat_interleave(len(videos))
        return {
            "score": F.mse_loss(scores, labelled.scores.expand_as(scores)),
            "rotation": F.cross_entropy(self.rotation(torch.cat(f, dim=-1)), turns),
        }
