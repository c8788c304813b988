"""I3D+MLP, USDL, MUSDL: by hand, against the authors' code, and that they learn."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.columns import ColumnEncoder
from aqa_train.methods.mean_mlp import MeanMLP, MeanMLPConfig
from aqa_train.methods.usdl import MUSDL, USDL, MUSDLConfig, USDLConfig, by_rule, decode, divergence, soft_label
from aqa_train.storage import unread

from .conftest import MakeStore
from .method_checks import (
    SCALE,
    alone_as_together,
    learns_by_heart,
    order_of_segments_does_not_matter,
    shape,
    trained_by,
    videos,
)
from .runs import aqa_train

MARKS = {"difficulty": ColumnEncoder("number"), "judge_scores": ColumnEncoder("vector", (), 7, label=True)}


def dives(n: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(9)
    return {
        "difficulty": 1.5 + 2 * torch.rand(n, generator=g),
        "judge_scores": torch.randint(0, 21, (n, 7), generator=g) / 2,
    }


# ---- I3D+MLP


def test_mlp_is_three_layers_that_start_at_the_labelled_mean() -> None:
    model = MeanMLP(shape(channels=1024))
    assert [m.out_features for m in model.head if isinstance(m, nn.Linear)] == [256, 128, 1]
    assert model.head[-1].bias.item() == 2.0
    assert abs(MeanMLP(shape(), MeanMLPConfig(start_at_mean=False)).head[-1].bias.item()) < 0.1


def test_mlp_by_hand() -> None:
    """Weights 2 and 3, biases 1 and .5: of segments 1 and 3 they make 3 · (2 · 2 + 1) + .5, .5 off from 15."""
    model = MeanMLP(shape(segments=2, channels=1), MeanMLPConfig(widths=(1,)))
    for parameter, value in zip(model.parameters(), (2.0, 1.0, 3.0, 0.5), strict=True):
        nn.init.constant_(parameter, value)
    batch = videos(1, 2, 1)
    batch.streams["rgb"][:] = torch.tensor([1.0, 3.0])[None, :, None]
    assert model(batch).item() == 15.5
    batch.scores[:] = 15.0
    assert model.losses(batch, batch)["score"].item() == 0.25


@pytest.mark.parametrize("build", [MeanMLP, USDL])
def test_invariances_and_what_is_trained(build: Any) -> None:
    torch.manual_seed(0)
    config = MeanMLPConfig((8,)) if build is MeanMLP else USDLConfig(widths=(8,), decoding="expectation")
    model, batch = build(shape(), config), videos(5)
    alone_as_together(model, batch)
    order_of_segments_does_not_matter(model, batch)
    (term,) = model.losses(batch, batch)
    assert trained_by(model, term, batch) == {"head"}


# ---- USDL


def _reference_soft_label(score: float, label_max: float, bins: int, std: float) -> Any:
    """`VideoDataset.proc_label` of nzl-thu/MUSDL, MTL-AQA/dataset.py."""
    density = stats.norm.pdf(np.arange(bins), loc=score * (bins - 1) / label_max, scale=std)
    return density / density.sum()


@pytest.mark.parametrize("score", [0.0, 37.3, 87.45, 104.5])
def test_soft_labels_are_the_authors(score: float) -> None:
    # In float32; the tails are smaller than its step beside 1.
    found = soft_label(torch.tensor([score * 100 / 104.5]), 101, 5.0)[0]
    np.testing.assert_allclose(found, _reference_soft_label(score, 104.5, 101, 5.0), atol=1e-6)


def test_a_soft_label_by_hand() -> None:
    # Deviations 1, 0 and 1: e^-.5 : 1 : e^-.5.
    e = np.exp(-0.5)
    np.testing.assert_allclose(soft_label(torch.tensor([1.0]), 3, 1.0)[0], np.array([e, 1, e]) / (1 + 2 * e), rtol=1e-6)


def test_the_divergence_by_hand_and_as_the_authors_take_it() -> None:
    # 1 log(1 / .5) of one bin, 0 of the other, averaged over the two.
    found = divergence(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
    assert found.item() == pytest.approx(np.log(2) / 2, rel=1e-6)
    torch.manual_seed(0)
    logits, target = torch.randn(4, 11), torch.rand(4, 11).softmax(-1)
    with pytest.warns(UserWarning, match="mean"):
        expected = nn.KLDivLoss()(torch.log(logits.softmax(-1)), target)
    torch.testing.assert_close(divergence(logits, target), expected)


def test_usdl_decodes_the_authors_score() -> None:
    model, batch = USDL(shape(), USDLConfig(widths=(8,))), videos(5)
    probs = model.head(batch.streams["rgb"].mean(dim=1)).softmax(-1)
    # `probs.argmax(dim=-1) * (label_max / (output_dim - 1))`, where 104.5 is 5 in training units.
    torch.testing.assert_close(model(batch), probs.argmax(-1) * (5.0 / 100))
    # Of 1/4, 1/4 and 1/2 the mean is 1.25.
    assert decode(torch.log(torch.tensor([[0.25, 0.25, 0.5]])), "expectation").item() == pytest.approx(1.25)


def test_usdl_starts_at_the_labelled_mean() -> None:
    for config in (USDLConfig(), USDLConfig(start_at_mean=False)):
        torch.manual_seed(0)
        model, batch = USDL(shape(), config), videos(40)
        with torch.no_grad():
            model.head[-1].weight.zero_()
        assert bool((model(batch) == 2.0).all()) is config.start_at_mean


def test_usdl_loss_by_the_authors_code() -> None:
    model, batch = USDL(shape(), USDLConfig(widths=(8,))), videos(5)
    soft = np.stack([_reference_soft_label(s, 5.0, 101, 5.0) for s in batch.scores.tolist()])
    probs = model.head(batch.streams["rgb"].mean(dim=1)).softmax(-1)
    expected = F.kl_div(torch.log(probs), torch.as_tensor(soft, dtype=torch.float32), reduction="none").mean()
    torch.testing.assert_close(model.losses(batch, batch)["distribution"], expected)


# ---- MUSDL


def _reference_rule(marks: Tensor, difficulty: Tensor) -> Tensor:
    """`compute_score` of nzl-thu/MUSDL, MTL-AQA/main.py, from the judges' marks on."""
    return torch.sum(marks.sort()[0][:, 2:5], dim=1) * difficulty


def test_the_rule_by_hand_and_as_the_authors_have_it() -> None:
    marks = torch.tensor([[9.0, 7.0, 7.5, 8.0, 6.0, 10.0, 7.0]])
    assert by_rule(marks, 2).item() == 22.5  # 7, 7.5 and 8
    assert by_rule(marks, 0).item() == 54.5
    columns = dives(30)
    torch.testing.assert_close(
        by_rule(columns["judge_scores"], 2) * columns["difficulty"],
        _reference_rule(columns["judge_scores"], columns["difficulty"]),
    )


def test_musdl_scores_are_the_rule_in_training_units() -> None:
    torch.manual_seed(0)
    batch = videos(6, columns=dives(6))
    model = MUSDL(shape(columns=MARKS), MUSDLConfig(widths=(8,)))
    x = batch.streams["rgb"].mean(dim=1)
    marks = torch.stack([head(x).softmax(-1).argmax(-1) * 10 / 20 for head in model.judges], dim=1)
    points = _reference_rule(marks, batch.columns["difficulty"])
    torch.testing.assert_close(model(batch), torch.as_tensor(SCALE.to_training(points.double().numpy())).float())


def test_what_is_not_a_number_is_seen_in_the_score_and_every_judge_is_stored() -> None:
    broken = torch.tensor([[0.0, torch.nan, 1.0]])
    assert decode(broken, "argmax").isnan().all()
    assert by_rule(torch.tensor([[9.0, 7.0, 7.5, 8.0, torch.nan, 10.0, 7.0]]), 2).isnan().all()
    torch.manual_seed(0)
    assert unread(MUSDL(shape(columns=MARKS), MUSDLConfig(widths=(8,))), videos(3, columns=dives(3))) == []


def test_musdl_loss_is_the_sum_over_the_judges() -> None:
    torch.manual_seed(0)
    batch = videos(6, columns=dives(6))
    model = MUSDL(shape(columns=MARKS), MUSDLConfig(widths=(8,)))
    x, expected = batch.streams["rgb"].mean(dim=1), torch.zeros(())
    for i, head in enumerate(model.judges):
        soft = [_reference_soft_label(m, 10.0, 21, 5.0) for m in batch.columns["judge_scores"][:, i].tolist()]
        target = torch.as_tensor(np.stack(soft), dtype=torch.float32)
        expected = expected + F.kl_div(torch.log(head(x).softmax(-1)), target, reduction="none").mean()
    torch.testing.assert_close(model.losses(batch, batch)["distribution"], expected)
    assert trained_by(model, "distribution", batch) == {"judges"}
    soft_model = MUSDL(shape(columns=MARKS), MUSDLConfig(widths=(8,), decoding="expectation"))
    alone_as_together(soft_model, batch)
    order_of_segments_does_not_matter(soft_model, batch)


def test_the_ratings_of_jigsaws_add_up() -> None:
    inputs = shape(columns={"ratings": ColumnEncoder("vector", (), 6, label=True)})
    model = MUSDL(inputs, MUSDLConfig(bins=5, sigma=1.0, lowest=1.0, highest=5.0, drop=0, widths=(8,)))
    with torch.no_grad():
        for head in model.judges:
            head[-1].weight.zero_()
            head[-1].bias.copy_(torch.tensor([0.0, 0.0, 0.0, 9.0, 0.0]))
    # Six fours are 24 of 0 … 100, so 1.2 of 0 … 5.
    torch.testing.assert_close(model(videos(2)), torch.full((2,), 1.2))


def test_all_learn_by_heart() -> None:
    learns_by_heart(lambda i: MeanMLP(i, MeanMLPConfig((32,))), {})
    learns_by_heart(lambda i: USDL(i, USDLConfig(widths=(64,))), {}, lr=1e-2)
    rng = np.random.default_rng(3)
    marks = rng.integers(4, 21, (8, 7)) / 2
    table = {"difficulty": np.linspace(1.5, 3.5, 8), "judge_scores": np.array([json.dumps(m.tolist()) for m in marks])}
    points = np.sort(marks, axis=1)[:, 2:5].sum(axis=1) * table["difficulty"]
    learns_by_heart(
        lambda i: MUSDL(i, MUSDLConfig(widths=(64,), sigma=1.0)), table, {"difficulty": "number"},
        {"judge_scores": "vector"}, scores=points / 20, lr=1e-2,
    )  # fmt: skip


# ---- bad inputs


def test_too_few_judges_are_refused() -> None:
    with pytest.raises(UsageError, match=r"4 marks in judge_scores: without the 2 highest") as e:
        MUSDL(shape(columns={**MARKS, "judge_scores": ColumnEncoder("vector", (), 4, label=True)}))
    assert "drop to at most 1" in e.value.fix


def test_unknown_difficulty_is_said_with_the_video() -> None:
    batch = videos(3, columns=dives(3))
    batch.columns["difficulty"][1] = torch.nan
    with pytest.raises(UsageError, match="v1: no difficulty") as e:
        MUSDL(shape(columns=MARKS))(batch)
    assert "--labels FILE" in e.value.fix


def test_marks_that_are_missing_or_out_of_range_end_the_run(make_store: MakeStore) -> None:
    def store(name: str, marks: Any) -> Any:
        extra = [{"judge_scores": json.dumps([7.0] * 7)} for _ in range(12)]
        extra[3] = marks
        return make_store(videos=12, name=name, labels=[{"difficulty": 2.0, "extra": e} for e in extra])

    def train(path: Any, method: str = "musdl") -> None:
        aqa_train("--features", path, "--method", method, "--seeds", 1, "--device", "cpu", "--folds", 2, "--jobs", 1,
                  "--epochs", 1, "--out", path.with_suffix(".run"))  # fmt: skip

    with pytest.raises(UsageError, match=r"003\.mp4: no judge_scores"):
        train(store("missing.zarr", {}))
    with pytest.raises(UsageError, match=r"003\.mp4 has the judge_scores .*45, not all within 0 … 10") as e:
        train(store("wide.zarr", {"judge_scores": "7 7 7 7 7 7 45"}))
    assert "highest" in e.value.fix
    with pytest.raises(UsageError, match=r"different lengths \(5, 7\)"):
        train(store("short.zarr", {"judge_scores": "7 7 7 7 7"}))
    with pytest.raises(UsageError, match="musdl-jigsaws reads the column ratings, and no video has it"):
        train(store("none.zarr", {}), "musdl-jigsaws")
