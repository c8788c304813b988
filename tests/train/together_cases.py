"""What tests of trainings that are computed as one model share: small ones, and what is equal to one alone."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aqa_train.batch import Inputs, ScoreScale
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods import METHODS
from aqa_train.together import fit_together
from aqa_train.trainer import Fitted, Task, begun

from .conftest import synthetic

CPU = torch.device("cpu")
SEEDS = 3
HOW = {"epochs": 4, "batch": 6, "lr": 1e-3, "optimiser": "sgd"}
"""Adam divides a gradient by its size. Of a bias before batch normalisation, whose gradient is 0 but for rounding, it
makes steps of the full rate, so that weights tell nothing there."""
SMALL = {"widths": (12, 8), "regressor_width": 8}


def tasks(method: str = "s4aqa") -> tuple[list[Task], list[Inputs]]:
    """Other labelled videos, and another mean of their scores, each time; streams and columns as the method's row."""
    row = METHODS[method]
    x, scores = synthetic(40, 5, 6)
    names = ["rgb", *(f"{view}_rgb" for view in {"s4l": ("rot90", "rot180", "rot270")}.get(method, ()))]
    names += ["still_rgb"] if method == "keep-first-frame" else []
    names += ["actor_rgb"] if "actor-rgb" in row.streams else []
    arrays = {n: np.roll(x, i, axis=-1) for i, n in enumerate(names)}
    marks = np.array([str(np.random.default_rng(i).integers(1, 6, 7).tolist()) for i in range(40)], object)
    given = {"judge_scores": marks, "ratings": marks, "difficulty": np.linspace(2, 4, 40)}
    found = FeatureSet.from_arrays(arrays, {"score": scores, **given}).place(CPU, "yes")
    every, shapes = [], []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(30)
        labelled, unlabelled = np.sort(order[:13]), np.sort(order[13:])
        read, inputs = found.prepared(row.columns, row.labels, np.arange(30), labelled, "none")
        scale = ScoreScale(0.0, 100.0, 5.0, mean=float(scores[labelled].mean() / 20))
        every.append(Task(read, labelled, unlabelled, np.arange(30, 36), scores / 20))
        shapes.append(Inputs(inputs.streams, inputs.segments, inputs.columns, scale))
    return every, shapes


def trainings(method: str = "s4aqa", settings: Any = (), how: Any = ()) -> list[dict[str, Any]]:
    """What `fit` is asked for, by seed; `settings` may be a list of them."""
    row, cls = METHODS[method], METHODS[method].load()
    known = {k: v for k, v in SMALL.items() if k in cls.Config.__dataclass_fields__}
    each = settings if isinstance(settings, list) else [dict(settings)] * SEEDS
    return [
        {
            "build": partial(cls, inputs, cls.Config(**{**known, **own, **row.fixed})),
            "task": task,
            "training": Training(**{**HOW, **dict(how)}),
            "seed": [seed, 0],
        }
        for seed, (task, inputs, own) in enumerate(zip(*tasks(method), each, strict=True))
    ]


def together(
    asked: list[dict[str, Any]],
    states: list[Path] | None = None,
    stop: Callable[[], int] = lambda: 0,
    failed: Callable[[int, Exception], Collection[int]] | None = None,
    device: torch.device = CPU,
) -> list[Fitted | None]:
    def refused(i: int, error: Exception) -> Collection[int]:
        raise error

    begin = [partial(begun, **one, device=device, state=states[i] if states else None) for i, one in enumerate(asked)]
    return fit_together(begin, device, stop=stop, on_epoch=lambda i, epoch, row: None, failed=failed or refused)


def equal(found: Fitted | None, expected: Fitted, *, close: float = 1e-5) -> None:
    """Losses and weights: apart by the rounding of sums, which are added in another order."""
    assert found is not None
    assert [row.keys() for row in found.history] == [row.keys() for row in expected.history]
    for mine, theirs in zip(found.history, expected.history, strict=True):
        own = [{k: v for k, v in row.items() if k != "validation_spearman"} for row in (mine, theirs)]
        assert own[0] == pytest.approx(own[1], rel=10 * close)
    weights = expected.model.state_dict()
    for name, mine in found.model.state_dict().items():
        torch.testing.assert_close(
            mine, weights[name], atol=close, rtol=10 * close, msg=lambda said, n=name: f"{n}: {said}"
        )
    assert not found.model.training
    # Which epoch is best, six validation videos say, whose order may hang on the last bit.
    assert (found.best is None) == (expected.best is None)


class Told:
    """Hears who failed and by what; nobody else ends with it."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def __call__(self, i: int, error: Exception) -> list[int]:
        self.seen.append((i, str(error)))
        return [i]
