"""TV-L1 here against OpenCV's CPU DualTVL1: time per pair on one core, and how far the flow is from OpenCV's.

    python benchmarks/tvl1.py [--clip VIDEO] [--sizes 112x112,128x128] [--repeats 3] [--device cuda]

Without a clip it makes its frames (two textures that move apart). Times are processor time of one thread, the
least of the repeats, so that a busy machine disturbs them little; every line compares within this run. With
--device cuda times are wall time of a batch, and OpenCV's stay those of one core.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from itertools import pairwise

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch

from aqa_extract.flow import native
from aqa_extract.flow.inputs import to_gray
from aqa_extract.flow.settings import Engine, TVL1Settings
from aqa_extract.flow.tvl1 import tvl1


def made_frames(height: int, width: int, count: int) -> np.ndarray:
    """Grey frames in which a disc moves over a background that moves otherwise, uint8 (count, height, width)."""
    rng = np.random.default_rng(0)
    scenes = []
    for _ in range(2):
        noise = rng.normal(size=(height * 2, width * 2))
        scene = np.sum([s * cv2.GaussianBlur(noise, (0, 0), s) for s in (1.5, 4.0, 9.0)], axis=0)
        scenes.append(((scene - scene.min()) * (255 / np.ptp(scene))).astype(np.float32))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    scale = height / 256
    frames = []
    for t in range(count):
        back = cv2.remap(scenes[0], x + width / 2 + 1.3 * scale * t, y + height / 2, cv2.INTER_LINEAR)
        front = cv2.remap(scenes[1], x + width / 2 - 4 * scale * t, y + height / 2 - 3 * scale * t, cv2.INTER_LINEAR)
        inside = (x - width / 2 - 4 * scale * t) ** 2 + (y - height / 2 - 3 * scale * t) ** 2 < (height / 4) ** 2
        frames.append(np.where(inside, front, back).astype(np.uint8))
    return np.stack(frames)


def clip_frames(path: str, height: int, width: int, count: int, skip: int = 20) -> np.ndarray:
    """`count` grey frames of a video from frame `skip` on, resized as OpenCV does."""
    import av

    frames = []
    with av.open(path) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if skip <= i < skip + count:
                frames.append(cv2.resize(frame.to_ndarray(format="rgb24"), (width, height)))
            if len(frames) == count:
                break
    if len(frames) < count:
        raise SystemExit(f"{path} has fewer than {skip + count} frames")
    return to_gray(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)).numpy()


def least_time(work: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", help="video to take frames from; default: made ones")
    parser.add_argument("--sizes", default="112x112,128x128,128x160,256x340", help="heightxwidth, comma-separated")
    parser.add_argument("--pairs", type=int, default=2, help="pairs per measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    on_cpu = args.device == "cpu"

    def clock() -> float:
        if on_cpu:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    compiled: list[Engine] = ["native"] if on_cpu and not isinstance(native.load(), str) else []
    engines: list[Engine] = [*compiled, "torch"]
    first = torch.arange(args.pairs)
    reference = cv2.optflow.DualTVL1OpticalFlow_create()  # type: ignore[attr-defined]
    print(f"{'size':>9} {'method':>15} {'ms/pair':>9} {'pairs/s':>8} {'x OpenCV':>9} {'EPE px':>7} {'<=0.1 px':>9}")
    for size in args.sizes.split(","):
        height, width = map(int, size.split("x"))
        count = args.pairs + 1
        frames = clip_frames(args.clip, height, width, count) if args.clip else made_frames(height, width, count)

        def by_opencv(frames: np.ndarray = frames) -> list[np.ndarray]:
            return [reference.calc(a, b, None) for a, b in pairwise(frames)]

        expected = np.stack(by_opencv()).transpose(0, 3, 1, 2)
        base = least_time(by_opencv, args.repeats, time.process_time) / args.pairs
        print(f"{size:>9} {'OpenCV CPU':>15} {base * 1e3:9.1f} {1 / base:8.1f} {1.0:9.1f} {0.0:7.4f} {1.0:9.3f}")
        tensor = torch.from_numpy(frames).to(args.device)
        for engine in engines:
            settings = TVL1Settings(engine=engine)

            def ours(frames: torch.Tensor = tensor, settings: TVL1Settings = settings) -> torch.Tensor:
                return tvl1(frames, first, first + 1, settings)

            found = ours().cpu().numpy()
            spent = least_time(ours, args.repeats, clock) / args.pairs
            error = np.sqrt(((found - expected) ** 2).sum(axis=1)).mean()
            close = (np.abs(found - expected) <= 0.1).mean()
            figures = f"{spent * 1e3:9.1f} {1 / spent:8.1f} {base / spent:9.1f} {error:7.4f} {close:9.3f}"
            print(f"{size:>9} {engine:>15} {figures}")


if __name__ == "__main__":
    main()
