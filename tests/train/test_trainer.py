"""The loop: deterministic, resumable to the bit, stopping where it must."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_train import checkpoint
from aqa_train.batch import Batch, ScoreScale
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig
from aqa_train.schedule import sizes_of
from aqa_train.signals import Stopped
from aqa_train.trainer import Diverged, Fitted, Loop, Task, fit, predict

from .conftest import inputs, synthetic
from .method_checks import after, same

CPU = torch.device("cpu")
TINY = S4AQAConfig(widths=(12, 8), regressor_width=6, decoder_width=10, discriminator_width=6)


def task(videos: int = 40, *, validation: int = 6, standardise: str = "none", resident: bool = True) -> Task:
    x, scores = synthetic(videos, 4, 16)
    found = FeatureSet.from_arrays({"rgb": x}, {"score": scores})
    found = found.place(CPU, "yes") if resident else found
    rows = np.arange(videos)
    seen = rows[:-validation] if validation else rows
    found, _ = found.prepared({}, {}, seen, seen, standardise)
    return Task(
        found,
        labelled=seen[::3],
        unlabelled=np.setdiff1d(seen, seen[::3]),
        validation=rows[videos - validation :],
        scores=scores / 20,
    )


def build() -> S4AQA:
    return S4AQA(inputs(16), TINY)


def train(t: Task, *, training: Training | None = None, **options: Any) -> Fitted:
    return fit(build, t, training or Training(epochs=6, batch=8), seed=[0, 0], device=CPU, **options)


def test_the_same_seed_gives_the_same_bits() -> None:
    first = train(task())
    assert same(first, train(task()))
    other = fit(build, task(), Training(epochs=6, batch=8), seed=[1, 0], device=CPU)
    assert not same(first, other)


def test_streamed_and_resident_features_train_the_same_bits() -> None:
    assert same(train(task(standardise="z-score")), train(task(resident=False, standardise="z-score")))


def test_the_worlds_random_numbers_are_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(task())
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("optimiser", ["adam", "sgd"])
@pytest.mark.parametrize("steps", [1, 3, 8, 11])
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, optimiser: str, steps: int) -> None:
    training = Training(epochs=6, batch=8, optimiser=optimiser, schedule="cosine")  # type: ignore[arg-type]
    whole = train(task(), training=training)
    state = tmp_path / "state.safetensors"
    with pytest.raises(Stopped) as e:
        train(task(), training=training, state=state, stop=after(steps))
    assert e.value.exit_code == 143
    resumed = train(task(), training=training, state=state)
    assert same(whole, resumed)
    assert resumed.best_epoch == whole.best_epoch
    assert whole.best is not None
    assert resumed.best is not None
    assert all(torch.equal(whole.best[k], resumed.best[k]) for k in whole.best)


def test_stopping_many_times_changes_nothing(tmp_path: Path) -> None:
    whole = train(task(resident=False))
    state = tmp_path / "state.safetensors"
    stops = 0
    while True:
        try:
            resumed = train(task(resident=False), state=state, stop=after(2))
            break
        except Stopped:
            stops += 1
    assert stops > 5
    assert same(whole, resumed)


def test_training_learns_to_score_videos_it_has_not_seen() -> None:
    t = task(160, validation=60)
    fitted = train(t, training=Training(epochs=60, batch=16, lr=3e-3))
    values = predict(fitted.model, t.features, t.validation, CPU)
    assert np.corrcoef(values, t.scores[t.validation])[0, 1] > 0.55
    assert fitted.history[-1]["score"] < 0.3 * fitted.history[0]["score"]
    assert fitted.history[-1]["recovery"] < fitted.history[0]["recovery"]


def test_best_epoch_is_the_first_best_on_validation() -> None:
    fitted = train(task())
    values = [row["validation_spearman"] for row in fitted.history]
    assert fitted.best_epoch == int(np.argmax(values)) + 1


def test_unlabelled_scores_are_never_seen() -> None:
    """Scores outside the labelled and validation rows may be anything."""
    t = task()
    hidden = t.scores.copy()
    hidden[t.unlabelled] = np.nan
    assert same(train(t), train(replace(t, scores=hidden)))


@dataclass(frozen=True)
class _Config:
    squared_weight: float = 3.0


class _Line(nn.Module):
    """Another method: the loop knows nothing of S4AQA."""

    def __init__(self, explode_at: int = 10**9) -> None:
        super().__init__()
        self.config = _Config()
        self.slope = nn.Parameter(torch.zeros(()))
        self.calls, self.explode_at = 0, explode_at

    def forward(self, batch: Batch) -> Tensor:
        return self.slope * batch.streams["rgb"][:, :, 0].mean(dim=1)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        self.calls += 1
        error = self(labelled) - labelled.scores
        factor = torch.nan if self.calls >= self.explode_at else 1.0
        return {"squared": error.square().mean() * factor, "size": self.slope.abs()}


def test_losses_are_weighted_by_the_settings_named_after_them() -> None:
    row = fit(_Line, task(), Training(epochs=1, batch=8), seed=[0], device=CPU).history[0]
    assert row["total"] == pytest.approx(3 * row["squared"] + row["size"])


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    t = task()
    with pytest.raises(Diverged, match=r"epoch 2, step 2: .*squared = nan") as e:
        fit(lambda: _Line(explode_at=5), t, Training(epochs=4, batch=8), seed=[0], device=CPU, state=state)
    assert e.value.exit_code == 2
    assert "0000" in e.value.cause
    tensors, meta = checkpoint.load(state, "state")
    assert meta["progress"]["epoch"] == 1
    assert meta["progress"]["step"] == 1
    assert tensors["model.slope"].isfinite()
    # The weights are those of the step before, which a healthy training stopped there has too.
    other = tmp_path / "healthy.safetensors"
    with pytest.raises(Stopped):
        fit(_Line, t, Training(epochs=4, batch=8), seed=[0], device=CPU, state=other, stop=after(4))
    assert torch.equal(tensors["model.slope"], checkpoint.load(other, "state")[0]["model.slope"])
    assert tensors["model.slope"].abs() > 0


class _Noisy(_Line):
    """Its only noise is what the training draws; `spend` numbers go before, as initial weights do."""

    def __init__(self, spend: int = 0) -> None:
        super().__init__()
        torch.rand(spend)

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        return {"squared": self.slope.square(), "noise": torch.rand(())}


def test_noise_does_not_depend_on_the_initial_weights() -> None:
    few, many = (
        fit(lambda n=n: _Noisy(n), task(), Training(epochs=2, batch=8), seed=[0], device=CPU)  # type: ignore[misc]
        for n in (0, 1000)
    )
    assert few.history == many.history
    assert few.history[0]["noise"] != few.history[1]["noise"]


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    with pytest.raises(Stopped):
        train(task(), state=state, stop=after(2))
    with pytest.raises(UsageError, match="other settings"):
        fit(lambda: S4AQA(inputs(16)), task(), Training(epochs=6, batch=8), seed=[0, 0], device=CPU, state=state)


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "batch", "expected"),
    [
        (40, 60, 32, ([32, 32], [30, 30])),
        (33, 5, 32, ([16, 17], [5, 5])),
        (4, 4, 32, ([4], [4])),
        (10, 0, 4, ([3, 3, 4], [0, 0, 0])),
    ],
)
def test_batch_sizes(labelled: int, unlabelled: int, batch: int, expected: tuple[list[int], list[int]]) -> None:
    assert sizes_of(labelled, unlabelled, Training(batch=batch)) == expected


@given(labelled=st.integers(2, 300), unlabelled=st.integers(0, 300), batch=st.integers(2, 64), larger=st.booleans())
def test_batches_take_every_video_once_and_none_is_alone(
    labelled: int, unlabelled: int, batch: int, larger: bool
) -> None:
    training = Training(batch=batch, epoch_of="larger" if larger else "labelled")
    sizes = sizes_of(labelled, unlabelled, training)
    assert len(sizes[0]) == len(sizes[1])
    n, of_the_epoch = max((labelled, sizes[0]), (unlabelled, sizes[1])) if larger else (labelled, sizes[0])
    assert sum(of_the_epoch) == n
    for n, found in zip((labelled, unlabelled), sizes, strict=True):
        assert min(found) >= min(n, 2)
        assert max(found) <= (3 if batch == 2 else batch)


def test_an_odd_number_of_videos_of_one_segment_trains_in_twos() -> None:
    x, scores = synthetic(9, 1, 16)
    found = FeatureSet.from_arrays({"rgb": x}, {"score": scores})
    one = Task(found, np.arange(5), np.arange(5, 8), np.arange(0), scores)
    config = replace(TINY, recovery_weight=0.0, norm="separate")
    fitted = fit(lambda: S4AQA(inputs(16, segments=1), config), one, Training(epochs=1, batch=2), seed=[0], device=CPU)
    assert len(fitted.history) == 1


def test_score_scale_is_linear_and_back() -> None:
    scale = ScoreScale(6.0, 30.0, 5.0)
    np.testing.assert_allclose(scale.to_training(np.array([6.0, 18.0, 30.0, 36.0])), [0, 2.5, 5, 6.25])
    np.testing.assert_allclose(scale.to_scores(np.array([0, 2.5, 5], dtype=np.float32)), [6, 18, 30])


def test_standardised_channels_have_mean_zero_and_deviation_one() -> None:
    x, _ = synthetic(30, 4, 3)
    x[:, :, 2] = 7.0
    found = FeatureSet.from_arrays({"rgb": x}, {})
    rows = np.arange(20)
    plain, z, centred = (
        found.prepared({}, {}, rows, rows, how)[0].load(rows, CPU).streams["rgb"].numpy()
        for how in ("none", "z-score", "centre")
    )
    np.testing.assert_array_equal(plain, x[rows])
    np.testing.assert_allclose(z.mean((0, 1)), 0, atol=1e-5)
    np.testing.assert_allclose(z.std((0, 1)), [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(centred, x[rows] - x[rows].mean((0, 1)), atol=1e-5)


def test_predictions_come_in_the_order_asked() -> None:
    t = task()
    fitted = train(t)
    rows = np.array([5, 1, 39, 1, 0])
    every = predict(fitted.model, t.features, np.arange(40), CPU)
    np.testing.assert_allclose(predict(fitted.model, t.features, rows, CPU), every[rows], rtol=1e-5)


@pytest.mark.gpu
def test_cuda_trains_and_resumes(tmp_path: Path) -> None:
    cuda = torch.device("cuda")
    t = task()
    t = replace(t, features=t.features.place(cuda, "yes"))
    state = tmp_path / "state.safetensors"
    training = Training(epochs=6, batch=8)
    with pytest.raises(Stopped):
        fit(build, t, training, seed=[0], device=cuda, state=state, stop=after(5))
    resumed = fit(build, t, training, seed=[0], device=cuda, state=state)
    whole = fit(build, t, training, seed=[0], device=cuda)
    for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_rate_falls_in_steps_as_action_nets_does() -> None:
    """Of 400 epochs after 300 and 350, tenfold; with fewer epochs after the same parts of them."""
    rates: dict[int, list[float]] = {}
    for epochs in (400, 8):
        training = Training(epochs=epochs, schedule="steps", lr=0.01)
        model = nn.Linear(1, 1)
        model.config = TINY  # type: ignore[assignment]
        loop = Loop(model, task(8, validation=0), training, [0], CPU, None)
        rates[epochs] = []
        for loop.at.epoch in range(epochs):
            loop._set_phase()
            rates[epochs].append(loop.optimiser.param_groups[0]["lr"])
    assert rates[400] == pytest.approx([0.01] * 300 + [0.001] * 50 + [0.0001] * 50)
    assert rates[8] == pytest.approx([0.01] * 6 + [0.001, 0.0001])
    assert Training(falls="0.5,0.8").falls == (0.5, 0.8)  # type: ignore[arg-type]
