"""Labels: small tables beside the blocks, so that features are never written again for a label's sake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.store.groups import GroupReader, GroupWriter
from aqa_shared.store.layout import LABEL_COLUMNS, LABELS, digest_of, text_array, to_json
from aqa_shared.store.log import Group
from aqa_shared.store.objects import Objects

Columns = dict[str, np.ndarray]
"""Every label column, (videos,) each; NaN and "" where unknown."""


class Labels(GroupReader):
    """What is known about how well videos were performed."""

    fix = "run aqa-extract again with the labels of all its videos, or restore a backup"


def unknown_labels(ids: Sequence[str]) -> Columns:
    """The columns of videos of which nothing is known."""
    return {n: c.array([None] * len(ids)) for n, c in LABEL_COLUMNS.items()}


def label_columns(objects: Objects, tables: Sequence[Group], ids: Sequence[str]) -> Columns:
    """The columns of these videos: what the last table that has a video says of it."""
    found = unknown_labels(ids)
    at = {video_id: row for row, video_id in enumerate(ids)}
    for group in tables:
        table = Labels(objects, group)
        rows = np.array([at.get(i, -1) for i in table.column("video_id")], np.int64)
        for name, column in found.items():
            column[rows[rows >= 0]] = table.column(name)[rows >= 0]
    return found


def given_columns(ids: Sequence[str], given: Mapping[str, Mapping[str, Any]]) -> Columns:
    """The columns of what a run says of videos."""
    rows = [given.get(i, {}) for i in ids]
    return {
        n: c.array((r.get(n) or None) if n == "extra" else r.get(n) for r in rows) for n, c in LABEL_COLUMNS.items()
    }


def differing(first: Columns, second: Columns) -> np.ndarray:
    """bool (videos,): of which the two say something else."""
    return np.any([(a != b) & ((a == a) | (b == b)) for a, b in ((first[n], second[n]) for n in LABEL_COLUMNS)], axis=0)


def labels_digest(ids: Sequence[str], columns: Columns) -> str:
    """What a table is named by."""
    return digest_of(to_json([list(ids), {n: list(columns[n]) for n in LABEL_COLUMNS}]).encode())


def write_table(objects: Objects, ids: Sequence[str], columns: Columns, prefix: str, known: Sequence[Group]) -> Group:
    """The table of these columns; the one in `known` that is it already."""
    path = f"{LABELS}/{prefix}{labels_digest(ids, columns)}"
    for group in known:
        if group.path == path:
            return group
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
