"""`aqa import-features`: features, skeletons and kinematics that were made elsewhere become a store to train on.

Everything is read and checked before anything is written; then each array is read again, and committed as extraction
commits a video. A stream's identity is what the import did to it and what is said of its origin; an array is known
again by the digest of its values, so a second run adds what is new and sees what has changed.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from aqa_pipelines.import_arrays import ArrayWork, ImportSettings, Unusable, columns_of
from aqa_pipelines.import_layouts import ArrayFiles, Item
from aqa_pipelines.import_transforms import transforms_of
from aqa_shared import __version__, console
from aqa_shared.errors import ExitCode, NoInputError, UsageError
from aqa_shared.manifest_files import few, is_video_name, shown
from aqa_shared.manifest_labels import apply_labels
from aqa_shared.manifest_table import Row
from aqa_shared.records import Video
from aqa_shared.store import ArraySpec, Contents, StoreWriter, contents, finalise, label, refuse_other, verify

MANY = 20
"""Problems that are shown in one message."""


@dataclass
class ImportReport:
    """What an import did, or would do."""

    store: str
    dry_run: bool
    labelled: int = 0
    made: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By stream, the ids that were added or replaced."""
    already: int = 0
    shapes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """By stream: fewest rows, most rows, columns."""
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    """(where, cause, fix) of what was left out."""

    @property
    def exit_code(self) -> ExitCode:
        """3 where something was left out."""
        return ExitCode.QUARANTINED if self.problems else ExitCode.OK

    def text(self) -> str:
        """The result as a person reads it."""
        made = console.counted(sum(map(len, self.made.values())), "array")
        done = "would be imported" if self.dry_run else "imported"
        lines = [f"{self.store}: {made} {done}, {self.already} already there"]
        for stream, (low, high, width) in sorted(self.shapes.items()):
            rows = f"{low}" if low == high else f"{low} to {high}"
            lines.append(f"  {stream}: {rows} rows × {width}; {len(self.made.get(stream, ()))} new")
        lines[0] += f", {len(self.problems)} left out:" if self.problems else ""
        for where, cause, _ in self.problems[:MANY]:
            lines.append(f"  {console.printable(where)}: {console.printable(cause)}")
        if len(self.problems) > MANY:
            lines.append(f"  … and {len(self.problems) - MANY} more")
        lines += [f"  fix: {fix}" for fix in dict.fromkeys(fix for _, _, fix in self.problems if fix)]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Seen:
    """An array that can be imported."""

    item: Item
    digest: str
    """Of the values as they are in the file."""
    rows: int
    width: int


def import_features(
    source: Path,
    out: str,
    *,
    streams: Sequence[str] = (),
    labels: Path | None = None,
    label_columns: Mapping[str, str] | None = None,
    columns: str = "",
    transforms: Sequence[str] = (),
    made_by: str = "",
    replace_changed: bool = False,
    repair: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
) -> ImportReport:
    """Bring the arrays of `source`, a folder or a file, into the store `out`, with their labels.

    Raises UsageError (2) for what is ambiguous or contradicts itself, NoInputError (4) where no array can be used,
    StoreError (6) for a store that has these streams of another making. What is wrong with one array leaves it out.
    """
    applied = transforms_of(transforms)
    settings = ImportSettings(
        made_by=" ".join(made_by.split()) or "not stated",
        columns=columns_of(columns),
        transforms=tuple(written for written, _ in applied),
    )
    work = ArrayWork(settings, [transform for _, transform in applied])
    held = ArrayFiles(source, _streams(streams))
    report = ImportReport(out, dry_run)
    seen, problems = _look(held, work)
    report.problems += problems
    if not seen:
        raise NoInputError(_none_of(source, problems), fix=problems[0][2] if problems else "check the path")
    there = None if overwrite else contents(out)
    if there is not None:
        seen = _as_in_store(seen, there)
    widths = _one_width(seen)
    specs = {stream: _spec(stream, width, settings) for stream, width in widths.items()}
    for stream in widths:
        rows = [one.rows for one in seen if one.item.stream == stream]
        report.shapes[stream] = (min(rows), max(rows), widths[stream])
    for what, count in held.ignored.most_common(6):
        console.note(f"skipped: {what}{f' ({count} times)' if count > 1 else ''}")
    videos = _labelled(held, seen, source, labels, label_columns)
    report.labelled = sum(v.score is not None for v in videos.values())
    console.note(f"{console.counted(len(videos), 'video')} in {shown(source)}, {report.labelled} with a score")

    if uneven := _uneven(seen):
        console.warn(
            f"streams differ in length in {console.counted(len(uneven), 'video')} ({few(uneven)}): aqa-train takes "
            "one of them (--streams), or all if --transform resample:rows=N gives them the same"
        )
    if there is not None:
        refuse_other(out, there.used, list(specs.values()))
    damaged = {(d.id, d.array) for d in verify(out)} if repair and there is not None else set()
    todo: list[_Seen] = []
    for one in seen:
        known = _digest_in(there.meta(one.item.id), one.item.stream) if there is not None else None
        broken = (one.item.id, one.item.stream) in damaged
        if known == one.digest and not broken:
            report.already += 1
        elif known in (None, one.digest) or replace_changed:
            todo.append(one)
            report.made[one.item.stream].append(one.item.id)
        else:
            changed = f"{one.item.id} has other values than in the store, which keeps its own"
            report.problems.append((one.item.where, changed, "--replace takes the new ones"))
    if dry_run:
        return report
    _write(out, todo, specs, work, source, {id for id, _ in damaged}, overwrite)
    if labels is not None or held.columns:
        label(out, videos)
    finalise(out)
    return report


# ---- what was asked for


def _streams(texts: Sequence[str]) -> dict[str, str]:
    """NAME=WHERE as a table. Raises UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, where = text.partition("=")
        name = name.replace("-", "_")
        try:
            ArraySpec(name, ("channel",), (1,), "float32", role="feature")
        except ValueError as e:
            raise UsageError(f"--stream {text!r}: {e}", fix="name it as rgb, flow or skeleton") from None
        if name in found:
            raise UsageError(f"--stream {name} is given twice", fix="give each stream once")
        found[name] = where
    if len(found) > 1 and not all(found.values()):
        raise UsageError(
            f"--stream {next(n for n, w in found.items() if not w)}: of several streams, say where each is",
            fix="NAME=_END of a file's name, NAME=FOLDER/, or NAME=KEY in the files",
        )
    return found


def _spec(stream: str, width: int, settings: ImportSettings) -> ArraySpec:
    dims = (f"channel_{stream}",)
    return ArraySpec(stream, dims, (width,), "float32", role="feature", identity=settings.identity)


# ---- all arrays


def _look(source: ArrayFiles, work: ArrayWork) -> tuple[list[_Seen], list[tuple[str, str, str]]]:
    """Every array that can be imported, and what is wrong with the others."""
    seen, problems = [], []
    for item in source.items():
        try:
            made, digest = work(item.load())
            seen.append(_Seen(item, digest, *made.shape))
        except Unusable as e:
            problems.append((item.where, e.cause, e.fix))
    return seen, [*source.problems, *problems]


def _none_of(source: Path, problems: Sequence[tuple[str, str, str]]) -> str:
    listed = "; ".join(f"{where}: {cause}" for where, cause, _ in problems[:5])
    return f"{shown(source)}: no array can be used{f': {listed}' if listed else ''}"


def _one_width(seen: Iterable[_Seen]) -> dict[str, int]:
    """Columns by stream. Raises UsageError where the arrays of one differ."""
    by_width: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for one in seen:
        by_width[one.item.stream][one.width].append(one.item.where)
    for stream, widths in by_width.items():
        if len(widths) > 1:
            listed = "; ".join(f"{len(w)} of {n} columns ({few(w[:2])})" for n, w in sorted(widths.items()))
            raise UsageError(
                f"the arrays of {stream} differ in width: {listed}",
                fix="import those of one network at a time, or name each stream with --stream NAME=_END",
            )
    return {stream: next(iter(widths)) for stream, widths in by_width.items()}


def _uneven(seen: Iterable[_Seen]) -> list[str]:
    """Videos whose streams have different numbers of rows."""
    rows: dict[str, set[int]] = defaultdict(set)
    for one in seen:
        rows[one.item.id].add(one.rows)
    return [id for id, found in rows.items() if len(found) > 1]


def _labelled(
    source: ArrayFiles, seen: Sequence[_Seen], path: Path, labels: Path | None, columns: Mapping[str, str] | None
) -> dict[str, Video]:
    """The videos by id, with labels from the table `labels`, else from the source itself."""
    root = str((path if path.is_dir() else path.parent).absolute())
    videos = []
    for id in dict.fromkeys(one.item.id for one in seen):
        # As if there were a file of that name: labels may name it with or without its folder and its end.
        video = Video(id=id, path=f"{root}/{id}" if is_video_name(id) else f"{root}/{id}.npy")
        videos.append(video if labels is not None else _own_labels(video, source, columns or {}))
    if labels is None:
        return {video.id: video for video in videos}
    found = apply_labels(videos, labels, root, columns)
    if found.no_fit is not None:
        raise found.no_fit
    for warning in found.warnings[:MANY]:
        console.warn(warning)
    if found.unmatched:
        unmatched = console.counted(len(found.unmatched), "label")
        console.warn(f"{labels}: {unmatched} without a video: {few(found.unmatched)}")
    if lacking := [v.id for v in found.videos if not v.has_labels]:
        console.warn(f"{labels}: {console.counted(len(lacking), 'video')} without a label: {few(lacking)}")
    return {video.id: video for video in found.videos}


def _own_labels(video: Video, source: ArrayFiles, columns: Mapping[str, str]) -> Video:
    if not (row := source.columns.get(video.id)):
        if columns:
            raise UsageError(f"{shown(source.path)} holds no labels", fix="name a table of labels with --labels")
        return video
    named = {k: v for k, v in row.items() if k not in columns.values()}
    for wanted, name in columns.items():
        if name not in row:
            raise UsageError(
                f"{shown(source.path)}: no array {name!r} of labels; it has {few(row)}", fix="name one of them"
            )
        named[wanted] = row[name]
    try:
        read = Row.model_validate(named)
        found = {n: getattr(read, n) for n in ("score", "difficulty", "split", "category")}
        return Video(id=video.id, path=video.path, extra=read.extra, **found)
    except ValidationError as e:
        first = e.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))} of {video.id} is {first['input']!r}: {first['msg']}"
        raise UsageError(
            f"{shown(source.path)}: {said}", fix="correct it, or give a table of labels with --labels"
        ) from None


# ---- the store


def _as_in_store(seen: Sequence[_Seen], there: Contents) -> list[_Seen]:
    """With the ids of the store, where that has videos by their files' names: `a` is its a.mp4."""
    known = {*there.index.ids, *there.parts}
    stems: dict[str, list[str]] = defaultdict(list)
    for id in known:
        stems[os.path.splitext(id)[0] if is_video_name(id) else id].append(id)
    named = []
    for one in seen:
        fits = stems.get(one.item.id, [])
        id = fits[0] if one.item.id not in known and len(fits) == 1 else one.item.id
        named.append(replace(one, item=replace(one.item, id=id)))
    return named


def _source(stream: str) -> str:
    return f"source_{stream}"


def _digest_in(meta: Mapping[str, Any], stream: str) -> str | None:
    return (meta.get(_source(stream)) or {}).get("digest")


def _write(
    out: str,
    todo: Sequence[_Seen],
    specs: Mapping[str, ArraySpec],
    work: ArrayWork,
    source: Path,
    damaged: set[str],
    overwrite: bool,
) -> None:
    """Commit every array. One writer a stream: the streams of a video may differ in length."""
    provenance = {
        "tool": f"aqa {__version__}",
        "imported": {"from": str(source.absolute()), **work.settings.model_dump(mode="json")},
    }
    with console.progress("import", len(todo)) as advance:
        for n, (stream, spec) in enumerate(specs.items()):
            with StoreWriter.open(out, specs=[spec], provenance=provenance, overwrite=overwrite and n == 0) as writer:
                for one in todo:
                    if one.item.stream != stream:
                        continue
                    made, digest = work(one.item.load())
                    # Equal features are the same video to those who hold some of them out.
                    meta = {"path": str(one.item.path.absolute()), "fingerprint": digest}
                    said = {"digest": digest, "where": ".".join(one.item.keys)}
                    writer.forget({one.item.id} & damaged)
                    writer.commit(one.item.id, {stream: made}, {**meta, _source(stream): said})
                    advance()
