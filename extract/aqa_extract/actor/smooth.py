"""The way of a body through all looks, from the looks on which it was seen: a Kalman smoother.

A body has a place, a velocity and an acceleration; the acceleration changes little from look to look. The whole video
is known, so a gap is filled from both sides, and each place comes with how far it may be off. A box that lies far from
the way is counted less (Huber's weights).

    H. Rauch, F. Tung, C. Striebel, Maximum likelihood estimates of linear dynamic systems, AIAA Journal 1965,
    doi:10.2514/3.3166; the model is R. Singer's (IEEE TAES 1970, doi:10.1109/taes.1970.310128), the constants are ours.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64
from numpy.typing import NDArray

from aqa_extract.actor.link import Detections

Floats = NDArray[np.float64]

NOISE = 0.08
"""Body lengths that the middle of a sure box is off; of a box with a score below `SURE`, more."""
SURE = 0.5
JERK = 0.035
"""Body lengths a look² by which the acceleration changes from look to look."""
KEPT_SPEED, KEPT_ACCELERATION = 0.97, 0.9
"""What is left of them a look later, where nothing is seen."""
FIRST_SPEED, FIRST_ACCELERATION = 0.35, 0.08
"""Standard deviation at the first look, body lengths a look and a look²."""
FAR = 2.0
"""Standard deviations from which a box counts less."""
TURNS = 4


def noise(sides: Floats | np.float64, scores: Floats) -> Floats:
    """How far the middle of each box may be off, in the unit of `sides`."""
    return NOISE * sides / np.sqrt(np.clip(scores / SURE, 0.05, 1))


def way(
    found: Detections, rows: NDArray[np.int64], positions: NDArray[np.integer], looks: NDArray[np.int64]
) -> tuple[Floats, Floats, float]:
    """Where the person of `rows` is on `looks` against the background (looks, 2), and its standard deviation (looks,),
    both in body lengths, and the length in pixels."""
    step = float(np.median(np.diff(positions))) if len(positions) > 1 else 1.0
    unit = float(np.median(found.sides[rows]))
    sigma = noise(found.sides[rows] / unit, found.scores[rows])
    at = np.searchsorted(looks, found.look[rows])
    return *smooth(positions[looks] / step, at, found.centres[rows] / unit, sigma), unit


def smooth(
    times: Float[np.ndarray, " looks"],
    at: Int64[np.ndarray, " n"],
    places: Float[np.ndarray, "n 2"],
    sigma: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, "looks 2"], Float[np.ndarray, " looks"]]:
    """Places at all `times` (rising, in looks) and their standard deviations, both in body lengths.

    The body was seen at `places`, give or take `sigma`, at the rising rows `at` of `times`; n ≥ 1.
    """
    weights = np.ones(len(at))
    for _ in range(TURNS):
        place, deviation = _both_ways(times, at, places, sigma**2 / weights)
        weights = FAR / np.maximum(np.hypot(*(places - place[at]).T) / sigma, FAR)
    return place, deviation


def _both_ways(times: Floats, at: NDArray[np.int64], places: Floats, variance: Floats) -> tuple[Floats, Floats]:
    count, seen = len(times), dict(zip(at.tolist(), range(len(at)), strict=True))
    state, spread = np.zeros((count, 3, 2)), np.zeros((count, 3, 3))
    expected, expected_spread, step = np.zeros_like(state), np.zeros_like(spread), np.zeros_like(spread)
    for k in range(count):
        if k == 0:
            expected[k, 0] = places[0]
            unknown = 100 * (1 + times[at[0]] - times[0]) ** 2
            expected_spread[k] = np.diag([unknown, FIRST_SPEED**2, FIRST_ACCELERATION**2])
        else:
            d = times[k] - times[k - 1]
            step[k] = [[1, d, d * d / 2], [0, KEPT_SPEED**d, d], [0, 0, KEPT_ACCELERATION**d]]
            jerk = np.array([d**3 / 6, d * d / 2, d]) * JERK * np.sqrt(max(1.0, 1 / d))
            expected[k] = step[k] @ state[k - 1]
            expected_spread[k] = step[k] @ spread[k - 1] @ step[k].T + np.outer(jerk, jerk)
            # Never singular: the speed trembles, too.
            expected_spread[k] += np.diag([1e-6, (0.01 * d) ** 2, 1e-8])
        state[k], spread[k] = expected[k], expected_spread[k]
        if k in seen:
            i = seen[k]
            gain = expected_spread[k, :, 0] / (expected_spread[k, 0, 0] + variance[i])
            state[k] += gain[:, None] * (places[i] - expected[k, 0])
            spread[k] -= np.outer(gain, expected_spread[k, 0])
    for k in range(count - 2, -1, -1):
        back = np.linalg.solve(expected_spread[k + 1], step[k + 1] @ spread[k]).T
        state[k] += back @ (state[k + 1] - expected[k + 1])
        spread[k] += back @ (spread[k + 1] - expected_spread[k + 1]) @ back.T
    return state[:, 0], np.sqrt(np.maximum(spread[:, 0, 0], 0))
