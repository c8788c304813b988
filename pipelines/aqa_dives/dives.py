"""The start list, and what can go wrong: the only place where luck enters a dive."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Dive:
    """One entry of the start list."""

    name: str
    facing: int
    """1 looks to the water, -1 to the tower."""
    direction: int
    """1 turns forward, -1 backward (as the diver sees it)."""
    halves: int
    """Half somersaults; odd, so that the head enters first."""
    shape: str
    """`tuck` or `pike`."""
    half_twists: int
    difficulty: float


DIVES = (
    Dive("forward-1.5-pike", 1, 1, 3, "pike", 0, 1.6),
    Dive("forward-2.5-tuck", 1, 1, 5, "tuck", 0, 2.4),
    Dive("back-1.5-tuck", -1, -1, 3, "tuck", 0, 1.9),
    Dive("back-2.5-pike", -1, -1, 5, "pike", 0, 2.9),
    Dive("inward-1.5-pike", -1, 1, 3, "pike", 0, 2.1),
    Dive("forward-1.5-full-twist", 1, 1, 3, "pike", 2, 2.2),
)


@dataclass(frozen=True)
class Faults:
    """What goes wrong, each 0 when nothing does."""

    weak_jump: float = 0.0
    """Share of the jump's speed that is missing, 0..1."""
    drift: float = 0.0
    """Horizontal speed too much (or too little), m/s."""
    momentum: float = 0.0
    """Relative error of the angular momentum."""
    opening: float = 0.0
    """Seconds by which the opening comes late, on top of what the diver does to finish the rotation."""
    loose: float = 0.0
    """How open the tuck or pike is, 0..1."""
    legs_apart: float = 0.0
    """Radians between the legs in flight."""
    bent_knees: float = 0.0
    """Radians of knee flexion where the legs should be straight."""
    twist: float = 0.0
    """Radians of twist missing."""
    entry_shape: float = 0.0
    """Arms apart, legs apart and hips bent at entry, 0..1."""


def sample_faults(rng: np.random.Generator, dive: Dive) -> Faults:
    """Faults that share one hidden skill, so that the early ones foretell the late ones."""
    # Half-way between a beginners' class and a final; the square root spreads the good half out.
    clumsy = float(rng.beta(1.05, 1.15))
    own = rng.uniform(0.0, 1.0, 9)
    # Mostly skill, a third the luck of the day; somebody clumsy is also unsteady.
    size = np.clip(clumsy * (0.75 + 0.5 * own), 0.0, 1.2)
    sign = rng.choice([-1.0, 1.0], 9)
    return Faults(
        weak_jump=float(0.85 * size[0]),
        drift=float(0.55 * size[1] * sign[1]),
        # More divers under-rotate than over-rotate.
        momentum=float(0.075 * size[2] * (1.0 if rng.uniform() < 0.3 else -1.0)),
        opening=float(0.13 * size[3]),
        loose=float(size[4]),
        legs_apart=float(0.6 * size[5]),
        bent_knees=float(0.85 * size[6]),
        twist=float(1.2 * size[7] * sign[7]) if dive.half_twists else 0.0,
        entry_shape=float(size[8]),
    )
