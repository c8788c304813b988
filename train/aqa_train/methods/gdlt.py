"""GDLT: a transformer whose queries stand for grades; the score is the mean grade, weighted by the responses.

Xu et al.: Likert Scoring With Grade Decoupling for Long-Term Action Assessment. CVPR 2022. Code:
github.com/xuangch/CVPR22_GDLT. Choices of ours are marked (ours).

    features → two layers with batch norm → encoder ─┐
                  learned queries, one per grade → decoder → embeddings → linear map per grade, sigmoid → response
                                                      │      responses divided by their sum · grades 0 … 1 → score
                                                      └ triplets: near to the same query's, far from other queries'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import segments_of, where_present

Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class GDLTConfig:
    """Settings of GDLT; the values are those of the authors' code."""

    triplet_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Of keeping the grades apart."""
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """By which a query's own embeddings shall be nearer than another's, in cosine distance."""
    queries: Annotated[int, Field(ge=2)] = 4
    """Grades."""
    width: Positive = 256
    """Of the transformer; its feed-forward layers are three times as wide."""
    heads: Positive = 1
    """Of attention; `width` must be a multiple."""
    encoder_layers: Positive = 1
    decoder_layers: Positive = 2
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    start_at_mean: bool = True
    """The responses start such that the score is the labelled mean (ours); False leaves all of them at a half, which
    is the middle of the scale."""


class GDLT(nn.Module):
    """Grade-decoupled Likert transformer."""

    Config = GDLTConfig
    grades: Tensor

    def __init__(self, inputs: Inputs, config: GDLTConfig = GDLTConfig()) -> None:
        super().__init__()
        if config.width % config.heads:
            raise UsageError(f"width = {config.width} is not a multiple of heads = {config.heads}", fix="change one")
        self.config, self.top = config, inputs.scale.top
        channels, width = sum(inputs.widths.values()), config.width
        half = max(channels // 2, 1)
        self.project = nn.Sequential(
            nn.Linear(channels, half), nn.BatchNorm1d(half), nn.ReLU(), nn.Linear(half, width), nn.BatchNorm1d(width)
        )
        shape = (width, config.heads, 3 * width, config.dropout)
        encoder = nn.TransformerEncoderLayer(*shape, batch_first=True)
        decoder = nn.TransformerDecoderLayer(*shape, batch_first=True)
        self.encoder = nn.TransformerEncoder(encoder, config.encoder_layers, nn.LayerNorm(width), False)
        self.decoder = nn.TransformerDecoder(decoder, config.decoder_layers, nn.LayerNorm(width))
        self.query = nn.Parameter(torch.randn(config.queries, width))
        self.respond = nn.Linear(width, config.queries)
        for name, p in self.named_parameters():
            if p.ndim > 1 and name != "query":
                nn.init.xavier_uniform_(p)
        nn.init.zeros_(self.respond.bias)
        self.register_buffer("grades", torch.linspace(0, 1, config.queries))
        if config.start_at_mean:
            self.respond.bias.data[:] = responses_for(inputs.scale.mean / inputs.scale.top, self.grades)

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return self.score(self.embed(batch))

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """The error on the scale 0 … 1, as the authors', and the triplets."""
        embedded = self.embed(labelled)
        terms = {"score": F.mse_loss(self.score(embedded) / self.top, labelled.scores / self.top)}
        if self.config.triplet_weight > 0:
            terms["triplet"] = triplet_loss(embedded, self.config.margin)
        return terms

    def embed(self, batch: Batch) -> Float[Tensor, "batch query width"]:
        """What every query finds in a video."""
        x, present = segments_of(batch), batch.present
        if present is None:
            x = self.project(x.flatten(0, 1)).view(*x.shape[:2], -1)
        else:
            # Batch norm must not see padding.
            x = where_present(self.project(x[present]), present)
        absent = None if present is None else ~present
        memory = self.encoder(x, src_key_padding_mask=absent)
        queries = self.query.expand(len(batch), -1, -1)
        return self.decoder(queries, memory, memory_key_padding_mask=absent)

    def score(self, embedded: Float[Tensor, "batch query width"]) -> Float[Tensor, "batch"]:
        """Responses divided by their sum, times the grades."""
        response = self.respond(embedded).diagonal(dim1=-2, dim2=-1).sigmoid()
        return response @ self.grades / response.sum(dim=-1) * self.top


def triplet_loss(embedded: Float[Tensor, "batch query width"], margin: float) -> Float[Tensor, ""]:
    """Hardest triplets: the farthest embedding of the same query, of any video, and the nearest of another query."""
    queries = embedded.shape[1]
    unit = F.normalize(embedded.flatten(0, 1), dim=-1)
    distance = 1 - unit @ unit.T
    of = torch.arange(queries, device=unit.device).repeat(len(embedded))
    same = of[:, None] == of
    # An embedding is not a positive of its own: at a distance of 0, which never is the farthest.
    farthest = distance.masked_fill(~same | torch.eye(len(of), dtype=torch.bool, device=of.device), 0).amax(dim=1)
    nearest = distance.masked_fill(same, torch.inf).amin(dim=1)
    return F.relu(farthest - nearest + margin).mean()


def responses_for(score: float, grades: Float[Tensor, "query"]) -> Float[Tensor, "query"]:
    """Logits, falling in a straight line from the nearer end of the scale, that make `score` of 0 … 1."""
    away = grades if score < 0.5 else 1 - grades
    low, high = 0.0, 50.0
    for _ in range(40):
        slope = (low + high) / 2
        response = (-slope * away).sigmoid()
        low, high = (slope, high) if float(response @ away / response.sum()) > min(score, 1 - score) else (low, slope)
    return -low * away
