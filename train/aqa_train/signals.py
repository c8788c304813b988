"""SIGINT and SIGTERM as a question the loop asks, so that it can save first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def asked_to_stop(ignore_interrupt: bool = False) -> Iterator[Callable[[], int]]:
    """Yields a function giving the signal received, or 0. A second signal acts at once, as it did before.

    `ignore_interrupt` is for workers: Ctrl-C reaches the whole process group, and their parent decides.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received = 0
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {s: signal.getsignal(s) for s in signals}

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if received:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)
        received = number

    for s in signals:
        signal.signal(s, remember)
    if ignore_interrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield lambda: received
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
