"""What this process may use of the machine: cores, memory and a device."""

from __future__ import annotations

import ctypes
import os
import warnings
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from aqa_shared.errors import EnvironmentFault

if TYPE_CHECKING:
    import torch


def available_cores() -> int:
    """Cores this process may use; affinity (SLURM sets it) and container quotas make them fewer than there are."""
    with warnings.catch_warnings():
        # Without a usable /dev/shm joblib warns that it will run nothing in parallel, and its own count is 1.
        warnings.simplefilter("ignore")
        from joblib.externals.loky import cpu_count  # type: ignore[import-untyped]

    return int(cpu_count())


def available_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of main memory this process may use: what the machine has free, within the limit of every control group.

    A batch job's limit is that of its own group or of one above it, far below the root that a container sees.
    `proc` and `cgroups` are where Linux shows these; elsewhere the machine's whole memory counts.
    """
    limits = []
    with suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError):
        fields = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
        if available := fields.get("MemAvailable", "").split():
            limits.append(int(available[0]) * 1024)
    for file in _memory_limit_files(proc, cgroups):
        # `max`, and the groups that a container cannot see, are not limits.
        with suppress(ValueError, OSError):
            limits.append(int(file.read_text()))
    return min(limits, default=4 << 30)


def _memory_limit_files(proc: Path, cgroups: Path) -> list[Path]:
    """Where versions 1 and 2 of Linux's control groups keep the limits of ours and of those above, up to the root."""
    v2, v1 = (cgroups, "memory.max"), (cgroups / "memory", "memory.limit_in_bytes")
    ours = [(v2, PurePosixPath("/")), (v1, PurePosixPath("/"))]
    with suppress(OSError):
        for line in os.fsdecode((proc / "self" / "cgroup").read_bytes()).splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "memory" in controllers.split(","):
                ours.append((v1 if controllers else v2, PurePosixPath(path)))
    return [root / group.relative_to("/") / name for (root, name), path in ours for group in (path, *path.parents)]


def return_freed_memory(above: int = 128 << 10) -> None:
    """Have the C library give freed memory back to the system: now all it can, from now on blocks of `above` bytes.

    For processes that stay. By itself glibc raises that limit to the largest block that was freed so far, up to 32 MB,
    and the arena of each thread then keeps twice as much (mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD). Other C
    libraries have no such limit, and nothing happens.
    """
    with suppress(AttributeError, TypeError, OSError):
        _limit_malloc(above, above)
        ctypes.CDLL(None).malloc_trim(0)


DASKS_TRIM_THRESHOLD = "65536"
"""Of `distributed.nanny.pre-spawn-environ`, by default."""


def keep_freed_memory() -> None:
    """Have the C library use freed blocks of up to 32 MB again, as glibc by itself comes to do.

    For processes that compute. Dask starts its workers with MALLOC_TRIM_THRESHOLD_, with which glibc never raises its
    limits: every large tensor then begins with pages that the system has to clear, and I3D takes 1.4 times as long on
    a CPU (`benchmarks/dask_workers.py`). What is started from here does without the variable, too. Another value than
    Dask's is somebody's choice, and stays.
    """
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") == DASKS_TRIM_THRESHOLD:
        del os.environ["MALLOC_TRIM_THRESHOLD_"]
        with suppress(AttributeError, TypeError, OSError):
            _limit_malloc(32 << 20, 64 << 20)


def _limit_malloc(mmap: int, trim: int) -> None:
    library = ctypes.CDLL(None)
    for limit, size in ((-3, mmap), (-1, trim)):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
        library.mallopt(limit, size)


UNITS = {
    "bf16": {"avx512_bf16", "amx_bf16", "bf16", "sve_bf16"},
    "fp16": {"avx512_fp16", "amx_fp16", "fp16_arith"},
}
"""What torch calls the parts of processors that compute in a half precision; x86 and ARM."""


def has_units_for(precision: str, device: torch.device) -> bool:
    """Whether the device computes in `precision` (`fp32`, `bf16`, `fp16`) itself.

    What a processor has no units for is emulated: bf16 is then about as slow as fp32, fp16 a hundred times slower.
    """
    import torch

    if precision == "fp32":
        return True
    if device.type == "cuda":
        return precision == "fp16" or torch.cuda.is_bf16_supported(including_emulation=False)
    # Where torch is too old to say, it is safe to assume nothing.
    found: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(found.get(name) for name in UNITS[precision])


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises EnvironmentFault; never another device than the one asked for."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise EnvironmentFault(f"--device {name!r} is not a device", fix="choose auto, cpu, cuda or cuda:N") from e
    if device.type not in ("cpu", "cuda"):
        raise EnvironmentFault(f"--device {name}: only cpu and cuda are supported", fix="choose auto, cpu or cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise EnvironmentFault(
            f"--device {name}: this machine shows {torch.cuda.device_count()} CUDA devices",
            fix="check the driver with `aqa doctor`, or use --device cpu",
        )
    try:
        # A device can be listed and still refuse: taken by another process, or its driver too old.
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:
        raise EnvironmentFault(
            f"--device {name} cannot be used: {str(e).splitlines()[0]}",
            fix="check the driver with `aqa doctor`, or use --device cpu",
        ) from e
    return device
