"""The child: opens untrusted files, and can be killed at any moment without leaving anything behind.

Started as `python -m aqa_extract.decode.worker CHANNEL LIFELINE BUFFER` with three inherited descriptors. It
imports NumPy and PyAV, and decord when it is first asked for: it starts in a fifth of a second.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import av
import av.error
import numpy as np

from aqa_extract.decode import pictures
from aqa_extract.decode.decord_backend import DecordReader, refusal
from aqa_extract.decode.failure import DecodeFailure, out_of_memory
from aqa_extract.decode.packets import timeline
from aqa_extract.decode.probe import Probe, probe
from aqa_extract.decode.readers import AvReader, Reader, too_damaged
from aqa_extract.decode.seek import PacketTable, SeekMistake
from aqa_extract.decode.source import VideoFile
from aqa_extract.decode.wire import SLOTS, Channel, FrameBuffer, Gone
from aqa_extract.faults import Fault, fault

if TYPE_CHECKING:
    from aqa_shared.records import UntaggedMatrix

HIDDEN_FRAME_CODECS = ("vp8", "vp9", "mpeg4")
"""Their packets may hold a frame that is only referred to, or none at all: fewer frames than packets is not damage."""


def main() -> None:
    channel_fd, lifeline_fd, buffer_fd = (int(a) for a in sys.argv[1:4])
    _live_with_parent(lifeline_fd)
    _quiet()
    channel = Channel(socket.socket(fileno=channel_fd))
    worker = Worker(channel, FrameBuffer(buffer_fd))
    with contextlib.suppress(Gone):
        channel.send({"event": "ready"})
        while True:
            worker.answer(*channel.receive())


def _live_with_parent(lifeline_fd: int) -> None:
    """Die when the parent does, even inside a native loop that never gives Python the turn.

    The parent holds the other end of a pipe and never writes; when it closes, the kernel sends SIGIO, whose
    default is to end the process. (PR_SET_PDEATHSIG would fire when the parent's *thread* ends.) Signals to the
    process group are for the parent to interpret: were we to die of them, it would blame the video.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    try:
        if os.read(lifeline_fd, 1) == b"":
            os._exit(0)  # The parent was gone before we asked to be told.
    except BlockingIOError:
        pass


def _quiet() -> None:
    """FFmpeg's complaints are counted, not printed; no core files, and no file of ours grows beyond a megabyte."""
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)
    logger = logging.getLogger("libav")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))


class Worker:
    """Answers `probe` and `read`; between them it keeps the file open."""

    def __init__(self, channel: Channel, buffer: FrameBuffer) -> None:
        self.channel, self.buffer = channel, buffer
        self.source: VideoFile | pictures.Folder | None = None
        self.probe: Probe | None = None
        self.table: PacketTable | None = None
        self.max_pixels = 0
        self.untagged_matrix: UntaggedMatrix = "bt601"
        self.accept_damaged = False

    def answer(self, command: dict[str, Any], payload: bytes) -> None:
        if command["do"] == "go on":
            return  # For a reading that failed before the parent had used all its chunks.
        backend = command.get("backend", "")
        stage = "probe" if command["do"] == "probe" else "decode"
        try:
            if command["do"] == "probe":
                self._probe(command)
            else:
                self._read(command, np.frombuffer(payload, "<i4"))
        except DecodeFailure as e:
            reason, detail = self._without_the_disk(e.reason, e.detail)
            self._failed(reason, e.stage, detail, e.backend or backend)
        except MemoryError:
            self._failed(out_of_memory(), stage, "the decoder reached its memory limit", backend)
        except Gone:
            raise
        except Exception as e:  # A bug of ours or of a library is one video's failure, not the run's.
            self._failed("decoder_error", stage, f"{type(e).__name__}: {e} ({_versions()})", backend)

    def _without_the_disk(self, reason: str, detail: str) -> tuple[str, str]:
        """A video is only blamed for bytes that can be read: a disk or network that fails looks like damage."""
        if reason == "out_of_memory":
            return out_of_memory(), detail
        if self.source is None or fault(reason) is not Fault.VIDEO:
            return reason, detail
        try:
            self.source.read_through()
        except OSError as e:
            return "read_error", f"the file cannot be read to its end: {e.strerror or e}"
        return reason, detail

    def _failed(self, reason: str, stage: str, detail: str, backend: str) -> None:
        self.channel.send({"event": "failed", "reason": reason, "stage": stage, "detail": detail, "backend": backend})

    def _probe(self, command: dict[str, Any]) -> None:
        if self.source is not None:
            self.source.close()
            self.source = None
        if command["max_bytes"]:
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            # A shell or a batch system may have set less, and nobody can go beyond that.
            soft = command["max_bytes"] if hard == resource.RLIM_INFINITY else min(command["max_bytes"], hard)
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        self.max_pixels, self.untagged_matrix = command["max_pixels"], command["untagged_matrix"]
        self.accept_damaged = command["accept_damaged"]
        # The name travels with its undecodable bytes as surrogates, which JSON keeps.
        path, rate = command["path"], command["frame_rate"]
        if rate is not None and os.path.isdir(path):
            self.source, self.table = pictures.Folder(path, rate), None
            found = pictures.probe(self.source, self.max_pixels, self.accept_damaged)
            self.probe = replace(found, decord_refusal="a folder of pictures")
        else:
            self.source = VideoFile(path)
            found, self.table = probe(self.source, self.max_pixels, self.untagged_matrix, self.accept_damaged)
            self.probe = replace(found, decord_refusal=refusal(found, self.source))
        self._send(self.probe)

    def _read(self, command: dict[str, Any], wanted: np.ndarray) -> None:
        assert self.source is not None, "probe comes first"
        assert self.probe is not None
        self.buffer.grow(command["buffer_bytes"])
        reader: Reader
        if isinstance(self.source, pictures.Folder):
            reader = pictures.PicturesReader(self.source, self.probe, self.max_pixels)
        elif command["backend"] == "decord":
            _clear_stderr()
            reader = DecordReader(self.source, self.probe, self.max_pixels, self.untagged_matrix)
        else:
            reader = AvReader(self.source, self.probe, self.max_pixels, self.untagged_matrix, self.table)
        end = command["end"]
        try:
            self._send_frames(reader, wanted, end, command)
        except SeekMistake as e:
            # What was sent so far may be wrong; the parent voids it when it hears of another probe.
            self._probed_again(f"a jump in the video went wrong ({e}): it was read from the first frame instead")
            return
        self.source.check_unchanged()
        tally = reader.tally
        if tally.backend == "decord" and os.fstat(2).st_size > 0:
            # Only PyAV can count what is damaged, and newer decoders conceal damage differently.
            raise DecodeFailure("corrupt", "decode", "decord reports errors in the stream", "decord")
        expected = self.probe.n_expected if end is None else end
        missing_is_normal = self.probe.headless or self.probe.codec in HIDDEN_FRAME_CODECS
        if tally.complete and 0 < tally.decoded < expected and missing_is_normal and not tally.corrupt:
            self._recount(reader)
            return
        reason = too_damaged(tally, expected)
        if reason and not (self.accept_damaged and tally.decoded):
            detail = f"{tally.decoded} of {expected} frames decoded, {tally.corrupt} damaged{tally.named}"
            raise DecodeFailure(reason, "decode", f"{detail}; --accept-damaged takes them", tally.backend)
        if tally.complete and tally.decoded != expected:
            self._recount(reader, missing=expected - tally.decoded if reason else 0)
            return
        warnings = [f"degraded: {tally.corrupt} of {expected} frames damaged{tally.named}"] if tally.corrupt else []
        accepted = {"missing": self.probe.missing, "damaged": tally.corrupt}
        warnings += tally.damage.warnings()
        self.channel.send(
            {
                "event": "finished",
                "backend": tally.backend,
                "version": tally.version,
                "decoded": tally.decoded - tally.skipped,
                "corrupt": tally.corrupt,
                "accepted_damage": accepted if reason or self.probe.missing else None,
                "warnings": warnings,
            }
        )

    def _recount(self, reader: Reader, missing: int = 0) -> None:
        """Tell the parent the true timeline; it plans again and asks again."""
        assert self.probe is not None
        tally = reader.tally
        times, fps, _ = timeline(tally.stamps, tally.time_base, self.probe.fps)
        warning = f"degraded: {self.probe.n_expected} frames announced, {tally.decoded} decoded"
        missing = max(0, self.probe.missing + missing)
        self._probed_again(warning, times=times, fps=fps, n_expected=tally.decoded, missing=missing)

    def _probed_again(self, warning: str, **changes: Any) -> None:
        """Send the probe again, with what reading has shown; from now on the video is read without jumps."""
        assert self.probe is not None
        self.table = None
        self.probe = replace(self.probe, entries=(), warnings=(*self.probe.warnings, warning), **changes)
        self._send(self.probe)

    def _send(self, probe: Probe) -> None:
        values, payload = probe.to_message()
        self.channel.send({"event": "probed", **values}, payload)

    def _send_frames(self, reader: Reader, wanted: np.ndarray, end: int | None, command: dict[str, Any]) -> None:
        """Write frames into alternate slots, announcing each full one; wait when both are the parent's."""
        assert self.probe is not None
        shape = (self.probe.frame_height, self.probe.frame_width, 3)
        chunk_frames, slot_bytes, serial = command["chunk_frames"], command["slot_bytes"], command["serial"]
        sent = filled = slot = 0
        credits = SLOTS
        chunk: np.ndarray | None = None
        for frame in reader.read(wanted.tolist(), end):
            if chunk is None:
                while credits == 0:
                    credits += self._told_to_go_on(serial)
                view = self.buffer.view(slot * slot_bytes, chunk_frames * int(np.prod(shape)))
                chunk = np.frombuffer(view, np.uint8).reshape(chunk_frames, *shape)
            if frame.shape != shape:
                raise DecodeFailure(
                    "resolution_change", "decode", f"a frame of {frame.shape}, announced {shape}", reader.tally.backend
                )
            chunk[filled] = frame
            filled += 1
            if filled == chunk_frames or sent + filled == len(wanted):
                self.channel.send({"event": "chunk", "slot": slot, "first": sent, "count": filled})
                sent, filled, chunk = sent + filled, 0, None
                slot, credits = (slot + 1) % SLOTS, credits - 1
        if filled:
            self.channel.send({"event": "chunk", "slot": slot, "first": sent, "count": filled})

    def _told_to_go_on(self, serial: int) -> int:
        """1 when the parent gave a slot back, 0 when that slot was of an earlier, failed reading."""
        answer, _ = self.channel.receive()
        return int(answer["serial"] == serial)


def _versions() -> str:
    decord = sys.modules.get("decord")
    return f"PyAV {av.__version__}" + (f", decord {decord.__version__}" if decord else "")


def _clear_stderr() -> None:
    """Empty the file that the parent gave us, so that what decord's FFmpeg prints next can be seen."""
    os.ftruncate(2, 0)
    os.lseek(2, 0, os.SEEK_SET)


if __name__ == "__main__":
    main()
