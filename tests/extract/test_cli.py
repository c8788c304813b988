"""Options of aqa-extract: where they come from, which would be ignored, and printed to be read again."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.pipelines import commands

from aqa_shared.errors import ExitCode

REQUIRED = ("videos", "--out", "s.zarr")


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return commands.run("aqa-extract", *arguments, cwd=folder, **environment)


def printed(folder: Path, *arguments: str, **environment: str) -> dict[str, Any]:
    done = run(folder, *arguments, "--print-config", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return tomllib.loads(done.stdout)


def test_configuration_file_gives_way_to_environment_and_that_to_flags(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("segments = 3\nshort-side = 40\nbn_eps = 1e-5\n")
    config = ("--config", "c.toml", "--crop", "32", "--bn-eps", "0.01")
    found = printed(tmp_path, *REQUIRED, *config, AQA_EXTRACT_SHORT_SIDE="48")
    assert (found["segments"], found["short_side"], found["bn_eps"]) == (3, 48, 0.01)


def test_flags_switch_off_what_the_configuration_or_environment_switches_on(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('streams = ["rgb", "flow"]\nretry_failed = true\nantialias = true\n')
    config = ("--config", "c.toml", "--no-retry-failed", "--no-antialias")
    found = printed(tmp_path, *config, AQA_EXTRACT_ANTIALIAS="1")
    assert found["streams"] == ["rgb", "flow"]
    assert (found["retry_failed"], found["antialias"], found["flow"]) == (False, False, "parity")


@pytest.mark.parametrize("name", ["segmnts", "segment"])
def test_a_typo_in_the_configuration_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "c.toml").write_text(f"{name} = 3\n")
    done = run(tmp_path, *REQUIRED, "--config", "c.toml")
    assert done.returncode == ExitCode.USAGE
    assert "did you mean segments?" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        (),
        REQUIRED,
        ("a b.mp4", 'quote".mp4', "--out", "x", "--labels", "l.csv", "--segments", "4"),
        ("--protocol", "mtl-aqa", "--last-start", "87", "--streams", "actor-flow", "--flow-quantise", "none"),
        ("--protocol", "dense", "--step", "8", "--fps", "12.5", "--flow", "parity", "--batch", "3", "--retry-failed"),
    ],
)
def test_the_printed_configuration_gives_itself_again(tmp_path: Path, options: tuple[str, ...]) -> None:
    first = run(tmp_path, *options, "--print-config")
    assert (first.returncode, first.stderr) == (0, "")
    (tmp_path / "c.toml").write_text(first.stdout)
    again = run(tmp_path, "--config", "c.toml", "--print-config")
    assert (again.returncode, again.stdout, again.stderr) == (0, first.stdout, "")
    read = tomllib.loads(first.stdout)
    assert {"protocol", "streams", "flow", "device", "precision"} <= read.keys()
    # A run takes it as well: nothing in it is refused as ignored.
    done = run(tmp_path, "--config", "c.toml", *(() if "videos" in read else REQUIRED))
    assert done.returncode == ExitCode.NO_INPUT, done.stderr


@pytest.mark.parametrize(
    ("options", "ignored", "users"),
    [
        (("--protocol", "mtl-aqa", "--segments", "4"), "--segments", "--protocol even"),
        (("--protocol", "jigsaws", "--segment-frames", "16"), "--segment-frames", "--protocol even or dense"),
        (("--step", "8"), "--step", "--protocol dense"),
        (("--last-start", "87"), "--last-start", "--protocol mtl-aqa or aqa-7"),
        (("--flow-bound", "10"), "--flow-bound", "a stream of flow"),
        (("--flow", "parity", "--streams", "rgb", "--flow-quantise", "none"), "--flow-quantise", "a stream of flow"),
        (("--actor-every", "2"), "--actor-every", "--streams actor-rgb or actor-flow"),
        (("--streams", "flow", "--normalise", "imagenet"), "--normalise", "a stream of rgb"),
        (("--streams", "actor-rgb", "--short-side", "300"), "--short-side", "a stream that does not follow the actor"),
        (("--streams", "actor-rgb", "--antialias"), "--antialias", "a stream that does not follow the actor"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    tmp_path: Path, options: tuple[str, ...], ignored: str, users: str
) -> None:
    done = run(tmp_path, *REQUIRED, *options)
    assert done.returncode == ExitCode.USAGE
    assert f"error: {ignored} would be ignored" in done.stderr
    assert f"use {users}" in done.stderr


def test_flow_that_follows_the_actor_is_cut_out_of_whole_frames(tmp_path: Path) -> None:
    for streams in (("--streams", "actor-flow"), ("--streams", "actor-rgb", "--flow", "parity")):
        found = printed(tmp_path, *REQUIRED, *streams, "--short-side", "300")
        assert found["short_side"] == 300


def test_a_preset_gives_way_to_all_else(tmp_path: Path) -> None:
    gdlt = {"protocol": "dense", "segment_frames": 32, "step": 32, "fps": 25.0, "fit": "squash", "short_side": 256}
    preset = ("--streams", "rgb@swin3d_b", "--preset", "gdlt")
    found = printed(tmp_path, *REQUIRED, *preset)
    assert gdlt.items() <= found.items()
    (tmp_path / "c.toml").write_text("step = 8\n")
    for order in ((*preset, "--config", "c.toml"), ("--config", "c.toml", *preset)):
        found = printed(tmp_path, *REQUIRED, *order, "--fps", "10")
        assert (found["step"], found["fps"], found["segment_frames"]) == (8, 10, 32)
    (tmp_path / "c.toml").write_text('preset = "gdlt"\n')
    assert gdlt.items() <= printed(tmp_path, *REQUIRED, "--config", "c.toml").items()
    assert "choose one of gdlt" in run(tmp_path, *REQUIRED, "--preset", "dglt").stderr
    idle = run(tmp_path, "none", "--out", "s.zarr", "--preset", "gdlt", "--protocol", "even")
    assert (idle.returncode, "none" in idle.stderr) == (ExitCode.NO_INPUT, True)  # not: --step would be ignored


@pytest.mark.parametrize(
    ("given", "streams", "said"),
    [
        ("flow=f.pt", "rgb", "--weights flow=… would be ignored"),
        ("actor=a.pt", "rgb,flow", "--weights actor=… would be ignored"),
        ("rgb=r.pt", "flow", None),  # inflated flow weights are made of them
        ("rbg=r.pt", "rgb", "did you mean rgb"),
        ("rgb", "rgb", "weights: 'rgb' is not written NAME=VALUE"),
    ],
)
def test_weights_are_of_a_network_that_is_used(tmp_path: Path, given: str, streams: str, said: str | None) -> None:
    done = run(tmp_path, *REQUIRED, "--weights", given, "--streams", streams)
    assert done.returncode == (ExitCode.USAGE if said else ExitCode.NO_INPUT)
    assert (said or "") in done.stderr


def test_wherever_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("step = 8\n")
    for where, environment in ((("--config", "c.toml"), {}), ((), {"AQA_EXTRACT_STEP": "8"})):
        done = run(tmp_path, *REQUIRED, *where, **environment)
        assert (done.returncode, "--step would be ignored" in done.stderr) == (ExitCode.USAGE, True)
        assert run(tmp_path, *REQUIRED, *where, "--protocol", "dense", **environment).returncode == ExitCode.NO_INPUT
