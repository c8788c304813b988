"""Pictures: shapes of the size they should be, a diver who is always in the picture, nothing that tells the score."""

from __future__ import annotations

import numpy as np
import pytest

from aqa_dives.dataset import Look, _streams, frames_of, perform, shot_of
from aqa_dives.film import film, follow, frame_times, stage
from aqa_dives.raster import capsule, crop_scaled, spray

FRONT = np.array([0.0, 0.0, 1.0])


def white(height: int, width: int, a: tuple[float, float], b: tuple[float, float], radius: float) -> np.ndarray:
    image = np.zeros((height, width, 3), np.float32)
    # Bright enough that the rim's shade is clipped to white everywhere: what is left is the coverage.
    capsule(image, np.array(a), np.array(b), (radius, radius), np.full(3, 9.0), FRONT)
    return image


def test_a_capsule_covers_its_area() -> None:
    # A stadium: a rectangle 20 × 10 and a disc of radius 5; up to a tenth of a pixel along the rim.
    found = white(60, 60, (20.3, 30.7), (40.3, 30.7), 5.0)[..., 0].sum()
    assert found == pytest.approx(200 + np.pi * 25, rel=0.01)


def test_a_capsule_moves_by_parts_of_pixels() -> None:
    for shift in (0.25, 0.5, 0.75):
        image = white(40, 40, (20.0 + shift, 20.0), (20.0 + shift, 20.0), 4.0)[..., 0]
        column = (image.sum(0) * np.arange(40)).sum() / image.sum()
        assert column == pytest.approx(20 + shift, abs=0.03)


def test_a_capsule_outside_paints_nothing() -> None:
    assert not white(20, 20, (-30.0, 5.0), (-12.0, 5.0), 4.0).any()
    assert not white(20, 20, (5.0, 50.0), (9.0, 60.0), 4.0).any()


def test_spray_keeps_the_weight_of_the_drops_inside() -> None:
    drops = np.array([[3.25, 4.5], [7.0, 2.0], [-5.0, 3.0], [3.0, 99.0]])
    density = spray((10, 12), drops, np.array([1.0, 2.0, 4.0, 8.0]))
    assert density.sum() == pytest.approx(3.0)
    assert density[4, 3] == pytest.approx(0.75 * 0.5)


def test_crop_scaled_is_bilinear() -> None:
    texture = np.zeros((8, 9, 3), np.uint8)
    texture[..., 0] = np.arange(9) * 10
    texture[..., 1] = np.arange(8)[:, None] * 20
    columns, rows = np.array([0.0, 1.5, 6.25]), np.array([2.0, 3.25])
    found = crop_scaled(texture, columns, rows) * 255
    np.testing.assert_allclose(found[..., 0], np.broadcast_to(columns * 10, (2, 3)), atol=1e-3)
    np.testing.assert_allclose(found[..., 1], np.broadcast_to(rows[:, None] * 20, (2, 3)), atol=1e-3)


@pytest.mark.parametrize("size", [(160, 128), (128, 128), (320, 180)])
def test_the_diver_is_in_every_frame_until_the_water_has_him(size: tuple[int, int]) -> None:
    for index in range(12):
        look = Look(seed=3, width=size[0], height=size[1])
        routine, _ = perform(look, index)
        rng = _streams(look, index)[2]
        times = frame_times(routine, look.frames, look.fps, float(rng.uniform(0.72, 0.77)))
        camera = follow(rng, routine, times, size)
        for frame in np.flatnonzero(times <= routine.entry_time):
            step = int(np.argmin(np.abs(routine.times - times[frame])))
            at = camera.pixel(int(frame), routine.points[step, :, 0], routine.points[step, :, 1])
            inside = (at >= 0).all(1) & (at[:, 0] < size[0]) & (at[:, 1] < size[1])
            assert inside.mean() > 0.85, (index, frame)


def test_the_diver_is_painted_where_the_camera_sees_him() -> None:
    """Without the diver the picture differs there and nowhere else."""
    look = Look(seed=1)
    routine, _ = perform(look, 0)
    frames = []
    for acted in (routine, _hidden(routine)):
        rng = _streams(look, 0)[2]
        frames.append(list(film(stage(acted, rng, 64, 20.0, (160, 128)), rng)))
    shot, _ = shot_of(look, 0)
    for k in range(5, 40, 5):
        changed = np.abs(frames[0][k].astype(int) - frames[1][k]).max(-1) > 12
        assert 200 < changed.sum() < 3500, k
        rows, columns = np.nonzero(changed)
        joints = shot.joints(k)
        # A limb is up to 7 pixels thick about its joints.
        for found, known in ((columns, joints[:, 0]), (rows, joints[:, 1])):
            assert known.min() - 8 < found.min() < known.min() + 3
            assert known.max() - 3 < found.max() < known.max() + 8


def _hidden(routine):  # type: ignore[no-untyped-def]
    """The same routine, with a body far behind the camera's edge."""
    from dataclasses import replace

    return replace(routine, points=routine.points + np.array([500.0, 0.0, 0.0]))


def test_another_size_shows_the_same_scene() -> None:
    small = np.stack(list(frames_of(Look(), 4)))
    large = np.stack(list(frames_of(Look(width=320, height=256), 4)))
    pooled = large.reshape(64, 128, 2, 160, 2, 3).mean((2, 4))
    # Noise and textures are drawn per pixel, so only the scene agrees.
    assert np.corrcoef(small.reshape(-1), pooled.reshape(-1))[0, 1] > 0.75
