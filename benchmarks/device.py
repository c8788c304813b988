"""One extraction of rendered dives, end to end, on a device beside this machine's CPU: rate, stages, features.

    python benchmarks/device.py --device cuda --videos 60 --streams rgb,flow,actor-rgb

Features of both are compared; a second run on the device must give the same bits. --profile FILE also writes what the
device's time went to, by kernel, over another run.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import numpy as np
import torch

from aqa_dives.dataset import Look, render
from aqa_extract.config import Options, resolve
from aqa_extract.run import Report, extract
from aqa_shared.machine import available_cores
from aqa_shared.manifest import find_videos
from aqa_shared.records import ExtractSettings
from aqa_shared.store import FeatureStore


def run(videos: Path, out: Path, settings: ExtractSettings, device: str) -> Report:
    report = extract(find_videos(videos).videos, out, settings, Options(device=device))
    if report.failures:
        raise SystemExit(report.text())
    return report


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--reference", type=int, default=6, help="videos that the CPU extracts too")
    parser.add_argument("--streams", default="rgb,flow,actor-rgb")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", type=Path)
    args = parser.parse_args()
    settings = resolve(None, {"streams": args.streams, "precision": args.precision}).features
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor()
    with tempfile.TemporaryDirectory() as folder:
        there = Path(folder)
        look = Look(seed=5, width=340, height=256)
        render(look, args.videos, there / "many", workers=available_cores(), overwrite=False, advance=lambda: None)
        render(look, args.reference, there / "few", workers=available_cores(), overwrite=False, advance=lambda: None)
        run(there / "few", there / "warm.zarr", settings, args.device)  # loads weights, plans kernels
        reports = {
            "device": run(there / "many", there / "device.zarr", settings, args.device),
            "again": run(there / "many", there / "again.zarr", settings, args.device),
            "cpu": run(there / "few", there / "cpu.zarr", settings, "cpu"),
        }
        if args.profile:
            with torch.profiler.profile() as profiler:
                run(there / "few", there / "profiled.zarr", settings, args.device)
            by = "self_device_time_total" if args.device.startswith("cuda") else "self_cpu_time_total"
            args.profile.write_text(profiler.key_averages().table(sort_by=by, row_limit=60) + "\n")
        stores = {name: FeatureStore.open(there / f"{name}.zarr") for name in reports}
        features = {}
        for stream in settings.streams:
            array = stream.replace("-", "_")
            a, b = (stores[k].read(array) for k in ("device", "again"))
            c = stores["cpu"].read(array)
            d = a[: len(c)]
            cosine = (c * d).sum(1) / np.linalg.norm(c, axis=1) / np.linalg.norm(d, axis=1)
            features[stream] = {"same_bits_twice": bool(np.array_equal(a, b)), "lowest_cosine": float(cosine.min())}
    rates = {k: r.extracted / r.seconds for k, r in reports.items()}
    print(f"{name}, {available_cores()} cores, torch {torch.__version__}, {args.precision}, {args.streams}")
    for key, report in reports.items():
        stages = ", ".join(f"{k} {v:.1f} s" for k, v in report.stages.items())
        print(f"{key:8} {rates[key]:8.3f} videos/s ({rates[key] / rates['cpu']:.1f} times the CPU's)  {stages}")
    for stream, found in features.items():
        same = found["same_bits_twice"]
        print(f"{stream:12} lowest cosine with the CPU {found['lowest_cosine']:.6f}, same bits twice: {same}")
    if args.json:
        record = {
            "device": name, "cores": available_cores(), "torch": torch.__version__, "precision": args.precision,
            "videos_per_second": rates, "features": features, "stages": {k: r.stages for k, r in reports.items()},
        }  # fmt: skip
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
