"""What do processes that train side by side pay for features? Each opens and loads the store, or all map one file.

    python benchmarks/shared_features.py feats.zarr --processes 4

Prints seconds until a process has its features, and the memory of all processes together (proportional set size, after
each has read all of them), as `aqa-train --jobs N` does it and as every process for itself. Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from aqa_shared.files import scratch
from aqa_shared.store import FeatureStore
from aqa_train.features import FeatureSet

CPU = torch.device("cpu")


def opened(store: str) -> FeatureSet:
    return FeatureSet.from_store(FeatureStore.open(store)).place(CPU, "yes")


def _memory() -> float:
    """MB that this process has of all memory."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return int(text.split("\nPss:")[1].split()[0]) / 1e3


def _work(what: Any, parent: Connection) -> None:
    parent.recv()
    before, started = _memory(), time.perf_counter()
    features = opened(what) if isinstance(what, str) else what
    assert features.resident is not None
    seconds = time.perf_counter() - started
    total = sum(float(x.sum()) for x in features.resident.streams.values())
    parent.send((seconds, total))
    parent.recv()  # when all have read
    parent.send(_memory() - before)


def measure(what: Any, processes: int) -> tuple[float, float, float]:
    """Seconds until all processes are there and have features, the mean of loading, and MB that they add."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(processes)]
    started = time.perf_counter()
    workers = [context.Process(target=_work, args=(what, theirs)) for _, theirs in pipes]
    for w in workers:
        w.start()
    for ours, _ in pipes:
        ours.send("go")
    loading = [ours.recv()[0] for ours, _ in pipes]
    seconds = time.perf_counter() - started
    for ours, _ in pipes:
        ours.send("all")
    memory = sum(ours.recv() for ours, _ in pipes)
    for w in workers:
        w.join()
    return seconds, sum(loading) / processes, memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    own = measure(options.store, options.processes)
    with scratch("aqa-benchmark-") as folder:
        started = time.perf_counter()
        shared = FeatureSet.from_store(FeatureStore.open(options.store)).place(CPU, "yes", folder=folder)
        once = time.perf_counter() - started
        mapped = measure(shared, options.processes)
        size = shared.nbytes / 1e6
    print(f"{options.processes} processes, {size:.0f} MB of features")
    print(f"each for itself   all ready after {own[0]:6.2f} s, {own[1]:6.3f} s of it loading, {own[2]:7.0f} MB more")
    print(
        f"one mapped file   all ready after {mapped[0]:6.2f} s, written once in {once:.2f} s,  {mapped[2]:7.0f} MB more"
    )
    print(f"ratio             {own[0] / mapped[0]:.2f} of the time, {own[2] / max(mapped[2], 1e-9):.1f} of the memory")


if __name__ == "__main__":
    main()
