"""One dive: who jumps, what goes wrong, and the motion that follows from it by mechanics.

    skill → faults → pose over time → inertia → rotation under conserved angular momentum
                                    → ballistic flight → entry → which part of the body hits the water where

Nothing about the result is drawn at random after the faults: the angle at entry follows from the momentum, the
tightness of the tuck and the moment of opening; the splash from where each body part pierces the surface.
Early faults and late ones share the diver's skill, and lead to each other: a loose tuck turns slowly, so the
diver holds it longer, opens late, and enters bent.

A simplification: the somersault is computed in the plane, and the twist turns the body within it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from aqa_dives.body import (
    INDEX,
    LIMBS,
    Lengths,
    centre_of_mass,
    kinematics,
    rotation_of,
    turn,
)
from aqa_dives.dives import Dive, Faults
from aqa_dives.judging import Measured
from aqa_dives.poses import poses, twist_angle

GRAVITY = 9.81
DT = 1 / 240
"""Step of the simulation, seconds."""
READY = 0.42
"""A dive opened in time is straight this long before the hands touch the water, seconds."""
PRESS = 0.18
"""The last part of the stand, in which the legs push and the body begins to turn, seconds."""
OPENING = 0.13
"""From the start of the opening to a straight body, seconds."""
TIGHTEST = {"tuck": 160.0, "pike": 158.0}
"""Degrees between the trunk's line and the thighs in a perfect position."""


@dataclass(frozen=True)
class Routine:
    """A simulated dive. Times are seconds from take-off; metres with y = 0 the water and x = 0 the edge."""

    dive: Dive
    faults: Faults
    platform: float
    """Height of the platform, metres."""
    times: Float[np.ndarray, " time"]
    points: Float[np.ndarray, "time point 3"]
    """POINTS in the world."""
    centre: Float[np.ndarray, "time 3"]
    """Centre of mass."""
    entry_time: float
    """When the hands touch the water."""
    hits: Float[np.ndarray, "limb 5"]
    """Where and how each limb's middle pierces the surface: x, z, time, downward speed, metres of it broadside on."""
    measured: Measured


def _cumulate(rate: np.ndarray) -> np.ndarray:
    """Trapezoid integral from the first step on."""
    return np.concatenate([[0.0], np.cumsum((rate[1:] + rate[:-1]) / 2)]) * DT


def simulate(dive: Dive, faults: Faults, platform: float, lengths: Lengths, before: float, after: float) -> Routine:
    """Run the mechanics from `before` seconds ahead of take-off to `after` seconds behind the entry.

    Shapes and units are those of `Routine`. The planned momentum is the one with which this diver, with these
    poses, would enter upright; `faults.momentum` is the relative miss, and the diver, who feels it, opens earlier
    or later to save what can be saved.
    """
    steps_before = int(np.ceil(before / DT))
    rise = 4.3 - 1.5 * faults.weak_jump
    reach = 1.12 * lengths.scale
    top = platform + 1.08 * lengths.scale
    water = (rise + np.sqrt(rise**2 + 2 * GRAVITY * (top - reach))) / GRAVITY
    times = np.arange(-steps_before, int(np.ceil((water + after + 0.6) / DT)) + 1) * DT
    start = steps_before

    opens = water - READY - OPENING
    target = np.pi * dive.halves
    flying = slice(start, start + round(water / DT) + 1)

    def spin(opens: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Body points in the pelvis' frame, inertia, momentum of the limbs, for an opening at `opens`."""
        points = kinematics(poses(times, dive, faults, opens), lengths)
        return points, *rotation_of(points, DT)

    points, inertia, limbs = spin(opens)
    # The angle is linear in the momentum: one division finds the planned one. The press before take-off turns the
    # body by half of PRESS times the first rate.
    gain = (DT / inertia[flying]).sum() + PRESS / 2 / inertia[start]
    drag = (dive.direction * limbs[flying] / inertia[flying] * DT).sum()
    planned = (target + drag) / gain
    momentum = planned * (1 + faults.momentum)
    # Radians won per second of holding the shape longer: the diver sees the water and corrects half of the miss.
    tight = momentum / inertia[start + round((opens - 0.1) / DT)]
    straight = momentum / inertia[flying][-1]
    saved = float(np.clip(-0.55 * faults.momentum * target / max(tight - straight, 1.0), -0.12, 0.22))
    opens = opens + saved + faults.opening
    points, inertia, limbs = spin(opens)

    rate = (dive.direction * momentum - limbs) / inertia
    rate[: start + 1] = rate[start] * np.clip(1 + times[: start + 1] / PRESS, 0.0, 1.0)
    twist = twist_angle(times, dive, faults, opens)
    centre_path, angle, touch = _fly(times, start, points, rate, twist, dive, faults, platform, rise)

    world = turn(points, angle, twist, dive.facing)
    centre = centre_of_mass(world)
    world = world - centre[:, None] + centre_path[:, None]
    hits = _pierce(times, world, touch)
    measured = _measure(dive, times, world, centre_path, twist, start, touch, hits)
    return Routine(dive, faults, platform, times, world, centre_path, float(times[touch]), hits, measured)


def _fly(
    times: np.ndarray,
    start: int,
    points: np.ndarray,
    rate: np.ndarray,
    twist: np.ndarray,
    dive: Dive,
    faults: Faults,
    platform: float,
    rise: float,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Path of the centre of mass, somersault angle, and the step at which the hands touch the water."""
    angle = _cumulate(rate)
    # Upright until the press, so that the lean at take-off is what the press has turned.
    angle -= angle[0]
    world = turn(points, angle, twist, dive.facing)
    offset = centre_of_mass(world)
    lowest = np.minimum(world[..., 1].min(axis=1) - 0.025, 0.0)

    # On the platform: the feet stand on it, the hips walk to the edge.
    forward = 1.15 + faults.drift
    speed = np.interp(times, [-3.2, -2.9, -1.2, -0.8, -0.15, 0.0], [0, 1.0, 1.0, 0.25, 0.12, forward])
    if dive.facing < 0:
        speed = np.interp(times, [-0.2, 0.0], [0.0, forward])
    walked = _cumulate(speed)
    path = np.zeros((len(times), 3))
    path[:, 0] = walked - walked[start] - 0.12 + offset[:, 0]
    path[:, 1] = platform - lowest + offset[:, 1]

    # In the air: a parabola.
    t = times[start:]
    path[start:, 0] = path[start, 0] + forward * t
    path[start:, 1] = path[start, 1] + rise * t - GRAVITY * t**2 / 2

    heights = path[start:, 1] + (world[start:, :, 1] - offset[start:, 1:2]).min(axis=1)
    touch = start + int(np.argmax(heights <= 0.0))

    # In the water: it brakes the body and stops its turning.
    t = times[touch:] - times[touch]
    sideways = abs(np.sin(angle[touch] - np.pi * dive.halves * dive.direction))
    brake = 0.34 / (1 + 2.0 * sideways)
    fall = GRAVITY * times[touch] - rise
    path[touch:, 1] = path[touch, 1] - fall * brake * (1 - np.exp(-t / brake))
    path[touch:, 0] = path[touch, 0] + forward * brake * (1 - np.exp(-t / brake))
    angle[touch:] = angle[touch] + rate[touch] * 0.05 * (1 - np.exp(-t / 0.05))
    return path, angle, touch


def _pierce(times: np.ndarray, world: np.ndarray, touch: int) -> np.ndarray:
    """Where and how each limb's middle goes under: (limb, [x, z, time, speed, broadside])."""
    starts, ends = ([INDEX[getattr(limb, e)] for limb in LIMBS] for e in ("start", "end"))
    axes = world[touch:, ends] - world[touch:, starts]
    middles = (world[touch:, starts] + world[touch:, ends]) / 2
    under = middles[..., 1] <= 0.0
    # A limb that never sinks in the simulated time lies on the water: it counts where it is at the end.
    step = np.where(under.any(axis=0), under.argmax(axis=0), len(middles) - 1)
    limb = np.arange(len(LIMBS))
    velocity = np.gradient(middles, DT, axis=0)[step, limb]
    axis, middle = axes[step, limb], middles[step, limb]
    speed = np.maximum(np.linalg.norm(velocity, axis=-1), 1e-6)
    # An arrow makes a small hole, a stick that falls flat a long one.
    broadside = np.linalg.norm(np.cross(axis, velocity), axis=-1) / speed
    return np.stack([middle[:, 0], middle[:, 2], times[touch + step], np.maximum(-velocity[:, 1], 0), broadside], -1)


def _measure(
    dive: Dive,
    times: np.ndarray,
    world: np.ndarray,
    path: np.ndarray,
    twist: np.ndarray,
    start: int,
    touch: int,
    hits: np.ndarray,
) -> Measured:
    """The quantities that the judges look at, read off the motion."""

    def at(name: str, rows: slice | int) -> np.ndarray:
        return world[rows, INDEX[name]]

    flight = slice(start + round(0.34 / DT), touch)
    legs = [at(f"ankle_{s}", flight) - at(f"hip_{s}", flight) for s in "lr"]
    apart = _angle(legs[0], legs[1])
    bends = []
    for s in "lr":
        thigh = at(f"knee_{s}", flight) - at(f"hip_{s}", flight)
        shank = at(f"ankle_{s}", flight) - at(f"knee_{s}", flight)
        bends.append(_angle(thigh, shank))
    bent = np.mean(bends, axis=0)

    trunk = at("neck", slice(None)) - at("pelvis", slice(None))
    thighs = sum(at(f"knee_{s}", slice(None)) - at(f"hip_{s}", slice(None)) for s in "lr")
    folded = _angle(-trunk, np.asarray(thighs))
    tightest = start + int(np.argmax(folded[start:touch]))
    # Still folded a quarter of a second into the water: late enough for the whole deduction, so stop looking.
    last = touch + round(0.25 / DT)
    straight = np.flatnonzero(folded[tightest:last] < 35.0)
    ready = tightest + int(straight[0]) if len(straight) else last
    late = max(0.0, READY - float(times[touch] - times[ready]))

    line = at("neck", touch) - (at("ankle_l", touch) + at("ankle_r", touch)) / 2
    entry = float(_angle(line[None], np.array([[0.0, -1.0, 0.0]]))[0])

    mass = np.array([limb.mass for limb in LIMBS])
    mass = mass / mass.sum()
    x, z, _, speed, broadside = hits.T
    # A clean dive goes like an arrow through one hole; what is wider, and faster, throws more water.
    spread = np.sqrt((mass * ((x - (mass * x).sum()) ** 2 + (z - (mass * z).sum()) ** 2)).sum())
    width = float(np.hypot(spread, 1.6 * (mass * broadside).sum()))
    energy = float((mass * speed**2).sum()) / 150.0
    splash = min(max(width - 0.14, 0.0) / 0.5 * float(np.clip(energy, 0.6, 1.2)) ** 0.5, 1.0)

    clean = apart if dive.shape == "tuck" else apart + 0.6 * bent
    return Measured(
        jump=float(path[start:touch, 1].max() - path[start, 1]),
        form_error=float(clean.mean()),
        position_error=max(0.0, TIGHTEST[dive.shape] - float(folded[tightest])),
        timing_error=float(late),
        twist_error=float(abs(np.rad2deg(twist[touch]) - 180.0 * dive.half_twists)),
        distance=float(at("hand_l", touch)[0]),
        entry_angle=entry,
        splash=splash,
    )


def _angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Degrees between vectors (time, 3)."""
    cos = (a * b).sum(-1) / np.maximum(np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-9)
    return np.rad2deg(np.arccos(np.clip(cos, -1.0, 1.0)))
