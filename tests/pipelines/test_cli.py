"""The umbrella as people type it: real processes, real stores, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .commands import run


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["predict"],
        ["info"],
        ["verify"],
        ["doctor"],
        ["streams"],
        ["weights"],
        ["weights", "list"],
        ["weights", "fetch"],
    ],
    ids=" ".join,
)
def test_every_command_explains_itself(command: list[str]) -> None:
    done = run("aqa", *command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: aqa {' '.join(command)}".strip() in done.stdout
    assert done.stderr == ""


def test_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert run("aqa", "--version").stdout.strip() == version("aqa")


@pytest.mark.parametrize(
    ("typed", "meant"), [(["dmeo"], "demo"), (["wieghts"], "weights"), (["demo", "--vidoes", "3"], "--videos")]
)
def test_a_typing_mistake_gets_a_hint(typed: list[str], meant: str) -> None:
    done = run("aqa", *typed)
    assert done.returncode == 2
    assert meant in done.stderr
    assert done.stdout == ""


# info, verify


def test_info_tells_people_and_scripts(store: Path) -> None:
    record = json.loads(run("aqa", "info", store, "--json").stdout)
    assert record["videos"] == 5
    done = run("aqa", "info", store)
    assert done.returncode == 0, done.stderr
    for word in ("rgb", "train", "test", "segments"):
        assert word in done.stdout


def test_streams_tells_people_and_scripts(tmp_path: Path) -> None:
    environment = {"AQA_HOME": str(tmp_path)}
    said = run("aqa", "streams", **environment).stdout
    for part in (
        "rot90",
        "rgb@swin3d_b=swin3d_b-kinetics400-imagenet22k (not here; BSD-3-Clause (port), Apache-2.0 (weights))",
        "map 1024x16x7x7",
    ):
        assert part in said
    found = json.loads(run("aqa", "streams", "--json", **environment).stdout)
    assert found["backbones"]["i3d"]["outputs"] == {"(feature)": [1024], "logits": [400], "map": [1024, 2, 7, 7]}
    assert not any(w["here"] for b in found["backbones"].values() for ws in b["weights"].values() for w in ws)


def test_verify_is_silent_about_a_whole_store(store: Path) -> None:
    done = run("aqa", "verify", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert "whole" in done.stdout
    assert json.loads(run("aqa", "verify", store, "--json").stdout) == []


def test_verify_names_the_damage(store: Path) -> None:
    chunk = max((p for p in store.glob("blocks/*/rgb/*") if p.name != "zarr.json" and p.is_file()), key=_size)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 3] ^= 0x10
    chunk.write_bytes(data)
    done = run("aqa", "verify", store)
    assert done.returncode == 6
    assert "rgb" in done.stdout
    assert ".mp4" in done.stdout
    # A name from the store is shown, never obeyed.
    assert "\x1b" not in done.stdout
    damage = json.loads(run("aqa", "verify", store, "--json").stdout)
    assert damage
    assert {"id", "array", "detail"} == set(damage[0])


def _size(path: Path) -> int:
    return path.stat().st_size


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_is_no_store_is_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "nowhere"):
        done = run("aqa", command, place)
        assert done.returncode == 6, done.stderr
        assert str(place) in done.stderr.replace("\n", "")
        assert "Traceback" not in done.stderr


# doctor, weights


# demo


# predict
