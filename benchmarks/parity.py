"""How far our networks and our flow are from reference implementations: largest and mean differences.

    python benchmarks/parity.py GOLDENS

GOLDENS is a folder of reference inputs and outputs: `i3d_rgb_*.npz` (frames, feature), `tvl1_*.npz` (pairs, flow) and
`ssd_*.npz` (frames, boxes0…, scores0…). The tests assert the same comparisons; this prints their figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch


def i3d(goldens: Path) -> None:
    """Features of 16 frames of 224x224, by precision."""
    from aqa_extract.frames import normalise
    from aqa_extract.i3d import load_i3d

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        network = load_i3d("i3d-kinetics-400", "rgb", say=lambda _: None)[0].to(dtype)
        for path in sorted(goldens.glob("i3d_rgb_*.npz")):
            golden = np.load(path)
            x = torch.from_numpy(golden["frames"]).permute(3, 0, 1, 2)[None].float()
            got = network.features(normalise(x, "kinetics").to(dtype))[0].numpy()
            error = np.abs(got - golden["feature"])
            cosine = got @ golden["feature"] / np.linalg.norm(got) / np.linalg.norm(golden["feature"])
            name = f"I3D {str(dtype).removeprefix('torch.')}"
            print(f"{name:<16} {path.stem:<28} max {error.max():.2e}  mean {error.mean():.2e}  cosine {cosine:.7f}")


def tvl1(goldens: Path) -> None:
    """Flow of real pairs, by mode and engine."""
    from dataclasses import replace

    from aqa_extract.flow import native
    from aqa_extract.flow.tvl1 import TVL1Settings
    from aqa_extract.flow.tvl1 import tvl1 as solve

    for mode in ("parity", "fast"):
        for engine in ("native", "torch") if native.load() is not None else ("torch",):
            settings = replace(TVL1Settings.named(mode), engine=engine)
            for path in sorted(goldens.glob("tvl1_*.npz")):
                golden = np.load(path)
                frames = torch.from_numpy(golden["pairs"]).flatten(0, 1)
                first = torch.arange(0, len(frames), 2)
                got = solve(frames, first, first + 1, settings).permute(0, 2, 3, 1).numpy()
                error = np.abs(got - golden["flow"].astype(np.float32))
                distance = np.linalg.norm(got - golden["flow"].astype(np.float32), axis=-1)
                name = f"TV-L1 {mode} {engine}"
                print(
                    f"{name:<20} {path.stem:<24} max {error.max():.3f} px  mean EPE {distance.mean():.4f} px  "
                    f"within 0.1 px {100 * (error <= 0.1).mean():.2f} %"
                )


def ssd(goldens: Path) -> None:
    """The five best persons of each frame."""
    from torchvision.ops import box_iou

    from aqa_extract.actor.ssd import load_detector

    detector, _ = load_detector("ssd-mobilenet-v3", lambda _: None)
    for path in sorted(goldens.glob("ssd_*.npz")):
        golden = np.load(path)
        found = detector.detect(torch.from_numpy(golden["frames"]).permute(0, 3, 1, 2))
        overlaps, differences = [], []
        for i in range(len(golden["frames"])):
            boxes, scores = torch.from_numpy(golden[f"boxes{i}"]), torch.from_numpy(golden[f"scores{i}"])
            overlap, at = box_iou(boxes, found.boxes[i]).max(dim=1)
            overlaps += overlap.tolist()
            differences += (found.scores[i][at] - scores).abs().tolist()
        print(
            f"SSD MobileNetV3  {path.stem:<28} lowest IoU {min(overlaps):.6f}  mean IoU {np.mean(overlaps):.6f}  "
            f"score error max {max(differences):.1e} mean {np.mean(differences):.1e}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("goldens", type=Path)
    folder = parser.parse_args().goldens
    torch.set_num_threads(1)
    with torch.inference_mode():
        i3d(folder)
        tvl1(folder)
        ssd(folder)
