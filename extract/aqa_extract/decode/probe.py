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
from av.stream import Disposition

from aqa_extract.decode.colour import Colour
from aqa_extract.decode.failure import DecodeFailure
from aqa_extract.decode.seek import PacketLog, PacketTable
from aqa_extract.decode.shape import displayed_size, orientation, sample_aspect
from aqa_extract.decode.source import Source, open_video, packets_of, too_large

if TYPE_CHECKING:
    from aqa_shared.records import UntaggedMatrix

MIN_SIDE = 16
"""Pixels; smaller is no picture of a performance."""
MATROSKA = "matroska,webm"
MISMATCH = 0.01
"""Fraction of frames that may be missing or damaged before a video is refused rather than `degraded`."""


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
    source: Source, max_pixels: int, untagged_matrix: UntaggedMatrix = "bt601", accept_damaged: bool = False
) -> tuple[Probe, PacketTable | None]:
    """Demux every packet and decode one frame; what was found, and the packets where jumps among them are safe.

    Raises:
        DecodeFailure: as `open_video`, and `too_small`, `no_frames`, `frame_count_mismatch`, `corrupt`,
            `undecodable`.
    """
    with open_video(source, max_pixels) as (container, stream):
        header = stream.frames
        format_name = container.format.name
        average = float(stream.average_rate or stream.guessed_rate or 0)
        n_video = sum(not s.disposition & Disposition.attached_pic for s in container.streams.video)
        announced = _announced_seconds(container, stream)
        stamps: list[int | None] = []
        discarded = damaged = empty = unseen = 0
        headless: bool | None = None
        log = PacketLog(container, stream)
        keyed = False
        key: int | None = None
        for packet in packets_of(container.demux(stream)):
            if packet is None:
                damaged += 1
                continue
            if not packet.size:
                empty += 1
                continue
            if packet.is_keyframe and not keyed:
                keyed, key = True, packet.pts
            log.add(packet)
            damaged += packet.is_corrupt
            headless = not packet.is_keyframe if headless is None else headless
            if packet.is_discard:
                discarded += 1
            else:
                stamps.append(packet.pts if packet.pts is not None else packet.dts)
        packets = len(stamps) + discarded
        if format_name == "avi":
            # FFmpeg leaves empty chunks out, but counts them: a timestamp is the number of its slot.
            slots = sorted(stamp for stamp in stamps if stamp is not None)
            empty += max(packets, slots[-1] + 1) - packets if slots else 0
            # Those after the last picture are seen nowhere: as many as between two others are taken for granted.
            unseen = int(max(np.diff(slots), default=1)) - 1
        time_base = float(stream.time_base or 0)
    if packets and not stamps:
        raise DecodeFailure("no_frames", "probe", "its edit list shows none of its frames")
    if not packets:
        raise DecodeFailure("no_frames", "probe", "its video stream holds no frames")
    warnings = []
    if header > packets * (1 + MISMATCH) and format_name.startswith("mov"):
        # Edit lists may leave whole groups of pictures out; without it every sample must be there.
        with open_video(source, max_pixels, ignore_editlist="1") as (container, stream):
            packets = max(packets, sum(p is not None for p in packets_of(container.demux(stream))))
    missing = 0

    def refuse(reason: str, detail: str) -> None:
        if not accept_damaged:
            raise DecodeFailure(reason, "probe", f"{detail}; --accept-damaged takes what there is")
        warnings.append(f"damaged, and accepted: {detail}")

    if header - unseen > (packets + empty) * (1 + MISMATCH):
        missing = header - packets - empty
        refuse(
            "frame_count_mismatch",
            f"its header announces {header} frames, the file holds {packets}: truncated or damaged",
        )
    if damaged > packets * MISMATCH:
        refuse("corrupt", f"{damaged} of {packets} packets are damaged")
    if empty:
        warnings.append(f"{empty} of its {packets + empty} slots are empty: the picture before them is shown longer")
    if header - unseen > packets + empty or damaged:
        warnings.append(f"degraded: header announces {header} frames, {packets} packets, {damaged} damaged")

    times, fps, uniform = timeline(stamps, time_base, average)
    if announced and times[-1] + 1 / fps < announced * (1 - MISMATCH) - 2 / fps:
        end = float(times[-1]) + 1 / fps
        missing = max(missing, round((announced - end) * fps))
        refuse("frame_count_mismatch", f"announced as {announced:.2f} s long, its frames end at {end:.2f} s: truncated")
    frame, codec, (aspect, odd_aspect) = _first_frame(source, max_pixels)
    shown = shown_from(frame.pts, key)
    # Matroska has no times before 0, so FFmpeg leaves those of leading pictures out.
    untimed = format_name != MATROSKA or key is None
    visible = [s for s in stamps if (untimed if s is None else shown is None or s >= shown)]
    if lost := len(stamps) - len(visible):
        stamps = visible
        times, fps, uniform = timeline(stamps, time_base, average)
        warnings.append(f"its first {lost} frames refer to frames before its first key frame, and cannot be shown")
    elif headless:
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
        warnings.append("its display matrix is no right angle: frames are left as they are")
    width, height = frame.width, frame.height
    if min(width, height) < MIN_SIDE:
        raise DecodeFailure("too_small", "probe", f"frames of {width}x{height}, the least is {MIN_SIDE} a side")
    if width * height > max_pixels:
        raise too_large(width, height, max_pixels)
    interlaced = bool(frame.interlaced_frame)
    if interlaced:
        warnings.append("interlaced: frames are used woven, motion will show combs")
    pix_fmt = frame.format.name
    shape = displayed_size(width, height, aspect)
    sideways = turned in (90, 270)
    gaps = np.diff(times)
    vfr = bool(len(gaps)) and bool(gaps.max() > 1.5 * np.median(gaps) or gaps.min() < 0.5 * np.median(gaps))
    # Frames are found by their times, and a jump passes over what a warning is about.
    table = None if uniform or damaged or headless or interlaced else log.table(len(times))
    found = Probe(
        container=format_name,
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
        has_edit_list=discarded > 0,
        vfr=vfr,
        interlaced=interlaced,
        headless=bool(headless),
        n_video_streams=n_video,
        size=source.before.st_size,
        mtime_ns=source.before.st_mtime_ns,
        warnings=tuple(warnings),
        entries=table.entries if table else (),
    )
    return found, table


def timeline(stamps: list[int | None], time_base: float, average: float) -> tuple[np.ndarray, float, bool]:
    """Seconds of every display frame from 0, frames per second, and whether they had to be invented."""
    known = np.array(sorted(s for s in stamps if s is not None), dtype=np.float64)
    usable = len(known) == len(stamps) and time_base > 0 and bool(np.all(np.diff(known) > 0))
    if usable and len(known) > 1:
        times = (known - known[0]) * time_base
        measured = (len(times) - 1) / times[-1]
        # The declared rate is exact (30000/1001); timestamps in milliseconds are not.
        fps = average if average and abs(measured - average) < 0.005 * average else measured
        return times, fps, False
    fps = average or 25.0
    if len(known) > 1 and time_base > 0 and known[-1] > known[0]:
        # For a variable rate FFmpeg announces one frame a tick.
        measured = (len(known) - 1) / ((known[-1] - known[0]) * time_base)
        fps = fps if 0.5 * measured < fps < 2 * measured else measured
    return np.arange(len(stamps)) / fps, fps, len(stamps) > 1


def shown_from(first: int | None, key: int | None) -> int | None:
    """The presentation time before which packets are announced that cannot be shown; None where nobody knows.

    They come before the first key frame, or lead it (open groups): what they refer to was cut off. `first` is the
    first frame that a decoder gives, `key` the first key frame. A later `first` means that the key frame is damaged.
    """
    if first is None or key is None:
        return first
    return min(first, key)


def _first_frame(source: Source, max_pixels: int) -> tuple[av.VideoFrame, str, tuple[Fraction, str]]:
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


def _announced_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """The length that a container without a frame count writes down, 0 where it is not the video's own."""
    tag = stream.metadata.get("DURATION", "")
    if tag and container.format.name.startswith("matroska"):
        try:
            hours, minutes, seconds = tag.split(":")
            length = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except ValueError:
            return 0.0
        first = float((stream.start_time or 0) * (stream.time_base or 0))
        return length - max(first, 0.0)
    return 0.0
