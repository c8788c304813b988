"""Two other ways to recover segments, with which S4AQA's paper compares it on the same networks.

Zhang et al., TCSVT 2022, doi:10.1109/tcsvt.2022.3143549, section IV-D; the first after Parmar and Morris,
HalluciNet-ing Spatiotemporal Representations Using a 2D-CNN, Signals 2021. Choices of ours are marked (ours).

    keep first frame   each segment's first frame, repeated → E → f~ → Φ → all segments        Table VI
    vanilla SSL        segments are recovered first, then scores learned by a fresh optimiser   Table IX
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs, join
from aqa_train.layers import mlp
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig, Streams, Videos, refuse_none


class KeepFirstFrame(S4AQA):
    """S4AQA that sees stills where segments would be hidden, and recovers every segment.

    Stream `still_x` has the features of stream `x`'s segments whose frames are all the first one.
    """

    def __init__(self, inputs: Inputs, config: S4AQAConfig = S4AQAConfig()) -> None:
        moving = {n: shape for n, shape in inputs.streams.items() if not n.startswith("still_")}
        if missing := [n for n in moving if f"still_{n}" not in inputs.streams]:
            names = ", ".join(f"still-{n}".replace("_", "-") for n in missing)
            raise UsageError(
                f"segments are recovered from their first frames, and the store lacks {names}",
                fix=f"add {names} to --streams of aqa-extract",
            )
        super().__init__(replace(inputs, streams=moving), config)
        widths = replace(inputs, streams=moving).widths
        self.decoder = nn.ModuleList(mlp(self.width, config.decoder_width, self.segments * c) for c in widths.values())

    def products(self, streams: Streams, present: Tensor | None) -> Streams:
        """Of every stream that moves, or of what stands in for it."""
        return super().products({n: x for n, x in streams.items() if not n.startswith("still_")}, present)

    def mask(self, batch: Batch, whole: Videos | None = None) -> tuple[Videos, Float[Tensor, "batch channels"]]:
        """The stills under their streams' names, and all segments of all streams; NaN where a video has none."""
        stills, target = {}, []
        for name, x in batch.streams.items():
            if name.startswith("still_"):
                continue
            stills[name] = batch.streams[f"still_{name}"]
            segments = x.flatten(2)
            if batch.present is not None:
                segments = segments.masked_fill(~batch.present.unsqueeze(-1), torch.nan)
            missing = self.segments - x.shape[1]
            target.append(F.pad(segments, (0, 0, 0, missing), value=torch.nan).flatten(1))
        return (self.products(stills, batch.present), batch.present), torch.cat(target, dim=-1)

    def recovery_error(
        self, f: list[Float[Tensor, "batch width"]], target: Float[Tensor, "batch channels"]
    ) -> Float[Tensor, ""]:
        """Absolute error of all segments that there are (equation 5), averaged over videos, segments and channels."""
        recovered = torch.cat([decode(stream) for decode, stream in zip(self.decoder, f, strict=True)], dim=-1)
        there = ~target.isnan()
        return ((recovered - target.nan_to_num()).abs() * there).sum() / there.sum()


@dataclass(frozen=True)
class VanillaSSLConfig(S4AQAConfig):
    """Settings of S4AQA, and when recovery ends."""

    pretraining: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the epochs that recover segments; the others learn scores (ours)."""


class VanillaSSL(S4AQA):
    """Self-supervised pretraining, then fine-tuning of the same encoder, nothing frozen."""

    Config = VanillaSSLConfig
    config: VanillaSSLConfig

    def __init__(self, inputs: Inputs, config: VanillaSSLConfig = VanillaSSLConfig()) -> None:
        super().__init__(inputs, config)
        self.phase = "recovery"

    def phases(self) -> dict[str, float]:
        """Shares of the epochs; the trainer sets `phase`, and starts each with a fresh optimiser."""
        return {"recovery": self.config.pretraining, "scores": 1 - self.config.pretraining}

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """The recovery error while pretraining (equation 5), that of scores afterwards (equation 3)."""
        if self.phase == "scores":
            return {"score": F.mse_loss(self(labelled), labelled.scores)}
        refuse_none(unlabelled)
        videos = join([unlabelled, labelled]) if self.config.recover == "all" else unlabelled
        masked, target = self.mask(videos)
        return {"recovery": self.recovery_error(self.pooled(*masked), target)}
