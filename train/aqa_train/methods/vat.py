"""Virtual adversarial training: the output for a video may not change by a small step in the worst direction.

Miyato, Maeda, Koyama, Ishii: Virtual Adversarial Training. TPAMI 2018, arXiv:1704.03976. A baseline of S4AQA, on
its own encoder and regressor, with the output of R's first layer as the virtual label, a weight of 1 and a norm of 2.5
(section IV-A). What neither paper states is marked (ours).

    features      → E → R's first layer → p
    features + r  → E → R's first layer → q,    |r| = 2.5 towards the fastest growth of D(p, q)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.batch import Batch, join
from aqa_train.layers import running_statistics_kept
from aqa_train.methods.s4aqa import AA, AAConfig, NotNegative, Streams, refuse_none

Divergence = Literal["kl", "mse"]


@dataclass(frozen=True)
class VATConfig(AAConfig):
    """Settings of VAT, and of AA's encoder and regressor."""

    smoothness_weight: NotNegative = 1.0
    """Of the regularisation (S4AQA, section IV-A)."""
    norm: NotNegative = 2.5
    """ε: length of the perturbation of a video, over all its segments, channels and streams (S4AQA, section IV-A)."""
    iterations: Annotated[int, Field(ge=1)] = 1
    """Power iterations towards the worst direction (Miyato, section 3.3)."""
    divergence: Divergence = "kl"
    """Between the virtual labels: of their softmax, or their mean squared difference (ours)."""


class VAT(AA):
    """AA that is smooth where there are unlabelled videos."""

    Config = VATConfig
    together = False  # its losses differentiate
    config: VATConfig

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms: the labels', and the divergence that the worst small step makes (equation 5)."""
        refuse_none(unlabelled)
        scores = self(join([labelled, unlabelled]))[: len(labelled)]
        terms = {"score": F.mse_loss(scores, labelled.scores)}
        # Dropout would move the labels more than the step does; statistics for prediction are of real videos (ours).
        with running_statistics_kept(self), _without_dropout(self):
            step, label = self.worst_step(unlabelled)
            moved = {n: x + r for (n, x), r in zip(unlabelled.streams.items(), step, strict=True)}
            terms["smoothness"] = divergence(label, self.virtual_label(moved, unlabelled), self.config.divergence)
        return terms

    def virtual_label(self, streams: Streams, batch: Batch) -> Float[Tensor, "batch regressor_width"]:
        """What R's first layer says of the features."""
        first: Tensor = self.regressor[0](torch.cat(self.summaries(streams, batch.present), dim=-1))
        return first

    def worst_step(self, batch: Batch) -> tuple[list[Tensor], Float[Tensor, "batch regressor_width"]]:
        """r of every stream (equations 9 to 12), and the virtual labels without it, both without gradient.

        Miyato takes the gradient of D at ξ d with ξ = 1e-6, which is ξ H d, H being the second derivative of D at 0. A
        step of 1e-6 over all numbers of a video is lost in float32, so H d is computed itself, the limit ξ → 0: H is
        Jᵀ F J, where J is the derivative of the label and F that of D's gradient in the label.
        """
        streams = {n: x.detach().requires_grad_() for n, x in batch.streams.items()}
        inputs = list(streams.values())
        direction = self._unit([torch.randn_like(x) for x in inputs], batch)
        with torch.enable_grad():
            label = self.virtual_label(streams, batch)
            cotangent = torch.zeros_like(label, requires_grad=True)
            back = torch.autograd.grad(label, inputs, cotangent, create_graph=True)
            for _ in range(self.config.iterations):
                (change,) = torch.autograd.grad(back, cotangent, direction, retain_graph=True)
                if self.config.divergence == "kl":
                    p = label.detach().softmax(dim=-1)
                    change = p * (change - (p * change).sum(dim=-1, keepdim=True))
                direction = self._unit(torch.autograd.grad(label, inputs, change, retain_graph=True), batch)
        return [self.config.norm * d for d in direction], label.detach()

    def _unit(self, vectors: Sequence[Tensor], batch: Batch) -> list[Tensor]:
        """Each video's vector, over all streams and existing segments, scaled to length 1."""
        if batch.present is not None:
            vectors = [v * batch.present.view(*batch.present.shape, *[1] * (v.ndim - 2)) for v in vectors]
        length = torch.cat([v.flatten(1) for v in vectors], dim=1).norm(dim=1).clamp(min=1e-30)
        return [(v / length.view(-1, *[1] * (v.ndim - 1))).detach() for v in vectors]


def divergence(
    label: Float[Tensor, "batch width"], moved: Float[Tensor, "batch width"], kind: Divergence
) -> Float[Tensor, ""]:
    """D(label, moved), averaged over videos."""
    if kind == "mse":
        return F.mse_loss(moved, label)
    return F.kl_div(moved.log_softmax(dim=-1), label.log_softmax(dim=-1), reduction="batchmean", log_target=True)


@contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    layers = [m for m in module.modules() if isinstance(m, nn.Dropout) and m.training]
    for m in layers:
        m.eval()
    try:
        yield
    finally:
        for m in layers:
            m.train()
