"""File systems that lack a call, as NFS, Lustre and CIFS do: a shim in front of libc refuses it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.shims import needs_shims
from tests.shims import shim as compiled

from aqa_shared.store import FeatureStore, verify

from .store_cases import tree

ROOT = Path(__file__).resolve().parents[2]
pytestmark = needs_shims

SHIM = """
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int link(const char *from, const char *to) {
    const char *e = getenv("LINK_ERRNO");
    if (!e) return syscall(SYS_linkat, -100, from, -100, to, 0);
    errno = atoi(e);
    return -1;
}
int fsync(int fd) {
    struct stat s;
    const char *e = getenv("FSYNC_ERRNO");
    if (!e || fstat(fd, &s) || !S_ISDIR(s.st_mode)) return 0;
    errno = atoi(e);
    return -1;
}
"""
WRITE = """
import sys
from pathlib import Path
from tests.shared.store_cases import arrays_of, meta_of, open_writer
for part in ((0, 1), (2,)):
    with open_writer(Path(sys.argv[1])) as writer:
        for i in part:
            writer.commit(f"v{i}.mp4", arrays_of(i, 1 + i), meta_of(i))
        writer.finalise({})
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compiled(tmp_path_factory.mktemp("shim"), SHIM)


def write(store: Path, shim: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WRITE, store],
        cwd=ROOT,
        env={**os.environ, "LD_PRELOAD": shim, **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def reference(tmp_path: Path, shim: str) -> Path:
    done = write(tmp_path / "reference", shim)
    assert (done.returncode, done.stderr) == (0, "")
    return tmp_path / "reference"


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        ("LINK_ERRNO", errno.EPERM, "cannot refuse to replace"),
        ("LINK_ERRNO", errno.EOPNOTSUPP, "cannot refuse to replace"),
        ("FSYNC_ERRNO", errno.EINVAL, "cannot flush folders"),
    ],
)
def test_a_call_that_a_file_system_lacks_costs_one_warning(
    tmp_path: Path, shim: str, reference: Path, call: str, number: int, words: str
) -> None:
    store = tmp_path / "s"
    done = write(store, shim, **{call: str(number)})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("warning:") == done.stderr.count(words) == 1, done.stderr
    assert tree(store) == tree(reference)
    assert verify(store) == []
    assert len(FeatureStore.open(store)) == 3


@pytest.mark.parametrize("call", ["LINK_ERRNO", "FSYNC_ERRNO"])
def test_a_disk_that_fails_still_ends_the_run(tmp_path: Path, shim: str, call: str) -> None:
    done = write(tmp_path / "s", shim, **{call: str(errno.EIO)})
    assert done.returncode != 0
    assert "StoreError" in done.stderr
    assert "Input/output error" in done.stderr
