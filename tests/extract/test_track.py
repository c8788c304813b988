"""Following one actor through gaps, crossings and changes of camera, and the crops that follow."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqa_extract.actor.camera import Motion
from aqa_extract.actor.track import Looks, follow
from aqa_shared.records import ActorSettings

from .track_cases import COUNT, LENGTH, LOOKS, SIZE, TRUTH, along, centres, during, looks, person, run, sides


def test_one_person_who_walks() -> None:
    track = run(looks((person(along(0.2, 0.8), 0.5), 0.6)))
    np.testing.assert_allclose(centres(track)[:, 0], 0.2 + 0.6 * TRUTH, atol=0.006)
    np.testing.assert_allclose(centres(track)[:, 1], 0.5, atol=1e-6)
    np.testing.assert_allclose(sides(track), 1.25 * 0.3 * 360, rtol=1e-5)
    np.testing.assert_allclose(track.scores, 0.6, atol=1e-6)
    assert track.coverage == 1
    assert track.boxes.dtype == track.scores.dtype == np.float32


def test_jitter_and_an_outlier_are_smoothed_away() -> None:
    rng = np.random.default_rng(3)
    boxes = person(along(0.3, 0.7), 0.5) + rng.normal(0, 0.01, (COUNT, 4))
    boxes[12] += 0.06  # one bad box, still near
    track = run(looks((boxes, 0.6)))
    error = centres(track)[:, 0] - (0.3 + 0.4 * TRUTH)
    raw = boxes[:, [0, 2]].mean(axis=1) - along(0.3, 0.7)
    assert np.abs(error).max() < 0.025
    assert error.std() < 0.6 * raw.std()
    assert np.abs(np.diff(centres(track)[:, 0], n=2)).max() * SIZE[1] < 1  # no kinks at the looks


def test_a_folded_body_has_room_to_unfold() -> None:
    """Half as long for half of the video: nowhere does the square get smaller than the unfolded body."""
    folded = (np.arange(COUNT) >= 6) & (np.arange(COUNT) < 20)
    track = run(looks((person(0.5, 0.5, np.where(folded, 0.22, 0.45)), 0.6)))
    assert (sides(track) >= 0.45 * 360 * (1 - 1e-6)).all()
    assert (sides(track)[LOOKS[10] : LOOKS[16]] <= 0.45 * 360 * 1.01).all()


def test_one_box_that_is_too_long_makes_nobody_longer() -> None:
    height = np.where(np.arange(COUNT) == 12, 0.5, 0.3)
    track = run(looks((person(0.5, 0.5, height), 0.6)))
    away = np.abs(np.arange(LENGTH) - LOOKS[12]) > 8
    np.testing.assert_allclose(sides(track)[away], 1.25 * 0.3 * 360, rtol=1e-5)


def test_boxes_beside_the_smoothed_way_are_inside() -> None:
    """Now the upper half of the body is found, now the lower."""
    middle = np.where(np.arange(COUNT) % 4 < 2, 0.46, 0.54)
    boxes = person(0.5, middle, 0.3)
    track = run(looks((boxes, 0.6)))
    assert track.coverage == 1
    assert (track.boxes[LOOKS, 1] <= boxes[:, 1]).all()
    assert (track.boxes[LOOKS, 3] >= boxes[:, 3]).all()


@pytest.mark.parametrize("rising", [True, False])
@pytest.mark.parametrize("clothes", [(0, 1), (0, 0)])
def test_people_who_cross_keep_their_names(rising: bool, clothes: tuple[int, int]) -> None:
    """Alike in size; where they meet the detector reports only one of them, now this one, now that one."""
    there, back = along(0.15, 0.85), along(0.85, 0.15)
    together = np.abs(there - back) < 0.06
    turns = np.arange(COUNT) % 2 == 0
    actor = np.where(together & turns, 0, 0.60)
    other = np.where(together & ~turns, 0, 0.50)
    path, passer = (there, back) if rising else (back, there)
    track = run(looks((person(passer, 0.5), other), (person(path, 0.5), actor), clothes=clothes))
    assert np.abs(centres(track)[:, 0] - np.interp(np.arange(LENGTH), LOOKS, path)).max() < 0.03


def test_low_scores_continue_a_track_and_never_make_one() -> None:
    """A dive: falls faster and faster, with scores that sink to 0.2; the same scores alone are nobody."""
    fall = 0.15 + 0.6 * ((LOOKS / (LENGTH - 1)) ** 2)
    scores = np.where((LOOKS > 30) & (LOOKS < 80), 0.2, 0.7)
    track = run(looks((person(0.5, fall, 0.25), scores)))
    np.testing.assert_allclose(centres(track)[:, 1], np.clip(0.15 + 0.6 * TRUTH**2, 0.25 * 1.25 / 2, None), atol=0.02)
    assert track.coverage == 1
    assert follow(looks((person(0.5, fall, 0.25), 0.39)), LENGTH, SIZE, ActorSettings()) == []


@pytest.mark.parametrize(("off", "clothes", "found"), [(0.0, 0, True), (0.3, 0, False), (0.0, 1, False)])
def test_a_gap_is_filled_with_faint_boxes_on_the_way(off: float, clothes: int, found: bool) -> None:
    """A tenth of a sure score, in the actor's clothes, where the actor must be between the looks before and after."""
    way = along(0.2, 0.8)
    seen = looks(
        (person(way, 0.5), np.where((np.arange(COUNT) >= 10) & (np.arange(COUNT) < 14), 0, 0.6)),
        (person(way, 0.5 + off), during(10, 14, 0.06)),
        clothes=(0, clothes),
    )
    assert run(seen).coverage == pytest.approx(1 if found else 1 - 4 / COUNT)
    assert np.isfinite(run(seen).found[10:14]).all() == found


def test_one_stranger_s_box_does_not_let_the_next_one_in() -> None:
    """Before the actor, faint boxes on the way, each a little less in the actor's colours than the next."""
    way = person(along(0.2, 0.8), 0.5)
    seen = looks((way, during(14, COUNT)), (way, during(6, 14, 0.14)))
    alike = np.where(np.arange(COUNT) >= 10, 0.8, 0.72)
    seen.colours[:, 1] = 0
    seen.colours[:, 1, 0], seen.colours[:, 1, 1] = alike, np.sqrt(1 - alike**2)
    assert np.isfinite(run(seen).found[:, 0]).tolist() == [False] * 10 + [True] * (COUNT - 10)


def like(seen: Looks, who: int, agreement: float) -> None:
    """Give somebody's box on every look colours that agree so well with the first one's."""
    seen.colours[:, who] = 0
    seen.colours[:, who, 0], seen.colours[:, who, 1] = agreement, np.sqrt(1 - agreement**2)


@pytest.mark.parametrize("beside", [True, False])
def test_a_box_that_looks_more_like_a_neighbour_who_is_there_is_his(beside: bool) -> None:
    """The actor vanishes; a box in similar clothes on the way is the actor's, unless somebody so dressed, who was seen
    together with the actor, stands there."""
    way = along(0.2, 0.8)
    hidden = np.isin(np.arange(COUNT), [12, 13])
    seen = looks(
        (person(way, 0.5), during(0, 12)),
        (person(way[12], 0.5), np.where(hidden, 0.14, 0)),
        (person(way[12], 0.5), np.where(hidden, 0, 0.5 * beside)),
    )
    like(seen, 1, 0.85)
    like(seen, 2, 0.85)
    assert np.isfinite(run(seen).found[12, 0]) == (not beside)


@pytest.mark.parametrize("beside", [True, False])
def test_a_neighbour_s_boxes_in_the_actor_s_track_are_given_back(beside: bool) -> None:
    """Who walks up to somebody in similar clothes and is hidden by him ends there, although the tracklet goes on."""
    hidden = np.isin(np.arange(COUNT), [14, 15])
    seen = looks(
        (person(along(0.2, 0.8), 0.5), during(0, 14)),
        (person(along(0.2, 0.8)[14], 0.5), np.where(hidden, 0.5, 0)),
        (person(along(0.2, 0.8)[14], 0.5), during(0, 14, 0.5 * beside)),
    )
    like(seen, 1, 0.85)
    like(seen, 2, 0.85)
    assert np.isfinite(run(seen).found[14:16, 0]).any() == (not beside)


def test_missed_looks_count_against_the_coverage() -> None:
    scores = np.full(COUNT, 0.5)
    scores[10:14] = 0
    track = run(looks((person(along(0.2, 0.8), 0.5), scores)))
    assert track.coverage == pytest.approx(1 - 4 / COUNT)
    np.testing.assert_allclose(centres(track)[:, 0], 0.2 + 0.6 * TRUTH, atol=0.015)
    assert (track.scores[LOOKS[9] + 1 : LOOKS[14]] == 0).all()
    assert (track.scores[[LOOKS[9], LOOKS[14]]] > 0).all()


@pytest.mark.parametrize("same", [True, False])
def test_a_gap_is_bridged_by_colours_and_motion(same: bool) -> None:
    """Who appears where the actor was going is the actor only in the actor's clothes."""
    way = person(along(0.1, 0.9), 0.5)
    seen = looks((way, during(0, 12)), (way, during(16, COUNT)), clothes=(0, 0 if same else 1))
    covered = run(seen).coverage
    assert covered == pytest.approx((COUNT - 4 if same else 12) / COUNT)


def test_the_actor_s_double_elsewhere_is_somebody_else() -> None:
    """Same clothes, but not where the actor could be."""
    seen = looks((person(along(0.1, 0.3), 0.4), during(0, 12)), (person(0.9, 0.6), during(14, COUNT)), clothes=(0, 0))
    assert run(seen).coverage == pytest.approx(12 / COUNT)


def test_one_box_says_little_about_where_its_person_goes() -> None:
    """The actor's double is seen once, standing where the actor's fall begins seven looks later."""
    fall = np.clip(0.1 + 0.03 * (np.arange(COUNT) - 10), 0.1, 2)
    seen = looks((person(0.4, 0.07), during(2, 3)), (person(0.4, fall), during(10, COUNT)), clothes=(0, 0))
    assert run(seen).coverage == pytest.approx((COUNT - 10) / COUNT)


def test_who_stood_beside_the_way_does_not_go_on_as_the_actor() -> None:
    """Two in the same clothes: one walks, is hidden for two looks and comes back a little further than expected, just
    where the other stood all the while; the one who stood is nearer, and yet he is not the one who walks."""
    x = 0.2 + 0.0169 * np.arange(COUNT) + np.where(np.arange(COUNT) >= 14, 0.0675, 0)
    walks = person(x, 0.5), np.where(np.isin(np.arange(COUNT), [12, 13]), 0, 0.6)
    stands = person(x[14], 0.5), during(0, 13)
    track = run(looks(walks, stands, clothes=(0, 0)))
    assert track.found[0, [0, 2]].mean() == pytest.approx(0.2, abs=0.01)
    assert track.coverage == pytest.approx((COUNT - 2) / COUNT)


def test_a_guess_joins_nobody() -> None:
    """After a fall, the actor's double at the edge of what the fall's end may have reached."""
    fall = 0.3 + 0.03 * np.arange(COUNT)
    seen = looks((person(0.3, fall), during(0, 12)), (person(0.62, fall[11]), during(13, COUNT)), clothes=(0, 0))
    track = run(seen)
    assert np.isnan(track.found[13:]).all() or np.isnan(track.found[:12]).all()


def test_the_last_place_before_a_gap_holds() -> None:
    """The actor is lost at the lowest point of a jump and found again on the way up: it was no outlier."""
    jump = 0.2 + 0.03 * np.minimum(np.arange(COUNT), 12)
    jump[13:] = jump[11]
    seen = looks((person(0.5, jump), np.where((np.arange(COUNT) > 12) & (np.arange(COUNT) < 17), 0, 0.6)))
    track = run(seen)
    assert track.coverage == pytest.approx((COUNT - 4) / COUNT)
    assert centres(track)[LOOKS[12], 1] > jump[12] - 0.015


def test_a_lost_actor_s_crop_goes_on_slows_down_and_widens() -> None:
    """A fall out of sight past somebody who stands where it ends: the crop stays with the fall."""
    fall = np.minimum(0.1 + 0.035 * np.arange(COUNT), 2)
    stranger = person(0.8, 0.7), during(11, COUNT, 0.9)
    track = run(looks((person(0.3, fall, 0.2), during(0, 12)), stranger))
    assert track.coverage == pytest.approx(12 / COUNT)
    assert (np.abs(centres(track)[:, 0] - 0.3) < 0.01).all()
    after = centres(track)[LOOKS[11] : LOOKS[14], 1]
    assert (np.diff(after) > -1e-6).all()
    assert after[-1] > fall[11] + 0.03
    assert sides(track)[-1, 1] > 1.5 * sides(track)[LOOKS[8], 1]
    assert (track.scores[LOOKS[12] :] == 0).all()


def test_a_lost_actor_s_crop_moves_with_the_hall() -> None:
    """The camera pans by 0.01 of the frame a look, the actor stands: what was his place moves out to the right."""
    camera = np.stack([0.01 * np.arange(COUNT), np.zeros(COUNT)], axis=-1)
    stand = person(0.3 + camera[:, 0], 0.5)
    track = run(looks((stand, during(0, 13)), camera=camera), min_coverage=0.1)
    np.testing.assert_allclose(centres(track)[:, 0], np.interp(np.arange(LENGTH), LOOKS, 0.3 + camera[:, 0]), atol=0.01)


@pytest.mark.parametrize("same", [True, False])
def test_a_change_of_camera_is_followed_without_a_glide_in_the_same_clothes_only(same: bool) -> None:
    half = COUNT // 2
    place = np.where(np.arange(COUNT) < half, 0.25, 0.75)
    boxes = person(place, 0.5, np.where(np.arange(COUNT) < half, 0.2, 0.45))
    seen = looks((boxes, during(0, half)), (boxes, during(half, COUNT)), clothes=(0, 0 if same else 1), cut=half)
    track = run(seen)
    if not same:
        assert track.coverage < 0.6
        return
    x = centres(track)[:, 0]
    assert track.coverage == 1
    assert set(np.round(x, 2)) == {0.25, 0.75}
    assert np.count_nonzero(np.abs(np.diff(x)) > 0.1) == 1
    assert LOOKS[half - 1] < np.flatnonzero(x > 0.5)[0] <= LOOKS[half]


def single(box: np.ndarray, score: float = 0.8) -> Looks:
    return Looks(
        np.array([0]),
        box[None, None],
        np.array([[score]]),
        Motion(np.zeros((1, 2)), np.zeros(1, bool)),
        np.ones((1, 1, 1)),
    )


def test_one_frame() -> None:
    (one,) = follow(single(np.array([0.4, 0.3, 0.6, 0.7])), 1, SIZE, ActorSettings())
    assert one.coverage == 1
    assert one.scores.tolist() == [pytest.approx(0.8)]
    side = 0.4 * 360 * 1.25
    half = np.array([side / 640, side / 360]) / 2
    np.testing.assert_allclose(one.boxes[0], [*(0.5 - half), *(0.5 + half)], atol=1e-6)


@pytest.mark.parametrize(
    ("box", "crop"),
    [  # of a 640x360 frame, pixels
        ((0, 0, 64, 100), (0, 0, 125, 125)),  # shifted in from the corner
        ((600, 300, 640, 360), (565, 285, 640, 360)),
        ((270, 5, 370, 355), (140, 0, 500, 360)),  # 455 wanted: the margin is given up, the short side is it
        ((100, 100, 500, 250), (100, -20, 500, 380)),  # a body longer than the short side keeps its whole length
        ((0, 0, 640, 320), (0, -140, 640, 500)),
    ],
)
def test_crops_at_the_border(box: tuple[float, ...], crop: tuple[float, ...]) -> None:
    scale = np.array([640, 360, 640, 360])
    (track,) = follow(single(np.array(box) / scale, 1.0), 1, SIZE, ActorSettings())
    np.testing.assert_allclose(track.boxes[0] * scale, crop, atol=1e-3)


def anything(rng: np.random.Generator, count: int, people: int, length: int) -> Looks:
    positions = np.sort(rng.choice(length, count, replace=False))
    corner = rng.random((count, people, 2))
    boxes = np.concatenate([corner, corner + (1 - corner) * rng.random((count, people, 2))], axis=-1)
    scores = rng.random((count, people)) * (rng.random((count, people)) < 0.7)
    colours = np.sqrt(rng.dirichlet(np.ones(4), (count, people)))
    cuts = rng.random(count) < 0.1
    cuts[0] = False
    return Looks(positions, boxes, scores, Motion(rng.normal(0, 0.1, (count, 2)).cumsum(0), cuts), colours)


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 6), st.integers(8, 700), st.integers(8, 700))
def test_whatever_is_found_the_crops_are_squares_in_reach(
    seed: int, count: int, people: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(count, 4 * count + 1))
    seen = anything(rng, count, people, length)
    wanted = ActorSettings(actors=3, min_coverage=0)
    tracks = follow(seen, length, (height, width), wanted)
    again = follow(seen, length, (height, width), wanted)
    for track, same in zip(tracks, again, strict=True):
        np.testing.assert_array_equal(track.boxes, same.boxes)
        assert track.boxes.shape == (length, 4)
        pixels = track.boxes * np.array([width, height, width, height])
        side = pixels[:, 2:] - pixels[:, :2]
        np.testing.assert_allclose(side[:, 0], side[:, 1], rtol=1e-4, atol=1e-2)
        assert (side <= max(height, width) + 1e-2).all()
        assert 0 < track.coverage <= 1
        assert ((track.scores >= 0) & (track.scores <= 1)).all()
        for low, high, extent in ((0, 2, width), (1, 3, height)):
            fits = side[:, 0] <= extent
            assert (pixels[fits, low] > -1e-2).all()
            assert (pixels[fits, high] < extent + 1e-2).all()


@pytest.mark.parametrize(
    ("positions", "shape", "why"),
    [
        ([0, 4], (3, 2), "expected"),
        ([4, 0], (2, 2), "must rise within 0..9"),
        ([0, 10], (2, 2), "must rise within 0..9"),
        ([-1, 3], (2, 2), "must rise within 0..9"),
    ],
)
def test_arrays_that_do_not_fit(positions: list[int], shape: tuple[int, int], why: str) -> None:
    motion = Motion(np.zeros((len(positions), 2)), np.zeros(len(positions), bool))
    seen = Looks(np.array(positions), np.zeros((*shape, 4)), np.zeros(shape), motion, np.zeros((*shape, 1)))
    with pytest.raises(ValueError, match=why):
        follow(seen, 10, SIZE, ActorSettings())
