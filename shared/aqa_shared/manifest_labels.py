"""Labels from a table beside the videos: matched by id, else by path, else by a name that fits one video only."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_shared.manifest_files import is_video_name, printable_id
from aqa_shared.manifest_table import Row, Table, read_table
from aqa_shared.manifest_text import FIELDS, PATH_NAMES, Problems
from aqa_shared.records import Video


@dataclass
class Labelled:
    """Videos with their labels, and what did not fit."""

    videos: list[Video]
    matched: int = 0
    unmatched: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    no_fit: UsageError | None = None
    """Why none of the labels fits, for the caller to raise where that is an error."""


class VideoNames:
    """Finds the videos that a name in a label table may mean."""

    def __init__(self, videos: Sequence[Video], root: str) -> None:
        inside = root if root.endswith(os.sep) else root + os.sep
        self.ids = {_same(v.id): i for i, v in enumerate(videos)}
        self.paths, self.stems, self.names, self.name_stems, self.folded, self.numbers = (
            defaultdict[str, list[int]](list) for _ in range(6)
        )
        for i, video in enumerate(videos):
            self.paths[_same(printable_id(video.path))].append(i)
            relative = video.path.removeprefix(inside).replace(os.sep, "/")
            self.paths[_same(printable_id(relative))].append(i)
            self.stems[_same(printable_id(os.path.splitext(relative)[0]))].append(i)
            name = os.path.basename(video.path)
            self.names[_same(printable_id(name))].append(i)
            stem = os.path.splitext(name)[0]
            self.name_stems[_same(printable_id(stem))].append(i)
            for text in {name.casefold(), stem.casefold()}:
                self.folded[_same(printable_id(text))].append(i)
            if stem.isdecimal():
                self.numbers[stem.lstrip("0") or "0"].append(i)

    def find(self, key: str, folder: str) -> list[int]:
        """Positions of the videos that `key` names: the first kind of match that finds any decides."""
        if (found := self.ids.get(_same(key))) is not None:
            return [found]
        text = str(PurePosixPath(key))
        absolute = os.path.normpath(os.path.join(folder, text))
        stem = os.path.splitext(text)[0] if is_video_name(text) else text
        for table, name in (
            (self.paths, text),
            (self.paths, absolute),
            (self.stems, stem),
            (self.names, text),
            (self.name_stems, stem),
            # A table may give the path from another folder: its last part decides if only one video has it.
            (self.names, os.path.basename(text)),
            (self.name_stems, os.path.basename(stem)),
            (self.folded, os.path.basename(text).casefold()),
        ):
            found_here = table.get(_same(name)) or table.get(_same(printable_id(name)))
            if found_here:
                return list(dict.fromkeys(found_here))
        if "\\" in key:
            return self.find(key.replace("\\", "/"), folder)
        return []

    def find_by_number(self, key: str) -> list[int]:
        """Positions of the videos whose name is that number: spreadsheets make 1 of 0001, and 1.0 beside gaps."""
        stem = os.path.splitext(key)[0] if is_video_name(key) else key
        number = re.fullmatch(r"0*(\d+)(\.0+)?", stem)
        return list(self.numbers.get(number[1], [])) if number else []


def _same(text: str) -> str:
    """File systems and spreadsheets write é in two ways; both mean the same file."""
    return unicodedata.normalize("NFC", text)


def apply_labels(videos: Sequence[Video], path: Path, root: str, columns: Mapping[str, str] | None = None) -> Labelled:
    """`videos` with the labels of the table at `path`; a video without a row keeps what it had.

    `columns`: names of the table's columns for `id` and `score`, where they are others.
    Raises UsageError for a table that cannot be read, a name that fits several videos, and two scores for
    one video. An empty score is an unlabelled video.
    """
    table = read_table(path, [("id", *PATH_NAMES), ("score",)], columns)
    problems = Problems(path)
    names = VideoNames(videos, root)
    folder = os.path.abspath(path.parent)
    out = Labelled(list(videos), warnings=table.odd_columns())
    first: dict[int, tuple[int, Row]] = {}
    by_number: list[tuple[str, int]] = []
    for number, row in table.rows:
        key = row.id or ""
        if not key:
            problems.add(number, "id", None, "is empty")
            continue
        found = names.find(key, folder) or (names.find(row.path, folder) if row.path else [])
        if not found and (found := names.find_by_number(key)):
            by_number.append((key, found[0]))
        if len(found) > 1:
            problems.add(number, "id", key, f"fits several videos: {_some(videos[i].id for i in found)}")
        elif not found:
            out.unmatched.append(key)
        elif found[0] in first:
            _twice(number, key, row, *first[found[0]], problems, out.warnings, path)
        else:
            first[found[0]] = (number, row)
    problems.raise_if_any("write the id (the path below the input folder) of the video that is meant, once")
    for i, (_, row) in first.items():
        out.videos[i] = videos[i].model_copy(
            update={
                "score": row.score,
                "difficulty": row.difficulty,
                "split": row.split,
                "category": row.category,
                "extra": {k: v for k, v in row.extra.items() if k not in PATH_NAMES},
            }
        )
    out.matched = len(first)
    if by_number:
        label, i = by_number[0]
        out.warnings.append(
            f"{path}: {counted(len(by_number), 'id')} matched as numbers ({label} for {out.videos[i].id}): a "
            "spreadsheet may have dropped leading zeros"
        )
    if table.rows and not out.matched:
        out.no_fit = _why_none(table, names, folder, out)
    return out


def _why_none(table: Table, names: VideoNames, folder: str, out: Labelled) -> UsageError:
    """The error that says why no label fits: another column does, or what both sides look like."""
    cause = (
        f"{table.path}: none of its {len(table.rows)} labels fits a video: {_some(map(printable_id, out.unmatched))}; "
        f"the videos are {_some(v.id for v in out.videos)}"
    )
    fits = {
        column: sum(bool(names.find(str(row.extra.get(column) or ""), folder)) for _, row in table.rows)
        for column in table.columns
        if column not in FIELDS
    }
    best = max(fits, key=lambda column: fits[column], default="")
    if best and fits[best]:
        return UsageError(
            f"{cause}; its column {best!r} fits {fits[best]} of them", fix=f"choose it with --id-column {best}"
        )
    if any(re.fullmatch(r"\d+([.,]\d+)?E\+\d+", key) for key in out.unmatched):
        return UsageError(
            f"{cause}; a spreadsheet made numbers of its ids", fix="write the ids as text, and save again"
        )
    return UsageError(
        cause,
        fix="write the id (the path below the input folder) or the file name of each video, or name another table",
    )


def _twice(
    number: int, key: str, row: Row, other: int, before: Row, problems: Problems, warnings: list[str], path: Path
) -> None:
    if row.score != before.score:
        problems.add(number, "score", row.score, f"contradicts row {other} ({before.score}) for {printable_id(key)}")
    else:
        warnings.append(
            f"{path}: rows {other} and {number} label the same video ({printable_id(key)}); the first counts"
        )


def _some(ids: Iterable[str]) -> str:
    items = list(ids)
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
