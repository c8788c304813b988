"""From what a user points at to Video records: a folder, file, glob, list or manifest, and the labels beside it.

Nothing is opened but tables: whether a file is a video is for the decoder's probe to say, in its own process.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from aqa_shared.console import Say, counted
from aqa_shared.errors import NoInputError, UsageError
from aqa_shared.manifest_files import (
    VIDEO_SUFFIXES,
    FoundFiles,
    by_pattern,
    common_root,
    few,
    id_of,
    in_folder,
    in_list,
    local_path,
    printable_id,
    shown,
)
from aqa_shared.manifest_labels import apply_labels
from aqa_shared.manifest_table import Row, Table, read_table
from aqa_shared.manifest_text import JSON_SUFFIXES, NO_TEXT, PATH_NAMES, Problems
from aqa_shared.records import Video

__all__ = ["VIDEO_SUFFIXES", "Manifest", "find_videos", "printable_id"]

LABELS = "labels.csv"
_TABLES = (".csv", ".tsv", *JSON_SUFFIXES, *NO_TEXT)


@dataclass(frozen=True)
class Manifest:
    """The videos of a run, in a stable order with unique ids."""

    videos: list[Video]
    root: Path
    """Ids are relative to it."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(path, why) of what lay among the videos and is none."""
    labels_sources: list[Path] = field(default_factory=list)
    """The tables whose labels were read, also where every score in them is empty; none of which none fits a video."""
    unmatched: dict[Path, list[str]] = field(default_factory=dict)
    """By table: labels that fit no video."""
    warnings: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> int:
        """Videos with a score."""
        return sum(v.score is not None for v in self.videos)

    def report(self, note: Say, warn: Say) -> None:
        """Say in a few lines what was found and what was not."""
        sources = f" (labels from {', '.join(map(str, self.labels_sources))})" if self.labels_sources else ""
        note(f"{counted(len(self.videos), 'video')} in {shown(self.root)}, {self.labelled} with a score{sources}")
        why = Counter(reason for _, reason in self.skipped)
        if why:
            listed = ", ".join(f"{n} {reason}" for reason, n in why.most_common(6))
            note(f"skipped {counted(len(self.skipped), 'file')}: {listed}{', …' if len(why) > 6 else ''}")
        for table, labels in self.unmatched.items():
            warn(f"{table}: no video for {counted(len(labels), 'label')}: {few(labels)}")
        for warning in self.warnings[:20]:
            warn(warning)
        if len(self.warnings) > 20:
            warn(f"… and {len(self.warnings) - 20} more warnings")


def find_videos(
    source: str | Path | Sequence[str | Path],
    *,
    labels: Path | None = None,
    columns: Mapping[str, str] | None = None,
    with_labels: bool = True,
) -> Manifest:
    """Every video that `source` means: a folder, file, glob, list (.txt), manifest (.csv, .json, .jsonl), or several.

    The id of a file is its path below the input that names it: below the folder, the fixed part of the glob or the
    folder of the list or manifest; a file that is named itself goes by its name. So no id depends on what else is
    named. Labels come from `labels`, else from the manifests themselves, else from the labels.csv in or beside the
    folder of each input; `columns` says which columns of that table are `id` and `score`, where they are others.
    Without `with_labels` none are looked for.
    Raises NoInputError where nothing is found (with what was seen) and UsageError for wrong rows, for two files of
    one id, and for labels of which none fits a video.
    """
    sources = [os.fspath(source)] if isinstance(source, str | Path) else [os.fspath(s) for s in source]
    if not sources:
        raise NoInputError("no input was given", fix="name a folder, a file, a glob, a list or a manifest")
    found: list[FoundFiles] = []
    named = _Named()
    warnings: list[str] = []
    own_labels: list[Path] = []
    for item in sources:
        if PurePath(item).suffix.lower() in _TABLES and os.path.isfile(item):
            table = read_table(Path(item), [PATH_NAMES], columns if labels is None else None)
            _from_table(table, named)
            warnings += table.odd_columns()
            own_labels += [Path(item)] if table.has_labels else []
            found.append(FoundFiles(os.path.abspath(os.path.dirname(item))))
        else:
            found.append(_look(item))
            for path in found[-1].paths:
                named.add(Video(id=id_of(path, found[-1].root), path=path), shown(path))
    named.refuse_conflicts()
    videos = list(named.videos.values())
    if not videos:
        raise _nothing(sources, found)
    root = common_root(found)
    manifest = Manifest(
        videos, Path(root), [s for f in found for s in f.skipped], own_labels if with_labels else [], {}, warnings
    )
    if labels is not None:
        return _with_labels(manifest, labels, {v.id for v in videos}, root, columns, must_fit=True, must_be=True)
    tables = _labels_beside(sources, found) if with_labels else {}
    for table_path, beside in tables.items():
        ids = {id_of(path, f.root) for f in beside.inputs for path in f.paths}
        shared = common_root(beside.inputs)
        manifest = _with_labels(
            manifest, table_path, ids, shared, columns, must_fit=beside.in_folder, must_be=beside.inside
        )
    if columns and not (own_labels or tables):
        raise UsageError(
            f"there is no table of labels to look for {' and '.join(map(repr, columns.values()))} in",
            fix="name it with --labels",
        )
    return manifest


def _with_labels(
    manifest: Manifest,
    table: Path,
    ids: Collection[str],
    root: str,
    columns: Mapping[str, str] | None,
    *,
    must_fit: bool,
    must_be: bool,
) -> Manifest:
    """`manifest` with the labels of `table` for the videos with `ids`.

    A labels.csv beside the folder may be about something else altogether: where not `must_be` labels, it is said
    and not used; where not `must_fit`, none of them need be about these videos.
    """
    places = [i for i, video in enumerate(manifest.videos) if video.id in ids]
    try:
        labelled = apply_labels([manifest.videos[i] for i in places], table, root, columns)
    except UsageError as e:
        if must_be:
            raise
        return replace(manifest, warnings=[*manifest.warnings, f"not used as labels: {e.cause}; to use it: {e.fix}"])
    if labelled.no_fit is not None and must_fit:
        raise labelled.no_fit
    if not labelled.matched:
        # It says nothing about these videos, so a store keeps the labels it has.
        said = [f"{table}: not used, none of its labels fits a video"] if must_be and labelled.no_fit else []
        return replace(manifest, warnings=manifest.warnings + said)
    videos = list(manifest.videos)
    for i, video in zip(places, labelled.videos, strict=True):
        videos[i] = video
    at = os.path.abspath(table)
    return replace(
        manifest,
        videos=videos,
        skipped=[s for s in manifest.skipped if s[0] != at],
        labels_sources=[*manifest.labels_sources, table],
        unmatched={**manifest.unmatched, **({table: labelled.unmatched} if labelled.unmatched else {})},
        warnings=manifest.warnings + labelled.warnings,
    )


class _Named:
    """Videos by id, and where each id came from, to name both of a pair."""

    def __init__(self) -> None:
        self.videos: dict[str, Video] = {}
        self.origins: dict[str, str] = {}
        self.paths: dict[str, str] = {}
        """Path of a file that was named without a table → its id."""
        self.pairs: list[tuple[str, str, str]] = []
        """(id, origin, other origin) of every id that two videos would have."""

    def add(self, video: Video, origin: str) -> None:
        """A file that two inputs name is one video; raises UsageError where they give it two ids."""
        before = self.paths.setdefault(video.path, video.id)
        if before != video.id:
            raise UsageError(
                f"{origin} is named twice, as {before} and as {video.id}",
                fix="name its folder or the file itself, not both",
            )
        if video.id not in self.videos:
            self.videos[video.id], self.origins[video.id] = video, origin
        elif self.origins[video.id] != origin:
            self.pairs.append((video.id, self.origins[video.id], origin))

    def refuse_conflicts(self) -> None:
        """Raises UsageError that names both of every two videos with one id, and what gives them two."""
        if not self.pairs:
            return
        listed = "; ".join(f"{id}: {one} and {other}" for id, one, other in self.pairs[:5])
        more = f" and {len(self.pairs) - 5} more" if len(self.pairs) > 5 else ""
        one, other = self.pairs[0][1:]
        folder = os.path.commonpath([one, other]) if os.path.isabs(one) and os.path.isabs(other) else os.sep
        common = f"give the folder that holds them, {folder}, or " if folder != os.sep else "give "
        raise UsageError(
            f"{counted(len(self.pairs), 'id')} would mean two videos: {listed}{more}",
            fix=f"{common}a manifest with an `id` column",
        )


def _look(item: str) -> FoundFiles:
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
        return FoundFiles(os.path.dirname(path), [path])
    if glob.has_magic(item):
        return by_pattern(item)
    raise NoInputError(
        f"{shown(item)}: no such file or folder",
        fix="download it first and give the local file" if "://" in item else "check the path",
    )


def _from_table(table: Table, named: _Named) -> None:
    """Add the rows as videos."""
    problems = Problems(table.path)
    folder = os.path.abspath(table.path.parent)
    paths: list[str] = []
    for number, row in table.rows:
        if not row.path:
            problems.add(number, "path", None, "is empty")
            continue
        if "\0" in row.path:
            problems.add(number, "path", row.path, "holds a NUL byte, which no file name can")
            continue
        path = local_path(row.path, folder)
        if "\\" in row.path and not os.path.lexists(path):  # written on Windows
            path = local_path(row.path.replace("\\", "/"), folder)
        paths.append(path)
        extra = row.extra
        # Of a file it is something to know, of a folder of pictures something to read it by.
        rate: Any = (extra.pop("fps") or None) if "fps" in extra and os.path.isdir(path) else None
        try:
            video = Video(
                id=shown(row.id) if row.id else id_of(path, folder) + part_name(row),
                path=path,
                frame_rate=rate,
                extra=extra,
                **{n: getattr(row, n) for n in Row.model_fields if n not in ("id", "path")},
            )
        except ValidationError as e:
            error = e.errors()[0]
            of_rate = error["loc"] == ("frame_rate",)
            said = f"— {error['msg'].removeprefix('Value error, ')}"
            problems.add(number, "fps" if of_rate else "", rate if of_rate else None, said)
            continue
        if video.id in named.videos:
            problems.add(number, "id", video.id, f"is the id of {named.origins[video.id]} as well")
            continue
        named.videos[video.id], named.origins[video.id] = video, f"row {number} of {table.path.name}"
    problems.raise_if_any("correct these rows; ids must be unique, so give an `id` column where they are not")
    _refuse_all_missing(table.path, paths, folder)


def _refuse_all_missing(table: str | Path, paths: Sequence[str], folder: str) -> None:
    """One missing file is that video's failure; all of them are a wrong folder."""
    if paths and not any(os.path.lexists(p) for p in paths):
        raise NoInputError(
            f"{shown(table)}: none of its {len(paths)} files exists; the first would be {shown(paths[0])}",
            fix=f"paths in it are absolute, or relative to its own folder, {shown(folder)}",
        )


def part_name(row: Row | Video) -> str:
    """What the id of a part ends in, as `#54-154`; "" for a whole file."""
    if row.start is not None or row.end is not None:
        return f"#{row.start or 0}-{'' if row.end is None else row.end}"
    if row.start_time is not None or row.end_time is not None:
        end = "" if row.end_time is None else f"{row.end_time:g}s"
        return f"#{row.start_time or 0:g}s-{end}"
    return ""


@dataclass
class _Beside:
    """A labels.csv that nobody named."""

    inputs: list[FoundFiles] = field(default_factory=list)
    """Whose videos it is for."""
    inside: bool = False
    """It lies in the folder of one of them, so it is about these videos …"""
    in_folder: bool = False
    """… and that folder was named as a whole, so it must fit some of them."""


def _labels_beside(sources: Sequence[str], found: Sequence[FoundFiles]) -> dict[Path, _Beside]:
    """labels.csv in the folder of each input, else beside the folder that is the input."""
    tables: dict[Path, _Beside] = {}
    for source, one in zip(sources, found, strict=True):
        folder, is_folder = Path(one.root), os.path.isdir(source)
        for place in (folder, folder.parent) if is_folder else (folder,):
            if one.paths and (place / LABELS).is_file():
                beside = tables.setdefault(place / LABELS, _Beside())
                beside.inputs.append(one)
                beside.inside |= place == folder
                beside.in_folder |= is_folder and place == folder
                break
    return tables


def _nothing(sources: Sequence[str | Path], found: Sequence[FoundFiles]) -> NoInputError:
    named = ", ".join(shown(s) for s in sources[:3]) + (", …" if len(sources) > 3 else "")
    seen = "; ".join(f.seen() for f in found)
    images = any(PurePath(p).suffix.lower() in (".jpg", ".jpeg", ".png") for f in found for p, _ in f.skipped)
    return NoInputError(
        f"no videos in {named}; seen: {seen}",
        fix="a folder of pictures is a row of a manifest: its `path`, and pictures per second as `fps`"
        if images
        else f"videos are known by their suffix: {', '.join(sorted(VIDEO_SUFFIXES))}",
    )
