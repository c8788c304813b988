"""The settings in force: defaults < TOML file < AQA_TRAIN_* environment < flags, and what contradicts itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from aqa_shared.errors import UsageError
from aqa_shared.settings import gathered, valid
from aqa_train.config import HELP, RunConfig, Training, instead
from aqa_train.method_settings import method_config, training_of
from aqa_train.methods import ALL, METHODS

ENVIRONMENT = "AQA_TRAIN_"
LEARNING_BY_STEPS = (
    "epochs", "batch", "epoch_of", "optimiser", "lr", "weight_decay", "momentum", "schedule", "precision",
)  # fmt: skip
"""Of `Training`, what means nothing to methods without `losses`."""
TABLES = ("training", "settings", "variants")
"""What is not a single value."""


def resolve(
    file: Path | None,
    flags: Mapping[str, Any],
    sets: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> RunConfig:
    """Merge defaults, file, environment (None: this process's), flags and `--set name=value`.

    `--set` may name training settings too.
    """
    asked, variables = gathered(RunConfig, ENVIRONMENT, file, flags, environment, TABLES)
    merged = {**(defaults or {}), **_table(asked.pop("training", {}), "training"), **asked}
    settings = _table(merged.pop("settings", {}), "settings")
    given = set(asked)
    for item in sets:
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name:
            raise UsageError(f"--set {item!r} is not name=value", fix="for example --set dropout=0.5")
        given.add(name)
        (merged if name in Training.model_fields else settings)[name] = value
        variables.pop(name, None)
    config = valid(RunConfig, {**merged, "settings": settings}, variables, fix=HELP)
    # A variable of the environment gives way to a variant, as it does to a flag.
    if both := [name for name in config.variants if name in given - variables.keys()]:
        raise UsageError(f"--variant {both[0]} gives all values of {both[0]}, which is set too", fix="give it once")
    tried = config if config.methods != (ALL,) else config.model_copy(update={"methods": tuple(METHODS)})
    for method in tried.methods:
        method_config(tried, method)
        training_of(tried, method)
    _refuse_settings_without_effect(tried)
    return config


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} is {value!r}, not a table", fix=f"write it as [{name}] with lines name = value")
    if name == "training" and (unknown := [n for n in value if n not in Training.model_fields]):
        known = Training.model_fields
        raise UsageError(f"there is no training setting {unknown[0]!r}{instead(unknown[0], known)}", fix=HELP)
    return dict(value)


def parse_variants(given: Iterable[str]) -> dict[str, list[str]]:
    """`name=a,b` of every `--variant`; values that hold commas are parted by semicolons."""
    found: dict[str, list[str]] = {}
    for item in given:
        name, _, values = (part.strip() for part in item.partition("="))
        parts = [v.strip() for v in values.split(";" if ";" in values else ",")]
        if not name or not all(parts) or len({_number(v) for v in parts}) < len(parts):
            raise UsageError(
                f"--variant {item!r} is not name=a,b with different values", fix="for example --variant dropout=0.1,0.3"
            )
        if name in found:
            raise UsageError(f"--variant {name} is given twice", fix="give all its values in one")
        found[name] = parts
    return found


def _number(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value


def _varied(config: RunConfig, name: str) -> set[str]:
    """All values that variants give a setting, of all methods or of one."""
    return {v for key, values in config.variants.items() if key.rpartition(".")[2] == name for v in values}


def _refuse_settings_without_effect(config: RunConfig) -> None:
    """A setting that every chosen method fixes, or that another setting rules out, would do nothing."""
    if config.all_scores:
        ruled_out = (
            *("split", "folds", "folds_by", "test_fraction", "group", "over_folds"),
            *("labelled", "validation", "transductive"),
        )
        given = [n for n in ruled_out if getattr(config, n) != RunConfig.model_fields[n].default]
        if given:
            raise UsageError(
                f"--all-scores learns from every score, and says nothing of tests: {given[0]} = "
                f"{getattr(config, given[0])} contradicts it",
                fix="omit one of them; to know how good the model is, train without --all-scores first",
            )
    for name in ("id_column", "score_column"):
        if getattr(config, name) is not None and config.labels is None:
            raise UsageError(
                f"{name} = {getattr(config, name)} would be ignored without --labels",
                fix="name the table with --labels",
            )
    trained = {m: training_of(config, m) for m in config.methods}
    if not any(hasattr(METHODS[m].load(), "losses") for m in config.methods):
        plain_training = Training()
        for name, value in config.training.model_dump(mode="json", exclude_unset=True).items():
            if name in LEARNING_BY_STEPS and value != getattr(plain_training, name):
                are = "is" if len(config.methods) == 1 else "are"
                raise UsageError(
                    f"{name} = {value} would change nothing: {', '.join(config.methods)} {are} fitted in one step, "
                    "without epochs",
                    fix="omit it, or name a method that learns by steps, such as --method s4aqa",
                )
    plain, default = {t.optimiser for t in trained.values()} - {"sgd"}, Training.model_fields["momentum"].default
    fixed = "sgd" not in _varied(config, "optimiser")
    if trained and fixed and all(t.optimiser != "sgd" and t.momentum != default for t in trained.values()):
        momentum = config.training.momentum
        raise UsageError(
            f"momentum = {momentum:g} is a setting of sgd, and the optimiser is {' or '.join(sorted(plain))}",
            fix="omit it, or add --set optimiser=sgd",
        )
    for name in ("falls", "fall"):
        usual = Training.model_fields[name].default
        fixed = "steps" not in _varied(config, "schedule")
        if trained and fixed and all(t.schedule != "steps" and getattr(t, name) != usual for t in trained.values()):
            raise UsageError(
                f"{name} = {getattr(config.training, name)} is a setting of the schedule steps, and it is "
                f"{' or '.join(sorted({t.schedule for t in trained.values()}))}",
                fix="omit it, or add --set schedule=steps",
            )
    recipes = sorted({name for m in config.methods for name in METHODS[m].recipes if name})
    if config.recipe and config.recipe not in recipes:
        raise UsageError(
            f"{', '.join(config.methods)}: no recipe for {config.recipe!r}",
            fix=f"choose from {', '.join(recipes)}" if recipes else "omit --recipe",
        )
    testing = ("split", "folds", "folds_by", "test_fraction")
    given = [f"{name} = {value}" for name in testing if (value := getattr(config, name)) is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} say what is tested", fix="give one of them")
    for name in config.settings:
        users = [m for m in config.methods if name in METHODS[m].settings()]
        if users and all(name in METHODS[m].fixed for m in users):
            made = ", ".join(users)
            raise UsageError(
                f"{name} = {METHODS[users[0]].fixed[name]} is what makes {made}",
                fix=f"set it for another method than {made}",
            )
