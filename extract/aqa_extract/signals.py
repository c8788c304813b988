"""SIGINT, SIGTERM and SIGUSR1 (SLURM's warning) end an extraction in order, from its first import to its last write.

In order means: what has begun is finished and committed. Whoever cannot wait for that sends Ctrl-C again; after a
SIGTERM the process ends by itself when `GRACE` is over, whatever it is doing, as schedulers send SIGKILL soon after.
Neither can harm the store, in which a video is whole or absent.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from aqa_shared.errors import AqaError, ExitCode

NUMBERS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


GRACE = 20.0
"""Seconds between SIGTERM and the end; SLURM and Kubernetes send SIGKILL after 30."""
RERUN = "rerun the same command to go on"


class Interrupted(AqaError):
    """A signal ended the run; what was finished is committed."""

    def __init__(self, number: int, cause: str = "interrupted") -> None:
        super().__init__(cause, fix=RERUN)
        self.exit_code = _code(number)


def _code(number: int) -> ExitCode:
    return ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED


class _Signal(KeyboardInterrupt):
    """In flight through libraries, which catch every Exception."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class Signals:
    """What a signal does: it ends the work where it stands, until somebody takes them over to end it in order."""

    def __init__(self) -> None:
        self.received: list[int] = []
        """Those that came since `hand_to`."""
        self._finish: Callable[[int], None] | None = None
        self._abandon: Callable[[], None] = lambda: None
        self._timer: threading.Timer | None = None

    def hand_to(self, finish: Callable[[int], None], abandon: Callable[[], None]) -> None:
        """From now on call `finish(number)` at the first signal and let the work go on to its end.

        A second Ctrl-C calls `abandon` and then ends the work where it stands.
        """
        self._finish, self._abandon = finish, abandon

    def handle(self, number: int, _: FrameType | None) -> None:
        if number != signal.SIGINT and self._timer is None:
            self._timer = threading.Timer(GRACE, self._leave, (number,))
            self._timer.daemon = True
            self._timer.start()
        if self._finish is None:
            raise _Signal(number)
        again = signal.SIGINT in self.received
        self.received.append(number)
        if number == signal.SIGINT and again:
            self._abandon()
            raise _Signal(number)
        if len(self.received) == 1:
            self._finish(number)

    def _leave(self, number: int) -> None:
        """End the process from a thread of our own: the others may be in a library that lets nobody interrupt it."""
        said = f"\nerror: terminated; what was not finished within {GRACE:.0f} s was given up\nfix: {RERUN}\n"
        with suppress(OSError):
            os.write(2, said.encode())
        os._exit(int(_code(number)))

    def close(self) -> None:
        """The work has ended by itself."""
        if self._timer is not None:
            self._timer.cancel()


@contextmanager
def caught() -> Iterator[Signals]:
    """Handle signals within; raises Interrupted where one ended the work. Only the main thread can."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.handle) for number in NUMBERS}
    try:
        yield signals
    except _Signal as e:
        interrupted = Interrupted(e.number)
        # Threads that nobody waits for may be anywhere.
        interrupted.abrupt = bool(signals.received)
        raise interrupted from e
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signals.close()
