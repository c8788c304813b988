"""Processes as Linux shows them in /proc, for tests that stop, kill or count those that a program started."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def children(parent: int | str, command: str = "") -> list[int]:
    """Those that `parent` (a pid, or "self") started and has not waited for, with `command` in their command lines.

    Threads and processes that end during the look are passed over, also the parent.
    """
    found = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{parent}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                found += (thread / "children").read_text().split()
    return [int(p) for p in found if not command or command in _command(p)]


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
