"""The default method: its closed forms by hand and beside scikit-learn's, its invariances, and what it is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from aqa_shared.store import FeatureStore
from aqa_train.batch import Batch
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods.auto import Auto, AutoConfig, in_parts, interpolate, normal_scores, ridge, root
from aqa_train.metrics import spearman
from aqa_train.predict import open_ensemble
from aqa_train.trainer import Task, fit, predict

from .conftest import MakeStore
from .method_checks import CPU, SCALE, alone_as_together, learns_by_heart, part, videos
from .runs import aqa_train, read_csv


def trained(
    x: np.ndarray, scores: np.ndarray, labelled: np.ndarray, unlabelled: np.ndarray | None = None, **config: object
) -> tuple[Auto, FeatureSet]:
    """Fitted on rows of features (videos, segments, channels)."""
    found = FeatureSet.from_arrays({"rgb": x.astype(np.float32)}, {}).place(CPU, "yes")
    none = np.arange(0) if unlabelled is None else unlabelled
    read, inputs = found.prepared({}, {}, np.union1d(labelled, none), labelled, "none")
    inputs, settings = replace(inputs, scale=SCALE), AutoConfig(**config)  # type: ignore[arg-type]
    task = Task(read, labelled, none, np.arange(0), scores)
    model = fit(lambda: Auto(inputs, settings), task, Training(), seed=[0], device=CPU).model
    assert isinstance(model, Auto)
    return model, read


def test_a_ridge_by_hand() -> None:
    """Three videos at −1, 0 and 1 with the scores 0, 1 and 5; linear kernel, strength 2.

    Slope = Σ x (y − 2) / (Σ x² + 2) = 5 / 4, level 2. Left out each tells 2 − 5/4 …: residual / (1 − 1/3 − x² / 4).
    """
    x, y = torch.tensor([-1.0, 0.0, 1.0]).double()[:, None], torch.tensor([0.0, 1.0, 5.0]).double()
    weights, level, left_out = ridge(x @ x.T, x @ x.T, y, (2.0,))
    torch.testing.assert_close(x @ x.T @ weights[0] + level, torch.tensor([0.75, 2.0, 3.25]).double())
    expected = torch.tensor([-0.75 / (5 / 12), -1 / (2 / 3), 1.75 / (5 / 12)]).double()
    torch.testing.assert_close(left_out[0], expected)


def test_regressions_count_by_what_they_say_of_videos_left_out() -> None:
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(7, 1, 3)), rng.uniform(0, 5, 7)
    model, _ = trained(x, y, np.arange(7), strengths=(0.5, 8.0), gaussians=(1.0,), trust=0.5)
    z = model.centres.double()
    kernels = model.kernels(z, z)
    order = np.argsort(y)
    each = [ridge(k, k, torch.from_numpy(y[order]), (0.5, 8.0)) for k in kernels]
    loss = np.array([[float(r.square().mean()) for r in e[2]] for e in each])
    share = loss ** (-0.5 * 7 / 2) / (loss ** (-0.5 * 7 / 2)).sum()
    np.testing.assert_allclose(model.share, share.sum(axis=1), rtol=5e-3)  # centres lie in half precision
    told = sum(share[k, s] * (kernels[k] @ each[k][0][s] + each[k][1][s]) for k in range(2) for s in range(2))
    batch = Batch({"rgb": torch.from_numpy(x[order].astype(np.float32))}, torch.zeros(7))
    torch.testing.assert_close(model(batch), told, rtol=1e-2, atol=1e-2)


def test_ridge_is_scikit_learns() -> None:
    """Kernel ridge with a free level is ridge on features; left-out residuals are those of as many fits."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import LeaveOneOut, cross_val_predict

    rng = np.random.default_rng(0)
    x, y, other = rng.normal(size=(9, 4)), rng.normal(size=9), rng.normal(size=(5, 4))
    model = Ridge(alpha=3.0).fit(x, y)
    left_out = y - cross_val_predict(model, x, y, cv=LeaveOneOut())
    tx, to = torch.from_numpy(x), torch.from_numpy(other)
    weights, level, residuals = ridge(tx @ tx.T, tx @ tx.T, torch.from_numpy(y), (3.0,))
    np.testing.assert_allclose(to @ tx.T @ weights[0] + level, model.predict(other), rtol=1e-9)
    np.testing.assert_allclose(residuals[0], left_out, rtol=1e-9)
    # Four landmarks in general position span all four columns: the same again.
    weights, level, residuals = ridge(tx @ tx[:4].T, tx[:4] @ tx[:4].T, torch.from_numpy(y), (3.0,))
    np.testing.assert_allclose(to @ tx[:4].T @ weights[0] + level, model.predict(other), rtol=1e-6)
    np.testing.assert_allclose(residuals[0], left_out, rtol=1e-6)


def test_normal_scores_by_hand() -> None:
    """Ranks 1/2, 5/2 (twice: 3/2 and 7/2 halved) … of four; a column that never changes says nothing."""
    knots = torch.tensor([[1.0, 2.0, 2.0, 7.0], [3.0, 3.0, 3.0, 3.0]])
    eighth = 1.1503493803760079  # of the normal distribution, 7/8 lies below
    found = normal_scores(knots)
    torch.testing.assert_close(found, torch.tensor([[-eighth, 0.0, 0.0, eighth], [0.0] * 4]))
    x = torch.tensor([[0.0, 9.0], [1.5, 3.0], [2.0, 0.0], [4.5, 1.0], [8.0, 3.0]])
    told = torch.tensor([[-eighth, 0], [-eighth / 2, 0], [0, 0], [eighth / 2, 0], [eighth, 0]])
    torch.testing.assert_close(interpolate(x, knots, found), told)


def test_parts_of_a_video_are_of_its_own_length() -> None:
    x = torch.arange(8.0).view(1, 8, 1).repeat(3, 1, 1)
    present = torch.tensor([[True] * 8, [True] * 6 + [False] * 2, [True] * 2 + [False] * 6])
    found = in_parts(Batch({"rgb": x * present[..., None]}, torch.zeros(3), present), 4)
    expected = torch.tensor([[0.5, 2.5, 4.5, 6.5], [0.5, 2.5, 4, 5], [0.0, 0, 1, 1]])
    torch.testing.assert_close(found[..., 0], expected)
    torch.testing.assert_close(in_parts(Batch({"rgb": x}, torch.zeros(3)), 4)[0], found[0])


def test_overfits_saves_and_scores_one_video_alone() -> None:
    model = learns_by_heart(Auto, {})
    assert not list(model.parameters())


@pytest.mark.parametrize("segments", [1, 3, 4])
def test_a_video_alone_in_another_order_and_padded(segments: int) -> None:
    batch = videos(10, segments)
    x, scores = batch.streams["rgb"].numpy(), batch.scores.double().numpy()
    model, _ = trained(x, scores, np.arange(8), np.arange(8, 10))
    alone_as_together(model, batch)
    assert model.uncertainty(part(batch, slice(3))).shape == (3,)


@pytest.mark.parametrize("labelled", [2, 5, 300])
def test_few_labels_and_many(labelled: int) -> None:
    """More than `most` labelled videos all count, though kernels compare with some of them only."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(labelled + 60, 2, 5))
    true = x.mean(axis=1) @ np.array([1.0, -1.0, 0.5, 0.0, 0.0]) + 2
    scores = true + rng.normal(size=len(x))
    model, read = trained(x, scores, np.arange(labelled), np.arange(labelled, labelled + 30), most=40)
    assert len(model.centres) == min(labelled, 40)
    test = np.arange(labelled + 30, labelled + 60)
    told = predict(model, read, test, CPU)
    assert np.isfinite(told).all()
    if labelled == 300:
        assert (spearman(told, true[test]) or 0) > 0.9
        few, _ = trained(x, scores, np.arange(40), np.arange(40, labelled + 30), most=40)
        errors = [np.abs(predict(m, read, test, CPU) - true[test]).mean() for m in (model, few)]
        assert errors[0] < errors[1]


def test_what_gaussians_are_for() -> None:
    """A score that is highest in the middle has no straight line, and is learned all the same."""
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, size=(90, 1, 2))
    scores = 5 - 4 * x[:, 0, 0] ** 2
    learned, test = np.arange(60), np.arange(60, 90)
    model, read = trained(x, scores, learned)
    straight, _ = trained(x, scores, learned, gaussians=())
    assert (spearman(predict(model, read, test, CPU), scores[test]) or 0) > 0.9
    assert (spearman(predict(straight, read, test, CPU), scores[test]) or 0) < 0.5


def test_parts_tell_what_the_mean_does_not() -> None:
    """The score is how late a channel rises; its mean over the video is always the same."""
    rng = np.random.default_rng(2)
    late = rng.uniform(size=60)
    x = np.stack([[[1 - v], [0.5], [0.5], [v]] for v in late]) + rng.normal(scale=1e-3, size=(60, 4, 1))
    model, read = trained(x, late * 5, np.arange(40))
    assert (spearman(predict(model, read, np.arange(40, 60), CPU), late[40:]) or 0) > 0.95


def test_unlabelled_videos_say_how_columns_are_spread() -> None:
    rng = np.random.default_rng(3)
    x, scores = rng.normal(size=(30, 2, 4)), rng.uniform(0, 5, 30)
    model, _ = trained(x, scores, np.arange(10), np.arange(10, 30))
    alone, _ = trained(x, scores, np.arange(10))
    np.testing.assert_allclose(model.shift, x[:30].mean(axis=0).ravel(), atol=1e-6)
    roots = np.sign(x) * np.sqrt(np.abs(x))
    np.testing.assert_allclose(model.middle, roots.mean(axis=0).ravel(), atol=1e-6)
    np.testing.assert_allclose(model.spread, np.full(8, np.sqrt(roots.var(axis=0).mean())), atol=1e-6)
    for mine, other in ((model.shift, alone.shift), (model.middle, alone.middle), (model.spread, alone.spread)):
        assert (mine - other).abs().max() > 0.005


@pytest.mark.parametrize("far", [1e3, 1e10, -1e10])
def test_an_outlier_among_new_videos_stays_within_bounds(far: float) -> None:
    rng = np.random.default_rng(9)
    x = rng.normal(size=(60, 4, 6))
    scores = np.clip(x[..., 0].mean(axis=1) * 2 + 2.5, 0, 5)
    x[59, :, 3] = far
    model, read = trained(x, scores, np.arange(40))
    told = predict(model, read, np.arange(40, 60), CPU)
    assert np.abs(told).max() < 6
    assert (spearman(told, scores[40:]) or 0) > 0.8


def test_an_outlier_among_many_labelled_videos() -> None:
    """Distances are taken from some of the videos, and it is not one of them."""
    rng = np.random.default_rng(10)
    x = rng.normal(size=(60, 2, 4))
    scores = np.linspace(0, 5, 60)
    x[1], scores[1] = 1e12, 6.0
    model, read = trained(x, scores, np.arange(50), most=10)
    assert np.isfinite(predict(model, read, np.arange(50, 60), CPU)).all()


def test_what_the_second_view_is_for() -> None:
    """One of 300 channels varies, and has the score: normal scores make the others' noise as large."""
    rng = np.random.default_rng(7)
    x = rng.normal(scale=1e-3, size=(120, 4, 300))
    scores = rng.uniform(0, 5, 120)
    x[:, :, 0] += scores[:, None]
    learned, test = np.arange(30), np.arange(30, 120)
    rho = []
    for seen in (x, x.mean(axis=1, keepdims=True)):
        model, read = trained(seen, scores, learned, test)
        rho.append(spearman(predict(model, read, test, CPU), scores[test]) or 0)
    assert rho[0] > 0.95
    assert rho[1] < 0.9


def test_roots_keep_their_sign() -> None:
    x = torch.tensor([[-9.0, 0.0, 1e-4, 4.0]])
    torch.testing.assert_close(root(x), torch.tensor([[-3.0, 0.0, 1e-2, 2.0]]))


def test_a_stream_in_other_units_counts_as_before() -> None:
    rng = np.random.default_rng(8)
    x, scores = rng.normal(size=(2, 40, 4, 3)), rng.uniform(0, 5, 40)
    told = []
    for unit in (1.0, 1e4):
        found = FeatureSet.from_arrays({"rgb": x[0].astype(np.float32), "flow": (x[1] * unit).astype(np.float32)}, {})
        read, inputs = found.place(CPU, "yes").prepared({}, {}, np.arange(30), np.arange(30), "none")
        task = Task(read, np.arange(30), np.arange(0), np.arange(0), scores)
        model = fit(lambda i=inputs: Auto(replace(i, scale=SCALE)), task, Training(), seed=[0], device=CPU).model
        told.append(predict(model, read, np.arange(30, 40), CPU))
    np.testing.assert_allclose(told[0], told[1], atol=0.02)  # centres lie in half precision


def test_a_column_that_never_changes_and_one_far_away() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(20, 3, 3))
    x[..., 1], x[..., 2] = 7.0, x[..., 2] * 1e6 + 1e9
    model, read = trained(x, x[..., 0].mean(axis=1), np.arange(15))
    told = predict(model, read, np.arange(15, 20), CPU)
    assert np.isfinite(told).all()
    assert (spearman(told, x[15:, :, 0].mean(axis=1)) or 0) > 0.8


def test_uncertainty_is_the_error_left_out_where_nothing_can_be_learned() -> None:
    rng = np.random.default_rng(5)
    x, scores = rng.normal(size=(60, 2, 6)), rng.normal(2.5, 1.0, 60)
    model, read = trained(x, scores, np.arange(30))
    batch = read.load(np.arange(30, 60), CPU)
    told = model.uncertainty(batch)
    errors = np.abs(model(batch).numpy() - scores[30:])
    assert 0.7 < float(np.sqrt(np.square(errors).mean()) / told.mean()) < 1.4


def test_trained_from_the_command_line_without_a_name(make_store: MakeStore, tmp_path: Path) -> None:
    """As nobody who has only a store needs to know a method: with folds, without unlabelled videos, ragged."""
    store = make_store(videos=20, lengths=[2 + i % 3 for i in range(20)])
    common = ("--features", store, "--seeds", 1, "--jobs", 1, "--device", "cpu")
    aqa_train(*common, "--out", tmp_path / "run")
    rows = [r for r in read_csv(tmp_path / "run" / "scores.csv") if r["method"] == "auto"]
    assert len(rows) == 20
    assert all(
        float(r["uncertainty"]) > 0 for r in read_csv(tmp_path / "run" / "predictions.csv") if r["method"] == "auto"
    )
    found = open_ensemble(tmp_path / "run", "auto").score(FeatureStore.open(store)).combined
    np.testing.assert_allclose(found.score, [float(r["score"]) for r in rows], rtol=1e-9)
    aqa_train(*common, "--all-scores", "--out", tmp_path / "final")
    assert len(open_ensemble(tmp_path / "final").files) == 1
