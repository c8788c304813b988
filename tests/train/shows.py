"""What every method has to show: it learns eight videos by heart, and a checkpoint says the same of one video alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aqa_shared.store import FeatureStore
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.metrics import spearman
from aqa_train.predict import load_checkpoint
from aqa_train.trainer import Task, fit, predict

from .conftest import synthetic
from .runs import aqa_train

CPU = torch.device("cpu")
SMALL = {"widths": (16, 16), "regressor_width": 16, "dropout": 0.0}


def task_of(labelled: int, unlabelled: int, streams: tuple[str, ...] = ("rgb",), test: int = 0) -> Task:
    """Videos in this order; streams besides the first are the first, turned around."""
    x, scores = synthetic(labelled + unlabelled + test, 4, 6)
    arrays = {n: x if not i else np.roll(x[:, ::-1], i, axis=-1) * np.float32(0.5) for i, n in enumerate(streams)}
    found = FeatureSet.from_arrays(arrays, {"score": scores}).place(CPU, "yes")
    rows = np.arange(labelled + unlabelled)
    return Task(found, rows[:labelled], rows[labelled:], np.arange(0), scores / 20)


def fitted(cls: Any, config: Any, task: Task, epochs: int = 4, **options: Any) -> Any:
    """Trained in batches of 8; `fit`'s `state` and `stop` may be given."""
    inputs = task.features.prepared({}, {}, task.labelled, task.labelled, "none")[1]
    kept = {k: options.pop(k) for k in ("state", "stop") if k in options}
    training = Training(epochs=epochs, **{"batch": 8, "lr": 1e-2, "weight_decay": 0, **options})
    return fit(lambda: cls(inputs, config), task, training, seed=[3], device=CPU, **kept)


def learns_by_heart(cls: Any, config: Any, epochs: int = 150, streams: tuple[str, ...] = ("rgb",)) -> float:
    """Spearman on the eight labelled videos that it learned from, beside eight unlabelled ones."""
    task = task_of(8, 8, streams)
    model = fitted(cls, config, task, epochs).model
    found = spearman(predict(model, task.features, task.labelled, CPU), task.scores[task.labelled])
    assert found is not None
    return found


def say_the_same_when_loaded(methods: list[str], store: Path, out: Path, *options: object) -> None:
    """Trained by the command; of all videos together, and of one alone."""
    aqa_train("--features", store, "--method", ",".join(methods), "--labelled", 0.6, "--seeds", 1,
              "--test-fraction", 0.25, "--jobs", 1, "--device", "cpu", "--out", out, *options)  # fmt: skip
    opened = FeatureStore.open(store)
    for method in methods:
        _says_the_same(opened, out / "models" / method / "fold0-seed0")


def _says_the_same(opened: FeatureStore, record: Path) -> None:
    model = load_checkpoint(record)
    together = model.score(opened)
    assert len(set(together)) > 1

    np.testing.assert_allclose(together, json.loads((record / "result.json").read_text())["scores"], rtol=1e-5)
    for i in (0, len(opened.ids) - 1):
        first = int(opened.offsets[i])
        own = {n: opened.read(n)[first : first + int(opened.lengths[i])][None] for n in model.streams}
        assert model.score(own)[0] == pytest.approx(together[i], rel=1e-5)
