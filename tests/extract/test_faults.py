"""Whose fault a failure is: libraries, installations and disks that really fail, in real runs."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.extract.clips import Clip
from tests.pipelines.commands import run

from aqa_extract import quarantine
from aqa_extract.faults import REASONS, Fault, fault, would_fail_again
from aqa_shared.errors import ExitCode
from aqa_shared.records import Failure
from aqa_shared.store import FeatureStore

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SMALL = ("--segments", "1", "--short-side", "32", "--crop", "32", "--weights", "rgb=i3d-kinetics-400")


@pytest.fixture
def videos(tmp_path: Path, i3d_rgb_weights: str) -> Path:
    """Two whole clips; a.mp4 is the larger one."""
    (tmp_path / "in").mkdir()
    Clip(frames=40, size=(96, 80)).write(tmp_path / "in" / "a")
    Clip(frames=20).write(tmp_path / "in" / "b")
    return tmp_path / "in"


def run_command(videos: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("aqa-extract", videos, "--out", videos.parent / "s.zarr", *SMALL, **environment)


def broken_installation(folder: Path, code: str) -> str:
    """A PYTHONPATH on which Python runs `code` before anything else, in every process."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)


CHANGED = """
import av, os
was = av.open
def open(file, *rest, **more):
    if os.path.getsize(file.removeprefix("file:")) > {least}:
        raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")
    return was(file, *rest, **more)
av.open = open
"""
ABSENT = """
import sys
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "av":
            raise ImportError("libavcodec.so.62: cannot open shared object file")
if "aqa_extract.decode.worker" in sys.orig_argv:
    sys.meta_path.insert(0, Finder)
"""


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [(CHANGED.format(least=0), "decoder_error", "metadata_errors"), (ABSENT, "decoder_not_started", "libavcodec")],
)
def test_a_library_that_changed_or_is_missing_is_no_videos_fault(
    videos: Path, tmp_path: Path, code: str, reason: str, words: str
) -> None:
    done = run_command(videos, PYTHONPATH=broken_installation(tmp_path / "site", code))
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert f"({reason})" in done.stdout
    assert "2 failed through no fault of the video" in done.stdout
    assert words in done.stdout
    assert words not in done.stderr  # said once
    assert "aqa doctor" in done.stderr
    assert quarantine.read(tmp_path / "s.zarr") == {}
    mended = run_command(videos)
    assert mended.returncode == ExitCode.OK, mended.stderr
    assert "2 extracted, 0 already there" in mended.stdout


def test_both_kinds_of_failure_are_said_and_only_one_is_remembered(videos: Path, tmp_path: Path) -> None:
    (videos / "broken.mp4").write_bytes(b"not a video at all" * 20)
    least = (videos / "b.mp4").stat().st_size
    assert least > (videos / "broken.mp4").stat().st_size
    code = CHANGED.format(least=least)
    done = run_command(videos, PYTHONPATH=broken_installation(tmp_path / "site", code))
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert "1 extracted" in done.stdout
    assert "1 cannot be used, 1 failed through no fault of the video" in done.stdout
    assert list(quarantine.read(tmp_path / "s.zarr")) == ["broken.mp4"]
    assert FeatureStore.open(tmp_path / "s.zarr").ids == ["b.mp4"]
    mended = run_command(videos)
    assert mended.returncode == ExitCode.QUARANTINED, mended.stderr
    assert FeatureStore.open(tmp_path / "s.zarr").ids == ["a.mp4", "b.mp4"]


DISK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
static int fails(void) {
    while (getenv("STUCK")) pause();
    errno = EIO;
    return -1;
}
static int bad(int fd) {
    struct stat s;
    const char *inode = getenv("BAD_INODE");
    return inode && fstat(fd, &s) == 0 && S_ISREG(s.st_mode) && (long)s.st_ino == atol(inode);
}
static int late(long at) { return at + 64 > atol(getenv("LATE")); }
ssize_t read(int fd, void *to, size_t n) {
    static ssize_t (*real)(int, void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "read");
    if (bad(fd) && late(lseek(fd, 0, SEEK_CUR) + n)) return fails();
    return real(fd, to, n);
}
ssize_t pread64(int fd, void *to, size_t n, off64_t at) {
    static ssize_t (*real)(int, void *, size_t, off64_t);
    if (!real) real = dlsym(RTLD_NEXT, "pread64");
    if (bad(fd) && late(at + n)) return fails();
    return real(fd, to, n, at);
}
"""


@pytest.fixture
def disk(tmp_path: Path) -> str:
    """A library that stands between every program and the disk."""
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and LD_PRELOAD")
    (tmp_path / "disk.c").write_text(DISK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "disk.so", tmp_path / "disk.c", "-ldl"], check=True)
    return str(tmp_path / "disk.so")


def bad(file: Path) -> dict[str, str]:
    """Of this file the disk gives the first half alone."""
    status = file.stat()
    return {"BAD_INODE": str(status.st_ino), "LATE": str(status.st_size // 2)}


def test_a_disk_that_gives_no_bytes_is_not_taken_for_a_damaged_video(videos: Path, tmp_path: Path, disk: str) -> None:
    done = run_command(videos, LD_PRELOAD=disk, **bad(videos / "a.mp4"))
    assert done.returncode == ExitCode.ENVIRONMENT, done.stdout + done.stderr
    assert "(read_error)" in done.stdout
    assert "1 extracted" in done.stdout
    assert quarantine.read(tmp_path / "s.zarr") == {}


def test_a_disk_that_never_answers_is_not_taken_for_a_slow_video(videos: Path, tmp_path: Path, disk: str) -> None:
    (videos / "b.mp4").unlink()
    done = run_command(videos, LD_PRELOAD=disk, **bad(videos / "a.mp4"), STUCK="1", AQA_EXTRACT_TIMEOUT="2")
    assert done.returncode == ExitCode.ENVIRONMENT, done.stdout + done.stderr
    assert "(decoder_stalled)" in done.stdout
    assert "waited" in done.stdout
    assert quarantine.read(tmp_path / "s.zarr") == {}


def test_every_reason_in_the_code_is_in_the_table_and_documented() -> None:
    """The reason is the first argument of DecodeFailure, SamplingError and Job.failed."""
    found: set[str] = set()
    for file in sorted((ROOT / "extract").rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            if not isinstance(call, ast.Call) or not call.args:
                continue
            name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
            if name in ("DecodeFailure", "SamplingError", "failed"):
                first = call.args[0]
                choices = (first.body, first.orelse) if isinstance(first, ast.IfExp) else (first,)
                found |= {str(c.value) for c in choices if isinstance(c, ast.Constant)}
    assert len(found) > 20
    assert found - REASONS.keys() == set()
    documented = (ROOT / "docs" / "decoding.md").read_text()
    assert [name for name in REASONS if f"`{name}`" not in documented] == []


def test_what_another_option_may_mend_is_tried_with_it() -> None:
    late = Failure(id="a", path="a", reason="decode_timeout", stage="decode", detail="", limit=10.0)
    assert would_fail_again(late, "auto", 10.0)
    assert not would_fail_again(late, "auto", 11.0)
    refused = Failure(id="a", path="a", reason="decord_unsupported", stage="probe", detail="", backend="decord")
    assert would_fail_again(refused, "decord", 10.0)
    assert not would_fail_again(refused, "auto", 10.0)
    assert fault("a code of a later version") is Fault.VIDEO
