"""Seed ensembles of any method: their members' mean, trained as each would be alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from aqa_shared.errors import UsageError
from aqa_train.methods import METHODS, ensemble
from aqa_train.methods.mean_teacher import MeanTeacher, MeanTeacherConfig
from aqa_train.methods.pseudo_labels import PseudoLabels, PseudoLabelsConfig
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig
from aqa_train.methods.s4aqa_variants import VanillaSSL, VanillaSSLConfig
from aqa_train.methods.seed_ensemble import ensemble_of

from .conftest import MakeStore, inputs
from .method_checks import (
    SMALL,
    alone_as_together,
    fitted,
    ranks_by_heart,
    resumes_to_the_bit,
    say_the_same_when_loaded,
    task_of,
    videos,
)
from .runs import FAST, aqa_train

CONFIG = S4AQAConfig(**SMALL, recovery_weight=0.0)


def test_it_scores_the_mean_and_trains_each_member_as_alone() -> None:
    model = ensemble_of(S4AQA, 3)(inputs(6), CONFIG)
    labelled, unlabelled = videos(5), videos(6, seed=1)
    alone = [m.losses(labelled, unlabelled) for m in model.members]
    assert len({terms["score"].item() for terms in alone}) == 3
    for terms in alone:
        (terms["score"] + terms["alignment"]).backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    terms = model.losses(labelled, unlabelled)
    for name in terms:
        assert terms[name].item() == pytest.approx(sum(t[name].item() for t in alone) / 3, rel=1e-5)
    (terms["score"] + terms["alignment"]).backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == expected.keys()
    for name, p in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(p.grad, expected[name])
    model.eval()
    torch.testing.assert_close(model(labelled), torch.stack([m(labelled) for m in model.members]).mean(dim=0))
    alone_as_together(model, labelled)


@pytest.mark.parametrize(
    ("cls", "config"),
    [
        (MeanTeacher, MeanTeacherConfig(**SMALL)),
        (PseudoLabels, PseudoLabelsConfig(**SMALL)),
        (VanillaSSL, VanillaSSLConfig(**SMALL)),
    ],
)
def test_its_members_have_their_hooks_and_resume(cls: Any, config: Any, tmp_path: Path) -> None:
    """What is prepared, begun, followed and in phases, of two members, and stopped within an epoch."""
    both = ensemble_of(cls, 2)
    assert ensemble_of(cls, 2) is both
    hooks = ("prepare", "begin_epoch", "after_step", "phases", "parameter_groups")
    assert [hasattr(both, h) for h in hooks] == [hasattr(cls, h) for h in hooks]
    whole = resumes_to_the_bit(lambda **more: fitted(both, config, task_of(8, 24), 4, **more), tmp_path, 8)
    one = fitted(cls, config, task_of(8, 24), epochs=4)
    assert [set(row) for row in whole.history] == [set(row) for row in one.history]


def test_any_row_has_ensembles() -> None:
    assert METHODS["s4aqa-x5"] == ensemble("s4aqa", 5) == replace(
        METHODS["s4aqa"], summary="5 of s4aqa, on average", members=5
    )  # fmt: skip
    assert METHODS["aa-x12"].load()(inputs(6), CONFIG).number == 12
    for name in ("aa-x1", "aa-x", "nothing-x5", "aa-x5-x2", "aa"):
        assert (name in METHODS) == (name == "aa")
    with pytest.raises(KeyError):
        METHODS["nothing-x5"]


def test_it_learns_and_says_the_same_when_loaded(make_store: MakeStore, tmp_path: Path) -> None:
    assert ranks_by_heart(ensemble_of(S4AQA, 3), replace(CONFIG, alignment_weight=0.0)) > 0.95
    store = make_store(20, lengths=[4, 3] * 10)
    say_the_same_when_loaded(["aa-x3"], store, tmp_path / "run", *FAST, "--epochs", 4)
    with pytest.raises(UsageError, match="Ridge has no seed: 5 of it would all say the same"):
        aqa_train("--features", store, "--method", "ridge-x5", *FAST, "--out", tmp_path / "o")
    with pytest.raises(UsageError, match="no method 'ab-x5'"):
        aqa_train("--features", store, "--method", "ab-x5", *FAST, "--out", tmp_path / "o")
