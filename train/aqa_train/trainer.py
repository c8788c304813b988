"""One loop that trains every method: two cycled sets of videos, weighted losses, exact resume.

The trainer never asks which method it has. It calls `forward(batch)` and `losses(labelled, unlabelled)`, and weights a
loss named `x` by the setting `x_weight` of the method's configuration, where there is one. Where the method has them,
it also calls `prepare(pool)` before everything, `begin_epoch(pool)`, `after_step()`, `parameter_groups()` and
`phases()` (docs/writing-a-method.md). A method without `losses` has learned all it will in `prepare`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from aqa_shared.errors import AqaError, ExitCode, UsageError
from aqa_train import checkpoint
from aqa_train.batch import Batch
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.metrics import spearman
from aqa_train.order import Rows
from aqa_train.pool import Pool, PoolPart
from aqa_train.products import choose_library
from aqa_train.schedule import optimiser_of, phases_of, sizes_of
from aqa_train.signals import Stopped
from aqa_train.storage import load_state

KEPT = "; the last good weights are in "


class Diverged(AqaError):
    """A loss or gradient stopped being finite; the last good weights are kept."""

    exit_code = ExitCode.USAGE


@dataclass(frozen=True)
class Task:
    """What one training learns from, and scores; rows of `features`."""

    features: FeatureSet
    labelled: Rows
    unlabelled: Rows
    validation: Rows
    scores: NDArray[np.float64]
    """By row, in training units; only those of labelled and validation rows are read."""
    scored: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Videos that will be scored in the end: one that cannot be is refused before the first epoch."""


@dataclass
class Fitted:
    """A trained method."""

    model: nn.Module
    history: list[dict[str, float]]
    """By epoch: every unweighted loss, their weighted `total`, `validation_spearman` where measured."""
    seconds: float
    best: dict[str, Tensor] | None = None
    """Weights of the epoch with the best validation Spearman."""
    best_epoch: int | None = None


@dataclass
class _Progress:
    """Where the loop is; everything that is not a tensor."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_value: float | None = None


def fit(
    build: Callable[[], nn.Module],
    task: Task,
    training: Training,
    *,
    seed: Sequence[int],
    device: torch.device,
    state: Path | None = None,
    stop: Callable[[], int] = lambda: 0,
    on_epoch: Callable[[int, dict[str, float]], None] = lambda epoch, row: None,
) -> Fitted:
    """Train the method that `build` makes.

    `seed`: numbers that name this training; initial weights, order and noise draw from it separately.
    `state`: file to resume from, where it exists, and to save to. `stop`: the signal to stop at, or 0.
    Raises `Stopped` after saving, `Diverged` where a loss is not finite.
    """
    with kept_rng(device):
        loop = begun(build, task, training, seed=seed, device=device, state=state)
        for labelled, unlabelled in loop.steps(stop, on_epoch):
            loop.step(labelled, unlabelled)
        return loop.fitted()


def begun(
    build: Callable[[], nn.Module],
    task: Task,
    training: Training,
    *,
    seed: Sequence[int],
    device: torch.device,
    state: Path | None,
) -> Loop:
    """As `fit`, before its first step; torch's generators are left where that step draws from."""
    choose_library()
    seeds = [int(s) for s in np.random.SeedSequence(list(seed)).generate_state(3)]
    _seed(seeds[0], device)
    model = build().to(device)
    # Dropout and hidden segments must not depend on how many numbers the initial weights took.
    _seed(seeds[2], device)
    loop = Loop(model, task, training, [*seed, seeds[1]], device, state)
    if state is not None and state.exists():
        loop.restore()
    else:
        loop.prepare()
    return loop


@torch.no_grad()
def predict(
    model: nn.Module,
    features: FeatureSet,
    rows: Rows,
    device: torch.device,
    ask: Callable[[Batch], Tensor] | None = None,
) -> NDArray[np.float64]:
    """Scores of these videos in training units, in the order of `rows`; or what else `ask` has of the model."""
    choose_library()
    was_training = model.training
    model.eval()
    order = np.sort(rows)
    values = np.empty(len(order))
    done = 0
    for part in features.parts(order):
        values[done : done + len(part)] = (ask or model)(features.load(part, device)).double().cpu().numpy()
        done += len(part)
    model.train(was_training)
    return values[np.searchsorted(order, rows)]


class Loop:
    """The loop's parts, which checkpoints need together."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        training: Training,
        seed: Sequence[int],
        device: torch.device,
        state: Path | None,
    ) -> None:
        self.model, self.task, self.training, self.seed = model, task, training, seed
        self.device, self.state = device, state
        self.phases = phases_of(model, training.epochs)
        self.optimiser = optimiser_of(model, training)
        self.at = _Progress()
        self.best: dict[str, Tensor] | None = None
        self.weights = {
            name.removesuffix("_weight"): float(getattr(model.config, name))
            for name in vars(model.config)
            if name.endswith("_weight")
        }
        self.sizes = sizes_of(len(task.labelled), len(task.unlabelled), training)
        self.counts_time = True
        """False where others are computed beside it, and who does that shares out the time."""
        self.generators = self.torchs_generators()
        """What dropout and hidden segments are drawn from, by kind of device."""

    def torchs_generators(self) -> dict[str, torch.Generator]:
        """Torch's own, by kind of device."""
        found = {"cpu": torch.default_generator}
        if self.device.type == "cuda":
            number = torch.cuda.current_device() if self.device.index is None else self.device.index
            found["cuda"] = torch.cuda.default_generators[number]
        return found

    def steps(
        self, stop: Callable[[], int], on_epoch: Callable[[int, dict[str, float]], None]
    ) -> Generator[tuple[Batch, Batch], None, None]:
        """The batches of every step that is left; whoever asks for them does the step before asking for the next."""
        if not hasattr(self.model, "losses"):
            return
        saved = at = time.monotonic()
        while self.at.epoch < self.training.epochs:
            if self.at.step == 0:
                self._begin_epoch()
            self._set_phase()
            self.model.train()
            for batches in self._batches():
                yield batches
                at = self._passed(at)
                if signal := stop():
                    self._stopped(signal)
            row = {k: v / len(self.sizes[0]) for k, v in self.at.sums.items()}
            if len(self.task.validation):
                self._validate(row)
            self.at.history.append(row)
            self.at.epoch, self.at.step, self.at.sums = self.at.epoch + 1, 0, {}
            at = self._passed(at)
            on_epoch(self.at.epoch, row)
            if self.state is not None and time.monotonic() - saved >= self.training.save_every:
                self.save()
                saved = time.monotonic()

    def _passed(self, since: float) -> float:
        """Count the time since then, and say what time it is."""
        now = time.monotonic()
        self.at.seconds += (now - since) * self.counts_time
        return now

    def fitted(self) -> Fitted:
        """What came of it, after the last step."""
        return Fitted(self.model.eval(), self.at.history, self.at.seconds, self.best, self.at.best_epoch)

    def prepare(self) -> None:
        """What the method learns from all videos at once; it keeps that in buffers."""
        started = time.monotonic()
        if hasattr(self.model, "prepare"):
            with torch.no_grad():
                self.model.prepare(self._pool())  # type: ignore[operator]
        if hasattr(self.model, "losses") and len(self.task.scored):
            with kept_rng(self.device):
                predict(self.model, self.task.features, self.task.scored, self.device)
        self.at.seconds += time.monotonic() - started

    def _begin_epoch(self) -> None:
        if self.at.epoch and self.at.epoch in self.phases:
            # What one phase's moments say of the loss means nothing to the next one.
            self._set_phase()
            self.optimiser = optimiser_of(self.model, self.training)
        if hasattr(self.model, "begin_epoch"):
            self._set_phase()
            self.model.eval()
            with torch.no_grad():
                self.model.begin_epoch(self._pool())  # type: ignore[operator]

    def _pool(self) -> Pool:
        task = self.task
        unknown = np.full(len(task.unlabelled), np.nan)
        return Pool(
            PoolPart(task.features, task.labelled, task.scores[task.labelled], self.device),
            PoolPart(task.features, task.unlabelled, unknown, self.device),
            self.at.epoch,
            self.training.epochs,
            np.random.default_rng([*self.seed, self.at.epoch, 2]),
        )

    def save(self) -> None:
        """Everything that decides how training goes on."""
        assert self.state is not None
        tensors = checkpoint.under("model", self.model.state_dict())
        tensors |= checkpoint.under("optimiser", checkpoint.optimiser_tensors(self.optimiser))
        tensors |= checkpoint.under("best", self.best or {})
        tensors |= {f"rng.{name}": generator.get_state() for name, generator in self.generators.items()}
        checkpoint.save(self.state, tensors, {"kind": "state", "progress": vars(self.at)})

    def save_if_asked(self) -> None:
        """Save where there is a file for it."""
        if self.state is not None:
            self.save()

    def restore(self) -> None:
        assert self.state is not None
        tensors, meta = checkpoint.load(self.state, "state")
        try:
            load_state(self.model, checkpoint.part(tensors, "model"))
        except RuntimeError as e:
            raise UsageError(
                f"{self.state} belongs to other settings: {str(e).splitlines()[-1].strip()}",
                fix="resume with the settings of the run, or train into another --out",
            ) from None
        self.at = _Progress(**meta["progress"])
        if not (self.at.step == 0 and self.at.epoch in self.phases):
            self._set_phase()
            self.optimiser = optimiser_of(self.model, self.training)
            checkpoint.restore_optimiser(self.optimiser, checkpoint.part(tensors, "optimiser"))
        self.best = {k: v.to(self.device) for k, v in checkpoint.part(tensors, "best").items()} or None
        for name, generator in self.generators.items():
            if f"rng.{name}" in tensors:
                generator.set_state(tensors[f"rng.{name}"])

    def _batches(self) -> Iterator[tuple[Batch, Batch]]:
        """Both sets' batches of this epoch from the step where it stands.

        An epoch's order is a function of the seed and its number, so resuming needs no sampler state.
        """
        rngs = [np.random.default_rng([*self.seed, self.at.epoch, i]) for i in range(2)]
        rows = (self.task.labelled, self.task.unlabelled)
        streams = [
            self.task.features.batches(r, s, rng, self.device, skip=self.at.step)
            for r, s, rng in zip(rows, self.sizes, rngs, strict=True)
        ]
        for labelled, unlabelled in zip(*streams, strict=True):
            yield self._scored(labelled), unlabelled[1]

    def _scored(self, drawn: tuple[Rows, Batch]) -> Batch:
        rows, batch = drawn
        return replace(batch, scores=torch.as_tensor(self.task.scores[rows], dtype=torch.float32).to(self.device))

    def step(self, labelled: Batch, unlabelled: Batch) -> None:
        """Learn from one pair of batches."""
        with computed_in(self.training.precision, self.device):
            terms: dict[str, Tensor] = self.model.losses(labelled, unlabelled)  # type: ignore[operator]
        total = sum(
            (self.weights.get(k, 1.0) * v.float() for k, v in terms.items()), torch.zeros((), device=self.device)
        )
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        # One transfer from the device a step, before the weights change: they stay good if it is not finite.
        values = torch.stack([norm, total, *terms.values()]).tolist()
        found = dict(zip(("gradient", "total", *terms), values, strict=True))
        self.refuse_infinite(found, labelled, unlabelled)
        self.optimiser.step()
        self.stepped(found)

    def refuse_infinite(self, found: dict[str, float], labelled: Batch, unlabelled: Batch) -> None:
        """Raises Diverged where the gradient or a loss of a step is not finite, before the weights change."""
        if not all(math.isfinite(v) for v in found.values()):
            self._diverged(found, labelled, unlabelled)

    def stepped(self, found: dict[str, float]) -> None:
        """What follows a change of the weights; `found`: the losses that it came of, and the gradient's norm."""
        if hasattr(self.model, "after_step"):
            with torch.no_grad():
                self.model.after_step()  # type: ignore[operator]
        self.at.step += 1
        for name, value in found.items():
            if name != "gradient":
                self.at.sums[name] = self.at.sums.get(name, 0.0) + value

    def _validate(self, row: dict[str, float]) -> None:
        rows = self.task.validation
        with kept_rng(self.device):
            predicted = predict(self.model, self.task.features, rows, self.device)
        value = spearman(predicted, self.task.scores[rows])
        if value is None:
            return
        row["validation_spearman"] = value
        if self.at.best_value is None or value > self.at.best_value:
            self.at.best_value, self.at.best_epoch = value, self.at.epoch + 1
            self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def _set_phase(self) -> None:
        """The method's phase, and the learning rate of this epoch of it."""
        first = max(e for e in self.phases if e <= self.at.epoch)
        if hasattr(self.model, "phases"):
            self.model.phase = self.phases[first]  # type: ignore[assignment]
        scale = 1.0
        end = min((e for e in self.phases if e > first), default=self.training.epochs)
        if self.training.schedule == "cosine":
            done = (self.at.epoch - first) / max(end - first - 1, 1)
            scale = 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
        elif self.training.schedule == "steps":
            passed = (self.at.epoch - first) / (end - first)
            scale = self.training.fall ** sum(passed >= part for part in self.training.falls)
        for group in self.optimiser.param_groups:
            group["lr"] = self.training.lr * scale * group.get("lr_scale", 1.0)

    def _stopped(self, signal: int) -> None:
        where = f"stopped by signal {signal} in epoch {self.at.epoch + 1} of {self.training.epochs}"
        self.save_if_asked()
        raise Stopped(signal, where)

    def _diverged(self, values: dict[str, float], labelled: Batch, unlabelled: Batch) -> None:
        kept = ""
        if self.state is not None and all(p.isfinite().all() for p in self.model.state_dict().values()):
            self.save()
        if self.state is not None and self.state.exists():
            kept = f"{KEPT}{self.state}"
        bad = ", ".join(f"{k} = {v}" for k, v in values.items() if not math.isfinite(v))
        ids = ", ".join([*labelled.ids[:4], "…"] if len(labelled) > 4 else labelled.ids)
        raise Diverged(
            f"epoch {self.at.epoch + 1}, step {self.at.step + 1}: {bad}; the batch has {len(labelled)} labelled "
            f"({ids}) and {len(unlabelled)} unlabelled videos{kept}",
            fix="lower lr"
            if self.training.standardise != "none"
            else "lower lr, or standardise the features (--set standardise=z-score)",
        )


@contextmanager
def kept_rng(device: torch.device) -> Iterator[None]:
    """Leave torch's generators as they were found."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def computed_in(precision: str, device: torch.device) -> torch.autocast:
    """Networks inside are computed in it; bfloat16 beside float32 weights."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def _seed(seed: int, device: torch.device) -> None:
    """Torch's own generators, which initial weights, dropout and hidden segments draw from."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
