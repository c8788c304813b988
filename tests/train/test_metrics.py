"""Metrics by hand, against scipy, and where they are undefined."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aqa_train.metrics import (
    evaluate,
    fisher_mean,
    kendall,
    mean_absolute_error,
    mean_std,
    relative_l2,
    spearman,
)


def test_spearman_with_ties_by_hand() -> None:
    # Ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman([10, 20, 20, 30], [1, 3, 2, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=30))
def test_rank_correlations_equal_scipys(pairs: list[tuple[int, int]]) -> None:
    p, t = (list(x) for x in zip(*pairs, strict=True))
    if len(set(p)) == 1 or len(set(t)) == 1:
        assert spearman(p, t) is None
        assert kendall(p, t) is None
    else:
        assert spearman(p, t) == pytest.approx(stats.pearsonr(stats.rankdata(p), stats.rankdata(t)).statistic)
        assert kendall(p, t) == pytest.approx(stats.kendalltau(p, t).statistic)


def test_relative_l2_by_hand() -> None:
    # Errors 1 and 3 of a range of 10: (0.01 + 0.09) / 2 × 100.
    assert relative_l2([1, 7], [0, 10], 10) == pytest.approx(5.0)
    assert relative_l2([1], [1], 0) is None
    # Each by its own action's range: 1/10 and 3/30.
    assert relative_l2([1, 7], [0, 10], [10, 30]) == pytest.approx(1.0)


def test_mean_absolute_error_by_hand() -> None:
    assert mean_absolute_error([1, 5], [2, 2]) == 2.0
    assert mean_absolute_error([], []) is None


def test_fisher_mean_of_the_papers_jigsaws_row() -> None:
    # Table III: .533, .552 and .813 are printed with the average .655; the plain mean is .633.
    assert fisher_mean([0.533, 0.552, 0.813]) == pytest.approx(0.655, abs=5e-4)


def test_fisher_mean_guards_one_and_undefined() -> None:
    assert fisher_mean([None, None]) is None
    assert fisher_mean([]) is None
    assert fisher_mean([None, 0.5, float("nan")]) == pytest.approx(0.5)
    both = fisher_mean([1.0, -1.0])
    assert both is not None
    assert abs(both) < 1e-9
    # atanh(0.99999) is 6.1: tanh of half of it.
    assert fisher_mean([1.0, 0.0]) == pytest.approx(0.99554, abs=1e-5)


@pytest.mark.parametrize("values", [[1.0], [None, -1.0], [0.99999999, None]])
def test_a_single_correlation_is_its_own_mean(values: list[float | None]) -> None:
    assert fisher_mean(values) in values


def test_mean_and_deviation() -> None:
    assert mean_std([1.0, 3.0, None]) == (2.0, pytest.approx(np.sqrt(2)))
    assert mean_std([1.0]) == (1.0, None)
    assert mean_std([None]) == (None, None)


def test_a_constant_prediction_is_null_in_json() -> None:
    found = evaluate([3, 3, 3], [1, 2, 4], 10)
    assert found["spearman"] is None
    assert found["kendall"] is None
    text = json.dumps(found, allow_nan=False)
    assert '"spearman": null' in text
    # Errors 2, 1 and -1: 6 / 3 over the dataset's 10² and over the test's 3².
    assert found["rl2_dataset_range"] == pytest.approx(2.0)
    assert found["rl2_test_range"] == pytest.approx(200 / 9)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="one length"):
        spearman([1, 2], [1, 2, 3])
