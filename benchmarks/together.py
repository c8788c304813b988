"""Trainings computed as one model beside the same one after the other: how many steps each makes in a second.

    python benchmarks/together.py [--device cuda] [--trainings 10] [--precision bf16]

Random features of four sizes, batches of 32 + 32, one thread on a CPU. Both take the same steps (tests/train/
test_together.py), in the same run, in turns; a ratio over 1 says that together is faster. The last column is what the
trainings claim together of the time that passed, each its share: just below 1.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from aqa_train.batch import Inputs
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods import METHODS
from aqa_train.together import fit_together
from aqa_train.trainer import Task, begun, fit

CASES = [
    ("i3d+mlp", 1, 60, 256),
    ("i3d+mlp", 10, 1024, 256),
    ("s4aqa", 10, 64, 256),
    ("s4aqa", 10, 1024, 256),
]
"""Method, segments, channels, videos of each set."""


def asked(method: str, segments: int, channels: int, videos: int, args: Any) -> list[dict[str, Any]]:
    """What each training is, by seed."""
    device = torch.device(args.device)
    rng = np.random.default_rng(0)
    x = rng.random((2 * videos, segments, channels), dtype=np.float32)
    features = FeatureSet.from_arrays({"x": x}, {}).place(device, "yes")
    rows = np.arange(2 * videos)
    task = Task(features, rows[:videos], rows[videos:], rows[:0], rng.random(2 * videos) * 5)
    row = METHODS[method]
    cls, inputs = row.load(), Inputs({"x": (channels,)}, segments)
    config = cls.Config(**row.fixed)
    how = Training(epochs=args.epochs, precision=args.precision)
    return [
        {"build": partial(cls, inputs, config), "task": task, "training": how, "seed": [seed]}
        for seed in range(args.trainings)
    ]


def alone(trainings: Sequence[dict[str, Any]], device: torch.device) -> float:
    """Seconds that the trainings say they took."""
    return sum(fit(**one, device=device).seconds for one in trainings)


def together(trainings: Sequence[dict[str, Any]], device: torch.device) -> float:
    """As `alone`: each claims its share."""

    def failed(i: int, error: Exception) -> list[int]:
        raise error

    begin = [partial(begun, **one, device=device, state=None) for one in trainings]
    found = fit_together(begin, device, stop=lambda: 0, on_epoch=lambda i, epoch, row: None, failed=failed)
    return sum(one.seconds for one in found if one is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--trainings", type=int, default=10)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{args.trainings} trainings, {args.precision}, {where}")
    print(f"{'':28}{'alone, steps/s':>16}{'together':>12}{'ratio':>8}{'claimed / passed':>18}")
    for method, segments, channels, videos in CASES:
        trainings = asked(method, segments, channels, videos, args)
        steps = args.trainings * args.epochs * -(-videos // 32)
        best, claimed = {alone: float("inf"), together: float("inf")}, {alone: 0.0, together: 0.0}
        for repeat in range(args.repeats + 1):
            for way in best:
                started = time.perf_counter()
                said = way(trainings, device)
                passed = time.perf_counter() - started
                if repeat:  # the first loads code and warms caches
                    best[way] = min(best[way], passed)
                claimed[way] = said / passed
        rates = [steps / seconds for seconds in best.values()]
        name = f"{method}, {segments} × {channels}"
        print(
            f"{name:28}{rates[0]:>16.1f}{rates[1]:>12.1f}{rates[1] / rates[0]:>8.2f}{claimed[together]:>18.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
