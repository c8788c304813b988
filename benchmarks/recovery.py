"""Ridge regression on what a video's other segments tell about each segment, and on the rest.

    python benchmarks/recovery.py dives/feats.zarr [--stream rgb] [--draws 5]

A linear stand-in for what S4AQA learns from unlabelled videos: each segment of each video is recovered from the
video's others by ridge regression, one for each place in the video. All training videos are used, their scores are
not. Two regressions are fitted, on every other training video; a training video is recovered by the one that has not
seen it, a tested one by the mean of both. Then ridge regression on the features, on their recovered part and on the
rest, always with the segments side by side, learns from few labels: where are the scores?
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV

from aqa_shared.errors import UsageError
from aqa_shared.store import FeatureStore
from aqa_train.features import FeatureSet
from aqa_train.splits import label

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
PENALTIES = (1.0, 10.0, 100.0, 1000.0, 10000.0)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)


def read(path: Path, stream: str) -> tuple[Floats, NDArray[np.float64], Rows, Rows]:
    """Features (videos, segments, channels), scores, and the videos to train on and to test."""
    found = FeatureSet.from_store(FeatureStore.open(path), [stream])
    if found.ragged:
        raise UsageError(f"{path}: videos have different numbers of segments", fix="extract with a fixed number")
    x = next(iter(found.load(np.arange(len(found.ids)), torch.device("cpu")).streams.values())).numpy()
    split = found.column("split")
    return x, found.column("score").astype(float), np.flatnonzero(split == "train"), np.flatnonzero(split == "test")


def recovered(x: Floats, train: Rows, test: Rows, penalty: float) -> Floats:
    """Each segment of `train` and `test` as the video's others tell it; zeros for other videos."""
    halves = train[::2], train[1::2]
    found = np.zeros_like(x)
    for place in range(x.shape[1]):
        others = torch.from_numpy(np.delete(x, place, axis=1).reshape(len(x), -1))
        segment = torch.from_numpy(x[:, place])
        for seen, unseen in (halves, halves[::-1]):
            gram = others[seen] @ others[seen].T
            weights = torch.linalg.solve(gram + penalty * torch.eye(len(seen)), segment[seen])
            found[unseen, place] = ((others[unseen] @ others[seen].T) @ weights).numpy()
            found[test, place] += ((others[test] @ others[seen].T) @ weights).numpy() / 2
    return found


def spearman(x: Floats, scores: NDArray[np.float64], labelled: Rows, test: Rows) -> float:
    """Of ridge regression, its penalty chosen by leaving one out."""
    flat = x.reshape(len(x), -1)
    model = RidgeCV(np.logspace(-2, 4, 7)).fit(flat[labelled], scores[labelled])
    return float(spearmanr(model.predict(flat[test]), scores[test]).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path)
    parser.add_argument("--stream", default="rgb")
    parser.add_argument("--draws", type=int, default=5, help="of the labelled videos, as aqa-train draws them")
    asked = parser.parse_args()
    x, scores, train, test = read(asked.features, asked.stream)
    overall_error = np.abs(x[test] - x[train].mean((0, 1))).mean()
    x = x - x[train].mean(0)

    tried = {p: recovered(x, train, test, p) for p in PENALTIES}
    penalty = min(tried, key=lambda p: float(((x[train] - tried[p][train]) ** 2).sum()))
    told = tried[penalty]
    rest = x - told
    explained = 1 - (rest[test] ** 2).sum() / (x[test] ** 2).sum()
    print(f"{len(train)} training videos, {len(test)} tested, {x.shape[1]} segments of {x.shape[2]} channels")
    print("a segment of a tested video is told by, with a mean absolute error of")
    print(f"  the mean of all segments         {overall_error:.4f}")
    print(f"  the mean of the segment's place  {np.abs(x[test]).mean():.4f}")
    print(f"  ridge on the video's others      {np.abs(rest[test]).mean():.4f}  (penalty {penalty:g}; ", end="")
    print(f"{explained:.0%} of the variance about the place's mean)")

    print(f"Spearman of ridge on tested videos, mean ± deviation of {asked.draws} draws")
    print(f"{'labels':>8}{'features':>16}{'recovered':>16}{'rest':>16}{'recovered − features':>24}")
    for share in SHARES:
        draws = [train[label(scores[train], share, np.random.default_rng(i))] for i in range(asked.draws)]
        found = np.array([[spearman(part, scores, rows, test) for part in (x, told, rest)] for rows in draws])
        columns = [*found.T, found[:, 1] - found[:, 0]]
        cells = [
            f"{c.mean():{sign}.3f} ± {c.std(ddof=1):.3f}" for c, sign in zip(columns, ("", "", "", "+"), strict=True)
        ]
        print(f"{len(draws[0]):8}" + "".join(f"{c:>{w}}" for c, w in zip(cells, (16, 16, 16, 24), strict=True)))


if __name__ == "__main__":
    main()
