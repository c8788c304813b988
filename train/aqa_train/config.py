"""Every setting of a run, as records: what is validated once, and what `--help` shows as options."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_serializer, field_validator

from aqa_shared.errors import did_you_mean
from aqa_shared.options import Option, Several, parted
from aqa_shared.records import Record
from aqa_train.methods import ALL, DEFAULT, METHODS

HELP = "aqa-train --print-config shows the settings and their values"
LARGEST_SCORE = 1e12
"""What is beyond is a slip of the pen, and its square is beyond numbers soon."""


OverFolds = Literal["pooled", "mean"]
Draw = Literal["stratified", "systematic", "random", "nested"]
INPUT, PROTOCOL, LEARNING = "Input and output", "Who trains and who tests", "Methods and training"
"""Headings of the options."""
TOGETHER = "Trainings of one shape, as seeds and folds, that are computed as one model: for GPUs and small networks."
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
            default=DEFAULT,
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
            default="marked in `aqa methods`",
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
                raise ValueError(f"no method {m!r}{instead(m, METHODS)}")
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


def instead(name: str, choices: Iterable[str]) -> str:
    """`; did you mean x?` when one is near, else the choices."""
    choices = list(choices)
    return f"; {did_you_mean(name, choices) or 'choose from ' + ', '.join(choices)}"


PLACES = ("features", "labels", "split", "dataset")
"""Settings that say where something is. What it is, the run folder knows by digest, so it may be moved."""


def absolute(config: RunConfig) -> RunConfig:
    """The same with absolute paths, so that the run can be resumed from any folder; a URL is absolute."""
    paths = {n: getattr(config, n) for n in PLACES}
    found = {n: p if "://" in p else os.path.abspath(p) for n, p in paths.items() if p is not None}
    return config.model_copy(update=found)
