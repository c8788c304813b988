"""Trainings that are computed as one model learn what they learn alone, and fail, stop and resume as they do alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_train import checkpoint
from aqa_train.batch import Batch, Inputs, ScoreScale
from aqa_train.config import Training
from aqa_train.draws import rand, randn_like
from aqa_train.features import FeatureSet
from aqa_train.jobs import bundles
from aqa_train.layers import Dropout
from aqa_train.methods import METHODS
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig
from aqa_train.parts import jobs_of
from aqa_train.resolve import resolve
from aqa_train.run import open_run, train_cells
from aqa_train.signals import Stopped
from aqa_train.together import fit_together
from aqa_train.trainer import Diverged, Fitted, Task, begun, fit

from .conftest import MakeStore, synthetic
from .method_checks import after
from .runs import FAST, aqa_train, results

CPU = torch.device("cpu")
SEEDS = 3
HOW = {"epochs": 4, "batch": 6, "lr": 1e-3, "optimiser": "sgd"}
"""Adam divides a gradient by its size. Of a bias before batch normalisation, whose gradient is 0 but for rounding, it
makes steps of the full rate, so that weights tell nothing there."""
SMALL = {"widths": (12, 8), "regressor_width": 8}


def tasks(method: str = "s4aqa") -> tuple[list[Task], list[Inputs]]:
    """Other labelled videos, and another mean of their scores, each time; streams and columns as the method's row."""
    row = METHODS[method]
    x, scores = synthetic(40, 5, 6)
    names = ["rgb", *(f"{view}_rgb" for view in {"s4l": ("rot90", "rot180", "rot270")}.get(method, ()))]
    names += ["still_rgb"] if method == "keep-first-frame" else []
    names += ["actor_rgb"] if "actor-rgb" in row.streams else []
    arrays = {n: np.roll(x, i, axis=-1) for i, n in enumerate(names)}
    marks = np.array([str(np.random.default_rng(i).integers(1, 6, 7).tolist()) for i in range(40)], object)
    given = {"judge_scores": marks, "ratings": marks, "difficulty": np.linspace(2, 4, 40)}
    found = FeatureSet.from_arrays(arrays, {"score": scores, **given}).place(CPU, "yes")
    every, shapes = [], []
    for seed in range(SEEDS):
        order = np.random.default_rng(seed).permutation(30)
        labelled, unlabelled = np.sort(order[:13]), np.sort(order[13:])
        read, inputs = found.prepared(row.columns, row.labels, np.arange(30), labelled, "none")
        scale = ScoreScale(0.0, 100.0, 5.0, mean=float(scores[labelled].mean() / 20))
        every.append(Task(read, labelled, unlabelled, np.arange(30, 36), scores / 20))
        shapes.append(Inputs(inputs.streams, inputs.segments, inputs.columns, scale))
    return every, shapes


def trainings(method: str = "s4aqa", settings: Any = (), how: Any = ()) -> list[dict[str, Any]]:
    """What `fit` is asked for, by seed; `settings` may be a list of them."""
    row, cls = METHODS[method], METHODS[method].load()
    known = {k: v for k, v in SMALL.items() if k in cls.Config.__dataclass_fields__}
    each = settings if isinstance(settings, list) else [dict(settings)] * SEEDS
    return [
        {
            "build": partial(cls, inputs, cls.Config(**{**known, **own, **row.fixed})),
            "task": task,
            "training": Training(**{**HOW, **dict(how)}),
            "seed": [seed, 0],
        }
        for seed, (task, inputs, own) in enumerate(zip(*tasks(method), each, strict=True))
    ]


def together(
    asked: list[dict[str, Any]],
    states: list[Path] | None = None,
    stop: Callable[[], int] = lambda: 0,
    failed: Callable[[int, Exception], Collection[int]] | None = None,
    device: torch.device = CPU,
) -> list[Fitted | None]:
    def refused(i: int, error: Exception) -> Collection[int]:
        raise error

    begin = [partial(begun, **one, device=device, state=states[i] if states else None) for i, one in enumerate(asked)]
    return fit_together(begin, device, stop=stop, on_epoch=lambda i, epoch, row: None, failed=failed or refused)


def equal(found: Fitted | None, expected: Fitted, *, close: float = 1e-5) -> None:
    """Losses and weights: apart by the rounding of sums, which are added in another order."""
    assert found is not None
    assert [row.keys() for row in found.history] == [row.keys() for row in expected.history]
    for mine, theirs in zip(found.history, expected.history, strict=True):
        own = [{k: v for k, v in row.items() if k != "validation_spearman"} for row in (mine, theirs)]
        assert own[0] == pytest.approx(own[1], rel=10 * close)
    weights = expected.model.state_dict()
    for name, mine in found.model.state_dict().items():
        torch.testing.assert_close(
            mine, weights[name], atol=close, rtol=10 * close, msg=lambda said, n=name: f"{n}: {said}"
        )
    assert not found.model.training
    # Which epoch is best, six validation videos say, whose order may hang on the last bit.
    assert (found.best is None) == (expected.best is None)


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
        ("s4aqa", {"precision": "bf16"}, 0.01),
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
    seen: list[tuple[int, str]] = []

    def left_out(i: int, error: Exception) -> list[int]:
        seen.append((i, str(error)))
        return [i]

    states = [tmp_path / f"{i}" for i in range(SEEDS)]
    found = together(asked, states, failed=left_out)
    ((which, why),) = seen
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
    seen: list[int] = []
    found = together(asked, states, failed=lambda i, error: seen.append(i) or [i])  # type: ignore[func-returns-value]
    assert seen == [1]
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
    seen: list[tuple[int, str]] = []
    found = together(
        asked,
        states,
        failed=lambda i, error: seen.append((i, str(error))) or [i],  # type: ignore[func-returns-value]
    )
    ((which, why),) = seen
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


def test_time_is_shared_out() -> None:
    """Of all of it, each one claims its part."""
    started = time.monotonic()
    found = [f for f in together(trainings("s4aqa", how={"epochs": 20})) if f is not None]
    passed = time.monotonic() - started
    assert len(found) == SEEDS
    assert 0.5 * passed < sum(f.seconds for f in found) <= passed


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


# ---- runs


def settings(store: Path, **given: Any) -> Any:
    flags = {"features": str(store), "methods": ("s4aqa", "vat"), "seeds": 5, "labelled": 0.5, **given}
    return resolve(None, flags, ["widths=8,8", "batch=8", "epochs=2"], {})


def test_bundles_hold_trainings_of_one_shape(make_store: MakeStore, tmp_path: Path) -> None:
    opened = open_run(settings(make_store(), test_fraction=0.25), tmp_path / "run")
    jobs = jobs_of(opened.grid, tmp_path / "run")
    found = [[job.name for job in bundle] for bundle in bundles(jobs, 3)]
    assert found == [
        ["s4aqa/fold0-seed0", "s4aqa/fold0-seed1", "s4aqa/fold0-seed2"],
        ["vat/fold0-seed0"],
        ["vat/fold0-seed1"],
        ["vat/fold0-seed2"],
        ["s4aqa/fold0-seed3", "s4aqa/fold0-seed4"],
        ["vat/fold0-seed3"],
        ["vat/fold0-seed4"],
    ]
    assert [len(bundle) for bundle in bundles(jobs, 1)] == [1] * 10


def test_weights_of_losses_are_of_one_shape_where_the_same_ones_are_0(make_store: MakeStore, tmp_path: Path) -> None:
    asked = settings(make_store(), methods=("s4aqa",), seeds=1, test_fraction=0.25)
    asked = asked.model_copy(update={"variants": {"recovery_weight": ("0", "1", "40")}})
    opened = open_run(asked, tmp_path / "run")
    found = [[job.name for job in bundle] for bundle in bundles(jobs_of(opened.grid, tmp_path / "run"), 3)]
    assert [[name.split("/")[0] for name in bundle] for bundle in found] == [
        ["recovery_weight=0"],
        ["recovery_weight=1", "recovery_weight=40"],
    ]


def test_videos_of_different_lengths_are_trained_alone(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=12, lengths=[3, 4] * 6)
    opened = open_run(settings(store, test_fraction=0.25), tmp_path / "run")
    assert {len(bundle) for bundle in bundles(jobs_of(opened.grid, tmp_path / "run"), 4)} == {1}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_computed_together_has_the_results_of_one_that_was_not(
    jobs: int, make_store: MakeStore, tmp_path: Path
) -> None:
    """A grid over a loss's weight, in which all trainings have one shape."""
    common = ["--features", make_store(), *FAST, "--epochs", 3, "--seeds", 2, "--labelled", 0.5, "--folds", 2]
    common += ["--method", "s4aqa,aa", "--variant", "s4aqa.recovery_weight=1,40", "--set", "optimiser=sgd"]
    aqa_train(*common, "--out", tmp_path / "alone", "--jobs", 1)
    aqa_train(*common, "--out", tmp_path / "together", "--jobs", jobs, "--together", 8)
    cells = sorted(p.parent.relative_to(tmp_path / "alone") for p in (tmp_path / "alone").glob("*/metrics.json"))
    assert len(cells) == 2
    for cell in cells:
        mine, theirs = (results(tmp_path / side / cell) for side in ("together", "alone"))
        assert mine.keys() == theirs.keys()
        for name in [name for name in mine if name.endswith("result.json")]:
            assert mine[name]["split_sha256"] == theirs[name]["split_sha256"]
            assert (mine[name]["together"] > 1, theirs[name]["together"]) == (True, 1)
            # Sums are rounded otherwise; other labels, weights or random numbers would differ in the first digits.
            for one, other in zip(mine[name]["history"], theirs[name]["history"], strict=True):
                assert one == pytest.approx(other, rel=1e-4)
            np.testing.assert_allclose(mine[name]["predicted"]["last"], theirs[name]["predicted"]["last"], atol=1e-3)


def test_what_a_run_leaves_out_is_left_out_of_all_its_seeds(make_store: MakeStore, tmp_path: Path) -> None:
    """i3d+mlp diverges at such a rate, and ridge has none."""
    asked = settings(make_store(), methods=("i3d+mlp", "ridge"), leave_out=True, labelled=1.0, test_fraction=0.25)
    asked = asked.model_copy(update={"settings": {}, "training": Training(lr=1e30, epochs=3, batch=8)})
    out = tmp_path / "run"
    opened = open_run(asked, out)
    (done,) = train_cells(
        opened.grid, opened.data.features, out, device=CPU, jobs=1, together=5, in_memory="auto", again=""
    )
    assert set(done.failures) == {"i3d+mlp"}
    assert "epoch 1, step 2: gradient = " in done.failures["i3d+mlp"].cause
    assert {r["method"] for r in done.results} == {"ridge"}
    assert json.loads((out / "models/i3d+mlp/fold0-seed0/failed.json").read_text())["refused"] is False


def test_a_cell_that_diverges_is_the_only_one_left_out(make_store: MakeStore, tmp_path: Path) -> None:
    """A weight so large that its loss overflows; the grid's other cell is computed beside it."""
    asked = settings(make_store(), methods=("s4aqa", "ridge"), seeds=2, leave_out=True, test_fraction=0.25)
    asked = asked.model_copy(update={"variants": {"s4aqa.recovery_weight": ("1", "1e38")}})
    out = tmp_path / "run"
    opened = open_run(asked, out)
    done = list(
        train_cells(opened.grid, opened.data.features, out, device=CPU, jobs=1, together=4, in_memory="auto", again="")
    )
    assert [sorted(cell.failures) for cell in done] == [[], ["s4aqa"]]
    assert [len([r for r in cell.results if r["method"] == "s4aqa"]) for cell in done] == [2, 0]
    assert "gradient = inf" in done[1].failures["s4aqa"].cause


def test_what_is_only_tried_is_tried_alone(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--together does nothing with --dry-run"):
        aqa_train("--features", make_store(), "--out", tmp_path / "r", "--dry-run", "--together", 2)


def test_a_cluster_trains_one_at_a_time(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--together does nothing with --scheduler: each worker trains one"):
        aqa_train("--features", make_store(), "--out", tmp_path / "r", "--scheduler", "local:1", "--together", 2)
