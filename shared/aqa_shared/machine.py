"""What this process may use of the machine: cores and a device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aqa_shared.errors import EnvironmentFault

if TYPE_CHECKING:
    import torch


def available_cores() -> int:
    """Cores this process may use; affinity (SLURM sets it) and container quotas make them fewer than there are."""
    import joblib  # type: ignore[import-untyped]

    return int(joblib.cpu_count())


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises EnvironmentFault; never another device than the one asked for."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise EnvironmentFault(f"--device {name!r} is no device", fix="choose auto, cpu, cuda or cuda:N") from e
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
