"""What the processor computes in by itself, against what the kernel says of it; and what becomes of freed memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import dask
import distributed  # noqa: F401  brings its configuration
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


FAULTS = """
import resource
from aqa_shared.machine import keep_freed_memory
keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytes(8 << 20)
before = faults()
for _ in range(20):
    bytearray(b"x") * (8 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_worker_of_dask_uses_freed_blocks_again() -> None:
    """Dask sets the variable; 20 times 8 MB are 40,960 pages that the system would have to clear."""
    value = dask.config.get("distributed.nanny.pre-spawn-environ")["MALLOC_TRIM_THRESHOLD_"]
    assert page_faults(str(value)) < 10_000
    assert page_faults("131072") > 30_000  # a user's own


def page_faults(threshold: str) -> int:
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": threshold}
    done = subprocess.run([sys.executable, "-c", FAULTS], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)
