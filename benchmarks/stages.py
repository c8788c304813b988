"""Seconds per stage of extraction on this machine, beside a reference in the same run.

    python benchmarks/stages.py [--video FILE] [--device cpu] [--repeats 3] [--json OUT]

Ours and the reference alternate, and the ratio is the median over the pairs, so that a machine that slows down
half-way slows down both. One torch thread (and one OpenCV thread) on a CPU, to compare cores with cores.

References: sequential PyAV to rgb24 in this process; OpenCV's CPU DualTVL1 on the same pairs; I3D in fp32 as the
common eager ports run it (`benchmarks/i3d.py`); torchvision's ssdlite320 with its own full post-processing (random
weights: the cost is the same up to the number of boxes).
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from aqa_extract.decode.child import Chunk, Decoder, DecodeRequest
from aqa_shared.records import Sampling, Video

PAIRS = 4
CLIPS = 2
DETECT = 8


def write_clip(path: Path, frames: int = 103, width: int = 640, height: int = 360) -> None:
    """A textured scene that shifts and shakes: real motion for TV-L1, real detail for the codec."""
    import av

    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (height // 8 + 40, width // 8 + 40, 3), np.uint8)
    scene = torch.from_numpy(coarse).permute(2, 0, 1)[None].float()
    scene = torch.nn.functional.interpolate(scene, scale_factor=8, mode="bicubic").clamp(0, 255)[0].byte()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(frames):
            top, left = 60 + int(40 * np.sin(i / 9)), 60 + int(1.5 * i)
            picture = scene[:, top : top + height, left : left + width].permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Wall time of one call, with the device's queue drained."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def compare(
    ours: Callable[[], object], reference: Callable[[], object], repeats: int, device: torch.device
) -> tuple[float, float, float]:
    """(our median seconds, the reference's, median of the pairwise ratios reference / ours)."""
    seconds(ours, device)  # first calls allocate and choose kernels
    pairs = [(seconds(ours, device), seconds(reference, device)) for _ in range(repeats)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


def decode_child(path: Path, decoder: Decoder) -> int:
    """Frames of one video through the child process and shared memory."""
    request = DecodeRequest(
        path=str(path),
        video=Video(id=path.name, path=str(path)),
        sampling=Sampling(protocol="dense"),
        decoder="auto",
        need_next=True,
        deadline=120.0,
    )
    return sum(len(event.positions) for event in decoder.decode(request) if isinstance(event, Chunk))


def decode_here(path: Path) -> list[np.ndarray]:
    """Sequential PyAV."""
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import cv2
    import torchvision
    from i3d import Reference  # beside this file

    from aqa_extract import frames as px
    from aqa_extract.actor.ssd import load_detector
    from aqa_extract.backbones import BACKBONES
    from aqa_extract.flow.inputs import to_gray
    from aqa_extract.flow.tvl1 import tvl1
    from aqa_extract.i3d import load_i3d

    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows: list[dict[str, object]] = []

    def row(stage: str, unit: str, units: int, ours: Callable, name: str, reference: Callable) -> None:
        mine, theirs, ratio = compare(ours, reference, arguments.repeats, device)
        rows.append(
            {
                "stage": stage,
                "unit": unit,
                "ours_per_s": units / mine,
                "reference": name,
                "reference_per_s": units / theirs,
                "ratio": ratio,
            }
        )
        print(
            f"{stage:<26} {units / mine:10.2f} {unit}/s   {name:<30} {units / theirs:10.2f} {unit}/s   {ratio:6.2f}x",
            flush=True,
        )

    print(f"{platform.processor() or platform.machine()}, {device}, torch {torch.__version__}, 1 thread")
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = arguments.video or Path(folder) / "clip.mp4"
        if arguments.video is None:
            write_clip(path)
        frames = torch.from_numpy(np.stack(decode_here(path))).permute(0, 3, 1, 2).to(device)
        with Decoder() as decoder:
            row(
                "decode (child process)",
                "frame",
                len(frames),
                lambda: decode_child(path, decoder),
                "PyAV in this process",
                lambda: decode_here(path),
            )
        height, width = frames.shape[-2:]
        small = px.resize(frames, px.canvas_size(height, width, BACKBONES["i3d"].input.canvas))
        first = torch.arange(PAIRS, device=device)
        gray = to_gray(small[: PAIRS + 1])
        arrays = [g.cpu().numpy().astype(np.uint8) for g in gray]
        opencv = cv2.optflow.DualTVL1OpticalFlow_create()  # type: ignore[attr-defined]
        row(
            f"TV-L1 {gray.shape[-2]}x{gray.shape[-1]}",
            "pair",
            PAIRS,
            lambda: tvl1(gray, first, first + 1),
            "OpenCV CPU DualTVL1",
            lambda: [opencv.calc(arrays[i], arrays[i + 1], None) for i in range(PAIRS)],
        )
        crop = px.centre_crop(small[:16], 224).float() * (2 / 255) - 1
        clips = crop.transpose(0, 1)[None].repeat(CLIPS, 1, 1, 1, 1)
        plain = Reference().eval().to(device)
        for dtype in (torch.float32, torch.bfloat16):
            fused = load_i3d(stream="rgb", say=lambda _: None)[0].to(device, dtype)
            if device.type == "cpu":  # as the engine does
                fused = fused.to(memory_format=torch.channels_last_3d)
            x = clips.to(dtype)
            row(
                f"I3D {str(dtype).removeprefix('torch.')} 16x224x224",
                "clip",
                CLIPS,
                lambda fused=fused, x=x: fused.features(x),
                "I3D eager port, float32",
                lambda: plain.features(clips),
            )
        detector = load_detector("ssd-mobilenet-v3", lambda _: None)[0].to(device)
        theirs = torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
        theirs = theirs.eval().to(device)
        images = list(small[:DETECT].float() / 255)
        row(
            "SSD MobileNetV3 (persons)",
            "frame",
            DETECT,
            lambda: detector.detect(small[:DETECT]),
            "torchvision ssdlite320, all classes",
            lambda: theirs(images),
        )
    if arguments.json:
        report = {"machine": platform.platform(), "device": str(device), "torch": torch.__version__, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
