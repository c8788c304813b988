"""From a decoded frame to 8-bit RGB as an SDR screen (BT.709) shows it; docs/decoding.md has the formulas.

    YCbCr ──matrix and range of the tags──▶ RGB, 8 bit                                         usual
                                            RGB, 16 bit ─▶ light ─▶ BT.709 primaries ─▶ SDR    HLG, PQ, wide gamut

swscale does the first step, because it is what every other reader of these videos uses. The second is ours: three
table look-ups around a 3x3 matrix, so that it is the same everywhere and fast without a graphics processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import av
import numpy as np
from av.video.reformatter import VideoReformatter

if TYPE_CHECKING:
    from aqa_shared.records import UntaggedMatrix


# Code points of ITU-T H.273, with FFmpeg's names.
_UNKNOWN = 2
_PRIMARIES = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "film", 9: "bt2020", 10: "smpte428",
    11: "smpte431", 12: "smpte432", 22: "ebu3213",
}  # fmt: skip
_TRANSFERS = {
    1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "linear", 9: "log100", 10: "log316",
    11: "iec61966-2-4", 12: "bt1361e", 13: "iec61966-2-1", 14: "bt2020-10", 15: "bt2020-12", 16: "smpte2084",
    17: "smpte428", 18: "arib-std-b67",
}  # fmt: skip
_MATRICES = {
    0: "gbr", 1: "bt709", 4: "fcc", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 8: "ycgco", 9: "bt2020nc",
    10: "bt2020c", 11: "smpte2085", 12: "chroma-derived-nc", 13: "chroma-derived-c", 14: "ictcp", 15: "ipt-c2",
}  # fmt: skip
_RANGES = {1: "tv", 2: "pc"}
_READ_AS_TAGGED = {0, 1, _UNKNOWN, 4, 5, 6, 7, 9}
"""Matrices that swscale applies; it takes every other for BT.601."""

_HLG, _PQ = 18, 16
_BT2020, _P3 = 9, 12


@dataclass(frozen=True)
class Colour:
    """How a video says that its code values are to be read, and what is done about it."""

    primaries: str
    transfer: str
    matrix: str
    """Of the tag; `unknown` where there is none."""
    range: str
    assumed_matrix: str
    """`bt601`, `bt709` or `bt2020nc` where the matrix is not tagged, else ''."""
    tone_mapped: str
    """`hlg` or `pq` for HDR, `gamut` for SDR of wider primaries than BT.709's, else ''."""

    @classmethod
    def of(cls, frame: av.VideoFrame, untagged: UntaggedMatrix) -> tuple[Colour, str]:
        """What `frame` says, and a warning ('' if none)."""
        matrix = int(frame.colorspace)
        rule = _rule(frame)
        warning = ""
        if matrix not in _READ_AS_TAGGED:
            name = _MATRICES.get(matrix, str(matrix))
            warning = f"colour matrix {name} is not supported: read as BT.601, colours will be wrong"
        found = cls(
            _PRIMARIES.get(int(frame.color_primaries), "unknown"),
            _TRANSFERS.get(int(frame.color_trc), "unknown"),
            _MATRICES.get(matrix, "unknown"),
            _RANGES.get(int(frame.color_range), "unknown"),
            _assumed(frame, untagged),
            rule[0] if rule else "",
        )
        return found, warning


class Converter:
    """Frames of one video to uint8 (H, W, 3) RGB, each by its own tags."""

    def __init__(self, untagged: UntaggedMatrix) -> None:
        self.untagged: UntaggedMatrix = untagged
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        matrix = {"bt709": 1, "bt2020nc": 9}.get(_assumed(frame, self.untagged))
        rule = _rule(frame)
        # threads=1: with more, PyAV 17 waits longer for its threads than it converts.
        rgb = self._reformatter.reformat(
            frame, format="rgb48le" if rule else "rgb24", src_colorspace=matrix, threads=1
        ).to_ndarray()
        return to_sdr(rgb, *rule) if rule else rgb


def _assumed(frame: av.VideoFrame, untagged: UntaggedMatrix) -> str:
    """The matrix of a frame that does not name one, '' where it does or needs none."""
    if int(frame.colorspace) != _UNKNOWN or frame.format.is_rgb or len(frame.format.components) < 3:
        return ""
    if int(frame.color_trc) in (_HLG, _PQ) or int(frame.color_primaries) == _BT2020:
        return "bt2020nc"  # the only one that BT.2100 has for them
    if untagged == "by-size":
        # As mpv does: what is larger than PAL was made for HDTV.
        return "bt709" if frame.width >= 1280 or frame.height > 576 else "bt601"
    return untagged


def _rule(frame: av.VideoFrame) -> tuple[str, int] | None:
    """(what to do, primaries) for a frame whose code values are not those of an SDR screen."""
    transfer, primaries = int(frame.color_trc), int(frame.color_primaries)
    if transfer in (_HLG, _PQ):
        return ("hlg" if transfer == _HLG else "pq"), _BT2020 if primaries == _UNKNOWN else primaries
    if primaries in (_BT2020, _P3):
        return "gamut", primaries
    return None


KNEE = 0.9
"""Signal from which HDR highlights are compressed (ours): of a hard clip and knees of .80 to .95 the one nearest to SDR
versions of the same videos."""
REFERENCE_WHITE = 203.0
"""cd/m² of PQ that become SDR white: diffuse white by ITU-R BT.2408."""
_HLG_WHITE = 0.75
"""HLG signal of the same white, also by BT.2408."""

_OUT = 16384
"""Steps of the square root of light, 64 for each grey level that comes out."""
_TOP = 2.0
"""Light above twice the reference white is as white as it gets."""
_ROWS = 16
"""Rows of a frame at a time, so that intermediate values stay in the cache."""


def to_sdr(rgb: np.ndarray, rule: str, primaries: int) -> np.ndarray:
    """uint16 (H, W, 3) code values of full range to uint8 (H, W, 3) BT.709.

    `rule` is `hlg`, `pq` or `gamut`; `primaries` as in H.273, where those not known here count as BT.709's.
    """
    light, signal = _tables(rule)
    matrix = _to_bt709(primaries)
    out = np.empty(rgb.shape, np.uint8)
    for top in range(0, len(rgb), _ROWS):
        part = light.take(rgb[top : top + _ROWS]).reshape(-1, 3) @ matrix
        np.clip(part, 0, _TOP, out=part)
        np.sqrt(part, out=part)
        part *= (_OUT - 1) / _TOP**0.5
        out[top : top + _ROWS] = signal.take(part.astype(np.uint16)).reshape(-1, *rgb.shape[1:])
    return out


@cache
def _tables(rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Code value → light (float32, white is 1), and √(light / _TOP) → 8-bit signal."""
    code = np.arange(1 << 16) / 65535
    light, signal = _TRANSFER[rule]
    steps = (np.arange(_OUT) + 0.5) / _OUT
    values = signal(_TOP * steps**2)
    if rule != "gamut":
        values = np.where(values > KNEE, KNEE + (1 - KNEE) * -np.expm1(-(values - KNEE) / (1 - KNEE)), values)
    return light(code).astype(np.float32), np.rint(values.clip(0, 1) * 255).astype(np.uint8)


def _hlg_scene(signal: np.ndarray) -> np.ndarray:
    """Inverse of the OETF of ITU-R BT.2100: scene light, 0..1."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def _pq_display(signal: np.ndarray) -> np.ndarray:
    """EOTF of SMPTE ST 2084 and BT.2100: cd/m²."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = signal ** (1 / m2)
    return 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)


def _bt709_oetf(light: np.ndarray) -> np.ndarray:
    """ITU-R BT.709, going on beyond 1."""
    return np.where(light < 0.018, 4.5 * light, 1.099 * light**0.45 - 0.099)


def _bt1886_inverse(light: np.ndarray) -> np.ndarray:
    """What a screen of ITU-R BT.1886 (black at 0) needs to show `light`."""
    return light ** (1 / 2.4)


_TRANSFER: dict[str, tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]] = {
    # From scene to scene and from screen to screen, as BT.2408 maps SDR into HLG and into PQ, backwards.
    "hlg": (lambda signal: _hlg_scene(signal) / _hlg_scene(np.array(_HLG_WHITE)), _bt709_oetf),
    "pq": (lambda signal: _pq_display(signal) / REFERENCE_WHITE, _bt1886_inverse),
    "gamut": (lambda signal: signal**2.4, _bt1886_inverse),
}

_CHROMATICITIES = {
    1: ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    _BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    _P3: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
"""x, y of red, green and blue; white is D65 for all of them."""


@cache
def _to_bt709(primaries: int) -> np.ndarray:
    """float32 (3, 3), to be multiplied from the right: linear RGB of `primaries` to that of BT.709."""
    xyz = [_to_xyz(_CHROMATICITIES.get(p, _CHROMATICITIES[1])) for p in (primaries, 1)]
    return (np.linalg.inv(xyz[1]) @ xyz[0]).T.astype(np.float32)


def _to_xyz(chromaticities: tuple[tuple[float, float], ...]) -> np.ndarray:
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in chromaticities]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)
