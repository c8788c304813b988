"""Is this file a video we may decode, and which frames does it show when?

The display timeline comes from the packets, without decoding: a frame is shown at the presentation time of its
packet, unless the edit list discards it. What decoding then yields is compared with this.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import av
import av.container
import av.error
import numpy as np

from aqa_extract.decode.colour import Colour
from aqa_extract.decode.failure import DecodeFailure
from aqa_extract.decode.packets import MISMATCH, read_packets, timeline
from aqa_extract.decode.seek import PacketTable
from aqa_extract.decode.shape import displayed_size, orientation, sample_aspect
from aqa_extract.decode.source import VideoFile, open_video, too_large

if TYPE_CHECKING:
    from aqa_shared.records import UntaggedMatrix

MIN_SIDE = 16
"""Pixels; smaller is not a picture of a performance."""
WIDEST = 10
"""Longer side over shorter: scaled to a short side of 256, a ribbon of 16x16384 would take 200 MB a frame."""


@dataclass(frozen=True)
class Probe:
    """What a file is, as far as it can be known without decoding more than one frame."""

    container: str
    codec: str
    pix_fmt: str
    width: int
    """As displayed, with square pixels: stretched by the sample aspect ratio, then turned."""
    height: int
    frame_width: int
    """Pixels of a frame as readers deliver it: turned, but not stretched."""
    frame_height: int
    sample_aspect_ratio: str
    """Width to height of a stored pixel, before it is turned: `16:15`."""
    rotation: int
    """Degrees counter-clockwise by which a decoded frame is turned to be displayed: 0, 90, 180 or 270."""
    mirrored: bool
    """The frame is also flipped left to right, before it is turned."""
    colour: Colour
    fps: float
    n_expected: int
    """Display frames that the packets announce."""
    times: np.ndarray
    """float64 (n_expected,), seconds of each display frame; the first is 0."""
    first_pts: int | None
    """Presentation time of the first display frame, in the stream's own unit; None where packets have none."""
    missing: int
    """Frames that the file announces and lacks, more of them than are usually accepted."""
    has_edit_list: bool
    vfr: bool
    interlaced: bool
    headless: bool
    """The stream starts between key frames, as after a lazy cut."""
    n_video_streams: int
    size: int
    """Bytes of the file, with `mtime_ns` its identity while it is read."""
    mtime_ns: int
    warnings: tuple[str, ...] = ()
    entries: tuple[int, ...] = ()
    """Frames at which decoding may begin instead of at the first (`seek.py`)."""
    decord_refusal: str = ""
    """Why decord may not read it; empty where both backends give equal frames."""

    def to_message(self) -> tuple[dict[str, Any], bytes]:
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "times"}
        return values | {"colour": asdict(self.colour)}, self.times.astype("<f8").tobytes()

    @classmethod
    def from_message(cls, values: dict[str, Any], payload: bytes) -> Probe:
        values = {
            **values,
            "warnings": tuple(values["warnings"]),
            "entries": tuple(values["entries"]),
            "colour": Colour(**values["colour"]),
        }
        return cls(times=np.frombuffer(payload, "<f8").astype(np.float64), **values)


def probe(
    source: VideoFile, max_pixels: int, untagged_matrix: UntaggedMatrix = "bt601", accept_damaged: bool = False
) -> tuple[Probe, PacketTable | None]:
    """Demux every packet and decode one frame; what was found, and the packets where jumps among them are safe.

    Raises:
        DecodeFailure: as `open_video`, and `too_small`, `bad_shape`, `no_frames`, `frame_count_mismatch`,
            `corrupt`, `undecodable`.
    """
    packets = read_packets(source, max_pixels)
    warnings = []
    missing = 0

    def refuse(reason: str, detail: str) -> None:
        if not accept_damaged:
            raise DecodeFailure(reason, "probe", f"{detail}; --accept-damaged takes what there is")
        warnings.append(f"damaged, and accepted: {detail}")

    if packets.announced > packets.slots * (1 + MISMATCH):
        missing = packets.announced - packets.slots
        refuse(
            "frame_count_mismatch",
            f"its header announces {packets.announced} frames, the file holds {packets.count}: truncated or damaged",
        )
    if packets.damaged > packets.count * MISMATCH:
        refuse("corrupt", f"{packets.damaged} of {packets.count} packets are damaged")
    if packets.empty:
        warnings.append(
            f"{packets.empty} of its {packets.slots} slots are empty: the picture before them is shown longer"
        )
    if packets.announced > packets.slots or packets.damaged:
        warnings.append(
            f"degraded: header announces {packets.announced} frames, {packets.count} packets, {packets.damaged} damaged"
        )

    times, fps, uniform = timeline(packets.stamps, packets.time_base, packets.average)
    end, seconds = float(times[-1]) + 1 / fps, packets.announced_seconds
    if seconds and end < seconds * (1 - MISMATCH) - 2 / fps:
        missing = max(missing, round((seconds - end) * fps))
        refuse("frame_count_mismatch", f"announced as {seconds:.2f} s long, its frames end at {end:.2f} s: truncated")
    frame, codec, (aspect, odd_aspect) = _first_frame(source, max_pixels)
    stamps = packets.visible(frame.pts)
    if lost := len(packets.stamps) - len(stamps):
        times, fps, uniform = timeline(stamps, packets.time_base, packets.average)
        warnings.append(f"its first {lost} frames refer to frames before its first key frame, and cannot be shown")
    elif packets.headless:
        warnings.append("starts between key frames")
    if uniform:
        warnings.append("timestamps are missing or repeat: frames taken as equally spaced")
    if odd_aspect:
        warnings.append(odd_aspect)
    colour, odd_colour = Colour.of(frame, untagged_matrix)
    if odd_colour:
        warnings.append(odd_colour)
    turned, mirrored, odd = orientation(frame)
    if odd:
        warnings.append("its display matrix does not turn by a right angle: frames are left as they are")
    width, height = frame.width, frame.height
    shape = displayed_size(width, height, aspect)
    refuse_shape(width, height, shape, max_pixels)
    interlaced = bool(frame.interlaced_frame)
    if interlaced:
        warnings.append("interlaced: frames are used woven, motion will show combs")
    pix_fmt = frame.format.name
    sideways = turned in (90, 270)
    gaps = np.diff(times)
    vfr = bool(len(gaps)) and bool(gaps.max() > 1.5 * np.median(gaps) or gaps.min() < 0.5 * np.median(gaps))
    # Frames are found by their times, and a jump skips what a warning is about.
    unsafe = uniform or packets.damaged or packets.headless or interlaced
    table = None if unsafe else packets.log.table(len(times))
    found = Probe(
        container=packets.container,
        codec=codec,
        pix_fmt=pix_fmt,
        width=shape[1] if sideways else shape[0],
        height=shape[0] if sideways else shape[1],
        frame_width=height if sideways else width,
        frame_height=width if sideways else height,
        sample_aspect_ratio=f"{aspect.numerator}:{aspect.denominator}",
        rotation=turned,
        mirrored=mirrored,
        colour=colour,
        fps=fps,
        n_expected=len(times),
        times=times,
        missing=missing,
        first_pts=min((s for s in stamps if s is not None), default=None),
        has_edit_list=packets.discarded > 0,
        vfr=vfr,
        interlaced=interlaced,
        headless=packets.headless,
        n_video_streams=packets.n_video_streams,
        size=source.before.st_size,
        mtime_ns=source.before.st_mtime_ns,
        warnings=tuple(warnings),
        entries=table.entries if table else (),
    )
    return found, table


def refuse_shape(width: int, height: int, shape: tuple[int, int], max_pixels: int) -> None:
    """Raises DecodeFailure for frames of a size, or displayed in a `shape`, that no video of a performance has."""
    if min(width, height) < MIN_SIDE:
        raise DecodeFailure("too_small", "probe", f"frames of {width}x{height}, the least is {MIN_SIDE} a side")
    if width * height > max_pixels:
        raise too_large(width, height, max_pixels)
    if max(shape) > WIDEST * min(shape):
        detail = f"{shape[0]}x{shape[1]} is more than {WIDEST} times as long as wide: no video of a performance"
        raise DecodeFailure("bad_shape", "probe", detail)


def _first_frame(source: VideoFile, max_pixels: int) -> tuple[av.VideoFrame, str, tuple[Fraction, str]]:
    """The first frame that can be decoded at all, the codec's name, and the `sample_aspect`."""
    problem = "no frame came out"
    with open_video(source, max_pixels) as (container, stream):
        # `av1`, where the context's own name is the decoder's: libdav1d.
        codec = stream.codec_context.codec.canonical_name
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except (MemoryError, av.error.FFmpegError, ValueError) as e:
                if isinstance(e, MemoryError):
                    raise DecodeFailure("out_of_memory", "probe", "no memory to decode one frame") from e
                if "max pixel count" in str(e) or _names_too_large():
                    raise DecodeFailure("too_large", "probe", f"its frames are larger than {max_pixels} pixels") from e
                problem = str(e)
                continue
            for frame in decoded:
                if isinstance(frame, av.VideoFrame):
                    return frame, codec, sample_aspect(stream)
    raise DecodeFailure("undecodable", "probe", f"not one frame could be decoded ({codec}): {problem}")


def _names_too_large() -> bool:
    last = av.logging.get_last_error()[1]
    return last is not None and "max pixel count" in last[2]
