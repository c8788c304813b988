"""Settings: their sources in order, typing errors with a suggestion, TOML there and back."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from aqa_shared.errors import UsageError
from aqa_train.config import RunConfig, Training
from aqa_train.method_settings import as_toml, differences, method_config, spelt_out
from aqa_train.methods import METHODS
from aqa_train.resolve import resolve

BASE = {"features": "f.zarr"}


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.toml"
    file.write_text('features = "a.zarr"\nseeds = 2\nepochs = 7\n[training]\nlr = 0.1\n[settings]\ndropout = 0.1\n')
    monkeypatch.setenv("AQA_TRAIN_SEEDS", "3")
    monkeypatch.setenv("AQA_TRAIN_METHODS", "aa,s4aqa")
    config = resolve(file, {"features": "b.zarr"}, ["lr=0.2", "dropout=0.4", "aa.widths=8,4"])
    assert (config.features, config.seeds, config.methods) == ("b.zarr", 3, ("aa", "s4aqa"))
    assert (config.training.epochs, config.training.lr) == (7, 0.2)
    assert method_config(config, "s4aqa").dropout == 0.4
    assert method_config(config, "aa").widths == (8, 4)
    assert method_config(config, "s4aqa").widths == (512, 256, 256)


def test_printed_configuration_gives_itself_again(tmp_path: Path) -> None:
    flags = {**BASE, "methods": ("aa", "aa+rda"), "score_range": (0.0, 104.5), "folds": 4, "epochs": 9}
    config = resolve(None, flags, ["norm_first=false", "aa.kernel=5", "standardise=z-score"])
    file = tmp_path / "c.toml"
    file.write_text(as_toml(config))
    assert tomllib.loads(file.read_text())["training"]["epochs"] == 9
    assert resolve(file, {}) == config
    assert method_config(config, "aa").norm_first is False
    assert differences(config, resolve(file, {"seed": 4, "lr": 1e-3})) == ["seed: 0 → 4", "training.lr: 0.0005 → 0.001"]


@pytest.mark.parametrize(
    ("methods", "sets"),
    [(["s4aqa"], []), (["aa"], ["kernel=5"]), (list(METHODS), ["recovery_weight=4", "aa.widths=8,4", "dropout=0.1"])],
)
def test_settings_left_at_their_defaults_are_printed_too(tmp_path: Path, methods: list[str], sets: list[str]) -> None:
    config = resolve(None, {**BASE, "methods": methods}, sets)
    file = tmp_path / "c.toml"
    file.write_text(as_toml(spelt_out(config)))
    again = resolve(file, {})
    for method in methods:
        own = method_config(config, method)
        assert method_config(again, method) == own
        fixed = METHODS[method].fixed
        for name in {f.name for f in dataclasses.fields(own)} - fixed.keys():
            assert {name, f"{method}.{name}"} & again.settings.keys(), name
    # A run that was begun without them is still the same run.
    assert differences(config, again) == []
    assert spelt_out(again) == again


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_of_the_table_opens(name: str) -> None:
    config = resolve(None, {**BASE, "methods": (name,)})
    settings = method_config(config, name)
    assert all(getattr(settings, k) == v for k, v in METHODS[name].fixed.items())
    assert METHODS[name].summary


def test_presets_are_the_papers_ablations() -> None:
    weights = {
        m: (c.recovery_weight, c.alignment_weight)
        for m in ("s4aqa", "aa", "aa+rda", "aa+msfr")
        for c in [method_config(resolve(None, {**BASE, "methods": (m,)}), m)]
    }
    assert weights == {"s4aqa": (40, 0.1), "aa": (0, 0), "aa+rda": (0, 0.1), "aa+msfr": (40, 0)}


def test_a_shared_setting_leaves_presets_what_they_are() -> None:
    config = resolve(None, {**BASE, "methods": ("aa", "s4aqa")}, ["recovery_weight=10"])
    assert method_config(config, "aa").recovery_weight == 0
    assert method_config(config, "s4aqa").recovery_weight == 10


def test_the_papers_training_is_the_default() -> None:
    t = Training()
    assert (t.epochs, t.optimiser, t.lr, t.weight_decay, t.score_max) == (1000, "adam", 5e-4, 1e-4, 5.0)


@pytest.mark.parametrize(
    ("flags", "sets", "said"),
    [
        ({"methods": ("s4aq",)}, [], "did you mean s4aqa"),
        ({"methods": ("aa", "aa")}, [], "once"),
        ({"seed_s": 3}, [], "did you mean seeds"),
        ({"methods": ("aa",)}, ["droput=0.1"], "did you mean dropout"),
        ({}, ["learning=1"], "no setting 'learning'"),
        ({}, ["lr=0.1"], "lr = 0.1 would change nothing: auto is fitted in one step"),
        ({"methods": ("all", "aa")}, [], "name it alone"),
        ({"methods": ()}, [], "at least one"),
        ({}, ["dropout"], "name=value"),
        ({"methods": ("aa",)}, ["dropout=1.5"], "dropout"),
        ({"methods": ("aa",)}, ["dropout=high"], "'high'"),
        ({"methods": ("aa",)}, ["kernel=0"], "kernel"),
        ({"methods": ("hgcn",)}, ["widths=8"], "method hgcn: widths: needs 3 values"),
        ({"methods": ("aa",)}, ["pooling=median"], "'median'"),
        ({"methods": ("s4aqa",)}, ["recovery_weight=nan"], "recovery_weight"),
        ({}, ["aa.dropout=0.1"], "no method 'aa' here"),
        ({"methods": ("aa",)}, ["aa.recovery_weight=1"], "makes aa"),
        ({"methods": ("aa",)}, ["recovery_weight=40"], "recovery_weight = 0.0 is what makes aa"),
        ({"methods": ("aa", "aa+rda")}, ["recovery_weight=40"], r"makes aa, aa\+rda"),
        ({"training": 3}, [], "training is 3, not a table"),
        ({}, [" =3"], "name=value"),
        ({}, ["lr=0"], "lr"),
        ({}, ["batch=1"], "batch"),
        ({"epochs": 0}, [], "epochs"),
        ({"labelled": 0}, [], "labelled"),
        ({"labelled": 1.2}, [], "labelled"),
        ({"seeds": 0}, [], "seeds"),
        ({"folds": 1}, [], "folds"),
        ({"draw": "uniform"}, [], "'uniform'"),
        ({"score_range": (5, 5)}, [], "greater"),
        ({"score_range": (0, 1e300)}, [], r"within ±1e\+12"),
        ({"score_range": ("0", "inf")}, [], r"score_range\.1: .*finite number, got 'inf'"),
        ({}, ["save_every=inf"], r"save_every: .*finite number, got 'inf'"),
        ({}, ["lr=inf"], "lr: .*finite"),
        ({"training": {"score_max": float("inf")}}, [], "score_max: .*finite"),
        ({"training": {"epoch": 3}}, [], "did you mean epochs"),
        ({"methods": ("aa",)}, ["momentum=0.5"], "momentum = 0.5 is a setting of sgd, and the optimiser is adam"),
        (
            {"methods": ("aa",)},
            ["falls=0.5"],
            r"falls = \(0.5,\) is a setting of the schedule steps, and it is constant",
        ),
        ({"methods": ("aa",)}, ["schedule=steps", "falls=0.5,1.5"], "less than 1"),
        ({"folds": 4, "test_fraction": 0.5}, [], "folds = 4 and test_fraction = 0.5 say what is tested"),
        ({"split": "s.json", "test_fraction": 0.5}, [], "split = s.json and test_fraction = 0.5 say"),
        ({"split": "s.json", "folds": 4}, [], "split = s.json and folds = 4 say"),
    ],
)
def test_wrong_settings_are_named(flags: dict[str, object], sets: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(None, {**BASE, **flags}, sets)


def test_names_of_settings_may_be_surrounded_by_blanks() -> None:
    config = resolve(None, {**BASE, "methods": ("aa",)}, [" lr = 0.1", " dropout =0.4"])
    assert config.training.lr == 0.1
    assert config.settings == {"dropout": "0.4"}


@pytest.mark.parametrize("name", ["SETTINGS", "TRAINING"])
def test_tables_cannot_come_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"AQA_TRAIN_{name}", "dropout=0.1")
    with pytest.raises(UsageError, match=f"AQA_TRAIN_{name} cannot be set as a whole"):
        resolve(None, BASE)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LR", "fast", r"lr \(from AQA_TRAIN_LR\): .*'fast'"),
        ("FOLDS", "1", r"folds \(from AQA_TRAIN_FOLDS\)"),
        ("METHODS", "s4aq", r"methods \(from AQA_TRAIN_METHODS\): .*did you mean s4aqa"),
        ("SEDS", "1", r"AQA_TRAIN_SEDS: there is no setting 'seds'\ndid you mean seeds"),
    ],
)
def test_wrong_variables_of_the_environment_are_named(name: str, value: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve(None, BASE, environment={f"AQA_TRAIN_{name}": value})


def test_what_wins_over_the_environment_is_blamed_alone() -> None:
    environment = {"AQA_TRAIN_LR": "0.1", "AQA_TRAIN_SEEDS": "2"}
    with pytest.raises(UsageError) as e:
        resolve(None, {**BASE, "seeds": 0}, ["lr=fast"], environment=environment)
    assert "AQA_TRAIN" not in e.value.cause


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        resolve(tmp_path / "none.toml", BASE)
    file = tmp_path / "c.toml"
    file.write_text("seeds = \n")
    with pytest.raises(UsageError, match="line 1"):
        resolve(file, BASE)


def test_toml_escapes_hostile_text() -> None:
    config = RunConfig(features='a"b\\c\n\x7f[b]é')
    assert tomllib.loads(as_toml(config))["features"] == config.features
