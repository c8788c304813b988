"""SIGINT, SIGTERM and SIGUSR1 (SLURM's warning) as a question the loop asks, so that it can save first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from aqa_shared.errors import AqaError, ExitCode

TERMINATING = (signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))
"""What asks for an end whoever hears it; Ctrl-C is for the first process to decide."""
SIGNALS = (signal.SIGINT, *TERMINATING)


class Stopped(AqaError):
    """A signal ended the command; what was finished or saved is on disk."""

    def __init__(self, number: int, cause: str, fix: str = "") -> None:
        super().__init__(cause, fix=fix)
        self.exit_code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED


class _Terminated(KeyboardInterrupt):
    """In flight through libraries, which catch every Exception."""


@contextmanager
def ended_in_order(fix: str) -> Iterator[None]:
    """Outside of `asked_to_stop` there is nothing to save: SIGTERM and SIGUSR1 end the work as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise _Terminated(number)

    before = {s: signal.signal(s, end) for s in TERMINATING}
    try:
        yield
    except _Terminated as e:
        raise Stopped(e.args[0], f"ended by signal {int(e.args[0])}", fix) from None
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], int]]:
    """Yields a function giving the signal received, or 0. Ctrl-C after that acts at once, as it did before.

    A second SIGTERM or SIGUSR1 changes nothing: `timeout` sends two, and who cannot wait for the save sends SIGKILL.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received = 0
    before = {s: signal.getsignal(s) for s in SIGNALS}

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received and number == signal.SIGINT:
            signal.signal(number, before[signal.SIGINT])
            signal.raise_signal(number)
        received = received or number

    for s in SIGNALS:
        signal.signal(s, remember)
    try:
        yield lambda: received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Processes started here never see Ctrl-C, not even while they import, and the others from `worker_asked_to_stop`
    on; ours waits until they are started.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # The first process that is started brings this one along, which unblocks SIGINT and SIGTERM behind itself.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def worker_asked_to_stop() -> Iterator[Callable[[], int]]:
    """`asked_to_stop` for all that a worker does.

    The whole process group is often signalled, and their parent signals them besides: Ctrl-C is for the parent to
    decide, and no number of the others may cut off a save.
    """
    received = 0

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = number

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for s in TERMINATING:
        signal.signal(s, remember)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINATING)
    try:
        yield lambda: received
    finally:
        # Python's own end takes a moment, and would put the default back: everything is saved by now.
        for s in TERMINATING:
            signal.signal(s, signal.SIG_IGN)
