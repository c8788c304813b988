"""Pairs of methods: Holm's correction by hand, Wilcoxon as scipy's, the bootstrap against chance and against worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aqa_train import metrics
from aqa_train.comparisons import Side, compare, holm
from aqa_train.metrics import area_under_curve, calibration, selective
from aqa_train.summary import Comparison


def drawn_from(true: Any, seeds: int, folds: int = 1) -> Comparison:
    parts = np.array_split(np.arange(len(true)), folds)
    results = [
        {"fold": f, "seed": s, "ids": [str(i) for i in part], "true": list(true[part])}
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
    pair = next(p for p in compare([Side(comparison, {"good": good, "bad": bad})]) if p.measure == "mae")
    parts = np.array_split(np.arange(60), 3)
    errors = [[np.abs(p[part] - true[part]).mean() for p in side for part in parts] for side in (good, bad)]
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
        pairs = compare([Side(drawn_from(true, 1), {"a": a, "b": b, "exact": exact})])
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
    pairs = compare([Side(comparison, rows)], against="whole")
    assert {(p.a, p.b) for p in pairs} == {("whole", "half"), ("whole", "same")}
    # On what both predicted they are the same.
    assert all(p.difference == 0 and p.bootstrap == 1.0 and p.wilcoxon is None for p in pairs)


def test_too_few_videos_have_no_p_value() -> None:
    true = np.arange(5.0)
    pairs = compare([Side(drawn_from(true, 1), {"a": true[None], "b": -true[None]})])
    assert all(p.bootstrap is None and p.interval is None and p.difference is not None for p in pairs)


def test_an_average_over_datasets_is_surer_than_each() -> None:
    """Of four that are as large and equally hard, its interval is half as wide."""
    rng = np.random.default_rng(3)
    sides = []
    for _ in range(4):
        true = rng.normal(size=100)
        a, b = (true + s * rng.normal(size=(2, 100)) for s in (0.8, 1.2))
        sides.append(Side(drawn_from(true, seeds=2), {"a": a, "b": b}))
    for measure in ("spearman", "mae", "rl2_dataset_range"):
        (average,) = compare(sides, [measure])
        alone = [compare([side], [measure])[0] for side in sides]
        width = [np.ptp(pair.interval) for pair in alone if pair.interval is not None]
        assert len(width) == 4
        assert np.ptp(average.interval or 0) == pytest.approx(np.mean(width) / 2, rel=0.2)
        assert average.pairs == 8
        if measure == "spearman":
            by_seed = [
                [metrics.fisher_mean([stats.spearmanr(p[s], t).statistic for p, t in parts]) for s in range(2)]
                for parts in ([(side.predicted[r], side.tested.true) for side in sides] for r in "ab")
            ]
            assert average.difference == pytest.approx(np.mean(by_seed[0]) - np.mean(by_seed[1]))
        else:
            assert average.difference == pytest.approx(np.mean([pair.difference for pair in alone]))
    # The very same videos twice say no more than once.
    (twice,) = compare([sides[0], sides[0]], ["mae"])
    (once,) = compare([sides[0]], ["mae"])
    assert (twice.interval, twice.bootstrap) == (pytest.approx(once.interval), once.bootstrap)


def test_an_average_is_of_rows_that_every_dataset_has() -> None:
    rng = np.random.default_rng(4)
    true = rng.normal(size=30)
    rows = {name: true[None] + rng.normal(size=(1, 30)) for name in "abc"}
    fewer = {name: rows[name] for name in "ca"}
    (pair,) = compare([Side(drawn_from(true, 1), rows), Side(drawn_from(true, 1), fewer)], ["spearman"])
    assert {pair.a, pair.b} == {"a", "c"}


def test_what_is_right_or_wrong_is_compared_by_the_area_under_the_curve() -> None:
    rng = np.random.default_rng(5)
    right = (np.arange(60) % 2).astype(float)
    a, b = (right + s * rng.normal(size=(3, 60)) for s in (0.5, 2.0))
    found = {p.measure: p for p in compare([Side(drawn_from(right, seeds=3, folds=2), {"a": a, "b": b})])}
    assert set(found) == {"spearman", "mae", "auc"}
    folds = np.array_split(np.arange(60), 2)
    areas = [[area_under_curve(p[f], right[f]) for p in side for f in folds] for side in (a, b)]
    assert found["auc"].difference == pytest.approx(np.mean(areas[0]) - np.mean(areas[1]))
    assert found["auc"].wilcoxon == pytest.approx(stats.wilcoxon(np.subtract(*areas)).pvalue)
    low, high = found["auc"].interval or (0.0, 0.0)
    assert 0 < low < found["auc"].difference < high
    # Scores of two values in one fold by chance are not of right and wrong.
    scores = np.concatenate([[1.0, 2.0, 1.0, 2.0], np.arange(10.0)])
    other = Side(drawn_from(scores, seeds=1, folds=2), {"a": scores[None], "b": -scores[None]})
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
