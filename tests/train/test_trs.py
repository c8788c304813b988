"""TRS: losses by hand, what is remembered, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_train.methods.trs import TRS, TRSConfig, variance

from .conftest import MakeStore, inputs
from .method_checks import (
    SMALL,
    alone_as_together,
    fitted,
    moved,
    ranks_by_heart,
    resumes_to_the_bit,
    say_the_same_when_loaded,
    task_of,
    trained_by,
    videos,
)
from .runs import FAST

CONFIG = TRSConfig(**SMALL)


def build(config: TRSConfig = CONFIG) -> TRS:
    torch.manual_seed(0)
    return TRS(inputs(6), config)


def silence(module: nn.Module, *said: float) -> None:
    """It always says this."""
    for p in module.parameters():
        nn.init.zeros_(p)
    module[-1].bias.data = torch.tensor(said)  # type: ignore[index]


def test_losses_by_hand() -> None:
    """Errors 1, -2 and 3 at σ² = 1 cost half their mean square, at σ² = e² that / e² and 1; no difference is seen."""
    model = build().eval()
    labelled, unlabelled = videos(3), videos(4, seed=1)
    labelled = replace(labelled, scores=model(labelled).detach() - torch.tensor([1.0, -2.0, 3.0]))
    silence(model.student.doubt, 0.0)
    silence(model.reference, 0.0, 0.0)
    torch.manual_seed(4)
    terms = model.losses(labelled, unlabelled)
    assert terms["score"].item() == pytest.approx(14 / 3 / 2, rel=1e-5)
    torch.manual_seed(4)
    apart = labelled.scores - labelled.scores[torch.randperm(3)]
    assert apart.abs().max() > 0
    assert terms["relative"].item() == pytest.approx(apart.square().mean().item() / 2, rel=1e-5)
    silence(model.student.doubt, 2.0)
    score = model.losses(labelled, unlabelled)["score"].item()
    assert score == pytest.approx(14 / 3 / 2 / math.exp(2) + 1, rel=1e-5)
    assert variance(torch.tensor([-9.0, 9.0])).tolist() == pytest.approx([math.exp(-5), math.exp(5)])


def test_the_surest_labels_are_remembered_and_averaged_by_certainty() -> None:
    model = build().eval()
    labelled = replace(videos(2), scores=torch.tensor([1.0, 3.0]))
    unlabelled = replace(videos(2, seed=1), rows=torch.tensor([7, 4]))
    model.rows = torch.tensor([4, 5, 7])
    model.labels, model.variances = torch.zeros(2, 3).double(), torch.full((2, 3), torch.inf).double()

    def says(teacher: float, its: float, reference: float, own: float) -> Tensor:
        silence(model.teacher.regressor, teacher)
        silence(model.teacher.doubt, math.log(its))
        silence(model.reference, reference, math.log(own))
        return model.remembered(labelled, unlabelled)

    # The reference's label is the mean of 1 and 3, and the difference: 2 + 0.5. Weights are 1 and 1/3.
    assert says(4.5, 1.0, 0.5, 3.0).tolist() == pytest.approx([(4.5 + 2.5 / 3) / (1 + 1 / 3)] * 2)
    # A teacher less sure is not listened to, a surer reference is: 2 + 1.
    assert says(9.0, 2.0, 1.0, 1.0).tolist() == pytest.approx([(4.5 + 3.0) / 2] * 2)
    assert model.labels[:, 1].tolist() == [0, 0]
    assert model.variances[:, 1].isinf().all()
    assert model.labels[:, 2].tolist() == pytest.approx([4.5, 3.0])


def test_each_loss_trains_its_parts() -> None:
    def parts(term: str) -> set[str]:
        model = build()
        model.rows = torch.arange(5)
        model.labels, model.variances = torch.zeros(2, 5).double(), torch.full((2, 5), torch.inf).double()
        unlabelled = replace(videos(5, seed=1), rows=torch.arange(5))
        found = trained_by(model, term, videos(4), unlabelled)
        grown = moved(model.student)
        return found | {n.split(".")[0] for n in grown}

    assert parts("score") == {"student", "encoder", "regressor", "doubt"}
    assert parts("relative") == {"student", "encoder", "reference"}
    assert parts("pseudo") == {"student", "encoder", "regressor"}


def test_the_teacher_follows_and_remembering_begins_after_the_warm_up(tmp_path: Path) -> None:
    config = replace(CONFIG, warmup=0.5, decay=0.0)
    whole = resumes_to_the_bit(lambda **more: fitted(TRS, config, task_of(8, 24), 4, **more), tmp_path, 8)
    terms = {"score", "relative"}
    assert [set(row) - {"total"} for row in whole.history] == [terms] * 2 + [terms | {"pseudo"}] * 2
    state = whole.model.state_dict()
    assert all(torch.equal(v, state[k.replace("teacher", "student")]) for k, v in state.items() if "teacher" in k)
    assert state["variances"].isfinite().all()


def test_it_learns_and_says_the_same_alone_and_when_loaded(make_store: MakeStore, tmp_path: Path) -> None:
    assert ranks_by_heart(TRS, CONFIG) > 0.95
    alone_as_together(build(), videos(5))
    say_the_same_when_loaded(["trs"], make_store(20, lengths=[4, 3] * 10), tmp_path / "run", *FAST, "--epochs", 4)


def test_no_unlabelled_videos_are_refused() -> None:
    with pytest.raises(UsageError, match="unlabelled videos, and there are none") as e:
        fitted(TRS, CONFIG, task_of(8, 0))
    assert "--labelled 0.4" in e.value.fix
