"""TV-L1 on a CPU as one fused C loop, where the machine has a C compiler; torch does the work where it has none.

`tvl1.c` is compiled once (under a second) for this very processor and kept in the user's cache. It must first
agree with the torch steps on a small pair: a compiler that gets it wrong costs speed, not results.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aqa_extract.flow import network

if TYPE_CHECKING:
    from aqa_extract.flow.tvl1 import TVL1Settings

_OPTIONS = (
    *("-O3", "-shared", "-fPIC", "-std=gnu11", "-fopenmp-simd"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
)
_FOR_THIS_PROCESSOR: tuple[tuple[str, ...], ...] = (
    ("-march=native", "-mprefer-vector-width=512"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
"""Tried in this order: what one compiler or processor takes, another refuses."""

_SECONDS = 60
"""Longest compilation that is waited for."""

Pairs = Callable[[Sequence[Tensor], Tensor, Tensor, "TVL1Settings"], Tensor]


class _Settings(ctypes.Structure):
    """`Settings` of tvl1.c, field by field."""

    _fields_ = (
        *((name, ctypes.c_float) for name in ("theta", "threshold", "taut", "still", "step")),
        *((name, ctypes.c_int32) for name in ("warps", "inner", "outer", "median")),
    )


def source() -> str:
    """The C text that is compiled: the median's exchanges, then tvl1.c."""

    def calls(exchanges: tuple[network.Exchange, ...]) -> str:
        return " ".join(f"EXCHANGE({e.a}, {e.b})" for e in exchanges)

    return (
        f"#define SORT_5 {calls(network.SORT_5)}\n"
        f"#define MEDIAN_OF_SORTED_COLUMNS {calls(network.MEDIAN_OF_SORTED_COLUMNS)}\n"
        f"#define MEDIAN v{network.MEDIAN}\n"
    ) + resources.files(__package__).joinpath("tvl1.c").read_text()


def _processor() -> str:
    """What distinguishes processors that do not run each other's code."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    kept = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return "\n".join((platform.machine(), platform.processor(), *kept))


def _folder() -> Path:
    """Where the compiled library stays; a fresh temporary folder when the cache cannot be written."""
    import platformdirs

    try:
        folder = Path(os.environ.get("AQA_HOME") or platformdirs.user_cache_dir("aqa")) / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Code is loaded from here: it must be nobody else's to write.
        if os.access(folder, os.W_OK) and (not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()):
            return folder
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix="aqa-native-"))


def _compiler() -> list[str] | None:
    """The command of a C compiler: CC, the system's, or the one in the Python package `ziglang`."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is not None:
        return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def compile_library(compiler: Sequence[str], folder: Path) -> Path | None:
    """The library made from tvl1.c, or the one that an earlier call left in `folder`; None if it does
    not compile."""
    text = source()
    for options in _FOR_THIS_PROCESSOR:
        command = [*compiler, *_OPTIONS, *options]
        identity = "\n".join((text, *command, _processor(), platform.python_implementation()))
        library = folder / f"tvl1-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
        if library.exists():
            return library
        # Compiled beside its place and moved there whole: several processes may be at it.
        with tempfile.TemporaryDirectory(dir=folder) as work:
            code, made = Path(work) / "tvl1.c", Path(work) / "tvl1.so"
            code.write_text(text)
            try:
                done = subprocess.run(
                    [*command, str(code), "-o", str(made), "-lm"],
                    capture_output=True,
                    timeout=_SECONDS,
                    env={**os.environ, "TMPDIR": work},  # the system's need not be writable
                )
            except (OSError, subprocess.TimeoutExpired):
                return None
            if done.returncode == 0:
                os.replace(made, library)
                return library
    return None


@cache
def load() -> Pairs | None:
    """The compiled solver, or None where there is no compiler or AQA_NATIVE=0 forbids it."""
    if os.environ.get("AQA_NATIVE") == "0":
        return None
    compiler = _compiler()
    if compiler is None:
        return None
    try:
        path = compile_library(compiler, _folder())
        library = ctypes.CDLL(str(path)) if path is not None else None
    except OSError:
        return None
    if library is None:
        return None
    library.tvl1_pair.restype = ctypes.c_int
    library.tvl1_prepare()

    def pairs(levels: Sequence[Tensor], first: Tensor, second: Tensor, settings: TVL1Settings) -> Tensor:
        return _pairs(library, levels, first, second, settings)

    return pairs if _agrees(pairs) else None


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


def _agrees(pairs: Pairs) -> bool:
    """Whether the library gives what torch gives on a small moving pattern."""
    from aqa_extract.flow import pyramid
    from aqa_extract.flow.tvl1 import TVL1Settings, coarse_to_fine

    y, x = torch.meshgrid(torch.arange(35.0), torch.arange(45.0), indexing="ij")
    frames = torch.stack([128 + 60 * torch.sin((x - s) / 4) + 50 * torch.cos((y + s) / 5) for s in (0.0, 0.8)])
    settings = TVL1Settings(epsilon=0.0, warps=2, inner=1, outer=2)  # few iterations: rounding has not grown yet
    levels = pyramid.build(frames, settings.scales, settings.scale_step)
    index = torch.tensor([0]), torch.tensor([1])
    expected = coarse_to_fine(levels, *index, settings)
    return bool((pairs(levels, *index, settings) - expected).abs().max() < 1e-3)
