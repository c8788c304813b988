"""Colours are read by their tags, and HDR looks like SDR.

The pairs are made here: one scene, written once as SDR and once as ITU-R BT.2408 maps SDR into HDR.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import av
import numpy as np
import pytest
from tests.extract.clips import request

from aqa_extract.decode.child import DecodeFailure, Decoder
from aqa_extract.decode.colour import Converter, to_sdr
from aqa_shared.records import UntaggedMatrix

BT709, BT601, SMPTE240M, BT2020 = 1, 6, 7, 9
UNTAGGED = 2
TV, PC = 1, 2
PQ, HLG = 16, 18
SDR_TAGS = {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1}
HLG_TAGS = {"colorspace": 9, "color_primaries": 9, "color_trc": HLG, "color_range": 1}
PQ_TAGS = {**HLG_TAGS, "color_trc": PQ}
LUMA = {BT709: (0.2126, 0.0722), BT601: (0.299, 0.114), SMPTE240M: (0.212, 0.087), BT2020: (0.2627, 0.0593)}
"""Weights of red and blue."""


# The matrix and the range -------------------------------------------------------------------------------------------


def _reference_rgb(yuv: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    """ITU-R BT.601, BT.709, BT.2020 and SMPTE 240M in floating point, 8 bit."""
    red, blue = LUMA[matrix]
    y, u, v = yuv.astype(float)
    y, u, v = (
        (y / 255, (u - 128) / 255, (v - 128) / 255) if full else ((y - 16) / 219, (u - 128) / 224, (v - 128) / 224)
    )
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.rint(np.stack((r, g, b), -1) * 255), 0, 255)


def _frame(matrix: int, colour_range: int, size: tuple[int, int] = (32, 32)) -> tuple[av.VideoFrame, np.ndarray]:
    generator = np.random.default_rng(matrix)
    yuv = np.stack([generator.integers(low, high, size[::-1]) for low, high in ((60, 190), (100, 156), (100, 156))])
    frame = av.VideoFrame.from_ndarray(yuv.astype(np.uint8), format="yuv444p")
    frame.colorspace, frame.color_range = matrix, colour_range
    return frame, yuv


@pytest.mark.parametrize("colour_range", [TV, PC])
@pytest.mark.parametrize("matrix", LUMA)
def test_matrix_and_range_are_the_frames_own(matrix: int, colour_range: int) -> None:
    frame, yuv = _frame(matrix, colour_range)
    expected = _reference_rgb(yuv, matrix, colour_range == PC)
    # Another matrix is off by 9 grey levels and more; swscale rounds to one.
    assert np.abs(Converter("bt601")(frame).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("untagged", "size", "matrix"),
    [
        ("bt601", (1920, 32), BT601),
        ("bt709", (32, 32), BT709),
        ("by-size", (1280, 32), BT709),
        ("by-size", (1279, 576), BT601),
        ("by-size", (32, 577), BT709),
    ],
)
def test_a_matrix_that_is_not_tagged(untagged: UntaggedMatrix, size: tuple[int, int], matrix: int) -> None:
    convert = Converter(untagged)
    frame, yuv = _frame(UNTAGGED, TV, size)
    assert np.abs(convert(frame).astype(int) - _reference_rgb(yuv, matrix, False)).max() <= 1
    tagged, yuv = _frame(SMPTE240M, TV, size)
    assert np.abs(convert(tagged).astype(int) - _reference_rgb(yuv, SMPTE240M, False)).max() <= 1


def test_decord_is_refused_where_it_would_read_another_matrix(
    decoder: Decoder, clips: ModuleType, tmp_path: Path
) -> None:
    plain = clips.Clip().write(tmp_path / "plain")
    tagged = clips.Clip(color=SDR_TAGS).write(tmp_path / "tagged")
    by_default = clips.take(decoder.decode(request(plain)))
    assert by_default.finished.backend == "decord"
    assert by_default.opened.probe.colour.assumed_matrix == "bt601"
    otherwise = clips.take(decoder.decode(request(plain, untagged_matrix="bt709")))
    assert otherwise.finished.backend == "av"
    assert otherwise.opened.probe.colour.assumed_matrix == "bt709"
    assert np.abs(otherwise.stack.astype(int) - by_default.stack).mean() > 1
    with pytest.raises(DecodeFailure, match="to be read as bt709"):
        clips.take(decoder.decode(request(plain, "decord", untagged_matrix="bt709")))
    same = clips.take(decoder.decode(request(tagged, untagged_matrix="bt709")))
    assert (same.finished.backend, same.opened.probe.colour.assumed_matrix) == ("decord", "")
    # 64 pixels are no HDTV.
    assert clips.take(decoder.decode(request(plain, untagged_matrix="by-size"))).finished.backend == "decord"


def test_a_matrix_that_nothing_here_reads_is_a_warning(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(color={"colorspace": 8}, suffix=".mkv").write(tmp_path / "clip")
    probe = clips.probe(decoder, path)
    assert probe.colour.matrix == "ycgco"
    assert any("ycgco is not supported" in w for w in probe.warnings)


# From HDR to SDR ----------------------------------------------------------------------------------------------------

TO_709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]
)
"""ITU-R BT.2087, linear BT.2020 to BT.709."""


def _hlg_oetf(light: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100, scene light 0..1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    with np.errstate(invalid="ignore"):
        return np.where(light <= 1 / 12, np.sqrt(3 * light), a * np.log(np.maximum(12 * light - b, 1e-9)) + c)


def _pq_inverse_eotf(nits: np.ndarray) -> np.ndarray:
    power = (nits / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375


def _as_hlg(sdr: np.ndarray) -> np.ndarray:
    """SDR signal (…, 3) in 0..1 to HLG signal, scene-referred: SDR white at 75 %."""
    light = np.where(sdr < 0.081, sdr / 4.5, ((sdr + 0.099) / 1.099) ** (1 / 0.45))
    return _hlg_oetf(np.clip(light @ np.linalg.inv(TO_709).T, 0, None) * 0.2649625)


def _as_pq(sdr: np.ndarray) -> np.ndarray:
    """SDR signal (…, 3) in 0..1 to PQ signal, display-referred: SDR white at 203 cd/m²."""
    return _pq_inverse_eotf(np.clip((sdr**2.4) @ np.linalg.inv(TO_709).T, 0, None) * 203)


def _reference_sdr(rgb: np.ndarray, rule: str) -> np.ndarray:
    """The formulas of docs/decoding.md, in double precision and without tables; BT.2020."""
    signal = rgb / 65535
    if rule == "hlg":
        low, high = signal**2 / 3, (np.exp((signal - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = np.where(signal <= 0.5, low, high) / 0.2649625
    elif rule == "pq":
        root = signal ** (1 / 78.84375)
        light = (np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)) ** (1 / 0.1593017578125) * 10000 / 203
    else:
        light = signal**2.4
    light = np.clip(light @ TO_709.T, 0, None)
    out = np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099) if rule == "hlg" else light ** (1 / 2.4)
    if rule != "gamut":
        out = np.where(out > 0.9, 0.9 + 0.1 * (1 - np.exp(-(out - 0.9) / 0.1)), out)
    return np.clip(out, 0, 1) * 255


@pytest.mark.parametrize("rule", ["hlg", "pq", "gamut"])
def test_the_tables_follow_the_formulas(rule: str) -> None:
    rgb = np.random.default_rng(0).integers(0, 65536, (64, 200, 3), dtype=np.uint16)
    rgb[0], rgb[1] = 0, 65535
    rgb[2] = np.linspace(0, 65535, 200, dtype=np.uint16)[:, None]
    error = np.abs(to_sdr(rgb, rule, BT2020) - _reference_sdr(rgb, rule))
    assert error.max() < 0.6  # half a level is the rounding to 8 bits
    assert to_sdr(rgb, rule, BT2020)[:2].tolist() == [[[0, 0, 0]] * 200, [[255, 255, 255]] * 200]


def test_grey_stays_grey_and_black_stays_black() -> None:
    grey = np.repeat(np.linspace(0, 65535, 256, dtype=np.uint16), 3).reshape(1, 256, 3)
    for rule in ("hlg", "pq", "gamut"):
        out = to_sdr(grey, rule, BT2020)[0].astype(int)
        assert np.ptp(out, axis=-1).max() <= 1
        assert np.all(np.diff(out[:, 1]) >= 0)
    assert np.abs(to_sdr(grey, "gamut", 12)[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def _scene(index: int, width: int, height: int) -> np.ndarray:
    """float (height, width, 3) in 0..1: smooth, colourful, from black to white."""
    y, x = np.mgrid[0:height, 0:width]
    phases = (0.0, 2.1, 4.2)
    waves = [0.5 + 0.5 * np.sin(x / 9 + phase + index / 5) * np.cos(y / 13 - phase) for phase in phases]
    return np.stack(waves, -1)


def _write(clips: ModuleType, path: Path, draw: Callable[[np.ndarray], np.ndarray], tags: dict[str, int]) -> Path:
    def picture(index: int, width: int, height: int) -> np.ndarray:
        return np.rint(np.clip(draw(_scene(index, width, height)), 0, 1) * 65535).astype(np.uint16)

    how = {"codec": "libx265", "options": {"x265-params": "crf=6:log-level=none"}, "pix_fmt": "yuv420p10le"}
    return clips.Clip(size=(96, 64), frames=12, draw=picture, color=tags, **how).write(path)


@pytest.mark.parametrize(("name", "encode", "tags"), [("hlg", _as_hlg, HLG_TAGS), ("pq", _as_pq, PQ_TAGS)])
def test_hdr_looks_like_sdr(
    name: str,
    encode: Callable[[np.ndarray], np.ndarray],
    tags: dict[str, int],
    decoder: Decoder,
    clips: ModuleType,
    tmp_path: Path,
) -> None:
    sdr = clips.take(decoder.decode(request(_write(clips, tmp_path / "sdr", lambda s: s, SDR_TAGS))))
    path = _write(clips, tmp_path / name, encode, tags)
    hdr = clips.take(decoder.decode(request(path)))
    probe = hdr.opened.probe
    assert (probe.colour.tone_mapped, probe.colour.primaries, probe.colour.matrix) == (name, "bt2020", "bt2020nc")
    assert probe.colour.transfer == {"hlg": "arib-std-b67", "pq": "smpte2084"}[name]
    assert sdr.opened.probe.colour.tone_mapped == ""
    mapped = np.abs(hdr.stack.astype(float) - sdr.stack).mean()
    ignored = np.abs(clips.reference(path)[hdr.sources].astype(float) - sdr.stack).mean()
    # The knee takes up to nine levels from what is nearly white; the rest is coding noise.
    assert mapped < 2.5
    assert ignored > 8 * mapped


def test_wide_primaries_are_converted(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    def wide(sdr: np.ndarray) -> np.ndarray:
        return np.clip((sdr**2.4) @ np.linalg.inv(TO_709).T, 0, None) ** (1 / 2.4)

    sdr = clips.take(decoder.decode(request(_write(clips, tmp_path / "sdr", lambda s: s, SDR_TAGS))))
    tags = {**HLG_TAGS, "color_trc": 14}
    path = _write(clips, tmp_path / "wide", wide, tags)
    taken = clips.take(decoder.decode(request(path)))
    assert taken.opened.probe.colour.tone_mapped == "gamut"
    mapped = np.abs(taken.stack.astype(float) - sdr.stack).mean()
    ignored = np.abs(clips.reference(path)[taken.sources].astype(float) - sdr.stack).mean()
    assert mapped < 2.5
    assert ignored > 4 * mapped


def test_decord_does_not_read_hdr(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    """8-bit H.264 tagged HLG is all that decord could otherwise be given."""
    path = clips.Clip(color=HLG_TAGS).write(tmp_path / "clip")
    taken = clips.take(decoder.decode(request(path)))
    assert (taken.finished.backend, taken.opened.probe.colour.tone_mapped) == ("av", "hlg")
    with pytest.raises(DecodeFailure, match="colours to be converted"):
        clips.take(decoder.decode(request(path, "decord")))
