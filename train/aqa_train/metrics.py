"""How good predictions are: rank correlation with ties, relative error, and their averages.

Undefined values are `None`, never NaN, because results are written as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

CLIP = 1 - 1e-5
"""Of correlations that are averaged: atanh(±1) is infinite, and one perfect fold would hide all others."""


def _pair(predicted: ArrayLike, true: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    p, t = np.asarray(predicted, dtype=np.float64), np.asarray(true, dtype=np.float64)
    if p.shape != t.shape or p.ndim != 1:
        raise ValueError(f"predicted and true must be vectors of one length, got {p.shape} and {t.shape}")
    return p, t


def _rankable(p: NDArray[np.float64], t: NDArray[np.float64]) -> bool:
    return len(p) > 1 and bool(np.isfinite(p).all() and np.isfinite(t).all() and np.ptp(p) > 0 and np.ptp(t) > 0)


def spearman(predicted: ArrayLike, true: ArrayLike) -> float | None:
    """Rank correlation, average ranks for ties; None where either side is constant or too short."""
    from scipy.stats import spearmanr

    p, t = _pair(predicted, true)
    return float(spearmanr(p, t).statistic) if _rankable(p, t) else None


def kendall(predicted: ArrayLike, true: ArrayLike) -> float | None:
    """Kendall's tau-b; None where either side is constant or too short."""
    from scipy.stats import kendalltau

    p, t = _pair(predicted, true)
    return float(kendalltau(p, t).statistic) if _rankable(p, t) else None


def mean_absolute_error(predicted: ArrayLike, true: ArrayLike) -> float | None:
    """In the scores' own units."""
    p, t = _pair(predicted, true)
    return float(np.abs(p - t).mean()) if len(p) else None


def relative_l2(predicted: ArrayLike, true: ArrayLike, span: ArrayLike) -> float | None:
    """R-ℓ2 × 100 (Yu et al., CoRe, ICCV 2021): the mean of (error / span)², times 100.

    `span` is highest − lowest score, one number or one a video. The paper's is that of the video's action; much code
    takes that of the test labels. Both are reported.
    """
    p, t = _pair(predicted, true)
    width = np.broadcast_to(np.asarray(span, dtype=np.float64), p.shape)
    if not len(p) or not (width > 0).all():
        return None
    return float(np.square((p - t) / width).mean() * 100)


def area_under_curve(predicted: ArrayLike, true: ArrayLike) -> float | None:
    """Of true scores that are of two values, how often the better one is predicted higher; None for others."""
    from scipy.stats import mannwhitneyu

    p, t = _pair(predicted, true)
    values = np.unique(t)
    if len(values) != 2 or not np.isfinite(p).all():
        return None
    better = t == values[1]
    return float(mannwhitneyu(p[better], p[~better]).statistic / (better.sum() * (~better).sum()))


BINS = 10
"""Of calibration, as RICA² has them."""


def calibration(uncertainty: ArrayLike, error: ArrayLike) -> float | None:
    """Kendall's tau between uncertainty and absolute error, both the means of ten equal parts in order of uncertainty.

    1 where whoever is less sure errs more (Majeedi et al., RICA², ECCV 2024, section 4). None of fewer than two
    videos a part, and where all are equally sure or equally wrong.
    """
    u, e = _pair(uncertainty, error)
    if len(u) < 2 * BINS:
        return None
    parts = np.array_split(np.argsort(u, kind="stable"), BINS)
    return kendall([u[part].mean() for part in parts], [e[part].mean() for part in parts])


def selective(uncertainty: ArrayLike, error: ArrayLike) -> NDArray[np.float64]:
    """(10,): the mean absolute error of the surest 10 %, 20 % … 100 % of the videos; NaN of none."""
    u, e = _pair(uncertainty, error)
    surest = e[np.argsort(u, kind="stable")]
    kept = [round(len(u) * (i + 1) / BINS) for i in range(BINS)]
    return np.array([surest[:n].mean() if n else np.nan for n in kept])


def fisher_mean(correlations: Sequence[float | None]) -> float | None:
    """tanh of the mean of atanh, over the defined ones; None when there is none, the value itself when there is one.

    ±1, which tiny folds reach by chance, counts as ±0.99999 in an average of several.
    """
    defined = [r for r in correlations if r is not None and np.isfinite(r)]
    if not defined:
        return None
    if len(defined) == 1:
        return float(defined[0])
    return float(np.tanh(np.arctanh(np.clip(defined, -CLIP, CLIP)).mean()))


def mean_std(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample deviation (n − 1) of the defined values."""
    defined = [v for v in values if v is not None]
    if not defined:
        return None, None
    return float(np.mean(defined)), float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def evaluate(predicted: ArrayLike, true: ArrayLike, span: ArrayLike) -> dict[str, float | int | None]:
    """Every metric of one test set; `span` is highest − lowest score of the dataset or of each video's action."""
    p, t = _pair(predicted, true)
    return {
        "n": len(t),
        "spearman": spearman(p, t),
        "kendall": kendall(p, t),
        "mae": mean_absolute_error(p, t),
        "rl2_dataset_range": relative_l2(p, t, span),
        "rl2_test_range": relative_l2(p, t, np.ptp(t)) if len(t) else None,
        "auc": area_under_curve(p, t),
    }
