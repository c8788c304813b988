"""What decides the flow of a pair: OpenCV's parameters of TV-L1, and which of our engines computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Engine = Literal["auto", "native", "torch"]


@dataclass(frozen=True)
class TVL1Settings:
    """OpenCV's parameters under their own names, and ours."""

    tau: float = 0.25
    """Time step of the dual update."""
    lam: float = 0.15
    """Weight of the data term: smaller is smoother (OpenCV's lambda)."""
    theta: float = 0.3
    """Coupling of the two halves of the problem."""
    scales: int = 5
    """Pyramid levels at most; a level with a side below 16 px is left out."""
    warps: int = 5
    """Warpings per level."""
    epsilon: float = 0.01
    """A pair stops when the mean squared change of its flow is at most epsilon squared."""
    inner: int = 30
    """Iterations between two medians."""
    outer: int = 10
    """Runs of `inner` iterations per warp at most."""
    scale_step: float = 0.8
    median: bool = True
    """5x5 median of the flow before every run of `inner` iterations."""
    engine: Engine = "auto"
    """`native` is the fused C loop of native.py (CPU only), `torch` runs anywhere; `auto` takes the first where it
    can. They agree to rounding."""
