"""How fast S4AQA trains on features in memory: epochs per second, beside a plain PyTorch loop, in one run.

    python benchmarks/train.py [--videos 1412] [--epochs 2] [--precision bf16]

The data are the size of MTL-AQA: 1412 videos × 10 segments × 1024 channels (random numbers), 75 % for training, 40 % of
those labelled, batches of 32 + 32. The plain loop is what one would write first: DataLoaders, Conv1d, three
passes through the encoder, Adam as it comes. Ratios of one run mean more than its absolute numbers. The last lines say
how near S4AQA comes to what one thread reaches in matrix products of its first convolution's shape and precision, if
all else cost nothing: for the products of the plain loop, and for its own, which are fewer.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from aqa_train.batch import Inputs
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods import METHODS
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig, choose_segments, domain_loss
from aqa_train.trainer import Task, fit

Rate = tuple[float, float]
"""Epochs per second, and per second of CPU time: the second is comparable on a machine with other work."""


def make_task(videos: int, device: torch.device, in_memory: bool = True) -> Task:
    """Random features with a labelled and an unlabelled part."""
    rng = np.random.default_rng(0)
    x = rng.random((videos, 10, 1024), dtype=np.float32)
    found = FeatureSet.from_arrays({"rgb": x}, {})
    train = int(videos * 0.75)
    labelled = np.arange(int(train * 0.4))
    unlabelled = np.arange(len(labelled), train)
    features = found.place(device, "yes" if in_memory else "no")
    return Task(features, labelled, unlabelled, np.arange(0), rng.random(videos) * 5)


def ours(method: str, videos: int, epochs: int, threads: int, precision: str, in_memory: bool, device: str) -> Rate:
    """Speed of `fit`, without its first epoch (which loads code and warms caches)."""
    torch.set_num_threads(threads)
    where = torch.device(device)
    ends: list[tuple[float, float]] = []
    fit(
        lambda: S4AQA(Inputs({"rgb": (1024,)}, 10), S4AQAConfig(**METHODS[method].fixed)),
        make_task(videos, where, in_memory),
        Training(epochs=epochs + 1, precision=precision),
        seed=[0],
        device=where,
        on_epoch=lambda epoch, row: ends.append((time.perf_counter(), time.process_time())),
    )
    return _rate(epochs, ends)


def _rate(epochs: int, ends: list[tuple[float, float]]) -> Rate:
    (wall0, cpu0), (wall1, cpu1) = ends[0], ends[-1]
    return epochs / (wall1 - wall0), epochs / (cpu1 - cpu0)


class _Plain(nn.Module):
    """The same network as one writes it first."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for a, b in ((1024, 512), (512, 256), (256, 256)):
            blocks += [nn.Conv1d(a, b, 3, padding=1), nn.BatchNorm1d(b), nn.ReLU(), nn.Dropout(0.3)]
        self.encoder = nn.Sequential(*blocks)
        self.regressor = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1))
        self.decoder = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 1024))
        self.discriminator = nn.Sequential(nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1))

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x.transpose(1, 2)).mean(dim=2)

    def loss(self, x: Tensor, y: Tensor, u: Tensor) -> Tensor:
        hidden = choose_segments(u, None, 1)
        f, fu, fm = self.encode(x), self.encode(u), self.encode(u.masked_fill(hidden[..., None], 0))
        recovery = (self.decoder(fm) - u[hidden]).abs().mean()
        # Without the reversal: its cost is nothing.
        domain = domain_loss(self.discriminator(f), [self.discriminator(fu), self.discriminator(fm)])
        return F.mse_loss(self.regressor(f).squeeze(1), y) + 40 * recovery + 0.1 * domain


def plain(videos: int, epochs: int, threads: int) -> Rate:
    """Speed of the plain loop."""
    torch.set_num_threads(threads)
    task = make_task(videos, torch.device("cpu"))
    assert task.features.resident is not None
    x = task.features.resident.streams["rgb"]
    scores = torch.as_tensor(task.scores, dtype=torch.float32)
    labelled = TensorDataset(x[task.labelled], scores[task.labelled])
    unlabelled = TensorDataset(x[task.unlabelled])
    model = _Plain()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4, weight_decay=1e-4)
    loaders = [DataLoader(d, batch_size=32, shuffle=True) for d in (labelled, unlabelled)]
    ends = []
    for _ in range(epochs + 1):
        cycle = iter(loaders[0])
        for (u,) in loaders[1]:
            batch = next(cycle, None)
            if batch is None:
                cycle = iter(loaders[0])
                batch = next(cycle)
            loss = model.loss(batch[0], batch[1], u)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        ends.append((time.perf_counter(), time.process_time()))
    return _rate(epochs, ends)


def _job(arguments: tuple[Any, ...]) -> Rate:
    return ours(*arguments)


def _sum(rates: list[Rate]) -> Rate:
    """Together by the clock; CPU time is that of one."""
    return sum(r[0] for r in rates), sum(r[1] for r in rates) / len(rates)


def work(train: Callable[[], object]) -> float:
    """Floating-point operations in the matrix products of some training."""
    with FlopCounterMode(display=False) as counter:
        train()
    return float(counter.get_total_flops())


def matrix_rate(precision: str) -> float:
    """Floating-point operations per second of CPU time of the first convolution's product: 64 videos, one thread."""
    torch.set_num_threads(1)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    x, w = torch.randn(640, 3072, dtype=dtype), torch.randn(512, 3072, dtype=dtype)
    seconds = []
    for _ in range(20):
        started = time.process_time()
        F.linear(x, w)
        seconds.append(time.process_time() - started)
    return 2 * x.numel() * len(w) / float(np.median(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=1412)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    n, epochs, cores = args.videos, args.epochs, os.cpu_count() or 1
    found = {"plain loop, 1 thread": plain(n, epochs, 1)}
    for method in ("aa", "s4aqa"):
        found[f"{method}, 1 thread"] = ours(method, n, epochs, 1, args.precision, True, "cpu")
    found["s4aqa, streamed, 1 thread"] = ours("s4aqa", n, epochs, 1, args.precision, False, "cpu")
    if cores > 1:
        found[f"s4aqa, {cores} threads"] = ours("s4aqa", n, epochs, cores, args.precision, True, "cpu")
        with multiprocessing.get_context("spawn").Pool(cores) as pool:
            jobs = [("s4aqa", n, epochs, 1, args.precision, True, "cpu")] * cores
            found[f"s4aqa, {cores} jobs of 1 thread, sum"] = _sum(pool.map(_job, jobs, chunksize=1))
    if torch.cuda.is_available():
        found["s4aqa, cuda"] = ours("s4aqa", n, 10 * epochs, 1, args.precision, True, "cuda")
    base = found["plain loop, 1 thread"]
    print(f"{n} videos × 10 × 1024, {args.precision}, {cores} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'':32}{'epochs/s':>10}{'ratio':>7}{'epochs/CPU s':>14}{'ratio':>7}")
    for name, (wall, cpu) in found.items():
        print(f"{name:32}{wall:>10.3f}{wall / base[0]:>7.2f}{cpu:>14.3f}{cpu / base[1]:>7.2f}")
    possible, cpu = matrix_rate(args.precision), found["s4aqa, 1 thread"][1]
    own = work(lambda: ours("s4aqa", n, 1, 1, args.precision, True, "cpu")) / 2
    print(f"matrix products alone, 1 thread: {possible / 1e9:.0f} GFLOP/s of CPU time")
    for what, flops in (("the plain loop's", work(lambda: plain(n, 1, 1)) / 2), ("its own", own)):
        times = possible / (cpu * flops)
        print(f"s4aqa, 1 thread, takes {times:.2f} times as long as {what} {flops / 1e9:.0f} GFLOP would")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(
                {"videos": n, "precision": args.precision, "cores": cores, "epochs_per_second": found}, file, indent=1
            )


if __name__ == "__main__":
    main()
