"""Which pictures are damaged: what the decoder marks, what it cannot decode, and what it says that it conceals.

A decoder's messages are not damage by themselves: most are about what stands beside the pictures (an SEI, an APP0
marker, reference marking that names a picture which was cut off). They are kept as warnings. On 840 randomly damaged
files in 14 codecs and containers (as in tests/extract/test_decode_damage.py) every message that came with wrong pixels
came with a mark or a failure too, except those of MJPEG, VP8 and HEVC that `CONCEALED` names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import av

CONCEALED = re.compile(
    r"conceal|error while decoding|error at mb|damaged|unavailable for requested|invalid nal unit|splitting the input"
    r"|missing picture|frame num change|reference picture missing|missing reference|co located pocs unavailable"
    r"|could not find ref|constructing the frame rps|overread|error [xy]=|bad vlc|vlc tree|huffman|invalid partitions"
    r"|error count|header size larger|no jpeg data|outside the valid range|duplicate poc|[vsp]ps \d+ does not exist"
    r"|invalid track number|containing master element|invalid length",
    re.IGNORECASE,
)
"""What libavcodec says when it shows something else than what was coded."""

MOST_MESSAGES = 5
"""A video keeps this many different ones."""


class DamageLog:
    """Counts the pictures that are not as they were coded, and keeps what else the decoder said."""

    def __init__(self, first_pts: int | None) -> None:
        self.first_pts = first_pts
        """Nothing before this presentation time is shown, so nothing is wrong with it."""
        self.pictures: set[int | str] = set()
        """Presentation times; a number of its own for a picture without."""
        self.messages: Counter[str] = Counter()

    def look(
        self,
        packet: av.Packet | None,
        failed: bool,
        frames: Sequence[av.VideoFrame],
        logged: Iterable[tuple[int, str, str]],
    ) -> None:
        """After `packet` (None: the end of the stream) was decoded to `frames`, or `failed`."""
        concealed = any(CONCEALED.search(message) for _, _, message in logged)
        self.pictures |= {self._name(frame.pts) for frame in frames if frame.is_corrupt}
        if packet is None:
            if failed or concealed:
                self.pictures.add(self._name(None))
        elif not self._is_shown(packet):
            # What it refers to may be missing, but it must be a picture.
            if failed and not packet.is_discard:
                self.pictures.add(self._name(packet.pts))
        else:
            if failed or concealed or packet.is_corrupt:
                self.pictures.add(self._name(packet.pts))
            else:
                self.messages.update(_without_addresses(message) for _, _, message in logged)

    def cut_short(self) -> None:
        """The demuxer could not go on; what is missing shows in the frame count."""
        self.pictures.add("the end")

    def _is_shown(self, packet: av.Packet) -> bool:
        if packet.is_discard:
            return False
        return self.first_pts is None or packet.pts is None or packet.pts >= self.first_pts

    def _name(self, pts: int | None) -> int | str:
        return pts if pts is not None else f"unknown {len(self.pictures)}"

    def warnings(self) -> list[str]:
        """The messages that are not damage."""
        return [f"decoder message ({n}x): {text}" for text, n in sorted(self.messages.items())[:MOST_MESSAGES]]


def _without_addresses(message: str) -> str:
    """A message that is the same in every run, and on one line."""
    return re.sub(r"0x[0-9a-f]{6,}", "0x…", " ".join(message.split()), flags=re.IGNORECASE)
