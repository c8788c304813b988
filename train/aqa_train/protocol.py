"""From a configuration and the videos' table to splits and score scales: who is what in every run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from aqa_shared.console import Say, counted
from aqa_shared.datasets.published import Range
from aqa_shared.errors import UsageError
from aqa_train.batch import ScoreScale
from aqa_train.config import LARGEST_SCORE, RunConfig
from aqa_train.features import FeatureSet
from aqa_train.folds import (
    at,
    category_of,
    folds_of,
    group_of,
    other_views,
    over_folds,
    same_video,
    together,
)
from aqa_train.order import Rows
from aqa_train.splits import Split, label, label_groups
from aqa_train.summary import Comparison


def make_splits(config: RunConfig, features: FeatureSet, say: Say) -> list[Split]:
    """One split a fold and seed. A pure function of the configuration and the table."""
    scores = features.column("score").astype(np.float64)
    check_scores(features, say)
    category, units = category_of(features), together(features, group_of(config, features))
    splits = []
    say = once(say)
    for fold, (train, validation, test) in enumerate(folds_of(config, features, category, say)):
        if config.validation > 0 and len(validation):
            say(f"--validation is not needed: {counted(len(validation), 'video')} marked val will be used")
        elif config.validation > 0 and config.draw == "nested":
            raise UsageError(
                "--draw nested and --validation do not go together: each fraction would lose other videos to it",
                fix="mark validation videos as val, or omit --validation",
            )
        if not config.transductive:
            refuse_twins(features, np.union1d(train, validation), test)
        for i in range(config.seeds):
            # Tagged, so that it shares no numbers with the training of the same seed and fold.
            rng = np.random.default_rng([config.seed + i, fold, 1])
            scored = train[~np.isnan(scores[train])]
            labelled = scored[label(scores[scored], config.fraction, rng, config.draw, at(category, scored))]
            held = validation
            if config.validation > 0 and not len(validation):
                kinds, names = at(category, labelled), at(units, labelled)
                held = labelled[label_groups(scores[labelled], config.validation, rng, kinds, names)]
                if not len(held):
                    say(f"--validation {config.validation:g} of {len(labelled)} labelled is none: no best epoch")
            # The epoch would be chosen on what was learned from, were another view of it among the unlabelled.
            views = other_views(units, train, held, say)
            labelled = np.setdiff1d(labelled, np.concatenate([held, views]))
            check_labelled(scores[labelled], config, len(scored), drawn=len(held) > len(validation))
            unlabelled = np.setdiff1d(train, np.concatenate([labelled, held, views]))
            if config.transductive:
                unlabelled = np.union1d(unlabelled, test)
            splits.append(
                Split(
                    fold=fold,
                    seed=config.seed + i,
                    labelled=_ids(features, labelled),
                    unlabelled=_ids(features, unlabelled),
                    test=_ids(features, test),
                    validation=_ids(features, held),
                    transductive=config.transductive,
                )
            )
    if config.all_scores:
        number = int((~np.isnan(scores)).sum())
        say(
            f"--all-scores learns from {counted(number, 'scored video')} and leaves none to test on; a run without "
            "--all-scores tells how good such a model is"
        )
    if config.transductive:
        say("transductive: the test videos are learned from too (without scores); compare with such results only")
    return splits


def check_labelled(scores: NDArray[np.float64], config: RunConfig, available: int, drawn: bool) -> None:
    """At least two labelled videos whose scores differ. `drawn`: validation videos were taken from among them."""
    if len(scores) < 2:
        raise UsageError(
            f"--labelled {config.fraction:g} of {counted(available, 'scored training video')}"
            f"{f' and --validation {config.validation:g}' if drawn else ''} leaves "
            f"{len(scores)} labelled",
            fix=f"{'raise --labelled, ' if config.fraction < 1 else ''}lower --validation {config.validation:g}, or "
            "score more videos"
            if drawn
            else f"label at least {min(1.0, 2 / max(available, 1)):.2g} of them, or score more videos",
        )
    if np.ptp(scores) == 0:
        raise UsageError(
            f"all {len(scores)} labelled scores are {scores[0]:g}: there is nothing to tell apart",
            fix="label more videos, or check the score column",
        )


def refuse_twins(features: FeatureSet, training: Rows, test: Rows) -> None:
    """The same part of the same file under two names, once to learn from and once to be tested on, is an error."""
    content = same_video(features)
    known = {content[r]: r for r in training if content[r]}
    twins = [(known[content[r]], r) for r in test if content[r] in known]
    if twins:
        pairs = ", ".join(f"{features.ids[a]} = {features.ids[b]}" for a, b in twins[:5])
        more = f" and {len(twins) - 5} more" if len(twins) > 5 else ""
        raise UsageError(
            f"{counted(len(twins), 'test video')} also in training under another name: {pairs}{more}",
            fix="give both the same split, or extract each video once",
        )


def check_scores(features: FeatureSet, say: Say) -> None:
    """Scores must exist and be of a usual size; categories with very different scales are said."""
    scores = features.column("score").astype(np.float64)
    for name in ("score", "difficulty"):
        values = features.column(name).astype(np.float64)
        wrong = [f"{features.ids[i]} ({values[i]:g})" for i in np.flatnonzero(np.abs(values) > LARGEST_SCORE)]
        if wrong:
            raise UsageError(
                f"a {name} beyond ±{LARGEST_SCORE:g} in {counted(len(wrong), 'video')}: {', '.join(wrong[:5])}",
                fix=f"correct the column {name} for them, in the store's labels or with --labels FILE",
            )
    if np.isnan(scores).all():
        raise UsageError(
            f"none of the {len(scores)} videos has a score",
            fix="give --labels FILE with the columns id,score, or extract with --labels",
        )
    category = category_of(features)
    if category is None:
        return
    size = {
        c: float(np.nanmedian(np.abs(scores[category == c])))
        for c in sorted(set(category))
        if np.isfinite(scores[category == c]).any()
    }
    if size and max(size.values()) > 10 * max(min(size.values()), 1e-9):
        said = ", ".join(f"{c or '(none)'} {v:g}" for c, v in size.items())
        say(f"the categories' scores are on different scales (median size: {said}): one model learns them all")


def score_scale(config: RunConfig, scores: NDArray[np.float64], top: float) -> ScoreScale:
    """The given range, or the ends of these labelled training scores."""
    low, high = config.score_range or (float(scores.min()), float(scores.max()))
    scale = ScoreScale(low, high, top)
    return replace(scale, mean=float(scale.to_training(scores).mean()))


def spans(config: RunConfig, features: FeatureSet) -> NDArray[np.float64]:
    """(videos,): highest − lowest score, which R-ℓ2 divides by. Evaluation only.

    Of the dataset's record, by category where that has categories; else of the given range, or of all known scores.
    """
    if config.dataset is not None:
        return _published_spans(config.dataset, config.score_column or "score", features)
    scores = features.column("score").astype(np.float64)
    low, high = config.score_range or (float(np.nanmin(scores)), float(np.nanmax(scores)))
    return np.full(len(scores), high - low)


def _published_spans(path: str, column: str, features: FeatureSet) -> NDArray[np.float64]:
    """Of `dataset.json`. Raises UsageError where it is not one, or says nothing of a scored video."""
    try:
        ranges = TypeAdapter(tuple[Range, ...]).validate_python(json.loads(Path(path).read_text())["ranges"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        said = "it has no ranges" if isinstance(e, KeyError) else str(e)
        raise UsageError(
            f"{path}: not the record of a dataset: {said}", fix="take the dataset.json that aqa datasets prepare writes"
        ) from None
    by_category = {r.category: r.high - r.low for r in ranges if r.column == column}
    categories = features.column("category").astype(object)
    found = np.array([by_category.get(c or None, by_category.get(None, np.nan)) for c in categories], dtype=np.float64)
    unknown = np.flatnonzero(np.isnan(found) & ~np.isnan(features.column("score").astype(np.float64)))
    if len(unknown):
        raise UsageError(
            f"{path} has no range of {column} for {features.ids[unknown[0]]} (category {categories[unknown[0]]!r})",
            fix=f"use the record of the dataset that these videos are of, or --score-range; it has {by_category}",
        )
    return found


def rows_of(features: FeatureSet, ids: Sequence[str]) -> Rows:
    """Rows of these ids, ascending."""
    at = {name: i for i, name in enumerate(features.ids)}
    return np.sort(np.array([at[i] for i in ids], dtype=np.int64))


def _ids(features: FeatureSet, rows: Rows) -> tuple[str, ...]:
    return tuple(sorted(features.ids[r] for r in rows))


def comparison(config: RunConfig, features: Sequence[FeatureSet], results: Sequence[Mapping[str, Any]]) -> Comparison:
    """The test videos of runs that differ in what they read, with draws of them that the first seed decides.

    What a video is measured by is that of the first of `features` that has it.
    """
    span: dict[str, float] = {}
    groups: dict[str, str] = {}
    for one in reversed(features):
        span |= zip(one.ids, spans(config, one).tolist(), strict=True)
        if (group := group_of(config, one)) is not None:
            groups |= zip(one.ids, map(str, group), strict=True)
    return Comparison.of(
        results,
        over_folds(config, features[0]),
        span,
        groups,
        np.random.default_rng([config.seed, 2**17]),
    )


def once(say: Say) -> Say:
    """`say` what was not said before: folds and seeds repeat themselves."""
    heard: set[str] = set()

    def speak(message: str) -> None:
        if message not in heard:
            heard.add(message)
            say(message)

    return speak
