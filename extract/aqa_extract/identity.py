"""Which file a video was: enough to notice that it changed, and that two are the same."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SAMPLE = 1 << 20
"""Bytes hashed at the beginning, the middle and the end: a whole read would double the I/O of long videos."""


@dataclass(frozen=True)
class Identity:
    """Size and time of a file, and a digest of three samples of it."""

    size: int
    mtime_ns: int
    fingerprint: str

    def record(self) -> dict[str, Any]:
        """For the store's meta."""
        return asdict(self)

    def matches(self, known: dict[str, Any]) -> bool:
        """The same content as `known`, as far as the samples tell; a copy with another time still is."""
        return known.get("size") == self.size and known.get("fingerprint") == self.fingerprint


def stat_matches(path: str, known: dict[str, Any]) -> bool:
    """Size and time are unchanged: no need to open the file."""
    try:
        now = os.stat(path)
    except OSError:
        return False
    return known.get("size") == now.st_size and known.get("mtime_ns") == now.st_mtime_ns


def identify(path: str) -> Identity | None:
    """None where there is no regular, readable file; the decoder's probe says why."""
    try:
        known = os.stat(path)
        if not stat.S_ISREG(known.st_mode):
            return None
        digest = hashlib.blake2b(str(known.st_size).encode(), digest_size=16)
        with Path(path).open("rb") as f:
            for offset in sorted({0, max(known.st_size // 2 - SAMPLE // 2, 0), max(known.st_size - SAMPLE, 0)}):
                f.seek(offset)
                digest.update(f.read(SAMPLE))
    except OSError:
        return None
    return Identity(known.st_size, known.st_mtime_ns, digest.hexdigest())


def same_bytes(first: str, second: str) -> bool:
    """Whether two files are equal to the last byte."""
    try:
        with Path(first).open("rb") as a, Path(second).open("rb") as b:
            while True:
                x, y = a.read(SAMPLE), b.read(SAMPLE)
                if x != y:
                    return False
                if not x:
                    return True
    except OSError:
        return False
