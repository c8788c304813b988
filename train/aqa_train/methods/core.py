"""CoRe: score a video by comparing it with others whose scores are known.

Yu, Rao, Zhao, Lu, Zhou: Group-aware Contrastive Regression for Action Quality Assessment. ICCV 2021, arXiv:2108.07797.
Code: github.com/yuxumin/CoRe. The authors train I3D too; here features are frozen. Choices of ours are marked (ours).

    exemplar → mean feature ─┐
    exemplar's score ────────┼→ tree → which group of differences, and where in it → difference + exemplar's score
    video → mean feature ────┘                                                       → mean over the exemplars

At each level, the tree (GART) decides between two halves of the groups; every leaf is one group. `exemplars.py` chooses
the exemplars, `groups.py` makes the groups. The rows of the paper's tables are settings: without `compare`, each video
is scored alone; with `head = mlp`, fully connected layers regress one number.

    I3D + MLP     compare = False, head = mlp          CoRe + MLP     compare = True, head = mlp
    I3D + GART    compare = False, head = gart         CoRe + GART    compare = True, head = gart

If `difficulty` is set, scores are divided by the difficulty, and multiplied by it again at the end (section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.batch import Batch, Inputs
from aqa_train.layers import Quality, mean_feature, mlp
from aqa_train.methods.exemplars import Comparing, Exemplars, mean_of_voters
from aqa_train.methods.groups import cut, cut_mirrored, group_losses, group_of, place_of, value_of
from aqa_train.methods.s4aqa import NotNegative, Positive
from aqa_train.pool import Pool


@dataclass(frozen=True)
class CoReConfig(Comparing):
    """Settings of CoRe; the tree's depth and width, and the voters, are the paper's (section 4.1)."""

    compare: bool = True
    """With exemplars (CoRe), or each video alone (I3D)."""
    head: Literal["gart", "mlp"] = "gart"
    """The group-aware regression tree, or one number from fully connected layers."""
    variant: Literal["code", "paper"] = "code"
    """`code`: 2^(depth − 1) groups, mirrored at 0, a leaf's share of the likelihood of the path to it, leaves without
    sigmoid, every pair in both directions. `paper`: 2^depth groups by equation 5, cross-entropy of every leaf for
    itself, sigmoid, one direction (section 3.2)."""
    depth: Annotated[int, Field(ge=2, le=10)] = 5
    """d of the tree."""
    width: Positive = 256
    """Of a node's feature."""
    mlp_widths: Annotated[tuple[Positive, ...], Field(min_length=1)] = (256, 128)
    """Hidden widths of `head = mlp`, of which the paper tells that there are two (ours; USDL's)."""
    start_at_mean: bool = True
    """Without exemplars: the last bias of `head = mlp` starts at the labelled mean (ours)."""
    group_weight: NotNegative = 1.0
    """Of the loss that tells groups apart (equation 6)."""
    position_weight: NotNegative = 1.0
    """Of the squared error of the place within the group (equation 6)."""


class CoRe(nn.Module):
    """A head over one video or over pairs."""

    Config = CoReConfig
    bounds: Tensor

    def __init__(self, inputs: Inputs, config: CoReConfig = CoReConfig()) -> None:
        super().__init__()
        self.config, self.top = config, inputs.scale.top
        self.quality = Quality(inputs.scale, config.difficulty, config.quality_max)
        width = sum(inputs.widths.values())
        read = 2 * width + 1 if config.compare else width
        self.head: GART | nn.Sequential = (
            GART(read, config.width, config.depth if config.variant == "paper" else config.depth - 1)
            if config.head == "gart"
            else mlp(read, *config.mlp_widths, 1)
        )
        if config.compare:
            self.exemplars = Exemplars(inputs, config, width)
        self.register_buffer("bounds", torch.ones(0))

    # ---- before training

    def prepare(self, pool: Pool) -> None:
        """Keep the labelled videos as exemplars, and cut differences in groups; without `compare` scores."""
        if self.config.compare:
            labelled, _ = self.exemplars.keep(pool, self.quality, lambda batch: [mean_feature(batch)])
            if isinstance(self.head, GART):
                self.bounds = self._bounds(self._cut(self.exemplars.differences(labelled)))
            return
        labelled = pool.labelled.without_features()
        self.quality.fit(labelled)
        values = self.quality.to_value(labelled.scores, labelled).double().cpu().numpy()
        if isinstance(self.head, GART):
            self.bounds = self._bounds(cut(values, self.head.leaves, (0.0, self.top)))
        elif self.config.start_at_mean:
            nn.init.constant_(self.head[-1].bias, float(values.mean()))  # type: ignore[arg-type]

    def _cut(self, differences: NDArray[np.float64]) -> NDArray[np.float64]:
        assert isinstance(self.head, GART)
        if self.config.variant == "paper":
            both = np.concatenate([differences, -differences])
            return cut(both, self.head.leaves, (-self.top, self.top))
        return cut_mirrored(differences, self.head.leaves, self.top)

    def _bounds(self, bounds: NDArray[np.float64]) -> Float[Tensor, "bounds"]:
        return torch.as_tensor(bounds, dtype=torch.float32).to(self.bounds.device)

    # ---- training and use

    def pair(
        self, exemplar: Float[Tensor, "pairs width"], video: Float[Tensor, "pairs width"], known: Float[Tensor, "pairs"]
    ) -> Float[Tensor, "pairs both"]:
        """What the head sees of two videos and the first one's score (equation 4)."""
        return torch.cat([exemplar, video, known[:, None] / self.top], dim=1)

    def forward(self, batch: Batch) -> Float[Tensor, "batch"]:
        """Scores in training units."""
        x = mean_feature(batch)
        if not self.config.compare:
            return self.quality.to_score(self._read(x), batch)
        places, counts = self.exemplars.voters(batch, x)
        flat = places.flatten()
        other, known = self.exemplars.x[flat], self.exemplars.known[flat]
        both = self.pair(other, x.repeat_interleave(places.shape[1], dim=0), known)
        values = (self._read(both) + known).view(places.shape)
        return self.quality.to_score(mean_of_voters(values, counts), batch)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        """Unweighted terms, from labelled videos alone: `group` and `position`, or one of the numbers."""
        x, value = mean_feature(labelled), self.quality.to_value(labelled.scores, labelled)
        if not self.config.compare:
            return self._terms(x, [value])
        drawn = self.exemplars.draw(labelled, x)
        other, known = self.exemplars.x[drawn], self.exemplars.known[drawn]
        both, deltas = [self.pair(other, x, known)], [value - known]
        if self.config.variant == "code":
            both.append(self.pair(x, other, value))
            deltas.append(-deltas[0])
        return self._terms(torch.cat(both), deltas)

    def _read(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch"]:
        """The number that the head says: of the likeliest group its place, or the regressed one."""
        if not isinstance(self.head, GART):
            return self.head(x).squeeze(-1)
        return value_of(*self._leaves(x), self.bounds)

    def _leaves(self, x: Float[Tensor, "batch width"]) -> tuple[Tensor, Tensor]:
        assert isinstance(self.head, GART)
        log_share, position = self.head(x)
        return log_share, position.sigmoid() if self.config.variant == "paper" else position

    def _terms(self, x: Float[Tensor, "all width"], targets: Sequence[Float[Tensor, "batch"]]) -> dict[str, Tensor]:
        """Losses of one or two directions, whose videos follow one another in `x`."""
        if not isinstance(self.head, GART):
            said = self.head(x).squeeze(-1).split(len(targets[0]))
            name = "difference" if self.config.compare else "score"
            return {name: torch.stack([F.mse_loss(s, t) for s, t in zip(said, targets, strict=True)]).sum()}
        size = len(targets[0])
        log_share, position = (y.split(size) for y in self._leaves(x))
        compare = literal_losses if self.config.variant == "paper" else group_losses
        terms = [compare(p, at, d, self.bounds) for p, at, d in zip(log_share, position, targets, strict=True)]
        group, place = (torch.stack(term).sum() for term in zip(*terms, strict=True))
        return {"group": group, "position": place}


def literal_losses(
    log_share: Float[Tensor, "batch leaves"],
    place: Float[Tensor, "batch leaves"],
    target: Float[Tensor, "batch"],
    bounds: Float[Tensor, "bounds"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """As equation 6 is printed: cross-entropy of every leaf for itself, squared error of the right one."""
    own = group_of(target, bounds)
    chosen = F.one_hot(own, len(bounds) - 1).to(place)
    # log(1 − P) from log P, away from P = 1 where it has no end.
    rest = torch.log1p(-log_share.exp().clamp(max=1 - 1e-6))
    group = -(chosen * log_share + (1 - chosen) * rest).sum(dim=1).mean()
    error = (place - place_of(target, own, bounds)[:, None]).square() * chosen
    return group, error.sum(dim=1).mean()


class GART(nn.Module):
    """The group-aware regression tree (section 3.2): `levels` decisions, 2^levels leaves, a number at each."""

    def __init__(self, read: int, width: int, levels: int) -> None:
        super().__init__()
        self.leaves = 2**levels
        nodes = [2**i for i in range(levels)]
        self.root = nn.Linear(read, width)
        self.split = nn.ModuleList(_Nodes(n, width, 2 * width) for n in nodes)
        self.choose = nn.ModuleList(_Nodes(n, width, 2) for n in nodes)
        self.place = _Nodes(self.leaves, width, 1)

    def forward(
        self, x: Float[Tensor, "batch width"]
    ) -> tuple[Float[Tensor, "batch leaves"], Float[Tensor, "batch leaves"]]:
        """Logarithms of the leaves' probabilities, which add up along the path, and the number at each leaf."""
        node = F.relu(self.root(x))[None]
        log_share = x.new_zeros(1, len(x))
        for split, choose in zip(self.split, self.choose, strict=True):
            step = F.log_softmax(choose(node), dim=-1)
            log_share = (log_share[:, None] + step.transpose(1, 2)).flatten(0, 1)
            # The two halves of what a node becomes are its children, side by side.
            node = F.relu(split(node)).unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1)
        return log_share.T, self.place(node).squeeze(-1).T


class _Nodes(nn.Module):
    """A linear layer of its own for each node, as one product of matrices; it starts as a convolution in groups does.

    Which it is in the authors' code, at 1.6 to 2.9 times the cost (`benchmarks/gart.py`).
    """

    def __init__(self, nodes: int, read: int, write: int) -> None:
        super().__init__()
        reach = read**-0.5
        self.weight = nn.Parameter(torch.empty(nodes, read, write).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.empty(nodes, 1, write).uniform_(-reach, reach))

    def forward(self, x: Float[Tensor, "nodes batch read"]) -> Float[Tensor, "nodes batch write"]:
        return torch.baddbmm(self.bias, x, self.weight)
