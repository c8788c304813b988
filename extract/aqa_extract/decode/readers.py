"""What a reader is, and PyAV's.

Frame i is the i-th picture of the container's default video stream as displayed: after the edit list, in display
order, turned by its display matrix, as 8-bit RGB (`colour.py`). PyAV is the reference; decord (`decord_backend.py`) is
used only where `Probe.decord_refusal` is empty. Both run from the first frame to the last. PyAV skips frames that
nobody wants where it can be proven that those after them are the same (`seek.py`); decord never seeks, because that is
where it differs from itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import av
import av.error
import av.logging
import numpy as np

from aqa_extract.decode.colour import Converter
from aqa_extract.decode.damage import DamageLog
from aqa_extract.decode.failure import DecodeFailure
from aqa_extract.decode.packets import MISMATCH
from aqa_extract.decode.probe import Probe
from aqa_extract.decode.seek import PacketTable, next_entry, skipped
from aqa_extract.decode.shape import pixel_aspect, turn
from aqa_extract.decode.source import VideoFile, open_video, packets_of

if TYPE_CHECKING:
    from aqa_shared.records import UntaggedMatrix


@dataclass
class Tally:
    """What a reader found out by decoding."""

    backend: str
    version: str
    decoded: int = 0
    """Display frames that came out or were skipped."""
    skipped: int = 0
    """Those that were skipped."""
    damage: DamageLog = field(default_factory=lambda: DamageLog(None))
    complete: bool = False
    """The stream was read to its end, so `decoded` is its true length."""
    stamps: list[int | None] = field(default_factory=list)
    time_base: float = 0.0

    @property
    def corrupt(self) -> int:
        """Pictures that are not as they were coded."""
        return len(self.damage.pictures)

    @property
    def named(self) -> str:
        """The first damaged pictures that have a name of their own: those of a folder."""
        if self.backend != "pillow" or not self.corrupt:
            return ""
        names = sorted(map(str, self.damage.pictures))
        return f": {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"


class Reader(Protocol):
    """What both backends offer: `read` yields each wanted frame in order and fills `tally`."""

    tally: Tally

    def read(self, wanted: Sequence[int], end: int | None) -> Iterator[np.ndarray]: ...


class AvReader:
    """Sequential decoding with PyAV."""

    def __init__(
        self,
        source: VideoFile,
        probe: Probe,
        max_pixels: int,
        untagged_matrix: UntaggedMatrix,
        table: PacketTable | None = None,
    ) -> None:
        self.source, self.probe, self.max_pixels = source, probe, max_pixels
        self.table = table
        self.untagged_matrix: UntaggedMatrix = untagged_matrix
        self.tally = Tally("av", av.__version__, damage=DamageLog(probe.first_pts))

    def read(self, wanted: Sequence[int], end: int | None) -> Iterator[np.ndarray]:
        """Yield frames `wanted` (sorted, may repeat); stop after frame `end - 1`, or read to the end if None.

        Reading on after the last wanted frame costs time, but only the end tells whether the header's frame
        count, on which the plan rests, was true. Where a part ends earlier its frames are all there is to check.
        Frames before a wanted one are skipped where the packet table has an entry between; SeekMistake tells
        that it lied, and that nothing that was yielded counts.
        """
        tally = self.tally
        to_rgb = Converter(self.untagged_matrix)
        position = 0
        if not skipped(self.probe.entries, wanted):
            self.table = None
        with open_video(self.source, self.max_pixels) as (container, stream):
            tally.time_base = float(stream.time_base or 0)
            same = _Unchanging()
            entry = self._entry(wanted, position)
            while True:
                for frame in self._frames(container, stream, entry):
                    same.check(frame, stream, tally.decoded)
                    tally.stamps.append(frame.pts)
                    if position < len(wanted) and wanted[position] == tally.decoded:
                        rgb = turn(to_rgb(frame), self.probe.rotation, self.probe.mirrored)
                        while position < len(wanted) and wanted[position] == tally.decoded:
                            yield rgb
                            position += 1
                    tally.decoded += 1
                    if end is not None and tally.decoded >= end:
                        return
                    if (entry := self._entry(wanted, position)) is not None:
                        break
                else:
                    break
        if self.table is not None:
            self.table.check(tally.decoded, None)
        tally.complete = True

    def _entry(self, wanted: Sequence[int], position: int) -> int | None:
        """The frame to jump to before the next wanted one."""
        if self.table is None or position == len(wanted):
            return None
        return next_entry(self.probe.entries, self.tally.decoded, wanted[position])

    def _frames(
        self, container: av.container.InputContainer, stream: av.VideoStream, entry: int | None
    ) -> Iterator[av.VideoFrame]:
        """Every frame that comes out, from frame `entry` on where one is given; with a table each must be the one due.

        What is wrong with them is counted.
        """
        tally = self.tally
        packets: Iterator[av.Packet] = container.demux(stream)
        first: int | None = None
        """Where the jump leads; what is shown before it may lack what it refers to, and was skipped."""
        if self.table is not None and entry is not None:
            entry, packets = self.table.jump(container, stream, entry)
            first = tally.damage.first_pts = int(self.table.shown[entry])
            tally.skipped += entry - tally.decoded
            tally.decoded = entry
        for frame in self._decoded(stream, packets_of(packets)):
            if first is not None and frame.pts is not None and frame.pts < first:
                continue
            if self.table is not None:
                self.table.check(tally.decoded, frame.pts)
            yield frame

    def _decoded(self, stream: av.VideoStream, packets: Iterable[av.Packet | None]) -> Iterator[av.VideoFrame]:
        """Every frame of these packets, and those that the decoder keeps back to the end."""
        damage = self.tally.damage
        with av.logging.Capture(local=False) as logged:
            for packet in packets:
                if packet is None:
                    damage.cut_short()
                elif packet.size:
                    frames, failed = _frames_of(stream, packet)
                    damage.look(packet, failed, frames, logged)
                    logged.clear()
                    yield from frames
            frames, failed = _frames_of(stream, None)
            damage.look(None, failed, frames, logged)
            yield from frames


def _frames_of(stream: av.VideoStream, packet: av.Packet | None) -> tuple[list[av.VideoFrame], bool]:
    """The frames that come out after `packet`, or at the end (None), and whether decoding failed."""
    try:
        return [frame for frame in stream.decode(packet) if isinstance(frame, av.VideoFrame)], False
    except MemoryError as e:
        raise DecodeFailure("out_of_memory", "decode", "no memory for the next frame", "av") from e
    except (av.error.FFmpegError, ValueError):
        return [], True


class _Unchanging:
    """Refuses a video whose pictures change their shape."""

    def __init__(self) -> None:
        self.size: tuple[int, int] | None = None
        self.aspect: Fraction | None = None

    def check(self, frame: av.VideoFrame, stream: av.VideoStream, index: int) -> None:
        """Raises DecodeFailure where frame `index` is not shaped as those before it."""
        self.size = self.size or (frame.width, frame.height)
        if self.size != (frame.width, frame.height):
            raise DecodeFailure(
                "resolution_change",
                "decode",
                f"frame {index} is {frame.width}x{frame.height}, the ones before are {self.size[0]}x{self.size[1]};"
                " re-encode the video at one size",
                "av",
            )
        # The context's, because PyAV does not show a frame's own: a change is seen some frames early.
        aspect = pixel_aspect(stream.codec_context) or Fraction(1)
        self.aspect = self.aspect or aspect
        if self.aspect != aspect:
            raise DecodeFailure(
                "resolution_change",
                "decode",
                f"its pixels change their shape from {self.aspect} to {aspect} near frame {index}, so no one shape is"
                " the true one; cut it there, or re-encode it at one size",
                "av",
            )


def too_damaged(tally: Tally, expected: int) -> str:
    """The reason to refuse what was decoded ('' if there is none) when more than 1 % is damaged or missing."""
    if tally.corrupt > MISMATCH * (expected - tally.skipped):
        return "corrupt"
    if tally.complete and abs(tally.decoded - expected) > MISMATCH * expected:
        return "frame_count_mismatch"
    if not tally.complete and tally.decoded < expected:
        return "frame_count_mismatch"
    return ""
