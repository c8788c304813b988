"""What a panel sees of a dive, and the score it gives: 10 less the deductions, then the judges' rule.

    measured quantities → deductions (points) → execution (0..10) → seven judges → score

The deductions are ours, in the spirit of the FINA/World Aquatics manual: each grows with one measured quantity
between what nobody sees and what costs everything. The middle three of seven half-point marks are averaged.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

START_VALUE = 10.0


@dataclass(frozen=True)
class Measured:
    """Simulated quantities of one routine, in the order in which a viewer can see them."""

    jump: float
    """How far the centre of mass rises after take-off, metres; more is better."""
    form_error: float
    """Legs apart and knees bent that should not be: mean over the flight, degrees."""
    position_error: float
    """Hip angle that is missing to a tight tuck or pike, degrees."""
    timing_error: float
    """How much later than ideal the body is straight, seconds."""
    twist_error: float
    """Twist missing (or too much) when the hands touch the water, degrees, absolute."""
    distance: float
    """Where the hands enter, metres in front of the platform's edge."""
    entry_angle: float
    """Of the body to the vertical when the hands touch the water, degrees, absolute."""
    splash: float
    """Water thrown, 0 (a rip entry) to 1; a consequence of how wide a hole the body makes."""


@dataclass(frozen=True)
class Deduction:
    """Nothing up to `free`, everything from `full`, a straight line between; `points` is everything."""

    points: float
    free: float
    full: float

    def __call__(self, value: float) -> float:
        return self.points * float(np.clip((value - self.free) / (self.full - self.free), 0.0, 1.0))


DEDUCTIONS = {
    "jump": Deduction(0.7, -0.92, -0.42),
    "form_error": Deduction(1.2, 2.0, 55.0),
    "position_error": Deduction(0.7, 2.0, 60.0),
    "timing_error": Deduction(0.9, 0.02, 0.30),
    "twist_error": Deduction(0.6, 3.0, 70.0),
    "distance": Deduction(0.3, 0.1, 1.4),
    "entry_angle": Deduction(2.4, 2.0, 50.0),
    "splash": Deduction(3.0, 0.10, 0.90),
}
"""By quantity. `jump` counts with its sign turned (a high one is good), `distance` as metres from IDEAL_DISTANCE."""

IDEAL_DISTANCE = 1.8


def deductions(measured: Measured) -> dict[str, float]:
    """Points lost for each quantity."""
    faults = asdict(measured) | {
        "jump": -measured.jump,
        "distance": abs(measured.distance - IDEAL_DISTANCE),
    }
    return {name: rule(faults[name]) for name, rule in DEDUCTIONS.items()}


def execution(measured: Measured) -> float:
    """The score without the judges' noise, 0.2..10."""
    return START_VALUE - sum(deductions(measured).values())


def panel(fair: float, noise: float, rng: np.random.Generator) -> float:
    """Mean of the middle three of seven judges, each off by N(0, noise) and marking in half points."""
    marks = np.clip(np.round((fair + rng.normal(0.0, noise, 7)) * 2) / 2, 0.0, 10.0)
    return round(float(np.sort(marks)[2:5].mean()), 2)
