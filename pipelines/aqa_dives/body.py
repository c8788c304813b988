"""A diver's body: joint angles in, joint positions, centre of mass and moment of inertia out.

    pose angles (time, channel) → forward kinematics → points (time, point, xyz) in the pelvis' frame

The pelvis' frame has x to the front, y up the spine, z to the left; metres and radians. Lengths and masses are
rounded from the usual anthropometric tables (D. Winter, Biomechanics and Motor Control of Human Movement).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

CHANNELS = (
    "hip_l",
    "hip_r",
    "knee_l",
    "knee_r",
    "spread",
    "spine",
    "neck",
    "shoulder_l",
    "shoulder_r",
    "elbow",
    "arm_spread",
    "point",
)
"""Joint angles of a pose. Flexion is positive; `spread` and `arm_spread` open the limbs sideways;
`shoulder` is 0 with the arms hanging and π overhead; `point` is 1 with the toes stretched, 0 with flat feet."""

POINTS = (
    "pelvis",
    "waist",
    "neck",
    "head",
    "hip_l",
    "knee_l",
    "ankle_l",
    "toe_l",
    "hip_r",
    "knee_r",
    "ankle_r",
    "toe_r",
    "shoulder_l",
    "elbow_l",
    "hand_l",
    "shoulder_r",
    "elbow_r",
    "hand_r",
    "face",
)
INDEX = {name: i for i, name in enumerate(POINTS)}


@dataclass(frozen=True)
class Limb:
    """One rigid part, drawn as a capsule that narrows from `start` to `end`."""

    start: str
    end: str
    radius: tuple[float, float]
    """At both ends, in metres."""
    mass: float
    """Share of the body's mass."""
    dress: str
    """Part of the clothing that covers it, a key of a `Person`'s colours."""


LIMBS = (
    Limb("pelvis", "waist", (0.145, 0.125), 0.220, "pelvis"),
    Limb("waist", "neck", (0.130, 0.150), 0.277, "torso"),
    Limb("neck", "head", (0.085, 0.115), 0.081, "skin"),
    Limb("hip_l", "knee_l", (0.090, 0.062), 0.100, "thigh"),
    Limb("knee_l", "ankle_l", (0.062, 0.040), 0.0465, "shank"),
    Limb("ankle_l", "toe_l", (0.040, 0.026), 0.0145, "skin"),
    Limb("hip_r", "knee_r", (0.090, 0.062), 0.100, "thigh"),
    Limb("knee_r", "ankle_r", (0.062, 0.040), 0.0465, "shank"),
    Limb("ankle_r", "toe_r", (0.040, 0.026), 0.0145, "skin"),
    Limb("shoulder_l", "elbow_l", (0.056, 0.044), 0.028, "arm"),
    Limb("elbow_l", "hand_l", (0.044, 0.034), 0.022, "skin"),
    Limb("shoulder_r", "elbow_r", (0.056, 0.044), 0.028, "arm"),
    Limb("elbow_r", "hand_r", (0.044, 0.034), 0.022, "skin"),
)

_START = np.array([INDEX[limb.start] for limb in LIMBS])
_END = np.array([INDEX[limb.end] for limb in LIMBS])
_MASS = np.array([limb.mass for limb in LIMBS])
_MASS = _MASS / _MASS.sum()


@dataclass(frozen=True)
class Lengths:
    """Bone lengths in metres."""

    pelvis: float = 0.20
    chest: float = 0.33
    head: float = 0.21
    hip_width: float = 0.17
    shoulder_width: float = 0.34
    thigh: float = 0.43
    shank: float = 0.42
    foot: float = 0.18
    upper_arm: float = 0.29
    forearm: float = 0.42
    """With the hand."""
    scale: float = field(default=1.0)
    """Height of the person over 1.72 m."""


def _limb_direction(angle: np.ndarray, sideways: np.ndarray) -> np.ndarray:
    """Unit vectors (time, 3): hanging down at angle 0, to the front at π/2, then opened `sideways`."""
    return np.stack([np.sin(angle) * np.cos(sideways), -np.cos(angle) * np.cos(sideways), np.sin(sideways)], axis=-1)


def kinematics(pose: Float[np.ndarray, "time channel"], lengths: Lengths) -> Float[np.ndarray, "time point 3"]:
    """Positions of POINTS in the pelvis' frame, metres."""
    angle = {name: pose[:, i] for i, name in enumerate(CHANNELS)}
    steps = len(pose)
    points = np.zeros((steps, len(POINTS), 3))

    def put(name: str, value: np.ndarray) -> None:
        points[:, INDEX[name]] = value

    def get(name: str) -> np.ndarray:
        return points[:, INDEX[name]]

    lean = angle["spine"]
    still = np.zeros(steps)
    put("waist", get("pelvis") + lengths.pelvis * np.array([0.0, 1.0, 0.0]))
    put("neck", get("waist") + lengths.chest * np.stack([np.sin(lean), np.cos(lean), still], -1))
    nod = lean + angle["neck"]
    put("head", get("neck") + lengths.head * np.stack([np.sin(nod), np.cos(nod), still], -1))
    put("face", get("head") + 0.05 * np.stack([np.cos(nod), -np.sin(nod), still], -1))
    for side, sign in (("l", 1.0), ("r", -1.0)):
        hip, knee = angle[f"hip_{side}"], angle[f"knee_{side}"]
        put(f"hip_{side}", get("pelvis") + np.array([0.0, -0.03, sign * lengths.hip_width / 2]))
        put(f"knee_{side}", get(f"hip_{side}") + lengths.thigh * _limb_direction(hip, sign * angle["spread"]))
        put(
            f"ankle_{side}",
            get(f"knee_{side}") + lengths.shank * _limb_direction(hip - knee, sign * angle["spread"]),
        )
        foot = hip - knee + np.pi / 2 * (1 - 0.88 * angle["point"])
        put(f"toe_{side}", get(f"ankle_{side}") + lengths.foot * _limb_direction(foot, still))
        # Raised arms close over the head: the shoulders come together.
        raised = np.sin(np.clip(angle[f"shoulder_{side}"], 0, np.pi) / 2) ** 4
        half = lengths.shoulder_width / 2 * (1 - 0.45 * raised)
        put(
            f"shoulder_{side}",
            get("neck") + np.stack([still, still - 0.05 + 0.06 * raised, sign * half], -1),
        )
        arm = angle[f"shoulder_{side}"] - lean
        put(
            f"elbow_{side}",
            get(f"shoulder_{side}") + lengths.upper_arm * _limb_direction(arm, sign * angle["arm_spread"]),
        )
        inward = sign * (angle["arm_spread"] - 0.25 * raised)
        put(
            f"hand_{side}",
            get(f"elbow_{side}") + lengths.forearm * _limb_direction(arm + angle["elbow"], inward),
        )
    return points * lengths.scale


def centre_of_mass(points: Float[np.ndarray, "time point 3"]) -> Float[np.ndarray, "time 3"]:
    """Mass-weighted mean of the limbs' middles."""
    middles = (points[:, _START] + points[:, _END]) / 2
    return np.einsum("tlc,l->tc", middles, _MASS)


def rotation_of(
    points: Float[np.ndarray, "time point 3"], dt: float
) -> tuple[Float[np.ndarray, " time"], Float[np.ndarray, " time"]]:
    """What decides a somersault: (moment of inertia, angular momentum of the limbs' own motion), per unit mass.

    Both about the centre of mass and the transverse axis, forward somersault positive, in m² and m²/s. Limbs
    count as uniform rods. With a body's whole momentum L the pelvis turns at (L - limbs) / inertia.
    """
    middles = (points[:, _START] + points[:, _END]) / 2 - centre_of_mass(points)[:, None]
    x, y = middles[..., 0], middles[..., 1]
    rods = ((points[:, _END] - points[:, _START])[..., :2] ** 2).sum(-1) / 12
    # 0.006 m²: the trunk is thick, and rods have no thickness.
    inertia = ((x**2 + y**2 + rods) * _MASS).sum(-1) + 0.006
    vx, vy = np.gradient(x, dt, axis=0), np.gradient(y, dt, axis=0)
    return inertia, ((y * vx - x * vy) * _MASS).sum(-1)


def turn(
    points: Float[np.ndarray, "time point 3"],
    somersault: Float[np.ndarray, " time"],
    twist: Float[np.ndarray, " time"],
    facing: int,
) -> Float[np.ndarray, "time point 3"]:
    """Points turned about the spine by `twist`, then forward by `somersault`; facing -1 looks towards -x."""
    c, s = np.cos(twist)[:, None], np.sin(twist)[:, None]
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    x, z = c * x + s * z, c * z - s * x
    c, s = np.cos(somersault)[:, None], np.sin(somersault)[:, None]
    x, y = c * x + s * y, c * y - s * x
    return np.stack([facing * x, y, z], axis=-1)
