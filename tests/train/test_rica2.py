"""RICA²: losses by hand and against the authors' code, the rubric, what is trained, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_train.batch import ScoreScale
from aqa_train.columns import ColumnEncoder
from aqa_train.layers import order_in_time
from aqa_train.methods.rica2 import RICA2, RICA2Config, information
from aqa_train.predict import load_checkpoint

from .conftest import MakeStore
from .method_checks import SCALE, alone_as_together, learns_by_heart, shape, trained_by, videos
from .runs import aqa_train, read_csv

SMALL = RICA2Config(width=16, heads=2, layers=1, dropout=0.0)
RUBRIC = {
    "armstand": ColumnEncoder("category", ("0", "1")),
    "rotation_type": ColumnEncoder("category", ("0", "1", "2")),
    "position": ColumnEncoder("category", ("0", "1")),
    "ss_no": ColumnEncoder("category", ("0", "3")),
    "tw_no": ColumnEncoder("category", ("0", "1", "2")),
}
"""Thirteen steps with the entry; an armstand, somersaults or twists of 0 are none."""


def dives(n: int) -> dict[str, Tensor]:
    rows = torch.arange(n)
    return {name: rows % len(c.words) for name, c in RUBRIC.items()} | {"difficulty": 1.5 + 0.25 * rows}


def small(config: RICA2Config = SMALL, rubric: bool = True) -> RICA2:
    torch.manual_seed(0)
    columns = {**RUBRIC, **({"difficulty": ColumnEncoder("number")} if config.difficulty else {})}
    return RICA2(shape(columns=columns if rubric else {}), config)


# ---- the rubric


def test_the_steps_of_a_dive_are_those_its_columns_name() -> None:
    batch = videos(2, columns=dives(2))
    present = small().present(batch)
    # armstand 0, 1; rotation 0, 1, 2; position 0, 1; somersaults 0, 3; twists 0, 1, 2; entry.
    expected = [[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1], [0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0, 1]]
    assert present.int().tolist() == expected
    batch.columns["position"][:] = -1  # a word that training did not know
    assert small().present(batch)[:, 5:7].sum() == 0


def test_without_a_rubric_all_steps_are_there() -> None:
    model = small(rubric=False)
    assert model.present(videos(3)).shape == (3, 5)
    assert model.parts.tolist() == [[True] * 5]


def _reference_parts(model: RICA2, found: Tensor, present: Tensor) -> Tensor:
    """`PhaseDistComposer.get_one_sample` of abrarmajeedi/rica2_aqa, blocks.py, with these parts; then the head."""
    parts = [torch.arange(0, 5), torch.arange(5, 12), torch.arange(12, 13)]
    separated = [found[:, i, :] * present[:, i].unsqueeze(-1) for i in parts]
    summed = [
        torch.sum(x, dim=1) / torch.sum(present[:, i].unsqueeze(-1), dim=1)
        for x, i in zip(separated, parts, strict=True)
    ]
    outputs = torch.stack([model.part(x) for x in summed], dim=0)
    return model.head(torch.sum(outputs, dim=0) / outputs.shape[0]).squeeze(-1)


def test_steps_become_parts_become_a_score_as_the_authors_have_it() -> None:
    model, batch = small(), videos(6, columns=dives(6))
    found, present = model.find(batch)[0], model.present(batch)
    torch.testing.assert_close(model.execution(found, present), _reference_parts(model, found, present.float()))
    torch.testing.assert_close(model(batch), _reference_parts(model, found, present.float()))


def test_a_part_without_steps_is_left_out() -> None:
    model, batch = small(), videos(3, columns=dives(3))
    present = model.present(batch)
    present[:, 5:12] = False
    found = model.find(batch)[0]
    first = (found[:, :5] * present[:, :5, None]).sum(dim=1) / present[:, :5].sum(dim=1, keepdim=True)
    expected = model.head((model.part(first) + model.part(found[:, 12])) / 2).squeeze(-1)
    torch.testing.assert_close(model.execution(found, present), expected)


def test_difficulty_multiplies_points_from_their_own_zero() -> None:
    """On a scale of 20 … 120 a difficulty of 2 and 35 points each make 70 points, half of the scale."""
    torch.manual_seed(0)
    inputs = replace(shape(columns={"difficulty": ColumnEncoder("number")}), scale=ScoreScale(20.0, 120.0, 5.0))
    model = RICA2(inputs, replace(SMALL, difficulty=True))
    with torch.no_grad():
        model.head[-1].weight.zero_()
        model.head[-1].bias.fill_(35 * 5 / 100)
    batch = videos(1, columns={"difficulty": torch.tensor([2.0])})
    assert model(batch).item() == pytest.approx(2.5)
    batch.columns["difficulty"][:] = torch.nan
    with pytest.raises(UsageError, match="v0 has the difficulty nan"):
        model(batch)


# ---- losses


def _reference_attention_losses(attention: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """`get_att_loss` of abrarmajeedi/rica2_aqa, losses.py, row by row; there maps are multiplied by presence before."""
    rows, _, time = attention.shape
    attention, hinge = attention * present[..., None], nn.MarginRankingLoss(1.0)
    at = torch.arange(1, time + 1).float()
    centre = (attention * at).sum(-1)
    var = (torch.abs(at - centre[..., None]) * attention).sum(-1)
    now, then, first, last = [], [], [], []
    for r in range(rows):
        active = centre[r][present[r]]
        now += [active[:-1]]
        then += [active[1:]]
        first.append(active[0])
        last.append(active[-1])
    a, b, f, z = torch.cat(now), torch.cat(then), torch.stack(first), torch.stack(last)
    loss = hinge(b, a, torch.ones_like(a)).mean()
    loss = loss + hinge(f, torch.ones_like(f), torch.ones_like(f)).sum()
    loss = loss + hinge(torch.ones_like(z) * time, z, torch.ones_like(z)).sum()
    return loss, var.mean()


def test_attention_losses_are_the_authors() -> None:
    g = torch.Generator().manual_seed(0)
    attention = torch.rand(12, 6, 9, generator=g).mul(4).softmax(-1)
    present = torch.rand(12, 6, generator=g) < 0.6
    present[:, 5] = True
    gaps, ends, sparsity = order_in_time(attention, present, torch.full((12,), 9), 1.0)
    torch.testing.assert_close((gaps + ends, sparsity), _reference_attention_losses(attention, present))


def test_attention_losses_by_hand() -> None:
    """Three steps at segments 2, 4 and 4 of 6: one of two gaps lacks a segment; no end is missed, nothing spread."""
    attention = torch.zeros(1, 3, 6)
    attention[0, [0, 1, 2], [1, 3, 3]] = 1.0
    found = order_in_time(attention, torch.ones(1, 3, dtype=torch.bool), torch.tensor([6]), 1.0)
    assert [x.item() for x in found] == [0.5, 0.0, 0.0]
    # Half on 2 and half on 4 is at 3, one away on the mean; absent steps count as 0.
    spread = torch.zeros(1, 2, 6)
    spread[0, 0, [1, 3]] = 0.5
    found = order_in_time(spread, torch.tensor([[True, False]]), torch.tensor([6]), 1.0)
    assert [x.item() for x in found] == [0.0, 0.0, 0.5]


def _reference_information(mean: Tensor, variance: Tensor, present: Tensor) -> Tensor:
    """`phase_vib_loss` of `criterion`, losses.py."""
    batch, _, channels = mean.shape
    there = present.reshape(-1).nonzero().squeeze().long()
    mean, variance = mean.reshape(-1, channels)[there], variance.reshape(-1, channels)[there]
    loss = torch.sum(torch.pow(mean, 2) + variance - torch.log(variance) - 1.0, dim=1) * 0.5
    return loss.sum() / (batch * channels)


def test_information_is_the_authors_and_none_at_a_standard_normal() -> None:
    g = torch.Generator().manual_seed(0)
    mean, variance = torch.randn(4, 6, 5, generator=g), torch.rand(4, 6, 5, generator=g) + 0.1
    present = torch.rand(4, 6, generator=g) < 0.7
    torch.testing.assert_close(information(mean, variance, present), _reference_information(mean, variance, present))
    assert information(torch.zeros(2, 3, 4), torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)) == 0


def test_each_loss_trains_exactly_its_parts() -> None:
    batch = videos(6, columns=dives(6))
    seeing = {"convolutions", "encoder", "query", "asking"}
    model = small()
    assert set(model.losses(batch, batch)) == {"score", "ranking", "sparsity"}
    assert trained_by(model, "score", batch) == seeing | {"step", "part", "head"}
    assert trained_by(model, "ranking", batch) == seeing
    assert trained_by(model, "sparsity", batch) == seeing
    model = small(replace(SMALL, stochastic=True))
    assert trained_by(model, "score", batch) == seeing | {"step", "spread", "part", "head"}
    assert trained_by(model, "information", batch) == seeing | {"step", "spread"}


# ---- as any method


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("rubric", [False, True])
def test_a_video_scores_the_same_alone_and_padded(rubric: bool, stochastic: bool) -> None:
    model, batch = small(replace(SMALL, stochastic=stochastic), rubric), videos(6, columns=dives(6))
    alone_as_together(model, batch)
    torch.testing.assert_close(model(batch), model(batch))


def test_doubt_is_the_harmonic_mean_over_channels() -> None:
    from scipy.stats import hmean

    model, batch = small(replace(SMALL, stochastic=True)).eval(), videos(4, columns=dives(4))
    with torch.no_grad():
        variance, present = model.distribution(model.find(batch)[0])[1], model.present(batch)
        sigma = [v[p].mean(dim=0).sqrt().numpy() for v, p in zip(variance, present, strict=True)]
        np.testing.assert_allclose(model.uncertainty(batch), hmean(np.stack(sigma), axis=1), rtol=1e-5)


def test_it_learns_by_heart_and_starts_at_the_labelled_mean() -> None:
    table: dict[str, Any] = {
        "position": np.array(list("AB" * 4), dtype=object), "tw_no": np.array([0, 1, 2, 0] * 2, dtype=object),
        "difficulty": np.linspace(1.5, 3.0, 8),
    }  # fmt: skip
    columns = {"position": "category", "tw_no": "category", "difficulty": "number"}
    learns_by_heart(lambda i: RICA2(i, SMALL), {}, epochs=150)
    learns_by_heart(lambda i: RICA2(i, replace(SMALL, difficulty=True)), table, columns, epochs=150)
    learns_by_heart(lambda i: RICA2(i, replace(SMALL, stochastic=True)), table, columns, epochs=250)
    # With a rate of next to nothing what is predicted is where it started: 2.6, give or take the last layer's noise.
    own = np.array([2.5, 2.6, 2.7, 2.6, 2.5, 2.7, 2.6, 2.6])
    started = _bias_after_preparing(own)
    assert started == pytest.approx(own.mean(), rel=1e-5)


def _bias_after_preparing(own: np.ndarray[Any, Any]) -> float:
    from aqa_train.config import Training
    from aqa_train.features import FeatureSet
    from aqa_train.trainer import Task, fit

    from .method_checks import CPU

    found = FeatureSet.from_arrays({"rgb": np.random.default_rng(0).random((8, 4, 6), dtype=np.float32)}, {})
    rows, none = np.arange(8), np.arange(0)
    read, inputs = found.prepared({}, {}, rows, rows, "none")
    task = Task(read, rows, none, none, own)
    how = Training(epochs=1, batch=8, lr=1e-9)
    model: Any = fit(lambda: RICA2(replace(inputs, scale=SCALE), SMALL), task, how, seed=[0], device=CPU).model
    return float(model.head[-1].bias.detach())


def test_a_difficulty_of_0_is_refused_with_the_video() -> None:
    batch = videos(3, columns={**dives(3), "difficulty": torch.tensor([2.0, 0.0, 3.0])})
    with pytest.raises(UsageError, match="v1 has the difficulty 0"):
        small(replace(SMALL, difficulty=True))(batch)


@pytest.mark.parametrize("declared", [range(12), range(9, 12)])
def test_the_declared_dive_is_difficulty_and_read_where_training_videos_have_it(
    declared: range, make_store: MakeStore, tmp_path: Path
) -> None:
    labels = [
        {"split": "test" if i > 8 else "train", **({"extra": {"position": "AB"[i % 2]}} if i in declared else {})}
        for i in range(12)
    ]
    aqa_train("--features", make_store(videos=12, labels=labels), "--method", "rica2", "--seeds", 1, "--epochs", 1,
              "--jobs", 1, "--device", "cpu", "--set", "width=16", "--set", "heads=2", "--set", "layers=1",
              "--out", tmp_path / "o")  # fmt: skip
    model = load_checkpoint(tmp_path / "o" / "models" / "rica2" / "fold0-seed0")
    known = len(declared) == 12
    assert set(model.inputs.columns) == ({"position"} if known else set())
    (row,) = [r for r in read_csv(tmp_path / "o" / "metrics.csv") if r["method"] == "rica2"]
    assert row["uses_difficulty"] == str(known)


def test_heads_must_fit_the_width() -> None:
    with pytest.raises(UsageError, match="width = 12 is not an even multiple of heads = 8"):
        RICA2(shape(), RICA2Config(width=12))
