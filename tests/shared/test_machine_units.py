"""What the processor computes in by itself, against what the kernel says of it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from aqa_shared.machine import has_units_for

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.exists(), reason="reads Linux's flags of x86")
@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities"), reason="this torch does not tell")
def test_half_precisions_are_those_of_the_kernels_flags() -> None:
    flags = set(CPUINFO.read_text().split())
    device = torch.device("cpu")
    assert has_units_for("fp32", device)
    assert has_units_for("bf16", device) == bool(flags & {"avx512_bf16", "amx_bf16"})
    assert has_units_for("fp16", device) == bool(flags & {"avx512_fp16", "amx_fp16"})
