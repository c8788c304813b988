"""C3D-AVG: from one mean feature, the score of a dive (STL), and also its classes and a caption (MTL).

Parmar and Morris: What and How Well You Performed? A Multitask Learning Approach to Action Quality Assessment.
CVPR 2019, arXiv:1904.04346. Code: github.com/ParitoshParmar/MTL-AQA, which trains C3D too; here, as in S4AQA's
comparison, features are those of a frozen I3D. Choices of ours are marked (ours).

    features → mean over segments → one layer, ReLU → score
         │                                         └→ one classifier per column: position, armstand, …   MTL
         └→ GRU → GRU, which also reads the words so far → next word                                      MTL
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.batch import Batch, Inputs
from aqa_train.layers import mean_feature, mlp, refuse_unknown, segments_of
from aqa_train.pool import Pool

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class C3DAVGSTLConfig:
    """Settings of C3D-AVG-STL."""

    absolute_weight: NotNegative = 1.0
    """Of the absolute error, beside the squared one."""
    width: Positive = 512
    """Of the layer that takes fc6's place; theirs has 4096 for 8192 features (ours)."""
    start_at_mean: bool = True
    """The score's bias starts at the labelled mean (ours); False starts it at random."""


@dataclass(frozen=True)
class C3DAVGConfig(C3DAVGSTLConfig):
    """Settings of C3D-AVG-MTL; those of the captioner are the authors'."""

    classes_weight: NotNegative = 1.0
    """Of the classifiers' cross-entropies, which are added up."""
    caption_weight: NotNegative = 0.01
    """Of the words' cross-entropy, which is added up over a caption."""
    caption_width: Positive = 512
    """Of both recurrent networks, and of words."""
    caption_layers: Positive = 2
    """Layers in each of the two recurrent networks."""
    caption_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Between those layers."""
    words: Annotated[int, Field(ge=2)] = 100
    """A caption's length at most, with the words that begin and end it."""


class C3DAVGSTL(nn.Module):
    """The score alone."""

    Config: type[C3DAVGSTLConfig] = C3DAVGSTLConfig
    together = True

    def __init__(self, inputs: Inputs, config: C3DAVGSTLConfig = C3DAVGSTLConfig()) -> None:
        super().__init__()
        self.config = config
        self.hidden = nn.Linear(sum(inputs.widths.values()), config.width)
        self.regressor = mlp(config.width, 1, start=inputs.scale.mean if config.start_at_mean else None)

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        return self.regressor(self.represent(batch)).squeeze(-1)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """In training units; the authors divide scores by 17 instead."""
        scores = self(labelled)
        return {"score": F.mse_loss(scores, labelled.scores), "absolute": F.l1_loss(scores, labelled.scores)}

    def represent(self, batch: Batch) -> Float[Tensor, "batch width"]:
        return F.relu(self.hidden(mean_feature(batch)))


class C3DAVG(C3DAVGSTL):
    """The score, a dive's classes and its commentary; which they are, the columns of the method's row say."""

    Config = C3DAVGConfig
    together = False  # it reads words until there are none

    def __init__(self, inputs: Inputs, config: C3DAVGConfig = C3DAVGConfig()) -> None:
        super().__init__(inputs, config)
        self.classifiers = nn.ModuleDict(
            {n: nn.Linear(config.width, len(c.words)) for n, c in inputs.columns.items() if c.kind == "category"}
        )
        (self.commentary,) = [n for n, c in inputs.columns.items() if c.kind == "tokens"]
        self.captioner = Captioner(sum(inputs.widths.values()), len(inputs.columns[self.commentary].words), config)

    def prepare(self, pool: Pool) -> None:
        """Nothing is kept: what a labelled video lacks is said before the training."""
        for batch in pool.labelled.batches():
            for name in (*self.classifiers, self.commentary):
                refuse_unknown(batch, name)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        terms, x = super().losses(labelled, unlabelled), self.represent(labelled)
        classes = [F.cross_entropy(c(x), labelled.columns[n]) for n, c in self.classifiers.items()]
        words = labelled.columns[self.commentary][:, : self.config.words]  # type: ignore[attr-defined]
        return {
            **terms,
            "classes": torch.stack(classes).sum(),
            "caption": caption_loss(self.captioner(segments_of(labelled), words), words),
        }


class Captioner(nn.Module):
    """S2VT: the first network sees the segments, then nothing; the second its states and, from then on, the words.

    Venugopalan et al.: Sequence to Sequence – Video to Text. ICCV 2015, arXiv:1505.00487. With gated recurrent units.
    """

    def __init__(self, channels: int, vocabulary: int, config: C3DAVGConfig) -> None:
        super().__init__()
        width, layers = config.caption_width, config.caption_layers
        dropout = config.caption_dropout if layers > 1 else 0.0
        self.embedding = nn.Embedding(vocabulary, width)
        self.seeing = nn.GRU(channels, width, layers, batch_first=True, dropout=dropout)
        self.saying = nn.GRU(2 * width, width, layers, batch_first=True, dropout=dropout)
        self.out = nn.Linear(width, vocabulary)

    def forward(
        self, x: Float[Tensor, "batch time channels"], words: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "batch rest vocabulary"]:
        """Logits of every word but the first, each given those before it (codes, −1 behind the end)."""
        said = self.embedding(words[:, :-1].clamp(min=0))
        seen, state = self.seeing(x)
        _, saying = self.saying(torch.cat([seen, seen.new_zeros(seen.shape)], dim=-1))
        seen, _ = self.seeing(x.new_zeros(len(x), said.shape[1], x.shape[2]), state)
        out, _ = self.saying(torch.cat([seen, said], dim=-1), saying)
        return self.out(out)


def caption_loss(
    logits: Float[Tensor, "batch rest vocabulary"], words: Int[Tensor, "batch length"]
) -> Float[Tensor, ""]:
    """Cross-entropy of the words after the first, added up over a caption and averaged over videos."""
    return F.cross_entropy(logits.flatten(0, 1), words[:, 1:].flatten(), ignore_index=-1, reduction="sum") / len(words)
