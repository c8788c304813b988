"""Where decoding may begin other than at the first frame, and the proof that it began there.

Seeking is where decoders differ from themselves, so nothing about it is believed. The probe, which demuxes every
packet anyway, notes where decoding may begin: at *entries*, pictures after which nothing refers to what came before.
A reader that jumps compares every packet that follows with the ones the probe saw, and every frame's time with the time
that is due. The first difference ends it, and the video is read from its first frame.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import av
import av.container
import av.error
import numpy as np

from aqa_extract.decode.source import MATROSKA, MP4

MIN_SKIP = 64
"""Frames; a jump that saves fewer is not worth its seek."""

_INTRA_ONLY = ("mjpeg", "prores", "dnxhd", "png")
"""Codecs of which every picture stands alone."""


class SeekMistake(Exception):
    """The packets or frames after a jump are not the ones that the probe announced."""


def next_entry(entries: Sequence[int], now: int, wanted: int) -> int | None:
    """The entry to jump to for frame `wanted` when frame `now` would be read next; None to read on.

    `entries` are rising display indices.
    """
    at = bisect_right(entries, wanted) - 1
    return entries[at] if at >= 0 and entries[at] - now >= MIN_SKIP else None


def skipped(entries: Sequence[int], wanted: Sequence[int]) -> int:
    """How many frames need not be decoded to reach all of `wanted` (rising)."""
    now = total = 0
    for frame in wanted:
        entry = next_entry(entries, now, frame)
        total += entry - now if entry is not None else 0
        now = max(now, frame + 1)
    return total


@dataclass(frozen=True)
class PacketTable:
    """The packets of a video in decode order, and its entries. Times are int64 in the stream's time base."""

    pts: np.ndarray
    sizes: np.ndarray
    """Bytes."""
    shown: np.ndarray
    """`pts` in display order: the time of frame i."""
    entry_packets: np.ndarray
    """Rising packet numbers at which decoding may begin."""

    @property
    def entries(self) -> tuple[int, ...]:
        """Display index of every entry."""
        return tuple(np.searchsorted(self.shown, self.pts[self.entry_packets]).tolist())

    def check(self, index: int, pts: int | None) -> None:
        """Raises SeekMistake unless frame `index` is the one shown at `pts`; None is the end."""
        due = int(self.shown[index]) if index < len(self.shown) else None
        if pts != due:
            raise SeekMistake(f"frame {index} is due at {due}, came at {pts}")

    def jump(
        self, container: av.container.InputContainer, stream: av.VideoStream, entry: int
    ) -> tuple[int, Iterator[av.Packet]]:
        """Jump to the entry with display index `entry`: the entry that was reached, and the packets from there.

        It is a slightly earlier one where the container's index says so. Raises SeekMistake where it is another, and
        later, at the first packet that is not the one that belongs there; what the demuxer raises.
        """
        try:
            # MP4's index is by decoding time, which is never later: the same entry is the last one up to then.
            container.seek(int(self.shown[entry]), stream=stream)
            packets = container.demux(stream)
            first = next(packets)
        except (av.error.FFmpegError, StopIteration) as e:
            raise SeekMistake(f"no way to frame {entry}: {e}") from e
        number = int(np.argmax(self.pts == first.pts))
        reached = int(np.searchsorted(self.shown, self.pts[number]))
        # Much earlier would be another jump away, and so for ever.
        if number not in self.entry_packets or not entry - MIN_SKIP < reached <= entry:
            raise SeekMistake(f"packet {number} came for frame {entry}")
        return reached, self._same(itertools.chain((first,), packets), number)

    def _same(self, packets: Iterable[av.Packet], number: int) -> Iterator[av.Packet]:
        for packet in packets:
            if packet.size:
                if number >= len(self.pts) or (packet.pts, packet.size) != (self.pts[number], self.sizes[number]):
                    raise SeekMistake(f"another packet came instead of number {number}")
                number += 1
            yield packet
        if number < len(self.pts):
            raise SeekMistake(f"the file ends after packet {number} of {len(self.pts)}")


class PacketLog:
    """Fills a `PacketTable` while the probe demuxes."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        codec = stream.codec_context.codec.canonical_name
        self._judge: Callable[[av.Packet], bool] | None = None
        if container.format.name in (MP4, MATROSKA):  # those that have an index
            self._judge = _judge(codec, stream.codec_context.extradata or b"")
        self._pts: list[int] = []
        self._sizes: list[int] = []
        self._entries: list[int] = []

    def add(self, packet: av.Packet) -> None:
        """Note the next packet that holds something."""
        if self._judge is None:
            return
        unusual = packet.is_discard or packet.is_corrupt or packet.has_sidedata("new_extradata")
        try:
            if unusual or packet.pts is None:
                raise _Unsound
            if self._judge(packet) and packet.is_keyframe:
                self._entries.append(len(self._pts))
        except (_Unsound, IndexError):
            self._judge = None
            return
        self._pts.append(packet.pts)
        self._sizes.append(packet.size)

    def table(self, frames: int) -> PacketTable | None:
        """None where it cannot be proven that a jump shows what reading from the first of `frames` shows."""
        if self._judge is None or not self._entries or self._entries[0] != 0 or len(self._pts) != frames:
            return None
        pts, sizes = np.array(self._pts, np.int64), np.array(self._sizes, np.int64)
        shown = np.sort(pts)
        # Pictures before the first one's time refer to what the file lacks: they may be missing, and numbers shift.
        if shown[0] != pts[0] or np.any(np.diff(shown) <= 0):
            return None
        before = np.maximum.accumulate(np.concatenate((pts[:1] - 1, pts)))
        # Nothing decoded earlier is shown later. What is decoded later and shown earlier is dropped by its time.
        entries = [k for k in self._entries if before[k] < pts[k]]
        return PacketTable(pts, sizes, shown, np.array(entries, np.int64))


class _Unsound(Exception):
    """A stream in which nothing can be proven."""


def _judge(codec: str, extradata: bytes) -> Callable[[av.Packet], bool] | None:
    """For a codec, the test whether a packet depends on nothing before it; None where there is none."""
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        return _NalUnits((extradata[4] & 3) + 1, lambda head: head & 31, {5}, {7, 8, 13, 15})
    if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        # With leading pictures too: what follows an IRAP picture in both orders refers to nothing before it (7.4.2.2).
        return _NalUnits((extradata[21] & 3) + 1, lambda head: head >> 1 & 63, set(range(16, 22)), {32, 33, 34})
    if codec in _INTRA_ONLY:
        return lambda packet: True
    return {"vp9": _vp9_key, "av1": _av1_key}.get(codec)


class _NalUnits:
    """H.264 and HEVC: an instantaneous refresh (`fresh`), with every parameter set that any packet has brought.

    A recovery point is none: H.264 lets what follows it depend on earlier pictures through the decoder's state.
    """

    def __init__(self, width: int, kind: Callable[[int], int], fresh: set[int], parameters: set[int]) -> None:
        self.width, self.kind, self.fresh, self.parameters = width, kind, fresh, parameters
        self.seen: set[bytes] = set()

    def __call__(self, packet: av.Packet) -> bool:
        data = memoryview(packet)
        own: set[bytes] = set()
        fresh = False
        at = 0
        while at < len(data):
            start = at + self.width
            size = int.from_bytes(data[at:start], "big")
            at = start + size
            if size == 0 or at > len(data):
                raise _Unsound
            kind = self.kind(data[start])
            fresh = fresh or kind in self.fresh
            if kind in self.parameters:
                own.add(bytes(data[start:at]))
        complete = self.seen <= own
        self.seen |= own
        return fresh and complete


def _vp9_key(packet: av.Packet) -> bool:
    """A shown key frame, which replaces every reference and probability (VP9 specification 7.2)."""
    data = memoryview(packet)
    head, superframe = data[0], data[-1] & 0xE0 == 0xC0
    if head & 0x30 == 0x30:  # profile 3 has one more bit before the fields that follow
        raise _Unsound
    existing, inter, shown = head & 8, head & 4, head & 2
    if not (existing or shown or superframe):
        raise _Unsound  # a packet without a picture: frames would be fewer than packets
    return not existing and not inter and bool(shown)


def _av1_key(packet: av.Packet) -> bool:
    """A sequence header and a shown key frame, which replaces every reference (AV1 specification 7.20)."""
    data = memoryview(packet)
    at = 0
    described = False
    while at < len(data):
        head = data[at]
        kind = head >> 3 & 15
        at += 2 if head & 4 else 1
        size = len(data) - at
        if head & 2:
            size = shift = 0
            while True:
                byte = data[at]
                at += 1
                size |= (byte & 127) << shift
                shift += 7
                if not byte & 128:
                    break
        described = described or kind == 1
        if kind in (3, 6):  # frame header, frame: show_existing_frame, frame_type (0 is key), show_frame
            return described and data[at] & 0xF0 == 0x10
        at += size
    return False
