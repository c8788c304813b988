"""Who multiplies float32 matrices, and that it does so exactly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aqa_train.products import exact

ASK = """
import torch
{before}
from aqa_train.products import choose_library, exact
choose_library()
print(torch.backends.mkldnn.matmul.fp32_precision, exact(torch.matmul))
"""


def asked(before: str = "") -> list[str]:
    """In a process of its own: what is chosen stands until its end."""
    code = ASK.format(before=before)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_the_chosen_library_is_exact() -> None:
    chosen, good = asked()
    assert good == "True"
    cpu = Path("/proc/cpuinfo")
    if not (cpu.exists() and "AuthenticAMD" in cpu.read_text()):
        assert chosen == "none"


def test_a_choice_of_the_callers_own_stands() -> None:
    assert asked("torch.backends.mkldnn.matmul.fp32_precision = 'ieee'")[0] == "ieee"


@pytest.mark.parametrize("which", [0, 1])
def test_rounding_on_the_way_is_found(which: int) -> None:
    def rounded(*pair: torch.Tensor) -> torch.Tensor:
        factors = list(pair)
        factors[which] = factors[which].bfloat16().float()
        return torch.matmul(*factors)

    assert not exact(rounded)
    # Of one layout alone.
    assert not exact(lambda a, b: rounded(a, b) if a.ndim == 3 else a @ b)
    assert not exact(lambda a, b: rounded(a, b) if not a.is_contiguous() else a @ b)
