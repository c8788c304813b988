"""How much faster are two Dask workers than one? RGB on CPUs, by `--scheduler local:1`, `local:2` and without Dask.

    python benchmarks/dask_workers.py --videos 48

Prints videos a second, and ratios to one worker kept to one core, and to one that may use all. They are counted from
the commits in each store, without the first quarter: starting processes and loading networks is not the question. A
worker is one process of one thread, but its videos are decoded in a child, which uses a second core where there is one:
so two workers on two cores cannot be twice as fast as one on two. Without Dask one process uses all cores. Stores are
compared, and must hold the same features, bit for bit.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import av
import numpy as np

from aqa_extract.config import Options
from aqa_extract.run import extract
from aqa_shared.files import scratch
from aqa_shared.machine import available_cores
from aqa_shared.manifest import find_videos
from aqa_shared.records import ExtractSettings, Pixels, Sampling
from aqa_shared.store import FeatureStore, finalise

ONE_CORE = "local:1, one core"


def render(path: Path, frames: int, seed: int) -> None:
    """A clip of 320x240 pixels that moves."""
    noise = np.random.default_rng(seed).integers(0, 255, (240, 320 + frames, 3), np.uint8)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for i in range(frames):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noise[:, i : i + 320], format="rgb24")))
        out.mux(stream.encode())


def measure(videos: Path, store: Path, settings: ExtractSettings, scheduler: str | None, cores: set[int]) -> float:
    """Videos a second, from the times of their markers: as one part of one, a run leaves them where they are."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # threads and processes begun from here on inherit it
    try:
        report = extract(
            find_videos(videos).videos, store, settings, Options(device="cpu", scheduler=scheduler, shard=(1, 1))
        )
    finally:
        os.sched_setaffinity(0, before)
    assert not report.failures, report.text()
    times = sorted(marker.stat().st_mtime for marker in store.glob("staged/*.json"))
    counted = times[len(times) // 4 :]
    finalise(store)
    return (len(counted) - 1) / (counted[-1] - counted[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=24)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--side", type=int, default=224, help="Pixels of the network's input.")
    asked = parser.parse_args()
    settings = ExtractSettings(
        sampling=Sampling(segments=asked.segments),
        pixels=Pixels(short_side=max(asked.side, asked.side * 8 // 7), crop=asked.side),
    )
    with scratch("aqa-benchmark-") as folder:
        (folder / "videos").mkdir()
        for i in range(asked.videos):
            render(folder / "videos" / f"{i:03}.mp4", asked.frames, i)
        every = os.sched_getaffinity(0)
        ways = {
            ONE_CORE: ("local:1", {min(every)}),
            "local:1": ("local:1", every),
            "local:2": ("local:2", every),
            "without Dask": (None, every),
        }
        rates, features = {}, {}
        for name, (scheduler, cores) in ways.items():
            store = folder / f"{len(rates)}.zarr"
            rates[name] = measure(folder / "videos", store, settings, scheduler, cores)
            features[name] = FeatureStore.open(store).read("rgb")
    assert all(np.array_equal(one, features["local:1"]) for one in features.values())
    print(f"{asked.videos} videos of {asked.segments} segments, {asked.side} pixels, {available_cores()} cores")
    for name, rate in rates.items():
        ratios = "".join(f"  {rate / rates[one]:5.2f} of {one}" for one in (ONE_CORE, "local:1"))
        print(f"{name:17}  {rate:7.3f} videos/s{ratios}")


if __name__ == "__main__":
    main()
