"""How far our networks and our flow are from reference implementations, over many clips.

    python benchmarks/parity.py [--clips FOLDER] [--made 4] [--goldens FOLDER]

Clips are the video files of a folder (those that cannot be decoded are named and left out) and rendered dives. Of each,
16 frames from its middle are taken, at a short side of 256 and a centre of 224.

- I3D: the eager port of `benchmarks/i3d.py` (nothing folded, every padding explicit) in float64, with the same weights.
- TV-L1: OpenCV's CPU DualTVL1 on the frames 0 and 1 of the 16. Beside it, as a yardstick, OpenCV against itself
  without its optimised paths (`cv2.setUseOptimized(False)`).
- With --goldens, a folder of stored reference outputs: `i3d_rgb_*.npz` (frames, feature), `tvl1_*.npz` (pairs, flow)
  and `ssd_*.npz` (frames, boxes0…, scores0…). The tests assert the same comparisons.

Prints a line a clip and comparison, and at the end the range of each.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from i3d import Reference  # beside this file
from torch import Tensor

from aqa_extract.backbones import BACKBONES
from aqa_extract.flow import native
from aqa_extract.flow.inputs import to_gray
from aqa_extract.flow.settings import Engine, TVL1Settings
from aqa_extract.flow.tvl1 import tvl1
from aqa_extract.frames import centre_crop, normalise, resize, size_at_short_side
from aqa_extract.i3d import InceptionI3D, build_i3d
from aqa_extract.weights import resolve
from aqa_shared.errors import AqaError

FRAMES = 16
WEIGHTS = "i3d-kinetics-400"


class Figures:
    """Prints what is measured and keeps the ranges."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str], list[float]] = defaultdict(list)

    def add(self, what: str, clip: str, **values: float) -> None:
        for name, value in values.items():
            self.kept[what, name.replace("_", " ")].append(value)
        text = "  ".join(f"{name.replace('_', ' ')} {value:.7g}" for name, value in values.items())
        print(f"{what:<24} {clip:<30} {text}", flush=True)

    def ranges(self) -> None:
        print("\nranges:")
        for (what, name), values in self.kept.items():
            print(f"{what:<24} {name:<16} {min(values):.7g} to {max(values):.7g}  ({len(values)} clips)")


def clips(folder: Path | None, made: int) -> Iterator[tuple[str, Tensor]]:
    """(name, uint8 (16, 3, h, w)) of every clip."""
    for path in sorted(folder.iterdir()) if folder else []:
        if path.is_file():
            try:
                yield path.stem, frames_of(path)
            except (AqaError, OSError, ValueError) as e:
                print(f"left out: {path.name}: {e}")
    if made:
        from aqa_dives.dataset import Look, render

        with tempfile.TemporaryDirectory() as out:
            render(Look(seed=7), made, Path(out), workers=1, overwrite=False, advance=lambda: None)
            for path in sorted(Path(out).glob("*.mp4")):
                yield f"rendered {path.stem}", frames_of(path)


def frames_of(path: Path) -> Tensor:
    """16 consecutive frames from the middle; ValueError where there are fewer."""
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if len(frames) < FRAMES:
        raise ValueError(f"only {len(frames)} frames")
    start = (len(frames) - FRAMES) // 2
    whole = torch.from_numpy(np.stack(frames[start : start + FRAMES])).permute(0, 3, 1, 2)
    height, width = whole.shape[-2:]
    return resize(whole, size_at_short_side(height, width, 256))


class I3DFigures:
    """The network in each precision beside the reference in float64."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        state = resolve(WEIGHTS, kind="rgb", say=lambda _: None).state
        self.reference = Reference()
        missing = self.reference.load_state_dict(state, strict=False).missing_keys
        assert all(key.endswith("num_batches_tracked") for key in missing), missing
        self.reference.double().eval()

        def ours(dtype: torch.dtype) -> InceptionI3D:
            return build_i3d(state, stream="rgb", bn_eps=1e-3, name=WEIGHTS).fuse().to(device, dtype)

        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
        if device.type == "cuda":  # as Networks.load does: fp32 must mean it
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            dtypes["fp16"] = torch.float16
        self.ours = {name: ours(dtype) for name, dtype in dtypes.items()}

    def features(self, name: str, x: Tensor) -> Tensor:
        """Of clips (1, 3, 16, 224, 224) in [-1, 1], by the network of a precision."""
        network = self.ours[name]
        return network.features(x.to(self.device, next(network.parameters()).dtype))[0].float().cpu()

    def add(self, figures: Figures, clip: str, frames: Tensor) -> None:
        x = centre_crop(frames, 224).transpose(0, 1)[None].float()
        x = normalise(x, BACKBONES["i3d"].input)
        # The pooling is in float32 in both, on a map that is float64 here.
        expected = self.reference.features(x.double())[0]
        for name in self.ours:
            got = self.features(name, x)
            figures.add(
                f"I3D {name}",
                clip,
                largest_difference=(got - expected).abs().max().item(),
                cosine=torch.cosine_similarity(got, expected, dim=0).item(),
            )


def flow_figures(figures: Figures, clip: str, frames: Tensor, device: torch.device) -> None:
    gray = to_gray(frames[:2])
    a, b = (g.numpy() for g in gray)

    def by_opencv(optimised: bool) -> np.ndarray:
        cv2.setUseOptimized(optimised)
        try:
            made = cv2.optflow.DualTVL1OpticalFlow_create()  # type: ignore[attr-defined]
            return made.calc(a, b, None).transpose(2, 0, 1)
        finally:
            cv2.setUseOptimized(True)

    expected = by_opencv(True)
    compiled = device.type == "cpu" and not isinstance(native.load(), str)
    engines: tuple[Engine, ...] = ("native", "torch") if compiled else ("torch",)
    pair = torch.tensor([0]), torch.tensor([1])
    found = {
        f"TV-L1 {engine}": tvl1(gray.to(device), *pair, TVL1Settings(engine=engine))[0].cpu().numpy()
        for engine in engines
    }
    found["OpenCV, not optimised"] = by_opencv(False)
    for name, flow in found.items():
        figures.add(name, clip, **flow_errors(flow, expected))


def flow_errors(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Of flow (2, h, w) in px: mean end-point error, and the share of values within 0.1 px in per cent."""
    difference = found - expected
    return {
        "mean_EPE_px": float(np.linalg.norm(difference, axis=0).mean()),
        "within_0.1_px_%": 100 * float((np.abs(difference) <= 0.1).mean()),
    }


def goldens(figures: Figures, folder: Path, i3d: I3DFigures) -> None:
    """The stored outputs of other implementations."""
    for path in sorted(folder.glob("i3d_rgb_*.npz")):
        golden = np.load(path)
        x = normalise(torch.from_numpy(golden["frames"]).permute(3, 0, 1, 2)[None].float(), BACKBONES["i3d"].input)
        expected = torch.from_numpy(golden["feature"])
        for name in i3d.ours:
            got = i3d.features(name, x)
            figures.add(
                f"I3D {name}, stored",
                path.stem,
                largest_difference=(got - expected).abs().max().item(),
                cosine=torch.cosine_similarity(got, expected, dim=0).item(),
            )
    for path in sorted(folder.glob("tvl1_*.npz")):
        golden = np.load(path)
        frames = torch.from_numpy(golden["pairs"]).flatten(0, 1)
        first = torch.arange(0, len(frames), 2)
        flow = golden["flow"].astype(np.float32).transpose(3, 0, 1, 2)
        ours = tvl1(frames.to(i3d.device), first, first + 1).cpu().numpy().transpose(1, 0, 2, 3)
        figures.add("TV-L1, stored", path.stem, **flow_errors(ours, flow))
    ssd(figures, folder, i3d.device)


def ssd(figures: Figures, folder: Path, device: torch.device) -> None:
    """The five best persons of each frame."""
    from torchvision.ops import box_iou

    from aqa_extract.actor.ssd import load_detector

    detector = load_detector("ssd-mobilenet-v3", lambda _: None)[0].to(device)
    for path in sorted(folder.glob("ssd_*.npz")):
        golden = np.load(path)
        found = detector.detect(torch.from_numpy(golden["frames"]).permute(0, 3, 1, 2).to(device))
        at_hand = found.boxes.cpu(), found.scores.cpu()
        overlaps, differences = [], []
        for i in range(len(golden["frames"])):
            boxes, scores = torch.from_numpy(golden[f"boxes{i}"]), torch.from_numpy(golden[f"scores{i}"])
            overlap, at = box_iou(boxes, at_hand[0][i]).max(dim=1)
            overlaps += overlap.tolist()
            differences += (at_hand[1][i][at] - scores).abs().tolist()
        figures.add("SSD, stored", path.stem, lowest_IoU=min(overlaps), largest_score_error=max(differences))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--made", type=int, default=4, help="rendered dives")
    parser.add_argument("--goldens", type=Path)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    figures = Figures()
    with torch.inference_mode():
        networks = I3DFigures(args.device)
        for name, frames in clips(args.clips, args.made):
            networks.add(figures, name, frames)
            flow_figures(figures, name, frames, args.device)
        if args.goldens:
            goldens(figures, args.goldens, networks)
    figures.ranges()


if __name__ == "__main__":
    main()
