"""Pairs of methods where there is little to go by: few videos, many pairs, copies of a seed, folds that cross."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from aqa_train import intervals
from aqa_train.comparisons import Figures, Predictions, compare
from aqa_train.intervals import Resamples
from aqa_train.summary import Comparison


def of_videos(true: Any, seeds: Sequence[int], fold: Any = 0, name: str = "") -> Comparison:
    """Videos `name` 0, 1 … in the given folds; their places are in the order of folds."""
    folds = np.broadcast_to(fold, len(true))
    results = [
        {"fold": f, "seed": s, "ids": [f"{name}{i}" for i in part], "true": list(true[part])}
        for s in seeds
        for f in np.unique(folds)
        for part in [np.flatnonzero(folds == f)]
    ]
    return Comparison.of(results, "mean", 1.0, {}, np.random.default_rng(0))


def test_a_p_value_of_few_videos_holds_its_level_and_agrees_with_the_interval() -> None:
    """Of 8 videos, twice the share of draws of the other sign is below .05 in one trial of ten."""
    rng = np.random.default_rng(0)
    p, beside = [], []
    for _ in range(1000):
        draws = Resamples.draw(np.arange(8), np.zeros(8, int), rng, draws=1000)
        a, b = np.abs(rng.normal(size=(2, 8)))
        difference = intervals.mean(a, draws.counts) - intervals.mean(b, draws.counts)
        low, high = draws.interval(difference) or (0.0, 0.0)
        beside.append(low > 0 or high < 0)
        p.append(draws.p_value(difference))
    small = np.array(p) < 0.05
    assert 0.03 < small.mean() < 0.075
    assert (small == beside).mean() > 0.98
    assert (np.array(p) < 0.01).mean() < 0.02


def test_many_pairs_can_be_corrected() -> None:
    """Where no draw has the other sign, how far off 0 lies counts: of 2000 draws none shows less than .001."""
    rng = np.random.default_rng(1)
    draws = Resamples(np.ones((2000, 400)), 399)
    for far in (4, 6):
        by_draw = rng.normal(far, 1, size=2000)
        expected = 2 * stats.t.sf(by_draw.mean() / by_draw.std() / np.sqrt(400 / 399), 399)
        assert draws.p_value(by_draw) == pytest.approx(expected) == draws.p_value(-by_draw)
        assert expected < 0.0005
    # Draws that do not differ say nothing of how far it is.
    assert draws.p_value(np.full(2000, 0.1)) == pytest.approx(2 / 2001, rel=0.2)
    assert draws.p_value(np.zeros(2000)) == 1.0


def test_two_sets_whose_folds_cross_are_drawn_as_one() -> None:
    """By surgeon and by trial: no two videos share both folds, and drawn within both none would ever be drawn twice."""
    rng = np.random.default_rng(2)
    true = rng.normal(size=40)
    rows = {name: true + rng.normal(size=(1, 40)) for name in "ab"}
    sets = []
    for fold in (np.arange(40) // 8, np.arange(40) % 8):
        order = np.argsort(fold, kind="stable")
        sets.append(Predictions(of_videos(true, [0], fold), {name: p[:, order] for name, p in rows.items()}))
    (both,) = compare(sets, ["mae"])
    alone = [compare([one], ["mae"])[0] for one in sets]
    assert both.difference == pytest.approx(alone[0].difference)
    assert np.ptp(both.interval or 0) == pytest.approx(np.ptp(alone[0].interval or 0), rel=0.1)
    assert both.bootstrap == pytest.approx(alone[0].bootstrap, abs=0.1)


def test_a_seed_that_changes_nothing_is_no_further_evidence() -> None:
    """Ridge and SVR on all labels: five seeds are five copies, of which Wilcoxon's p would be a thousandth."""
    rng = np.random.default_rng(3)
    true, fold = rng.normal(size=40), np.arange(40) // 10
    rows = {name: np.tile(true + s * rng.normal(size=40), (5, 1)) for name, s in (("a", 0.5), ("b", 1.5))}
    (five,) = compare([Predictions(of_videos(true, range(5), fold), rows)], ["mae"])
    (one,) = compare([Predictions(of_videos(true, [0], fold), {name: p[:1] for name, p in rows.items()})], ["mae"])
    assert (five.pairs, five.wilcoxon) == (4, 0.125) == (one.pairs, one.wilcoxon)
    # Beside a row that every seed changes, each counts.
    rows["c"] = true + rng.normal(size=(5, 40))
    pairs = {(p.a, p.b): p.pairs for p in compare([Predictions(of_videos(true, range(5), fold), rows)], ["mae"])}
    assert pairs == {("a", "b"): 4, ("a", "c"): 20, ("b", "c"): 20}


def test_differences_that_are_alike_have_one_rank() -> None:
    """Correlations of nine videos are multiples of 1/120, which computed are alike but for rounding."""
    rng = np.random.default_rng(13)
    true = rng.normal(size=9)
    a, b = (true + 0.7 * rng.normal(size=(8, 9)) for _ in "ab")
    computed = [
        stats.spearmanr(p, true).statistic - stats.spearmanr(q, true).statistic for p, q in zip(a, b, strict=True)
    ]
    expected = stats.wilcoxon(np.round(np.array(computed) * 120)).pvalue
    assert stats.wilcoxon(computed).pvalue != pytest.approx(expected)
    (pair,) = compare([Predictions(of_videos(true, range(8)), {"a": a, "b": b})], ["spearman"])
    assert pair.wilcoxon == pytest.approx(expected)


@pytest.mark.parametrize(("videos", "first"), [((1500, 5), (0, 0)), ((20, 20), (0, 5))])
def test_an_average_without_enough_videos_or_without_a_common_seed_has_no_interval(
    videos: tuple[int, int], first: tuple[int, int]
) -> None:
    rng = np.random.default_rng(5)
    sets = []
    for name, n, seed in zip("xy", videos, first, strict=True):
        true = rng.normal(size=n)
        rows = {row: true + rng.normal(size=(2, n)) for row in "ab"}
        sets.append(Predictions(of_videos(true, [seed, seed + 1], name=name), rows))
    assert Figures(sets, "mae").interval("a") is None
    assert all(p.interval is None and p.bootstrap is None for p in compare(sets, ["mae"]))


def test_an_average_that_is_undefined_has_no_interval() -> None:
    rng = np.random.default_rng(6)
    sets = []
    for name in "xy":
        true = rng.normal(size=20)
        rows = {"good": true + rng.normal(size=(1, 20)), "constant": np.full((1, 20), float(name == "x"))}
        sets.append(Predictions(of_videos(true, [0], name=name), rows))
    figures = Figures(sets, "spearman")
    assert figures.interval("good") is not None
    assert figures.interval("constant") is None


def rare(sets: int, right: int, noise: float) -> list[Predictions]:
    """Sets of twelve videos, few of which are right."""
    rng = np.random.default_rng(7)
    true = (np.arange(12) < right).astype(float)
    rows = [{row: true + noise * rng.normal(size=(1, 12)) for row in "ab"} for _ in range(sets)]
    return [Predictions(of_videos(true, [0], name=f"{k} "), one) for k, one in enumerate(rows)]


def test_a_perfect_separation_is_not_certain_though_some_draws_have_none() -> None:
    figures = Figures(rare(2, right=3, noise=0.0), "auc")
    by_draw = figures.by_draw("a", [one.by_row["a"] for one in figures.sets])
    assert 0 < np.isnan(by_draw).mean() < 0.2
    assert figures.interval("a") is None


def test_few_draws_that_have_a_figure_give_no_p_value() -> None:
    """Of twelve sets with one right video each, all have it in one draw of two hundred."""
    (pair,) = compare(rare(12, right=1, noise=1.0), ["auc"])
    assert (pair.interval, pair.bootstrap) == (None, None)
    assert pair.difference is not None
