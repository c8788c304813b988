"""Which frames the actor is looked for on, what they say about the camera, and what people look like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from aqa_extract.actor import views
from aqa_extract.actor.appearance import colours
from aqa_extract.actor.camera import Motion, movement, small
from aqa_shared.records import ActorSettings


def hall(seed: int = 0) -> np.ndarray:
    """A wall (400, 400) of blotches, 0..255."""
    rough = gaussian_filter(np.random.default_rng(seed).standard_normal((400, 400)), 4)
    return np.clip(128 + 60 * rough / rough.std(), 0, 255)


def filmed(wall: np.ndarray, corners: np.ndarray) -> torch.Tensor:
    """Windows of 128×160 of the wall, uint8 RGB."""
    windows = np.stack([wall[y : y + 128, x : x + 160] for x, y in corners])
    return torch.from_numpy(windows.astype(np.uint8))[:, None].expand(-1, 3, -1, -1)


def track(frames: torch.Tensor, boxes: np.ndarray | None = None) -> Motion:
    at = np.arange(len(frames))
    if boxes is None:
        boxes = np.zeros((len(frames), 1, 4))
    return movement(small(frames), at, at, boxes, boxes.any(-1))


def test_a_pan_is_measured_to_a_hundredth_of_the_frame() -> None:
    """Including a step by half a frame."""
    corners = np.array([[10, 200], [14, 190], [40, 170], [120, 170], [120, 106], [120, 106]])
    motion = track(filmed(hall(), corners))
    expected = (corners[0] - corners) / [160, 128]
    np.testing.assert_allclose(motion.offset, expected, atol=0.01)
    assert not motion.cuts.any()


def test_people_do_not_move_the_camera() -> None:
    """Half of the picture is somebody who walks; the wall behind stands."""
    frames = filmed(hall(), np.array([[50, 50]] * 4)).clone()
    other = torch.from_numpy(hall(1).astype(np.uint8))
    boxes = np.zeros((4, 1, 4))
    for k in range(4):
        left = 10 + 12 * k
        frames[k, :, 4:124, left : left + 70] = other[:120, :70]
        boxes[k, 0] = [left / 160, 4 / 128, (left + 70) / 160, 124 / 128]
    np.testing.assert_allclose(track(frames, boxes).offset, 0, atol=0.01)


def test_a_step_that_cannot_be_measured_goes_on_as_its_neighbours() -> None:
    corners = np.array([[20 + 12 * k, 100] for k in range(8)])
    frames = filmed(hall(), corners).clone()
    frames[4] = 128  # a flash, a caption, a blurred frame
    np.testing.assert_allclose(track(frames).offset, (corners[0] - corners) / [160, 128], atol=0.01)


def test_another_place_is_a_cut_and_a_pan_is_none() -> None:
    dark = filmed(hall(2) / 4, np.array([[9, 9]] * 3))
    motion = track(torch.cat([filmed(hall(), np.array([[50, 50]] * 3)), dark]))
    assert motion.cuts.tolist() == [False, False, False, True, False, False]


def test_a_blank_wall_and_a_single_frame_stand_still() -> None:
    assert not track(torch.full((5, 3, 48, 64), 77, dtype=torch.uint8)).offset.any()
    assert track(torch.full((1, 3, 48, 64), 77, dtype=torch.uint8)).offset.shape == (1, 2)


def test_between_looks_the_camera_is_seen_twice_as_often() -> None:
    wanted = ActorSettings(every=4)
    assert views.looks(5, 15, wanted).tolist() == [5, 9, 13, 14]
    assert views.greys(5, 15, wanted).tolist() == [5, 7, 9, 11, 13, 14]
    assert views.looks(0, 10_000, ActorSettings(every=1, looks=50))[-1] == 9_999
    assert len(views.looks(0, 10_000, ActorSettings(every=1, looks=50))) <= 50
    assert views.looks(3, 4, wanted).tolist() == views.greys(3, 4, wanted).tolist() == [3]


@pytest.mark.parametrize("turned", [0, 1, 2])
def test_colours_are_the_same_upside_down_and_another_person_s_are_not(turned: int) -> None:
    frame = np.full((120, 120, 3), 90, np.uint8)
    frame[20:100, 45:75] = [200, 30, 40]
    frame[20:50, 45:75] = [230, 180, 150]
    other = frame.copy()
    other[20:100, 45:75] = [30, 60, 200]
    pictures = np.stack([frame, np.rot90(frame, turned), other]).transpose(0, 3, 1, 2)
    box = np.array([45, 20, 75, 100]) / 120
    boxes = np.stack([box, box if turned != 1 else np.array([20, 45, 100, 75]) / 120, box])
    found = colours(torch.from_numpy(np.ascontiguousarray(pictures)), np.arange(3), boxes)
    np.testing.assert_allclose((found**2).sum(-1), 1)
    assert found[0] @ found[1] > 0.95
    assert found[0] @ found[2] < 0.1
