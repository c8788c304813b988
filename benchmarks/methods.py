"""Does S4AQA learn from unlabelled videos? Its variants against AA on one store, on many draws of the same videos.

    aqa demo --videos 240 --seed 100 --out dives --render-only
    aqa-extract dives/videos --out dives/feats.zarr --streams rgb,actor-rgb --segments 4 --short-side 112 --crop 112
    python benchmarks/methods.py dives/feats.zarr --labelled 16 --unlabelled 24 --draws 8

Each draw takes that many videos at random, labels one of each of `labelled` equal parts of their score order, and
tests on all other videos of the store. Every variant trains on the same draw, so gains are paired.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from aqa_shared.store import FeatureStore
from aqa_train.batch import Inputs, ScoreScale
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig
from aqa_train.metrics import spearman
from aqa_train.trainer import Task, fit, predict

VARIANTS = {
    "aa": S4AQAConfig(recovery_weight=0, alignment_weight=0),
    "aa+rda": S4AQAConfig(recovery_weight=0),
    "aa+rda, separate norm": S4AQAConfig(recovery_weight=0, norm="separate"),
    "aa+msfr, weight 1": S4AQAConfig(recovery_weight=1, alignment_weight=0),
    "weight 1": S4AQAConfig(recovery_weight=1),
    "weight 4": S4AQAConfig(recovery_weight=4),
    "weight 40": S4AQAConfig(),
    "weight 1, separate norm": S4AQAConfig(recovery_weight=1, norm="separate"),
    "weight 1, mean": S4AQAConfig(recovery_weight=1, mask_value="mean"),
    "weight 1, joint norm, mean": S4AQAConfig(recovery_weight=1, norm="joint", mask_value="mean"),
    "weight 40, joint norm, mean": S4AQAConfig(norm="joint", mask_value="mean"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--labelled", type=int, default=16)
    parser.add_argument("--unlabelled", type=int, default=24)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--variants", default=";".join(VARIANTS), help="names, separated by semicolons")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, training = torch.device("cpu"), Training(epochs=options.epochs)
    store = FeatureStore.open(options.store)
    features = FeatureSet.from_store(store, ("rgb", "actor-rgb")).place(device, "yes")
    scores = features.column("score").astype(np.float64)
    everyone, none = np.arange(len(scores)), np.array([], dtype=np.int64)
    found: dict[str, list[float]] = {name: [] for name in options.variants.split(";")}
    for draw in range(options.draws):
        rng = np.random.default_rng(draw)
        train = rng.permutation(everyone)[: options.labelled + options.unlabelled]
        test = np.setdiff1d(everyone, train)
        by_score = train[np.argsort(scores[train])]
        labelled = np.sort([rng.choice(part) for part in np.array_split(by_score, options.labelled)])
        unlabelled = np.setdiff1d(train, labelled)
        scale = ScoreScale(scores[labelled].min(), scores[labelled].max())
        targets = np.where(np.isin(everyone, labelled), scale.to_training(scores), np.nan)
        inputs = Inputs(features.shapes, features.segments, {}, replace(scale, mean=float(np.nanmean(targets))))
        task = Task(features, labelled, unlabelled, none, targets)
        for name, values in found.items():
            config = VARIANTS[name]
            fitted = fit(
                partial(S4AQA, inputs, config),
                task,
                training,
                seed=[draw, 0],
                device=device,
            )
            value = spearman(predict(fitted.model, features, test, device), scores[test])
            values.append(np.nan if value is None else value)
        print(f"draw {draw}: " + ", ".join(f"{name} {values[-1]:.3f}" for name, values in found.items()), flush=True)
    print(f"\n{options.labelled} labelled, {options.unlabelled} unlabelled, {len(test)} test videos, Spearman")
    base = np.array(found["aa"]) if "aa" in found else None
    for name, values in found.items():
        line = f"{name:28} {np.mean(values):.3f} ± {np.std(values):.3f}"
        if base is not None and name != "aa":
            gain = np.array(values) - base
            line += f"   gain over aa {gain.mean():+.3f} ± {gain.std() / np.sqrt(len(gain)):.3f}"
        print(line)


if __name__ == "__main__":
    main()
