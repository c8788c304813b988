"""Which file a video was: enough to notice that it changed, and that two are the same."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLE = 1 << 20
"""Bytes hashed at the beginning, the middle and the end: a whole read would double the I/O of long videos."""


@dataclass
class Identity:
    """Size and time of a file, and a digest of three samples of it, read when it is first asked for."""

    path: str
    size: int
    mtime_ns: int
    _fingerprint: str | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def fingerprint(self) -> str | None:
        """None where the file is no longer what it was, or cannot be read now."""
        if self._fingerprint is None:
            self._fingerprint = self._digest()
        return self._fingerprint

    def _digest(self) -> str | None:
        digest = hashlib.blake2b(str(self.size).encode(), digest_size=16)
        try:
            with Path(self.path).open("rb") as f:
                for offset in sorted({0, max(self.size // 2 - SAMPLE // 2, 0), max(self.size - SAMPLE, 0)}):
                    f.seek(offset)
                    digest.update(f.read(SAMPLE))
                now = os.fstat(f.fileno())
        except OSError:
            return None
        return digest.hexdigest() if (now.st_size, now.st_mtime_ns) == (self.size, self.mtime_ns) else None

    def record(self) -> dict[str, Any]:
        """For the store's meta."""
        return {"size": self.size, "mtime_ns": self.mtime_ns, "fingerprint": self.fingerprint}

    def matches(self, known: Mapping[str, Any]) -> bool:
        """The same content as `known`, as far as the samples tell; a copy with another time still is."""
        return known.get("size") == self.size and known.get("fingerprint") == self.fingerprint is not None


def stat_matches(path: str, known: dict[str, Any]) -> bool:
    """Size and time are unchanged: no need to open the file."""
    try:
        now = os.stat(path)
    except OSError:
        return False
    return known.get("size") == now.st_size and known.get("mtime_ns") == now.st_mtime_ns


def identify(path: str) -> Identity | None:
    """None where there is no regular, readable file; the decoder's probe says why. Reads nothing of it yet."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for its writer
            return None
        with Path(path).open("rb") as f:
            known = os.fstat(f.fileno())
    except OSError:
        return None
    return Identity(path, known.st_size, known.st_mtime_ns)


def same_bytes(first: str, second: str) -> bool:
    """Whether two files are equal to the last byte."""
    try:
        if os.path.samefile(first, second):
            return True
        with Path(first).open("rb") as a, Path(second).open("rb") as b:
            while True:
                x, y = a.read(SAMPLE), b.read(SAMPLE)
                if x != y:
                    return False
                if not x:
                    return True
    except OSError:
        return False
