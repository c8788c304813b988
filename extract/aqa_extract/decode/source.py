"""Opening a file that nobody vouches for: a regular file, once, as one of few containers, reading nothing else."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import av
import av.container
import av.error
from av.stream import Disposition

from aqa_extract.decode.failure import DecodeFailure

MP4 = "mov,mp4,m4a,3gp,3g2,mj2"
MATROSKA = "matroska,webm"
"""FFmpeg's names of two containers."""

FORMATS = f"{MP4},{MATROSKA},avi,mpegts,mpeg,flv,asf"
"""Containers that FFmpeg may recognise: none of them can name another file to read, as playlists do."""

_THE_FILES = (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENXIO, errno.ENODEV)
"""Refusals that lie in the file or its name; another (EIO, ESTALE, EMFILE …) is the disk's or the machine's."""

_METADATA: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "surrogateescape"}
"""Tags need not be UTF-8. PyAV 19 reads any bytes as `surrogateescape` does; before, that had to be asked for."""


class VideoFile:
    """A regular file, opened once: what is probed is what is read, whatever happens to its name."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            # Look before opening: opening a device can act on it.
            _refuse_special(os.stat(path))
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as e:
            dangling = os.path.islink(path)
            raise DecodeFailure(
                "not_regular_file" if dangling else "unreadable",
                "probe",
                "the link points to nothing" if dangling else "no such file",
            ) from e
        except OSError as e:
            if e.errno not in _THE_FILES:
                raise DecodeFailure("read_error", "probe", e.strerror or str(e)) from e
            loop = os.path.islink(path) and not isinstance(e, PermissionError)
            raise DecodeFailure("not_regular_file" if loop else "unreadable", "probe", e.strerror or str(e)) from e
        self.before = os.fstat(self.fd)
        try:
            _refuse_special(self.before)
            if self.before.st_size == 0:
                raise DecodeFailure("empty_file", "probe", "the file has no bytes; copy or download it again")
        except DecodeFailure:
            os.close(self.fd)
            raise

    @property
    def name(self) -> str:
        """A name that no demuxer takes for a protocol or a pattern, and that is right for any file name."""
        if os.path.isdir("/proc/self/fd"):
            return f"/proc/self/fd/{self.fd}"
        return os.path.abspath(self.path)

    def head(self, size: int = 4096) -> bytes:
        return os.pread(self.fd, size, 0)

    def read_through(self) -> None:
        """Read every byte once. Raises OSError where the disk or the network does not give them."""
        at = 0
        while part := os.pread(self.fd, 1 << 20, at):
            at += len(part)

    def check_unchanged(self) -> None:
        """Raises `changed_during_read` when the file grew, was rewritten, replaced or deleted."""
        try:
            now = [os.fstat(self.fd), os.stat(self.path)]
        except OSError:
            now = []
        if not now or any(
            (s.st_ino, s.st_size, s.st_mtime_ns) != (self.before.st_ino, self.before.st_size, self.before.st_mtime_ns)
            for s in now
        ):
            raise DecodeFailure(
                "changed_during_read", "decode", "the file changed while it was read; run again once it is whole"
            )

    def close(self) -> None:
        os.close(self.fd)


def _refuse_special(status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kinds = {
        stat.S_IFDIR: "a directory (pictures in it are read where a manifest gives it an fps)",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    kind = kinds.get(stat.S_IFMT(status.st_mode), "a special file")
    raise DecodeFailure("not_regular_file", "probe", f"{kind}, not a file")


@contextmanager
def open_video(
    source: VideoFile, max_pixels: int, **options: str
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The file's container and its default video stream, ready for one thread.

    Raises:
        DecodeFailure: `forbidden_format`, `no_moov`, `not_a_video`, `no_video` or `too_large`.
    """
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS, **options}
    try:
        container = av.open(f"file:{source.name}", options=options, **_METADATA)
    except MemoryError as e:
        raise DecodeFailure("out_of_memory", "probe", "no memory to open it") from e
    except (av.error.FFmpegError, ValueError, OSError) as e:
        raise _not_opened(source.head(), e) from e
    with container:
        stream = container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:
            raise DecodeFailure("no_video", "probe", "no video stream, only sound, subtitles or cover art")
        assert isinstance(stream, av.VideoStream)
        context = stream.codec_context
        if context is None:
            raise DecodeFailure("undecodable", "probe", "its video codec is unknown or its description damaged")
        if context.width * context.height > max_pixels:
            raise too_large(context.width, context.height, max_pixels)
        # Threads would make memory and error counts depend on timing; videos run in parallel instead.
        context.thread_count = 1
        # The stream header is only a claim; the decoder itself refuses what is larger.
        context.options = {"max_pixels": str(max_pixels)}
        yield container, stream


def too_large(width: int, height: int, max_pixels: int) -> DecodeFailure:
    return DecodeFailure("too_large", "probe", f"frames of {width}x{height}, the limit is {max_pixels} pixels")


def _not_opened(head: bytes, error: Exception) -> DecodeFailure:
    """The most useful reason for a file that FFmpeg would not open."""
    # Its message goes on with the name that FFmpeg was given, which is not the user's.
    said = getattr(error, "strerror", None) or str(error)
    text = head.lstrip(b"\xef\xbb\xbf \r\n\t")
    if text.startswith((b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"v=0")) or b"ffconcat" in head[:200]:
        return DecodeFailure("forbidden_format", "probe", "a playlist, which would make the decoder read other files")
    pictures = {b"GIF8": "GIF", b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP"}
    for magic, name in pictures.items():
        if head.startswith(magic) and (magic != b"RIFF" or head[8:12] == b"WEBP"):
            return DecodeFailure("forbidden_format", "probe", f"a {name} picture; convert it to a video first")
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
        return DecodeFailure(
            "no_moov", "probe", f"its index (moov) is missing or broken, usually an incomplete download: {said}"
        )
    if isinstance(error, av.error.ArgumentError):
        return DecodeFailure("forbidden_format", "probe", f"not one of the containers {FORMATS}")
    return DecodeFailure("not_a_video", "probe", f"not recognised as a video: {said}")


def packets_of(demuxed: Iterable[av.Packet]) -> Iterator[av.Packet | None]:
    """A stream's packets; None where the demuxer had to give up.

    One without bytes shows the picture before it once more. It must not reach a decoder, which takes it for the end.
    """
    try:
        for packet in demuxed:
            if packet.size or packet.dts is not None:  # else PyAV's own, which ends the stream
                yield packet
    except (av.error.FFmpegError, IndexError):  # IndexError: a damaged transport stream grew a new stream.
        yield None
