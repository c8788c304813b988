"""How much of finding people is the network, and how much what comes after it.

    python benchmarks/ssd.py [--device cuda] [--batch 32] [--video FILE]

Times, in one run and on the same frames, three ways through the same network (SSD MobileNetV3 with its COCO
weights): the network alone, our person path (`PersonDetector.detect`), and torchvision's post-processing of all
classes (`SSD.postprocess_detections`) after the same network. torchvision's scores are a softmax, which with a
background logit of 0 is close to this network's sigmoid, so that as many boxes pass its threshold as would.
Results go to stdout as ratios to the network alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from aqa_extract.actor.mobilenet_ssd import MobileNetSSD
from aqa_extract.actor.ssd import PersonDetector, decode, load_detector


def frames_of(video: str | None, count: int) -> Tensor:
    """uint8 (count, 3, height, width): the first frames of `video`, or blots of colour."""
    if video is None:
        coarse = torch.randint(0, 256, (count, 3, 9, 16), generator=torch.Generator().manual_seed(0)).float()
        return torch.nn.functional.interpolate(coarse, (360, 640), mode="bicubic").clamp(0, 255).byte()
    import av

    with av.open(video) as container:
        pictures = [f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(count), strict=False)]
    pictures = [pictures[i % len(pictures)] for i in range(count)]
    return torch.stack([torch.from_numpy(p) for p in pictures]).permute(0, 3, 1, 2).contiguous()


def seconds(works: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """The shortest of `repeats` runs of each, in turns, after one that is not counted.

    On the CPU it is the process's own time, which other programs on the machine hardly move.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    best = dict.fromkeys(works, float("inf"))
    for turn in range(repeats + 1):
        for name, work in works.items():
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                best[name] = min(best[name], clock() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--video")
    parser.add_argument("--weights", default="ssd-mobilenet-v3", help="name, or the zoo's frozen_inference_graph.pb")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    detector, _ = load_detector(arguments.weights, lambda line: print(line, file=sys.stderr))
    detector = detector.to(device)
    frames = frames_of(arguments.video, arguments.batch).to(device)
    for name, value in measure(detector, frames, device, arguments.repeats).items():
        print(f"{name:44s} {value}")


@torch.inference_mode()
def measure(detector: PersonDetector, frames: Tensor, device: torch.device, repeats: int) -> dict[str, str]:
    network = detector.network
    assert isinstance(network, MobileNetSSD), "the comparison is of the zoo's network"
    theirs = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    theirs.nms_thresh = detector.nms_iou
    size = detector.size
    corners = decode(torch.zeros_like(detector.anchors), detector.anchors) * size
    x = torch.nn.functional.interpolate(frames.float(), (size, size), mode="bilinear") / 127.5 - 1
    x = x.contiguous(memory_format=torch.channels_last)

    def after(codes: Tensor, logits: Tensor) -> list[dict[str, Tensor]]:
        logits = logits.clone()
        logits[..., 0] = 0
        outputs = {"bbox_regression": codes[..., [1, 0, 3, 2]], "cls_logits": logits}
        return theirs.postprocess_detections(outputs, [corners] * len(frames), [(size, size)] * len(frames))

    codes, logits = network.raw(x)
    passing = sum(len(d["labels"]) for d in after(codes, logits)) / len(frames)
    works: dict[str, Callable[[], object]] = {
        "alone": lambda: network.raw(x),
        "ours": lambda: detector.detect(frames),
        "full": lambda: after(*network.raw(x)),
    }
    alone, ours, full = seconds(works, device, repeats).values()
    return {
        "device, frames": f"{device}, {len(frames)} of {tuple(frames.shape[-2:])}",
        "torchvision's detections a frame, all classes": f"{passing:.0f}",
        "network alone": f"1.00  ({alone / len(frames) * 1e3:.2f} ms a frame)",
        "person path, resize to boxes": f"{ours / alone:.2f}",
        "network and torchvision's post-processing": f"{full / alone:.2f}",
        "torchvision's over ours": f"{full / ours:.2f}",
    }


if __name__ == "__main__":
    main()
