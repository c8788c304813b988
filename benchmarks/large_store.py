"""How fast methods train on a store that does not fit in memory, beside videos in memory, and in how much of it.

    python benchmarks/large_store.py --out /scratch/large [--gb 20] [--segments 50] [--labelled 0.1,0.4]

Makes a store of random features (kept for the next time), and trains in processes of their own, one thread each: all
of the store streamed, and as many of its videos as make half a gigabyte in memory. Labelled videos are drawn at random,
so that streaming reads many others to reach them. Prints steps a second without the first ones, their ratio, and the
most memory that the streaming process had, of which 0.8 GB are Python and its packages.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from aqa_shared.console import progress
from aqa_shared.records import ExtractSettings, Sampling, Video
from aqa_shared.store import ArraySpec, FeatureStore, StoreWriter, is_store
from aqa_train.batch import Inputs
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods import METHODS
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig
from aqa_train.signals import Stopped
from aqa_train.trainer import Task, fit

CHANNELS = 1024
IN_MEMORY = 0.5e9
FIRST = 20
"""Steps that are not counted."""


def make(path: Path, videos: int, segments: int) -> None:
    """A store of random features; one that is there, and has them all, is kept."""
    if is_store(path) and len(FeatureStore.open(path)) == videos:
        return
    spec = ArraySpec("rgb", ("channel",), (CHANNELS,), "float32", role="feature")
    settings = ExtractSettings(sampling=Sampling(segments=segments))
    rng = np.random.default_rng(0)
    with StoreWriter.open(path, specs=[spec], settings=settings, provenance={"weights": {}}) as writer:
        with progress("videos", videos) as advance:
            for i in range(videos):
                x = rng.random((segments, CHANNELS), dtype=np.float32)
                writer.commit(f"{i:06d}", {"rgb": x}, {})
                advance()
        ids = [f"{i:06d}" for i in range(videos)]
        writer.finalise({i: Video(id=i, path=f"/{i}.mp4") for i in ids})


def rate(path: Path, method: str, labelled: float, steps: int, resident: bool) -> tuple[float, float]:
    """Steps a second, and the most gigabytes of memory that this process had."""
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    features = FeatureSet.from_store(FeatureStore.open(path))
    count, segments = len(features.ids), features.segments
    if resident:
        count = min(count, int(IN_MEMORY / (4 * CHANNELS * segments)))
        arrays = {"rgb": features.load(np.arange(count), cpu).streams["rgb"].numpy()}
        features = FeatureSet.from_arrays(arrays, {}).place(cpu, "yes")
    order = np.random.default_rng(1).permutation(count)
    parted = int(count * labelled)
    task = Task(features, np.sort(order[:parted]), np.sort(order[parted:]), np.arange(0), np.linspace(0, 5, count))
    at: list[float] = []

    def stop() -> int:
        at.append(time.perf_counter())
        return 15 if len(at) > FIRST + steps else 0

    inputs, config = Inputs({"rgb": (CHANNELS,)}, segments), S4AQAConfig(**METHODS[method].fixed)
    with suppress(Stopped):
        fit(lambda: S4AQA(inputs, config), task, Training(epochs=1000), seed=[0], device=cpu, stop=stop)
    return steps / (at[-1] - at[FIRST]), most_memory()


def most_memory() -> float:
    """Gigabytes that this process had at most; `ru_maxrss` would begin with what the process that started it had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the store; it takes twice its size")
    parser.add_argument("--gb", type=float, default=20)
    parser.add_argument("--segments", type=int, default=50)
    parser.add_argument("--labelled", default="0.1,0.4")
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    videos = int(asked.gb * 1e9 / (4 * CHANNELS * asked.segments))
    path = asked.out / f"{asked.gb:g}gb-{asked.segments}.zarr"
    make(path, videos, asked.segments)
    print(f"{videos} videos of {asked.segments} x {CHANNELS}, {asked.gb:g} GB; steps a second of one thread")
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for method in ("aa", "s4aqa"):
            for labelled in map(float, asked.labelled.split(",")):
                (memory, _), (streamed, most) = (
                    pool.apply(rate, (path, method, labelled, asked.steps, resident)) for resident in (True, False)
                )
                print(
                    f"{method:6} {labelled:4.0%} labelled  in memory {memory:6.2f}  streamed {streamed:6.2f}  "
                    f"ratio {streamed / memory:.2f}  {most:.2f} GB",
                    flush=True,
                )


if __name__ == "__main__":
    main()
