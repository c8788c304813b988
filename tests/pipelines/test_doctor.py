"""`aqa doctor` and `aqa weights`: what this machine can do, and what is missing."""

from __future__ import annotations

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

from .commands import run


def test_doctor_answers_people_and_scripts(tmp_path: Path) -> None:
    done = run("aqa", "doctor", "--json", AQA_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {c["name"]: c for c in json.loads(done.stdout)}
    for name in ("python", "cpu", "torch", "ffmpeg in av", "conv3d float32 on cpu", "temporary folder"):
        assert checks[name]["status"] == "ok", checks[name]
    assert checks["weights cache"]["value"].startswith(str(tmp_path))
    # Looking leaves nothing behind.
    assert list(tmp_path.iterdir()) == []


def test_doctor_extracts_a_clip_with_every_decoder(tmp_path: Path) -> None:
    done = run("aqa", "doctor", "--json", AQA_HOME=str(tmp_path))
    checks = {c["name"]: c for c in json.loads(done.stdout) if c["name"].startswith("extract with")}
    decoders = ["av", "decord"] if find_spec("decord") else ["av"]
    assert [name for name in checks if name.endswith(" on cpu")] == [f"extract with {d} on cpu" for d in decoders]
    assert {c["status"] for c in checks.values()} == {"ok"}, checks


def test_doctor_finds_a_decoder_that_imports_but_cannot_decode(tmp_path: Path) -> None:
    """As PyAV 19 was for code that knew PyAV 18: a keyword that `open` no longer takes."""
    (tmp_path / "sitecustomize.py").write_text(
        "import av\n"
        "known = av.open\n"
        "def newer(file, mode='r', **options):\n"
        "    if mode == 'r': raise TypeError(\"open() got an unexpected keyword argument 'metadata_errors'\")\n"
        "    return known(file, mode, **options)\n"
        "av.open = newer\n"
    )
    done = run("aqa", "doctor", "--json", AQA_HOME=str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 5
    checks = {c["name"]: c for c in json.loads(done.stdout)}
    assert checks["extract with av on cpu"]["status"] == "fail"
    assert "metadata_errors" in checks["extract with av on cpu"]["value"]


def test_doctor_fails_where_nothing_can_be_written(tmp_path: Path) -> None:
    from aqa_pipelines.doctor import _places

    blocked = tmp_path / "file"
    blocked.write_text("")
    before = os.environ.get("AQA_HOME")
    os.environ["AQA_HOME"] = str(blocked / "home")
    try:
        found = {check.name: check for check in _places()}
    finally:
        os.environ.pop("AQA_HOME")
        if before is not None:
            os.environ["AQA_HOME"] = before
    assert found["weights cache"].status == "note"
    assert "AQA_HOME" in found["weights cache"].fix


def test_doctors_convolution_is_measured_against_float64() -> None:
    import torch

    from aqa_pipelines.doctor import TOLERANCE, convolution_error

    cpu = torch.device("cpu")
    assert 0 < convolution_error(cpu, torch.float32) < TOLERANCE["float32"]
    # bfloat16 keeps 8 bits: an error below 2^-12 would mean that it was not used.
    assert 2**-12 < convolution_error(cpu, torch.bfloat16) < TOLERANCE["bfloat16"]


def test_doctor_names_the_weights_to_fetch(tmp_path: Path) -> None:
    from aqa_extract.weights import REGISTRY

    done = run("aqa", "doctor", "--json", AQA_HOME=str(tmp_path), AQA_OFFLINE="1")
    fixes = [c["fix"] for c in json.loads(done.stdout) if c["value"].startswith("none cached")]
    assert len(fixes) == 3, done.stdout
    assert all(re.search(r"aqa weights fetch (\S+)$", fix)[1] in REGISTRY for fix in fixes)  # type: ignore[index]


def test_weights_list_names_licences_without_a_network(tmp_path: Path) -> None:
    done = run("aqa", "weights", "list", "--json", AQA_HOME=str(tmp_path), AQA_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {"rgb", "flow", "actor", "rgb@swin3d_b"} <= {row["kind"] for row in rows}
    assert all(row["licence"] for row in rows)
    assert not any(row["cached"] for row in rows)


def test_weights_that_cannot_be_had_are_an_environment_fault(tmp_path: Path) -> None:
    home = {"AQA_HOME": str(tmp_path), "AQA_OFFLINE": "1"}
    assert run("aqa", "weights", "fetch", "i3d-kinetics-400", **home).returncode == 5
    assert run("aqa", "weights", "verify", "i3d-kinetics-400", **home).returncode == 5
    assert run("aqa", "weights", "verify", **home).returncode == 0
    wrong = run("aqa", "weights", "fetch", "i3d-kinetics-40", **home)
    assert wrong.returncode == 2
    assert "i3d-kinetics-400" in wrong.stderr
