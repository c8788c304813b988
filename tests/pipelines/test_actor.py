"""`aqa actor`: whom the actor's streams follow, as numbers and as a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from aqa_dives.dataset import Look, write_video
from aqa_shared.errors import EnvironmentFault

from .commands import copy_cut

WEIGHTS = "ssd-mobilenet-v3"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "aqa", "actor", *arguments, "--weights", WEIGHTS, "--device", "cpu"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_dive_is_followed_and_drawn(tmp_path: Path) -> None:
    from aqa_extract.weights import fetch

    try:
        fetch(WEIGHTS)
    except EnvironmentFault as e:
        pytest.skip(f"the weights of {WEIGHTS} cannot be had here: {e.cause}")
    video = write_video(Look(seed=5, frames=24), 1, tmp_path)
    done = run(str(video), "--every", "4", "--json", "--sheet", str(tmp_path / "sheet.png"))
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["frames"] == [0, 4, 8, 12, 16, 20, 23]
    actor = said["tracks"][0]
    assert actor["coverage"] > 0.5
    assert len(actor["crops"]) == len(actor["boxes"]) == 7
    # Seven looks in one row of eight: a frame of 176 pixels' width, and the crop below it.
    assert Image.open(tmp_path / "sheet.png").size == (8 * 180, 14 + 141 + 141 + 6)
    refused = run(str(video), "--sheet", str(tmp_path / "sheet.txt"))
    assert refused.returncode == 2
    assert "name a .png" in refused.stderr


def test_a_damaged_video_is_watched_where_that_is_asked_for(tmp_path: Path) -> None:
    from aqa_extract.weights import fetch

    try:
        fetch(WEIGHTS)
    except EnvironmentFault as e:
        pytest.skip(f"the weights of {WEIGHTS} cannot be had here: {e.cause}")
    copy_cut(write_video(Look(seed=5, frames=24), 1, tmp_path), tmp_path / "cut.mp4")
    done = run(str(tmp_path / "cut.mp4"))
    assert (done.returncode, "--accept-damaged" in done.stderr) == (3, True), done.stderr
    done = run(str(tmp_path / "cut.mp4"), "--accept-damaged")
    assert done.returncode == 0, done.stderr
    assert "frames missing" in done.stderr
    assert "looked at" in done.stdout


def test_a_file_that_is_no_video_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").write_bytes(b"nothing" * 100)
    done = run(str(tmp_path / "v.mp4"))
    assert done.returncode in (3, 5), done.stderr  # 5 where the weights cannot be had
    assert "v.mp4" in done.stderr or "weights" in done.stderr
