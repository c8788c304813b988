"""From 1 to 1,000 workers on a million videos: how long, what is lost, and what gives way first.

    python benchmarks/scale.py --measure          # costs of the store and of planning: results/scale-measured.json
    python benchmarks/scale.py                    # the tables: results/scale.json, and docs/scaling.md
    python benchmarks/scale.py --validate         # the model beside real runs of one and of two parts

Nothing is extracted but with `--validate`. Decoding, networks and flow are those of `results/stages-xeon-2cores.json`;
how much faster a GPU is than one of its cores is not known here and is given (`--device 50`). The same seed gives the
same tables. What is modelled, and how, is in `scale_model.py`, what it is given in `scale_given.py`; how requests are
counted, in `scale_counts.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from aqa_shared.files import scratch

sys.path.insert(0, str(Path(__file__).parent))
from scale_given import Costs, Result, Setting
from scale_model import of_frames, simulated

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MEASURED, STAGES, RECORD = RESULTS / "scale-measured.json", RESULTS / "stages-xeon-2cores.json", RESULTS / "scale.json"
PAGE = ROOT / "docs" / "scaling.md"
MARK = "<!-- {} of benchmarks/scale.py -->"
WORKERS = (1, 10, 100, 1000)
TOLERANCE = 0.25
"""Of the wall time of a real run: machines are shared, and ten clips are few."""


def costs() -> Costs:
    """What was measured, from the two files."""
    rates = {row["stage"]: row["ours_per_s"] for row in json.loads(STAGES.read_text())["rows"]}
    return Costs(
        decode_rate=rates["decode (child process)"],
        clip_rate=rates["I3D float32 16x224x224"],
        flow_rate=rates["TV-L1 parity 256x455"],
        **json.loads(MEASURED.read_text())["costs"],
    )


def measure(videos: int) -> None:
    """Measure what `results/stages-*.json` does not hold."""
    from scale_counts import by_video, measured

    with scratch("aqa-scale-") as folder:
        (folder / "v").mkdir()
        found = measured(folder / "v", videos)
        started = time.perf_counter()
        code = "from aqa_extract.networks import Networks; from aqa_extract.config import resolve; import torch; "
        code += "s = resolve(None, {'streams': 'rgb,flow'}).features; Networks.load(s, torch.device('cpu'), print)"
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        found["start"] = time.perf_counter() - started
    requests = {phase: {" ".join(k): n for k, n in sorted(of.items())} for phase, of in by_video()[0].items()}
    record = {"machine": platform.platform(), "videos": videos, "costs": found, "requests for each video": requests}
    MEASURED.write_text(json.dumps(record, indent=1) + "\n")
    print(MEASURED.read_text())


# --- the tables ---------------------------------------------------------------------------------------------


def cases(setting: Setting, many: Sequence[int]) -> dict[str, list[tuple[str, Setting, int, int]]]:
    """By table: (engine, setting, workers, batches)."""
    folder = replace(setting, remote=False)
    dense = replace(setting, segments=0)
    ten = 10
    last = many[-1:]
    return {
        "array": [("array", setting, n, 1) for n in many],
        "parts": [("array", replace(setting, parts=4), n, 1) for n in last],
        "dask": [("dask", setting, n, 1) for n in many[-2:]],
        "batches": [("array", setting, n, ten) for n in last],
        "folder": [("array", folder, n, 1) for n in last],
        "dense": [(engine, dense, n, 1) for engine in ("array", "dask") for n in last],
    }


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


COLUMNS = (
    "engine",
    "workers",
    "batches",
    "wall time",
    "of ideal",
    "idle, worker hours",
    "lost",
    "ends",
    "puts/s, peak",
    "gets/s, peak",
    "planning",
    "finalise",
    "its memory",
    "waits most for",
)


def row(r: Result) -> list[str]:
    waited = {**(r.waited or {}), "finalise": r.finalise * r.workers}
    name, seconds = max(waited.items(), key=lambda item: item[1])
    share = seconds / (r.wall * r.workers)
    return [
        r.engine,
        f"{r.workers:,}",
        str(r.batches),
        hours(r.wall),
        f"{100 * r.efficiency:.0f} %",
        f"{r.idle / 3600:,.0f}",
        f"{r.lost / 3600:,.0f}",
        f"{r.ends:,}",
        f"{r.peak_puts:,.0f}",
        f"{r.peak_gets:,.0f}",
        hours(r.plan),
        hours(r.finalise),
        f"{r.finalise_memory / 1e9:.1f} GB",
        f"{name} ({100 * share:.0f} %)",
    ]


def table(rows: Sequence[Result]) -> str:
    lines = [COLUMNS, ["---"] * len(COLUMNS), *map(row, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def bends(rows: Sequence[Result]) -> str:
    """At how many workers less than four fifths of the ideal are reached, and what they wait for."""
    for r in rows:
        if r.efficiency < 0.8:
            return f"Bends at {r.workers:,} workers ({100 * r.efficiency:.0f} % of ideal): {row(r)[-1]}."
    return f"Does not bend up to {rows[-1].workers:,} workers."


def run(setting: Setting, workers: Sequence[int]) -> dict[str, Any]:
    """All tables; prints each as it is done."""
    found: dict[str, Any] = {}
    done: dict[tuple[Any, ...], Result] = {}
    for name, of in cases(setting, workers).items():
        rows = []
        for engine, asked, count, batches in of:
            key = (engine, asked, count, batches)
            done[key] = done.get(key) or simulated(engine, asked, costs(), count, batches)
            rows.append(done[key])
        text = table(rows) + "\n\n" + bends(rows)
        print(f"\n{name}\n\n{text}", flush=True)
        found[name] = {"table": text, "rows": [r.to_dict() for r in rows]}
    return {"setting": asdict(setting), "costs": asdict(costs()), "tables": found}


def given(setting: dict[str, Any], costs: dict[str, Any]) -> str:
    """What the tables rest on, as a table."""
    lines = ["| measured | | taken as given | |", "|---|---|---|---|"]
    left = [f"| {k} | {v:.4g} |" for k, v in costs.items()]
    right = [f" {k} | {v:,} |" for k, v in setting.items()]
    for i in range(max(len(left), len(right))):
        lines.append((left[i] if i < len(left) else "| | |") + (right[i] if i < len(right) else " | |"))
    return "\n".join(lines)


def cost(record: dict[str, Any]) -> str:
    """What the first table's lab uses, whatever it is paid."""
    s, c, row = record["setting"], record["costs"], record["tables"]["array"]["rows"][0]
    device_hours = row["ideal"] / 3600
    features = s["videos"] * s["segments"] * s["networks"] * 4096
    lines = [
        "| what | amount |",
        "|---|---|",
        f"| device hours, ideal | {device_hours:,.0f} |",
        f"| core hours, ideal | {device_hours * s['decoders']:,.0f} |",
        f"| bytes of features | {features / 1e9:,.0f} GB, twice that while they are finalised |",
        f"| bytes of markers, while they are staged | {s['videos'] * c['marker_bytes'] / 1e9:,.1f} GB |",
        f"| puts | {row['puts'] + features / (4 << 20):,.0f} |",
        f"| gets of `aqa finalise` | {s['videos'] * c['finalise_gets']:,.0f} |",
        f"| deletes | {row['deletes']:,.0f} |",
    ]
    return "\n".join(lines)


def written(page: str, record: dict[str, Any]) -> str:
    """The page with its tables made again from the record."""
    blocks = {name: t["table"] for name, t in record["tables"].items()}
    blocks |= {"given": given(record["setting"], record["costs"]), "cost": cost(record)}
    for name, text in blocks.items():
        begin, end = MARK.format(name), MARK.format(f"end of {name}")
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{PAGE} has no place for the table {name}: {begin} … {end}")
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


# --- the model beside real runs -----------------------------------------------------------------------------

PART = """
import sys, time
from pathlib import Path
from aqa_extract.config import Options
from aqa_extract.run import extract
from aqa_shared.manifest import find_videos
from aqa_shared.records import ExtractSettings, Pixels, Sampling
videos, store, part, parts = sys.argv[1:]
settings = ExtractSettings(sampling=Sampling(segments=2), pixels=Pixels(short_side=256, crop=224))
options = Options(device="cpu", shard=(int(part), int(parts)))
report = extract(find_videos(videos).videos, Path(store), settings, options)
sys.exit(report.text() if report.failures else 0)
"""


def real(videos: Path, store: Path, parts: int) -> float:
    """Wall seconds of so many parts at once, each a process on a core of its own."""
    cores = sorted(os.sched_getaffinity(0))
    started = time.perf_counter()
    running = []
    for i in range(parts):
        command = [sys.executable, "-c", PART, str(videos), str(store), str(i + 1), str(parts)]
        core = {cores[i % len(cores)]}
        running.append(subprocess.Popen(command, preexec_fn=lambda core=core: os.sched_setaffinity(0, core)))  # type: ignore[misc]
    if any(process.wait() for process in running):
        raise SystemExit("a real run failed")
    return time.perf_counter() - started


def fitted(videos: Path, store: Path, parts: int, frames: dict[str, int]) -> tuple[float, float, float]:
    """(start, seconds for each video, seconds for each frame) with so many parts at once, from the times of commits."""
    wall = real(videos, store, parts)
    marks = sorted((m.stat().st_mtime, json.loads(m.read_bytes())["id"]) for m in store.glob("staged/*.json"))
    rows, gaps = [], []
    for (before, _), (now, name) in pairwise(marks):
        rows.append([1.0, frames[name]])
        gaps.append((now - before) * parts)  # parts take turns
    (each, of_frame), *_ = np.linalg.lstsq(np.array(rows), np.array(gaps), rcond=None)
    each, of_frame = max(each, 0.0), max(of_frame, 0.0)
    work = sum(each + of_frame * n for n in frames.values()) / parts
    return max(wall - work, 0.0), each, of_frame


def validate(count: int) -> None:
    """Calibrate on some clips, predict others, run them."""
    from dask_workers import render

    from aqa_shared.manifest import find_videos

    rng = np.random.default_rng(1)
    with scratch("aqa-scale-") as folder:
        frames: dict[str, dict[str, int]] = {}
        for name in ("calibration", "real"):
            (folder / name).mkdir()
            frames[name] = {f"{i:03}.mp4": int(n) for i, n in enumerate(rng.integers(60, 900, count))}
            for i, (file, n) in enumerate(frames[name].items()):
                render(folder / name / file, n, i)
        sizes = {Path(v.path).name: Path(v.path).stat().st_size for v in find_videos(folder / "real").videos}
        failed = False
        for parts in (1, 2):
            start, each, of_frame = fitted(folder / "calibration", folder / f"c{parts}", parts, frames["calibration"])
            setting = Setting(
                videos=count, segments=2, read=1.0, networks=1, flow=False, device=1.0, decoders=1, remote=False,
                spread=0.0, stragglers=0.0, lifetime=0.0, stats=float("inf"),
            )  # fmt: skip
            own = replace(costs(), decode_rate=1 / max(of_frame, 1e-9), clip_rate=2 / max(each, 1e-9), start=start)
            own = replace(own, plan=0.0, commit=0.0)  # in `start` and in `each`
            names = sorted(frames["real"])
            videos = of_frames(
                np.array([float(frames["real"][n]) for n in names]),
                np.array([1 + sizes[n] / 10_000 for n in names]),
                setting,
                own,
            )
            # One core decodes and computes in turn: nothing overlaps.
            videos = replace(videos, load=videos.load + videos.device, device=np.zeros(count))
            told = simulated("array", setting, own, parts, videos=videos)
            predicted = told.wall - told.finalise
            took = real(folder / "real", folder / f"r{parts}", parts)
            off = predicted / took - 1
            failed |= abs(off) > TOLERANCE
            print(
                f"{parts} part(s) of {count} clips: {predicted:.1f} s predicted, {took:.1f} s measured, "
                f"{100 * off:+.0f} % (tolerance {100 * TOLERANCE:.0f} %); from other clips: start {start:.1f} s, "
                f"{each:.2f} s a video, {1e3 * of_frame:.2f} ms a frame",
                flush=True,
            )
    if failed:
        raise SystemExit("beyond the tolerance")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--quick", action="store_true", help="20,000 videos, up to 100 workers; writes nothing")
    parser.add_argument("--workers", type=int, nargs="*")
    parser.add_argument("--clips", type=int, default=12, help="of --validate")
    parser.add_argument("--sample", type=int, default=2000, help="videos of --measure")
    for name, value in asdict(Setting()).items():
        if not isinstance(value, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    asked = vars(parser.parse_args())
    if asked["measure"]:
        measure(asked["sample"])
        return
    if asked["validate"]:
        validate(asked["clips"])
        return
    setting = Setting(**{name: asked[name] for name in asdict(Setting()) if name in asked})
    workers = asked["workers"] or WORKERS
    if asked["quick"]:
        setting, workers = replace(setting, videos=20_000, hours=2_000.0), (1, 10, 100)
    record = run(setting, workers)
    if setting == Setting() and workers == WORKERS:  # what the page tells
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), record), encoding="utf-8")


if __name__ == "__main__":
    main()
