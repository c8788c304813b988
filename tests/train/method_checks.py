"""What every method has to show, on videos small enough to learn by heart."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.store import FeatureStore
from aqa_train.batch import Batch, Inputs, ScoreScale
from aqa_train.columns import ColumnEncoder
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.metrics import spearman
from aqa_train.pool import Pool, PoolPart
from aqa_train.predict import load_checkpoint
from aqa_train.signals import Stopped
from aqa_train.storage import load_state, rounded
from aqa_train.trainer import Fitted, Task, fit, predict

from .conftest import synthetic
from .runs import aqa_train

CPU = torch.device("cpu")
SCALE = ScoreScale(0.0, 100.0, 5.0, mean=2.0)
SMALL = {"widths": (16, 16), "regressor_width": 16, "dropout": 0.0}
"""Of the networks of S4AQA and its relatives."""


def videos(
    n: int, segments: int = 4, channels: int = 6, columns: Mapping[str, Any] | None = None, seed: int = 0
) -> Batch:
    """Random features and scores 0 … 5; `columns` as tensors."""
    g = torch.Generator().manual_seed(seed)
    x, scores = torch.rand(n, segments, channels, generator=g), torch.rand(n, generator=g) * 5
    return Batch({"rgb": x}, scores, None, dict(columns or {}), tuple(f"v{i}" for i in range(n)))


def shape(segments: int = 4, channels: int = 6, columns: Mapping[str, ColumnEncoder] | None = None) -> Inputs:
    return Inputs({"rgb": (channels,)}, segments, dict(columns or {}), SCALE)


def part(batch: Batch, rows: slice) -> Batch:
    return batch.take(torch.arange(len(batch))[rows])


def pool_of(labelled: Batch, unlabelled: Batch | None = None, epoch: int = 0, epochs: int = 1) -> Pool:
    """These videos, as a method is given them before an epoch."""
    parts = []
    for batch in (labelled, unlabelled or part(labelled, slice(0))):
        arrays = {n: x.numpy() for n, x in batch.streams.items()}
        found = replace(FeatureSet.from_arrays(arrays, {}, batch.ids), columns=batch.columns).place(CPU, "yes")
        parts.append(PoolPart(found, np.arange(len(batch)), batch.scores.double().numpy(), CPU))
    return Pool(parts[0], parts[1], epoch, epochs, np.random.default_rng(0))


def prepared(model: Any, labelled: Batch, unlabelled: Batch | None = None) -> Any:
    """After `prepare` with these videos."""
    with torch.no_grad():
        model.prepare(pool_of(labelled, unlabelled))
    return model


def moved(model: nn.Module) -> set[str]:
    """Names of the parameters that have a gradient other than zero."""
    return {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}


def trained_by(model: nn.Module, term: str, labelled: Batch, unlabelled: Batch | None = None) -> set[str]:
    """Names of the modules that get a gradient from one loss."""
    model.zero_grad()
    losses: dict[str, Tensor] = model.losses(labelled, unlabelled or part(labelled, slice(0)))  # type: ignore[operator]
    losses[term].backward()
    return {name.split(".")[0] for name in moved(model)}


@torch.no_grad()
def alone_as_together(model: nn.Module, batch: Batch) -> None:
    """A video scores the same alone, among others, in another order, and beside longer ones."""
    model.eval()
    together = model(batch)
    assert together.std() > 0
    for i in (0, len(batch) - 1):
        torch.testing.assert_close(model(part(batch, slice(i, i + 1))), together[i : i + 1], atol=1e-5, rtol=1e-4)
    turned = torch.arange(len(batch)).flip(0)
    torch.testing.assert_close(model(batch.take(turned)), together.flip(0), atol=1e-5, rtol=1e-4)
    present = torch.ones(len(batch), 7, dtype=torch.bool)
    present[:, next(iter(batch.streams.values())).shape[1] :] = False
    missing = 7 - next(iter(batch.streams.values())).shape[1]
    padded = replace(
        batch, streams={n: F.pad(x, (0, 0, 0, missing)) for n, x in batch.streams.items()}, present=present
    )
    torch.testing.assert_close(model(padded), together, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def order_of_segments_does_not_matter(model: nn.Module, batch: Batch) -> None:
    turned = replace(batch, streams={n: x.flip(1) for n, x in batch.streams.items()})
    torch.testing.assert_close(model.eval()(turned), model.eval()(batch), atol=1e-5, rtol=1e-4)


def learns_by_heart(
    build: Callable[[Inputs], nn.Module],
    table: Mapping[str, Any],
    columns: Mapping[str, Any] | None = None,
    labels: Mapping[str, Any] | None = None,
    scores: np.ndarray[Any, Any] | None = None,
    scale: ScoreScale = SCALE,
    channels: int = 12,
    **training: Any,
) -> nn.Module:
    """Eight random videos are ranked with more than .95; saved, loaded, and alone they score the same."""
    rng = np.random.default_rng(4)
    x = rng.random((8, 4, channels), dtype=np.float32)
    own = np.array([0.4, 3.1, 1.2, 4.9, 2.2, 3.8, 0.9, 4.4]) if scores is None else scores
    found = FeatureSet.from_arrays({"rgb": x}, table).place(CPU, "yes")
    rows, none = np.arange(8), np.arange(0)
    read, inputs = found.prepared(columns or {}, labels or {}, rows, rows, "none")
    inputs = replace(inputs, scale=scale)
    how = Training(**{"epochs": 300, "batch": 8, "lr": 3e-3, "weight_decay": 0.0, **training})
    model = fit(lambda: build(inputs), Task(read, rows, none, none, own), how, seed=[0], device=CPU).model
    # As it is stored and opened again: without the labels' columns.
    model.load_state_dict(rounded(model.state_dict()))
    told = predict(model, read, rows, CPU)
    reached = spearman(told, own)
    assert reached is not None
    assert reached > 0.95, (reached, told)
    other, unlabelled = build(Inputs.of(_json(inputs))), found.with_columns(inputs)
    load_state(other, model.state_dict())
    np.testing.assert_array_equal(predict(other.eval(), unlabelled, rows, CPU), told)
    np.testing.assert_allclose(predict(other, unlabelled, rows[3:4], CPU), told[3:4], rtol=1e-4, atol=1e-5)
    return model


def _json(inputs: Inputs) -> Any:
    return json.loads(json.dumps(asdict(inputs)))


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


def ranks_by_heart(cls: Any, config: Any, epochs: int = 150, streams: tuple[str, ...] = ("rgb",)) -> float:
    """Spearman on the eight labelled videos that it learned from, beside eight unlabelled ones."""
    task = task_of(8, 8, streams)
    model = fitted(cls, config, task, epochs).model
    found = spearman(predict(model, task.features, task.labelled, CPU), task.scores[task.labelled])
    assert found is not None
    return found


def after(steps: int) -> Callable[[], int]:
    """Asks to stop, by SIGTERM, after so many steps."""
    left = steps

    def stop() -> int:
        nonlocal left
        left -= 1
        return 15 if left == 0 else 0

    return stop


def same(a: Fitted, b: Fitted) -> bool:
    """The same bits, and the same history."""
    mine, theirs = a.model.state_dict(), b.model.state_dict()
    equal = mine.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in mine.items())
    return equal and a.history == b.history


def resumes_to_the_bit(train: Callable[..., Fitted], state: Path, *stops: int) -> Fitted:
    """Stopped after each of so many steps, a training ends as one that was never stopped, which is returned.

    `train` takes `fit`'s `state` and `stop`.
    """
    whole = train()
    for steps in stops:
        own = state / f"{steps}"
        with pytest.raises(Stopped):
            train(state=own, stop=after(steps))
        assert same(train(state=own), whole)
    return whole


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
