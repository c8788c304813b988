"""Clips, and a store of them that nothing disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.extract.clips import Clip
from tests.extract.run.command import run_command

from aqa_shared.errors import ExitCode


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory, i3d_rgb_weights: str) -> Path:
    """Six different clips, one of them broken, and labels for four."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "sub").mkdir()
    for i, frames in enumerate((20, 24, 28, 34, 40)):
        Clip(frames=frames, size=(64 + 2 * i, 48)).write(folder / ("sub" if i == 4 else "") / f"clip{i}")
    (folder / "broken.mp4").write_bytes(b"not a video at all" * 100)
    rows = ["id,score,split"] + [f"clip{i}.mp4,{50 + 7 * i},{'train' if i < 3 else 'test'}" for i in range(4)]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="session")
def undisturbed(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("stores") / "undisturbed.zarr"
    done = run_command(clips, store)
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    return store
