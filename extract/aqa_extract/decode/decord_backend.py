"""decord: for which videos it is used, how it is read, and what proves, for each video, that its frames are PyAV's.

decord 0.6.0 counts frames that cannot be shown, repeats the last frame where it runs out of them, loses frames at the
start where its seek to the start goes too far, and gives others after `skip_frames`, which seeks. None of that is an
error to it. So it is read frame by frame, and three things are held against PyAV: the time of every frame, the pixels
of the first, and that the end is not a repetition.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from aqa_extract.decode.failure import DecodeFailure
from aqa_extract.decode.probe import Probe
from aqa_extract.decode.readers import AvReader, Tally
from aqa_extract.decode.source import MATROSKA, MP4, VideoFile

if TYPE_CHECKING:
    from aqa_shared.records import UntaggedMatrix

CONTAINERS = (MP4, MATROSKA)
"""Not avi: with a broken index decord gives a wrong frame and says nothing."""
CODECS = ("h264",)
MAX_BYTES = 512 << 20
"""decord decodes ahead of its reader without bound, so all its frames must fit."""
FRAGMENTS = frozenset({b"moof", b"sidx", b"styp", b"mfra"})
"""Top-level boxes of an MP4 that is not one table and its data: decord's FFmpeg loses frames between fragments."""


def refusal(p: Probe, source: VideoFile) -> str:
    """Why decord's frames might not equal PyAV's, '' where measurement found them equal (docs/decoding.md)."""
    if p.container not in CONTAINERS:
        return f"container {p.container}"
    if p.codec not in CODECS:
        return f"codec {p.codec}"
    if p.pix_fmt != "yuv420p":
        return f"pixel format {p.pix_fmt}"
    if p.rotation or p.mirrored:
        return "rotated"
    if p.colour.tone_mapped:
        return f"colours to be converted ({p.colour.tone_mapped})"
    if p.colour.assumed_matrix not in ("", "bt601"):
        return f"matrix not tagged, to be read as {p.colour.assumed_matrix}"
    if p.frame_width % 2 or p.frame_height % 2:
        return "odd frame size"
    if p.has_edit_list:
        return "edit list"
    if p.vfr:
        return "irregular timestamps"
    if p.interlaced:
        return "interlaced"
    if p.n_video_streams != 1:
        return "several video streams"
    if p.n_expected * p.frame_width * p.frame_height * 3 > MAX_BYTES:
        return f"all its frames would take more than {MAX_BYTES >> 20} MiB"
    if p.warnings:
        return p.warnings[0]
    if p.container == MP4 and (found := FRAGMENTS & top_level_boxes(source)):
        return f"fragmented MP4 ({b', '.join(sorted(found)).decode()})"
    return ""


def top_level_boxes(source: VideoFile) -> set[bytes]:
    """The types of an MP4's outermost boxes (ISO 14496-12, 4.2)."""
    found: set[bytes] = set()
    at, end = 0, source.before.st_size
    while at + 8 <= end:
        head = os.pread(source.fd, 16, at)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:], "big")
        found.add(head[4:8])
        if size < 8:  # 0: to the end of the file
            break
        at += size
    return found


_API_ERRORS = (ImportError, AttributeError, TypeError)
"""Raised where decord is not called as this version of it wants: the installation's fault, whatever the file holds."""


class DecordReader:
    """Sequential reading with decord: `next` alone, since an index and `skip_frames` seek."""

    def __init__(self, source: VideoFile, probe: Probe, max_pixels: int, untagged_matrix: UntaggedMatrix) -> None:
        try:
            import decord
        except Exception as e:  # ctypes, which loads its libraries, raises OSError
            raise DecodeFailure("decoder_error", "decode", f"decord cannot be loaded: {_gist(e)}", "decord") from e
        decord.logging.set_level(decord.logging.INFO)
        self.probe = probe
        self.tally = Tally("decord", decord.__version__)
        self.first = next(AvReader(source, probe, max_pixels, untagged_matrix).read([0], 1))
        try:
            self.reader = decord.VideoReader(source.name, num_threads=1)
            counted = len(self.reader)
            times = np.asarray(self.reader.get_frame_timestamp(range(counted)), np.float64)[:, 0]
        except _API_ERRORS:
            raise
        except Exception as e:
            raise DecodeFailure("undecodable", "decode", f"decord: {_gist(e)}", "decord") from e
        if counted != probe.n_expected:
            raise _other(f"it counts {counted} frames, the container {probe.n_expected}")
        apart = np.abs(times - times[0] - probe.times)
        if apart.max() > 0.25 / probe.fps:
            raise _other(f"it shows frame {int(apart.argmax())} {apart.max():.3f} s off its time")

    def read(self, wanted: Sequence[int], end: int | None) -> Iterator[np.ndarray]:
        """As `AvReader.read`."""
        count = self.probe.n_expected if end is None else end
        before: np.ndarray | None = None
        position = 0
        for index in range(count):
            rgb = self._next(index)
            if index == 0 and not np.array_equal(rgb, self.first):
                raise _other("its first frame is another")
            if index == count - 1 and before is not None and np.array_equal(rgb, before):
                raise _other("its last two frames are equal, as where it repeats one because it has no others")
            before = rgb
            self.tally.decoded = index + 1
            while position < len(wanted) and wanted[position] == index:
                yield rgb
                position += 1
        self.tally.complete = end is None

    def _next(self, index: int) -> np.ndarray:
        try:
            rgb: np.ndarray = self.reader.next().asnumpy()
        except MemoryError as e:
            raise DecodeFailure("out_of_memory", "decode", "no memory for the next frame", "decord") from e
        except _API_ERRORS:
            raise
        except Exception as e:
            raise DecodeFailure("undecodable", "decode", f"decord at frame {index}: {_gist(e)}", "decord") from e
        if rgb.shape != (self.probe.frame_height, self.probe.frame_width, 3):
            raise DecodeFailure("resolution_change", "decode", f"frame {index} is {rgb.shape}", "decord")
        return rgb


def _other(what: str) -> DecodeFailure:
    detail = f"decord reads this video differently ({what}); use --decoder auto or av"
    return DecodeFailure("decord_unsupported", "decode", detail, "decord")


def _gist(error: Exception) -> str:
    """decord's message without its build paths and stack."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line.rsplit("] ", 1)[-1].split(".cc:", 1)[-1]
