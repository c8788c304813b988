"""Is one method better than another, or was it the test videos, or the seeds? Pairs of rows, with p values.

Two tests answer two questions, both of the same trainings side by side, so that what is hard for both counts for none:

- **bootstrap**: with other test videos, how often would the difference have the other sign (`intervals`)?
- **Wilcoxon**: with other seeds and folds? Signed ranks of the differences by seed and fold. Folds share most of their
  training videos and seeds all test videos, so its p values are too small rather than too large, and of five
  pairs the smallest there is is 1/16.

Of many pairs some will seem to differ: p values are corrected by Holm's procedure over all pairs of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from aqa_train import metrics
from aqa_train.intervals import Interval, Numbers, Resamples
from aqa_train.summary import Comparison, average, average_by_draw, over_seeds

MEASURES = ("spearman", "mae", "auc")


@dataclass(frozen=True)
class Side:
    """What every row predicted of one set of test videos."""

    tested: Comparison
    predicted: Mapping[str, Numbers]
    """By row (seeds, videos), in the order of `tested`; NaN where it predicted nothing."""


@dataclass(frozen=True)
class Pair:
    """Two rows and one measure."""

    a: str
    b: str
    measure: str
    difference: float | None
    """Of a − b, the mean over seeds."""
    interval: Interval | None
    """Of the difference, over test videos."""
    bootstrap: float | None
    """Its two-sided p value; None of too few test videos."""
    wilcoxon: float | None
    """Two-sided; None where fewer than two of the pairs differ."""
    pairs: int
    """Seeds × folds that the Wilcoxon test has."""
    bootstrap_holm: float | None = None
    wilcoxon_holm: float | None = None


def compare(sides: Sequence[Side], measures: Sequence[str] = MEASURES, against: str | None = None) -> list[Pair]:
    """Every pair of rows, or each with the row `against`, in every measure; Holm's correction within a measure.

    Of several sides, as sports or exercises, the average is compared: that of rows which all of them have. A pair is
    left out of a measure that has no value for one of the two.
    """
    first, *others = (side.predicted for side in sides)
    names = [name for name in first if all(name in other for other in others)]
    found: list[Pair] = []
    for measure in measures:
        drawn = _Drawn(sides, measure)
        pairs = [
            _pair(sides, drawn, a, b)
            for i, a in enumerate(names)
            for b in names[i + 1 :]
            if against is None or against in (a, b)
        ]
        found += corrected([pair for pair in pairs if pair.difference is not None])
    return found


def interval(sides: Sequence[Side], measure: str, row: str) -> Interval | None:
    """Over test videos, of a row's average over sides; None of too few."""
    if not all(side.tested.draws.tell for side in sides):
        return None
    return _fewest(sides).interval(_Drawn(sides, measure).average(row, [side.predicted[row] for side in sides]))


def corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """The same with Holm's correction over all of them."""
    boot, signed = (holm([getattr(p, n) for p in pairs]) for n in ("bootstrap", "wilcoxon"))
    return [
        Pair(p.a, p.b, p.measure, p.difference, p.interval, p.bootstrap, p.wilcoxon, p.pairs, b, w)
        for p, b, w in zip(pairs, boot, signed, strict=True)
    ]


def holm(values: Sequence[float | None]) -> list[float | None]:
    """p values, corrected by Holm's step-down procedure (Scandinavian Journal of Statistics 1979); None stays None."""
    known = [(p, i) for i, p in enumerate(values) if p is not None]
    found: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, i) in enumerate(sorted(known)):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        found[i] = largest
    return found


class _Drawn:
    """A measure of every row in every draw, computed once."""

    def __init__(self, sides: Sequence[Side], measure: str) -> None:
        self.sides, self.measure = sides, measure
        self.known: dict[tuple[int, str], Numbers] = {}

    def average(self, name: str, predicted: Sequence[Numbers]) -> Numbers:
        """(draws,): of what `name` predicted of every side, or of a part of it; the mean over seeds."""
        values = []
        for n, (side, mine) in enumerate(zip(self.sides, predicted, strict=True)):
            whole = np.array_equal(np.isnan(mine), np.isnan(side.predicted[name]))
            if not whole or (n, name) not in self.known:
                # The same videos in two sides are drawn alike; of others, the same numbers do no harm.
                found = side.tested.by_seed_and_draw(self.measure, mine)
                if whole:
                    self.known[n, name] = found
            else:
                found = self.known[n, name]
            values.append(found)
        draws = min(v.shape[1] for v in values)
        return over_seeds(average_by_draw(self.measure, [v[:, :draws] for v in values]))


def _pair(sides: Sequence[Side], drawn: _Drawn, a: str, b: str) -> Pair:
    measure = drawn.measure
    both = [~(np.isnan(side.predicted[a]) | np.isnan(side.predicted[b])) for side in sides]
    # Where one lacks a fold, the other's counts no more: it may be the easy one.
    mine, theirs = (
        [np.where(known, side.predicted[name], np.nan) for side, known in zip(sides, both, strict=True)]
        for name in (a, b)
    )
    values = [_mean_over_seeds(sides, measure, predicted) for predicted in (mine, theirs)]
    difference = None if values[0] is None or values[1] is None else values[0] - values[1]
    ends, bootstrap = None, None
    if difference is not None and all(side.tested.draws.tell for side in sides):
        by_draw = drawn.average(a, mine) - drawn.average(b, theirs)
        ends = _fewest(sides).interval(by_draw)
        bootstrap = _two_sided(by_draw)
    by_training = [
        np.concatenate([side.tested.by_training(measure, p) for side, p in zip(sides, predicted, strict=True)])
        for predicted in (mine, theirs)
    ]
    differences = np.subtract(*by_training)
    differences = differences[~np.isnan(differences)]
    return Pair(a, b, measure, difference, ends, bootstrap, _wilcoxon(differences), len(differences))


def _fewest(sides: Sequence[Side]) -> Resamples:
    """An interval is as wide as the side with the fewest videos asks for."""
    return min((side.tested.draws for side in sides), key=lambda draws: draws.freedom)


def _mean_over_seeds(sides: Sequence[Side], measure: str, predicted: Sequence[Numbers]) -> float | None:
    """Averaged over the sides by seed first, as a table's columns are."""
    by_seed = []
    for parts in zip(*predicted, strict=True):
        values = [side.tested.measure(p)[0][measure] for side, p in zip(sides, parts, strict=True)]
        by_seed.append(average(measure, values))
    return metrics.mean_std(by_seed)[0]


def _two_sided(by_draw: Numbers) -> float | None:
    """Twice how often the difference is not of the sign that it mostly has; never 0, which no draws can show."""
    known = by_draw[~np.isnan(by_draw)]
    if not len(known):
        return None
    below, above = int((known <= 0).sum()), int((known >= 0).sum())
    return min(1.0, 2 * (min(below, above) + 1) / (len(known) + 1))


def _wilcoxon(differences: Numbers) -> float | None:
    from scipy.stats import wilcoxon

    if len(differences) < 2 or not differences.any():
        return None
    return float(wilcoxon(differences).pvalue)
