"""A score for every video of the store, by those models of a run that did not learn from its score.

A model learned from a video's score if the video was among its labelled ones. One that saw the video without its
score (unlabelled), tested on it or chose a best epoch by it did not: only the last epoch counts here, which no
validation chose. The same part of the same file under another id is the same video. With `--group`, a scored video
also counts as learned where another one of its group was: its error is to tell of people or trials never seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aqa_train.config import RunConfig
from aqa_train.features import FeatureSet
from aqa_train.folds import group_of, same_video
from aqa_train.order import Rows
from aqa_train.splits import Split

COLUMNS = ("id", "method", "score", "spread", "members", "seen_unlabelled", "trained_on", "true", "residual")


@dataclass(frozen=True)
class Combined:
    """What an ensemble says of some videos, each value (videos,)."""

    score: NDArray[np.float64]
    """Mean over the members that count; NaN where none does."""
    spread: NDArray[np.float64]
    """Sample deviation (n − 1) over them; NaN for fewer than two."""
    members: NDArray[np.int64]
    """How many count."""


def combine(values: NDArray[np.float64], left_out: NDArray[np.bool_]) -> Combined:
    """`values`: scores (members, videos). `left_out`, of the same shape: which do not count."""
    kept = np.where(left_out, np.nan, values)
    members = (~left_out).sum(axis=0)
    mean = np.divide(np.nansum(kept, axis=0), members, out=np.full(values.shape[1], np.nan), where=members > 0)
    squares = np.nansum(np.square(kept - mean), axis=0)
    variance = np.divide(squares, members - 1, out=np.full(values.shape[1], np.nan), where=members > 1)
    return Combined(mean, np.sqrt(variance), members)


def identities(features: FeatureSet, rows: Rows | None = None) -> list[str]:
    """A short digest of what each video is: its content and part where the store knows them, else its id."""
    known = same_video(features)
    rows = np.arange(len(features.ids)) if rows is None else rows
    return [hashlib.sha256((known[r] or f"id {features.ids[r]}").encode()).hexdigest()[:16] for r in rows]


def learned_from(features: FeatureSet, split: Split, config: RunConfig) -> NDArray[np.bool_]:
    """(videos,): whose score a model of this split learned from."""
    own = np.array(identities(features))
    labelled = np.isin(features.ids, split.labelled)
    found = np.isin(own, own[labelled])
    group = group_of(config, features)
    if group is not None:
        scored = ~np.isnan(features.column("score").astype(np.float64))
        found |= scored & (group != "") & np.isin(group.astype(str), group[labelled].astype(str))
    return found


def every_video(
    features: FeatureSet, config: RunConfig, splits: Sequence[Split], results: Sequence[dict[str, Any]]
) -> Iterator[list[Any]]:
    """The rows of scores.csv, a video and method each, in the order of `COLUMNS`.

    `results` hold every training's `scores` of all videos, in the store's order; None where it gave none. A video whose
    score every model learned from has none: what they say of it is not a prediction.
    """
    true = features.column("score").astype(np.float64)
    learned = {(s.fold, s.seed): learned_from(features, s, config) for s in splits}
    unlabelled = {(s.fold, s.seed): np.isin(features.ids, s.unlabelled) for s in splits}
    for method in dict.fromkeys(r["method"] for r in results):
        mine = [r for r in results if r["method"] == method]
        runs = [(r["fold"], r["seed"]) for r in mine]
        values = np.array([r["scores"] for r in mine], dtype=np.float64)
        trained_on = np.stack([learned[run] for run in runs])
        left_out = trained_on | np.isnan(values)
        seen = (np.stack([unlabelled[run] for run in runs]) & ~left_out).sum(axis=0)
        found = combine(values, left_out)
        for i, name in enumerate(features.ids):
            row = (found.score[i], found.spread[i], found.members[i], seen[i], trained_on[:, i].sum())
            yield [name, method, *map(_cell, row), _cell(true[i]), _cell(found.score[i] - true[i])]


def without(rows: Sequence[Sequence[Any]]) -> int:
    """How many videos have no score of the first method, because every model of it learned from theirs."""
    return sum(row[1] == rows[0][1] and row[2] is None and row[6] > 0 for row in rows)


def _cell(value: Any) -> Any:
    """A number for a table; empty where unknown."""
    return None if np.isnan(value) else value.item()
