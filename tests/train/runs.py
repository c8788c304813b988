"""What tests of whole runs share: small settings, the command, and what a run folder holds."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from aqa_train.cli import app

FAST = ["--set", "widths=8,8", "--set", "batch=8", "--device", "cpu"]
HIDING = ["--labelled", 0.4]
"""Every video of most stores here has a score; this leaves some to learn from without it."""
HELD = [*FAST, "--test-fraction", "0.25"]
"""One test set, where nothing else says who is tested: for what is not about folds."""


def aqa_train(*arguments: object) -> None:
    app([str(a) for a in arguments], standalone_mode=False)


def started(arguments: list[object], start_new_session: bool = False, **environment: str) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    command = [sys.executable, "-m", "aqa_train.cli", *map(str, arguments)]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "JOB_"))}
    return subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, **environment},
        start_new_session=start_new_session,
    )


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def results(out: Path) -> dict[str, Any]:
    """Everything that must be the same in two runs that should be equal: records, and weights to the last bit."""
    found: dict[str, Any] = {}
    for file in sorted(out.glob("models/*/*/result.json")):
        record = json.loads(file.read_text())
        record.pop("seconds")
        found[str(file.relative_to(out))] = record
        weights = file.with_name("last.safetensors")
        found[str(weights.relative_to(out))] = weights.read_bytes()
    return found


def files(out: Path) -> dict[str, Any]:
    """Every file of a run folder, without what the clock and the place say; a grid's runs with it."""
    found: dict[str, Any] = {}
    for file in sorted(p for p in out.rglob("*") if p.is_file() and p.name != "environment.json"):
        name = str(file.relative_to(out))
        if file.name in ("result.json", "metrics.json"):
            found[name] = _timeless(json.loads(file.read_text()))
        elif file.name in ("results.csv", "metrics.csv"):
            header, *rows = [line.split(",") for line in file.read_text().splitlines()]
            clock = header.index("seconds")
            found[name] = [header, *([*row[:clock], *row[clock + 1 :]] for row in rows)]
        else:
            found[name] = file.read_bytes()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k != "seconds"}
    return [_timeless(v) for v in value] if isinstance(value, list) else value
