"""Pixels between the decoder and the networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F

from aqa_extract import frames as px
from aqa_extract.backbones import BACKBONES, Canvas
from aqa_shared.records import Pixels


def _noise(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((360, 640), 256, (256, 455)),
        ((640, 360), 256, (455, 256)),
        ((240, 320), 256, (256, 341)),
        ((9, 9), 4, (4, 4)),
    ],
)
def test_short_side(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert px.size_at_short_side(*size, side) == expected


@pytest.mark.parametrize("size", [(36, 64), (97, 53), (300, 400)])
def test_resize_is_opencv_linear(size: tuple[int, int]) -> None:
    """INTER_LINEAR to the last bit, up and down."""
    cv2 = pytest.importorskip("cv2")
    frames = _noise(2, 120, 160)
    ours = px.resize(frames, size).permute(0, 2, 3, 1).numpy()
    for frame, mine in zip(frames.permute(0, 2, 3, 1).numpy(), ours, strict=True):
        theirs = cv2.resize(frame, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
        np.testing.assert_array_equal(theirs, mine)


def test_antialias_changes_a_strong_reduction() -> None:
    frames = _noise(1, 256, 256)
    plain, smooth = px.resize(frames, (32, 32)), px.resize(frames, (32, 32), antialias=True)
    assert plain.float().std() > 2 * smooth.float().std()


def test_centre_crop_leaves_the_odd_pixel_at_the_end() -> None:
    x = torch.arange(7).expand(1, 1, 5, 7)
    assert px.centre_crop(x, 4)[0, 0, 0].tolist() == [1, 2, 3, 4]


def test_crop_boxes_of_the_whole_frame_is_the_frame() -> None:
    frames = _noise(2, 24, 24)
    cropped = px.crop_boxes(frames, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4), 24)
    torch.testing.assert_close(cropped, frames.float(), atol=1e-3, rtol=0)


def test_crop_boxes_takes_the_quarter_it_is_told() -> None:
    frame = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    frame[..., 8:, :8] = 200
    cropped = px.crop_boxes(frame, torch.tensor([[0.0, 0.5, 0.5, 1.0]]), 8)
    assert (cropped == 200).all()


def test_a_box_beyond_the_frame_repeats_its_edge() -> None:
    frame = torch.full((1, 3, 8, 8), 77, dtype=torch.uint8)
    assert (px.crop_boxes(frame, torch.tensor([[-0.5, -0.5, 1.5, 1.5]]), 8) == 77).all()


def test_normalise_ends() -> None:
    """I3D was trained on [-1, 1]; black in ImageNet units is (0 - mean) / std."""
    black, white = torch.zeros(1, 3, 1, 1, 1), torch.full((1, 3, 1, 1, 1), 255.0)
    kinetics = BACKBONES["i3d"].input
    assert px.normalise(black, kinetics).unique().tolist() == [-1.0]
    assert px.normalise(white, kinetics).unique().tolist() == [1.0]
    imagenet = kinetics.adjusted(Pixels(normalise="imagenet"))
    assert px.normalise(black, imagenet)[0, 0].item() == pytest.approx(-0.485 / 0.229)
    reversed_ = px.normalise(black, replace(imagenet, channels="BGR")).flatten()
    assert reversed_.tolist() == px.normalise(black, imagenet).flatten().tolist()[::-1]


@pytest.mark.parametrize("size", [(36, 64), (64, 36), (33, 33), (40, 47), (37, 48)])
@pytest.mark.parametrize("resize", [24, (20, 31)])
def test_torchvisions_canvas_and_centre_are_torchvisions(size: tuple[int, int], resize: int | tuple[int, int]) -> None:
    """Its rounding of sizes, of pixels and of the centre: equal in every pixel."""
    frames = _noise(2, *size)
    theirs = F.resize(frames, [resize] if isinstance(resize, int) else list(resize), antialias=False)
    canvas = Canvas(resize, "torchvision")
    ours = px.resize(frames, px.canvas_size(*size, canvas), like="torchvision")
    assert torch.equal(ours, theirs)
    assert torch.equal(px.centre_crop(ours, 17, "torchvision"), F.center_crop(theirs, [17, 17]))


def test_squash_shows_the_whole_frame_and_squashes_its_motion() -> None:
    given = replace(BACKBONES["i3d"].input, fit="squash", crop=16)
    left_is_white = torch.zeros(1, 3, 32, 64, dtype=torch.uint8)
    left_is_white[..., :32] = 255
    seen = px.fit(left_is_white, given)
    assert seen.shape == (1, 3, 16, 16)
    assert (seen[..., :8] == 255).all()
    assert (seen[..., 8:] == 0).all()
    flow = torch.tensor([8.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 32, 64)
    assert px.fit(flow, given).flatten(2).unique(dim=2).flatten().tolist() == [2.0, 1.0]
