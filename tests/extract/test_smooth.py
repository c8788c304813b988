"""The smoothed way of a body: made-up falls, of which every place is known."""

from __future__ import annotations

import numpy as np

from aqa_extract.actor.smooth import smooth

TIMES = np.arange(24.0)
FALL = np.stack([0.1 * TIMES, 0.04 * TIMES**2], axis=-1)
"""Body lengths: forward at constant speed, downward as at ten looks a second."""


def test_a_gap_in_a_fall_is_a_parabola() -> None:
    """Four looks at the start of which the body is as fast as at no other: a straight line is off by a fifth."""
    seen = np.flatnonzero((TIMES < 10) | (TIMES > 13))
    place, off = smooth(TIMES, seen, FALL[seen], np.full(len(seen), 0.08))
    gap = slice(10, 14)
    straight = FALL[9] + (FALL[14] - FALL[9]) * (TIMES[gap, None] - 9) / 5
    assert np.abs(place[gap] - FALL[gap]).max() < 0.05 < np.abs(straight - FALL[gap]).max() / 4
    assert off[11] > 1.2 * off[5]


def test_a_fall_out_of_sight_goes_on_and_the_doubt_grows() -> None:
    seen = np.arange(14)
    place, off = smooth(TIMES, seen, FALL[seen], np.full(len(seen), 0.08))
    assert np.abs(place[15] - FALL[15]).max() < 0.25
    assert (np.diff(place[13:, 1]) > 0).all()
    assert (np.diff(off[13:]) > 0).all()


def test_one_box_far_off_hardly_counts() -> None:
    wrong = FALL.copy()
    wrong[12] += [1.5, -1.0]
    rows = np.arange(len(TIMES))
    place, _ = smooth(TIMES, rows, wrong, np.full(len(TIMES), 0.08))
    assert np.hypot(*(place[12] - FALL[12])) < 0.15


def test_looks_at_uneven_times_and_a_single_box() -> None:
    times = np.array([0, 1, 2, 2.5])
    place, off = smooth(times, np.array([1]), np.array([[3.0, 4.0]]), np.array([0.08]))
    np.testing.assert_allclose(place[1], [3, 4], atol=1e-3)
    assert np.isfinite(place).all()
    assert off.argmin() == 1
