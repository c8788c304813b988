"""Files replaced whole or not at all, hints, and what a process may use of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.shims import NO_LINKS, needs_shims, shim

from aqa_shared.errors import EnvironmentFault, did_you_mean
from aqa_shared.files import existing, replace_text, replacing, try_writing
from aqa_shared.machine import available_cores, available_memory, pick_device


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    replace_text(path, "old\n")
    with pytest.raises(TypeError), replacing(path) as partial:
        partial.write_text("half") + "wrong"  # the text was written, then the block fails
    assert path.read_text() == "old\n"
    with replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old\n"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_is_tried_by_writing_and_nothing_stays(tmp_path: Path) -> None:
    folder = existing(tmp_path / "a" / "b")
    assert folder == tmp_path
    try_writing(folder)
    assert os.listdir(folder) == []
    with pytest.raises(OSError) as e:  # for root too
        try_writing(Path("/proc/self"))
    assert e.value.filename == "/proc/self"
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        existing(tmp_path / "file" / "a")


RACE = """
import sys, threading
from pathlib import Path
from aqa_shared.files import write_new
folder, many = Path(sys.argv[1]), 4
start = threading.Barrier(many)
made = [[] for _ in range(100)]
def race(n):
    for i, names in enumerate(made):
        start.wait()
        if write_new(folder / str(i), f"{n}" * 50_000):
            names.append(f"{n}")
        elif sys.argv[2:]:  # whoever comes second finds it whole
            assert len((folder / str(i)).read_text()) == 50_000
threads = [threading.Thread(target=race, args=(n,)) for n in range(many)]
[t.start() for t in threads]
[t.join() for t in threads]
for i, (name,) in enumerate(made):
    assert (folder / str(i)).read_text() == name * 50_000
assert len(list(folder.iterdir())) == 100
print("ok")
"""


@pytest.mark.parametrize("links", [True, pytest.param(False, marks=needs_shims)])
def test_of_many_that_make_a_file_one_succeeds_and_its_file_stays(tmp_path: Path, links: bool) -> None:
    (tmp_path / "files").mkdir()
    poor = {} if links else {"LD_PRELOAD": shim(tmp_path / "shim", NO_LINKS)}
    command = [sys.executable, "-c", RACE, tmp_path / "files", *(["whole"] if links else [])]
    done = subprocess.run(command, env={**os.environ, **poor}, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("ok\n", "")


def test_text_is_utf8_with_its_own_line_ends(tmp_path: Path) -> None:
    replace_text(tmp_path / "t", "é\r\n\n")
    assert (tmp_path / "t").read_bytes() == "é\r\n\n".encode()


def test_the_nearest_name_is_offered() -> None:
    assert did_you_mean("S4aqq", ["aa", "s4aqa"]) == "did you mean s4aqa?"
    assert did_you_mean("zzz", ["aa", "s4aqa"]) == ""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_cores_follow_the_affinity() -> None:
    core = min(os.sched_getaffinity(0))
    code = "import aqa_shared.machine as m; print(m.available_cores())"
    run = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{core}}}); {code}"]
    assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "1\n"
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_is_what_is_free(tmp_path: Path) -> None:
    _write(tmp_path / "proc" / "meminfo", "MemTotal:  9000 kB\nMemAvailable:    5000 kB\n")
    assert available_memory(tmp_path / "proc", tmp_path / "cgroup") == 5000 * 1024
    assert 0 < available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert available_memory(tmp_path / "none", tmp_path / "none") > 0


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        # As SLURM with version 2 does it: the limit is the job's, the step below it says `max`.
        (
            "0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0",
            {"memory.max": "max", "system.slice/slurmstepd.scope/job_7/memory.max": "3000000",
             "system.slice/slurmstepd.scope/job_7/step_0/memory.max": "max"},
            3_000_000,
        ),
        ("0::/a/b", {"a/memory.max": "2000000", "a/b/memory.max": "1000000", "c/memory.max": "1"}, 1_000_000),
        # Version 1: a hierarchy per controller, of which only memory's counts.
        (
            "9:cpu,cpuacct:/slurm/cpu\n8:memory:/slurm/uid_1/job_7\n1:name=systemd:/x:y\n0::/",
            {"memory/memory.limit_in_bytes": "9223372036854771712",
             "memory/slurm/uid_1/memory.limit_in_bytes": "4000000",
             "memory/slurm/cpu/memory.limit_in_bytes": "1"},
            4_000_000,
        ),
        # A container of version 1 names a group that only its host sees, and has its own at the root.
        ("8:memory:/docker/f00", {"memory/memory.limit_in_bytes": "5000000"}, 5_000_000),
        ("0::/", {"memory.max": "6000000"}, 6_000_000),
    ],
)  # fmt: skip
def test_memory_is_within_the_limits_of_a_batch_job(
    membership: str, limits: dict[str, str], expected: int, tmp_path: Path
) -> None:
    _write(tmp_path / "proc" / "self" / "cgroup", membership + "\n")
    for name, value in limits.items():
        _write(tmp_path / "cgroup" / name, value + "\n")
    assert available_memory(tmp_path / "proc", tmp_path / "cgroup") == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("toaster", "is not a device"),
        ("meta", "only cpu and cuda"),
        ("cuda:99", "CUDA devices"),
        ("cpu:3:4", "not a device"),
    ],
)
def test_a_device_that_is_not_there_is_an_error_of_the_machine(name: str, said: str) -> None:
    with pytest.raises(EnvironmentFault, match=said):
        pick_device(name)


def test_auto_is_a_device_that_works() -> None:
    import torch

    assert torch.ones(2, device=pick_device("auto")).sum().item() == 2
    assert pick_device("cpu").type == "cpu"
