"""Trainings that are computed as one model learn what they learn alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aqa_train.batch import Batch
from aqa_train.config import Training
from aqa_train.draws import rand, randn_like
from aqa_train.layers import Dropout
from aqa_train.methods import METHODS
from aqa_train.methods.s4aqa import S4AQAConfig
from aqa_train.signals import Stopped
from aqa_train.trainer import fit

from .method_checks import after
from .together_cases import CPU, HOW, SEEDS, equal, together, trainings

METHODS_TOGETHER = [m for m in METHODS if getattr(METHODS[m].load(), "together", False)]


def test_the_methods_of_the_papers_semi_supervised_tables_can_be_computed_together() -> None:
    named = {"s4aqa", "aa", "aa+rda", "aa+msfr", "keep-first-frame", "vanilla-ssl", "s4l", "pseudo-labels", "i3d+mlp"}
    assert {*named, "c3d-avg-stl", "usdl", "musdl", "dae", "mean-teacher"} <= set(METHODS_TOGETHER)


@pytest.mark.parametrize("method", METHODS_TOGETHER)
def test_a_method_learns_beside_others_what_it_learns_alone(method: str) -> None:
    asked = trainings(method)
    for found, one in zip(together(asked), asked, strict=True):
        equal(found, fit(**one, device=CPU))


@pytest.mark.parametrize(
    "settings",
    [
        {"alignment": "mmd-rbf"},
        {"alignment": "mmd-laplacian"},
        {"mask_value": "mean"},
        {"mask_value": "noise"},
        {"mask_value": "learned"},
        {"norm": "joint"},
        {"norm": "separate"},
        {"norm_first": False},
        {"pooling": "max"},
        {"pooling": "flatten"},
        {"masked": 3},
        {"recover": "all"},
    ],
    ids=str,
)
def test_s4aqa_with_every_setting_of_the_papers_tables(settings: dict[str, Any]) -> None:
    asked = trainings("s4aqa", settings)
    for found, one in zip(together(asked), asked, strict=True):
        equal(found, fit(**one, device=CPU))


@pytest.mark.parametrize(
    ("method", "how", "close"),
    [
        ("s4aqa", {"momentum": 0.0, "schedule": "cosine"}, 1e-5),
        ("s4aqa", {"schedule": "steps", "epoch_of": "labelled", "batch": 5}, 1e-5),
        # Without batch normalisation.
        ("usdl", {"optimiser": "adam"}, 1e-5),
        ("i3d+mlp", {"optimiser": "adamw", "schedule": "cosine", "standardise": "z-score"}, 1e-5),
        # bfloat16 has 8 bits: gradients that are rounded another way differ by 1/256 of themselves, at twelve steps.
        # After these, weights that were trained alone are up to .014 away from float32's.
        ("s4aqa", {"precision": "bf16"}, 0.02),
    ],
    ids=str,
)
def test_every_way_to_train(method: str, how: dict[str, Any], close: float) -> None:
    asked = trainings(method, how=how)
    for found, one in zip(together(asked), asked, strict=True):
        equal(found, fit(**one, device=CPU), close=close)


def test_with_adam_the_losses_are_alike() -> None:
    asked = trainings("s4aqa", how={"optimiser": "adam"})
    for found, one in zip(together(asked), asked, strict=True):
        assert found is not None
        alone = fit(**one, device=CPU)
        for k in ("score", "recovery", "alignment"):
            assert [row[k] for row in found.history] == pytest.approx([row[k] for row in alone.history], rel=1e-4)


def test_weights_of_losses_may_differ() -> None:
    asked = trainings("s4aqa", [{"recovery_weight": w, "alignment_weight": 0.1 * w} for w in (0.5, 5.0, 40.0)])
    for found, one in zip(together(asked), asked, strict=True):
        equal(found, fit(**one, device=CPU))


class _Drawn(nn.Module):
    """All that it learns from are numbers drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.config, self.at, self.dropout = S4AQAConfig(), nn.Parameter(torch.zeros(4)), Dropout(0.5)

    def forward(self, batch: Batch) -> Tensor:
        return self.at.sum() + 0 * batch.scores

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        x = randn_like(labelled.streams["rgb"])
        hidden = self.dropout(rand((3, 4), x.device))
        return {"noise": x.mean() + hidden.sum() + (self.at * hidden).sum()}


def test_random_numbers_are_those_of_a_training_alone() -> None:
    """SGD of a linear loss: what is drawn is what it moves by, and every draw differs."""
    asked = [{**one, "build": _Drawn, "training": Training(**HOW)} for one in trainings()]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    alone = [fit(**one, device=CPU) for one in asked]
    found = together(asked)
    assert torch.equal(torch.get_rng_state(), before)
    moved = []
    for mine, expected in zip(found, alone, strict=True):
        assert mine is not None
        # Products of numbers that were drawn alike: apart by the rounding of their sums.
        torch.testing.assert_close(mine.model.at, expected.model.at, rtol=1e-6, atol=1e-7)
        moved.append(mine.model.at)
    assert not torch.allclose(moved[0], moved[1])


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["s4aqa", "mean-teacher", "vanilla-ssl"])
def test_on_cuda(method: str, tmp_path: Path) -> None:
    """Alone, together, and together after a stop; sums of a GPU are rounded otherwise again."""
    cuda = torch.device("cuda")
    asked = trainings(method)
    for one in asked:
        one["task"] = replace(one["task"], features=one["task"].features.place(cuda, "yes"))
    expected = [fit(**one, device=cuda) for one in asked]
    states = [tmp_path / f"{i}" for i in range(SEEDS)]
    with pytest.raises(Stopped):
        together(asked, states, stop=after(5), device=cuda)
    for found in (together(asked, device=cuda), together(asked, states, device=cuda)):
        for mine, theirs in zip(found, expected, strict=True):
            equal(mine, theirs, close=1e-4)
