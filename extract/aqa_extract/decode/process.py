"""The child process as the parent holds it: started, spoken to against a clock, killed, buried."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aqa_extract.decode.failure import DecodeFailure, Stage, out_of_memory
from aqa_extract.decode.wire import Channel, FrameBuffer, Gone, nameless_file

START_SECONDS = 60.0
"""For a child to start on a loaded machine; not part of any video's deadline."""


class Clock:
    """Seconds spent waiting for the child, against a limit."""

    def __init__(self, limit: float) -> None:
        self.limit, self.spent = limit, 0.0
        self.heard = 0.0
        """What had been spent when the last answer came."""

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.spent += time.monotonic() - started

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
            if e.reason == "decode_timeout":
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
            with clock.running(), limit.running() if limit is not clock else contextlib.nullcontext():
                message, payload = self.channel.receive(max(0.0, limit.left))
        except TimeoutError:
            detail = _late(limit, limit is clock)
            raise DecodeFailure("decode_timeout", stage, detail, backend, limit=limit.limit) from None
        except Gone:
            raise self._death(stage, backend) from None
        clock.heard, limit.heard = clock.spent, limit.spent
        if message.get("event") == "failed":
            raise Reported(DecodeFailure(message["reason"], message["stage"], message["detail"], message["backend"]))
        return message, payload

    def kill(self) -> None:
        """End the process, whatever it is doing, and wait for it, so that no zombie stays."""
        self.process.kill()
        self.process.wait()
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
            detail = "the decoder was killed from outside, mostly by the system for memory: use fewer --workers"
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
