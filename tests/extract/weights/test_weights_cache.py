"""The cache of weights: damage, other originals, no network, no room, many processes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.extract.weights.sources import BODY, GIT, SHA256, STATE, Server, cached_tiny, leftovers, quiet, same

from aqa_extract import weights_cache
from aqa_extract.weights import fetch, resolve, verify
from aqa_extract.weights_fetch import Url
from aqa_shared.errors import EnvironmentFault


def test_a_flipped_bit_is_found_and_mended(server: Server, registered: Any, said: list[str]) -> None:
    file = cached_tiny(server, registered)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert [problem.name for problem in verify()] == ["tiny"]
    assert same(resolve("tiny", "actor", said.append).state, STATE)
    assert "is damaged" in said[0]
    assert verify() == []


@pytest.mark.parametrize("text", ["", "[]", "{", '{"cache": {}}', '{"cache": 3, "sha256": "x"}'])
def test_a_broken_record_is_not_trusted(server: Server, registered: Any, text: str) -> None:
    cached_tiny(server, registered)
    weights_cache.record_file("tiny").write_text(text)
    assert len(verify()) == 1
    resolve("tiny", "actor", quiet)
    assert verify() == []


def test_weights_of_another_original_are_made_anew(server: Server, registered: Any) -> None:
    cached_tiny(server, registered)
    registered(Url(f"{server.url}/ok.pt", GIT))
    assert len(verify()) == 1
    resolve("tiny", "actor", quiet)
    assert server.asked == ["/ok.pt"] * 2


def test_offline_says_what_to_put_where(server: Server, registered: Any, monkeypatch: Any, own_home: Path) -> None:
    registered(Url(f"{server.url}/ok.pt", SHA256))
    monkeypatch.setenv("AQA_OFFLINE", "1")
    with pytest.raises(EnvironmentFault, match="AQA_OFFLINE") as fault:
        resolve("tiny", "actor", quiet)
    assert "ok.pt" in fault.value.fix
    assert str(own_home / "weights") in fault.value.fix
    assert server.asked == []
    # Doing as told helps, and a wrong file put there does not pass.
    placed = own_home / "weights" / "ok.pt"
    placed.parent.mkdir(parents=True)
    placed.write_bytes(BODY[:-1])
    with pytest.raises(EnvironmentFault, match="not the published file"):
        resolve("tiny", "actor", quiet)
    placed.write_bytes(BODY)
    assert same(resolve("tiny", "actor", quiet).state, STATE)
    assert server.asked == []


def test_a_cache_that_cannot_be_written_costs_only_the_keeping(
    server: Server, registered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("AQA_HOME", str(tmp_path / "file" / "home"))
    registered(Url(f"{server.url}/ok.pt", SHA256))
    assert same(resolve("tiny", "actor", said.append).state, STATE)
    assert any("used but not kept" in message for message in said)
    with pytest.raises(EnvironmentFault, match="cannot be written") as fault:
        fetch("tiny", quiet)
    assert "AQA_HOME" in fault.value.fix


def test_no_home_at_all_is_an_error_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container may run as a user that the system does not know."""

    pwd = pytest.importorskip("pwd")

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    for name in ("AQA_HOME", "HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(EnvironmentFault, match="no home") as fault:
        weights_cache.weights_folder()
    assert "AQA_HOME" in fault.value.fix


def test_processes_writing_at_once_leave_a_whole_cache(own_home: Path) -> None:
    program = """
import hashlib
from aqa_extract import weights_cache
data = bytes(range(256)) * 4000
record = {"name": "x", "sha256": hashlib.sha256(data).hexdigest()}
for _ in range(40):
    weights_cache.write("x", data, record, "origin")
    assert weights_cache.read("x", ["origin"]) == (data, record)
"""
    running = [subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr.decode()
    assert leftovers(own_home) == ["x.json", "x.safetensors"]


def test_a_writer_killed_midway_leaves_no_weights(own_home: Path) -> None:
    """The tensors are there, the record is not: nothing is cached, and writing again mends it."""
    weights_cache.write("x", b"tensors", {"sha256": hashlib.sha256(b"tensors").hexdigest()}, "origin")
    weights_cache.record_file("x").unlink()
    assert not weights_cache.is_cached("x")
    assert weights_cache.read("x", ["origin"]) is None
