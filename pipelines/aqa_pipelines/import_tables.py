"""A file that is a table of many videos: arrays with an entry a video, or one after the other with offsets."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aqa_pipelines.import_files import Nested
from aqa_shared.errors import UsageError
from aqa_shared.manifest_files import few, shown

STREAMS = ("rgb", "flow")
"""Names that are streams wherever they stand, unless others are asked for."""
ANY = ("features", "feature", "feats", "feat", "data", "x", "X", "arr_0", "")
"""Names of the one array that is meant."""
IDS = ("id", "ids", "video_id", "video_ids", "video", "videos", "name", "names", "key", "keys")
OFFSETS = ("offset", "offsets")
LENGTHS = ("length", "lengths")
SCORES = ("score", "scores", "label", "labels")
LIST = 64
"""A column of lists has at most so many values a video; what is longer is not a label."""


@dataclass(frozen=True)
class ArrayTable:
    """Arrays of `videos` videos, by name."""

    path: Path
    tree: Mapping[str, Nested]
    videos: int

    @classmethod
    def of(cls, path: Path, tree: Mapping[str, Nested]) -> ArrayTable | None:
        """None where it is not a table: nothing in it says of how many videos it is."""
        for name in OFFSETS:
            if name in tree:
                return cls(path, tree, np.size(tree[name]) - 1)  # type: ignore[arg-type]
        for name in (*LENGTHS, *IDS, *SCORES):
            if isinstance(values := tree.get(name), np.ndarray) and values.size > 1:
                return cls(path, tree, values.size)
        for name in (*STREAMS, *ANY, *(tree if len(tree) == 1 else ())):
            values = tree.get(name)
            if isinstance(values, list) or (isinstance(values, np.ndarray) and values.ndim == 3):
                return cls(path, tree, len(values))
        return None

    def arrays(self, streams: Mapping[str, str], default: str) -> dict[str, str]:
        """Stream → name of its array. Raises UsageError where one is not there."""
        asked = streams or {s: s for s in STREAMS if s in self.tree} or {default: ""}
        found = {}
        for stream, where in asked.items():
            keys = [where or stream]
            if not where and len(asked) == 1:
                keys += [*ANY, *(self.tree if len(self.tree) == 1 else ())]
            key = next((k for k in keys if k in self.tree), None)
            if key is None:
                raise UsageError(
                    f"{shown(self.path)}: no array for the stream {stream}; it holds {few(self.tree)}",
                    fix="name one of them: --stream NAME=KEY",
                )
            found[stream] = key
        return found

    def ids(self) -> list[str]:
        """As the table says, else the numbers of the rows."""
        for name in IDS:
            values = self.tree.get(name)
            if isinstance(values, np.ndarray) and values.size == self.videos:
                return [str(v) for v in values.ravel().tolist()]
        return [f"{i:0{len(str(self.videos - 1))}d}" for i in range(self.videos)]

    def rows(self, key: str) -> Iterator[tuple[str, int | slice]]:
        """(id, its part of the array `key`) of every video. Raises UsageError where the array has another length."""
        spans = self._spans()
        values = self.tree[key]
        if isinstance(values, np.ndarray) and not values.ndim:
            raise UsageError(
                f"{shown(self.path)}: {key} is one value, expected an entry for each of {self.videos} videos",
                fix="save arrays that belong together",
            )
        count = len(values)
        parts: list[Any] = list(range(self.videos))
        if spans and count == spans[-1].stop:
            parts = spans
        elif count != self.videos:
            expected = spans[-1].stop if spans else self.videos
            raise UsageError(
                f"{shown(self.path)}: {key} has {count} rows, expected {expected} for {self.videos} videos",
                fix="save arrays that belong together",
            )
        return zip(self.ids(), parts, strict=True)

    def _spans(self) -> list[slice]:
        """Rows of every video in arrays that have them one after the other; none where nothing says."""
        edges = next((np.asarray(self.tree[k]).ravel() for k in OFFSETS if k in self.tree), None)
        if edges is None:
            lengths = next((np.asarray(self.tree[k]).ravel() for k in LENGTHS if k in self.tree), None)
            if lengths is None:
                return []
            edges = np.concatenate([[0], np.cumsum(lengths)]) if lengths.dtype.kind in "iu" else lengths
        if edges.dtype.kind not in "iu" or len(edges) < 2 or edges[0] != 0 or (np.diff(edges) < 0).any():
            raise UsageError(
                f"{shown(self.path)}: its offsets do not rise from 0",
                fix="give the row at which each video begins, and at the end the number of rows",
            )
        return [slice(int(a), int(b)) for a, b in itertools.pairwise(edges)]

    def columns(self, used: Iterable[str], ignored: Counter[str]) -> dict[str, dict[str, Any]]:
        """Id → every other array's value, or short list of values (as JSON), of the video; counts what is none."""
        known = {*used, *IDS, *OFFSETS, *LENGTHS}
        found: dict[str, dict[str, Any]] = {id: {} for id in self.ids()}
        for name, values in self.tree.items():
            if name in known:
                continue
            rows: list[Any] = []
            if isinstance(values, np.ndarray) and values.dtype.kind in "biufU":
                if values.size == self.videos:
                    rows = [_plain(v) for v in values.ravel().tolist()]
                elif values.ndim == 2 and len(values) == self.videos and values.shape[1] <= LIST:
                    rows = [json.dumps([_plain(v) for v in row]) for row in values.tolist()]
            if not rows:
                ignored[f"{name}, no label"] += 1
            for row, value in zip(found.values(), rows, strict=False):
                row[name] = value
        return found


def _plain(value: Any) -> Any:
    return None if value != value else value
