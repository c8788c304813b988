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


def relative_l2(predicted: ArrayLike, true: ArrayLike, low: float, high: float) -> float | None:
    """R-ℓ2 × 100 (Yu et al., CoRe, ICCV 2021): the mean of (error / (high − low))², times 100.

    The paper's range is the action's; much code takes the range of the test labels. Both are reported.
    """
    p, t = _pair(predicted, true)
    if not len(p) or not high > low:
        return None
    return float(np.square((p - t) / (high - low)).mean() * 100)


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


def evaluate(predicted: ArrayLike, true: ArrayLike, score_range: tuple[float, float]) -> dict[str, float | int | None]:
    """Every metric of one test set; `score_range` is the dataset's, for R-ℓ2."""
    p, t = _pair(predicted, true)
    low, high = (float(t.min()), float(t.max())) if len(t) else (0.0, 0.0)
    return {
        "n": len(t),
        "spearman": spearman(p, t),
        "kendall": kendall(p, t),
        "mae": mean_absolute_error(p, t),
        "rl2_dataset_range": relative_l2(p, t, *score_range),
        "rl2_test_range": relative_l2(p, t, low, high),
    }
