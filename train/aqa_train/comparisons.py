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
from dataclasses import dataclass, replace

import numpy as np

from aqa_train.intervals import Interval, Numbers, Resamples
from aqa_train.summary import Comparison, average_by_draw, average_of_all, over_seeds

MEASURES = ("spearman", "mae", "auc")


@dataclass(frozen=True)
class Predictions:
    """What every row predicted of one set of test videos."""

    tested: Comparison
    by_row: Mapping[str, Numbers]
    """(seeds, videos), in the order of `tested`; NaN where it predicted nothing."""


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


def compare(sets: Sequence[Predictions], measures: Sequence[str] = MEASURES) -> list[Pair]:
    """Every pair of rows in every measure; Holm's correction within a measure."""
    return [pair for measure in measures for pair in Figures(sets, measure).pairs()]


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


def _drawn_together(sets: Sequence[Predictions]) -> list[Predictions]:
    """Several sets with draws of all their videos (or groups): what lies in two of them is drawn alike.

    Drawn within those that lie in the same folds of the same sets.
    """
    if len(sets) == 1 or not all(one.tested.draws.tell for one in sets):
        return list(sets)
    places: dict[str, list[tuple[int, int]]] = {}
    for n, one in enumerate(sets):
        for name, fold in zip(one.tested.names, one.tested.strata.tolist(), strict=True):
            if (n, fold) not in (mine := places.setdefault(name, [])):
                mine.append((n, fold))
    strata = {where: i for i, where in enumerate(dict.fromkeys(map(tuple, places.values())))}
    number = {name: i for i, name in enumerate(places)}
    rng = np.random.default_rng([len(places), 2**17])
    stratum = np.array([strata[tuple(where)] for where in places.values()])
    draws = Resamples.draw(np.arange(len(places)), stratum, rng)
    return [
        replace(
            one,
            tested=replace(
                one.tested,
                # As wide as the set alone asks for.
                draws=replace(one.tested.draws, counts=draws.counts[:, [number[name] for name in one.tested.names]]),
            ),
        )
        for one in sets
    ]


class Figures:
    """A measure of every row over one set of test videos, or its average over several, as sports or exercises."""

    def __init__(self, sets: Sequence[Predictions], measure: str) -> None:
        self.sets, self.measure = _drawn_together(sets), measure
        self.seeds = [s for s in sets[0].tested.seeds if all(s in one.tested.seeds for one in sets)]
        self.fewest = min((one.tested.draws for one in sets), key=lambda draws: draws.freedom)
        self.known: dict[tuple[str, bytes], Numbers] = {}

    def pairs(self, against: str | None = None) -> list[Pair]:
        """Every two of the rows that all sets have, or each with the row `against`; with Holm's correction.

        A pair is left out where one of the two has no value.
        """
        first, *others = (one.by_row for one in self.sets)
        names = [name for name in first if all(name in other for other in others)]
        pairs = [
            _pair(self, a, b)
            for i, a in enumerate(names)
            for b in names[i + 1 :]
            if against is None or against in (a, b)
        ]
        return corrected([pair for pair in pairs if pair.difference is not None])

    def interval(self, row: str) -> Interval | None:
        """Over test videos, of a row; None of too few, and where no draw differs from another."""
        return self.ends(over_seeds(self.by_draw(row, [one.by_row[row] for one in self.sets])))

    def by_seed(self, predicted: Sequence[Numbers]) -> Numbers:
        """(seeds,): the average; NaN where a set has no figure."""
        found = []
        for seed in self.seeds:
            values = [
                one.tested.measure(p[one.tested.seeds.index(seed)])[0][self.measure]
                for one, p in zip(self.sets, predicted, strict=True)
            ]
            found.append(average_of_all(self.measure, values))
        return np.array([np.nan if v is None else v for v in found])

    def by_draw(self, row: str, predicted: Sequence[Numbers]) -> Numbers:
        """(seeds, draws): the average; NaN where a set has no figure. Computed once for the same videos."""
        key = row, b"".join(np.isnan(p).tobytes() for p in predicted)
        if key not in self.known:
            parts = [
                one.tested.by_seed_and_draw(self.measure, p[[one.tested.seeds.index(s) for s in self.seeds]])
                for one, p in zip(self.sets, predicted, strict=True)
            ]
            lacking = np.isnan(parts).any(axis=0)
            self.known[key] = np.where(lacking, np.nan, average_by_draw(self.measure, parts))
        return self.known[key]

    def by_training(self, predicted: Sequence[Numbers]) -> Numbers:
        """By seed and fold, where all sets have as many folds, else by seed."""
        parts = [
            one.tested.by_training(self.measure, p[[one.tested.seeds.index(s) for s in self.seeds]])
            for one, p in zip(self.sets, predicted, strict=True)
        ]
        if len({len(part) for part in parts}) > 1:
            return self.by_seed(predicted)
        lacking = np.isnan(parts).any(axis=0)
        return np.where(lacking, np.nan, average_by_draw(self.measure, parts))

    def ends(self, by_draw: Numbers) -> Interval | None:
        """The interval of a figure by draw."""
        return self.fewest.interval(by_draw) if np.ptp(by_draw) or not by_draw.any() else None


def _pair(figures: Figures, a: str, b: str) -> Pair:
    both = [~(np.isnan(one.by_row[a]) | np.isnan(one.by_row[b])) for one in figures.sets]
    # Where one lacks a fold, the other's counts no more: it may be the easy one. The same with seeds below.
    mine, theirs = (
        [np.where(known, one.by_row[name], np.nan) for one, known in zip(figures.sets, both, strict=True)]
        for name in (a, b)
    )
    by_seed = figures.by_seed(mine) - figures.by_seed(theirs)
    seeds = ~np.isnan(by_seed)
    difference = float(by_seed[seeds].mean()) if seeds.any() else None
    ends, bootstrap = None, None
    if difference is not None and figures.fewest.tell:
        by_draw = over_seeds(figures.by_draw(a, mine)[seeds] - figures.by_draw(b, theirs)[seeds])
        ends = figures.ends(by_draw)
        bootstrap = _two_sided(by_draw)
    differences = figures.by_training(mine) - figures.by_training(theirs)
    differences = differences[~np.isnan(differences)]
    return Pair(a, b, figures.measure, difference, ends, bootstrap, _wilcoxon(differences), len(differences))


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
