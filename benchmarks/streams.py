"""Which streams of a store are worth learning from? Ridge on every set of them, on many halves of the same videos.

    aqa demo --videos 90 --seed 300 --out dives --render-only
    aqa-extract dives/videos --out dives/feats.zarr --streams rgb,flow,actor-rgb,actor-flow --flow parity \\
        --segments 4 --short-side 112 --crop 112
    python benchmarks/streams.py dives/feats.zarr

Each draw learns from one half of the scored videos and is tested on the other; every set sees the same halves.
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np

from aqa_shared.store import FeatureStore
from aqa_train.baselines import mean_features, ridge
from aqa_train.features import FeatureSet
from aqa_train.metrics import spearman


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--draws", type=int, default=60)
    options = parser.parse_args()
    store = FeatureStore.open(options.store)
    sets = [c for size in range(1, len(store.streams) + 1) for c in combinations(store.streams, size)]
    features = {chosen: FeatureSet.from_store(store, chosen) for chosen in sets}
    scores = features[sets[0]].column("score").astype(np.float64)
    scored = np.flatnonzero(~np.isnan(scores))
    means = {chosen: mean_features(found) for chosen, found in features.items()}
    draws = [np.random.default_rng(i).permutation(scored) for i in range(options.draws)]
    halves = [(np.sort(d[: len(d) // 2]), np.sort(d[len(d) // 2 :])) for d in draws]
    print(f"{len(scored)} scored videos of {options.store}, {options.draws} halves, Spearman of ridge")
    base = None
    for chosen in sets:
        values = np.array([spearman(ridge(means[chosen], scores, a, b), scores[b]) or 0.0 for a, b in halves])
        base = values if base is None else base
        gain = values - base
        print(
            f"{'+'.join(chosen).replace('_', '-'):34} {values.mean():.3f} ± {values.std():.3f}   over {sets[0][0]} "
            f"{gain.mean():+.3f}, ahead in {(gain > 0).mean():.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
