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
import torch

from aqa_shared.store import FeatureStore
from aqa_train.batch import Inputs
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods.linear import Ridge
from aqa_train.metrics import spearman
from aqa_train.trainer import Task, fit, predict


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
    cpu, none = torch.device("cpu"), np.arange(0)
    features = {chosen: found.place(cpu, "yes") for chosen, found in features.items()}
    draws = [np.random.default_rng(i).permutation(scored) for i in range(options.draws)]
    halves = [(np.sort(d[: len(d) // 2]), np.sort(d[len(d) // 2 :])) for d in draws]
    print(f"{len(scored)} scored videos of {options.store}, {options.draws} halves, Spearman of ridge")
    base = None
    for chosen in sets:
        found = features[chosen]
        inputs = Inputs(found.shapes, found.segments)
        values = np.zeros(len(halves))
        for i, (a, b) in enumerate(halves):
            task = Task(found, a, none, none, scores)
            model = fit(lambda: Ridge(inputs), task, Training(), seed=[0], device=cpu).model  # noqa: B023
            values[i] = spearman(predict(model, found, b, cpu), scores[b]) or 0.0
        base = values if base is None else base
        gain = values - base
        print(
            f"{'+'.join(chosen).replace('_', '-'):34} {values.mean():.3f} ± {values.std():.3f}   over {sets[0][0]} "
            f"{gain.mean():+.3f}, ahead in {(gain > 0).mean():.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
