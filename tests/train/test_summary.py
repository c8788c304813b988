"""The rows of metrics.json: averages over folds and seeds, intervals over test videos, verdicts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from aqa_train import intervals, metrics
from aqa_train.intervals import Resamples
from aqa_train.summary import Comparison, as_text, summarise


def result(method: str, fold: int, seed: int, ids: list[str], true: Any, selection: str, predicted: Any) -> Any:
    return {"method": method, "fold": fold, "seed": seed, "ids": ids, "true": list(true),
            "predicted": {selection: list(predicted)}, "seconds": 1.5}  # fmt: skip


def run(
    predictions: dict[str, Any], true: Any, *, folds: int = 1, over_folds: Any = "pooled", group: Any = None
) -> list[dict[str, Any]]:
    """Rows of methods whose predictions are (seeds, videos), or of baselines, where they are (videos,)."""
    true = np.asarray(true, dtype=float)
    ids = [f"v{i}" for i in range(len(true))]
    parts = np.array_split(np.arange(len(true)), folds)
    results = []
    seeds = max(np.ndim(p) and len(p) if np.ndim(p) == 2 else 1 for p in predictions.values())
    for name, values in predictions.items():
        p = np.asarray(values, dtype=float)
        for seed in range(seeds):
            mine = p[seed] if p.ndim == 2 else p
            for fold, part in enumerate(parts):
                results.append(result(name, fold, seed, [ids[i] for i in part], true[part],
                                      "last" if p.ndim == 2 else "baseline", mine[part]))  # fmt: skip
    tested = Comparison.of(results, over_folds, 100.0, group or {}, np.random.default_rng(0))
    return summarise(results, tested)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12),
    st.integers(0, 1000),
)
def test_a_draws_correlation_is_that_of_its_videos(pairs: list[tuple[int, int]], seed: int) -> None:
    p, t = np.array(pairs, dtype=float).T
    counts = np.random.default_rng(seed).multinomial(len(p), np.full(len(p), 1 / len(p)), size=5).astype(float)
    found = intervals.spearman(intervals.ranks(p, counts), intervals.ranks(t, counts), counts)
    for drawn, value in zip(counts.astype(int), found, strict=True):
        videos = np.repeat(np.arange(len(p)), drawn)
        expected = metrics.spearman(p[videos], t[videos])
        if expected is None:
            assert np.isnan(value) if np.ptp(t[videos]) == 0 else value == 0
        else:
            assert value == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=12), st.integers(0, 1000))
def test_a_draws_area_under_the_curve_is_that_of_its_videos(pairs: list[tuple[int, bool]], seed: int) -> None:
    p, t = np.array(pairs, dtype=float).T
    counts = np.random.default_rng(seed).multinomial(len(p), np.full(len(p), 1 / len(p)), size=5).astype(float)
    found = intervals.area_under_curve(intervals.ranks(p, counts), t, counts)
    for drawn, value in zip(counts.astype(int), found, strict=True):
        videos = np.repeat(np.arange(len(p)), drawn)
        expected = metrics.area_under_curve(p[videos], t[videos])
        assert np.isnan(value) if expected is None else value == pytest.approx(expected, abs=1e-12)


def test_a_perfect_separation_of_few_videos_is_not_certain() -> None:
    """Of 20 videos with a true area of .95, the interval holds it in nearly as many trials as it says."""
    rng = np.random.default_rng(0)
    shift = float(np.sqrt(2) * stats.norm.ppf(0.95))
    right = np.repeat([0.0, 1.0], 10)
    held = []
    for _ in range(200):
        (row,) = run({"aa": [right * shift + rng.normal(size=20)]}, right)
        low, high = row["auc"]["interval"]
        assert low < high
        held.append(low <= 0.95 <= high)
    assert np.mean(held) > 0.9
    (row,) = run({"aa": [-right]}, right)
    assert row["auc"]["interval"][0] == 0
    assert 0.05 < row["auc"]["interval"][1] < 0.3


def test_the_area_under_the_curve_is_shown_of_right_and_wrong_alone() -> None:
    rng = np.random.default_rng(0)
    right = rng.permutation(np.repeat([0.0, 1.0], 20))
    near = [right + rng.normal(size=40) for _ in range(2)]
    protocol = dict.fromkeys(("labelled", "unlabelled", "test", "test_all", "seeds", "folds"), 1) | {"streams": ["rgb"]}
    protocol |= {"interval": {"level": 0.95, "of": "videos"}}

    def table(rows: Any) -> str:
        return as_text({"protocol": protocol, "rows": rows, "left_out": []})

    # By fold another constant: its order is that of the folds.
    rows = run({"aa": near, "mean-score": np.repeat([0.2, 0.6], 20)}, right, folds=2)
    areas = [metrics.area_under_curve(p, right) for p in near]
    assert rows[0]["auc"]["mean"] == pytest.approx(np.mean(areas))
    low, high = rows[0]["auc"]["interval"]
    assert low < rows[0]["auc"]["mean"] < high
    assert (rows[1]["auc"]["mean"], rows[1]["auc"]["interval"]) == (0.5, (0.5, 0.5))
    assert f"{np.mean(areas):.3f} ± {np.std(areas, ddof=1):.3f} [{low:.3f}, {high:.3f}]" in table(rows)
    assert "AUC" not in table(run({"aa": near}, right + np.arange(40) // 20))


def test_intervals_are_those_of_scipys_bootstrap_save_for_the_expansion() -> None:
    """Of 60 videos the tails are those of t with 59 degrees of freedom; the rest is the noise of the draws."""
    tail = stats.norm.cdf(stats.t.ppf(0.025, 59) * np.sqrt(60 / 59))
    rng = np.random.default_rng(0)
    true = rng.normal(size=60)
    predicted = true + rng.normal(size=60)
    draws = Resamples.draw(np.arange(60), np.zeros(60, int), rng, draws=9999)
    ranked = [intervals.ranks(v, draws.counts) for v in (predicted, true)]
    found = {
        "spearman": draws.interval(intervals.spearman(*ranked, draws.counts)),
        "mae": draws.interval(intervals.mean(np.abs(predicted - true), draws.counts)),
    }
    for name, statistic in {
        "spearman": lambda p, t: stats.spearmanr(p, t).statistic,
        "mae": lambda p, t: np.abs(p - t).mean(),
    }.items():
        expected = stats.bootstrap((predicted, true), statistic, paired=True, vectorized=False, n_resamples=9999,
                                   method="percentile", confidence_level=1 - 2 * tail,
                                   rng=np.random.default_rng(1)).confidence_interval  # fmt: skip
        width = expected.high - expected.low
        assert found[name] is not None
        np.testing.assert_allclose(found[name], expected, atol=0.05 * width)


def test_intervals_of_few_videos_hold_the_true_correlation() -> None:
    """A plain percentile interval of 8 videos does so in about 93 %, this one in about 98 %; 4 σ below 95 %."""
    rng = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(0.3)  # of normal scores whose correlation is .6
    held = 0
    for _ in range(200):
        true = rng.normal(size=8)
        predicted = 0.6 * true + 0.8 * rng.normal(size=8)
        (row,) = run({"aa": [predicted]}, true)
        low, high = row["spearman"]["interval"]
        held += low <= truth <= high
    assert held >= 200 * 0.95 - 4 * np.sqrt(200 * 0.95 * 0.05)


def test_two_videos_tell_nothing() -> None:
    rows = run({"aa": [[1, 2], [2, 5]], "mean-score": [3, 3], "ridge": [4, 3]}, [9, 4])
    assert [r["spearman"]["mean"] for r in rows] == [pytest.approx(-1), None, pytest.approx(1)]
    assert all(r["spearman"]["interval"] is None and r["mae"]["interval"] is None for r in rows)
    assert [r["verdict"] for r in rows[:2]] == ["too few test videos to tell (n=2)", None]
    json.dumps(rows, allow_nan=False)


def test_a_perfect_order_of_few_videos_is_not_certain() -> None:
    true = np.arange(8.0)
    (up, down, _) = run({"aa": [true], "down": [-true], "mean-score": np.full(8, 3.5)}, true)
    low, high = up["spearman"]["interval"]
    assert (up["spearman"]["mean"], high) == (1.0, 1.0)
    assert 0.7 < low < 0.9
    assert down["spearman"]["interval"] == (-1.0, -low)


TRUE = np.random.default_rng(0).normal(50, 10, size=60)
NOISE = np.random.default_rng(1).normal(size=(4, 60))
MEAN = np.full(60, 50.0)
GOOD, FAIR = TRUE + 3 * NOISE[0], TRUE + 12 * NOISE[1]


@pytest.mark.parametrize(
    ("predicted", "ridge", "verdict"),
    [
        (GOOD, FAIR, "beats ridge"),
        (FAIR, GOOD, "beats the mean score, does not beat ridge"),
        (TRUE + 3.1 * NOISE[2], TRUE + 3.3 * NOISE[3], "beats the mean score, cannot be told from ridge (n=60)"),
        (-TRUE, GOOD, "does not beat the mean score; its errors are larger than the mean score's"),
        (MEAN, GOOD, "does not beat the mean score"),
        (GOOD + 40, FAIR, "beats ridge; its errors are larger than the mean score's"),
        (50 + NOISE[0] + 0.01 * (TRUE - 50), FAIR, "cannot be told from the mean score (n=60)"),
        (FAIR, MEAN, "beats ridge"),
    ],
)
def test_verdicts(predicted: Any, ridge: Any, verdict: str) -> None:
    rows = run({"aa": [predicted], "mean-score": MEAN, "ridge": ridge}, TRUE)
    assert rows[0]["verdict"] == verdict
    assert rows[1]["verdict"] is None
    json.dumps(rows, allow_nan=False)


def test_equal_methods_seldom_beat_each_other() -> None:
    """Two predictions of the same quality, on 20 videos: one beats the other in at most 2.5 % of trials, + 3 σ."""
    rng = np.random.default_rng(0)
    beats = 0
    for _ in range(150):
        true = rng.normal(size=20)
        rows = run({"aa": [true + rng.normal(size=20)], "mean-score": np.zeros(20),
                    "ridge": true + rng.normal(size=20)}, true)  # fmt: skip
        beats += rows[0]["verdict"] == "beats ridge"
    assert beats <= 150 * 0.025 + 3 * np.sqrt(150 * 0.025 * 0.975)


def test_pooled_figures_are_those_of_all_videos_and_averaged_ones_of_each_fold() -> None:
    seeds = [GOOD, FAIR]
    (pooled,) = run({"aa": seeds}, TRUE, folds=4, over_folds="pooled")
    assert pooled["spearman"]["by_seed"] == pytest.approx([metrics.spearman(p, TRUE) for p in seeds])
    assert pooled["mae"]["mean"] == pytest.approx(np.mean([np.abs(p - TRUE).mean() for p in seeds]))
    together = np.mean(seeds, axis=0)
    assert pooled["ensemble"]["spearman"]["value"] == pytest.approx(metrics.spearman(together, TRUE))
    (mean,) = run({"aa": seeds}, TRUE, folds=4, over_folds="mean")
    parts = np.array_split(np.arange(60), 4)
    expected = [metrics.fisher_mean([metrics.spearman(p[i], TRUE[i]) for i in parts]) for p in seeds]
    assert mean["spearman"]["by_seed"] == pytest.approx(expected)
    for row in (pooled, mean):
        for name in ("spearman", "mae", "rl2_dataset_range"):
            low, high = row[name]["interval"]
            assert low < row[name]["mean"] < high


def test_an_interval_is_about_the_seeds_that_have_a_figure() -> None:
    """A seed that collapsed to a constant is no part of the mean, so it may not pull the interval towards 0."""
    (alone,), (beside,) = run({"aa": [GOOD]}, TRUE), run({"aa": [GOOD, MEAN]}, TRUE)
    assert beside["spearman"]["by_seed"] == [alone["spearman"]["mean"], None]
    assert beside["spearman"]["interval"] == alone["spearman"]["interval"]


@pytest.mark.parametrize("over_folds", ["mean", "pooled"])
def test_a_fold_without_a_prediction_is_left_out_of_figure_and_interval(over_folds: Any) -> None:
    """As one in which every epoch's validation scores are constant, so that none is the best."""
    ids = [f"v{i}" for i in range(60)]
    results = [
        result("aa", fold, seed, ids[30 * fold : 30 * fold + 30], TRUE[30 * fold : 30 * fold + 30], "last", MEAN[:30])
        for seed in (0, 1)
        for fold in (0, 1)
    ]
    for r in results[1:]:
        r["predicted"]["best-on-validation"] = GOOD[[int(i[1:]) for i in r["ids"]]].tolist()
    tested = Comparison.of(results, over_folds, 100.0, {}, np.random.default_rng(0))
    _, row = summarise(results, tested)
    (whole,) = run({"aa": [GOOD]}, TRUE, folds=2, over_folds=over_folds)
    for name in ("spearman", "mae"):
        assert row[name]["defined"] == 3
        low, high = row[name]["interval"]
        assert low < row[name]["mean"] < high
        # The other seed predicted the videos of that fold.
        assert row["ensemble"][name]["value"] == pytest.approx(whole[name]["mean"])
    json.dumps(row, allow_nan=False)


def test_a_row_that_lacks_a_fold_is_compared_on_the_others() -> None:
    """Ridge is bad where the method says nothing: that is no merit of the method."""
    halves, better = (slice(0, 30), slice(30, 60)), np.concatenate([-TRUE[:30], TRUE[30:]])
    ids = [f"v{i}" for i in range(60)]
    results = [result("aa", 1, 0, ids[30:], TRUE[30:], "last", FAIR[30:])]
    for fold, part in enumerate(halves):
        results += [
            result(name, fold, 0, ids[part], TRUE[part], "baseline", values[part])
            for name, values in (("mean-score", MEAN), ("ridge", better))
        ]
    tested = Comparison.of(results, "mean", 100.0, {}, np.random.default_rng(0))
    row = next(r for r in summarise(results, tested) if r["method"] == "aa")
    assert (row["test_videos"], row["spearman"]["defined"], row["spearman"]["of"]) == (30, 1, 2)
    expected = metrics.spearman(FAIR[30:], TRUE[30:]) - 1  # type: ignore[operator]
    assert row["against"]["ridge"]["spearman"]["difference"] == pytest.approx(expected)
    assert row["verdict"] == "beats the mean score, does not beat ridge"


def test_constants_that_differ_by_fold_rank_nothing() -> None:
    """The mean of the others' scores is low where a fold's are high: pooled, it would rank them backwards."""
    constants = np.repeat([3.0, 2.0, 1.0, 0.0], 3)
    (row, _) = run({"aa": [constants], "mean-score": constants}, np.arange(12.0), folds=4)
    assert row["spearman"]["mean"] is None
    assert row["spearman"]["interval"] is None
    assert row["verdict"].startswith("does not beat the mean score")


def test_whole_groups_are_drawn() -> None:
    """Ten views of each of 8 athletes are not 80 independent videos."""
    rng = np.random.default_rng(0)
    athlete = np.repeat(np.arange(8), 10)
    true = np.repeat(rng.normal(size=8), 10)
    predicted = np.repeat(rng.normal(size=8), 10) + true
    group = {f"v{i}": f"a{a}" for i, a in enumerate(athlete)}
    (alone,) = run({"aa": [predicted]}, true)
    (grouped,) = run({"aa": [predicted]}, true, group=group)
    width = [np.ptp(r["spearman"]["interval"]) for r in (alone, grouped)]
    assert width[1] > 2 * width[0]
    few = {i: f"a{int(a[1:]) // 2}" for i, a in group.items()}
    (row,) = run({"aa": [predicted]}, true, group=few)
    assert row["verdict"] == "too few test groups to tell (n=4)"


def test_what_no_seed_changes_has_no_deviation() -> None:
    rows = run({"aa": [[1, 2, 3, 4], [2, 5, 6, 7]], "bb": [[1, 2, 3, 4], [2, 1, 3, 4]]}, [9, 4, 3, 2])
    assert rows[0]["spearman"]["std"] == 0
    protocol = dict.fromkeys(("labelled", "unlabelled", "test", "test_all", "seeds", "folds"), 1) | {"streams": ["rgb"]}
    summary = {"protocol": protocol, "left_out": []}
    shown = {name: as_text({**summary, "rows": r}) for name, r in (("one", rows[:1]), ("both", rows))}
    assert "±" not in shown["one"]
    assert "-1.000   " in shown["one"]
    assert shown["both"].count("±") == 2  # bb's, and the legend


def test_undefined_folds_and_seeds_are_counted() -> None:
    """Two folds of two seeds: the baseline lacks a fold, a method's correlation is undefined but once."""
    ids, true = ["a", "b"], [1.0, 2.0]
    results = [
        result("aa", f, s, ids, true, "last", [1.0, 2.0] if f == s == 0 else [3.0, 3.0]) for s in (0, 1) for f in (0, 1)
    ]
    results[0]["predicted"]["best-on-validation"] = [1.0, 2.0]
    results += [result("difficulty-only", 0, s, ids, true, "baseline", true) for s in (0, 1)]
    tested = Comparison.of(results, "mean", 10.0, {}, np.random.default_rng(0))
    rows = summarise(results, tested)
    last, best, difficulty = rows
    one = pytest.approx(1.0)
    assert last["spearman"] == {"mean": one, "std": None, "by_seed": [one, None], "defined": 1, "of": 4,
                                "interval": None}  # fmt: skip
    assert (last["mae"]["defined"], best["mae"]["defined"], difficulty["mae"]["defined"]) == (4, 1, 2)
    protocol = dict.fromkeys(("labelled", "unlabelled", "test", "test_all", "seeds", "folds"), 1) | {"streams": ["rgb"]}
    lines = as_text({"protocol": protocol, "rows": rows, "left_out": []}).splitlines()
    shown = [x.split("   ") for x in lines if x.startswith(("aa  ", "difficulty-only  "))]
    assert [c.strip() for c in shown[0] if c.strip()] == [
        *("aa", "last", "1.000 (1 of 4)", "0.625 ± 0.177", "1.12", "1.88", "1.5 s")
    ]
    assert next(x for x in lines if x.startswith("difficulty")).count("(2 of 4)") == 4
