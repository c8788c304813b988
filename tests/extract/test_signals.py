"""Real signals to a real extraction that is in the middle of a large video."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import pytest
from tests.extract.clips import Clip
from tests.processes import children

from aqa_shared.errors import ExitCode
from aqa_shared.store import contents, verify

GRACE = 4
COMMAND = f"import aqa_extract.signals as s; s.GRACE = {GRACE}; from aqa_extract.cli import main; main()"
LARGE = ("--streams", "rgb,flow", "--flow", "parity", "--short-side", "512", "--crop", "224", "--segments", "10")
"""Minutes of flow on any processor."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    Clip(frames=40, size=(1920, 1080), fps=Fraction(25), options={"preset": "ultrafast"}).write(folder / "large")
    return folder


class Extraction:
    """A command that runs; its stderr as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: list[str] = []
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put(line)
        self.lines.put(None)

    def wait_for(self, words: str, seconds: float = 60) -> None:
        """Until a line of stderr has `words`."""
        until = time.monotonic() + seconds
        while (line := self.lines.get(timeout=max(0.0, until - time.monotonic()))) is not None:
            self.said.append(line)
            if words in line:
                return
        raise AssertionError(f"ended without {words!r}: {self.said}")

    def decoders(self) -> list[int]:
        """Processes that decode at this moment."""
        return children(self.process.pid, "aqa_extract.decode.worker")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.process.poll() is None, self.said
            time.sleep(0.02)

    def computes(self) -> None:
        """Until its only video is decoded: the decoder has come and gone, and the device has the frames."""
        self.wait_until(lambda: bool(self.decoders()))
        # A look at /proc may miss a process that lives, and the frames take a moment to the device.
        gone = 0
        while gone < 20:
            assert self.process.poll() is None, self.said
            gone = 0 if self.decoders() else gone + 1
            time.sleep(0.05)


def _has_open(pid: int, file: Path) -> bool:
    found = set()
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found.add(os.readlink(descriptor))
    return str(file) in found


@contextmanager
def extraction(videos: Path, store: Path, weights: str) -> Iterator[Extraction]:
    names = ("--weights", f"rgb={weights}", "--weights", "flow=inflated-from-rgb")
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, videos, "--out", store, *LARGE, *names],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield Extraction(process)
    finally:
        process.kill()
        process.wait()


pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for processes as Linux does")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_terminated_run_ends_within_its_grace(
    large: Path, tmp_path: Path, i3d_rgb_weights: str, number: signal.Signals
) -> None:
    with extraction(large, tmp_path / "s.zarr", i3d_rgb_weights) as run:
        run.computes()
        run.process.send_signal(number)
        sent = time.monotonic()
        run.wait_for(f"finishing 1 video; for at most {GRACE} s", 5)
        run.process.send_signal(number)  # `timeout` sends two
        assert run.process.wait(timeout=GRACE + 10) == ExitCode.TERMINATED
        assert time.monotonic() - sent > GRACE - 1
        run.wait_for("rerun the same command", 5)
    known = contents(tmp_path / "s.zarr")
    assert known is not None
    assert dict(known.having(["rgb"])) == {}
    assert verify(tmp_path / "s.zarr") == []


UNWINDS = """
import time
from aqa_extract import signals
signals.GRACE = 0.5
with signals.caught():
    try:
        print("ready", flush=True)
        time.sleep(600)
    finally:
        time.sleep(600)  # a disk that does not answer
"""


def test_before_the_first_video_the_grace_is_kept_as_well() -> None:
    with subprocess.Popen([sys.executable, "-c", UNWINDS], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == ExitCode.TERMINATED
    assert b"rerun the same command" in said


def test_ctrl_c_answers_at_once_and_again_ends_at_once(large: Path, tmp_path: Path, i3d_rgb_weights: str) -> None:
    with extraction(large, tmp_path / "s.zarr", i3d_rgb_weights) as run:
        run.computes()
        run.process.send_signal(signal.SIGINT)
        run.wait_for("finishing 1 video; again to stop now", 5)
        time.sleep(GRACE + 1)
        assert run.process.poll() is None, "Ctrl-C waits for what was begun"
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(timeout=10) == ExitCode.INTERRUPTED
        run.wait_for("rerun the same command", 5)
    assert verify(tmp_path / "s.zarr") == []


def test_a_signal_while_decoding_waits_for_nothing(large: Path, tmp_path: Path, i3d_rgb_weights: str) -> None:
    with extraction(large, tmp_path / "s.zarr", i3d_rgb_weights) as run:
        (video,) = large.iterdir()
        run.wait_until(lambda: any(_has_open(p, video) for p in run.decoders()))
        run.process.send_signal(signal.SIGTERM)
        run.wait_for("finishing 0 videos", 5)
        assert run.process.wait(timeout=GRACE + 10) == ExitCode.TERMINATED
    assert verify(tmp_path / "s.zarr") == []


BETWEEN = """
import os, signal, sys
from aqa_extract.networks import Networks
from aqa_extract.cli import main

load, times = Networks.load, []
def interrupted(*arguments):
    times.append(0)
    if len(times) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return load(*arguments)
Networks.load = interrupted
main()
"""
"""The command, with a real Ctrl-C at the moment that no signal from outside could hit."""


def test_ctrl_c_between_two_passes_begins_nothing_more(tmp_path: Path, i3d_rgb_weights: str) -> None:
    store, videos = tmp_path / "s.zarr", [tmp_path / f"clip{i}.mp4" for i in range(2)]
    for i, path in enumerate(videos):
        Clip(frames=20 + 4 * i, size=(64, 48)).write(path.with_suffix(""))
    small = ("--segments", "2", "--short-side", "32", "--crop", "32", "--weights", f"rgb={i3d_rgb_weights}")

    def run(code: str, streams: str, *given: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *given, "--out", store, "--streams", streams, *small]
        return subprocess.run(command, capture_output=True, text=True, timeout=200)

    assert run(COMMAND, "rgb", videos[0]).returncode == ExitCode.OK
    # The first video lacks a stream and the second one both: a pass for each.
    done = run(BETWEEN, "rgb,rgb:logits", *videos)
    assert done.returncode == ExitCode.INTERRUPTED, done.stderr
    known = contents(store)
    assert known is not None
    assert set(known.having(["rgb_logits"])) == {"clip0.mp4"}
    assert set(known.having(["rgb"])) == {"clip0.mp4"}
