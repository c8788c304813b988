"""A grid: its axes in every row of one table, the same table after a kill, features read once for all processes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from aqa_shared.errors import UsageError
from aqa_train.config import RunConfig
from aqa_train.features import FeatureSet
from aqa_train.grid import cells, reads
from aqa_train.method_settings import as_toml, differences, method_config, spelt_out, training_of
from aqa_train.methods import METHODS
from aqa_train.predict import open_ensemble
from aqa_train.resolve import parse_variants, resolve
from aqa_train.trainer import predict

from .conftest import MakeStore, synthetic
from .method_checks import fitted, task_of
from .runs import aqa_train, read_csv

SMALL = ["--set", "widths=8,8", "--set", "batch=8", "--device", "cpu"]


def table(out: Path) -> list[dict[str, str]]:
    """All but what the clock says."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_csv(out / "results.csv")]


def test_a_grid_killed_half_way_gives_the_same_table(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=24, labels=[{"difficulty": 2.0 + i % 5} for i in range(24)])
    common = ["--features", store, "--method", "aa,s4aqa,ridge", "--labelled", "0.4,0.8", "--seeds", 2, "--folds", 2,
              "--variant", "recovery_weight=1,40", "--epochs", 12, *SMALL]  # fmt: skip
    whole = tmp_path / "whole"
    for attempt in range(5):
        cut = tmp_path / f"cut{attempt}"
        command = [sys.executable, "-m", "aqa_train.cli", *map(str, common), "--jobs", "2", "--out", str(cut)]
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while len(list(cut.rglob("result.json"))) < 8:
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not (cut / "results.csv").exists():
            break  # else it was just over when it was to be killed: a busy machine
    assert process.returncode == -signal.SIGKILL
    assert not (cut / "results.csv").exists()
    done = {p: p.stat().st_mtime_ns for p in cut.rglob("result.json")}
    aqa_train("--resume", cut, "--jobs", 1, "--device", "cpu")
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    aqa_train(*common, "--jobs", 1, "--out", whole)
    rows = table(whole)
    assert table(cut) == rows
    # What does not read the variant comes once.
    expected = {
        (m, f, s, k, v)
        for m in ("s4aqa", "aa", "ridge", "mean-score", "random", "difficulty-only")
        for f, s, k, v in product(("0.4", "0.8"), "01", "01", ("1", "40") if m == "s4aqa" else ("",))
    }
    axes = [(r["method"], r["labelled"], r["seed"], r["fold"], r["recovery_weight"]) for r in rows]
    assert len(set(axes)) == len(axes)
    assert set(axes) == expected
    assert {r["method"] for r in rows if r["uses_difficulty"] == "True"} == {"difficulty-only"}
    assert {(r["method"], r["epochs"]) for r in rows} >= {("aa", "12"), ("ridge", "0")}
    part = whole / "labelled=0.4,recovery_weight=1"
    assert open_ensemble(part, "ridge").method == "ridge"
    with pytest.raises(UsageError, match="holds 4 runs") as e:
        open_ensemble(whole)
    assert e.value.fix == "name one of them"


def test_processes_share_features_and_are_sent_none(tmp_path: Path) -> None:
    x, scores = synthetic(40, 4, 64)
    found = FeatureSet.from_arrays({"rgb": x, "flow": x * 2}, {"score": scores})
    shared = found.place(torch.device("cpu"), "yes", folder=tmp_path)
    sent = pickle.dumps(shared)
    assert len(sent) < 0.1 * shared.nbytes
    there = pickle.loads(sent)
    rows = np.array([3, 39, 0])
    for name, values in {"rgb": x, "flow": x * 2}.items():
        np.testing.assert_array_equal(there.load(rows, torch.device("cpu")).streams[name], values[rows])
        assert there.select([name]).blocks == found.select([name]).blocks


def test_videos_of_different_length_are_shared_too(make_store: MakeStore, tmp_path: Path) -> None:
    from aqa_shared.store import FeatureStore

    found = FeatureSet.from_store(FeatureStore.open(make_store(videos=4, lengths=[4, 1, 3, 2])))
    there = pickle.loads(pickle.dumps(found.place(torch.device("cpu"), "yes", folder=tmp_path)))
    batches = [f.load(np.arange(4), torch.device("cpu")) for f in (found, there)]
    assert all(torch.equal(a, b) for a, b in zip(*(b.streams.values() for b in batches), strict=True))
    assert all(b.present is not None and b.present.sum(dim=1).tolist() == [4, 1, 3, 2] for b in batches)


def test_cells_are_named_after_what_differs() -> None:
    def names(**settings: object) -> list[tuple[str, tuple[str, ...]]]:
        return [(c.name, c.config.methods) for c in cells(RunConfig(features="f", **settings))]  # type: ignore[arg-type]

    assert names(methods=("aa",)) == [("", ("aa",))]
    assert names(methods=("aa",), labelled="0.1,0.4") == [("labelled=0.1", ("aa",)), ("labelled=0.4", ("aa",))]
    variants = parse_variants(["widths=8,8;16/2", "lr=0.1"])
    assert names(methods=("aa", "ridge"), variants={"lr": ("0.1", "0.2")}) == [
        ("lr=0.1", ("aa", "ridge")),
        ("lr=0.2", ("aa",)),
    ]
    assert variants == {"widths": ["8,8", "16/2"], "lr": ["0.1"]}
    (one,) = cells(RunConfig(features="f", methods=("aa",), variants={"lr": ("0.1",)}))
    assert (one.name, one.config.training.lr) == ("", 0.1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"variants": {"droput": ("1", "2")}}, "aa has no such setting"),
        ({"variants": {"recovery_weight": ("1", "2")}}, "aa has no such setting"),
        ({"variants": {"dropout": ("0.1", "2")}}, "dropout"),
        ({"variants": {"standardise": ("none", "zscore")}}, "--variant: .*standardise.*'z-score'"),
    ],
)
def test_wrong_variants_are_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        cells(RunConfig(features="f", methods=("aa",), **settings))  # type: ignore[arg-type]


OTHERS = {
    "masked": 2, "mask_value": "mean", "recover": "all", "decoder_width": 9, "alignment": "mmd-rbf",
    "discriminator_width": 9, "reversal": 2.0, "norm": "separate", "regressor_width": 9,
}  # fmt: skip


@pytest.mark.parametrize("method", ["s4aqa", "aa", "aa+rda", "aa+msfr", "vanilla-ssl"])
def test_a_setting_is_read_where_it_changes_what_is_learned(method: str) -> None:
    """Elsewhere a variant of it would train the same model again."""
    task, row = task_of(8, 8), METHODS[method]
    weights = {n: v for n, v in row.fixed.items() if n.endswith("_weight")}

    def says(**setting: object) -> list[float]:
        small = {"widths": (8,), "regressor_width": 8, "decoder_width": 8, "discriminator_width": 8, **weights}
        model = fitted(row.load(), row.load().Config(**{**small, **setting}), task).model
        return predict(model, task.features, task.labelled, torch.device("cpu")).tolist()

    plain = says()
    # The unused decoder of aa+rda takes random numbers before the discriminator does: another draw, no other model.
    tried = {n: v for n, v in OTHERS.items() if (method, n) != ("aa+rda", "decoder_width")}
    assert {n: reads(method, n) for n in tried} == {n: says(**{n: v}) != plain for n, v in tried.items()}


def test_standardised_features_are_others_for_methods_without_epochs_too() -> None:
    assert reads("ridge", "standardise")
    assert reads("coreg", "standardise")
    assert not reads("ridge", "lr")


@pytest.mark.parametrize("order", [["dropout", "aa.dropout"], ["aa.dropout", "dropout"]])
def test_what_is_said_of_one_method_wins_in_any_order(order: list[str]) -> None:
    values = {"dropout": 0.1, "aa.dropout": 0.2}
    config = RunConfig(features="f", methods=("aa", "vat"), settings={n: values[n] for n in order})
    assert [method_config(config, m).dropout for m in config.methods] == [0.2, 0.1]


@pytest.mark.parametrize("name", ["lr", "dropout"])
def test_a_variant_that_a_method_would_not_follow_is_refused(name: str) -> None:
    config = RunConfig(features="f", methods=("aa",), settings={f"aa.{name}": 0.2}, variants={name: ("0.1", "0.3")})
    with pytest.raises(UsageError, match=rf"--variant {name} would change nothing where aa\.{name} is set"):
        cells(config)


def test_a_grid_run_again_from_its_own_configuration_is_the_same(tmp_path: Path) -> None:
    variants = {"lr": ("0.01", "0.02"), "dropout": ("0.1", "0.3")}
    # Their recipes differ in lr, so that a configuration that spells out names it by method.
    config = RunConfig(features="f", methods=("aa", "gdlt"), variants=variants)
    (tmp_path / "config.toml").write_text(as_toml(spelt_out(config)))
    again = resolve(tmp_path / "config.toml", {}, environment={})
    assert again.variants == config.variants
    assert [cell.name for cell in cells(again)] == [cell.name for cell in cells(config)]
    for mine, other in zip(cells(config), cells(again), strict=True):
        assert differences(mine.config, other.config) == []
        assert {training_of(other.config, m).lr for m in other.config.methods} == {float(other.variant["lr"])}


def test_a_setting_that_is_varied_is_not_set_too() -> None:
    varied = {"features": "f", "methods": ("aa",), "variants": {"epochs": ["1", "2"]}}
    for flags, sets in (({"epochs": 3}, []), ({}, ["epochs=3"])):
        with pytest.raises(UsageError, match="--variant epochs gives all values of epochs, which is set too"):
            resolve(None, {**varied, **flags}, sets, environment={})


def test_a_setting_has_an_effect_where_a_variant_gives_it_one() -> None:
    """Momentum is a setting of SGD, which one cell has."""
    config = resolve(
        None,
        {"features": "f", "methods": ("i3d+mlp",), "variants": {"optimiser": ["adam", "sgd"]}},
        ["momentum=0.5"],
        environment={},
    )
    assert [cell.name for cell in cells(config)] == ["optimiser=adam", "optimiser=sgd"]
    own = {"features": "f", "methods": ("i3d+mlp",), "variants": {"i3d+mlp.optimiser": ["adam", "sgd"]}}
    assert len(cells(resolve(None, own, ["momentum=0.5"], environment={}))) == 2
    none = {"features": "f", "methods": ("i3d+mlp",), "variants": {"optimiser": ["adam", "adamw"]}}
    with pytest.raises(UsageError, match=r"momentum = 0\.5 is a setting of sgd"):
        resolve(None, none, ["momentum=0.5"], environment={})


@pytest.mark.parametrize("given", ["dropout", "dropout=", "=1", "dropout=1,1", "dropout=1,,2", "lr=1e-3,0.001"])
def test_variants_are_a_name_and_values(given: str) -> None:
    with pytest.raises(UsageError, match="is not name=a,b"):
        parse_variants([given])
