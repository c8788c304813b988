"""Pairs of methods: Holm's correction by hand, Wilcoxon as scipy's, the bootstrap against chance and against worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aqa_train import metrics
from aqa_train.comparisons import Figures, Predictions, compare, holm
from aqa_train.metrics import area_under_curve, calibration, selective
from aqa_train.summary import Comparison


def drawn_from(true: Any, seeds: int, folds: int = 1, ids: Sequence[str] | None = None) -> Comparison:
    parts = np.array_split(np.arange(len(true)), folds)
    ids = [str(i) for i in range(len(true))] if ids is None else ids
    results = [
        {"fold": f, "seed": s, "ids": [ids[i] for i in part], "true": list(true[part])}
        for s in range(seeds)
        for f, part in enumerate(parts)
    ]
    return Comparison.of(results, "mean", 1.0, {}, np.random.default_rng(0))


def test_holm_by_hand() -> None:
    # Sorted .01 × 4, .02 × 3, .03 × 2, .9 × 1; never smaller than the one before.
    assert holm([0.03, None, 0.01, 0.9, 0.02]) == pytest.approx([0.06, None, 0.04, 0.9, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_the_p_value_and_bonferroni(values: list[float]) -> None:
    found = holm(values)
    for p, corrected in zip(values, found, strict=True):
        assert corrected is not None
        assert p <= corrected <= min(1.0, p * len(values)) + 1e-12


def test_wilcoxon_is_scipys_over_seeds_and_folds() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(size=60)
    comparison = drawn_from(true, seeds=3, folds=3)
    good, bad = (true + s * rng.normal(size=(3, 60)) for s in (0.5, 2.0))
    pair = next(p for p in compare([Predictions(comparison, {"good": good, "bad": bad})]) if p.measure == "mae")
    parts = np.array_split(np.arange(60), 3)
    errors = [[np.abs(p[part] - true[part]).mean() for p in row for part in parts] for row in (good, bad)]
    assert pair.pairs == 9
    assert pair.wilcoxon == pytest.approx(stats.wilcoxon(np.subtract(*errors)).pvalue)
    assert pair.difference == pytest.approx(np.mean(errors[0]) - np.mean(errors[1]))


def test_the_bootstrap_finds_worth_and_holds_its_level() -> None:
    """Of two methods that are equally good, p is below .05 in about one of twenty trials."""
    rng = np.random.default_rng(1)
    small = 0
    for _ in range(60):
        true = rng.normal(size=80)
        a, b, exact = (true + s * rng.normal(size=(1, 80)) for s in (1.0, 1.0, 0.1))
        pairs = compare([Predictions(drawn_from(true, 1), {"a": a, "b": b, "exact": exact})])
        p = {(q.a, q.b): q.bootstrap for q in pairs if q.measure == "spearman"}
        small += p["a", "b"] < 0.05
        assert p["a", "exact"] < 0.01
    assert small <= 9  # of 60 with probability .05 each, more in one of two thousand


def test_against_one_row_and_with_missing_folds() -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(size=40)
    comparison = drawn_from(true, seeds=2, folds=2)
    whole = true + rng.normal(size=(2, 40))
    half = whole.copy()
    half[:, :20] = np.nan
    rows = {"whole": whole, "half": half, "same": whole}
    pairs = [p for m in ("spearman", "mae") for p in Figures([Predictions(comparison, rows)], m).pairs("whole")]
    assert {(p.a, p.b) for p in pairs} == {("whole", "half"), ("whole", "same")}
    # On what both predicted they are the same.
    assert all(p.difference == 0 and p.bootstrap == 1.0 and p.wilcoxon is None for p in pairs)


def test_too_few_videos_have_no_p_value() -> None:
    true = np.arange(5.0)
    pairs = compare([Predictions(drawn_from(true, 1), {"a": true[None], "b": -true[None]})])
    assert all(p.bootstrap is None and p.interval is None and p.difference is not None for p in pairs)


def test_an_average_over_datasets_is_surer_than_each() -> None:
    """Of four that are as large and equally hard, its interval is half as wide."""
    rng = np.random.default_rng(3)
    sets = []
    for k in range(4):
        true = rng.normal(size=100)
        a, b = (true + s * rng.normal(size=(2, 100)) for s in (0.8, 1.2))
        tested = drawn_from(true, seeds=2, ids=[f"{k} {i}" for i in range(100)])
        sets.append(Predictions(tested, {"a": a, "b": b}))
    for measure in ("spearman", "mae", "rl2_dataset_range"):
        (average,) = compare(sets, [measure])
        alone = [compare([one], [measure])[0] for one in sets]
        width = [np.ptp(pair.interval) for pair in alone if pair.interval is not None]
        assert len(width) == 4
        assert np.ptp(average.interval or 0) == pytest.approx(np.mean(width) / 2, rel=0.2)
        assert average.pairs == 2
        if measure == "spearman":
            by_seed = [
                [metrics.fisher_mean([stats.spearmanr(p[s], t).statistic for p, t in parts]) for s in range(2)]
                for parts in ([(one.by_row[r], one.tested.true) for one in sets] for r in "ab")
            ]
            assert average.difference == pytest.approx(np.mean(by_seed[0]) - np.mean(by_seed[1]))
        else:
            assert average.difference == pytest.approx(np.mean([pair.difference for pair in alone]))


def test_the_same_videos_in_two_columns_are_no_surer_than_in_one() -> None:
    """Whatever order they come in, and though one column lacks a video."""
    rng = np.random.default_rng(6)
    true = rng.normal(size=60)
    rows = {name: true[None] + s * rng.normal(size=(1, 60)) for name, s in (("a", 0.8), ("b", 1.2))}
    once = Predictions(drawn_from(true, 1), rows)
    width = np.ptp(compare([once], ["mae"])[0].interval or 0)
    order = rng.permutation(60)
    for kept in (np.arange(60), order, order[1:]):
        ids = [str(i) for i in kept]
        tested = drawn_from(true[kept], 1, ids=ids)
        other = Predictions(tested, {name: p[:, kept] for name, p in rows.items()})
        assert np.ptp(compare([once, other], ["mae"])[0].interval or 0) == pytest.approx(width, rel=0.08)


@pytest.mark.parametrize("order", ["by chance", "by score"])
def test_other_videos_in_the_same_order_are_drawn_apart(order: str) -> None:
    """Ten sets whose easy videos are the first: were they drawn alike, the interval would be three times as wide."""
    rng = np.random.default_rng(7)
    sets = []
    for k in range(10):
        true = rng.normal(size=60)
        error = np.sort(rng.exponential(size=(2, 60)), axis=1) if order == "by score" else rng.exponential(size=(2, 60))
        tested = drawn_from(true, 1, ids=[f"{k} {i}" for i in range(60)])
        sets.append(Predictions(tested, {"a": true + error[:1], "b": true + 2 * error[1:]}))
    width = [np.ptp(compare([one], ["mae"])[0].interval or 0) for one in sets]
    assert np.ptp(compare(sets, ["mae"])[0].interval or 0) == pytest.approx(np.mean(width) / np.sqrt(10), rel=0.2)


def test_a_row_that_has_no_figure_in_one_set_has_no_average() -> None:
    """It would win by leaving out the hard one; with other seeds it is compared on those that it has everywhere."""
    rng = np.random.default_rng(8)
    true = rng.normal(size=(2, 40))
    a, b = (true[:, None] + s * rng.normal(size=(2, 3, 40)) for s in (0.5, 1.0))
    constant = a.copy()
    constant[1] = 1.0
    ids = [[f"{k} {i}" for i in range(40)] for k in range(2)]
    tested = [drawn_from(true[k], 3, ids=ids[k]) for k in range(2)]
    assert not compare([Predictions(t, {"a": constant[k], "b": b[k]}) for k, t in enumerate(tested)], ["spearman"])
    once = a.copy()
    once[1, 0] = np.nan
    (pair,) = compare([Predictions(t, {"a": once[k], "b": b[k]}) for k, t in enumerate(tested)], ["mae"])
    errors = [np.abs(p - true[:, None])[:, 1:].mean() for p in (a, b)]
    assert pair.difference == pytest.approx(errors[0] - errors[1])
    low, high = pair.interval or (0.0, 0.0)
    assert low < pair.difference < high
    # The second set was trained with one seed fewer.
    fewer = [tested[0], drawn_from(true[1], 2, ids=ids[1])]
    (pair,) = compare([Predictions(t, {"a": a[k, : 3 - k], "b": b[k, : 3 - k]}) for k, t in enumerate(fewer)], ["mae"])
    errors = [np.abs(p - true[:, None])[:, :2].mean() for p in (a, b)]
    assert pair.difference == pytest.approx(errors[0] - errors[1])
    assert pair.pairs == 2


def test_a_row_that_lacks_a_fold_costs_a_third_row_nothing() -> None:
    rng = np.random.default_rng(9)
    true = rng.normal(size=60)
    rows = {name: true[None] + rng.normal(size=(1, 60)) for name in "abc"}
    rows["b"][:, :20] = np.nan
    tested = drawn_from(true, 1, folds=3)
    pairs = {(p.a, p.b): p for p in compare([Predictions(tested, rows)], ["mae"])}
    (alone,) = compare([Predictions(tested, {name: rows[name] for name in "ac"})], ["mae"])
    assert (pairs["a", "c"].interval, pairs["a", "c"].bootstrap) == (alone.interval, alone.bootstrap)
    shorter = {name: np.where(np.isnan(rows["b"]), np.nan, rows[name]) for name in "ab"}
    (half,) = compare([Predictions(tested, shorter)], ["mae"])
    assert (pairs["a", "b"].interval, pairs["a", "b"].difference) == (half.interval, half.difference)


def test_a_set_of_few_videos_widens_the_interval_or_takes_it_away() -> None:
    rng = np.random.default_rng(10)
    found = {}
    for few in (100, 9, 5):
        sets = []
        for k, n in enumerate((100, few)):
            true = rng.normal(size=n)
            rows = {name: true[None] + rng.normal(size=(1, n)) for name in "ab"}
            sets.append(Predictions(drawn_from(true, 1, ids=[f"{k} {i}" for i in range(n)]), rows))
        found[few] = compare(sets, ["mae"])[0]
        if few == 9:
            # By the 9 degrees of freedom of the small one, not the 99 of the large one.
            together = Figures(sets, "mae").sets
            by_draw = [one.tested.by_draw("mae", one.by_row["a"]) - one.tested.by_draw("mae", one.by_row["b"])
                       for one in together]  # fmt: skip
            expected = together[1].tested.draws.interval(np.mean(by_draw, axis=0))
            assert together[1].tested.draws.freedom == 8
            assert found[9].interval == pytest.approx(expected)
            assert np.ptp(expected or 0) > 1.1 * np.ptp(np.quantile(np.mean(by_draw, axis=0), [0.025, 0.975]))
    assert found[100].interval is not None
    assert found[5].interval is None
    assert found[5].bootstrap is None
    assert found[5].difference is not None


def test_what_no_draw_changes_has_no_interval() -> None:
    """Two sets in perfect order: every draw of them is too."""
    sets = []
    for k in range(2):
        true = np.arange(9.0)
        sets.append(Predictions(drawn_from(true, 1, ids=[f"{k} {i}" for i in range(9)]), {"a": true[None]}))
    assert Figures(sets, "spearman").interval("a") is None
    assert Figures(sets, "mae").interval("a") == (0.0, 0.0)


def test_draws_without_one_of_the_two_values_say_nothing_of_an_average() -> None:
    """One right video of twelve is in two of three draws; where it is not, the other set alone is no average."""
    rng = np.random.default_rng(11)
    few, many = (np.arange(12) == 0).astype(float), (np.arange(40) % 2).astype(float)
    sets = [
        Predictions(drawn_from(few, 1, ids=[f"a {i}" for i in range(12)]), {"a": few[None]}),
        Predictions(drawn_from(many, 1, ids=[f"b {i}" for i in range(40)]), {"a": rng.normal(size=(1, 40))}),
    ]
    low, high = Figures(sets, "auc").interval("a") or (0.0, 0.0)
    alone = Figures(sets[1:], "auc").interval("a") or (0.0, 0.0)
    assert low > (1 + alone[0]) / 2 - 0.05  # the first is 1 in every draw that has it
    assert high < (1 + alone[1]) / 2 + 0.05


def test_wilcoxon_of_an_average_is_over_its_seeds_and_folds() -> None:
    """As many folds: fold by fold; else by seed, or the set with most folds would decide."""
    rng = np.random.default_rng(12)
    for folds, pairs in (((3, 3), 6), ((3, 1), 2)):
        sets = []
        for k, number in enumerate(folds):
            true = rng.normal(size=30)
            rows = {name: true + rng.normal(size=(2, 30)) for name in "ab"}
            sets.append(Predictions(drawn_from(true, 2, number, ids=[f"{k} {i}" for i in range(30)]), rows))
        assert compare(sets, ["mae"])[0].pairs == pairs


def test_an_average_is_of_rows_that_every_set_has() -> None:
    rng = np.random.default_rng(4)
    true = rng.normal(size=30)
    rows = {name: true[None] + rng.normal(size=(1, 30)) for name in "abc"}
    fewer = {name: rows[name] for name in "ca"}
    (pair,) = compare([Predictions(drawn_from(true, 1), rows), Predictions(drawn_from(true, 1), fewer)], ["spearman"])
    assert {pair.a, pair.b} == {"a", "c"}


def test_what_is_right_or_wrong_is_compared_by_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(5)
    right = (np.arange(60) % 2).astype(float)
    a, b = (right + s * rng.normal(size=(3, 60)) for s in (0.5, 2.0))
    found = {p.measure: p for p in compare([Predictions(drawn_from(right, seeds=3, folds=2), {"a": a, "b": b})])}
    assert set(found) == {"spearman", "mae", "auc"}
    folds = np.array_split(np.arange(60), 2)
    areas = [[area_under_curve(p[f], right[f]) for p in side for f in folds] for side in (a, b)]
    assert found["auc"].difference == pytest.approx(np.mean(areas[0]) - np.mean(areas[1]))
    assert found["auc"].wilcoxon == pytest.approx(stats.wilcoxon(np.subtract(*areas)).pvalue)
    low, high = found["auc"].interval or (0.0, 0.0)
    assert 0 < low < found["auc"].difference < high
    # Scores of two values in one fold by chance are not of right and wrong.
    scores = np.concatenate([[1.0, 2.0, 1.0, 2.0], np.arange(10.0)])
    other = Predictions(drawn_from(scores, seeds=1, folds=2), {"a": scores[None], "b": -scores[None]})
    assert {p.measure for p in compare([other])} == {"spearman", "mae"}


def test_calibration_by_hand() -> None:
    error = np.arange(40.0)
    assert calibration(error, error) == pytest.approx(1)
    assert calibration(-error, error) == pytest.approx(-1)
    assert calibration(error[:19], error[:19]) is None
    assert calibration(np.ones(40), error[::-1]) is None
    # Within a part the order says nothing: only the parts' means count.
    within = error.reshape(10, 4)[:, ::-1].ravel()
    assert calibration(error, within) == pytest.approx(1)


def test_the_surest_are_kept_first() -> None:
    error = np.arange(1, 11.0)
    np.testing.assert_allclose(selective(error, error), [np.mean(error[:n]) for n in range(1, 11)])
    assert selective(-error, error)[0] == 10
    assert selective(error, error)[-1] == selective(-error, error)[-1]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=20))
def test_auc_is_the_share_of_pairs_in_order(videos: list[tuple[int, bool]]) -> None:
    p, t = (np.array(x, dtype=float) for x in zip(*videos, strict=True))
    if len(set(t)) == 1:
        assert area_under_curve(p, t) is None
        return
    pairs = [(a > b) + 0.5 * (a == b) for a in p[t == 1] for b in p[t == 0]]
    assert area_under_curve(p, t) == pytest.approx(np.mean(pairs))
