"""Files replaced whole or not at all, hints, and what a process may use of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aqa_shared.errors import EnvironmentFault, did_you_mean
from aqa_shared.files import replace_text, replacing
from aqa_shared.machine import available_cores, pick_device


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


@pytest.mark.parametrize(
    ("name", "said"),
    [("toaster", "is no device"), ("meta", "only cpu and cuda"), ("cuda:99", "CUDA devices"), ("cpu:3:4", "no device")],
)
def test_a_device_that_is_not_there_is_an_error_of_the_machine(name: str, said: str) -> None:
    with pytest.raises(EnvironmentFault, match=said):
        pick_device(name)


def test_auto_is_a_device_that_works() -> None:
    import torch

    assert torch.ones(2, device=pick_device("auto")).sum().item() == 2
    assert pick_device("cpu").type == "cpu"
