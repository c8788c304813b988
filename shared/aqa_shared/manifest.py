"""From what a user points at to Video records: a folder, file, glob, list or manifest, and the labels beside it.

Nothing is opened but tables: whether a file is a video is for the decoder's probe to say, in its own process.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath

from pydantic import ValidationError

from aqa_shared.errors import NoInputError, UsageError
from aqa_shared.manifest_files import (
    VIDEO_SUFFIXES,
    Found,
    by_pattern,
    common_root,
    id_of,
    in_folder,
    in_list,
    local_path,
    printable_id,
    shown,
    unique,
)
from aqa_shared.manifest_labels import apply_labels
from aqa_shared.manifest_table import PATH_NAMES, Problems, Row, Table, read_table
from aqa_shared.records import Video

__all__ = ["VIDEO_SUFFIXES", "Manifest", "find_videos", "printable_id"]

LABELS = "labels.csv"
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Manifest:
    """The videos of a run, in a stable order with unique ids."""

    videos: list[Video]
    root: Path
    """Ids are relative to it."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(path, why) of what lay among the videos and is none."""
    labels_source: Path | None = None
    """The table whose labels were read, also where every score in it is empty; None where none fits a video."""
    unmatched_labels: list[str] = field(default_factory=list)
    """Labels that fit no video."""
    warnings: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> int:
        """Videos with a score."""
        return sum(v.score is not None for v in self.videos)

    def report(self, note: Callable[[str], None], warn: Callable[[str], None]) -> None:
        """Say in a few lines what was found and what was not."""
        source = f" (labels from {self.labels_source})" if self.labels_source else ""
        note(f"{len(self.videos)} videos in {shown(self.root)}, {self.labelled} with a score{source}")
        why = Counter(reason for _, reason in self.skipped)
        if why:
            listed = ", ".join(f"{n} {reason}" for reason, n in why.most_common(6))
            note(f"passed over {len(self.skipped)}: {listed}{', …' if len(why) > 6 else ''}")
        if self.unmatched_labels:
            few = _few(self.unmatched_labels)
            warn(f"{self.labels_source}: {len(self.unmatched_labels)} label(s) fit no video: {few}")
        for warning in self.warnings[:20]:
            warn(warning)
        if len(self.warnings) > 20:
            warn(f"… and {len(self.warnings) - 20} more warnings")


def find_videos(source: str | Path | Sequence[str | Path], *, labels: Path | None = None) -> Manifest:
    """Every video that `source` means: a folder, file, glob, list (.txt), manifest (.csv, .jsonl), or several.

    Labels come from `labels`, else from the manifest itself, else from a labels.csv in or beside the folder.
    Raises NoInputError where nothing is found (with what was seen) and UsageError for wrong rows.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise NoInputError("no input was given", fix="name a folder, a file, a glob, a list or a manifest")
    found: list[Found] = []
    given: list[Video] = []
    rows: dict[str, str] = {}
    warnings: list[str] = []
    own_labels: Path | None = None
    for item in (os.fspath(s) for s in sources):
        if PurePath(item).suffix.lower() in _TABLES and os.path.isfile(item):
            table = read_table(Path(item), [PATH_NAMES])
            given += _from_table(table, rows)
            warnings += table.odd_columns()
            own_labels = own_labels or (Path(item) if table.has_labels else None)
            found.append(Found(os.path.abspath(os.path.dirname(item))))
        else:
            found.append(_look(item))
    root = common_root(found)
    skipped = [s for f in found for s in f.skipped]
    videos = given + [Video(id=id_of(p, root), path=p) for p in unique(p for f in found for p in f.paths)]
    _refuse_same_ids(videos, rows)
    if not videos:
        raise _nothing(sources, found)
    source_of_labels = labels if labels is not None else None if given else _labels_beside(sources, root)
    unlabelled = Manifest(videos, Path(root), skipped, own_labels, [], warnings)
    if source_of_labels is None:
        return unlabelled
    # A labels.csv beside the folder may be about something else altogether: it must not stop the run.
    beside = labels is None and source_of_labels.parent != Path(root)
    try:
        labelled = apply_labels(videos, source_of_labels, root)
    except UsageError as e:
        if not beside:
            raise
        return replace(unlabelled, warnings=[*warnings, f"not used as labels: {e.cause}"])
    if not labelled.matched:
        # It says nothing about these videos, so a store keeps the labels it has.
        found_none = f"{source_of_labels}: not used, none of its labels fits a video: {_few(labelled.unmatched)}"
        return unlabelled if beside else replace(unlabelled, warnings=[*warnings, *labelled.warnings, found_none])
    at = os.path.abspath(source_of_labels)
    return Manifest(
        labelled.videos,
        Path(root),
        [s for s in skipped if s[0] != at],
        source_of_labels,
        labelled.unmatched,
        warnings + labelled.warnings,
    )


def _look(item: str) -> Found:
    if os.path.isdir(item):
        return in_folder(os.path.abspath(item))
    if os.path.lexists(item):
        if PurePath(item).suffix.lower() == ".txt" and os.path.isfile(item):
            try:
                found = in_list(Path(item))
            except OSError as e:
                raise UsageError(f"cannot read {shown(item)}: {e.strerror}", fix="check its permissions") from e
            _refuse_all_missing(item, found.paths, found.root)
            return found
        path = os.path.abspath(item)
        return Found(os.path.dirname(path), [path])
    if glob.has_magic(item):
        return by_pattern(item)
    raise NoInputError(
        f"{shown(item)}: no such file or folder",
        fix="download it first and give the local file" if "://" in item else "check the path",
    )


def _from_table(table: Table, rows: dict[str, str]) -> list[Video]:
    """The rows as videos; `rows` remembers where each id came from, to name both of a pair."""
    problems = Problems(table.path)
    folder = os.path.abspath(table.path.parent)
    videos = []
    for number, row in table.rows:
        if not row.path:
            problems.add(number, "path", None, "is empty")
            continue
        if "\0" in row.path:
            problems.add(number, "path", row.path, "holds a NUL byte, which no file name can")
            continue
        path = local_path(row.path, folder)
        try:
            video = Video(
                id=shown(row.id) if row.id else id_of(path, folder) + _part(row),
                path=path,
                extra=row.extra,
                **{n: getattr(row, n) for n in Row.model_fields if n not in ("id", "path")},
            )
        except ValidationError as e:
            problems.add(number, "", None, f"— {e.errors()[0]['msg'].removeprefix('Value error, ')}")
            continue
        if video.id in rows:
            problems.add(number, "id", video.id, f"is the id of {rows[video.id]} as well")
            continue
        rows[video.id] = f"row {number} of {table.path.name}"
        videos.append(video)
    problems.raise_if_any("mend these rows; ids must be unique, so give an `id` column where they are not")
    _refuse_all_missing(table.path, [v.path for v in videos], folder)
    return videos


def _refuse_all_missing(table: str | Path, paths: Sequence[str], folder: str) -> None:
    """One missing file is that video's failure; all of them are a wrong folder."""
    if paths and not any(os.path.lexists(p) for p in paths):
        raise NoInputError(
            f"{shown(table)}: none of its {len(paths)} files exists; the first would be {shown(paths[0])}",
            fix=f"paths in it are absolute, or relative to its own folder, {shown(folder)}",
        )


def _part(row: Row) -> str:
    if row.start is not None or row.end is not None:
        return f"#{row.start or 0}-{'' if row.end is None else row.end}"
    if row.start_time is not None or row.end_time is not None:
        end = "" if row.end_time is None else f"{row.end_time:g}s"
        return f"#{row.start_time or 0:g}s-{end}"
    return ""


def _refuse_same_ids(videos: Sequence[Video], rows: dict[str, str]) -> None:
    counts = Counter(v.id for v in videos)
    twice = sorted(i for i, n in counts.items() if n > 1)
    if twice:
        named = ", ".join(f"{i} ({rows.get(i, 'files')})" for i in twice[:5])
        raise UsageError(
            f"{len(twice)} id(s) are not unique: {named}", fix="give a manifest with an `id` column, or fewer inputs"
        )


def _labels_beside(sources: Sequence[str | Path], root: str) -> Path | None:
    places = [Path(root)]
    if len(sources) == 1 and os.path.isdir(sources[0]):
        places.append(Path(root).parent)
    return next((p / LABELS for p in places if (p / LABELS).is_file()), None)


def _nothing(sources: Sequence[str | Path], found: Sequence[Found]) -> NoInputError:
    named = ", ".join(shown(s) for s in sources[:3]) + (", …" if len(sources) > 3 else "")
    seen = "; ".join(f.seen() for f in found)
    images = any(PurePath(p).suffix.lower() in (".jpg", ".jpeg", ".png") for f in found for p, _ in f.skipped)
    return NoInputError(
        f"no videos in {named}; seen: {seen}",
        fix="frames as images are not read: make them into videos, for example with ffmpeg"
        if images
        else f"videos are known by their suffix: {', '.join(sorted(VIDEO_SUFFIXES))}",
    )


def _few(ids: Sequence[str]) -> str:
    return ", ".join([*map(printable_id, ids[:5]), *(["…"] if len(ids) > 5 else [])])
