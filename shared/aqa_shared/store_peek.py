"""What a store holds already, finalised or not: all that a writer needs to know before it loads anything heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqa_shared.errors import StoreError
from aqa_shared.records import ExtractSettings
from aqa_shared.store_disk import disk_errors, locked, read_root, roll_forward, root_or_none
from aqa_shared.store_identity import refuse_foreign
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


def peek(path: Path | str, *, repair: bool = True) -> Peek | None:
    """None where there is no store yet. Raises StoreError, also for a folder that is no store of ours.

    `repair` completes a finalise that was interrupted; without it nothing is written.
    """
    path = Path(path)
    with disk_errors(path, "read the store"):
        refuse_foreign(path)
        if repair and (path / JOURNAL).exists():
            with locked(path):
                roll_forward(path)
        if root_or_none(path) is None:
            return None
        for _ in range(3):
            seal = read_root(path, sealed_only=False).get("seal")
            try:
                return _read(path)
            except StoreError:
                # Another process may have finalised in this moment; a store that stands still is damaged.
                if seal == read_root(path, sealed_only=False).get("seal"):
                    raise
    raise StoreError(f"{path}: the store keeps changing", fix="run again when no other extraction writes to it")


def _read(path: Path) -> Peek:
    attributes = read_root(path)
    committed = read_index(path).metas()
    committed.update({s.id: s.meta for s in staged_videos(path, attributes["family"]).values()})
    return Peek(ExtractSettings.model_validate(attributes["settings"]), attributes["provenance"], committed)
