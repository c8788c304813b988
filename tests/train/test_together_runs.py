"""--together: which trainings of a run are computed as one model, and that its results are those of one alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_shared.errors import UsageError
from aqa_train.config import Training
from aqa_train.jobs import bundles
from aqa_train.parts import jobs_of
from aqa_train.resolve import resolve
from aqa_train.run import open_run, train_cells

from .conftest import MakeStore
from .runs import FAST, aqa_train, results
from .together_cases import CPU


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
