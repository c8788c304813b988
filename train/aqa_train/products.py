"""Products of float32 matrices on AMD's CPUs: by oneDNN where it is exact, which takes half of MKL's time.

torch lets MKL multiply them, which on one core of a Zen 5 makes 109 GFLOP/s, where oneDNN makes 228. torch takes oneDNN
only if it may round to bfloat16 on the way. That it does in hardware made for it (AMX) alone; elsewhere the permission
changes nothing but who multiplies. Whether that is so is measured before.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SHAPES = ((1, 33, 7), (31, 100, 5), (64, 4096, 64), (320, 1024, 256))
"""Rows, sums and columns of products that are tried."""
UNITS = 64
"""By how many units of float32's rounding an exact product may miss the sum of its terms' sizes: MKL's and oneDNN's by
5, bfloat16's by thousands."""


@cache
def choose_library() -> None:
    """Once a process; a choice of the caller's own (`torch.backends.mkldnn.matmul.fp32_precision`) stands."""
    setting: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    if setting.fp32_precision != "none" or not _amd():
        return
    setting.fp32_precision = "bf16"
    if not exact(torch.matmul):
        setting.fp32_precision = "none"


def exact(multiply: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether it multiplies float32 matrices as exactly as float32 allows, in every layout."""
    generator = torch.Generator().manual_seed(0)
    for rows, sums, columns in SHAPES:
        a, b = (torch.randn(shape, generator=generator) for shape in ((rows, sums), (sums, columns)))
        true, size = a.double() @ b.double(), a.double().abs() @ b.double().abs()
        layouts = ((a, b), (a.T.contiguous().T, b), (a, b.T.contiguous().T), (a[None], b[None]))
        if any(((multiply(*pair) - true).abs() > UNITS * 2**-24 * size).any() for pair in layouts):
            return False
    return True


def _amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return "AuthenticAMD" in platform.processor()
