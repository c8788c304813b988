"""How many bytes of decoded pixels may wait for the device."""

from __future__ import annotations

import threading


class Cancelled(Exception):
    """The run was asked to stop."""


class TooLarge(Exception):
    """One video wants more bytes than the process can spare for it, however long it waits."""

    def __init__(self, wanted: int, ceiling: int) -> None:
        super().__init__(f"{wanted} bytes, the most is {ceiling}")
        self.wanted = wanted
        self.ceiling = ceiling


class ByteBudget:
    """Lets loaders run ahead of the device by at most `limit` bytes; a video that is alone may take twice that.

    With a quarter of the memory as `limit` (run.memory_budget) half of it is the most for one video. `stop` ends every
    wait.
    """

    def __init__(self, limit: int, stop: threading.Event) -> None:
        self.limit = limit
        self.ceiling = 2 * limit
        self.stop = stop
        self.used = 0
        self.changed = threading.Condition()

    def refuse(self, amount: int) -> None:
        """Raises TooLarge for what never fits."""
        if amount > self.ceiling:
            raise TooLarge(amount, self.ceiling)

    def take(self, amount: int) -> None:
        """Block until `amount` fits. Raises Cancelled, and TooLarge for what never will."""
        self.refuse(amount)
        with self.changed:
            while self.used and self.used + amount > self.limit:
                if self.stop.is_set():
                    raise Cancelled
                self.changed.wait(0.2)
            self.used += amount

    def give(self, amount: int) -> None:
        """Return `amount` bytes."""
        with self.changed:
            self.used -= amount
            self.changed.notify_all()
