"""Pseudo-labels, VAT, COREG and S4L: by hand, against the authors' formulas, and that they learn."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_shared.store import FeatureStore
from aqa_train.batch import Batch, Inputs
from aqa_train.methods.coreg import COREG, COREGConfig, co_train
from aqa_train.methods.pseudo_labels import PseudoLabels, PseudoLabelsConfig, nearest_mean
from aqa_train.methods.s4l import S4L, TURNS, S4LConfig
from aqa_train.methods.vat import VAT, VATConfig, divergence
from aqa_train.pool import PoolPart
from aqa_train.predict import load_checkpoint
from aqa_train.trainer import predict

from .conftest import MakeStore, inputs
from .method_checks import (
    CPU,
    SMALL,
    alone_as_together,
    fitted,
    ranks_by_heart,
    resumes_to_the_bit,
    say_the_same_when_loaded,
    task_of,
    trained_by,
    videos,
)
from .runs import FAST, aqa_train

ROTATED = tuple(turn + "rgb" for turn in TURNS)
PSEUDO, SMOOTH, TURNED = PseudoLabelsConfig(**SMALL), VATConfig(**SMALL), S4LConfig(**SMALL)


def build(cls: Any, config: Any, streams: tuple[str, ...] = ("rgb",)) -> Any:
    torch.manual_seed(0)
    return cls(Inputs(dict.fromkeys(streams, (6,)), 4), config)


def turned(n: int, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    return Batch({name: torch.rand(n, 4, 6, generator=g) for name in ROTATED}, torch.rand(n, generator=g))


# ---- pseudo-labels


def test_nearest_mean_by_hand_and_by_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsRegressor

    # Distances 1, 2 and 9 of the scores 3, 6 and 100: (3 / 1 + 6 / 2) / (1 / 1 + 1 / 2) = 4.
    known, scores = torch.tensor([[1.0], [-2.0], [9.0]]), torch.tensor([3.0, 6.0, 100.0])
    assert nearest_mean(torch.zeros(1, 1), known, scores, 2).item() == pytest.approx(4)
    g = torch.Generator().manual_seed(0)
    known, scores, x = torch.rand(12, 5, generator=g), torch.rand(12, generator=g), torch.rand(7, 5, generator=g)
    x[2] = known[4]
    reference = KNeighborsRegressor(5, weights="distance").fit(known.numpy(), scores.numpy())
    np.testing.assert_allclose(nearest_mean(x, known, scores, 5), reference.predict(x.numpy()), rtol=1e-4)


def test_pseudo_labels_are_found_by_video_and_taught() -> None:
    """Errors 1 and -2 give 5 / 2; before there are labels only scores are learned."""
    model = build(PseudoLabels, PSEUDO).eval()
    labelled, unlabelled = videos(4), replace(videos(2, seed=1), rows=torch.tensor([9, 3]))
    assert set(model.losses(labelled, unlabelled)) == {"score"}
    told = model(unlabelled).detach()
    model.rows, model.labels = torch.tensor([3, 5, 9]), torch.stack([told[1] - 2, torch.tensor(9.0), told[0] + 1])
    terms = model.losses(labelled, unlabelled)
    assert terms["pseudo"].item() == pytest.approx(5 / 2, rel=1e-4)
    for term in ("score", "pseudo"):
        assert trained_by(model, term, labelled, unlabelled) == {"encoder", "regressor"}


@pytest.mark.parametrize("embedding", ["learned", "features"])
def test_pseudo_labels_come_after_the_warm_up_for_every_video(embedding: Any) -> None:
    config = replace(PSEUDO, warmup=0.5, embedding=embedding, k=1)
    found = fitted(PseudoLabels, config, task_of(8, 12), epochs=4)
    assert [set(row) - {"total"} for row in found.history] == [{"score"}] * 2 + [{"score", "pseudo"}] * 2
    task = task_of(8, 12)
    assert found.model.rows.tolist() == task.unlabelled.tolist()
    apart = found.model.labels[:, None] - torch.as_tensor(task.scores[task.labelled])
    assert apart.abs().amin(dim=1).max() < 1e-5
    assert len(found.model.labels.round(decimals=3).unique()) > 1


def test_pseudo_labels_go_on_within_an_epoch_as_if_undisturbed(tmp_path: Path) -> None:
    resumes_to_the_bit(lambda **more: fitted(PseudoLabels, PSEUDO, task_of(8, 24), 3, **more), tmp_path, 5)


# ---- virtual adversarial training


def _reference_direction(model: VAT, batch: Batch, d: Tensor, kind: str) -> Tensor:
    """Miyato's finite difference, equations 9 to 11 with xi = 1e-6, for which float64 has digits enough."""
    xi = 1e-6
    x = batch.streams["rgb"]
    label = model.virtual_label({"rgb": x}, batch).detach()
    r = (xi * d / d.flatten(1).norm(dim=1)[:, None, None]).requires_grad_()
    moved = model.virtual_label({"rgb": x + r}, batch)
    p = label.softmax(dim=-1)
    apart = (moved - label).square() if kind == "mse" else p * (label.log_softmax(dim=-1) - moved.log_softmax(dim=-1))
    (g,) = torch.autograd.grad(apart.sum(), r)
    return g / g.flatten(1).norm(dim=1)[:, None, None]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_the_worst_step_is_miyatos(kind: Any, training: bool) -> None:
    model = build(VAT, replace(SMOOTH, divergence=kind)).double().train(training)
    batch = videos(5)
    batch = replace(batch, streams={"rgb": batch.streams["rgb"].double()}, scores=batch.scores.double())
    torch.manual_seed(3)
    (step,), label = model.worst_step(batch)
    torch.manual_seed(3)
    expected = _reference_direction(model, batch, torch.randn_like(batch.streams["rgb"]), kind)
    torch.testing.assert_close(step, 2.5 * expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(label, model.virtual_label(batch.streams, batch))


def test_the_worst_step_is_worse_than_a_random_one_and_stays_within_the_video() -> None:
    model = build(VAT, replace(SMOOTH, iterations=3, norm=0.1)).eval()
    batch = videos(6)
    present = torch.arange(4) < torch.tensor([4, 3, 2, 1, 4, 4])[:, None]
    batch = replace(batch, streams={"rgb": batch.streams["rgb"] * present[..., None]}, present=present)
    (step,), label = model.worst_step(batch)
    torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.full((6,), 0.1))
    assert not step[~present].any()

    def apart(r: Tensor) -> float:
        return divergence(label, model.virtual_label({"rgb": batch.streams["rgb"] + r}, batch), "kl").item()

    random = torch.randn_like(step) * present[..., None]
    random = 0.1 * random / random.flatten(1).norm(dim=1)[:, None, None]
    assert apart(step) > 2 * apart(random) > 0


def test_divergence_by_hand() -> None:
    # p = (1/2, 1/2) and q = (3/4, 1/4): half of log(2/3) + log 2.
    label, moved = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    assert divergence(label, moved, "kl").item() == pytest.approx((math.log(2 / 3) + math.log(2)) / 2, rel=1e-5)
    assert divergence(label, moved, "mse").item() == pytest.approx(math.log(3) ** 2 / 2, rel=1e-5)
    assert divergence(moved, moved, "kl").item() == pytest.approx(0, abs=1e-7)


def test_smoothness_trains_the_encoder_and_the_first_layer_and_keeps_statistics() -> None:
    model = build(VAT, replace(SMOOTH, dropout=0.5))
    assert trained_by(model, "score", videos(4), videos(5, seed=1)) == {"encoder", "regressor"}
    assert trained_by(model, "smoothness", videos(4), videos(5, seed=1)) == {"encoder", "regressor"}
    assert model.regressor[2].weight.grad is None
    assert all(m.training for m in model.modules())
    other = build(PseudoLabels, replace(PSEUDO, dropout=0.5))  # which sees the same videos, none of them moved
    again = build(VAT, replace(SMOOTH, dropout=0.5))
    for m in (other, again):
        torch.manual_seed(5)
        m.losses(videos(4), videos(5, seed=1))
    for (name, a), b in zip(again.named_buffers(), [b for n, b in other.named_buffers() if "norm" in n], strict=True):
        if "num_batches" not in name:
            torch.testing.assert_close(a, b)


# ---- COREG


def _reference_coreg(
    x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], u: np.ndarray[Any, Any], rounds: int, rng: np.random.Generator
) -> list[list[tuple[int, float]]]:
    """The loop of nealjean/coreg with scikit-learn's regressors, retrained for every video; predicted labels.

    What each regressor chose by round: (row of u, label), or (-1, nan).
    """
    from sklearn.neighbors import KNeighborsRegressor

    sets = [[x.copy(), y.copy()], [x.copy(), y.copy()]]
    left = np.arange(len(u))
    history = []
    for _ in range(rounds):
        if not len(left):
            break
        pool = rng.permutation(len(x) + left)[:6] - len(x)
        chosen = []
        for (own, scores), p in zip(sets, (2, 5), strict=True):
            h = KNeighborsRegressor(3, p=p, algorithm="brute").fit(own, scores)
            deltas, labels = [], []
            for i in pool:
                label = h.predict(u[i : i + 1])
                around = h.kneighbors(u[i : i + 1], return_distance=False)[0]
                again = KNeighborsRegressor(3, p=p, algorithm="brute").fit(
                    np.vstack([own, u[i : i + 1]]), np.concatenate([scores, label])
                )
                before, after = h.predict(own[around]), again.predict(own[around])
                deltas.append(((scores[around] - before) ** 2 - (scores[around] - after) ** 2).sum())
                labels.append(label[0])
            deltas = np.round(deltas, 9).tolist()
            best = int(np.argmax(deltas))
            chosen.append((int(pool[best]), float(labels[best])) if deltas[best] > 0 else (-1, float("nan")))
        for (own, scores), (i, label) in zip(sets[::-1], chosen, strict=True):
            if i >= 0:
                target = sets[0] if own is sets[0][0] else sets[1]
                target[0], target[1] = np.vstack([own, u[i : i + 1]]), np.append(scores, label)
        history.append(chosen)
        if all(i < 0 for i, _ in chosen):
            break
        left = np.setdiff1d(left, [i for i, _ in chosen])
    return history


@pytest.mark.parametrize("seed", range(4))
def test_coreg_chooses_as_the_reference_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, u = rng.normal(size=(15, 4)), rng.normal(size=(20, 4))
    y = x @ [1.0, -2.0, 0.5, 0.0] + 0.1 * rng.normal(size=15)
    both = torch.as_tensor(np.concatenate([x, u]))
    mode = "donot_use_mm_for_euclid_dist"
    far = [lambda to, p=p: torch.cdist(both, both[to], p=p, compute_mode=mode) for p in (2.0, 5.0)]
    history = _reference_coreg(x, y, u, 9, np.random.default_rng(7))
    assert len(history) > 2
    for n in range(len(history) + 1):
        found = co_train(far, torch.as_tensor(y), 35, 3, n, 6, np.random.default_rng(7))
        for learner in (0, 1):
            # What the other one chose in the first n rounds.
            expected = {15 + c[1 - learner][0]: c[1 - learner][1] for c in history[:n] if c[1 - learner][0] >= 0}
            new = {int(i): float(found[learner, i]) for i in (~found[learner].isnan()).nonzero() if i >= 15}
            assert new == pytest.approx(expected)


def test_coreg_scores_as_two_regressors_do() -> None:
    from sklearn.neighbors import KNeighborsRegressor

    task = task_of(12, 20, test=6)
    model = fitted(COREG, COREGConfig(), task).model
    rows = np.arange(38)
    x = task.features.load(rows, CPU).streams["rgb"].mean(dim=1).numpy()
    expected = []
    for p, scores in zip((2, 5), model.scores, strict=True):
        known = ~scores.isnan()
        expected.append(KNeighborsRegressor(3, p=p).fit(model.x[known], scores[known]).predict(x))
    assert len(model.x) > 12
    np.testing.assert_allclose(predict(model, task.features, rows, CPU), np.mean(expected, axis=0), rtol=1e-6)
    alone_as_together(model, task.features.load(rows, CPU))


def test_coreg_never_has_all_segments_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(PoolPart, "whole")
    assert len(fitted(COREG, COREGConfig(), task_of(12, 20)).model.x) > 12


def test_coreg_never_measures_all_videos_against_all(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes, cdist = [], torch.cdist

    def seen(x: Tensor, y: Tensor, **options: Any) -> Tensor:
        shapes.append((len(x), len(y)))
        return cdist(x, y, **options)

    monkeypatch.setattr(torch, "cdist", seen)
    fitted(COREG, COREGConfig(), task_of(12, 20))
    # Of all 32 to the labelled 12, and then to one that is added.
    assert shapes[:2] == [(32, 12)] * 2
    assert set(shapes[2:]) == {(32, 1)}


# ---- S4L


def test_rotations_by_hand() -> None:
    """A layer that knows nothing is wrong by log 4; upright errors 1, -2 and 3 give 14 / 3."""
    model = build(S4L, TURNED, ROTATED).eval()
    nn.init.zeros_(model.rotation.weight)
    nn.init.zeros_(model.rotation.bias)
    labelled, unlabelled = turned(3), turned(5, seed=1)
    labelled = replace(labelled, scores=model(labelled).detach() - torch.tensor([1.0, -2.0, 3.0]))
    terms = model.losses(labelled, unlabelled)
    assert terms["rotation"].item() == pytest.approx(math.log(4), rel=1e-5)
    assert terms["score"].item() == pytest.approx(14 / 3, rel=1e-5)
    model.rotation.bias.data = torch.tensor([math.log(5.0), 0.0, 0.0, 0.0])
    # Upright with probability 5/8, each other one with 1/8: a quarter of the videos are upright.
    expected = -(math.log(5 / 8) + 3 * math.log(1 / 8)) / 4
    assert model.losses(labelled, unlabelled)["rotation"].item() == pytest.approx(expected, rel=1e-5)


def test_all_rotations_can_be_scored() -> None:
    model = build(S4L, replace(TURNED, scored="all"), ROTATED).eval()
    labelled = turned(3)
    views = [model(Batch({**labelled.streams, "rgb": labelled.streams[n]}, labelled.scores)) for n in ROTATED]
    expected = torch.stack([F.mse_loss(v, labelled.scores) for v in views]).mean()
    torch.testing.assert_close(model.losses(labelled, turned(4, seed=1))["score"], expected)


def test_s4l_trains_its_parts_and_predicts_upright_videos() -> None:
    model = build(S4L, TURNED, ROTATED)
    assert trained_by(model, "score", turned(4), turned(4, seed=1)) == {"encoder", "regressor"}
    assert trained_by(model, "rotation", turned(4), turned(4, seed=1)) == {"encoder", "rotation"}
    batch = turned(3)
    assert torch.equal(model.eval()(batch), model(Batch({"rgb": batch.streams["rgb"]}, batch.scores)))


# ---- all of them


@pytest.mark.parametrize(
    ("cls", "config", "streams"),
    [
        (PseudoLabels, PSEUDO, ("rgb",)),
        (VAT, replace(SMOOTH, norm=0.5), ("rgb",)),
        (COREG, COREGConfig(k=1), ("rgb",)),
        (S4L, TURNED, ROTATED),
    ],
)
def test_eight_videos_are_learned_by_heart(cls: Any, config: Any, streams: tuple[str, ...]) -> None:
    assert ranks_by_heart(cls, config, streams=streams) > 0.95


def test_videos_score_alone_as_together() -> None:
    for cls, config in ((PseudoLabels, PSEUDO), (VAT, SMOOTH)):
        alone_as_together(build(cls, config), videos(5))


def test_checkpoints_say_the_same(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(20, streams=("rgb", "rot90-rgb", "rot180-rgb", "rot270-rgb"), lengths=[4, 3] * 10)
    methods = ["pseudo-labels", "vat", "coreg", "s4l"]
    say_the_same_when_loaded(methods, store, tmp_path / "run", *FAST, "--epochs", 4, "--set", "k=2")
    # Turned videos teach the network; who is scored need not be turned.
    model = load_checkpoint(tmp_path / "run" / "models" / "s4l" / "fold0-seed0")
    upright = make_store(20, name="upright.zarr", lengths=[4, 3] * 10)
    opened = [FeatureStore.open(s) for s in (store, upright)]
    assert (list(model.inputs.streams), list(model.channels)) == (list(ROTATED), ["rgb"])
    np.testing.assert_array_equal(*(model.score(s) for s in opened))


@pytest.mark.parametrize("cls", [PseudoLabels, COREG])
def test_more_neighbours_than_labelled_videos_are_refused(cls: Any) -> None:
    with pytest.raises(UsageError, match="the 9 nearest of 8 labelled videos") as e:
        fitted(cls, cls.Config(k=9), task_of(8, 8))
    assert "--set k=8" in e.value.fix


@pytest.mark.parametrize(
    ("cls", "streams"), [(PseudoLabels, ("rgb",)), (VAT, ("rgb",)), (COREG, ("rgb",)), (S4L, ROTATED)]
)
def test_no_unlabelled_videos_are_refused(cls: Any, streams: tuple[str, ...]) -> None:
    config = cls.Config() if cls is COREG else cls.Config(**SMALL)
    with pytest.raises(UsageError, match="unlabelled videos, and there are none") as e:
        fitted(cls, config, task_of(8, 0, streams))
    assert "--labelled 0.4" in e.value.fix


def test_s4l_needs_the_rotations(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the store lacks rot90-rgb, rot180-rgb, rot270-rgb") as e:
        S4L(inputs(6), TURNED)
    assert "--streams" in e.value.fix
    with pytest.raises(UsageError, match=r"s4l needs rot90-rgb, rot180-rgb, rot270-rgb"):
        aqa_train("--features", make_store(12), "--method", "s4l", *FAST, "--out", tmp_path / "o")
