"""How far a figure would move with other test videos: bootstrap intervals, and what may be said of a difference.

The test videos are drawn again with replacement, whole groups where there are groups, the same draw for every row of
a table, so differences between rows are paired. Of several seeds each draw takes the mean, as the figure itself does:
the interval is about the videos, not about the seeds.

Intervals are expanded percentile intervals (Hesterberg, What Teachers Should Know About the Bootstrap, The American
Statistician 2015, section 4.4): plain percentile intervals of few videos are too narrow, and are widened here as a
t interval is. For normal scores they hold the true rank correlation in at least 95 % of trials from 8 videos on.
p values are widened alike: one is below .05 where the interval does not hold 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from aqa_train.metrics import CLIP

LEVEL = 0.95
LEAST = 7
"""Degrees of freedom, videos less the folds they are drawn within, below which nothing is said: of 5 videos a perfect
order comes by chance once in 120 tries, and every draw of them is in perfect order too."""

ROUNDING = 1e-12
"""Figures that differ by less are alike."""

Numbers = NDArray[np.float64]
Interval = tuple[float, float]


def draws_of(videos: int) -> int:
    """How many draws: 2000, of more than a thousand videos fewer (they move less), at least 500."""
    return int(np.clip(2_000_000 // max(videos, 1), 500, 2000))


@dataclass(frozen=True)
class Resamples:
    """Draws of the test videos."""

    counts: Numbers
    """(draws, videos): how often each draw has each video."""
    freedom: int
    """Videos or groups that are drawn, less the folds they are drawn within."""

    @property
    def tell(self) -> bool:
        """Whether there are enough videos for an interval."""
        return self.freedom >= LEAST

    @classmethod
    def draw(
        cls, unit: NDArray[np.int64], stratum: NDArray[np.int64], rng: np.random.Generator, draws: int | None = None
    ) -> Resamples:
        """Draw `unit`s (videos, or groups of them) with replacement within each `stratum`.

        Both by video. A unit that lies in several strata makes one of all.
        """
        unit = np.unique(unit, return_inverse=True)[1]
        pairs = np.unique(np.stack([unit, stratum]), axis=1)
        parts = [np.arange(unit.max(initial=-1) + 1)]
        if pairs.shape[1] == len(parts[0]):
            parts = [pairs[0, pairs[1] == s] for s in np.unique(stratum)]
        counts = np.zeros((draws or draws_of(len(unit)), sum(map(len, parts))))
        for part in parts:
            counts[:, part] = rng.multinomial(len(part), np.full(len(part), 1 / len(part)), size=len(counts))
        return cls(counts[:, unit], counts.shape[1] - len(parts))

    def interval(self, values: Numbers) -> Interval | None:
        """The expanded percentile interval of a figure's values by draw; NaN is left out."""
        if (defined := self._defined(values)) is None:
            return None
        from scipy.stats import norm, t

        tail = norm.cdf(t.ppf((1 - LEVEL) / 2, self.freedom) * self._expansion)
        low, high = np.quantile(defined, [tail, 1 - tail])
        return float(low), float(high)

    def p_value(self, differences: Numbers) -> float | None:
        """Two-sided, of a difference by draw: how often it has not the sign that it mostly has, expanded as `interval`.

        Of B draws none can show less than 2 / (B + 1), and of fifty corrected pairs none would differ. Where no draw
        has the other sign, 0 lies as far off as the draws' mean and deviation say.
        """
        if (defined := self._defined(differences)) is None:
            return None
        from scipy.stats import norm, t

        other = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
        z = norm.ppf((other + 1) / (len(defined) + 1))
        if other == 0 and varies(defined):
            z = min(z, -abs(defined.mean()) / defined.std())
        return min(1.0, float(2 * t.cdf(z / self._expansion, self.freedom)))

    @property
    def _expansion(self) -> float:
        return float(np.sqrt((self.freedom + 1) / self.freedom))

    def _defined(self, values: Numbers) -> Numbers | None:
        """None of too few videos, and where most draws have no value."""
        defined = values[~np.isnan(values)]
        return defined if self.tell and 2 * len(defined) >= len(values) else None


def varies(values: Numbers) -> bool:
    """Whether any two differ, by more than rounding; NaN is left out."""
    defined = values[~np.isnan(values)]
    return len(defined) > 0 and bool(np.ptp(defined) > ROUNDING)


def spearman(predicted: Numbers, true: Numbers, counts: Numbers) -> Numbers:
    """The rank correlation of every draw, of `ranks`: NaN where true scores are constant, 0 where predictions are.

    The same as ranking each draw's videos, without sorting each: equal to `metrics.spearman` up to rounding.
    """
    squares = [np.einsum("dv,dv,dv->d", counts, r, r) for r in (predicted, true)]
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = np.einsum("dv,dv,dv->d", counts, predicted, true) / np.sqrt(squares[0] * squares[1])
    return np.where(squares[1] > 0, np.where(squares[0] > 0, rho, 0.0), np.nan)


def ranks(values: Numbers, counts: Numbers) -> Numbers:
    """(draws, videos): the average rank that each video has in each draw, less the mean rank.

    The mean of average ranks is (n + 1) / 2, so constants give exactly 0.
    """
    order = np.argsort(values, kind="stable")
    first = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) > 0]))
    tied = np.add.reduceat(counts[:, order], first, axis=1)
    found = np.cumsum(tied, axis=1) - (tied - 1) / 2 - (counts.sum(axis=1, keepdims=True) + 1) / 2
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(first)), np.diff(first, append=len(values)))
    return np.asarray(found[:, group])


def area_under_curve(predicted: Numbers, true: Numbers, counts: Numbers) -> Numbers:
    """`metrics.area_under_curve` of every draw, of `ranks` of predictions and true scores of two values as they are.

    NaN of a draw whose true scores are all alike.
    """
    better = true == true.max()
    ahead = np.einsum("dv,dv->d", counts[:, better], predicted[:, better])
    pairs = counts[:, better].sum(axis=1) * counts[:, ~better].sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(0.5 + ahead / pairs)


def mean(errors: Numbers, counts: Numbers) -> Numbers:
    """The mean error of every draw; NaN of a draw without videos."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Numbers = counts @ errors / counts.sum(axis=1)
    return found


def fisher_mean(correlations: Sequence[Numbers]) -> Numbers:
    """`metrics.fisher_mean` over the first axis, for every draw."""
    stacked = np.stack(correlations)
    defined = ~np.isnan(stacked)
    z = np.where(defined, np.arctanh(np.clip(np.nan_to_num(stacked), -CLIP, CLIP)), 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        averaged = np.tanh(z.sum(axis=0) / defined.sum(axis=0))
    return np.where(defined.sum(axis=0) == 1, np.nan_to_num(stacked).sum(axis=0), averaged)


def of_perfect_order(rho: float, freedom: int) -> Interval:
    """Of a correlation of ±1, of which every draw is perfect too: as if one pair of neighbours were exchanged.

    Fisher's z of that value, with the deviation of Bonett & Wright (Psychometrika 2000).
    """
    n = freedom + 1
    nearly = 1 - 12 / (n**3 - n)
    z = np.arctanh(nearly) - 1.96 * np.sqrt((1 + nearly**2 / 2) / (n - 3))
    far = float(np.tanh(z))
    return (far, 1.0) if rho > 0 else (-1.0, -far)


def of_perfect_separation(area: float, share: float, freedom: int) -> Interval:
    """Of an area under the curve of 0 or 1, of which every draw is perfect too: as if one pair were exchanged.

    `share`: of the better videos. With the deviation of Hanley & McNeil (Radiology 1982).
    """
    better = min(max((freedom + 1) * share, 1.0), float(freedom))
    worse = freedom + 1 - better
    nearly = 1 - 1 / (better * worse)
    square = nearly**2
    variance = nearly * (1 - nearly) + (better - 1) * (nearly / (2 - nearly) - square)
    variance += (worse - 1) * (2 * square / (1 + nearly) - square)
    far = max(0.0, nearly - 1.96 * float(np.sqrt(variance / (better * worse))))
    return (far, 1.0) if area > 0 else (0.0, 1 - far)
