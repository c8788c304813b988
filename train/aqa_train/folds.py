"""Who is tested: as a file of splits or the store says it, or in folds of our own."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from aqa_shared.console import Say, counted
from aqa_shared.errors import UsageError, did_you_mean
from aqa_shared.manifest_labels import VideoNames
from aqa_train.config import OverFolds, RunConfig
from aqa_train.features import FeatureSet
from aqa_train.labels import names_of
from aqa_train.order import Rows
from aqa_train.split_files import FileFold, read_split_file
from aqa_train.splits import ROLES, count_units, default_folds, hold_out, refuse_overlap, role_named, score_folds

HELD_OUT = 0.25
"""Of so many scored videos that one part tells enough."""

_NONE: Rows = np.empty(0, dtype=np.int64)

TestSource = Literal["file", "folds", "column", "store", "part", "cross-validation"]


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
    if config.folds_by is not None:
        return "column"
    return "store" if in_store else "part" if config.test_fraction is not None else "cross-validation"


def over_folds(config: RunConfig, features: FeatureSet) -> OverFolds:
    """Folds of our own making are pooled; those that were asked for or published are averaged, as is usual."""
    role = np.array([role_named(str(r)) for r in features.column("split")], dtype=object)
    return config.over_folds or ("pooled" if source_of_tests(config, role) == "cross-validation" else "mean")


def folds_of(
    config: RunConfig, features: FeatureSet, category: NDArray[np.object_] | None, say: Say
) -> list[tuple[Rows, Rows, Rows]]:
    """(train, validation, test) of every fold; from the file, folds, the store, or a held-out part."""
    scores = features.column("score").astype(np.float64)
    everything = np.arange(len(scores))
    scored, unscored = everything[~np.isnan(scores)], everything[np.isnan(scores)]
    role = np.array([role_named(str(r)) for r in features.column("split")], dtype=object)
    rng = np.random.default_rng([config.seed, 2**16])
    others = _of_other_categories(config, features)
    if config.all_scores:
        return [(np.setdiff1d(everything, others), _NONE, _NONE)]
    source = source_of_tests(config, role)
    scored, unscored = np.setdiff1d(scored, others), np.setdiff1d(unscored, others)
    group = group_of(config, features)
    units = together(features, group)
    if source in ("store", "part", "cross-validation"):
        _refuse_unknown_roles(features, role)
    if source == "file":
        path = Path(str(config.split))
        names = names_of(features)
        folds = read_split_file(path, known=lambda name: bool(names.find(name, str(path.parent))))
        found = [_from_file(fold, features, role, group, units, path, names, say) for fold in folds]
    elif source == "store":
        free = scored[role[scored] == ""]
        everything = np.setdiff1d(everything, others)
        if len(free):
            say(f"{counted(len(free), 'scored video')} without a split, used for training: {features.ids[free[0]]} …")
        train = everything[np.isin(role[everything].astype(str), ["train", ""])]
        found = [(train, everything[role[everything] == "val"], everything[role[everything] == "test"])]
        if group is not None:
            _refuse_parted(group, *found[0], "the column split")
    else:
        # Who is marked for validation validates every fold; other views of it take no part.
        validation = _NONE if source in ("folds", "column") else np.setdiff1d(everything[role == "val"], others)
        views = other_views(units, everything, validation, say)
        free = np.setdiff1d(scored, np.union1d(validation, views))
        rest = np.setdiff1d(unscored, np.union1d(validation, views))
        # A view without a score of what is tested would be learned from all the same.
        found = []
        tests = (
            _by_column(config, features, free, units)
            if source == "column"
            else _own_tests(config, source, free, scores, category, units, rng, say)
        )
        for tested in tests:
            also = rest[~in_same_group(units, rest, tested)]
            found.append((np.union1d(np.setdiff1d(free, tested), also), validation, tested))
    return [
        (
            np.setdiff1d(train, others),
            _scored(np.setdiff1d(val, others), scores, "validation", say),
            _scored(np.setdiff1d(test, others), scores, "test", say),
        )
        for train, val, test in found
    ]


def other_views(units: NDArray[np.object_] | None, rows: Rows, validation: Rows, say: Say) -> Rows:
    """Those of `rows` that show what a validation video shows, and are none: nothing is learned from them."""
    views = np.setdiff1d(rows[in_same_group(units, rows, validation)], validation)
    if len(views):
        say(f"not learned from: {counted(len(views), 'other view')} of validation videos")
    return views


def _of_other_categories(config: RunConfig, features: FeatureSet) -> Rows:
    if config.category is None:
        return _NONE
    category = features.column("category").astype(str)
    if not (category == config.category).any():
        known = sorted(set(category.tolist()) - {""})
        raise UsageError(
            f"no video is of the category {config.category!r}",
            fix=did_you_mean(config.category, known) or f"the store has {', '.join(known) or 'no category'}",
        )
    return np.flatnonzero(category != config.category)


def _by_column(config: RunConfig, features: FeatureSet, free: Rows, units: NDArray[np.object_] | None) -> list[Rows]:
    """Each value of the column is tested once."""
    name = str(config.folds_by)
    _refuse_absent_column("--folds-by", name, features)
    values = np.array(["" if cell is None else str(cell) for cell in features.cells(name)])
    folds = sorted(set(values[free].tolist()) - {""})
    if len(folds) < 2:
        raise UsageError(
            f"--folds-by {name}: the scored videos have {counted(len(folds), 'value')} in it; two are needed",
            fix=_columns_there(features),
        )
    tests = [free[values[free] == fold] for fold in folds]
    for fold, tested in zip(folds, tests, strict=True):
        elsewhere = np.setdiff1d(free, tested)
        parted = in_same_group(units, elsewhere, tested)
        if parted.any():
            content = same_video(features)
            here = {content[i]: i for i in tested[::-1]}
            if twin := next(((here[content[i]], i) for i in elsewhere if content[i] and content[i] in here), None):
                a, b = twin
                raise UsageError(
                    f"--folds-by {name}: {features.ids[a]} of the fold {fold} and {features.ids[b]} of the fold "
                    f"{values[b]} are one video",
                    fix="give both the same fold, or take the score from one",
                )
            raise UsageError(
                f"--folds-by {name}: the fold {fold} divides a group: {counted(int(parted.sum()), 'video')} of it "
                "in other folds",
                fix="give all videos of a group the same fold, or omit --group",
            )
    return tests


def together(features: FeatureSet, group: NDArray[np.object_] | None) -> NDArray[np.object_] | None:
    """What may not be on both sides, as a column like `group`: groups, and one file's part under several ids."""
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
    grouped = at(group, free)
    units = count_units(len(free), grouped)
    what = "scored videos" if units == len(free) else f"groups of scored videos ({len(free)} videos)"
    least = {"cross-validation": 4, "part": 3}.get(source, 0)
    if units < least:
        raise UsageError(f"{units} {what} are too few to train and test", fix=f"score at least {least}")
    folds = config.folds or (default_folds(units) if source == "cross-validation" else 1)
    if folds > 1:
        number = score_folds(scores[free], folds, rng, at(category, free), grouped)
        if source == "cross-validation":
            say(
                f"nothing says who is tested: each of {units} {what} is tested once, in {folds} folds (--split FILE "
                "names test videos, --test-fraction 0.25 holds out a part once)"
            )
        return [free[number == k] for k in range(folds)]
    fraction = config.test_fraction or HELD_OUT
    test = free[hold_out(scores[free], fraction, rng, grouped)]
    say(f"no test videos are named: {len(test)} of {len(free)} scored ones are held out, stratified by score")
    return [test]


def _from_file(
    fold: FileFold,
    features: FeatureSet,
    role: NDArray[np.object_],
    group: NDArray[np.object_] | None,
    units: NDArray[np.object_] | None,
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
        raise UsageError(f"{path}: {counted(len(twice), 'id')} named twice: {some}{more}", fix="name every video once")
    if missing:
        say(f"{path}: {counted(len(missing), 'id')} not in the store: {', '.join(missing[:5])}")
    train, validation, test = (np.sort(np.array(found, dtype=np.int64)) for found in rows.values())
    for what, named, known in (("training", fold.train, train), ("test", fold.test, test)):
        if not named:
            raise UsageError(f"{path} names no {what} video", fix="say in it who trains and who is tested")
        if not len(known):
            raise UsageError(
                f"{path} names no {what} video of the store (ids there look like {features.ids[0]})",
                fix="use the store's ids; aqa info STORE lists them",
            )
    if group is not None:
        _refuse_parted(group, train, validation, test, path)
    unscored = np.isnan(features.column("score").astype(np.float64))
    unlisted = np.setdiff1d(np.arange(len(unscored)), np.concatenate([train, validation, test]))
    # Learned from without being named, unless that may be what is tested: another view of it, or the store says so.
    taken = unlisted[unscored[unlisted] & np.isin(role[unlisted].astype(str), ["train", ""])]
    taken = taken[~in_same_group(units, taken, np.union1d(validation, test))]
    if fold.saved:
        taken = _NONE
    left = np.setdiff1d(unlisted, taken)
    for kind, number in (("scored", (~unscored[left]).sum()), ("unscored", unscored[left].sum())):
        if number:
            say(f"{path} does not name {counted(number, f'{kind} video')} of the store: left out")
    return np.union1d(train, taken), validation, test


def _refuse_parted(group: NDArray[np.object_], train: Rows, validation: Rows, test: Rows, path: Path | str) -> None:
    """A file that gives the views of one trial different roles contradicts --group."""
    learned, chosen, tested = (set(group[rows]) - {""} for rows in (train, validation, test))
    parted = sorted((learned & chosen) | (learned & tested) | (chosen & tested))
    if parted:
        more = f" and {len(parted) - 5} more" if len(parted) > 5 else ""
        raise UsageError(
            f"{path} divides {counted(len(parted), 'group')}: {', '.join(map(str, parted[:5]))}{more}",
            fix="give all videos of a group the same role, or omit --group",
        )


def _refuse_unknown_roles(features: FeatureSet, role: NDArray[np.object_]) -> None:
    """A split that is not understood must not turn test videos into training videos."""
    unknown = [features.ids[i] for i in np.flatnonzero(~np.isin(role.astype(str), [*ROLES, ""]))]
    if unknown:
        values = ", ".join(repr(v) for v in sorted(set(role.tolist()) - {*ROLES, ""})[:5])
        raise UsageError(
            f"split is {values} for {counted(len(unknown), 'video')}: {', '.join(unknown[:5])}",
            fix="use train, val or test in the labels, or say who is tested with --split or --folds",
        )


def _scored(rows: Rows, scores: NDArray[np.float64], role: str, say: Say) -> Rows:
    kept = rows[~np.isnan(scores[rows])]
    if len(kept) < len(rows):
        say(f"{counted(len(rows) - len(kept), f'{role} video')} without a score left out")
    if role == "test" and not len(kept):
        raise UsageError("there is no test video with a score", fix="name test videos that have scores")
    return kept


def same_video(features: FeatureSet) -> list[str]:
    """For every video a text that is equal for the same part of the same file; "" where the store does not know it."""
    part = ("fingerprint", "size", "start", "end", "start_time", "end_time")
    if "fingerprint" not in features.table:
        return [""] * len(features.ids)
    columns = [features.table[n].astype(str) for n in part if n in features.table]
    return ["" if row[0] in ("", "nan") else " ".join(row) for row in zip(*columns, strict=True)]


def category_of(features: FeatureSet) -> NDArray[np.object_] | None:
    category = features.column("category").astype(object)
    return category if len(set(category.tolist())) > 1 else None


def group_of(config: RunConfig, features: FeatureSet) -> NDArray[np.object_] | None:
    """The group of every video, "" where it has none."""
    if config.group is None:
        return None
    _refuse_absent_column("--group", config.group, features)
    return features.column(config.group).astype(object)


def _refuse_absent_column(option: str, name: str, features: FeatureSet) -> None:
    if all(cell is None for cell in features.cells(name)):
        raise UsageError(f"{option} {name}: the videos have no column {name!r}", fix=_columns_there(features, name))


def _columns_there(features: FeatureSet, asked: str = "") -> str:
    """The fix for a column that is of no use: one that is spelled alike, or all that can make folds and groups."""
    others = {name for cell in features.table.get("extra", []) if cell for name in json.loads(cell)}
    known = [name for name in sorted(others | {"category"}) if any(c is not None for c in features.cells(name))]
    if not known:
        return "give the videos such a column with --labels FILE"
    return did_you_mean(asked, known) or f"the videos have {', '.join(known)}; --labels FILE can give them others"


def at(column: NDArray[np.object_] | None, rows: Rows) -> NDArray[np.object_] | None:
    return None if column is None else column[rows]


def in_same_group(group: NDArray[np.object_] | None, rows: Rows, others: Rows) -> NDArray[np.bool_]:
    """Which of `rows` share a group with one of `others`."""
    if group is None:
        return np.zeros(len(rows), dtype=bool)
    wanted = set(group[others]) - {""}
    return np.array([g in wanted for g in group[rows]], dtype=bool)
