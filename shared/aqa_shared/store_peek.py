"""What a store holds already, finalised or not: all that a writer needs to know before it loads anything heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqa_shared.records import ExtractSettings
from aqa_shared.store_disk import disk_errors, locked, read_root, roll_forward, root_or_none
from aqa_shared.store_index import read_index
from aqa_shared.store_layout import JOURNAL
from aqa_shared.store_staging import staged_videos


@dataclass(frozen=True)
class Peek:
    """A store as the next writer will find it."""

    settings: ExtractSettings
    provenance: dict[str, Any]
    committed: Mapping[str, dict[str, Any]]
    """Id → meta of every video that is in the store."""
    staged: int
    """How many of them are not finalised."""


def peek(path: Path | str) -> Peek | None:
    """None where there is no store yet. Completes a finalise that was interrupted. Raises StoreError."""
    path = Path(path)
    with disk_errors(path, "read the store"):
        if (path / JOURNAL).exists():
            with locked(path):
                roll_forward(path)
        attributes = root_or_none(path)
        if attributes is None:
            return None
        attributes = read_root(path)
        committed = read_index(path).metas()
        staged = staged_videos(path, attributes["family"])
        committed.update({s.id: s.meta for s in staged.values()})
    return Peek(
        ExtractSettings.model_validate(attributes["settings"]), attributes["provenance"], committed, len(staged)
    )
