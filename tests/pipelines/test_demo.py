"""`aqa demo`: what it renders, compares and tells to try."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.pipelines.commands import ALWAYS, run

from aqa_shared.machine import has_units_for, pick_device


def test_demo_renders_only_on_request(tmp_path: Path) -> None:
    small = ["--videos", "2", "--size", "64x48", "--frames", "12", "--render-only", "--out", "dives", "--workers", "1"]
    done = run("aqa", "demo", *small, "--sheet", "sheet.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    expected = ["dive_00000.mp4", "dive_00001.mp4", "generator.json", "labels.csv"]
    assert found == [*(f"dives/videos/{name}" for name in expected), "sheet.png"]
    other = run("aqa", "demo", *small, "--seed", "5", cwd=tmp_path)
    assert other.returncode == 2
    assert "--overwrite" in other.stderr


@pytest.mark.parametrize("wrong", [["--size", "big"], ["--size", "63x48"], ["--videos", "0"], ["--frames", "3"]])
def test_demo_refuses_what_cannot_be(wrong: list[str], tmp_path: Path) -> None:
    done = run("aqa", "demo", "--render-only", *wrong, cwd=tmp_path)
    assert done.returncode == 2
    assert "fix:" in done.stderr
    assert not (tmp_path / "demo").exists()


def test_demo_commands_are_commands() -> None:
    """What the demo runs is accepted by the two commands as it stands."""
    from aqa_pipelines.demo import EXTRACT, TRAIN, _precision

    extract = run("aqa-extract", "videos", "--out", "feats.zarr", *EXTRACT, *_precision(), "--print-config")
    assert extract.returncode == 0, extract.stderr
    settings = tomllib.loads(extract.stdout)
    assert settings["streams"] == ["rgb", "actor-rgb"]
    assert settings["precision"] == ("bf16" if has_units_for("bf16", pick_device("auto")) else "fp32")
    train = run("aqa-train", "--features", "feats.zarr", *TRAIN, "--print-config")
    assert train.returncode == 0, train.stderr
    assert "s4aqa" in train.stdout


def test_comparison_by_hand() -> None:
    from aqa_pipelines.demo import comparison

    def row(method: str, values: list[float | None]) -> dict[str, object]:
        known = [v for v in values if v is not None]
        return {"method": method, "selection": "last", "spearman": {"by_seed": values, "mean": sum(known) / len(known)}}

    rows = [row("auto", [0.75, 0.5]), row("aa", [0.5, 0.25]), row("s4aqa", [0.25, 0.75])]
    text = comparison({"rows": rows, "protocol": {"test": 16}})
    assert "S4AQA is +0.125 against AA, ahead in 1 of 2 seeds" in text
    assert "auto is +0.125 against S4AQA, ahead in 1 of 2 seeds" in text
    assert "16 test videos" in text
    assert "ridge" not in text
    ridge = {**row("ridge", [0.125, 0.25]), "selection": "baseline"}
    assert "ridge on mean features          0.125   0.250   0.188" in comparison(
        {"rows": [*rows, ridge], "protocol": {"test": 16}}
    )
    assert comparison({"rows": [], "protocol": {}}) == "the run has no auto, AA and S4AQA to compare"
    rows[1] = row("aa", [0.5, None])
    assert "AA, ahead in 0 of 1 seeds" in comparison({"rows": rows, "protocol": {"test": 16}})


def test_the_demo_tells_to_try_its_own_method() -> None:
    from aqa_pipelines.demo import TRAIN, _where

    assert "aqa predict demo/run demo/videos/dive_00002.mp4 --method auto" in _where(Path("demo"))
    assert "auto" in TRAIN[TRAIN.index("--method") + 1].split(",")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("how", "told", "code"),
    [
        ("hear", signal.SIGTERM, 143),
        ("die", signal.SIGTERM, 143),
        ("other", signal.SIGTERM, 7),
        ("die", signal.SIGUSR1, 143),
    ],
)
def test_a_terminated_demo_takes_its_command_along(tmp_path: Path, how: str, told: signal.Signals, code: int) -> None:
    stage = """
import signal, sys, time
def main():
    if sys.argv[1] != "die":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143 if sys.argv[1] == "hear" else 7))
    print("running", flush=True)
    time.sleep(60)
"""
    (tmp_path / "stage.py").write_text(stage)
    program = "import sys; from aqa_pipelines import demo; demo.STAGES['s'] = 'stage'\n"
    program += "sys.exit(demo._command('s', sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", program, how],
        stdout=subprocess.PIPE,
        env={**os.environ, **ALWAYS, "PYTHONPATH": str(tmp_path)},
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"running\n"
        parent.send_signal(told)
        # The pipe ends when the last process that holds it has ended.
        assert parent.stdout.read() == b""
        assert parent.wait(30) == code
