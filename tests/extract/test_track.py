"""Following one actor, on made-up people whose paths are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aqa_extract.actor.track import Track, _agreement, follow
from aqa_shared.records import ActorSettings

LENGTH = 103
SIZE = (360, 640)
LOOKS = np.append(np.arange(0, LENGTH, 4), LENGTH - 1)
NONE = np.zeros((len(LOOKS), 4))
CENTRAL_SQUARE = [(640 - 360) / 2 / 640, 0, (640 + 360) / 2 / 640, 1]


def person(cx: np.ndarray | float, cy: np.ndarray | float, height: np.ndarray | float = 0.3) -> np.ndarray:
    """(looks, 4) boxes of someone a third as broad (in pixels) as high, at centre (cx, cy)."""
    cx, cy, height = (np.broadcast_to(v, len(LOOKS)) for v in (cx, cy, height))
    half = height * SIZE[0] / 3 / SIZE[1] / 2
    return np.stack([cx - half, cy - height / 2, cx + half, cy + height / 2], axis=-1)


def along(start: float, end: float) -> np.ndarray:
    return start + (end - start) * LOOKS / (LENGTH - 1)


def run(*people: tuple[np.ndarray, np.ndarray | float], **options: float) -> Track:
    boxes = np.stack([p for p, _ in people], axis=1)
    scores = np.stack([np.broadcast_to(s, len(LOOKS)) for _, s in people], axis=1)
    return follow(LOOKS, boxes, scores, LENGTH, SIZE, ActorSettings(**options))


def centres(track: Track) -> np.ndarray:
    return (track.boxes[:, :2] + track.boxes[:, 2:]) / 2


def sides(track: Track) -> np.ndarray:
    """(length, 2) in pixels."""
    return (track.boxes[:, 2:] - track.boxes[:, :2]) * np.array([SIZE[1], SIZE[0]])


def test_one_person_who_walks() -> None:
    track = run((person(along(0.2, 0.8), 0.5), 0.6))
    np.testing.assert_allclose(centres(track)[:, 0], 0.2 + 0.6 * np.arange(LENGTH) / (LENGTH - 1), atol=0.006)
    np.testing.assert_allclose(centres(track)[:, 1], 0.5, atol=1e-6)
    np.testing.assert_allclose(sides(track), 1.25 * 0.3 * 360, rtol=1e-5)
    np.testing.assert_allclose(track.scores, 0.6, atol=1e-6)
    assert track.coverage == 1
    assert track.boxes.dtype == track.scores.dtype == np.float32


def test_steady_motion_is_not_bent_by_smoothing() -> None:
    looks = np.arange(0, LENGTH, 1)
    x = 0.2 + 0.6 * looks / (LENGTH - 1)
    boxes = np.stack([x - 0.05, 0 * x + 0.4, x + 0.05, 0 * x + 0.6], axis=-1)[:, None]
    track = follow(looks, boxes, np.full((LENGTH, 1), 0.5), LENGTH, SIZE, ActorSettings(every=1))
    # But for the first and last frame, where the median has no neighbour on one side.
    np.testing.assert_allclose(centres(track)[2:-2, 0], x[2:-2], atol=1e-5)


def test_jitter_and_an_outlier_are_smoothed_away() -> None:
    rng = np.random.default_rng(3)
    truth = 0.3 + 0.4 * np.arange(LENGTH) / (LENGTH - 1)
    boxes = person(along(0.3, 0.7), 0.5) + rng.normal(0, 0.01, (len(LOOKS), 4))
    boxes[12] += 0.06  # one bad box, still near
    track = run((boxes, 0.6))
    error = centres(track)[:, 0] - truth
    raw = boxes[:, [0, 2]].mean(axis=1) - along(0.3, 0.7)
    assert np.abs(error).max() < 0.025
    assert error.std() < 0.6 * raw.std()
    assert np.abs(np.diff(sides(track)[:, 0])).max() < 4  # pixels a frame
    assert np.abs(np.diff(centres(track)[:, 0], n=2)).max() * SIZE[1] < 1  # no kinks at the looks


@pytest.mark.parametrize("rising", [True, False])
def test_people_who_cross_keep_their_names(rising: bool) -> None:
    """Alike in size; where they meet the detector reports only one of them, now this one, now that one."""
    there, back = along(0.15, 0.85), along(0.85, 0.15)
    together = np.abs(there - back) < 0.06
    turns = np.arange(len(LOOKS)) % 2 == 0
    actor = np.where(together & turns, 0, 0.60)
    other = np.where(together & ~turns, 0, 0.55)
    path, passer = (there, back) if rising else (back, there)
    track = run((person(passer, 0.5), other), (person(path, 0.5), actor))
    truth = np.interp(np.arange(LENGTH), LOOKS, path)
    assert np.abs(centres(track)[:, 0] - truth).max() < 0.03
    assert track.coverage == 1


def test_a_path_goes_on_where_it_was_heading() -> None:
    """Two alike cross, and the one on the left always scores a little higher: no reason to turn back with them."""
    there, back = along(0.15, 0.85), along(0.85, 0.15)
    left = np.where(there < back, 0.6, 0.5)
    together = np.abs(there - back) < 0.06
    track = run((person(there, 0.5), left), (person(back, 0.5), np.where(together, 0, 1.1 - left)))
    x = centres(track)[:, 0]
    straight = [np.interp(np.arange(LENGTH), LOOKS, path) for path in (there, back)]
    assert min(np.abs(x - path).max() for path in straight) < 0.03


def test_agreement_by_hand() -> None:
    here, half = np.array([10.0, 10.0]), np.array([2.0, 4.0])
    assert _agreement(here, half, here, half, 1.0) == 1
    # Half as large about the same place: a quarter of the area, half the side.
    assert _agreement(here, half, here, half / 2, 1.0) == pytest.approx(1 / 8)
    # Beside it, touching: nothing at its own size; grown to twice, a half of each overlaps.
    beside = here + np.array([4.0, 0.0])
    assert _agreement(here, half, beside, half, 1.0) == 0
    assert _agreement(here, half, beside, half, 2.0) == pytest.approx(1 / 3)


def test_missed_looks_are_bridged_and_long_ones_reported() -> None:
    scores = np.full(len(LOOKS), 0.5)
    scores[[3, 7]] = 0
    whole = run((person(along(0.2, 0.8), 0.5), scores))
    assert whole.coverage == 1  # a single miss has a detection within `every` frames on both sides
    scores[10:18] = 0.05  # below min_score: upside down in the air
    holed = run((person(along(0.2, 0.8), 0.5), scores))
    truth = 0.2 + 0.6 * np.arange(LENGTH) / (LENGTH - 1)
    np.testing.assert_allclose(centres(holed)[:, 0], truth, atol=0.015)
    # Looks 9 (frame 36) and 18 (frame 72) are linked, so frames 41..67 are far from any: 27 of 103.
    assert holed.coverage == pytest.approx(1 - 27 / 103)
    assert (holed.scores[41:68] == 0).all()
    assert (holed.scores[[40, 68]] > 0).all()


def test_low_scores_upside_down_are_used_where_they_fit() -> None:
    """A dive: falls faster and faster, with scores that sink to 0.12; the curve is followed, not cut."""
    fall = 0.15 + 0.6 * ((LOOKS / (LENGTH - 1)) ** 2)
    scores = np.where((LOOKS > 30) & (LOOKS < 80), 0.12, 0.7)
    track = run((person(0.5, fall, 0.25), scores))
    truth = 0.15 + 0.6 * (np.arange(LENGTH) / (LENGTH - 1)) ** 2
    np.testing.assert_allclose(centres(track)[:, 1], np.clip(truth, 0.25 * 1.25 / 2, None), atol=0.02)
    assert track.coverage == 1


def test_the_mover_is_the_actor_and_the_sure_bystander_is_not() -> None:
    judge = person(0.9, 0.7), 0.85
    diver = person(along(0.2, 0.7), along(0.2, 0.8)), 0.5
    np.testing.assert_allclose(centres(run(judge, diver))[50], [0.445, 0.494], atol=0.03)


def test_the_larger_of_two_who_stand_is_the_actor() -> None:
    track = run((person(0.2, 0.5, 0.15), 0.6), (person(0.7, 0.5, 0.6), 0.6))
    np.testing.assert_allclose(centres(track)[:, 0], 0.7, atol=1e-3)


def test_a_moment_of_a_stranger_does_not_take_the_track() -> None:
    scores = np.full(len(LOOKS), 0.5)
    scores[8:11] = 0
    stranger = np.zeros(len(LOOKS))
    stranger[8:11] = 0.95
    track = run((person(0.3, 0.5), scores), (person(0.8, 0.5), stranger))
    np.testing.assert_allclose(centres(track)[:, 0], 0.3, atol=1e-3)


def test_a_change_of_camera_is_followed_without_a_glide() -> None:
    half = len(LOOKS) // 2
    place = np.where(np.arange(len(LOOKS)) < half, 0.25, 0.75)
    track = run((person(place, 0.5), 0.6))
    x = centres(track)[:, 0]
    assert set(np.round(x, 2)) == {0.25, 0.75}
    assert np.count_nonzero(np.abs(np.diff(x)) > 0.1) == 1
    assert LOOKS[half - 1] < np.flatnonzero(x > 0.5)[0] <= LOOKS[half]


@pytest.mark.parametrize("score", [0.0, 0.09, np.nan])
def test_without_a_person_the_full_frame_is_kept(score: float) -> None:
    track = run((person(0.5, 0.5), score))
    np.testing.assert_allclose(track.boxes, [CENTRAL_SQUARE] * LENGTH, atol=1e-6)
    assert (track.scores == 0).all()
    assert track.coverage == 0


def test_a_single_flash_is_no_track() -> None:
    scores = np.zeros(len(LOOKS))
    scores[5] = 0.4
    assert run((person(0.2, 0.5), scores)).coverage == 0


def test_one_frame_and_none() -> None:
    box = np.array([[[0.4, 0.3, 0.6, 0.7]]])
    one = follow(np.array([0]), box, np.array([[0.8]]), 1, SIZE, ActorSettings())
    assert one.coverage == 1
    assert one.scores.tolist() == [pytest.approx(0.8)]
    side = 0.4 * 360 * 1.25
    half = np.array([side / 640, side / 360]) / 2
    np.testing.assert_allclose(one.boxes[0], [*(0.5 - half), *(0.5 + half)], atol=1e-6)
    for length in (3, 0):
        empty = follow(np.zeros(0, int), np.zeros((0, 5, 4)), np.zeros((0, 5)), length, SIZE, ActorSettings())
        assert empty.coverage == 0
        assert empty.boxes.shape == (length, 4)
        assert empty.scores.shape == (length,)


def test_sparse_looks_are_judged_by_what_was_looked_at() -> None:
    """Segments far apart: the frames between were never decoded and do not count against the coverage."""
    looks = np.array([0, 4, 8, 100, 104, 108])
    boxes = np.tile([0.4, 0.3, 0.6, 0.7], (6, 1, 1))
    assert follow(looks, boxes, np.full((6, 1), 0.5), 200, SIZE, ActorSettings()).coverage == 1


@pytest.mark.parametrize(
    ("box", "crop"),
    [  # of a 640x360 frame, pixels
        ((0, 0, 64, 100), (0, 0, 125, 125)),  # shifted in from the corner
        ((600, 300, 640, 360), (565, 285, 640, 360)),
        ((270, 5, 370, 355), (140, 0, 500, 360)),  # 437 wanted: the margin is given up, the short side is it
        ((100, 100, 500, 250), (100, -20, 500, 380)),  # a body longer than the short side keeps its whole length
        ((0, 0, 640, 360), (0, -140, 640, 500)),
    ],
)
def test_crops_at_the_border(box: tuple[float, ...], crop: tuple[float, ...]) -> None:
    scale = np.array([640, 360, 640, 360])
    track = follow(np.array([0]), (np.array(box) / scale)[None, None], np.ones((1, 1)), 1, SIZE, ActorSettings())
    np.testing.assert_allclose(track.boxes[0] * scale, crop, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 6), st.integers(8, 700), st.integers(8, 700))
def test_whatever_is_found_the_crops_are_squares_in_reach(
    seed: int, looks: int, people: int, height: int, width: int
) -> None:
    rng = np.random.default_rng(seed)
    length = int(rng.integers(looks, 4 * looks + 1))
    positions = np.sort(rng.choice(length, looks, replace=False))
    corner = rng.random((looks, people, 2))
    boxes = np.concatenate([corner, corner + (1 - corner) * rng.random((looks, people, 2))], axis=-1)
    scores = rng.random((looks, people)) * (rng.random((looks, people)) < 0.7)
    track = follow(positions, boxes, scores, length, (height, width), ActorSettings())
    again = follow(positions, boxes, scores, length, (height, width), ActorSettings())
    np.testing.assert_array_equal(track.boxes, again.boxes)
    pixels = track.boxes * np.array([width, height, width, height])
    side = pixels[:, 2:] - pixels[:, :2]
    np.testing.assert_allclose(side[:, 0], side[:, 1], rtol=1e-4, atol=1e-2)
    assert (side <= max(height, width) + 1e-2).all()
    assert 0 <= track.coverage <= 1
    assert ((track.scores >= 0) & (track.scores <= 1)).all()
    for low, high, extent in ((0, 2, width), (1, 3, height)):
        fits = side[:, 0] <= extent
        assert (pixels[fits, low] > -1e-2).all()
        assert (pixels[fits, high] < extent + 1e-2).all()


def test_the_people_s_order_in_a_frame_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    a, b = (person(along(0.2, 0.8), 0.4), 0.6), (person(along(0.7, 0.3), 0.6, 0.2), 0.5)
    straight = run(a, b)
    boxes = np.stack([a[0], b[0]], axis=1)
    scores = np.tile([0.6, 0.5], (len(LOOKS), 1))
    order = rng.permuted(np.tile([0, 1], (len(LOOKS), 1)), axis=1)
    mixed = follow(
        LOOKS,
        np.take_along_axis(boxes, order[..., None], axis=1),
        np.take_along_axis(scores, order, axis=1),
        LENGTH,
        SIZE,
        ActorSettings(),
    )
    np.testing.assert_allclose(straight.boxes, mixed.boxes)


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
    with pytest.raises(ValueError, match=why):
        follow(np.array(positions), np.zeros((*shape, 4)), np.zeros(shape), 10, SIZE, ActorSettings())
