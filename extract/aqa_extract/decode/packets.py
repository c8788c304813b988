"""What a video's packets say, without decoding: which pictures there are, and when each is shown."""

from __future__ import annotations

from dataclasses import dataclass, field

import av
import av.container
import numpy as np
from av.stream import Disposition

from aqa_extract.decode.failure import DecodeFailure
from aqa_extract.decode.seek import PacketLog
from aqa_extract.decode.source import MATROSKA, MP4, VideoFile, open_video, packets_of

MISMATCH = 0.01
"""Fraction of frames that may be missing or damaged before a video is refused rather than `degraded`."""


@dataclass
class Packets:
    """All packets of the default video stream."""

    container: str
    n_video_streams: int
    average: float
    """Frames per second as declared, 0 if not."""
    time_base: float
    """Seconds."""
    announced: int
    """Frames according to the header, 0 if it does not say."""
    announced_seconds: float
    log: PacketLog
    stamps: list[int | None] = field(default_factory=list)
    """Of each packet that is shown, in decode order: its presentation time, else its decoding time."""
    discarded: int = 0
    """Hidden by the edit list."""
    hidden: int = 0
    """Hidden by it so far that FFmpeg leaves them out."""
    damaged: int = 0
    empty: int = 0
    """Slots without a picture."""
    headless: bool = False
    """The first packet is not a key frame."""
    key: int | None = None
    """Presentation time of the first key frame."""

    @property
    def count(self) -> int:
        """Packets that hold something."""
        return len(self.stamps) + self.discarded + self.hidden

    @property
    def slots(self) -> int:
        """Frames that the header would announce for these packets."""
        return self.count + self.empty

    def visible(self, first: int | None) -> list[int | None]:
        """The `stamps` that can be shown, where `first` is the presentation time of the first frame decoded."""
        shown = shown_from(first, self.key)
        # Matroska has no times before 0, so FFmpeg leaves those of leading pictures out.
        untimed = self.container != MATROSKA or self.key is None
        return [s for s in self.stamps if (untimed if s is None else shown is None or s >= shown)]


def read_packets(source: VideoFile, max_pixels: int) -> Packets:
    """Demux the whole file. Raises DecodeFailure: as `open_video`, and `no_frames`."""
    with open_video(source, max_pixels) as (container, stream):
        found = Packets(
            container=container.format.name,
            n_video_streams=sum(not s.disposition & Disposition.attached_pic for s in container.streams.video),
            average=float(stream.average_rate or stream.guessed_rate or 0),
            time_base=float(stream.time_base or 0),
            announced=stream.frames,
            announced_seconds=_announced_seconds(container, stream),
            log=PacketLog(container, stream),
        )
        keyed = False
        for packet in packets_of(container.demux(stream)):
            if packet is None:
                found.damaged += 1
                continue
            if not packet.size:
                found.empty += 1
                continue
            if packet.is_keyframe and not keyed:
                keyed, found.key = True, packet.pts
            if found.count == 0:
                found.headless = not packet.is_keyframe
            found.log.add(packet)
            found.damaged += packet.is_corrupt
            if packet.is_discard:
                found.discarded += 1
            else:
                found.stamps.append(packet.pts if packet.pts is not None else packet.dts)
    if not found.stamps:
        what = "edit list shows none of its frames" if found.discarded else "video stream holds no frames"
        raise DecodeFailure("no_frames", "probe", f"its {what}")
    if found.container == "avi":
        _count_slots(found)
    if found.announced > found.count * (1 + MISMATCH) and found.container == MP4:
        # Edit lists may leave whole groups of pictures out; without it every sample must be there.
        with open_video(source, max_pixels, ignore_editlist="1") as (container, stream):
            samples = sum(packet is not None and packet.size > 0 for packet in packets_of(container.demux(stream)))
        found.hidden = max(0, samples - found.count)
    return found


def _count_slots(found: Packets) -> None:
    """FFmpeg leaves an AVI's empty chunks out, but counts them: a timestamp is the number of its slot."""
    slots = sorted(stamp for stamp in found.stamps if stamp is not None)
    if slots:
        found.empty += max(found.count, slots[-1] + 1) - found.count
        # Those after the last picture are seen nowhere: as many as between two others are taken for granted.
        found.announced -= min(found.announced, int(max(np.diff(slots), default=1)) - 1)


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


def _announced_seconds(container: av.container.InputContainer, stream: av.VideoStream) -> float:
    """The length that a container without a frame count writes down, 0 where it is not the video's own."""
    tag = stream.metadata.get("DURATION", "")
    if tag and container.format.name == MATROSKA:
        try:
            hours, minutes, seconds = tag.split(":")
            length = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except ValueError:
            return 0.0
        first = float((stream.start_time or 0) * (stream.time_base or 0))
        return length - max(first, 0.0)
    return 0.0
