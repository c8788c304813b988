"""Which file a video was: enough to notice that it changed, and that two are the same."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PICTURES = (".jpg", ".jpeg", ".png")

SAMPLE = 1 << 20
"""Bytes hashed at the beginning, the middle and the end: a whole read would double the I/O of long videos."""


@dataclass(slots=True)
class Identity:
    """Size and time of a file or a folder of pictures, and a digest of samples, read when it is first asked for."""

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
            if os.path.isdir(self.path):
                names = picture_names(self.path)
                for name in (names[i] for i in sorted({0, len(names) // 2, len(names) - 1}) if names):
                    digest.update(Path(self.path, name).read_bytes())
                now = size_and_time(self.path)
            else:
                with Path(self.path).open("rb") as f:
                    for offset in sorted({0, max(self.size // 2 - SAMPLE // 2, 0), max(self.size - SAMPLE, 0)}):
                        f.seek(offset)
                        digest.update(f.read(SAMPLE))
                    status = os.fstat(f.fileno())
                now = status.st_size, status.st_mtime_ns
        except OSError:
            return None
        return digest.hexdigest() if now == (self.size, self.mtime_ns) else None

    def record(self) -> dict[str, Any]:
        """For the store's meta."""
        return {"size": self.size, "mtime_ns": self.mtime_ns, "fingerprint": self.fingerprint}

    def matches(self, known: Mapping[str, Any]) -> bool:
        """The same content as `known`, as far as the samples tell; a copy with another time still is."""
        return known.get("size") == self.size and known.get("fingerprint") == self.fingerprint is not None


def picture_names(folder: str) -> list[str]:
    """The files with a picture's suffix in a folder, sorted; hidden ones are skipped. Raises OSError."""
    with os.scandir(folder) as entries:
        found = [e.name for e in entries if e.name.lower().endswith(PICTURES) and e.is_file()]
    return sorted(name for name in found if not name.startswith("."))


def size_and_time(path: str) -> tuple[int, int]:
    """Bytes and the time of the last change, in ns; of a folder all its pictures', and its own. Raises OSError."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size, status.st_mtime_ns
    each = [os.stat(os.path.join(path, name)) for name in picture_names(path)]
    return sum(s.st_size for s in each), max(s.st_mtime_ns for s in (status, *each))


def stat_matches(path: str, known: dict[str, Any]) -> bool:
    """Size and time are unchanged: no need to open the file."""
    try:
        return (known.get("size"), known.get("mtime_ns")) == size_and_time(path)
    except OSError:
        return False


def identify(path: str) -> Identity | None:
    """None where there is no regular, readable file and no folder; the probe says why. Reads nothing of it yet."""
    try:
        known = os.stat(path)
        if stat.S_ISDIR(known.st_mode):
            return Identity(path, *size_and_time(path))
        if not stat.S_ISREG(known.st_mode) or not os.access(path, os.R_OK):
            return None
    except OSError:
        return None
    return Identity(path, known.st_size, known.st_mtime_ns)


def same_bytes(first: str, second: str) -> bool:
    """Whether two files, or the pictures of two folders, are equal to the last byte."""
    try:
        if os.path.samefile(first, second):
            return True
        if os.path.isdir(first) and os.path.isdir(second):
            names = picture_names(first)
            return names == picture_names(second) and all(
                same_bytes(os.path.join(first, name), os.path.join(second, name)) for name in names
            )
        with Path(first).open("rb") as a, Path(second).open("rb") as b:
            while True:
                x, y = a.read(SAMPLE), b.read(SAMPLE)
                if x != y:
                    return False
                if not x:
                    return True
    except OSError:
        return False
