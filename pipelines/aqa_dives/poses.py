"""Choreography: joint angles over time, eased from key pose to key pose, with the diver's faults in them."""

from __future__ import annotations

import numpy as np

from aqa_dives.body import CHANNELS
from aqa_dives.dives import Dive, Faults


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


def poses(times: np.ndarray, dive: Dive, faults: Faults, opens: float) -> np.ndarray:
    """Joint angles (time, channel) of the whole routine; the opening starts at `opens` seconds after take-off."""
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
    # Who opens late meets the water before the stretch is done.
    half = _HALF_OPEN + 0.5 * (entry - _STRETCHED)
    keys += [(opens + 0.20, half), (opens + 0.36, entry), (opens + 9.0, entry)]
    return _between(times, keys) + _walk(times, dive.facing)


def _twist_ends(opens: float) -> float:
    return max(0.75, opens - 0.42)


def twist_angle(times: np.ndarray, dive: Dive, faults: Faults, opens: float) -> np.ndarray:
    """Angle about the spine, radians; the twist runs while the arms are wrapped."""
    if not dive.half_twists:
        return np.zeros_like(times)
    u = np.clip((times - 0.22) / (_twist_ends(opens) - 0.22), 0.0, 1.0)
    return (np.pi * dive.half_twists - faults.twist) * u * u * (3 - 2 * u)
