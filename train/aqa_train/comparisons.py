"""Is one method better than another, or was it the test videos, or the seeds? Pairs of rows, with p values.

Two tests answer two questions, both of the same trainings side by side, so that what is hard for both counts for none:

- **bootstrap**: with other test videos, how often would the difference have the other sign (`intervals`)?
- **Wilcoxon**: with other seeds and folds? Signed ranks of the differences by seed and fold. Folds share most of their
  training videos and seeds all test videos, so its p values are too small rather than too large, and of five
  pairs the smallest there is is 1/16.

Of many pairs some will seem to differ: p values are corrected by Holm's procedure over all pairs of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aqa_train import metrics
from aqa_train.intervals import Interval, Numbers
from aqa_train.summary import Comparison

MEASURES = ("spearman", "mae")
BETTER = {"spearman": 1, "mae": -1}
"""Whether more is better."""


@dataclass(frozen=True)
class Compared:
    """What one method, or one variant of it, predicted."""

    name: str
    predicted: Numbers
    """(seeds, videos), in the order of the `Comparison`; NaN where it predicted nothing."""


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


def compare(tested: Comparison, rows: Sequence[Compared], against: str | None = None) -> list[Pair]:
    """Every pair of rows, or each with the row `against`, in every measure; Holm's correction within a measure."""
    found: list[Pair] = []
    for measure in MEASURES:
        drawn = {r.name: tested.by_draw(measure, r.predicted) for r in rows} if tested.draws.tell else {}
        pairs = [
            _pair(tested, measure, a, b, drawn)
            for i, a in enumerate(rows)
            for b in rows[i + 1 :]
            if against is None or against in (a.name, b.name)
        ]
        found += corrected(pairs)
    return found


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


def _pair(tested: Comparison, measure: str, a: Compared, b: Compared, drawn: dict[str, Numbers]) -> Pair:
    both = ~(np.isnan(a.predicted) | np.isnan(b.predicted))
    # Where one lacks a fold, the other's counts no more: it may be the easy one.
    mine, theirs = (np.where(both, r.predicted, np.nan) for r in (a, b))
    values = [
        metrics.mean_std([tested.measure(p)[0][measure] for p in side if not np.isnan(p).all()])[0]
        for side in (mine, theirs)
    ]
    difference = None if values[0] is None or values[1] is None else values[0] - values[1]
    interval, bootstrap = None, None
    if tested.draws.tell and difference is not None:
        sides = [
            drawn[r.name] if np.array_equal(both, ~np.isnan(r.predicted)) else tested.by_draw(measure, side)
            for r, side in ((a, mine), (b, theirs))
        ]
        by_draw = sides[0] - sides[1]
        interval = tested.draws.interval(by_draw)
        bootstrap = _two_sided(by_draw)
    differences = tested.by_training(measure, mine) - tested.by_training(measure, theirs)
    differences = differences[~np.isnan(differences)]
    return Pair(a.name, b.name, measure, difference, interval, bootstrap, _wilcoxon(differences), len(differences))


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
