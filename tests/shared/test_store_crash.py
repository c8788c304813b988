"""SIGKILL at any moment, then the same command again: the store is byte-equal to an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aqa_shared.store import FeatureStore, verify

from .store_cases import arrays_of

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
    """While the store is created, and evenly over the file-system operations of commits and both finalises."""
    birth = ["1", "6", "11"]
    points = birth + [f"{x:.4f}" for x in np.linspace(0.01, 0.995, 14)]
    results = _kills(tmp_path, points)
    assert [r["point"] for r in results] == points
    assert all(r["killed"] for r in results)


_CROWD = """
import sys
from pathlib import Path
from tests.shared.store_cases import arrays_of, meta_of, open_writer
path, first = Path(sys.argv[1]), int(sys.argv[2])
for start in (first, first + 3):
    with open_writer(path) as writer:
        for i in range(start, start + 6):  # half of what the next process writes as well
            writer.commit(f"v{i:02}.mp4", arrays_of(i, 1 + i % 4), meta_of(i))
        writer.finalise({})
"""


def test_processes_that_create_commit_and_finalise_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    crowd = [
        subprocess.Popen([sys.executable, "-c", _CROWD, str(path), str(6 * n)], cwd=ROOT, stderr=subprocess.PIPE)
        for n in range(3)
    ]
    for process in crowd:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    store = FeatureStore.open(path)
    assert store.ids == [f"v{i:02}.mp4" for i in range(21)]
    assert store.pending == 0
    assert verify(path) == []
    for i in range(21):
        np.testing.assert_array_equal(store.video(f"v{i:02}.mp4", "rgb"), arrays_of(i, 1 + i % 4)["rgb"])


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
