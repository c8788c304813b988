"""From a configuration and the videos' table to splits and score scales: who is what in every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aqa_shared.errors import UsageError
from aqa_shared.manifest_labels import VideoNames
from aqa_train.config import LARGEST_SCORE, RunConfig
from aqa_train.features import FeatureSet, Rows
from aqa_train.intervals import OverFolds
from aqa_train.labels import names_of
from aqa_train.split_files import FileFold, read_split_file
from aqa_train.splits import (
    ROLES,
    Split,
    count_units,
    default_folds,
    hold_out,
    label,
    label_groups,
    refuse_overlap,
    role_named,
    score_folds,
)
from aqa_train.summary import Comparison
from aqa_train.trainer import ScoreScale

Say = Callable[[str], None]


def make_splits(config: RunConfig, features: FeatureSet, say: Say) -> list[Split]:
    """One split a fold and seed. A pure function of the configuration and the table."""
    scores = features.column("score").astype(np.float64)
    check_scores(features, say)
    category, group = _category(features), group_of(config, features)
    splits = []
    say = _once(say)
    for fold, (train, validation, test) in enumerate(_folds(config, features, category, say)):
        if config.validation > 0 and len(validation):
            say(f"--validation is not needed: {len(validation)} video(s) are marked val, and they are taken")
        elif config.validation > 0 and config.draw == "nested":
            raise UsageError(
                "--draw nested and --validation do not go together: each fraction would lose other videos to it",
                fix="mark validation videos as val, or leave --validation away",
            )
        if not config.transductive:
            refuse_twins(features, np.union1d(train, validation), test)
        for i in range(config.seeds):
            # Tagged, so that it shares no numbers with the training of the same seed and fold.
            rng = np.random.default_rng([config.seed + i, fold, 1])
            scored = train[~np.isnan(scores[train])]
            labelled = scored[label(scores[scored], config.labelled, rng, config.draw, _at(category, scored))]
            held = validation
            if config.validation > 0 and not len(validation):
                kinds, names = _at(category, labelled), _at(group, labelled)
                held = labelled[label_groups(scores[labelled], config.validation, rng, kinds, names)]
                if not len(held):
                    say(f"--validation {config.validation:g} of {len(labelled)} labelled is none: no best epoch")
            # The epoch would be chosen on what was learned from, were another view of it among the unlabelled.
            views = np.setdiff1d(train[_same_group(group, train, held)], held)
            if len(views):
                say(f"{len(views)} other view(s) of validation videos are not learned from")
            labelled = np.setdiff1d(labelled, held)
            check_labelled(scores[labelled], config, len(scored))
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
            f"--all-scores: {number} scored video(s) are learned from, and none is left to test on; how good such a "
            "model is, a run without --all-scores tells"
        )
    if config.transductive:
        say("transductive: the test videos are learned from too (without scores); compare with such results only")
    return splits


def check_labelled(scores: NDArray[np.float64], config: RunConfig, available: int) -> None:
    """At least two labelled videos whose scores differ."""
    if len(scores) < 2:
        raise UsageError(
            f"--labelled {config.labelled:g} of {available} scored training video(s) leaves {len(scores)} labelled",
            fix=f"label at least {min(1.0, 2 / max(available, 1)):.2g} of them, or score more videos",
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
            f"{len(twins)} test video(s) are also training videos under another name: {pairs}{more}",
            fix="give both the same split, or extract each video once",
        )


def same_video(features: FeatureSet) -> list[str]:
    """For every video a text that is equal for the same part of the same file; "" where the store does not know it."""
    part = ("fingerprint", "size", "start", "end", "start_time", "end_time")
    if "fingerprint" not in features.table:
        return [""] * len(features.ids)
    columns = [features.table[n].astype(str) for n in part if n in features.table]
    return ["" if row[0] in ("", "nan") else " ".join(row) for row in zip(*columns, strict=True)]


def check_scores(features: FeatureSet, say: Say) -> None:
    """Scores must exist and be of a usual size; categories with very different scales are said."""
    scores = features.column("score").astype(np.float64)
    for name in ("score", "difficulty"):
        values = features.column(name).astype(np.float64)
        wrong = [f"{features.ids[i]} ({values[i]:g})" for i in np.flatnonzero(np.abs(values) > LARGEST_SCORE)]
        if wrong:
            raise UsageError(
                f"{len(wrong)} video(s) have a {name} beyond ±{LARGEST_SCORE:g}: {', '.join(wrong[:5])}",
                fix=f"mend the column {name} for them, in the store's labels or with --labels FILE",
            )
    if np.isnan(scores).all():
        raise UsageError(
            f"none of the {len(scores)} videos has a score",
            fix="give --labels FILE with the columns id,score, or extract with --labels",
        )
    category = _category(features)
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
    return ScoreScale(low, high, top)


def metric_range(config: RunConfig, features: FeatureSet) -> tuple[float, float]:
    """The range R-ℓ2 divides by: the given one, or that of all known scores. Evaluation only."""
    scores = features.column("score").astype(np.float64)
    return config.score_range or (float(np.nanmin(scores)), float(np.nanmax(scores)))


def rows_of(features: FeatureSet, ids: Sequence[str]) -> Rows:
    """Rows of these ids, ascending."""
    at = {name: i for i, name in enumerate(features.ids)}
    return np.sort(np.array([at[i] for i in ids], dtype=np.int64))


def _ids(features: FeatureSet, rows: Rows) -> tuple[str, ...]:
    return tuple(sorted(features.ids[r] for r in rows))


def _category(features: FeatureSet) -> NDArray[np.object_] | None:
    category = features.column("category").astype(object)
    return category if len(set(category.tolist())) > 1 else None


def group_of(config: RunConfig, features: FeatureSet) -> NDArray[np.object_] | None:
    """The group of every video, "" where it has none."""
    if config.group is None:
        return None
    group = features.column(config.group).astype(object)
    if all(g == "" for g in group):
        raise UsageError(f"the videos have no column {config.group!r}", fix="name a column of the labels file")
    return group


def _at(column: NDArray[np.object_] | None, rows: Rows) -> NDArray[np.object_] | None:
    return None if column is None else column[rows]


def _same_group(group: NDArray[np.object_] | None, rows: Rows, others: Rows) -> NDArray[np.bool_]:
    """Which of `rows` share a group with one of `others`."""
    if group is None:
        return np.zeros(len(rows), dtype=bool)
    wanted = set(group[others]) - {""}
    return np.array([g in wanted for g in group[rows]], dtype=bool)


def _folds(
    config: RunConfig, features: FeatureSet, category: NDArray[np.object_] | None, say: Say
) -> list[tuple[Rows, Rows, Rows]]:
    """(train, validation, test) of every fold; from the file, folds, the store, or a held-out part."""
    scores = features.column("score").astype(np.float64)
    everything = np.arange(len(scores))
    scored, unscored = everything[~np.isnan(scores)], everything[np.isnan(scores)]
    role = np.array([role_named(str(r)) for r in features.column("split")], dtype=object)
    rng = np.random.default_rng([config.seed, 2**16])
    if config.all_scores:
        return [(everything, _NONE, _NONE)]
    source = source_of_tests(config, role)
    group = group_of(config, features)
    if source in ("store", "part", "cross-validation"):
        _refuse_unknown_roles(features, role)
    if source == "file":
        path = Path(str(config.split))
        names = names_of(features)
        folds = read_split_file(path, known=lambda name: bool(names.find(name, str(path.parent))))
        found = [_from_file(fold, features, role, group, path, names, say) for fold in folds]
    elif source == "store":
        free = scored[role[scored] == ""]
        if len(free):
            say(f"{len(free)} scored video(s) have no split and are taken for training: {features.ids[free[0]]} …")
        train = everything[(role == "train") | (role == "")]
        found = [(train, everything[role == "val"], everything[role == "test"])]
        if group is not None:
            _refuse_parted(group, *found[0], "the column split")
    else:
        # Who is marked for validation validates every fold; with --group other views of it take no part.
        validation = _NONE if source == "folds" else everything[role == "val"]
        views = np.setdiff1d(everything[_same_group(group, everything, validation)], validation)
        if len(views):
            say(f"{len(views)} other view(s) of validation videos are not learned from")
        free = np.setdiff1d(scored, np.union1d(validation, views))
        rest = np.setdiff1d(unscored, np.union1d(validation, views))
        # A view without a score of what is tested would be learned from all the same.
        found = []
        together = _together(features, group)
        for tested in _own_tests(config, source, free, scores, category, together, rng, say):
            also = rest[~_same_group(together, rest, tested)]
            found.append((np.union1d(np.setdiff1d(free, tested), also), validation, tested))
    return [
        (train, _scored(val, scores, "validation", say), _scored(test, scores, "test", say))
        for train, val, test in found
    ]


TestSource = Literal["file", "folds", "store", "part", "cross-validation"]


def source_of_tests(config: RunConfig, role: NDArray[np.object_]) -> TestSource:
    """What says which videos are tested."""
    in_store = bool((role == "test").any())
    if config.test_fraction is not None and in_store:
        raise UsageError(
            f"--test-fraction {config.test_fraction:g} and the column split, which marks test videos, both say what "
            "is test",
            fix="omit --test-fraction, or name test videos with --split FILE",
        )
    if config.split is not None:
        return "file"
    if config.folds is not None:
        return "folds"
    return "store" if in_store else "part" if config.test_fraction is not None else "cross-validation"


def _together(features: FeatureSet, group: NDArray[np.object_] | None) -> NDArray[np.object_] | None:
    """What folds of our own must not part: groups, and the same video under several names."""
    content = same_video(features)
    number = Counter(content)
    twins = np.array([c if c and number[c] > 1 else "" for c in content], dtype=object)
    if not any(twins):
        return group
    return twins if group is None else np.where(group == "", twins, group)


def _own_tests(
    config: RunConfig,
    source: TestSource,
    free: Rows,
    scores: NDArray[np.float64],
    category: NDArray[np.object_] | None,
    group: NDArray[np.object_] | None,
    rng: np.random.Generator,
    say: Say,
) -> list[Rows]:
    """The test videos of every fold that is made here, spread over the scores."""
    grouped = _at(group, free)
    units = count_units(len(free), grouped)
    what = "scored videos" if units == len(free) else f"groups of scored videos ({len(free)} videos)"
    least = {"cross-validation": 4, "part": 3}.get(source, 0)
    if units < least:
        raise UsageError(f"{units} {what} are too few to train and test", fix=f"score at least {least}")
    folds = config.folds or (default_folds(units) if source == "cross-validation" else 1)
    if folds > 1:
        number = score_folds(scores[free], folds, rng, _at(category, free), grouped)
        if source == "cross-validation":
            say(
                f"nothing says who is tested: each of {units} {what} is, in {folds} folds (--split FILE names test "
                "videos, --test-fraction 0.25 holds out a part once)"
            )
        return [free[number == k] for k in range(folds)]
    fraction = config.test_fraction or HELD_OUT
    test = free[hold_out(scores[free], fraction, rng, grouped)]
    say(f"no test videos are named: {len(test)} of {len(free)} scored ones are held out, stratified by score")
    return [test]


def over_folds(config: RunConfig, features: FeatureSet) -> OverFolds:
    """Folds of our own making are pooled; those that were asked for or published are averaged, as is usual."""
    role = np.array([role_named(str(r)) for r in features.column("split")], dtype=object)
    return config.over_folds or ("pooled" if source_of_tests(config, role) == "cross-validation" else "mean")


def comparison(config: RunConfig, features: FeatureSet, results: Sequence[Mapping[str, Any]]) -> Comparison:
    """The test videos of a run, with draws of them that its first seed decides."""
    group = group_of(config, features)
    return Comparison.of(
        results,
        over_folds(config, features),
        metric_range(config, features),
        {} if group is None else dict(zip(features.ids, map(str, group), strict=True)),
        np.random.default_rng([config.seed, 2**17]),
    )


HELD_OUT = 0.25
"""Of so many scored videos that one part tells enough."""
_NONE: Rows = np.empty(0, dtype=np.int64)


def _once(say: Say) -> Say:
    """`say` what was not said before: folds and seeds repeat themselves."""
    heard: set[str] = set()

    def speak(message: str) -> None:
        if message not in heard:
            heard.add(message)
            say(message)

    return speak


def _refuse_unknown_roles(features: FeatureSet, role: NDArray[np.object_]) -> None:
    """A split that is not understood must not turn test videos into training videos."""
    unknown = [features.ids[i] for i in np.flatnonzero(~np.isin(role.astype(str), [*ROLES, ""]))]
    if unknown:
        values = ", ".join(repr(v) for v in sorted(set(role.tolist()) - {*ROLES, ""})[:5])
        raise UsageError(
            f"split is {values} for {len(unknown)} video(s): {', '.join(unknown[:5])}",
            fix="use train, val or test in the labels, or say who is tested with --split or --folds",
        )


def _scored(rows: Rows, scores: NDArray[np.float64], role: str, say: Say) -> Rows:
    kept = rows[~np.isnan(scores[rows])]
    if len(kept) < len(rows):
        say(f"{len(rows) - len(kept)} {role} video(s) have no score and are left out")
    if role == "test" and not len(kept):
        raise UsageError("there is no test video with a score", fix="name test videos that have scores")
    return kept


def _from_file(
    fold: FileFold,
    features: FeatureSet,
    role: NDArray[np.object_],
    group: NDArray[np.object_] | None,
    path: Path,
    names: VideoNames,
    say: Say,
) -> tuple[Rows, Rows, Rows]:
    rows: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    taken_by: dict[int | str, str] = {}
    missing: list[str] = []
    twice: list[tuple[str, str, str]] = []
    both: list[str] = []
    for part, ids in zip(rows, (fold.train, fold.val, fold.test), strict=True):
        for name in ids:
            found = names.find(name, str(path.parent))
            if len(found) > 1:
                some = ", ".join(features.ids[i] for i in found[:5])
                raise UsageError(f"{path}: {name!r} fits several videos: {some}", fix="write the whole id")
            video: int | str = found[0] if found else name
            before = taken_by.get(video)
            taken_by.setdefault(video, part)
            if before is not None:
                if part != before and "test" in (part, before):
                    both.append(name)
                else:
                    twice.append((name, before, part))
            elif found:
                rows[part].append(found[0])
            else:
                missing.append(name)
    refuse_overlap(both)
    if twice:
        some = ", ".join(f"{n} in {a} and {b}" if a != b else f"{n} in {a}" for n, a, b in twice[:5])
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise UsageError(f"{path}: {len(twice)} id(s) are named twice: {some}{more}", fix="name every video once")
    if missing:
        say(f"{path}: {len(missing)} id(s) are not in the store: {', '.join(missing[:5])}")
    train, validation, test = (np.sort(np.array(found, dtype=np.int64)) for found in rows.values())
    if not len(train) or not len(test):
        raise UsageError(
            f"{path} names no {'training' if not len(train) else 'test'} video of the store (ids there look like "
            f"{features.ids[0]})",
            fix="use the store's ids; aqa info STORE lists them",
        )
    if group is not None:
        _refuse_parted(group, train, validation, test, path)
    unscored = np.isnan(features.column("score").astype(np.float64))
    unlisted = np.setdiff1d(np.arange(len(unscored)), np.concatenate([train, validation, test]))
    # Learned from without being named, unless that may be what is tested: another view of it, or the store says so.
    taken = unlisted[unscored[unlisted] & np.isin(role[unlisted].astype(str), ["train", ""])]
    taken = taken[~_same_group(group, taken, np.union1d(validation, test))]
    if fold.saved:
        taken = _NONE
    left = np.setdiff1d(unlisted, taken)
    for kind, number in (("scored", (~unscored[left]).sum()), ("unscored", unscored[left].sum())):
        if number:
            say(f"{path}: {number} {kind} video(s) of the store are not in it and are left out")
    return np.union1d(train, taken), validation, test


def _refuse_parted(group: NDArray[np.object_], train: Rows, validation: Rows, test: Rows, path: Path | str) -> None:
    """A file that gives the views of one trial different roles contradicts --group."""
    learned, chosen, tested = (set(group[rows]) - {""} for rows in (train, validation, test))
    parted = sorted((learned & chosen) | (learned & tested) | (chosen & tested))
    if parted:
        more = f" and {len(parted) - 5} more" if len(parted) > 5 else ""
        raise UsageError(
            f"{path} parts {len(parted)} group(s): {', '.join(map(str, parted[:5]))}{more}",
            fix="give all videos of a group the same role, or leave --group away",
        )
