"""The commands on machines without a temporary folder, without a writable root, without semaphores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.extract.clips import Clip
from tests.pipelines.commands import run
from tests.shims import NO_SEMAPHORES, READ_ONLY, needs_shims, shim

from aqa_shared.errors import ExitCode
from aqa_shared.files import scratch
from aqa_shared.store import FeatureStore

BIN = Path(sys.executable).parent
pytestmark = needs_shims


def test_a_read_only_root_without_a_temporary_folder(tmp_path: Path, i3d_rgb_weights: str) -> None:
    """Extraction needs none. What does need one says so before it does anything."""
    (tmp_path / "in").mkdir()
    for i in range(2):
        Clip(frames=20 + i).write(tmp_path / "in" / f"{i}")
    poor = {"LD_PRELOAD": shim(tmp_path / "shim", READ_ONLY), "WRITABLE": str(tmp_path / "out")}
    (tmp_path / "out").mkdir()
    store = tmp_path / "out" / "s.zarr"
    small = ("--segments", 1, "--short-side", 32, "--crop", 32, "--weights", f"rgb={i3d_rgb_weights}")
    done = run("aqa-extract", tmp_path / "in", "--out", store, *small, **poor)
    assert done.returncode == ExitCode.OK, done.stderr
    assert FeatureStore.open(store).ids == ["0.mp4", "1.mp4"]
    done = run("aqa-train", "--features", store, "--out", tmp_path / "out" / "run", **poor)
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert "set TMPDIR" in done.stderr
    assert not (tmp_path / "out" / "run").exists()


def test_a_temporary_folder_may_lie_elsewhere(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from aqa_shared.files import scratch\n"
        "with scratch('x-', otherwise=Path(sys.argv[1])) as folder:\n"
        "    (folder / 'f').write_text('')\n"
        "    print(folder)\n"
    )
    poor = {"LD_PRELOAD": shim(tmp_path / "shim", READ_ONLY), "WRITABLE": str(tmp_path / "out")}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out" / "weights"],
        cwd="/",
        env={**os.environ, **poor},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "out" / "weights"))
    assert list((tmp_path / "out" / "weights").iterdir()) == []


def test_an_error_in_a_temporary_folder_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), scratch("x-") as folder:
        (folder / "absent").read_bytes()
    assert not folder.exists()


def test_without_semaphores_one_process_renders(tmp_path: Path) -> None:
    """What a read-only or missing /dev/shm takes away."""
    poor = {"LD_PRELOAD": shim(tmp_path / "shim", NO_SEMAPHORES)}
    picture = ("--videos", 2, "--size", "64x64", "--frames", 12, "--workers", 2, "--render-only")
    done = run("aqa", "demo", "--out", tmp_path / "demo", *picture, **poor)
    assert done.returncode == 0, done.stderr
    assert "rendering in one process" in done.stderr
    assert len(list((tmp_path / "demo" / "videos").glob("*.mp4"))) == 2


def test_cores_are_counted_without_semaphores(tmp_path: Path) -> None:
    code = "from aqa_shared.machine import available_cores; print(available_cores())"
    counts = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **more}, check=True
        )
        for more in ({}, {"LD_PRELOAD": shim(tmp_path, NO_SEMAPHORES)})
    ]
    assert counts[0].stdout == counts[1].stdout
    assert counts[1].stderr == ""
