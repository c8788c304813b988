"""The two backends, under one frame semantics.

Frame i is the i-th picture of the container's default video stream as displayed: after the edit list, in display
order, turned by its display matrix, as 8-bit RGB (`colour.py`). PyAV is the reference; decord is used only where
`Probe.decord_refusal` is empty. Both run from the first frame to the last. PyAV passes over frames that nobody wants
where it can be proven that those after them are the same (`seek.py`); decord never seeks, because that is where it
differs from itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

import av
import av.error
import numpy as np

from aqa_extract.decode.colour import Converter
from aqa_extract.decode.failure import DecodeFailure
from aqa_extract.decode.probe import MISMATCH, Probe
from aqa_extract.decode.seek import PacketTable, next_entry, skipped
from aqa_extract.decode.shape import turn
from aqa_extract.decode.source import Source, open_video

if TYPE_CHECKING:
    from aqa_shared.records import UntaggedMatrix


@dataclass
class Tally:
    """What a reader found out by decoding."""

    backend: str
    version: str
    decoded: int = 0
    """Display frames that came out or were passed over."""
    skipped: int = 0
    """Those that were passed over."""
    corrupt: int = 0
    """Packets or frames that the decoder complained about."""
    complete: bool = False
    """The stream was read to its end, so `decoded` is its true length."""
    stamps: list[int | None] = field(default_factory=list)
    time_base: float = 0.0


class Reader(Protocol):
    """What both backends offer: `read` yields each wanted frame in order and fills `tally`."""

    tally: Tally

    def read(self, wanted: Sequence[int], end: int | None) -> Iterator[np.ndarray]: ...


class AvReader:
    """Sequential decoding with PyAV."""

    def __init__(
        self,
        source: Source,
        probe: Probe,
        max_pixels: int,
        untagged_matrix: UntaggedMatrix,
        table: PacketTable | None = None,
    ) -> None:
        self.source, self.probe, self.max_pixels = source, probe, max_pixels
        self.table = table
        self.untagged_matrix: UntaggedMatrix = untagged_matrix
        self.tally = Tally("av", av.__version__)

    def read(self, wanted: Sequence[int], end: int | None) -> Iterator[np.ndarray]:
        """Yield frames `wanted` (sorted, may repeat); stop after frame `end - 1`, or read to the end if None.

        Reading on after the last wanted frame costs time, but only the end tells whether the header's frame
        count, on which the plan rests, was true. Where a part ends earlier its frames are all there is to check.
        Frames before a wanted one are passed over where the packet table has an entry between; SeekMistake tells
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

        Packets that fail, or that libavcodec logs an error about, are counted.
        """
        logged = av.logging.get_last_error()[0]
        packets: Iterator[av.Packet] = container.demux(stream)
        first: int | None = None
        """Where the jump leads; what is shown before it may lack what it refers to, and was passed over."""
        if self.table is not None and entry is not None:
            entry, packets = self.table.jump(container, stream, entry)
            first = int(self.table.shown[entry])
            self.tally.skipped += entry - self.tally.decoded
            self.tally.decoded = entry
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.error.FFmpegError, IndexError):
                # The demuxer cannot go on: what is missing shows in the frame count.
                self.tally.corrupt += 1
                return
            failed = False
            wasted = packet.is_discard or (first is not None and packet.pts is not None and packet.pts < first)
            try:
                decoded = [frame for frame in packet.decode() if first is None or (frame.pts or first) >= first]
            except MemoryError as e:
                raise DecodeFailure("out_of_memory", "decode", "no memory for the next frame", "av") from e
            except (av.error.FFmpegError, ValueError):
                failed, decoded = True, []
            complaints = av.logging.get_last_error()[0]
            if not wasted and (
                failed or packet.is_corrupt or complaints > logged or any(f.is_corrupt for f in decoded)
            ):
                self.tally.corrupt += 1
            logged = complaints
            for frame in decoded:
                if isinstance(frame, av.VideoFrame):
                    if self.table is not None:
                        self.table.check(self.tally.decoded, frame.pts)
                    yield frame


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
        aspect = stream.codec_context.sample_aspect_ratio or Fraction(1)
        self.aspect = self.aspect or aspect
        if self.aspect != aspect:
            raise DecodeFailure(
                "resolution_change",
                "decode",
                f"its pixels change their shape from {self.aspect} to {aspect} near frame {index}, so no one shape is"
                " the true one; cut it there, or re-encode it at one size",
                "av",
            )


_API_ERRORS = (ImportError, AttributeError, TypeError)
"""Raised where decord is not called as this version of it wants: the installation's fault, whatever the file holds."""


class DecordReader:
    """Sequential reading with decord: `skip_frames` and `next`, never an index, so that it does not seek."""

    def __init__(self, source: Source, probe: Probe) -> None:
        try:
            import decord
        except Exception as e:  # ctypes, which loads its libraries, raises OSError
            raise DecodeFailure("decoder_error", "decode", f"decord cannot be loaded: {_gist(e)}", "decord") from e
        decord.logging.set_level(decord.logging.INFO)
        self.probe = probe
        self.tally = Tally("decord", decord.__version__)
        try:
            self.reader = decord.VideoReader(source.name, num_threads=1)
        except _API_ERRORS:
            raise
        except Exception as e:
            raise DecodeFailure("undecodable", "decode", f"decord: {_gist(e)}", "decord") from e
        if len(self.reader) != probe.n_expected:
            raise DecodeFailure(
                "frame_count_mismatch",
                "decode",
                f"decord counts {len(self.reader)} frames, the container {probe.n_expected}",
                "decord",
            )

    def read(self, wanted: Sequence[int], end: int | None) -> Iterator[np.ndarray]:
        """As `AvReader.read`. The last frame is fetched even if unwanted: it proves that all before it exist."""
        last = (self.probe.n_expected if end is None else end) - 1
        position = 0
        for index in sorted({*wanted, last}):
            try:
                if index > position:
                    self.reader.skip_frames(index - position)
                rgb = self.reader.next().asnumpy()
            except MemoryError as e:
                raise DecodeFailure("out_of_memory", "decode", "no memory for the next frame", "decord") from e
            except _API_ERRORS:
                raise
            except Exception as e:
                detail = f"decord at frame {index}: {_gist(e)}"
                raise DecodeFailure("undecodable", "decode", detail, "decord") from e
            if rgb.shape != (self.probe.frame_height, self.probe.frame_width, 3):
                raise DecodeFailure("resolution_change", "decode", f"frame {index} is {rgb.shape}", "decord")
            position = index + 1
            self.tally.decoded = position
            for _ in range(int(np.count_nonzero(np.asarray(wanted) == index))):
                yield rgb
        self.tally.complete = end is None


def _gist(error: Exception) -> str:
    """decord's message without its build paths and stack."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line.rsplit("] ", 1)[-1].split(".cc:", 1)[-1]


def damage(tally: Tally, expected: int) -> str:
    """The reason to refuse what was decoded ('' if there is none) when more than 1 % is damaged or missing."""
    if tally.corrupt > MISMATCH * (expected - tally.skipped):
        return "corrupt"
    if tally.complete and abs(tally.decoded - expected) > MISMATCH * expected:
        return "frame_count_mismatch"
    if not tally.complete and tally.decoded < expected:
        return "frame_count_mismatch"
    return ""
