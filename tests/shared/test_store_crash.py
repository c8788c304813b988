"""SIGKILL at any moment, then the same command again: the store is byte-equal to an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def _kills(folder: Path, points: list[str]) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.shared.store_crash", str(folder), *points],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    first, *rest = map(json.loads, done.stdout.splitlines())
    assert first["operations"] > 500
    return rest


def test_a_writer_killed_anywhere_is_made_good_by_the_next(tmp_path: Path) -> None:
    """Evenly over the file-system operations, in the commits as in both finalises."""
    points = [f"{x:.4f}" for x in np.linspace(0.01, 0.995, 14)]
    results = _kills(tmp_path, points)
    assert [r["point"] for r in results] == points
    assert all(r["killed"] for r in results)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_writer_killed_before_every_operation(tmp_path: Path) -> None:
    assert all(r["killed"] for r in _kills(tmp_path, ["all"]))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_writer_killed_at_500_random_moments(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    results = _kills(tmp_path, [f"~{t:.4f}" for t in rng.uniform(0.0, 1.5, 500)])
    assert len(results) == 500
    assert sum(bool(r["killed"]) for r in results) > 100
