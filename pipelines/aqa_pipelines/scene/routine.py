"""One dive: who jumps, what goes wrong, and the motion that follows from it by mechanics.

    skill → faults → pose over time → inertia → rotation under conserved angular momentum
                                    → ballistic flight → entry → which part of the body hits the water where

Nothing about the result is drawn at random after the faults: the angle at entry follows from the momentum, the
tightness of the tuck and the moment of opening; the splash from where each body part pierces the surface.
Early faults and late ones share the diver's skill, and lead to each other: a loose tuck turns slowly, so the
diver holds it longer, opens late, and enters bent.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from aqa_pipelines.scene.body import (
    CHANNELS,
    INDEX,
    LIMBS,
    Lengths,
    centre_of_mass,
    kinematics,
    rotation_of,
    turn,
)
from aqa_pipelines.scene.judging import Measured

GRAVITY = 9.81
DT = 1 / 240
"""Step of the simulation, seconds."""
READY = 0.42
"""A dive opened in time is straight this long before the hands touch the water, seconds."""
OPENING = 0.13
"""From the start of the opening to a straight body, seconds."""
TIGHTEST = {"tuck": 160.0, "pike": 158.0}
"""Degrees between the trunk's line and the thighs in a perfect position."""


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


def _pose(**degrees: float) -> np.ndarray:
    """A pose from angles in degrees (`point` is a share); `hip=`, `knee=`, `shoulder=` set both sides."""
    for both in ("hip", "knee", "shoulder"):
        if both in degrees:
            value = degrees.pop(both)
            degrees[f"{both}_l"] = degrees[f"{both}_r"] = value
    unknown = set(degrees) - set(CHANNELS)
    assert not unknown, f"no such angles: {unknown}"
    return np.array([v if c == "point" else np.deg2rad(v) for c in CHANNELS for v in [degrees.get(c, 0.0)]])


_STAND = _pose(shoulder=8, elbow=8)
_REACH = _pose(shoulder=165, elbow=5, point=0.1)
_CROUCH = _pose(hip=62, knee=78, spine=14, shoulder=-35, elbow=10, neck=-10)
_STRETCHED = _pose(shoulder=176, point=1)
_WRAPPED = _pose(shoulder=55, elbow=118, arm_spread=8, point=1, neck=6)
_HALF_OPEN = _pose(shoulder=95, elbow=35, arm_spread=22, point=1)


def _flight_shape(dive: Dive, faults: Faults) -> np.ndarray:
    """The tuck or pike, as tight and as clean as the diver manages."""
    apart, bent = faults.legs_apart, faults.bent_knees
    if dive.shape == "tuck":
        pose = _pose(hip=132 - 42 * faults.loose, knee=140 - 38 * faults.loose, spine=46, neck=22, point=1)
        pose += _pose(shoulder=62, elbow=34, arm_spread=6)
    else:
        pose = _pose(hip=128 - 44 * faults.loose, spine=48 - 14 * faults.loose, neck=12, point=1)
        pose += _pose(shoulder=104, elbow=12, arm_spread=4)
        pose[[CHANNELS.index("knee_l"), CHANNELS.index("knee_r")]] += bent
    pose[CHANNELS.index("hip_l")] += apart * 0.45
    pose[CHANNELS.index("hip_r")] -= apart * 0.45
    pose[CHANNELS.index("spread")] += apart * 0.5
    return pose


def _entry_pose(faults: Faults) -> np.ndarray:
    """Arms overhead and everything in one line; or not."""
    e = faults.entry_shape
    pose = _pose(
        shoulder=178 - 22 * e, elbow=14 * e, arm_spread=26 * e, hip=14 * e, knee=24 * e, spread=9 * e,
        point=1 - 0.6 * e,
    )  # fmt: skip
    pose[CHANNELS.index("hip_l")] += 0.22 * faults.legs_apart
    pose[CHANNELS.index("hip_r")] -= 0.22 * faults.legs_apart
    return pose


def _between(times: np.ndarray, keys: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """Poses (time, channel) eased from key to key."""
    at = np.array([t for t, _ in keys])
    values = np.stack([p for _, p in keys])
    left = np.clip(np.searchsorted(at, times, side="right") - 1, 0, len(at) - 2)
    u = np.clip((times - at[left]) / (at[left + 1] - at[left]), 0.0, 1.0)[:, None]
    return values[left] + (values[left + 1] - values[left]) * u * u * (3 - 2 * u)


def _walk(times: np.ndarray, facing: int) -> np.ndarray:
    """Poses added to standing while the diver walks up (only those who look to the water do)."""
    swing = np.zeros((len(times), len(CHANNELS)))
    if facing < 0:
        return swing
    strength = np.clip((-0.75 - times) / 0.25, 0, 1) * np.clip((times + 2.9) / 0.3, 0, 1)
    phase = 2 * np.pi * 0.95 * times
    for side, shift in (("l", 0.0), ("r", np.pi)):
        swing[:, CHANNELS.index(f"hip_{side}")] = 0.42 * np.sin(phase + shift)
        swing[:, CHANNELS.index(f"knee_{side}")] = 0.5 * np.clip(np.sin(phase + shift + 1.3), 0, None)
        swing[:, CHANNELS.index(f"shoulder_{side}")] = -0.45 * np.sin(phase + shift)
    return swing * strength[:, None]


def _poses(times: np.ndarray, dive: Dive, faults: Faults, opens: float, water: float) -> np.ndarray:
    """Joint angles (time, channel) of the whole routine; the opening starts at `opens`, the water is at `water`."""
    shape, entry = _flight_shape(dive, faults), _entry_pose(faults)
    loose_stretch = _STRETCHED.copy()
    loose_stretch[CHANNELS.index("hip_l")] += 0.3 * faults.legs_apart
    loose_stretch[CHANNELS.index("hip_r")] -= 0.3 * faults.legs_apart
    keys = [
        (-1.05, _STAND),
        (-0.62, _REACH),
        (-0.24, _CROUCH),
        (-0.02, _STRETCHED),
        (0.10, loose_stretch),
    ]
    if dive.half_twists:
        wrapped = _WRAPPED.copy()
        wrapped[CHANNELS.index("hip_l")] += 0.35 * faults.legs_apart
        wrapped[CHANNELS.index("hip_r")] -= 0.35 * faults.legs_apart
        wrapped[[CHANNELS.index("knee_l"), CHANNELS.index("knee_r")]] += 0.5 * faults.bent_knees
        ends = _twist_ends(opens)
        keys += [(0.30, wrapped), (ends, wrapped), (ends + 0.20, shape), (opens, shape)]
    else:
        keys += [(0.34, shape), (opens, shape)]
    # Who opens late has no time left for the arms: the stretch ends at the water at the latest, unfinished before.
    half = _HALF_OPEN + 0.5 * (entry - _STRETCHED)
    keys += [(opens + 0.20, half), (opens + 0.36, entry), (max(water, opens + 0.36) + 5.0, entry)]
    return _between(times, keys) + _walk(times, dive.facing)


def _twist_ends(opens: float) -> float:
    return max(0.75, opens - 0.42)


def _twist(times: np.ndarray, dive: Dive, faults: Faults, opens: float) -> np.ndarray:
    """Angle about the spine, radians; the twist runs while the arms are wrapped."""
    if not dive.half_twists:
        return np.zeros_like(times)
    u = np.clip((times - 0.22) / (_twist_ends(opens) - 0.22), 0.0, 1.0)
    return (np.pi * dive.half_twists - faults.twist) * u * u * (3 - 2 * u)


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
    press = 0.18
    flying = slice(start, start + round(water / DT) + 1)

    def spin(opens: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Body points in the pelvis' frame, inertia, momentum of the limbs, for an opening at `opens`."""
        points = kinematics(_poses(times, dive, faults, opens, water), lengths)
        return points, *rotation_of(points, DT)

    points, inertia, limbs = spin(opens)
    # The angle is linear in the momentum: one division finds the planned one. The press before take-off turns the
    # body by half of `press` times the first rate.
    gain = (DT / inertia[flying]).sum() + press / 2 / inertia[start]
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
    rate[: start + 1] = rate[start] * np.clip(1 + times[: start + 1] / press, 0.0, 1.0)
    twist = _twist(times, dive, faults, opens)
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
    angle -= angle[start] - rate[start] * 0.09
    angle[:start] = np.where(times[:start] > -0.18, angle[:start], 0.0)
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
