"""The simulated dive: mechanics that must hold, and a score that falls with every fault that is seen."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqa_dives.body import CHANNELS, INDEX, Lengths, centre_of_mass, kinematics, rotation_of, turn
from aqa_dives.dives import DIVES, Dive, Faults, sample_faults
from aqa_dives.judging import DEDUCTIONS, IDEAL_DISTANCE, Measured, deductions, execution, panel
from aqa_dives.routine import DT, GRAVITY, Routine, simulate

FAULTLESS = Measured(
    jump=1.0,
    form_error=0.0,
    position_error=0.0,
    timing_error=0.0,
    twist_error=0.0,
    distance=IDEAL_DISTANCE,
    entry_angle=0.0,
    splash=0.0,
)


def dive(name: str = "forward-2.5-tuck", **faults: float) -> Routine:
    """One simulated dive from 7.5 m."""
    entry = next(d for d in DIVES if d.name == name)
    return simulate(entry, Faults(**faults), 7.5, Lengths(), before=2.0, after=1.0)


# The score


def test_a_faultless_dive_keeps_the_start_value() -> None:
    assert execution(FAULTLESS) == 10.0


def test_the_worst_dive_keeps_two_tenths() -> None:
    worst = Measured(0.0, 180.0, 180.0, 2.0, 180.0, 9.0, 180.0, 1.0)
    # 0.7 + 1.2 + 0.7 + 0.9 + 0.6 + 0.3 + 2.4 + 3.0 = 9.8
    assert execution(worst) == pytest.approx(0.2)


def test_deductions_by_hand() -> None:
    # Splash: free 0.10, full 0.90, 3 points. 0.50 is half-way: 1.5. Entry 26° is half of 2..50: 1.2.
    lost = deductions(replace(FAULTLESS, splash=0.50, entry_angle=26.0))
    assert lost["splash"] == pytest.approx(1.5)
    assert lost["entry_angle"] == pytest.approx(1.2)
    assert execution(replace(FAULTLESS, splash=0.50, entry_angle=26.0)) == pytest.approx(7.3)


@pytest.mark.parametrize("name", [f.name for f in fields(Measured)])
@given(data=st.data())
@settings(max_examples=30)
def test_score_falls_with_each_fault_alone(name: str, data: st.DataObject) -> None:
    """Strictly between `free` and `full`, and never the other way."""
    rule = DEDUCTIONS[name]
    small, large = sorted(data.draw(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2, unique=True)))
    others = {
        f.name: getattr(FAULTLESS, f.name) * data.draw(st.floats(0.5, 1.0)) for f in fields(Measured) if f.name != name
    }

    def score(share: float) -> float:
        value = rule.free + share * (rule.full - rule.free)
        value = {"jump": -value, "distance": IDEAL_DISTANCE + value}.get(name, value)
        return execution(Measured(**{**others, name: value}))

    assert score(small) - score(large) == pytest.approx(rule.points * (large - small), abs=1e-9)


def test_panel_is_the_middle_three_of_seven_half_points() -> None:
    assert panel(7.26, 0.0, np.random.default_rng(0)) == 7.5
    marks = [panel(6.0, 0.3, np.random.default_rng(i)) for i in range(200)]
    assert abs(np.mean(marks) - 6.0) < 0.05
    assert 0.05 < np.std(marks) < 0.3
    # A third of a half point is the finest mark the rule can give, rounded to hundredths.
    assert all(abs(m * 6 - round(m * 6)) < 0.04 for m in marks)
    assert max(panel(9.9, 2.0, np.random.default_rng(i)) for i in range(50)) <= 10.0


# The body


def test_standing_body_by_hand() -> None:
    points = kinematics(np.zeros((1, len(CHANNELS))), Lengths())[0]
    lengths = Lengths()
    assert points[INDEX["neck"], 1] == pytest.approx(lengths.pelvis + lengths.chest)
    assert points[INDEX["ankle_l"], 1] == pytest.approx(-0.03 - lengths.thigh - lengths.shank)
    assert points[INDEX["toe_l"]] - points[INDEX["ankle_l"]] == pytest.approx([lengths.foot, 0, 0], abs=1e-12)
    assert points[INDEX["hand_r"], 1] < points[INDEX["elbow_r"], 1] < points[INDEX["shoulder_r"], 1]
    # The body's left is +z when it faces +x.
    assert points[INDEX["hip_l"], 2] > 0 > points[INDEX["hip_r"], 2]


def test_bones_keep_their_length_in_any_pose() -> None:
    pose = np.random.default_rng(0).uniform(0, 2, (50, len(CHANNELS)))
    points = kinematics(pose, Lengths(scale=1.1))
    for a, b, length in (("hip_l", "knee_l", 0.43), ("knee_r", "ankle_r", 0.42), ("shoulder_l", "elbow_l", 0.29)):
        measured = np.linalg.norm(points[:, INDEX[a]] - points[:, INDEX[b]], axis=-1)
        np.testing.assert_allclose(measured, length * 1.1, rtol=1e-12)


def test_turning_forward_brings_the_head_to_the_front() -> None:
    points = kinematics(np.zeros((1, len(CHANNELS))), Lengths())
    quarter = np.array([np.pi / 2])
    for facing in (1, -1):
        head = turn(points, quarter, np.zeros(1), facing)[0, INDEX["head"]]
        assert head[0] * facing > 0.6
        assert abs(head[1]) < 1e-9
    # Half a twist swaps left and right.
    twisted = turn(points, np.zeros(1), np.array([np.pi]), 1)[0]
    assert twisted[INDEX["hip_l"], 2] == pytest.approx(-points[0, INDEX["hip_l"], 2])


def test_a_tuck_turns_easier_than_a_stretched_body() -> None:
    stretched = kinematics(np.zeros((3, len(CHANNELS))), Lengths())
    pose = np.zeros((3, len(CHANNELS)))
    for name, value in (("hip_l", 2.2), ("hip_r", 2.2), ("knee_l", 2.3), ("knee_r", 2.3), ("spine", 0.8)):
        pose[:, CHANNELS.index(name)] = value
    tucked = kinematics(pose, Lengths())
    assert 2.5 < rotation_of(stretched, DT)[0][0] / rotation_of(tucked, DT)[0][0] < 8


# The flight


@pytest.mark.parametrize("entry", DIVES, ids=lambda d: d.name)
def test_a_clean_dive_enters_upright_without_a_splash(entry: Dive) -> None:
    found = dive(entry.name).measured
    assert found.entry_angle < 3
    assert found.splash < 0.2
    assert found.timing_error < DEDUCTIONS["timing_error"].free
    assert found.form_error < 1
    assert execution(found) > 9


def test_the_flight_is_a_parabola_and_keeps_its_angular_momentum() -> None:
    routine = dive("forward-2.5-tuck", legs_apart=0.3, loose=0.4)
    flight = (routine.times > 0.02) & (routine.times < routine.entry_time - 0.02)
    centre, points = routine.centre[flight], routine.points[flight]
    # The limbs' centre of mass, taken anew from the points, moves as it was told.
    np.testing.assert_allclose(centre_of_mass(points), centre, atol=1e-9)
    fall = np.diff(centre[:, 1], 2) / DT**2
    np.testing.assert_allclose(fall, -GRAVITY, atol=1e-3)
    np.testing.assert_allclose(np.diff(centre[:, 0], 2), 0, atol=1e-9)
    # In the world's frame nothing but momentum is left: limbs' own motion and the body's turning add up to it.
    inertia, momentum = rotation_of(points - centre[:, None], DT)
    inner = momentum[2:-2]
    turning = np.gradient(np.unwrap(_direction(points)), DT)[2:-2]
    # 0.006 and the rods' own inertia turn with the body and are not in the points' motion.
    whole = inner + (inertia[2:-2] - _point_inertia(points - centre[:, None])[2:-2]) * turning
    assert np.abs(whole / np.median(whole) - 1).max() < 0.12
    assert np.abs(whole / np.median(whole) - 1).mean() < 0.03


def _direction(points: np.ndarray) -> np.ndarray:
    """Angle of the pelvis, forward positive."""
    up = points[:, INDEX["waist"]] - points[:, INDEX["pelvis"]]
    return np.arctan2(up[:, 0], up[:, 1])


def _point_inertia(points: np.ndarray) -> np.ndarray:
    from aqa_dives.body import LIMBS

    mass = np.array([limb.mass for limb in LIMBS])
    middles = (
        points[:, [INDEX[limb.start] for limb in LIMBS]] + points[:, [INDEX[limb.end] for limb in LIMBS]]
    ) / 2 - centre_of_mass(points)[:, None]
    return ((middles[..., :2] ** 2).sum(-1) * mass / mass.sum()).sum(-1)


def test_faults_have_their_consequences() -> None:
    clean = dive().measured
    assert dive(momentum=-0.05).measured.entry_angle > clean.entry_angle + 5
    # Too far over, the legs fall flat; too short by as much, the forward travel brings them through the hands' hole.
    over, short = dive(momentum=0.08).measured, dive(momentum=-0.08).measured
    assert over.splash > clean.splash + 0.4
    assert clean.splash < short.splash < over.splash
    assert dive("forward-1.5-pike", opening=0.1).measured.timing_error > 0.05
    assert dive(weak_jump=0.6).measured.jump < clean.jump - 0.3
    assert dive(legs_apart=0.5).measured.form_error > 10
    assert dive(loose=0.8).measured.position_error > 15
    assert dive(drift=0.5).measured.distance > clean.distance + 0.5
    twisted = "forward-1.5-full-twist"
    assert dive(twisted, twist=0.6).measured.twist_error == pytest.approx(np.rad2deg(0.6), abs=1)


def test_early_faults_foretell_the_entry() -> None:
    """What makes a hidden segment worth recovering: the stages of one dive know of each other."""
    seen = []
    for index in range(150):
        rng = np.random.default_rng([7, index])
        entry = DIVES[int(rng.integers(len(DIVES)))]
        measured = simulate(entry, sample_faults(rng, entry), 7.5, Lengths(), 0.5, 0.3).measured
        seen.append([-measured.jump, measured.position_error, measured.splash, measured.entry_angle])
    from scipy.stats import spearmanr

    correlation = spearmanr(np.array(seen)).statistic
    assert correlation[0, 2] > 0.3
    assert correlation[1, 2] > 0.2
    assert correlation[2, 3] > 0.6


@given(index=st.integers(0, 10_000))
@settings(max_examples=40)
def test_any_sampled_dive_can_be_simulated(index: int) -> None:
    rng = np.random.default_rng(index)
    entry = DIVES[int(rng.integers(len(DIVES)))]
    routine = simulate(entry, sample_faults(rng, entry), float(rng.uniform(5, 10)), Lengths(), 1.0, 0.5)
    assert np.isfinite(routine.points).all()
    assert 0.2 - 1e-9 <= execution(routine.measured) <= 10
    assert 1.0 < routine.entry_time < 2.4
    # The feet stand on the platform until take-off, and nobody is under it.
    ground = routine.points[routine.times < -0.05][..., 1].min(axis=1)
    np.testing.assert_allclose(ground, routine.platform + 0.025, atol=0.03)
