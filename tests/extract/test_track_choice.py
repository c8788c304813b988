"""Who of several people is the actor."""

from __future__ import annotations

import numpy as np
import pytest

from aqa_extract.actor.track import Looks, follow
from aqa_shared.records import ActorSettings

from .track_cases import COUNT, LENGTH, LOOKS, SIZE, along, centres, during, looks, person, run, sides


def test_the_mover_is_the_actor_and_the_sure_bystander_is_not() -> None:
    judge = person(0.9, 0.7), 0.85
    diver = person(along(0.2, 0.7), along(0.2, 0.8)), 0.5
    np.testing.assert_allclose(centres(run(looks(judge, diver)))[50], [0.445, 0.494], atol=0.03)


def test_motion_is_motion_against_the_background() -> None:
    """The camera follows the actor: he stands in the picture, and everybody who stands in the hall rushes by."""
    camera = np.stack([-0.05 * np.arange(COUNT), np.zeros(COUNT)], axis=-1)
    actor = person(0.5, 0.5), 0.5
    crowd = person(np.clip(0.9 + camera[:, 0], 0.05, 1), 0.4), during(0, 16, 0.9)
    seen = looks(actor, crowd, camera=camera)
    np.testing.assert_allclose(centres(run(seen)), 0.5, atol=0.0125)
    still = looks(actor, crowd)
    assert centres(run(still))[10, 0] > 0.7


def test_the_larger_of_two_who_stand_is_the_actor() -> None:
    track = run(looks((person(0.2, 0.5, 0.15), 0.6), (person(0.7, 0.5, 0.6), 0.6)))
    np.testing.assert_allclose(centres(track)[:, 0], 0.7, atol=1e-3)


def test_a_moment_of_a_stranger_does_not_take_the_track() -> None:
    scores = np.full(COUNT, 0.5)
    scores[8:11] = 0
    track = run(looks((person(0.3, 0.5), scores), (person(0.8, 0.5), during(8, 11, 0.95))))
    np.testing.assert_allclose(centres(track)[:, 0], 0.3, atol=1e-3)


def test_who_walks_through_is_not_the_actor() -> None:
    """A gymnast who jumps on the spot, and a passer-by who crosses the whole picture, larger and surer, in a second."""
    jump = 0.5 - 0.15 * np.abs(np.sin(np.arange(COUNT)))
    passer = person(np.clip(0.1 * (np.arange(COUNT) - 8), 0.02, 0.98), 0.55, 0.4), during(8, 18, 0.7)
    track = run(looks((person(0.5, jump), 0.6), passer))
    np.testing.assert_allclose(centres(track)[:, 0], 0.5, atol=0.01)
    assert track.coverage > 0.9


@pytest.mark.parametrize(("select", "x"), [("motion", 0.2), ("longest", 0.5), ("largest", 0.9), ("central", 0.5)])
def test_select(select: str, x: float) -> None:
    hops = person(0.2, np.where(np.arange(COUNT) % 2, 0.2, 0.4), 0.25), during(0, 16)
    stands = person(0.5, 0.5, 0.2), 0.6
    large = person(0.9, 0.6, 0.5), during(4, 20)
    track = run(looks(hops, stands, large), select=select)
    assert centres(track)[40, 0] == pytest.approx(min(x, 1 - sides(track)[40, 0] / 2 / SIZE[1]), abs=0.01)


def test_more_actors_are_the_next_best_people_and_nobody_twice() -> None:
    first = person(along(0.1, 0.9), 0.3), 0.6
    second = person(0.5, 0.8), 0.6
    # The same body again, as a box of its upper half.
    half = first[0] * [1, 1, 1, 0] + np.stack([0 * LOOKS, 0 * LOOKS, 0 * LOOKS, 0.3 + 0 * LOOKS], axis=-1)
    seen = looks(first, second, (half, 0.45), clothes=(0, 1, 0))
    tracks = follow(seen, LENGTH, SIZE, ActorSettings(actors=5))
    assert len(tracks) == 2
    assert centres(tracks[0])[0, 1] == pytest.approx(0.3, abs=0.01)
    assert centres(tracks[1])[0] == pytest.approx([0.5, 0.8], abs=0.02)
    np.testing.assert_array_equal(tracks[0].boxes, run(seen).boxes)


def test_one_who_is_seldom_seen_is_no_actor() -> None:
    seen = looks((person(0.4, 0.5), during(3, 8)))
    assert follow(seen, LENGTH, SIZE, ActorSettings()) == []
    assert follow(seen, LENGTH, SIZE, ActorSettings(min_coverage=0.1))[0].coverage == pytest.approx(5 / COUNT)


def test_a_single_flash_is_no_track() -> None:
    assert follow(looks((person(0.2, 0.5), during(5, 6, 0.9))), LENGTH, SIZE, ActorSettings(min_coverage=0)) == []


@pytest.mark.parametrize(("share", "people"), [(0.97, 0), (0.9, 1)])
def test_a_box_of_the_whole_frame_is_nobody_s(share: float, people: int) -> None:
    """Whatever its score: what is everywhere is nowhere. Of each side, 0.9 is 0.81 of the area."""
    boxes = np.tile([1 - share, 1 - share, 1.0, 1.0], (COUNT, 1))
    assert len(follow(looks((boxes, 0.8)), LENGTH, SIZE, ActorSettings())) == people


def test_somebody_who_comes_close_is_followed_there() -> None:
    """Sure boxes elsewhere make him a person; those of the whole frame then are his."""
    close = np.where(np.arange(COUNT) < 6, 0.9, 0.99)[:, None] * [0, 0, 1, 1]
    assert run(looks((close, 0.6))).coverage == 1


def test_the_people_s_order_in_a_frame_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    seen = looks((person(along(0.2, 0.8), 0.4), 0.6), (person(along(0.7, 0.3), 0.6, 0.2), 0.5))
    order = rng.permuted(np.tile([0, 1], (COUNT, 1)), axis=1)

    def mixed(values: np.ndarray) -> np.ndarray:
        return np.take_along_axis(values, order.reshape(*order.shape, *[1] * (values.ndim - 2)), axis=1)

    other = Looks(LOOKS, mixed(seen.boxes), mixed(seen.scores), seen.motion, mixed(seen.colours))
    np.testing.assert_array_equal(run(seen).boxes, run(other).boxes)
