"""The child process as the parent holds it: started, spoken to against a clock, killed, buried."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from aqa_extract.decode.failure import DecodeFailure, Stage, out_of_memory
from aqa_extract.decode.wire import Channel, FrameBuffer, Gone, nameless_file

START_SECONDS = 60.0
"""For a child to start on a loaded machine; not part of any video's deadline."""


DEATH_SECONDS = 10.0
"""For a killed child to end."""

LEAST_WAIT = 0.5
"""Seconds; what the child did within less says nothing of why it is late."""


class Clock:
    """Seconds spent waiting for the child, against a limit, and how many of them it computed."""

    def __init__(self, limit: float) -> None:
        self.limit, self.spent, self.worked = limit, 0.0, 0.0
        self.heard = 0.0
        """What had been spent when the last answer came."""
        self.worked_till_heard = 0.0
        """And how much of that it had computed."""

    @contextlib.contextmanager
    def running(self, processor_seconds: Callable[[], float]) -> Iterator[None]:
        started, worked = time.monotonic(), processor_seconds()
        try:
            yield
        finally:
            self.spent += time.monotonic() - started
            self.worked += processor_seconds() - worked

    def answered(self) -> None:
        """The child is alive."""
        self.heard, self.worked_till_heard = self.spent, self.worked

    @property
    def stalled(self) -> bool:
        """Whether the child mostly waited and did not compute, in all or since its last answer.

        For its turn, for a disk or for a network: none of them is the video's doing.
        """
        silent = (self.spent - self.heard, self.worked - self.worked_till_heard)
        return any(spent > LEAST_WAIT and worked < spent / 2 for spent, worked in ((self.spent, self.worked), silent))

    @property
    def left(self) -> float:
        return self.limit - self.spent


class Reported(Exception):
    """The child itself said why it failed, so it is fit for the next video."""

    def __init__(self, failure: DecodeFailure) -> None:
        self.failure = failure


class Child:
    """The process, its channel, the pipe that ends it with us, and the buffer it writes to."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        lifeline_read, self._lifeline = os.pipe()
        self.buffer = FrameBuffer.create()
        self.reads = 0
        """Serial number of the last reading, so that the child can tell late answers."""
        self._stderr = os.fdopen(nameless_file("aqa-decoder-said"), "r+b")
        fds = (theirs.fileno(), lifeline_read, self.buffer.fd)
        try:
            self.process = subprocess.Popen(
                # -P: a stray numpy.py in the working directory must not be imported.
                [sys.executable, "-P", "-m", "aqa_extract.decode.worker", *map(str, fds)],
                stdin=subprocess.DEVNULL,
                stdout=self._stderr,
                stderr=self._stderr,
                pass_fds=fds,
                env=_environment(),
            )
        finally:
            theirs.close()
            os.close(lifeline_read)
        self.channel = Channel(ours)
        clock = Clock(START_SECONDS)
        try:
            self.receive(clock, clock, "probe", "")
        except BaseException as e:
            self.kill()
            if not isinstance(e, DecodeFailure):
                raise
            # It has not been shown any video yet: whatever ended it, none is to blame.
            detail = f"no decoder started: {e.detail}"
            if e.reason in ("decode_timeout", "decoder_stalled"):
                detail = f"no decoder started within {START_SECONDS:.0f} s: use fewer --workers on a machine this busy"
            raise DecodeFailure("decoder_not_started", "probe", detail) from None

    def send(self, message: dict[str, Any], stage: Stage, payload: bytes = b"") -> None:
        try:
            self.channel.send(message, payload)
        except Gone:
            raise self._death(stage, message.get("backend", "")) from None

    def receive(self, clock: Clock, limit: Clock, stage: Stage, backend: str) -> tuple[dict[str, Any], bytes]:
        """The next event; a failure that the child reports is raised as `Reported`."""
        try:
            with contextlib.ExitStack() as clocks:
                for each in {clock, limit}:
                    clocks.enter_context(each.running(self.processor_seconds))
                message, payload = self.channel.receive(max(0.0, limit.left))
        except TimeoutError:
            if limit.stalled:
                detail = _stalled(limit, limit is clock)
                raise DecodeFailure("decoder_stalled", stage, detail, backend, limit=limit.limit) from None
            detail = _late(limit, limit is clock)
            raise DecodeFailure("decode_timeout", stage, detail, backend, limit=limit.limit) from None
        except Gone:
            raise self._death(stage, backend) from None
        clock.answered()
        limit.answered()
        if message.get("event") == "failed":
            raise Reported(DecodeFailure(message["reason"], message["stage"], message["detail"], message["backend"]))
        return message, payload

    def processor_seconds(self) -> float:
        """What all its threads have computed; where the system does not tell, it never seems to wait."""
        try:
            user, system = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
        except OSError:
            return time.monotonic()
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End the process, whatever it is doing, and wait for it, so that no zombie stays.

        One that waits for a dead disk ends when that answers, and not before: it is left alone.
        """
        self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=DEATH_SECONDS)
        self.channel.close()
        self.buffer.close()
        self._stderr.close()
        os.close(self._lifeline)

    def _death(self, stage: Stage, backend: str) -> DecodeFailure:
        """What ended the child without our doing."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return DecodeFailure("decoder_error", stage, "the decoder closed its channel", backend)
        self._stderr.seek(max(0, os.fstat(self._stderr.fileno()).st_size - 2000))
        said = self._stderr.read().decode(errors="replace").strip().splitlines()
        tail = f": {said[-1]}" if said else ""
        if code == -signal.SIGKILL:
            detail = "the decoder was killed from outside, usually by the system for memory: use fewer --workers"
            return DecodeFailure("decoder_killed", stage, detail, backend)
        if any("MemoryError" in line or "bad_alloc" in line for line in said[-3:]):
            return DecodeFailure(out_of_memory(), stage, f"the decoder reached its memory limit{tail}", backend)
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            return DecodeFailure("decoder_crashed", stage, f"the decoder died of {name}{tail}", backend)
        return DecodeFailure("decoder_crashed", stage, f"the decoder exited with {code}{tail}", backend)


def _late(clock: Clock, is_the_videos: bool) -> str:
    """What the caller's limit for the whole video, or ours for one backend, was spent on."""
    if clock.heard:
        silent = clock.spent - clock.heard
        said = f"decoding took more than {clock.limit:.0f} s in all, the last {silent:.0f} s without an answer"
    else:
        said = f"the decoder gave no answer within {clock.limit:.0f} s"
    return f"{said}; raise --timeout" if is_the_videos else said


def _stalled(clock: Clock, is_the_videos: bool) -> str:
    said = (
        f"the decoder computed for {clock.worked:.0f} of {clock.limit:.0f} s; for the rest it waited for the disk, the "
        "network or a processor"
    )
    fix = "check that the file can be read, use fewer --workers, or raise --timeout"
    return f"{said}; {fix}" if is_the_videos else said


def _environment() -> dict[str, str]:
    """One thread everywhere, and this package importable also from a source tree."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
