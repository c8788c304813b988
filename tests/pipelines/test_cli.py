"""The umbrella as people type it: real processes, real stores, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from aqa_extract import quarantine
from aqa_shared.records import Failure

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


def test_info_lists_the_videos_that_could_not_be_used(store: Path) -> None:
    for i in range(10):
        failure = {"id": f"bad_{i}.mp4", "path": "", "reason": "no_moov", "stage": "probe", "detail": "no index"}
        quarantine.write(store, Failure.model_validate(failure))
    lines = run("aqa", "info", store).stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("failed"))
    assert lines[at].split(maxsplit=1)[1] == "10 videos; aqa-extract --retry-failed tries again"
    assert [line.strip() for line in lines[at + 1 : at + 9]] == [f"bad_{i}.mp4: no index (no_moov)" for i in range(8)]
    assert lines[at + 9].strip() == "and 2 others: aqa info --json lists all"
    listed = json.loads(run("aqa", "info", store, "--json").stdout)["failures"]
    assert listed == [{"id": f"bad_{i}.mp4", "reason": "no_moov", "detail": "no index"} for i in range(10)]


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
