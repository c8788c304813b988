"""quarantine.jsonl: which videos are kept out of a store, and why; one Failure a line, in ASCII."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from aqa_extract.faults import Fault, fault
from aqa_shared.console import warn
from aqa_shared.files import replacing
from aqa_shared.records import Failure
from aqa_shared.store import QUARANTINE, disk_errors


def read(store: Path) -> dict[str, Failure]:
    """The latest line of every id; a line torn by a crash is left out, and said."""
    try:
        lines = (store / QUARANTINE).read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found: dict[str, Failure] = {}
    for number, line in enumerate(lines, 1):
        try:
            failure = Failure.model_validate(json.loads(line))
        except ValueError:  # pydantic's, json's and the decoder's errors are all of this kind
            if line.strip():
                warn(f"{store / QUARANTINE}, line {number} cannot be read and is ignored")
            continue
        found[failure.id] = failure
    return found


def _line(failure: Failure) -> bytes:
    # ASCII: names that are not UTF-8 and signs that some readers take for a line's end survive.
    return json.dumps(failure.model_dump(mode="python")).encode("ascii") + b"\n"


def append(store: Path, failure: Failure) -> None:
    """Add a line at once, so that a killed run keeps it."""
    with disk_errors(store, "write the quarantine"), (store / QUARANTINE).open("a+b") as f:
        if f.tell():
            f.seek(-1, os.SEEK_END)
            if f.read(1) != b"\n":  # torn by a crash: the new line must not be glued to it
                f.write(b"\n")
        f.write(_line(failure))


def settle(store: Path, new: Iterable[Failure], extracted: Collection[str]) -> None:
    """One line an id, sorted, without those that have been extracted since; no file where none is left.

    Failures that are no video's are not written down; what was known about the video before stays.
    """
    found = [*read(store).values(), *new]
    kept = {failure.id: failure for failure in found if fault(failure.reason) is not Fault.OURS}
    lines = [_line(kept[id]) for id in sorted(kept) if id not in extracted]
    path = store / QUARANTINE
    with disk_errors(store, "write the quarantine"):
        if not lines:
            path.unlink(missing_ok=True)
            return
        with replacing(path) as partial:
            partial.write_bytes(b"".join(lines))
