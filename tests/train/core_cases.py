"""Videos with categories and difficulties, and CoRe trained on them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from aqa_train.batch import Batch, Inputs, ScoreScale
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods import METHODS
from aqa_train.methods.core import CoRe, CoReConfig
from aqa_train.trainer import Task, fit

from .conftest import synthetic

CPU = torch.device("cpu")
SMALL = {"width": 8, "depth": 3, "mlp_widths": (8,)}
SCALE = ScoreScale(0.0, 100.0)


def task_for(
    videos: int = 12, labelled: int = 8, row: str = "core", scale: ScoreScale = SCALE, **columns: Any
) -> tuple[Task, Inputs]:
    x, scores = synthetic(videos, 3, 6)
    found = FeatureSet.from_arrays({"rgb": x}, {n: np.array(v, dtype=object) for n, v in columns.items()})
    rows = np.arange(labelled)
    method = METHODS[row]
    wanted = {**method.columns, **{n: k for n, k in method.optional.items() if n in columns}}
    read, shape = found.place(CPU, "yes").prepared(wanted, {}, np.arange(videos), rows, "none")
    task = Task(read, rows, np.arange(labelled, videos), np.arange(0), scale.to_training(scores))
    return task, replace(shape, scale=scale)


def fitted(task: tuple[Task, Inputs], epochs: int = 1, **settings: Any) -> Any:
    config = CoReConfig(**{**SMALL, **settings})  # type: ignore[arg-type]
    training = Training(epochs=epochs, batch=8, lr=5e-3, weight_decay=0)
    return fit(lambda: CoRe(task[1], config), task[0], training, seed=[1], device=CPU)


def labelled_of(task: tuple[Task, Inputs], rows: Any) -> Batch:
    read, scores = task[0].features, task[0].scores
    return replace(read.load(np.array(rows), CPU), scores=torch.tensor(scores[rows], dtype=torch.float32))
