"""SIGINT, SIGTERM and SIGUSR1 (SLURM's warning) end an extraction in order, from its first import to its last write."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from aqa_shared.errors import AqaError, ExitCode

NUMBERS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else []))


class Interrupted(AqaError):
    """A signal ended the run; what was finished is committed."""

    def __init__(self, number: int, cause: str = "interrupted") -> None:
        super().__init__(cause, fix="rerun the same command to go on")
        self.exit_code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.TERMINATED


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
        self._act: Callable[[], None] | None = None

    def hand_to(self, act: Callable[[], None]) -> None:
        """From now on call `act` and let the work go on to its end."""
        self._act = act

    def handle(self, number: int, _: FrameType | None) -> None:
        if self._act is None:
            raise _Signal(number)
        self.received.append(number)
        self._act()


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
        raise Interrupted(e.number) from e
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
