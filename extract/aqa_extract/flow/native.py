"""TV-L1 on a CPU as one fused C loop: the library that build.py made of tvl1.c for this kind of processor."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from aqa_extract.flow import build
from aqa_extract.flow.settings import TVL1Settings

Pairs = Callable[[Sequence[Tensor], Tensor, Tensor, TVL1Settings], Tensor]
"""(levels, first, second, settings) → flow, as tvl1.coarse_to_fine."""

_RUNS = {"v4": ("AVX512",), "v3": ("AVX512", "AVX2"), "base": None}
"""What torch calls the processors that run a library; None is all of them."""


class _Settings(ctypes.Structure):
    """`Settings` of tvl1.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_float) for name in ("theta", "threshold", "taut", "still", "step")),
        *((name, ctypes.c_int32) for name in ("warps", "inner", "outer", "median")),
    )


def level() -> str:
    """The fastest kind of library that this processor runs."""
    able = torch.backends.cpu.get_cpu_capability()
    return next(name for name in build.LEVELS if (runs := _RUNS[name]) is None or able in runs)


@cache
def _expected() -> str:
    """The digest that a library made of this package's text carries."""
    return build.source().split('"', 2)[1]


@cache
def load(name: str | None = None) -> Pairs | str:
    """The compiled solver (of the fastest kind, or of the one called `name`), or why there is none."""
    if os.environ.get("AQA_NATIVE") == "0":
        return "AQA_NATIVE=0 turns it off"
    able = list(build.LEVELS)[list(build.LEVELS).index(name or level()) :]
    path = next((p for p in map(build.library, able) if p.exists()), None)
    if path is None:
        return "this installation was made without a C compiler"
    try:
        library = ctypes.CDLL(str(path))
    except OSError as e:
        return f"{path} cannot be loaded: {e}"
    library.tvl1_source.restype = ctypes.c_char_p
    if library.tvl1_source().decode() != _expected():
        return f"{path.name} was made of another version of tvl1.c"
    library.tvl1_pair.restype = ctypes.c_int
    library.tvl1_prepare()

    def pairs(levels: Sequence[Tensor], first: Tensor, second: Tensor, settings: TVL1Settings) -> Tensor:
        return _pairs(library, levels, first, second, settings)

    return pairs


def _pairs(
    library: ctypes.CDLL, levels: Sequence[Tensor], first: Tensor, second: Tensor, settings: TVL1Settings
) -> Tensor:
    """Flow of the pairs, (pairs, 2, height, width), one after the other."""
    levels = [level.contiguous() for level in levels]
    count = len(levels)
    heights = (ctypes.c_int32 * count)(*(level.shape[-2] for level in levels))
    widths = (ctypes.c_int32 * count)(*(level.shape[-1] for level in levels))
    values = _Settings(
        settings.theta,
        settings.lam * settings.theta,
        settings.tau / settings.theta,
        settings.epsilon**2,
        settings.scale_step,
        settings.warps,
        settings.inner,
        settings.outer,
        settings.median,
    )
    out = torch.empty(len(first), 2, *levels[0].shape[-2:])

    def images(frame: int) -> ctypes.Array[ctypes.c_void_p]:
        return (ctypes.c_void_p * count)(*(level[frame].data_ptr() for level in levels))

    def solve(i: int, a: int, b: int) -> int:
        # ctypes lets go of the interpreter lock during the call.
        return int(
            library.tvl1_pair(
                images(a), images(b), heights, widths, count, ctypes.byref(values), ctypes.c_void_p(out[i].data_ptr())
            )
        )

    if any(map(solve, range(len(first)), first.tolist(), second.tolist())):
        raise MemoryError(f"no memory for the flow of frames of {heights[0]}x{widths[0]} px")
    return out
