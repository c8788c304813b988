"""Trainings that are computed as one model fail, stop and resume as they do alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from aqa_train import checkpoint
from aqa_train.batch import Batch, Inputs
from aqa_train.config import Training
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig
from aqa_train.signals import Stopped
from aqa_train.trainer import Diverged, fit

from .method_checks import after
from .together_cases import CPU, HOW, SEEDS, SMALL, Told, equal, tasks, together, trainings


@pytest.mark.parametrize("method", ["s4aqa", "vanilla-ssl", "pseudo-labels", "mean-teacher"])
@pytest.mark.parametrize("steps", [2, 3, 7])
def test_stopped_together_they_resume_together_or_alone(method: str, steps: int, tmp_path: Path) -> None:
    """Three steps an epoch: within one, at its end, and in another phase."""
    asked = trainings(method)
    expected = [fit(**one, device=CPU) for one in asked]
    for folder in ("together", "alone"):
        (tmp_path / folder).mkdir()
        states = [tmp_path / folder / f"{i}" for i in range(SEEDS)]
        with pytest.raises(Stopped, match="signal 15"):
            together(asked, states, stop=after(steps))
        found = (
            together(asked, states)
            if folder == "together"
            else [fit(**one, device=CPU, state=state) for one, state in zip(asked, states, strict=True)]
        )
        for mine, theirs in zip(found, expected, strict=True):
            equal(mine, theirs)


def test_one_that_was_saved_less_often_catches_up(tmp_path: Path) -> None:
    asked = trainings("s4aqa")
    states = [tmp_path / f"{i}" for i in range(SEEDS)]
    for one, state, steps in zip(asked, states, (5, 0, 2), strict=True):
        if steps:
            with pytest.raises(Stopped):
                fit(**one, device=CPU, state=state, stop=after(steps))
    for found, one in zip(together(asked, states), asked, strict=True):
        equal(found, fit(**one, device=CPU))


class _Exploding(S4AQA):
    """Its loss is infinite from one step on, where it is told to be."""

    def __init__(self, inputs: Inputs, at: int) -> None:
        super().__init__(inputs, S4AQAConfig(**SMALL))
        self.register_buffer("left", torch.tensor(float(at)))

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        terms = super().losses(labelled, unlabelled)
        terms["score"] = terms["score"] + torch.where(self.left > 0, 0.0, torch.inf)
        return terms

    def after_step(self) -> None:
        self.left -= 1


def exploding(at: tuple[int, ...]) -> list[dict[str, Any]]:
    every, shapes = tasks()
    return [
        {"build": partial(_Exploding, inputs, n), "task": task, "training": Training(**HOW), "seed": [i, 0]}
        for i, (task, inputs, n) in enumerate(zip(every, shapes, at, strict=True))
    ]


def test_one_that_diverges_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    asked = exploding((100, 4, 100))
    told, states = Told(), [tmp_path / f"{i}" for i in range(SEEDS)]
    found = together(asked, states, failed=told)
    ((which, why),) = told.seen
    assert which == 1
    assert "epoch 2, step 2" in why
    assert "total = inf" in why
    assert found[1] is None
    for i in (0, 2):
        equal(found[i], fit(**asked[i], device=CPU))
    # What is left of it are the last good weights.
    kept = checkpoint.part(checkpoint.load(states[1], "state")[0], "model")
    assert all(v.isfinite().all() for v in kept.values())


def test_others_may_end_with_it(tmp_path: Path) -> None:
    """As the other seeds of a method that its run leaves out."""
    asked = exploding((100, 4, 100))
    found = together(asked, failed=lambda i, error: [0, 1])
    assert found[:2] == [None, None]
    equal(found[2], fit(**asked[2], device=CPU))


def test_where_that_ends_the_run_the_others_are_saved(tmp_path: Path) -> None:
    asked, states = exploding((100, 4, 100)), [tmp_path / f"{i}" for i in range(SEEDS)]
    with pytest.raises(Diverged):
        together(asked, states)
    for i in (0, 2):
        assert checkpoint.load(states[i], "state")[1]["progress"]["step"] == 2
        equal(fit(**asked[i], device=CPU, state=states[i]), fit(**asked[i], device=CPU))


def test_one_may_diverge_while_it_catches_up(tmp_path: Path) -> None:
    """Saved at its last good weights, it diverges again where others are ahead of it."""
    asked, states = exploding((100, 4, 100)), [tmp_path / f"{i}" for i in range(SEEDS)]
    for one, state, steps in zip(asked, states, (7, 3, 7), strict=True):
        with pytest.raises(Stopped):
            fit(**one, device=CPU, state=state, stop=after(steps))
    told = Told()
    found = together(asked, states, failed=told)
    assert [which for which, _ in told.seen] == [1]
    for i in (0, 2):
        equal(found[i], fit(**asked[i], device=CPU))


def test_a_signal_is_heard_while_one_catches_up(tmp_path: Path) -> None:
    asked, states = trainings("s4aqa"), [tmp_path / f"{i}" for i in range(SEEDS)]
    with pytest.raises(Stopped):
        fit(**asked[0], device=CPU, state=states[0], stop=after(11))
    begun_and_two_steps = SEEDS + 2
    with pytest.raises(Stopped):
        together(asked, states, stop=after(begun_and_two_steps))
    progress = [checkpoint.load(state, "state")[1]["progress"] for state in states]
    assert [p["epoch"] * 3 + p["step"] for p in progress] == [11, 2, 2]
    for found, one in zip(together(asked, states), asked, strict=True):
        equal(found, fit(**one, device=CPU))


def test_one_that_cannot_begin_is_told_of_alone(tmp_path: Path) -> None:
    asked, states = trainings("s4aqa"), [tmp_path / f"{i}" for i in range(SEEDS)]
    states[1].write_bytes(b"not a state")
    told = Told()
    found = together(asked, states, failed=told)
    ((which, why),) = told.seen
    assert (which, str(states[1]) in why) == (1, True)
    assert [f is None for f in found] == [False, True, False]


class _Unfit(S4AQA):
    """Decides by the value of a tensor, which vmap refuses."""

    def losses(self, labelled: Batch, unlabelled: Batch) -> dict[str, Tensor]:
        terms = super().losses(labelled, unlabelled)
        return terms if terms["score"] > 0 else {}


def test_what_cannot_be_computed_together_fails_for_all_and_all_are_saved(tmp_path: Path) -> None:
    every, shapes = tasks()
    asked = [
        {"build": partial(_Unfit, inputs), "task": task, "training": Training(**HOW), "seed": [i, 0]}
        for i, (task, inputs) in enumerate(zip(every, shapes, strict=True))
    ]
    states = [tmp_path / f"{i}" for i in range(SEEDS)]
    with pytest.raises(RuntimeError, match="vmap"):
        together(asked, states)
    assert all(state.exists() for state in states)
