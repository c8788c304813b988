"""Labels: one small table beside the blocks, written again when one changes, so that features never are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.store.groups import GroupReader, GroupWriter
from aqa_shared.store.layout import LABEL_COLUMNS, LABELS, digest_of, text_array, to_json
from aqa_shared.store.log import Group
from aqa_shared.store.objects import Objects


class Labels(GroupReader):
    """What is known about how well videos were performed."""

    fix = "run aqa-extract again with the labels of all its videos, or restore a backup"

    def columns(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Every label column for these videos, (videos,) each; NaN and "" where unknown."""
        at = {video_id: i for i, video_id in enumerate(self.column("video_id"))}
        rows = np.array([at.get(i, -1) for i in ids], np.int64)
        found = {}
        for name, column in LABEL_COLUMNS.items():
            values = self.column(name)
            found[name] = (
                np.where(rows >= 0, values[rows], column.array([None]))
                if len(values)
                else (column.array([None] * len(ids)))
            )
        return found


def label_columns(objects: Objects, group: Group | None, ids: Sequence[str]) -> dict[str, np.ndarray]:
    """As `Labels.columns`, all unknown where nothing is known yet."""
    if group is None:
        return {n: c.array([None] * len(ids)) for n, c in LABEL_COLUMNS.items()}
    return Labels(objects, group).columns(ids)


def updated_labels(
    objects: Objects, group: Group | None, ids: Sequence[str], given: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, np.ndarray], Group | None]:
    """The columns with `given` in place of what was known, and the old table if it can be read.

    Where all are given, it need not.
    """
    try:
        columns = label_columns(objects, group, ids)
    except StoreError:
        if not set(ids) <= given.keys():
            raise
        columns, group = label_columns(objects, None, ids), None
    for i, video_id in enumerate(ids):
        if video_id in given:
            for name, column in LABEL_COLUMNS.items():
                value = given[video_id].get(name)
                columns[name][i] = column.cast(value or None if name == "extra" else value)
    return columns, group


def labels_digest(ids: Sequence[str], columns: Mapping[str, np.ndarray]) -> str:
    """What a table is named by."""
    return digest_of(to_json([list(ids), {n: list(columns[n]) for n in LABEL_COLUMNS}]).encode())


def write_labels_group(
    objects: Objects, ids: Sequence[str], columns: Mapping[str, np.ndarray], prefix: str, known: Group | None
) -> Group | None:
    """The table of these columns; `known` where that says the same already, None where there is no video."""
    digest = labels_digest(ids, columns)
    path = f"{LABELS}/{prefix}{digest}"
    if not ids or (known is not None and known.path.endswith(digest) and (prefix or known.path == path)):
        return known if ids else None
    writer = GroupWriter(objects, path, {"Conventions": "CF-1.11"})
    writer.column("video_id", text_array(ids), "stable id of the video")
    for name, column in LABEL_COLUMNS.items():
        writer.column(name, columns[name], column.about, coordinates="video_id")
    return writer.close(videos=len(ids))


def labels_problems(objects: Objects, group: Group) -> list[tuple[str, str]]:
    """(column, what is wrong) of a label table."""
    table = Labels(objects, group)
    found: dict[str, np.ndarray] = {}
    problems = []
    for name in ("video_id", *LABEL_COLUMNS):
        try:
            found[name] = table.column(name)
        except StoreError as e:
            problems.append((name, e.cause))
    if not problems and not group.path.endswith(labels_digest(list(found.pop("video_id")), found)):
        problems.append(("labels", "not what was written"))
    return problems
