"""Frames have the shape in which players show them, whatever the shape of the stored pixels."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import pytest
import torch

from aqa_extract import frames as px
from aqa_extract.decode.child import DecodeFailure, Decoder, DecodeRequest
from aqa_extract.decode.shape import displayed_size
from aqa_extract.job import VideoJob
from aqa_extract.loading import Prepared, load
from aqa_shared.records import ExtractSettings, Pixels, Sampling, Video

SETTINGS = ExtractSettings(
    streams=("rgb", "actor-rgb"),
    sampling=Sampling(segments=2, segment_frames=9),
    pixels=Pixels(short_side=40, crop=32),
)


def prepared(decoder: Decoder, path: Path, backend: Literal["auto", "decord", "av"] = "av") -> Prepared:
    video = Video(id="v", path=str(path))
    request = DecodeRequest(path=str(path), video=video, sampling=SETTINGS.sampling, decoder=backend, deadline=60.0)
    return load(decoder, VideoJob(request.video, None), request, SETTINGS, torch.device("cpu"), 32, lambda _: None)


def small(video: Prepared) -> torch.Tensor:
    """Its frames as the one backbone wants them."""
    (frames,) = video.frames.values()
    return frames


# name: (how to write it, displayed size, ratio)
KINDS: dict[str, tuple[dict[str, Any], tuple[int, int], str]] = {
    "square": ({"aspect": Fraction(1)}, (64, 48), "1:1"),
    "not said": ({}, (64, 48), "1:1"),
    "wide": ({"aspect": Fraction(2)}, (128, 48), "2:1"),
    "wide mkv": ({"aspect": Fraction(2), "suffix": ".mkv"}, (128, 48), "2:1"),
    "wide, in the codec only": ({"aspect": Fraction(2), "suffix": ".ts"}, (128, 48), "2:1"),
    "wide mpeg4": ({"aspect": Fraction(2), "suffix": ".avi", "codec": "mpeg4"}, (128, 48), "2:1"),
    "pal": ({"aspect": Fraction(16, 15)}, (68, 48), "16:15"),
    "ntsc": ({"aspect": Fraction(8, 9)}, (64, 54), "8:9"),
    "narrow": ({"aspect": Fraction(1, 2)}, (64, 96), "1:2"),
    "turned": ({"aspect": Fraction(2), "rotation": 90}, (48, 128), "2:1"),
    "upside down": ({"aspect": Fraction(2), "rotation": 180}, (128, 48), "2:1"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_resized_to_the_displayed_shape(
    kind: str, decoder: Decoder, clips: ModuleType, tmp_path: Path
) -> None:
    how, size, ratio = KINDS[kind]
    path = clips.Clip(**how).write(tmp_path / "clip")
    truth = torch.from_numpy(clips.reference(path)).permute(0, 3, 1, 2)
    taken = prepared(decoder, path)
    probe = taken.video.probe
    assert (probe.width, probe.height) == size
    assert probe.sample_aspect_ratio == ratio
    assert (probe.frame_height, probe.frame_width) == truth.shape[2:]
    stored = truth[taken.video.plan.timeline[taken.video.positions]]
    assert torch.equal(small(taken), px.resize(stored, px.size_at_short_side(size[1], size[0], 40)))
    assert taken.large is not None
    short = min(size)
    assert torch.equal(taken.large, px.resize(stored, px.size_at_short_side(size[1], size[0], short)))


def test_both_decoders_agree(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(aspect=Fraction(2)).write(tmp_path / "clip")
    by_av, by_decord = prepared(decoder, path), prepared(decoder, path, "decord")
    assert (by_av.video.finished.backend, by_decord.video.finished.backend) == ("av", "decord")
    assert torch.equal(small(by_av), small(by_decord))
    assert small(by_decord).shape[-2:] == (40, 107)


def test_a_squeezed_recording_looks_like_the_square_one(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    """The same scene stored at full width, and at half the width with pixels twice as wide."""
    y, x = np.mgrid[0:96, 0:192]

    def scene(index: int, width: int, height: int) -> np.ndarray:
        wave = 127 + 100 * np.sin((x + 3 * index) / 15) * np.cos(y / 11)
        rgb = np.stack((wave, wave[:, ::-1], 255 - wave), -1)
        return rgb.reshape(height, 96 // height, width, 192 // width, 3).mean((1, 3)).astype(np.uint8)

    how = {"draw": scene, "options": {"crf": "8"}}
    square = clips.Clip(size=(192, 96), **how).write(tmp_path / "square")
    squeezed = clips.Clip(size=(96, 96), aspect=Fraction(2), **how).write(tmp_path / "squeezed")
    ignored = clips.Clip(size=(96, 96), **how).write(tmp_path / "ignored")
    truth, shown, wrong = (small(prepared(decoder, path)).float() for path in (square, squeezed, ignored))
    assert shown.shape == truth.shape == (18, 3, 40, 80)
    assert (shown - truth).abs().mean() < 2  # coding noise and one interpolation
    assert wrong.shape[-2:] == (40, 40)


def test_the_container_has_the_last_word(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(aspect=Fraction(2)).write(tmp_path / "clip")
    data = bytearray(path.read_bytes())
    at = data.index(b"pasp") + 4
    data[at : at + 8] = (4).to_bytes(4, "big") + (3).to_bytes(4, "big")
    path.write_bytes(data)
    assert clips.probe(decoder, path).sample_aspect_ratio == "4:3"
    # A ratio that nobody can mean is ignored, with a warning.
    data[at : at + 8] = (1).to_bytes(4, "big") + (1000).to_bytes(4, "big")
    path.write_bytes(data)
    probe = clips.probe(decoder, path)
    assert (probe.sample_aspect_ratio, probe.width, probe.height) == ("1:1", 64, 48)
    assert any("1:1000 is beyond 4:1" in w for w in probe.warnings)


def test_a_change_within_the_video_is_refused(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    aspects = (Fraction(16, 15), Fraction(64, 45))
    parts = [clips.Clip(suffix=".ts", aspect=a).write(tmp_path / f"{a.denominator}") for a in aspects]
    with pytest.raises(DecodeFailure) as e:
        prepared(decoder, clips.join(parts, tmp_path / "joined.ts"))
    assert e.value.reason == "resolution_change"
    assert "16/15 to 64/45" in e.value.detail


def test_limits_of_shape_are_those_of_the_displayed_picture(
    decoder: Decoder, clips: ModuleType, tmp_path: Path
) -> None:
    path = clips.Clip(size=(256, 64), aspect=Fraction(3)).write(tmp_path / "ribbon")
    with pytest.raises(DecodeFailure, match="768x64 is more than 10 times as long as wide"):
        prepared(decoder, path)
    path = clips.Clip(size=(512, 32), aspect=Fraction(1, 2)).write(tmp_path / "none")
    assert small(prepared(decoder, path)).shape[-2:] == (40, 320)


def test_no_stored_pixel_is_lost() -> None:
    assert displayed_size(720, 480, Fraction(8, 9)) == (720, 540)
    assert displayed_size(1440, 1080, Fraction(4, 3)) == (1920, 1080)
