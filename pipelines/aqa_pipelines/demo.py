"""`aqa demo`: render dives, extract features with the real command, train with the real command, compare.

All sizes are here, so that the whole stays near three minutes on two idle cores without a GPU.
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from aqa_dives.dataset import Look, name_of, render
from aqa_shared import console
from aqa_shared.errors import AqaError, ExitCode
from aqa_shared.machine import has_units_for, pick_device
from aqa_train.signals import TERMINATING

EXTRACT = [
    "--streams", "rgb,actor-rgb",
    "--segments", "4",
    "--short-side", "112",
    "--crop", "112",
]  # fmt: skip
"""Smaller than the papers' 10 segments of 224²: a demo, not a result. No flow, which takes most of the time."""

TRAIN = [
    "--method", "auto,aa,s4aqa",
    "--labelled", "0.4",
    "--seeds", "5",
    "--epochs", "150",
    "--streams", "rgb,actor-rgb",
    "--set", "recovery_weight=4",
]  # fmt: skip
"""The paper's recovery weight of 40 goes with hundreds of labelled videos; 4 was chosen on other rendered dives
(docs/demo.md)."""

STAGES = {"aqa-extract": "aqa_extract.cli", "aqa-train": "aqa_train.cli"}


def render_videos(look: Look, count: int, out: Path, *, workers: int = 0, overwrite: bool = False) -> Path:
    """Videos and labels.csv under out/videos; returns that folder."""
    folder = out / "videos"
    with console.progress("render", count) as advance:
        made = render(look, count, folder, workers=workers, overwrite=overwrite, advance=advance)
    console.note(f"{console.counted(count, 'video')} and labels.csv in {folder} ({made} rendered now)")
    return folder


def run_stages(out: Path) -> int:
    """Extract, train, compare; returns the exit code. Both are the commands that a user types, as processes."""
    store, run = out / "feats.zarr", out / "run"
    code = _command("aqa-extract", [str(out / "videos"), "--out", str(store), *EXTRACT, *_precision()])
    if code not in (ExitCode.OK, ExitCode.QUARANTINED):
        return code
    begun = (run / "config.json").exists()
    trained = _command("aqa-train", ["--features", str(store), *TRAIN, "--out", str(run)])
    if trained != ExitCode.OK:
        if begun and trained == ExitCode.USAGE:
            console.note(f"to train again, remove {run}, or give another --out")
        return trained
    console.out.print(comparison(json.loads((run / "metrics.json").read_text(encoding="utf-8"))), markup=False)
    console.out.print(_where(out), markup=False)
    return code


def _precision() -> list[str]:
    """The option that halves I3D's time or better, where the device can take it."""
    if not has_units_for("bf16", pick_device("auto")):
        return []
    console.note("this machine computes bf16 by itself: features differ from fp32 by about 0.01 % in direction")
    return ["--precision", "bf16"]


def _command(name: str, arguments: list[str]) -> int:
    """Run one of the two commands as a process of its own, after showing it; returns its exit code."""
    console.err.print(f"\n$ {shlex.join([name, *arguments])}", markup=False, style="bold")
    # The module, not the script on PATH: the demo must run the very installation it belongs to.
    child = subprocess.Popen([sys.executable, "-c", f"from {STAGES[name]} import main; main()", *arguments])
    # SIGTERM and SIGUSR1 may come to us alone: the child must not go on as an orphan.
    before = {s: signal.signal(s, lambda number, frame: child.send_signal(number)) for s in TERMINATING}
    try:
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:
                # The terminal sent it to the child as well, which commits what it has and leaves.
                continue
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if -code in TERMINATING:
        # It came before the child could hear it.
        return int(ExitCode.TERMINATED)
    if code < 0:
        raise AqaError(f"{name} was killed by signal {-code}", fix="rerun aqa demo to go on")
    return code


def comparison(metrics: dict[str, Any]) -> str:
    """Auto, AA and S4AQA, seed by seed, from the trainer's own metrics.json."""
    rows = {r["method"]: r["spearman"] for r in metrics["rows"] if r["selection"] in ("last", "baseline")}
    if not {"auto", "aa", "s4aqa"} <= rows.keys():
        return "the run has no auto, AA and S4AQA to compare"
    seeds = range(len(rows["auto"]["by_seed"]))
    lines = ["", "Spearman on the test videos    " + "  ".join(f"seed {i}" for i in seeds) + "    mean"]
    titles = {
        "auto": "auto (the default)",
        "aa": "AA (labelled videos only)",
        "s4aqa": "S4AQA (and the unlabelled)",
        "ridge": "ridge on mean features",
    }
    for method in [m for m in titles if m in rows]:
        cells = "  ".join(f"{v:6.3f}" if v is not None else "     –" for v in rows[method]["by_seed"])
        mean = rows[method]["mean"]
        lines.append(f"{titles[method]:29}  {cells}  {'–' if mean is None else f'{mean:6.3f}'}")
    for method, other, title in (
        ("s4aqa", "aa", "S4AQA is {} against AA"),
        ("auto", "s4aqa", "auto is {} against S4AQA"),
    ):
        pairs = zip(rows[method]["by_seed"], rows[other]["by_seed"], strict=True)
        known = [(a, b) for a, b in pairs if a is not None and b is not None]
        if known and rows[method]["mean"] is not None and rows[other]["mean"] is not None:
            gain = f"{rows[method]['mean'] - rows[other]['mean']:+.3f}"
            lines.append(f"{title.format(gain)}, ahead in {sum(a > b for a, b in known)} of {len(known)} seeds")
    lines.append(f"({metrics['protocol']['test']} test videos: differences below about 0.1 are noise)")
    return "\n".join(lines)


def _where(out: Path) -> str:
    store, run = out / "feats.zarr", out / "run"
    places = {
        out / "videos": "the videos; labels.csv has their scores and what caused them",
        store: f"the features; see `{shlex.join(['aqa', 'info', str(store)])}`",
        run: "metrics.json, scores.csv (every video), splits, checkpoints, plots",
    }
    width = max(len(str(place)) for place in places)
    rows = [f"{place!s:{width}}  {what}" for place, what in places.items()]
    command = shlex.join(["aqa", "predict", str(run), str(out / "videos" / name_of(2)), "--method", "auto"])
    return "\n".join(["", *rows, f"try: {command}"])
