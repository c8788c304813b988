"""What the store costs: reading all features of MTL-AQA's size (1412 videos × 10 segments × 1024), and writing.

    python benchmarks/store.py [--videos 1412]

Prints, from one run on one machine: the whole read through the store (checksums verified, every chunk known to be
there) beside a plain `numpy.load` of the same array and beside Zarr's defaults (zstd, one chunk per video); one
video; the same through Dask; a commit with and without fsync of its files; and the finalise.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from aqa_shared.records import ExtractSettings
from aqa_shared.store import ArraySpec, FeatureStore, StoreWriter
from aqa_shared.store_disk import sync_tree
from aqa_shared.store_layout import video_key

SPECS = (
    ArraySpec("rgb", ("channel",), (1024,), "float32", role="feature"),
    ArraySpec("frame_index", ("frame",), (16,), "int32", role="coordinate"),
)


def median_ms(call: Callable[[], object], repeats: int = 7) -> float:
    """Median milliseconds of a call; the first, which warms caches, is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=1412)
    videos = parser.parse_args().videos
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        commits, synced, whole = [], [], []
        with StoreWriter.open(root / "s.zarr", specs=SPECS, settings=ExtractSettings(), provenance={}) as writer:
            for i in range(videos):
                rgb = rng.standard_normal((10, 1024), dtype=np.float32)
                whole.append(rgb)
                started = time.perf_counter()
                writer.commit(f"{i:06}.mp4", {"rgb": rgb, "frame_index": np.zeros((10, 16), np.int32)}, {"fps": 25.0})
                commits.append(time.perf_counter() - started)
                if i >= videos - 30:  # at the end, so that the fsync of one does not slow the commit of the next
                    started = time.perf_counter()
                    sync_tree(root / "s.zarr/videos" / video_key(f"{i:06}.mp4"))
                    synced.append(time.perf_counter() - started)
            started = time.perf_counter()
            writer.finalise({})
            finalise = time.perf_counter() - started
        data = np.concatenate(whole)
        np.save(root / "plain.npy", data)
        default = zarr.create_array(str(root / "default.zarr"), shape=data.shape, chunks=(10, 1024), dtype="f4")
        default[...] = data
        store = FeatureStore.open(root / "s.zarr")
        if not np.array_equal(store.read("rgb"), data):
            raise SystemExit("the store did not give back what was written")

        rows = {
            "numpy.load, no checksum": median_ms(lambda: np.load(root / "plain.npy")),
            "store.read('rgb')": median_ms(lambda: store.read("rgb")),
            "open the store, then read": median_ms(lambda: FeatureStore.open(root / "s.zarr").read("rgb")),
            "store.dask('rgb').compute()": median_ms(lambda: store.dask("rgb").compute()),
            "Zarr's defaults, chunk per video": median_ms(lambda: default[...], repeats=3),
            "one video of the store": median_ms(lambda: store.video(store.ids[videos // 2], "rgb")),
        }
        base = rows["numpy.load, no checksum"]
        print(f"{data.nbytes / 1e6:.0f} MB, {videos} videos")
        for name, ms in rows.items():
            print(f"{name:34} {ms:8.1f} ms   {ms / base:6.2f} × numpy.load")
        commit, sync = statistics.median(commits[:-30]) * 1e3, statistics.median(synced) * 1e3
        print(f"{'commit of one video':34} {commit:8.1f} ms")
        print(f"{'… and fsync of its files':34} {sync:8.1f} ms   {sync / commit:6.2f} × the commit")
        print(f"{'finalise':34} {finalise * 1e3:8.0f} ms   {finalise / videos * 1e3:6.2f} ms a video")


if __name__ == "__main__":
    main()
