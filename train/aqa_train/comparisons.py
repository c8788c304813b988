"""Is one method better than another, or was it the test videos, or the seeds? Pairs of rows, with p values.

Two tests answer two questions, both of the same trainings side by side, so that what is hard for both counts for none:

- **bootstrap**: with other test videos, how often would the difference have the other sign (`intervals`)?
- **Wilcoxon**: with other seeds and folds? Signed ranks of the differences by seed and fold. Folds share most of their
  training videos and seeds all test videos, so its p values are too small rather than too large, and of five
  pairs the smallest there is is 1/16. Seeds that change neither row, as of ridge and SVR on all labels, count once.

Of many pairs some will seem to differ: p values are corrected by Holm's procedure over all pairs in one measure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aqa_train.intervals import ROUNDING, Interval, Numbers, Resamples, varies
from aqa_train.summary import Comparison, average_by_draw, average_of_all, mean_defined

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
    """Its two-sided p value; None of too few test videos, and where most draws have no figure."""
    wilcoxon: float | None
    """Two-sided; None of fewer than two pairs, and where none differs."""
    pairs: int
    """Seeds × folds that the Wilcoxon test has; seeds that change no prediction of the two count once."""
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

    Drawn within folds; folds of several sets that share a video are drawn as one.
    """
    if len(sets) == 1 or not all(one.tested.draws.tell for one in sets):
        return list(sets)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    number: dict[str, int] = {}
    folds: dict[tuple[int, int], int] = {}
    edges = [
        (number.setdefault(name, len(number)), folds.setdefault((n, fold), len(folds)))
        for n, one in enumerate(sets)
        for name, fold in zip(one.tested.names, one.tested.strata.tolist(), strict=True)
    ]
    unit, fold = np.array(edges).T
    size = len(number) + len(folds)
    shared = coo_array((np.ones(len(edges)), (unit, len(number) + fold)), shape=(size, size))
    stratum = connected_components(shared, directed=False)[1][: len(number)].astype(np.int64)
    rng = np.random.default_rng([len(number), 2**17])
    draws = Resamples.draw(np.arange(len(number)), stratum, rng)
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
        """Over test videos, of a row; None of too few or of no seed, and where no draw differs from another."""
        if not self.seeds or not self.fewest.tell:
            return None
        return self.ends(mean_defined(self.by_draw(row, [one.by_row[row] for one in self.sets])))

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

    def distinct(self, *rows: Sequence[Numbers]) -> list[int]:
        """The seeds, without those that change no prediction of any of the rows: copies are no further evidence."""
        found: dict[bytes, int] = {}
        for seed in self.seeds:
            places = [one.tested.seeds.index(seed) for one in self.sets]
            key = b"".join(p[at].tobytes() for row in rows for p, at in zip(row, places, strict=True))
            found.setdefault(key, seed)
        return list(found.values())

    def by_training(self, predicted: Sequence[Numbers], seeds: Sequence[int]) -> Numbers:
        """By seed and fold, where all sets have as many folds, else by seed."""
        parts = [
            one.tested.by_training(self.measure, p[[one.tested.seeds.index(s) for s in seeds]])
            for one, p in zip(self.sets, predicted, strict=True)
        ]
        if len({len(part) for part in parts}) > 1:
            return self.by_seed(predicted)[[self.seeds.index(s) for s in seeds]]
        lacking = np.isnan(parts).any(axis=0)
        return np.where(lacking, np.nan, average_by_draw(self.measure, parts))

    def ends(self, by_draw: Numbers) -> Interval | None:
        """The interval of a figure by draw."""
        return self.fewest.interval(by_draw) if varies(by_draw) or not np.nan_to_num(by_draw).any() else None


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
        by_draw = mean_defined(figures.by_draw(a, mine)[seeds] - figures.by_draw(b, theirs)[seeds])
        ends, bootstrap = figures.ends(by_draw), figures.fewest.p_value(by_draw)
    trained = figures.distinct(mine, theirs)
    differences = figures.by_training(mine, trained) - figures.by_training(theirs, trained)
    differences = differences[~np.isnan(differences)]
    return Pair(a, b, figures.measure, difference, ends, bootstrap, _wilcoxon(differences), len(differences))


def _wilcoxon(differences: Numbers) -> float | None:
    from scipy.stats import wilcoxon

    # Of a few videos many correlations are alike but for rounding, which would give them different ranks.
    differences = np.round(differences / ROUNDING) * ROUNDING
    if len(differences) < 2 or not differences.any():
        return None
    return float(wilcoxon(differences).pvalue)
