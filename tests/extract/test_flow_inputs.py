"""Grey conversion and quantisation of flow: equality with OpenCV, and values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aqa_extract.flow.inputs import motion, to_gray, to_input
from aqa_shared.records import FlowSettings

cv2 = pytest.importorskip("cv2", reason="opencv is the reference")


@pytest.mark.parametrize("seed", range(3))
def test_gray_equals_opencv_on_random_images(seed: int) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (2, 61, 83, 3), dtype=np.uint8)
    expected = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames])
    found = to_gray(torch.from_numpy(frames).permute(0, 3, 1, 2))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.numpy(), expected)


def test_gray_equals_opencv_on_every_green_and_red() -> None:
    red, green = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    for blue in (0, 1, 127, 254, 255):
        image = np.stack((red, green, np.full_like(red, blue)), axis=-1)
        found = to_gray(torch.from_numpy(image).permute(2, 0, 1)[None])[0]
        np.testing.assert_array_equal(found.numpy(), cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


@pytest.mark.parametrize(
    ("quantise", "px", "level"),
    [
        ("mediapipe", 0.0, 127),  # floor(127.5)
        ("round", 0.0, 128),
        ("mediapipe", 20.0, 255),
        ("round", 20.0, 255),
        ("mediapipe", -20.0, 0),
        ("mediapipe", 99.0, 255),
        ("mediapipe", 1.0, 133),  # floor(21 / 40 * 255 = 133.875)
        ("round", 1.0, 134),
        ("mediapipe", -1.0, 121),  # floor(19 / 40 * 255 = 121.125)
    ],
)
def test_levels_by_hand(quantise: str, px: float, level: int) -> None:
    flow = torch.full((1, 2, 2, 2), px)
    found = to_input(flow, FlowSettings(quantise=quantise))  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.full_like(flow, 2 * level / 255 - 1), rtol=0, atol=1e-6)


def test_no_motion_is_one_level_below_or_above_the_middle() -> None:
    still = torch.zeros(1, 2, 1, 1)
    values = {q: float(to_input(still, FlowSettings(quantise=q))[0, 0]) for q in ("mediapipe", "round", "none")}
    assert values["mediapipe"] == pytest.approx(-1 / 255, abs=1e-7)
    assert values["round"] == pytest.approx(1 / 255, abs=1e-7)
    assert values["none"] == 0


@given(
    px=st.floats(-100, 100, width=32),
    bound=st.sampled_from([5.0, 20.0, 32.0]),
    quantise=st.sampled_from(["mediapipe", "round", "none"]),
)
@settings(max_examples=200)
def test_input_is_in_range_and_within_one_level_of_the_flow(px: float, bound: float, quantise: str) -> None:
    flow = torch.full((1, 2, 1, 1), px)
    found = to_input(flow, FlowSettings(quantise=quantise, bound=bound))  # type: ignore[arg-type]
    assert found.abs().max() <= 1
    clipped = max(-bound, min(bound, px))
    assert (found - clipped / bound).abs().max() <= 2 / 255 + 1e-6


def test_motion_is_the_mean_length_before_clipping() -> None:
    flow = torch.zeros(2, 2, 2, 2)
    flow[0, 0], flow[0, 1] = 30.0, 40.0  # length 50 everywhere in one of two pairs
    assert math.isclose(float(motion(flow)), 25.0, rel_tol=1e-6)
