"""quarantine.jsonl: which videos are kept out of a store, and why; one Failure a line."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from pydantic import ValidationError

from aqa_shared.console import warn
from aqa_shared.records import Failure
from aqa_shared.store import QUARANTINE


def read(store: Path) -> dict[str, Failure]:
    """The latest line of every id; a line torn by a crash is left out, and said."""
    try:
        lines = (store / QUARANTINE).read_text("utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found: dict[str, Failure] = {}
    for number, line in enumerate(lines, 1):
        try:
            failure = Failure.model_validate_json(line)
        except ValidationError:
            if line.strip():
                warn(f"{store / QUARANTINE}, line {number} cannot be read and is ignored")
            continue
        found[failure.id] = failure
    return found


def append(store: Path, failure: Failure) -> None:
    """Add a line at once, so that a killed run keeps it."""
    with (store / QUARANTINE).open("a", encoding="utf-8") as f:
        f.write(failure.model_dump_json() + "\n")


def settle(store: Path, new: Iterable[Failure], extracted: Collection[str]) -> None:
    """One line an id, sorted, without those that have been extracted since; no file where none is left."""
    kept = read(store) | {failure.id: failure for failure in new}
    lines = [kept[id].model_dump_json() + "\n" for id in sorted(kept) if id not in extracted]
    path = store / QUARANTINE
    if not lines:
        path.unlink(missing_ok=True)
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text("".join(lines), "utf-8")
    partial.replace(path)
