"""How much of the scores is in what the rest of a video tells about a segment, which is what S4AQA learns to recover.

    python benchmarks/recovery.py dives/feats.zarr [--stream rgb] [--draws 5]

Every segment of every video is recovered from the video's other segments by ridge regression. It is fitted on training
videos without scores; those are recovered in two halves, each by what the other taught, so that no video is recovered
by itself. Then ridge regression on the features, on their recovered part and on the rest is fitted with few labels,
and tested. Nothing here is a network: how far these three differ is a property of the features.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV

from aqa_shared.store import FeatureStore
from aqa_train.features import FeatureSet

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)


def read(path: Path, stream: str) -> tuple[Floats, NDArray[np.float64], Rows, Rows]:
    """Features (videos, segments, channels), scores, and the videos to train on and to test."""
    found = FeatureSet.from_store(FeatureStore.open(path), [stream])
    x = next(iter(found.load(np.arange(len(found.ids)), torch.device("cpu")).streams.values())).numpy()
    split = found.column("split")
    return x, found.column("score").astype(float), np.flatnonzero(split == "train"), np.flatnonzero(split == "test")


def recovered(x: Floats, train: Rows, test: Rows, penalty: float) -> Floats:
    """Each segment of `train` and `test` as the video's others tell it; zeros for other videos."""
    halves = train[::2], train[1::2]
    found = np.zeros_like(x)
    for k in range(x.shape[1]):
        others = torch.from_numpy(np.delete(x, k, axis=1).reshape(len(x), -1))
        target = torch.from_numpy(x[:, k])
        for fit, use in (halves, halves[::-1], (train, test)):
            gram = others[fit] @ others[fit].T
            weights = torch.linalg.solve(gram + penalty * torch.eye(len(fit)), target[fit])
            found[use, k] = ((others[use] @ others[fit].T) @ weights).numpy()
    return found


def spearman(x: Floats, scores: NDArray[np.float64], labelled: Rows, test: Rows) -> float:
    """Of ridge regression, its penalty chosen by leaving one out."""
    model = RidgeCV(np.logspace(-2, 4, 7)).fit(x[labelled], scores[labelled])
    return float(spearmanr(model.predict(x[test]), scores[test]).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--stream", default="rgb")
    parser.add_argument("--draws", type=int, default=5, help="of the labelled videos")
    asked = parser.parse_args()
    x, scores, train, test = read(asked.features, asked.stream)
    everywhere = np.abs(x[test] - x[train].mean((0, 1))).mean()
    x = x - x[train].mean(0)
    variance = (x[test] ** 2).sum()

    tried = {p: recovered(x, train, test, p) for p in PENALTIES}
    penalty = min(tried, key=lambda p: float(((x[train] - tried[p][train]) ** 2).sum()))  # of videos that it trained on
    told = tried[penalty]
    print(f"{len(train)} videos to train on, {len(test)} to test, {x.shape[1]} segments of {x.shape[2]} channels")
    print("recovering a segment of the videos to test, mean absolute error:")
    print(f"  the mean of all segments           {everywhere:.4f}")
    print(f"  the mean of the segment's place    {np.abs(x[test]).mean():.4f}")
    explained = 1 - ((x[test] - told[test]) ** 2).sum() / variance
    print(f"  ridge on the video's others        {np.abs((x - told)[test]).mean():.4f}  ", end="")
    print(f"({explained:.0%} of the variance about the place's mean, penalty {penalty:g})")

    print(f"Spearman of ridge, mean of {asked.draws} draws:")
    print(f"{'':8}{'mean over segments':>36}{'segments side by side':>36}")
    print(f"{'labels':>8}" + f"{'features':>12}{'recovered':>12}{'rest':>12}" * 2)
    for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0):
        rng = np.random.default_rng(0)
        count = round(share * len(train))
        cells = np.zeros(6)
        for _ in range(asked.draws):
            labelled = rng.permutation(train)[:count]
            parts = (x, told, x - told)
            forms = [p.mean(1) for p in parts] + [p.reshape(len(p), -1) for p in parts]
            cells += [spearman(f, scores, labelled, test) for f in forms]
        figures = "".join(f"{c:12.3f}" for c in cells / asked.draws)
        print(f"{count:8}{figures}")


if __name__ == "__main__":
    main()
