"""Methods that ask of the trainer what CoRe and SAP-Net ask of it, and little else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs
from aqa_train.layers import mean_feature, mlp
from aqa_train.methods import Method
from aqa_train.pool import Pool


@dataclass(frozen=True)
class PairsConfig:
    voters: int = 3
    groups: int = 4


class Pairs(nn.Module):
    """CoRe: score differences to exemplars of the same category and the nearest difficulty, in groups."""

    Config = PairsConfig
    row = Method(
        f"{__name__}:Pairs",
        "exemplar pairs",
        columns={"difficulty": "number", "category": "category"},
        labels={"judges": "vector"},
        uses_difficulty=True,
        recipes={"": {"epochs": 4, "lr": 1e-3}, "aqa-7": {"epochs": 2}},
    )

    def __init__(self, inputs: Inputs, config: PairsConfig = PairsConfig()) -> None:
        super().__init__()
        self.config = config
        width = sum(inputs.widths.values())
        for name, shape in {"x": (0, width), "scores": (0,), "difficulty": (0,), "bounds": (0,)}.items():
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("category", torch.zeros(0, dtype=torch.int64))
        self.head = mlp(2 * width + 1, 8, config.groups + 1)
        self.judges = nn.Linear(width, inputs.columns["judges"].width)

    def prepare(self, pool: Pool) -> None:
        whole = pool.labelled.whole()
        self.x, self.scores = mean_feature(whole), whole.scores
        self.difficulty, self.category = whole.columns["difficulty"], whole.columns["category"]
        same = self.category[:, None] == self.category
        alone = ~(same & ~torch.eye(len(whole), dtype=torch.bool)).any(dim=1)
        if alone.any():
            raise UsageError(f"{whole.ids[int(alone.nonzero()[0])]} is the only labelled video of its category")
        apart = (self.scores[:, None] - self.scores).abs()[same]
        self.bounds = torch.quantile(apart, torch.linspace(0, 1, self.config.groups + 1))

    def choose(self, batch: Batch, number: int, itself: bool) -> Tensor:
        """Places of exemplars (batch, number)."""
        far = (batch.columns["difficulty"][:, None] - self.difficulty).abs()
        far = far + 1e3 * (batch.columns["category"][:, None] != self.category)
        if not itself:
            far = far + 1e6 * (mean_feature(batch)[:, None] == self.x).all(dim=-1)
        return far.topk(min(number, far.shape[1]), largest=False).indices

    def compare(self, batch: Batch, exemplars: Tensor) -> Tensor:
        x = mean_feature(batch)[:, None].expand(-1, exemplars.shape[1], -1)
        both = torch.cat([x, self.x[exemplars], self.scores[exemplars].unsqueeze(-1)], dim=-1)
        return self.head(both)

    def forward(self, batch: Batch) -> Tensor:
        exemplars = self.choose(batch, self.config.voters, itself=True)
        return (self.scores[exemplars] + self.compare(batch, exemplars)[..., 0]).mean(dim=1)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        assert not labelled.columns["judges"].isnan().any()
        assert unlabelled.columns["judges"].isnan().all()
        one = self.choose(labelled, 1, itself=False)
        out, delta = self.compare(labelled, one)[:, 0], labelled.scores - self.scores[one[:, 0]]
        group = torch.bucketize(delta.abs(), self.bounds[1:-1].contiguous())
        return {
            "difference": F.mse_loss(out[:, 0], delta),
            "group": F.cross_entropy(out[:, 1:], group),
            "judges": F.mse_loss(self.judges(mean_feature(labelled)), labelled.columns["judges"]),
        }


@dataclass(frozen=True)
class StatesConfig:
    states: int = 3
    pretraining: float = 0.5


class States(nn.Module):
    """SAP-Net: k-means states of the actor's segments for a student that sees the full frame; two phases."""

    Config = StatesConfig
    row = Method(f"{__name__}:States", "k-means states", streams=("rgb", "actor-rgb"), unlabelled=True)

    def __init__(self, inputs: Inputs, config: StatesConfig = StatesConfig()) -> None:
        super().__init__()
        assert list(inputs.streams) == ["rgb", "actor_rgb"]
        self.config, self.phase = config, ""
        width, actor = inputs.widths.values()
        self.register_buffer("centres", torch.zeros(config.states, actor))
        self.register_buffer("begun", torch.tensor(0))
        self.parse, self.score = nn.Linear(width, config.states), mlp(width, 8, 1)

    def phases(self) -> dict[str, float]:
        return {"states": self.config.pretraining, "scores": 1 - self.config.pretraining}

    def parameter_groups(self) -> list[dict[str, object]]:
        return [{"params": self.score.parameters()}, {"params": self.parse.parameters(), "lr_scale": 0.1}]

    def begin_epoch(self, pool: Pool) -> None:
        from sklearn.cluster import KMeans

        batches = [b for part in (pool.labelled, pool.unlabelled) for b in part.batches()]
        x = torch.cat([b.streams["actor_rgb"].flatten(0, 1) for b in batches]).cpu().numpy()
        found = KMeans(self.config.states, n_init=1, random_state=int(pool.rng.integers(2**31))).fit(x)
        self.centres.copy_(torch.as_tensor(found.cluster_centers_.astype(np.float32)))
        self.begun += 1

    def forward(self, batch: Batch) -> Tensor:
        return self.score(batch.streams["rgb"].mean(dim=1)).squeeze(-1)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        if self.phase == "scores":
            return {"score": F.mse_loss(self(labelled), labelled.scores)}
        assert self.phase == "states"
        state = torch.cdist(unlabelled.streams["actor_rgb"], self.centres).argmin(dim=-1)
        return {"states": F.cross_entropy(self.parse(unlabelled.streams["rgb"]).flatten(0, 1), state.flatten())}
