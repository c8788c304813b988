"""Labels from a table, in place of those the store holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_shared.manifest_labels import VideoNames, apply_labels
from aqa_shared.records import Video
from aqa_train.features import FeatureSet


def relabel(features: FeatureSet, path: Path, columns: Mapping[str, str] | None = None) -> FeatureSet:
    """`features` with the scores, splits and categories of the table at `path`; videos it lacks are unlabelled.

    `columns`: names of the table's columns for `id` and `score`, where they are others.
    """
    videos, root = _videos(features)
    found = apply_labels(videos, path, root, columns)
    for warning in found.warnings:
        features.say(warning)
    if found.unmatched:
        some = ", ".join(found.unmatched[:5])
        features.say(f"{path}: no video of the store for {counted(len(found.unmatched), 'label')}: {some}")
    if found.no_fit is not None:
        raise found.no_fit
    if not found.matched:
        raise UsageError(f"{path} has no row", fix="it needs one for each video that has a score")
    table = dict(features.table)
    for name in ("score", "difficulty"):
        values = [getattr(v, name) for v in found.videos]
        table[name] = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    for name in ("split", "category"):
        table[name] = np.array([getattr(v, name) or "" for v in found.videos], dtype=object)
    for name in {k for v in found.videos for k in v.extra} - set(table):
        values = [v.extra.get(name) for v in found.videos]
        table[name] = np.array(["" if v is None else str(v) for v in values], dtype=object)
    return replace(features, table=table)


def names_of(features: FeatureSet) -> VideoNames:
    """Finds the videos that an id, a path or a file's name, with or without its suffix, means."""
    return VideoNames(*_videos(features))


def _videos(features: FeatureSet) -> tuple[list[Video], str]:
    """The videos, and the folder that all of them lie in."""
    places = [str(p) or i for p, i in zip(features.column("path"), features.ids, strict=True)]
    folders = {os.path.dirname(p) for p in places}
    root = os.path.commonpath(folders) if len({os.path.isabs(f) for f in folders}) == 1 else ""
    return [Video(id=i, path=p) for i, p in zip(features.ids, places, strict=True)], root
