"""tvl1.c → `tvl1-LEVEL.so` beside it, one for each kind of processor. Runs when the package is built or installed.

All of them compute the same bits: they differ in how wide their vectors are, and so in speed. Standard library only,
as nothing else need be there yet.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent

_X86: dict[str, tuple[tuple[str, ...], ...]] = {
    "v4": (("-march=x86-64-v4", "-mprefer-vector-width=512"), ("-march=x86-64-v4",), ("-mcpu=x86_64_v4",)),
    "v3": (("-march=x86-64-v3",), ("-mcpu=x86_64_v3",)),
    "base": (("-march=x86-64",), ("-mcpu=baseline",)),
}
_OTHERS = {"base": (("-mcpu=baseline",), ())}
LEVELS = _X86 if platform.machine() in ("x86_64", "AMD64") else _OTHERS
"""Kinds of processor that libraries are made for, fastest first: AVX-512, AVX2, anything. Options are tried in their
order; zig has other names than gcc and clang, and compiles for this very processor where none is given."""

_OPTIONS = (
    *("-O3", "-shared", "-fPIC", "-std=gnu11", "-fopenmp-simd"),
    # Fused multiply-adds round once where others round twice, and only some processors have them.
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
)
_SECONDS = 300
"""Longest compilation that is waited for."""


def source() -> str:
    """The C text that is compiled: the median's exchanges and a digest, then tvl1.c."""
    spec = importlib.util.spec_from_file_location("_tvl1_network", HERE / "network.py")
    assert spec is not None
    assert spec.loader is not None
    network = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = network  # dataclasses look their module up
    spec.loader.exec_module(network)

    def calls(exchanges: Sequence[object]) -> str:
        return " ".join(f"EXCHANGE({e.a}, {e.b})" for e in exchanges)  # type: ignore[attr-defined]

    text = (
        f"#define SORT_5 {calls(network.SORT_5)}\n"
        f"#define MEDIAN_OF_SORTED_COLUMNS {calls(network.MEDIAN_OF_SORTED_COLUMNS)}\n"
        f"#define MEDIAN v{network.MEDIAN}\n" + (HERE / "tvl1.c").read_text("utf-8")
    )
    return f'#define SOURCE "{digest(text)}"\n{text}'


def digest(text: str) -> str:
    """Names the text and the options it is compiled with."""
    return hashlib.sha256("\n".join((*_OPTIONS, text)).encode()).hexdigest()


def compiler() -> list[str] | None:
    """The command of a C compiler: CC, the system's, or the one in the Python package `ziglang`."""
    if os.environ.get("CC"):
        return shlex.split(os.environ["CC"])
    found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if found is not None:
        return [found]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    return None


def library(level: str, folder: Path = HERE) -> Path:
    """Where the library for a kind of processor lies."""
    return folder / f"tvl1-{level}.so"


def build(command: Sequence[str], folder: Path = HERE) -> list[Path]:
    """Compile every level that the compiler knows into `folder`.

    Raises RuntimeError, with the compiler's words, where it compiles none that every processor runs.
    """
    made = []
    with tempfile.TemporaryDirectory() as work:
        code, out = Path(work) / "tvl1.c", Path(work) / "tvl1.so"
        code.write_text(source(), "utf-8")
        for level, choices in LEVELS.items():
            for options in choices:
                line = [*command, *_OPTIONS, *options, str(code), "-o", str(out), "-lm"]
                try:
                    done = subprocess.run(line, capture_output=True, text=True, timeout=_SECONDS, check=False)
                except (OSError, subprocess.TimeoutExpired) as e:
                    raise RuntimeError(f"{shlex.join(command)}: {e}") from e
                if done.returncode == 0:
                    break
            else:
                if level != "base":  # gcc before 11 does not know the names
                    library(level, folder).unlink(missing_ok=True)
                    continue
                raise RuntimeError(f"{shlex.join(command)} does not compile tvl1.c: {done.stderr.strip()[-500:]}")
            # Not written into the old one, which a running process may have loaded.
            target = library(level, folder)
            fresh = target.with_suffix(f".{os.getpid()}")
            shutil.copyfile(out, fresh)
            os.replace(fresh, target)
            made.append(target)
    return made


if __name__ == "__main__":
    at_hand = compiler()
    if at_hand is None:
        sys.exit("no C compiler: install one, set CC, or pip install ziglang")
    print(*build(at_hand), sep="\n")
