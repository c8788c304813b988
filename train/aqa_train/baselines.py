"""What any method has to beat: printed beside every result.

`mean` predicts the labelled mean, `ridge` is linear in the mean segment feature, `difficulty` ranks by the declared
difficulty alone (on MTL-AQA that gives a rank correlation of 0.56, more than some published methods at 10 % labels).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from aqa_train.features import FeatureSet
from aqa_train.layers import mean_feature
from aqa_train.order import Rows


def mean_features(features: FeatureSet) -> NDArray[np.float32]:
    """(videos, channels): the mean over the segments a video has."""
    means = np.empty((len(features.ids), sum(features.channels.values())), dtype=np.float32)
    for part in features.parts(np.arange(len(features.ids))):
        means[part] = mean_feature(features.load(part, torch.device("cpu"))).numpy()
    return means


def constant(scores: NDArray[np.float64], labelled: Rows, test: Rows) -> NDArray[np.float64]:
    """The mean labelled score for every test video; it ranks nothing."""
    return np.full(len(test), scores[labelled].mean())


def ridge(means: NDArray[np.float32], scores: NDArray[np.float64], labelled: Rows, test: Rows) -> NDArray[np.float64]:
    """Ridge regression on mean features, its strength chosen by leave-one-out on the labelled videos."""
    from sklearn.linear_model import RidgeCV

    model = RidgeCV(np.logspace(-3, 4, 15)).fit(means[labelled].astype(np.float64), scores[labelled])
    return np.asarray(model.predict(means[test].astype(np.float64)))


def difficulty_only(
    difficulty: NDArray[np.float64], scores: NDArray[np.float64], labelled: Rows, test: Rows
) -> NDArray[np.float64] | None:
    """A straight line through difficulty; None where a video lacks it or all share it."""
    known = difficulty[np.concatenate([labelled, test])]
    if np.isnan(known).any() or np.ptp(difficulty[labelled]) == 0:
        return None
    slope, level = np.polyfit(difficulty[labelled], scores[labelled], 1)
    return np.asarray(level + slope * difficulty[test])
