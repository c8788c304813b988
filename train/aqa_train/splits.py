"""Who is labelled, unlabelled, validated and tested.

Two steps, each a pure function of its seed: `hold_out`, `score_folds` or a file (`split_files`) part test videos from
training videos, `label` chooses which training videos keep their scores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_shared.files import replace_text
from aqa_train.config import Draw

DRAWS: tuple[Draw, ...] = get_args(Draw)


@dataclass(frozen=True)
class Split:
    """Ids by role, each sorted; saved with every result."""

    fold: int
    seed: int
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    test: tuple[str, ...]
    validation: tuple[str, ...] = ()
    transductive: bool = False
    """Test videos are among the unlabelled: no longer a test of unseen videos."""

    def __post_init__(self) -> None:
        overlap = set(self.test) & (set(self.labelled) | set(self.validation))
        if not self.transductive:
            overlap |= set(self.test) & set(self.unlabelled)
        refuse_overlap(sorted(overlap))

    @property
    def digest(self) -> str:
        """SHA-256 over the roles and ids; the same split has the same digest everywhere."""
        roles = {r: sorted(getattr(self, r)) for r in ("labelled", "unlabelled", "test", "validation")}
        return hashlib.sha256(json.dumps(roles, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        replace_text(path, json.dumps({"sha256": self.digest, **asdict(self)}, indent=1, ensure_ascii=True))

    @classmethod
    def load(cls, path: Path) -> Split:
        """Read back what `save` wrote; a changed file is an error."""
        try:
            record = json.loads(path.read_text())
            digest = record.pop("sha256", None)
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
            split = cls(**values)
        except (ValueError, TypeError, AttributeError) as e:
            raise UsageError(f"{path} is damaged: {e}", fix="take the file as it was saved") from None
        if digest != split.digest:
            raise UsageError(f"{path}: the ids do not have the digest {digest}", fix="take the file as it was saved")
        return split


ROLES = ("train", "val", "test")


def role_named(text: str) -> str:
    """The role that a label or a file means: case, blanks and `validation` for `val` make no difference."""
    role = text.strip().lower()
    return {"validation": "val"}.get(role, role)


def refuse_overlap(ids: Sequence[str]) -> None:
    """The same video in training and test is an error, with its names."""
    if ids:
        more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
        raise UsageError(
            f"{counted(len(ids), 'video')} in training and in test: {', '.join(ids[:5])}{more}",
            fix="give every video one role",
        )


def label(
    scores: NDArray[np.float64],
    fraction: float,
    rng: np.random.Generator,
    draw: Draw = "stratified",
    category: NDArray[np.object_] | None = None,
) -> NDArray[np.int64]:
    """Positions of the `fraction` of `scores` that stay labelled, ascending; drawn within each category.

    `stratified` sorts by score and draws one video from each of equally many bins; `systematic` takes every
    n-th from a random start; `random` ignores the scores; `nested` makes 10 % a part of 20 % for one seed.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"a labelled fraction of {fraction:g} is not in (0, 1]", fix="for example --labelled 0.4")
    groups = [np.arange(len(scores))]
    if category is not None and len(category):
        groups = [np.flatnonzero(category == c) for c in sorted(set(category.tolist()))]
    count = round(fraction * len(scores))
    if draw == "nested":
        return np.sort(_ranking(scores, groups, rng)[:count])
    wanted = _shares([len(g) for g in groups], count)
    drawn = []
    for group, count in zip(groups, wanted, strict=True):
        ordered = _by_score(scores, group, rng)
        drawn.append(ordered[_positions(len(group), count, rng, draw)])
    return np.sort(np.concatenate(drawn)).astype(np.int64)


def label_groups(
    scores: NDArray[np.float64],
    fraction: float,
    rng: np.random.Generator,
    category: NDArray[np.object_] | None = None,
    group: NDArray[np.object_] | None = None,
) -> NDArray[np.int64]:
    """As `label`, by whole groups: positions of the videos of that fraction of the groups."""
    unit, mean, kind = _units(scores, category, group)
    return np.flatnonzero(np.isin(unit, label(mean, fraction, rng, category=kind.astype(object))))


def _by_score(scores: NDArray[np.float64], group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """`group` by rising score; equal scores in no particular order."""
    group = rng.permutation(group)
    return group[np.argsort(scores[group], kind="stable")]


def _ranking(
    scores: NDArray[np.float64], groups: Sequence[NDArray[np.int64]], rng: np.random.Generator
) -> NDArray[np.int64]:
    """One order of all videos whose every prefix is spread over the scores and fair to the groups."""
    key = np.empty(len(scores))
    for group in groups:
        ordered = _by_score(scores, group, rng)
        # Prefixes of a van der Corput sequence are spread evenly; the shift makes it differ by seed.
        spread = (np.array([_van_der_corput(i) for i in range(len(group))]) + rng.random()) % 1.0
        key[ordered[np.argsort(np.argsort(spread))]] = (np.arange(len(group)) + 0.5) / max(len(group), 1)
    return np.argsort(key, kind="stable").astype(np.int64)


def _shares(sizes: list[int], total: int) -> list[int]:
    """`total` dealt out in proportion to `sizes`, largest remainders first."""
    exact = [total * s / max(sum(sizes), 1) for s in sizes]
    shares = [int(e) for e in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def _positions(n: int, count: int, rng: np.random.Generator, draw: Draw) -> NDArray[np.int64]:
    if count == 0:
        return np.empty(0, dtype=np.int64)
    if draw == "random":
        return rng.permutation(n)[:count]
    if draw == "systematic":
        return np.floor((rng.random() + np.arange(count)) * n / count).astype(np.int64).clip(max=n - 1)
    edges = np.arange(count + 1) * n // count
    return rng.integers(edges[:-1], edges[1:])


def _van_der_corput(i: int) -> float:
    value, unit = 0.0, 0.5
    while i:
        value, i, unit = value + unit * (i & 1), i >> 1, unit / 2
    return value


def score_folds(
    scores: NDArray[np.float64],
    folds: int,
    rng: np.random.Generator,
    category: NDArray[np.object_] | None = None,
    group: NDArray[np.object_] | None = None,
) -> NDArray[np.int64]:
    """The fold (0 … folds−1) of every score: neighbours in score go to different folds.

    Videos of one `group` (two views of one trial, one athlete) share a fold; those of the group "" are on their own.
    """
    unit, mean, kind = _units(scores, category, group)
    number = len(mean)
    if folds < 2 or folds > number:
        raise UsageError(
            f"{folds} folds of {counted(number, 'scored ' + ('video' if group is None else 'group'))} are not possible",
            fix=f"choose --folds between 2 and {number}" if number > 1 else "score more videos",
        )
    order = np.lexsort((rng.random(number), mean, kind))
    fold_of_unit = np.empty(number, dtype=np.int64)
    # What is left over comes from the middle: a fold that lacks an extreme score would differ most from the others.
    middle = number // folds // 2 * folds
    rest = order[middle : middle + number % folds]
    fold_of_unit[rest] = rng.permutation(folds)[: len(rest)]
    dealt = np.empty(0, dtype=np.int64)
    for i, block in enumerate(np.delete(order, np.s_[middle : middle + len(rest)]).reshape(-1, folds)):
        # Every second time backwards: the fold that got the lowest score of one gets the highest of the next.
        dealt = dealt[::-1] if i % 2 else rng.permutation(folds)
        fold_of_unit[block] = dealt
    return fold_of_unit[unit]


FOLDS, ENOUGH = 5, 500


def default_folds(units: int) -> int:
    """How many folds to test `units` scored videos (or groups) in; 1 is a part that is held out once.

    Five; of fewer than ten as many as test two each, since leaving one out leaves nothing to rank in a fold and turns
    the order of constant predictions round. From 500 on a quarter, 125 or more, tells as much as anyone can use, and
    training five times as long is not worth it.
    """
    return 1 if units >= ENOUGH else min(FOLDS, units // 2)


def count_units(count: int, group: NDArray[np.object_] | None) -> int:
    """How many videos or groups `count` videos are."""
    return len(_units(np.zeros(count), None, group)[1])


def _units(
    scores: NDArray[np.float64], category: NDArray[np.object_] | None, group: NDArray[np.object_] | None
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.str_]]:
    """What is parted as one, a group or a video without one: the unit of every score, each unit's mean and kind."""
    unit = np.arange(len(scores))
    if group is not None:
        name = group.astype(str)
        grouped = np.unique(name, return_inverse=True)[1]
        unit = np.unique(np.where(name == "", len(scores) + unit, grouped), return_inverse=True)[1]
    members = [np.flatnonzero(unit == u) for u in range(unit.max(initial=-1) + 1)]
    # An athlete of several apparatus is compared with those of the same several.
    kind = ["" if category is None else "\n".join(sorted({str(c) for c in category[m]})) for m in members]
    return unit, np.array([scores[m].mean() for m in members]), np.array(kind, dtype=str)


def hold_out(
    scores: NDArray[np.float64],
    fraction: float,
    rng: np.random.Generator,
    group: NDArray[np.object_] | None = None,
) -> NDArray[np.bool_]:
    """A score-stratified test set of this fraction, at least one video or group; True is test."""
    units = count_units(len(scores), group)
    test = np.zeros(len(scores), dtype=bool)
    test[label_groups(scores, max(1, round(fraction * units)) / units, rng, group=group)] = True
    return test
