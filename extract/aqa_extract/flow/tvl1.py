"""TV-L1 optical flow, batched over frame pairs, after OpenCV's CPU DualTVL1.

This is the flow that I3D's flow network was trained on, and small deviations of it (another border, another
cubic, no median) cost more than fewer iterations do; docs/flow.md has the figures.

    frames → pyramid (once per frame) → coarsest level: u = 0
                 └→ per level, coarse to fine: 5 × (warp, linearise, iterate) → enlarge → next level

Each pair stops where OpenCV would: when its flow no longer changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from aqa_extract.flow import native, pyramid
from aqa_extract.flow.kernels import Level, sampling_planes
from aqa_extract.flow.settings import TVL1Settings
from aqa_shared.errors import EnvironmentFault, UsageError


def tvl1(
    frames: Float[Tensor, "n height width"] | Tensor,
    first: Int[Tensor, " pairs"],
    second: Int[Tensor, " pairs"],
    settings: TVL1Settings = TVL1Settings(),
) -> Float[Tensor, "pairs 2 height width"]:
    """Flow (u, v) in px from frame `first[i]` to frame `second[i]`, float32, on the device of `frames`.

    `frames` are grey levels 0..255, uint8 or float. A frame's pyramid and gradients are made once, however
    many pairs it is in. Raises UsageError for shapes and indices that do not fit.
    """
    _check(frames, first, second)
    height, width = frames.shape[-2:]
    if len(first) == 0:
        return frames.new_zeros((0, 2, height, width), dtype=torch.float32)
    with torch.no_grad():
        used, row = torch.cat((first, second)).to(frames.device).unique(return_inverse=True)
        first, second = row[: len(first)], row[len(first) :]
        levels = pyramid.build(frames[used].to(torch.float32), settings.scales, settings.scale_step)
        if (solver := _native(frames.device, settings)) is not None:
            return solver(levels, first, second, settings)
        out = torch.empty(len(first), 2, height, width, device=frames.device)
        for part in _parts(len(first), height * width, frames.device):
            out[part] = coarse_to_fine(levels, first[part], second[part], settings)
    return out


def engine(device: torch.device, settings: TVL1Settings) -> Literal["native", "torch"]:
    """Which engine `tvl1` will use for frames on `device`: for the record of how features were made."""
    return "torch" if _native(device, settings) is None else "native"


def why_torch(device: torch.device, settings: TVL1Settings) -> str:
    """Why flow on a CPU takes ten times as long as it could: no compiled engine, and the reason; else ""."""
    if device.type != "cpu" or settings.engine == "torch":
        return ""
    solver = _checked()
    return solver if isinstance(solver, str) else ""


def _native(device: torch.device, settings: TVL1Settings) -> native.Pairs | None:
    solver = _checked() if device.type == "cpu" and settings.engine != "torch" else f"it runs on CPUs, not on {device}"
    if not isinstance(solver, str):
        return solver
    if settings.engine == "native":
        raise EnvironmentFault(
            f"the compiled TV-L1 was asked for, but {solver}",
            fix="install AQA again on a machine with a C compiler or the package index, or use engine auto",
        )
    return None


@cache
def _checked() -> native.Pairs | str:
    """The compiled solver, or why there is none: it must give what torch gives on a small moving pattern."""
    solver = native.load()
    if isinstance(solver, str):
        return solver
    y, x = torch.meshgrid(torch.arange(35.0), torch.arange(45.0), indexing="ij")
    frames = torch.stack([128 + 60 * torch.sin((x - s) / 4) + 50 * torch.cos((y + s) / 5) for s in (0.0, 0.8)])
    few = TVL1Settings(epsilon=0.0, warps=2, inner=1, outer=2)  # few iterations: rounding has not grown yet
    levels = pyramid.build(frames, few.scales, few.scale_step)
    index = torch.tensor([0]), torch.tensor([1])
    error = (solver(levels, *index, few) - coarse_to_fine(levels, *index, few)).abs().max()
    return solver if error < 1e-3 else f"the compiled library computes something else (off by {float(error):.2g} px)"


def _check(frames: Tensor, first: Tensor, second: Tensor) -> None:
    if frames.ndim != 3 or frames.shape[-1] < 3 or frames.shape[-2] < 3:
        raise UsageError(f"got {tuple(frames.shape) = }, expected (n, height, width) grey frames of at least 3x3 px")
    if first.ndim != 1 or first.shape != second.shape:
        raise UsageError(f"got {tuple(first.shape) = } and {tuple(second.shape) = }, expected equal (pairs,)")
    if len(first) and (
        min(int(first.min()), int(second.min())) < 0 or max(int(first.max()), int(second.max())) >= len(frames)
    ):
        raise UsageError(f"pairs name frames outside 0..{len(frames) - 1}")


def _parts(pairs: int, area: int, device: torch.device) -> Iterator[slice]:
    """Slices of the batch: on a CPU as few pairs as the cache holds, elsewhere enough to fill it (some 6 GB)."""
    at_once = max(1, (32 * 1024 if device.type == "cpu" else 16 * 2**20) // area)
    for start in range(0, pairs, at_once):
        yield slice(start, min(start + at_once, pairs))


def coarse_to_fine(
    levels: Sequence[Tensor], first: Tensor, second: Tensor, settings: TVL1Settings
) -> Float[Tensor, "pairs 2 height width"]:
    """Flow of pairs of the frames whose pyramid is `levels` (finest first), by torch operations."""
    flow = levels[-1].new_zeros(len(first), 2, *levels[-1].shape[-2:])
    unique, row = second.unique(return_inverse=True)
    for number in reversed(range(len(levels))):
        image = levels[number]
        if number < len(levels) - 1:
            flow = pyramid.enlarge(flow, (image.shape[-2], image.shape[-1]), settings.scale_step)
        planes = sampling_planes(pyramid.gradients(image[unique]))[row]
        flow = _solve(image[first], planes, flow, settings)
    return flow


def _solve(image: Tensor, planes: Tensor, flow: Tensor, settings: TVL1Settings) -> Tensor:
    """All warps of one level."""
    level = Level(flow)
    constants = (settings.theta, settings.lam * settings.theta, settings.tau / settings.theta)
    for _ in range(settings.warps):
        level.linearise(image, planes)
        _until_still(level, settings, constants)
    return level.flow


def _until_still(level: Level, settings: TVL1Settings, constants: tuple[float, float, float]) -> None:
    """Iterate every pair until its own change is small; pairs that are still leave the batch."""
    height, width = level.flow.shape[-2:]
    still = settings.epsilon**2 * height * width
    flow, dual = level.flow, level.dual
    rows = torch.arange(len(flow), device=flow.device)
    for iteration in range(settings.inner * settings.outer):
        if settings.median and iteration % settings.inner == 0:
            level.smooth()
        moving = level.iterate(*constants) > still
        if bool(moving.all()):
            continue
        level.copy_to(flow, dual, rows)
        rows = rows[moving]
        if len(rows) == 0:
            break
        level.keep(moving)
    level.copy_to(flow, dual, rows)
    level.restore(flow, dual)
