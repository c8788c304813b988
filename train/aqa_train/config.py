"""Every setting of a run, validated once: TOML file < AQA_TRAIN_* environment < flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, field_serializer, field_validator

from aqa_shared.errors import UsageError, did_you_mean
from aqa_shared.options import Option, Several, parted
from aqa_shared.records import Record
from aqa_shared.settings import as_toml as written
from aqa_shared.settings import explain, gathered, valid
from aqa_train.methods import ALL, DEFAULT, METHODS

ENVIRONMENT = "AQA_TRAIN_"
HELP = "aqa-train --print-config shows the settings and their values"
LARGEST_SCORE = 1e12
"""What is beyond is a slip of the pen, and its square is beyond numbers soon."""


OverFolds = Literal["pooled", "mean"]
Draw = Literal["stratified", "systematic", "random", "nested"]
INPUT, PROTOCOL, LEARNING = "Input and output", "Who trains and who tests", "Methods and training"
"""Headings of the options."""
Fraction = Annotated[float, Field(gt=0, le=1)]


class Training(Record):
    """How a method is trained; the values are S4AQA's for MTL-AQA (section IV-A) unless marked (ours).

    A method's row in `METHODS` may have others of its own, and by dataset: `training_of` says what holds.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: Annotated[
        int,
        Option(
            LEARNING, "Passes over the larger of the labelled and unlabelled sets.", default="the method's, or 1000"
        ),
    ] = Field(default=1000, ge=1)
    batch: Annotated[
        int, Option(LEARNING, "Labelled videos a step, and as many unlabelled.", default="the method's, or 32")
    ] = Field(default=32, ge=2)
    """Labelled videos a step, and as many unlabelled (ours); of an odd number in twos, one step takes three."""
    epoch_of: Literal["larger", "labelled"] = "larger"
    """An epoch is one pass over the larger of the two sets, or over the labelled; the other is cycled (ours)."""
    optimiser: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Option(LEARNING, "Learning rate.", default="the method's, or 0.0005")] = Field(
        default=5e-4, gt=0
    )
    weight_decay: float = Field(default=1e-4, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of `sgd` (ours)."""
    schedule: Literal["constant", "cosine", "steps"] = "constant"
    """`cosine` falls to 1 % of lr at the last epoch (ours); `steps` falls where `falls` says."""
    falls: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.75, 0.875)
    """Of `steps`: parts of the epochs after which the rate falls; ACTION-NET's 300 and 350 of 400."""
    fall: float = Field(default=0.1, gt=0, lt=1)
    """Of `steps`: what is left of the rate each time."""
    standardise: Literal["none", "z-score", "centre"] = "none"
    """Of features, with statistics of the training videos: per channel mean and deviation, or mean only."""
    score_max: float = Field(default=5.0, gt=0)
    """Scores are mapped linearly to 0 … score_max for training."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` computes the networks in bfloat16 and keeps weights and losses in float32 (ours)."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of one training; sums depend on it in the last bit, so it is part of the configuration."""
    save_every: float = Field(default=60.0, ge=0)
    """Seconds between checkpoints for resuming; 0 saves after every epoch. Does not change results."""

    @field_validator("falls", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return value.split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else value


class RunConfig(Record):
    """A whole run of aqa-train: data, protocol, methods."""

    model_config = ConfigDict(allow_inf_nan=False)

    features: Annotated[str, Option(INPUT, "Store of aqa-extract: a folder or a URL.", metavar="STORE")]
    methods: Annotated[
        Several,
        Option(
            LEARNING,
            f"One or several; `aqa methods` says what they are: {', '.join(METHODS)}. "
            f"{ALL}: every one that fits the data.",
            metavar="METHOD,...",
            name="method",
        ),
    ] = (DEFAULT,)
    """By their names in `METHODS`, or `all`."""
    leave_out: bool = False
    """Leave out methods that refuse the data or fail while they learn, and say so, instead of ending the run: those
    of `all`, of which nobody said that they fit."""
    streams: Annotated[
        Several, Option(INPUT, "Streams of the store.", metavar="STREAM,...", default="all features")
    ] = ()
    """Empty: all of the store."""
    labels: Annotated[
        str | None,
        Option(
            INPUT,
            "Table (CSV, JSON) of id,score[,split,category,difficulty] to use instead of the store's.",
            metavar="FILE",
        ),
    ] = None
    """A table whose scores, splits and categories replace those in the store."""
    id_column: Annotated[
        str | None,
        Option(INPUT, "Column of --labels that names the videos, if it is not id or path.", metavar="COLUMN"),
    ] = None
    """Its column that names the videos; None: id, path, video, file or filename."""
    score_column: Annotated[str | None, Option(INPUT, "Column of --labels that is the score.", metavar="COLUMN")] = None
    """Its column that is the score; None: score."""
    split: Annotated[
        str | None,
        Option(
            PROTOCOL,
            "File of train and test ids, or of folds: JSON, a table of id,split or id,fold, or a pickle.",
            metavar="FILE",
        ),
    ] = None
    """A file of train and test ids, or of folds."""
    folds: Annotated[
        int | None,
        Option(
            PROTOCOL,
            "Cross-validate over this many score-stratified folds.",
            default="by the number of videos, where nothing says what is test",
        ),
    ] = Field(default=None, ge=2)
    folds_by: Annotated[
        str | None,
        Option(
            PROTOCOL,
            "Test each value of this column once: published folds, or leave one group out.",
            metavar="COLUMN",
        ),
    ] = None
    """Column each value of which is tested once; videos without one are in training only."""
    category: Annotated[str | None, Option(PROTOCOL, "Only videos of this category, as one sport or one task.")] = None
    """Videos of other categories take no part."""
    group: Annotated[str | None, Option(PROTOCOL, "Column whose equal values stay in one fold.", metavar="COLUMN")] = (
        None
    )
    """Column whose equal values stay in one fold."""
    test_fraction: Annotated[
        float | None, Option(PROTOCOL, "Hold out this part of the scored videos once, instead of cross-validating.")
    ] = Field(default=None, gt=0, lt=1)
    """Held out once, instead of cross-validating where nothing else says what is test."""
    over_folds: Annotated[
        OverFolds | None,
        Option(
            PROTOCOL,
            "Of several folds: one figure over all their test videos, or the mean of the folds' figures.",
            default="mean for --folds, --folds-by and --split, else pooled",
        ),
    ] = None
    """What is reported of several folds; None: `mean` where folds were asked for or given, else `pooled`."""
    labelled: Annotated[
        Fraction | Annotated[tuple[Fraction, ...], Field(min_length=2)],
        Option(
            PROTOCOL,
            "Part of the scored training videos that keep their scores; to hide some is an experiment. "
            "With several parts, a run of each.",
            metavar="PART,...",
        ),
    ] = 1.0
    """Part of the scored training videos that keep their scores; the scores of the others are hidden. Several: a
    run of each (`aqa_train.grid`)."""
    draw: Annotated[
        Draw,
        Option(
            PROTOCOL,
            "How labelled videos are drawn: stratified, systematic, random or nested.",
            metavar="HOW",
        ),
    ] = "stratified"
    validation: Annotated[
        float,
        Option(PROTOCOL, "Part of the labelled videos that chooses a best epoch, which is reported beside the last."),
    ] = Field(default=0.0, ge=0, lt=1)
    """Part of the labelled videos that chooses the best epoch, reported beside the last."""
    all_scores: Annotated[
        bool, Option(PROTOCOL, "Learn from every score, those of test videos too: a final model, untested.")
    ] = False
    """Learn from every score, also of test and validation videos: a final model, of which nothing is measured."""
    transductive: Annotated[bool, Option(PROTOCOL, "Learn from test videos too, without scores.")] = False
    """Also learn from test videos, without their scores."""
    seeds: Annotated[int, Option(PROTOCOL, "Repeats, each with its own labelled videos, weights and order.")] = Field(
        default=5, ge=1
    )
    seed: Annotated[int, Option(PROTOCOL, "The first seed.")] = Field(default=0, ge=0)
    """The first; run i draws labels, initial weights and order from seed + i."""
    score_range: Annotated[
        tuple[float, float] | None,
        BeforeValidator(parted),
        Option(PROTOCOL, "Ends of the score scale, as 0,104.5.", metavar="LOW,HIGH", default="of the labelled scores"),
    ] = None
    """The scale's ends in the dataset's units; None takes the labelled training scores' ends."""
    dataset: Annotated[
        str | None,
        Option(
            PROTOCOL,
            "dataset.json of `aqa datasets prepare`: R-l2 is measured over its ranges of scores.",
            metavar="FILE",
        ),
    ] = None
    """A dataset's record, whose ranges, by category where it has them, R-ℓ2 divides by."""
    recipe: Annotated[
        str,
        Option(
            LEARNING,
            "Train as the methods' authors did on this dataset (`aqa methods`).",
            metavar="DATASET",
            default="as on MTL-AQA",
        ),
    ] = ""
    """A dataset: methods are trained as their authors did on it, where their rows in `METHODS` say how."""
    training: Training = Training()
    """What was asked for; the rest is the method's own. `method.name` in `settings` is for one of several methods."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of the methods by name; `method.name` for one of several methods."""
    variants: Annotated[
        dict[str, Annotated[tuple[str, ...], Field(min_length=1)]],
        Option(
            LEARNING,
            "Try every value of a setting, a run of each. Repeat it for more settings.",
            name="variant",
            metavar="NAME=A,B",
        ),
    ] = Field(default_factory=dict)
    """Settings of which every value is tried: a run of each."""

    @property
    def fractions(self) -> tuple[float, ...]:
        """The labelled parts."""
        return self.labelled if isinstance(self.labelled, tuple) else (self.labelled,)

    @property
    def fraction(self) -> float:
        """The labelled part of a single run."""
        (only,) = self.fractions
        return only

    @field_validator("labelled", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        parts = parted(value)
        if not isinstance(parts, list | tuple):
            return value
        if len({*map(str, parts)}) < len(parts):
            raise ValueError(f"name each fraction once, got {', '.join(map(str, parts))}")
        return parts[0] if len(parts) == 1 else parts

    @field_validator("methods")
    @classmethod
    def _known(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        if not methods:
            raise ValueError("name at least one method")
        if ALL in methods and len(methods) > 1:
            raise ValueError(f"{ALL} is every method that fits the data: name it alone")
        for m in methods:
            if m not in METHODS and m != ALL:
                raise ValueError(f"no method {m!r}{_instead(m, METHODS)}")
        if len(set(methods)) < len(methods):
            raise ValueError(f"name each method once, got {', '.join(methods)}")
        return methods

    @field_serializer("training")
    def _asked_for(self, training: Training) -> dict[str, Any]:
        return training.model_dump(mode="json", exclude_unset=True)

    @field_validator("score_range")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[1] > value[0]:
            raise ValueError(f"the upper end must be greater than the lower, got {value[0]:g} and {value[1]:g}")
        if value is not None and max(map(abs, value)) > LARGEST_SCORE:
            raise ValueError(f"the ends must be within ±{LARGEST_SCORE:g}, got {value[0]:g} and {value[1]:g}")
        return value


def _instead(name: str, choices: Iterable[str]) -> str:
    """`; did you mean x?` when one is near, else the choices."""
    choices = list(choices)
    return f"; {did_you_mean(name, choices) or 'choose from ' + ', '.join(choices)}"


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
    for item in sets:
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not name:
            raise UsageError(f"--set {item!r} is not name=value", fix="for example --set dropout=0.5")
        (merged if name in Training.model_fields else settings)[name] = value
        variables.pop(name, None)
    config = valid(RunConfig, {**merged, "settings": settings}, variables, fix=HELP)
    tried = config if config.methods != (ALL,) else config.model_copy(update={"methods": tuple(METHODS)})
    for method in tried.methods:
        method_config(tried, method)
        training_of(tried, method)
    _refuse_settings_without_effect(tried)
    return config


LEARNING_BY_STEPS = (
    "epochs", "batch", "epoch_of", "optimiser", "lr", "weight_decay", "momentum", "schedule", "precision",
)  # fmt: skip
"""Of `Training`, what means nothing to methods without `losses`."""
TABLES = ("training", "settings", "variants")
"""What is no single value."""
PLACES = ("features", "labels", "split", "dataset")
"""Settings that say where something is. What it is, the run folder knows by digest, so it may be moved."""


def absolute(config: RunConfig) -> RunConfig:
    """The same with absolute paths, so that the run can be resumed from any folder; a URL is absolute."""
    paths = {n: getattr(config, n) for n in PLACES}
    found = {n: p if "://" in p else os.path.abspath(p) for n, p in paths.items() if p is not None}
    return config.model_copy(update=found)


def _table(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{name} is {value!r}, not a table", fix=f"write it as [{name}] with lines name = value")
    if name == "training" and (unknown := [n for n in value if n not in Training.model_fields]):
        known = Training.model_fields
        raise UsageError(f"there is no training setting {unknown[0]!r}{_instead(unknown[0], known)}", fix=HELP)
    return dict(value)


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
                raise UsageError(
                    f"{name} = {value} would change nothing: {', '.join(config.methods)} learns all at once",
                    fix="omit it, or name a method that learns by steps, such as --method s4aqa",
                )
    plain, default = {t.optimiser for t in trained.values()} - {"sgd"}, Training.model_fields["momentum"].default
    if trained and all(t.optimiser != "sgd" and t.momentum != default for t in trained.values()):
        momentum = config.training.momentum
        raise UsageError(
            f"momentum = {momentum:g} is a setting of sgd, and the optimiser is {' or '.join(sorted(plain))}",
            fix="omit it, or add --set optimiser=sgd",
        )
    for name in ("falls", "fall"):
        usual = Training.model_fields[name].default
        if trained and all(t.schedule != "steps" and getattr(t, name) != usual for t in trained.values()):
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
        users = [m for m in config.methods if name in (f.name for f in dataclasses.fields(METHODS[m].load().Config))]
        if users and all(name in METHODS[m].fixed for m in users):
            made = ", ".join(users)
            raise UsageError(
                f"{name} = {METHODS[users[0]].fixed[name]} is what makes {made}",
                fix=f"set it for another method than {made}",
            )


def training_of(config: RunConfig, method: str) -> Training:
    """How one method is trained: defaults, its own recipe, what was asked for, what was asked for it alone."""
    own = {n: v for n in Training.model_fields if (v := config.settings.get(f"{method}.{n}")) is not None}
    asked = config.training.model_dump(exclude_unset=True)
    try:
        return Training(**{**METHODS[method].recipe(config.recipe), **asked, **own})
    except ValidationError as e:
        raise UsageError(f"method {method}: {explain(e)}", fix=HELP) from None


def parse_variants(given: Iterable[str]) -> dict[str, list[str]]:
    """`name=a,b` of every `--variant`; values that hold commas are parted by semicolons."""
    found: dict[str, list[str]] = {}
    for item in given:
        name, _, values = (part.strip() for part in item.partition("="))
        parts = [v.strip() for v in values.split(";" if ";" in values else ",")]
        if not name or not all(parts) or len(set(parts)) < len(parts):
            raise UsageError(f"--variant {item!r} is not name=a,b", fix="for example --variant dropout=0.1,0.3")
        if name in found:
            raise UsageError(f"--variant {name} is given twice", fix="give all its values in one")
        found[name] = parts
    return found


def method_config(config: RunConfig, method: str) -> Any:
    """The frozen settings of one method: its defaults, `settings`, and what makes the method what it is."""
    row = METHODS[method]
    cls = row.load().Config
    names = [f.name for f in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    # What is said of this method alone wins, whatever the order.
    for key, value in sorted(config.settings.items(), key=lambda item: "." in item[0]):
        owner, dot, name = key.rpartition(".")
        if dot and owner not in config.methods:
            raise UsageError(f"setting {key!r}: no method {owner!r} here{_instead(owner, config.methods)}")
        if dot and (owner != method or name in Training.model_fields):
            continue
        if name not in names:
            shared = {f.name for m in config.methods for f in dataclasses.fields(METHODS[m].load().Config)}
            if not dot and name in shared:
                continue
            known = sorted(shared | set(Training.model_fields))
            raise UsageError(f"method {method} has no setting {name!r}{_instead(name, known)}", fix=_who_has(name))
        if dot and name in row.fixed:
            raise UsageError(
                f"{name} = {row.fixed[name]} is what makes {method}", fix=f"set it for another method than {method}"
            )
        values[name] = value.split(",") if isinstance(value, str) and "," in value else value
    for f in dataclasses.fields(cls):
        if isinstance(values.get(f.name), (str, int)) and isinstance(f.default, tuple):
            values[f.name] = [values[f.name]]
    try:
        return TypeAdapter(cls).validate_python({**values, **row.fixed})
    except ValidationError as e:
        raise UsageError(f"method {method}: {explain(e)}", fix=HELP) from None


def _who_has(setting: str) -> str:
    """Which methods would read it."""
    having = [m for m, row in METHODS.items() if setting in (f.name for f in dataclasses.fields(row.load().Config))]
    more = ", …" if len(having) > 3 else ""
    return f"--method names one that has it: {', '.join(having[:3])}{more}" if having else ""


def as_toml(config: RunConfig) -> str:
    """The configuration as a file that gives it again; what is unset is left out."""
    record = config.model_dump(mode="json", exclude_none=True)
    return written({k: v for k, v in record.items() if k != "variants" or v})


def spelt_out(config: RunConfig) -> RunConfig:
    """The same with every setting of its methods and their training, those left at their defaults too.

    A plain name where the methods agree, `method.name` where they do not; what makes a method is not a setting of it,
    and what `variants` vary has no one value.
    """
    settings: dict[str, dict[str, Any]] = {}
    training: dict[str, dict[str, Any]] = {}
    if config.methods == (ALL,):
        return config  # which they are, the data say
    for method in config.methods:
        for name, value in training_of(config, method).model_dump(mode="json").items():
            training.setdefault(name, {})[method] = value
        own = dataclasses.asdict(method_config(config, method))
        for name in own.keys() - METHODS[method].fixed.keys():
            settings.setdefault(name, {})[method] = list(own[name]) if isinstance(own[name], tuple) else own[name]
    common, apart = _agreed(training)
    shared, others = _agreed(dict(sorted(settings.items())))
    common, shared = ({k: v for k, v in part.items() if k not in config.variants} for part in (common, shared))
    own = {k: v for k, v in (others | apart).items() if not config.variants.keys() & {k, k.rpartition(".")[2]}}
    return config.model_copy(update={"training": Training(**common), "settings": shared | own})


def _agreed(values: dict[str, dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of name → method → value: by name what all have alike, and `method.name` for the rest; None is left out."""
    alike: dict[str, Any] = {}
    apart: dict[str, Any] = {}
    for name, by_method in values.items():
        first, *others = by_method.values()
        if all(other == first for other in others):
            alike[name] = first
        else:
            apart |= {f"{method}.{name}": value for method, value in by_method.items()}
    return tuple({k: v for k, v in part.items() if v is not None} for part in (alike, apart))  # type: ignore[return-value]


def differences(old: RunConfig, new: RunConfig) -> list[str]:
    """`name: old → new` of every setting that differs, however it was given; another place is no other setting."""
    a, b = (_flat(spelt_out(c).model_dump(mode="json")) for c in (old, new))
    moved = {k for k in PLACES if a.get(k) is not None and b.get(k) is not None}
    return [f"{k}: {a.get(k)} → {b.get(k)}" for k in sorted((a.keys() | b.keys()) - moved) if a.get(k) != b.get(k)]


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for k, v in record.items():
        flat |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v}
    return flat
