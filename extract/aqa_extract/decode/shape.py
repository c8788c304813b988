"""From a stored to a displayed picture: how it is turned and mirrored, and how wide its pixels are.

A reader turns and mirrors frames. It does not stretch them: the resize that follows anyway goes from the stored
pixels straight to the target of the displayed shape (`loading.py`), so nothing is interpolated twice.
"""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import numpy as np
from av.buffer import Buffer

WIDEST_PIXEL = 4
"""A sample aspect ratio beyond 4:1 or 1:4 is taken for a mistake (ours): the widest in use are 64:33 (Video CD, 16:9),
24:11 (H.264's table) and 2:1 (half-width recordings)."""


def orientation(frame: av.VideoFrame) -> tuple[int, bool, bool]:
    """(degrees counter-clockwise, mirrored first, not a right angle) from the frame's display matrix.

    The matrix is 3x3 in 16.16 fixed point and maps a stored to a displayed point, y downwards, as in ISO 14496-12.
    """
    side = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(side, Buffer):
        return 0, False, False
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(side)[:36])
    signs = tuple(int(np.sign(v)) if abs(v) > 1 << 12 else 0 for v in (a, b, c, d))
    return (*_TURNS[signs], False) if signs in _TURNS else (0, False, True)


_TURNS: dict[tuple[int, ...], tuple[int, bool]] = {
    (1, 0, 0, 1): (0, False),
    (0, 1, -1, 0): (270, False),
    (-1, 0, 0, -1): (180, False),
    (0, -1, 1, 0): (90, False),
    (-1, 0, 0, 1): (0, True),
    (1, 0, 0, -1): (180, True),
    (0, 1, 1, 0): (90, True),
    (0, -1, -1, 0): (270, True),
}


def turn(rgb: np.ndarray, rotation: int, mirrored: bool) -> np.ndarray:
    """A stored frame (H, W, 3), mirrored left to right and then turned `rotation` degrees counter-clockwise."""
    if mirrored:
        rgb = rgb[:, ::-1]
    return np.rot90(rgb, rotation // 90) if rotation else rgb


def pixel_aspect(of: av.VideoStream | av.VideoCodecContext) -> Fraction | None:
    """Width over height of a stored pixel, if it is said; a Fraction, which PyAV gave before version 19."""
    said = of.sample_aspect_ratio
    return Fraction(said.numerator, said.denominator) if said else None


def sample_aspect(stream: av.VideoStream) -> tuple[Fraction, str]:
    """Width over height of a stored pixel, and a warning ('' if none).

    To be asked once a frame is decoded. As in FFmpeg's players the container's value comes before the codec's, and
    none at all means square.
    """
    ratio = pixel_aspect(stream) or pixel_aspect(stream.codec_context) or Fraction(1)
    if not Fraction(1, WIDEST_PIXEL) <= ratio <= WIDEST_PIXEL:
        said = f"sample aspect ratio {ratio.numerator}:{ratio.denominator} is beyond {WIDEST_PIXEL}:1: taken for square"
        return Fraction(1), said
    return ratio, ""


def displayed_size(width: int, height: int, aspect: Fraction) -> tuple[int, int]:
    """(width, height) of a stored frame with square pixels, before it is turned: 96x96 at 2:1 is 192x96.

    The side that is too short is stretched, so that no stored pixel is lost: 720x480 at 8:9 is 720x540.
    """
    if aspect >= 1:
        return round(width * aspect), height
    return width, round(height / aspect)
