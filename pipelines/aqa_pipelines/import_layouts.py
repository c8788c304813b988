"""How people lay out features: which array of which file is which stream of which video.

    a folder ──┬─ a file a video and stream    NAME_rgb.npy + NAME_flow.npy, rgb/NAME.npy, or NAME.npy alone
               ├─ a file a video               NAME.npz or NAME.h5 with the arrays rgb and flow
               └─ a file of many videos        Ball_rgb_VST.npy or .h5, a dictionary of ids
    a file ────┬─ a table                      features (videos, time, channels), or data + offset; id, score, …
               ├─ a dictionary                 id → array, id → stream → array, or stream → id → array
               └─ one video

What an array is worth is not looked at here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from aqa_pipelines.import_files import AGAIN, NOTHING, READERS, Nested, files_below, holds_nothing, read_tree
from aqa_pipelines.import_tables import ANY, STREAMS, ArrayTable
from aqa_shared.errors import NoInputError, UsageError
from aqa_shared.manifest_files import few, printable_id, shown

COMPANIONS = ("_fps", "_timestamps_ms")
"""What video_features writes beside the features of a video, and no feature."""
DEFAULT = "features"
"""Name of the stream where nothing says another."""
NAMED = (".npz", ".mat", ".h5", ".hdf5")
"""In these an array always has a name: that of the only one says nothing of ids."""
ONE_VIDEO = (".npz", ".mat")
"""Such a file of a folder is of one video; the others may be dictionaries of ids."""


@dataclass(frozen=True)
class Item:
    """One stream of one video."""

    id: str
    stream: str
    path: Path
    keys: tuple[str, ...] = ()
    """Where in the file."""
    row: int | slice | None = None
    """Which part of the array there, of one of many videos."""

    @property
    def where(self) -> str:
        """For people."""
        within = ".".join(map(printable_id, self.keys)) + (f"[{self.row}]" if isinstance(self.row, int) else "")
        return shown(self.path) + (f" [{within}]" if within else "")

    def load(self) -> Nested:
        """As it is in the file; of many items of one file the file is read once."""
        tree = _last(self.path)
        for key in self.keys:
            tree = tree[key]  # type: ignore[call-overload]
        return tree if self.row is None else tree[self.row]  # type: ignore[index]


@lru_cache(maxsize=1)
def _last(path: Path) -> Nested:
    """One file is kept: those of a folder may be more than fits."""
    return read_tree(path)


@dataclass
class ArrayFiles:
    """What a folder or a file holds."""

    path: Path
    streams: Mapping[str, str]
    """Name → where: the end of a file's name (`_rgb`), a folder (`rgb/`), a name in the files, or "" where there is one
    stream only. None: what the names say."""
    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Id → what a table says of the video besides."""
    ignored: Counter[str] = field(default_factory=Counter)
    """What was passed over, and how often."""
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    """(where, cause, fix) of files that cannot be used."""

    def items(self) -> Iterator[Item]:
        """Every array, those of a file one after the other.

        Raises NoInputError where there is none, and UsageError for what is ambiguous.
        """
        _last.cache_clear()
        if not self.path.exists():
            raise NoInputError(f"{shown(self.path)}: no such file or folder", fix="check the path")
        if not self.path.is_dir() and self.path.suffix.lower() not in READERS:
            raise NoInputError(f"{shown(self.path)} is not one of {', '.join(READERS)}", fix=_SAVE)
        first: dict[tuple[str, str], Item] = {}
        for item in self._folder() if self.path.is_dir() else self._file():
            if (other := first.setdefault((item.id, item.stream), item)) is not item:
                raise UsageError(
                    f"the id {item.id} would mean two arrays of {item.stream}: {other.where} and {item.where}",
                    fix="take one of them away, or say which is which stream, with --stream NAME=_END or NAME=KEY",
                )
            yield item

    def _file(self) -> Iterator[Item]:
        tree = _last(self.path)
        named, empty = _parted(tree) if isinstance(tree, dict) else ({"": tree}, [])
        if (table := ArrayTable.of(self.path, named)) is None:
            yield from self._content(self.path, self.path.stem, self.streams, alone=True)
            return
        self._pass_over(empty, self.path)
        arrays = table.arrays(self.streams, DEFAULT)
        for stream, key in arrays.items():
            keys = (key,) if isinstance(tree, dict) else ()
            for id, row in table.rows(key):
                yield Item(printable_id(id), stream, self.path, keys, row)
        for id, values in table.columns(arrays.values(), self.ignored).items():
            self.columns[printable_id(id)] = values

    def _folder(self) -> Iterator[Item]:
        files, others = files_below(self.path)
        self.ignored.update({f"*{suffix}": count for suffix, count in others.items()})
        if not files:
            seen = ", ".join(f"{n} × {what}" for what, n in self.ignored.most_common(6)) or "nothing at all"
            raise NoInputError(
                f"{shown(self.path)}: no {', '.join(READERS)} in it or below; it holds {seen}", fix=_SAVE
            )
        names = {path: path.relative_to(self.path).as_posix().removesuffix(path.suffix) for path in files}
        by_name = self._by_name(names.values())
        for path, name in names.items():
            if companion := next((c for c in COMPANIONS if name.endswith(c)), ""):
                self.ignored[f"*{companion}{path.suffix} of video_features"] += 1
                continue
            asked, rest = self.streams, name
            if by_name:
                fits = [(where, stream, r) for stream, where in by_name.items() if (r := _rest(name, where))]
                if not fits:
                    self.ignored[f"{name}{path.suffix}, of no stream"] += 1
                    continue
                _, stream, rest = max(fits)  # of _rgb and _still_rgb the longer
                asked = {stream: ""}
            try:
                yield from self._content(path, rest, asked)
            except UsageError as e:
                self.problems.append((shown(path), e.cause.removeprefix(f"{shown(path)}: "), e.fix))

    def _by_name(self, names: Iterable[str]) -> dict[str, str]:
        """The streams that the names of files tell, and how; none where they are told in the files."""
        names = list(names)
        parts = {stream: where for stream, where in self.streams.items() if where}
        if not self.streams:
            for pattern in ("_{}", "{}/"):
                parts = parts or {
                    s: pattern.format(s) for s in STREAMS if any(_rest(n, pattern.format(s)) for n in names)
                }
        found = {stream: where for stream, where in parts.items() if any(_rest(n, where) for n in names)}
        if found and len(found) < len(parts):
            raise NoInputError(
                f"{shown(self.path)}: no file for the stream "
                f"{', '.join(f'{s}={w}' for s, w in parts.items() if s not in found)}; there are {few(sorted(names))}",
                fix="give the end of the files' names (_rgb) or a folder (rgb/) as it is there",
            )
        return found

    def _content(self, path: Path, name: str, streams: Mapping[str, str], *, alone: bool = False) -> Iterator[Item]:
        """What a file holds that is not a table: arrays of the video `name`, or of many videos by id."""
        tree = _last(path)
        known = {where or stream: stream for stream, where in streams.items()} or {s: s for s in STREAMS}
        only = _only(path, streams)
        if not isinstance(tree, dict):
            yield Item(printable_id(name), only(), path)
            return
        held, empty = _parted(tree)
        if not tree and not alone:
            raise UsageError(NOTHING, fix=AGAIN)
        elif there := [key for key in tree if key in known]:
            self.ignored.update(f"{key} in {path.suffix}" for key in tree if key not in known)
            if lacking := set(known) - set(there) if streams else set():
                raise UsageError(f"no {few(sorted(lacking))} in it; it holds {few(tree)}", fix=_SAY)
            for key in there:
                inner = tree[key]
                for id in inner if isinstance(inner, dict) and inner else [None]:
                    keys = (key,) if id is None else (key, id)
                    yield Item(printable_id(name if id is None else id), known[key], path, keys)
        elif not _groups(held) and len(held) == 1 and (path.suffix.lower() in NAMED or set(held) <= set(ANY)):
            self._pass_over(empty, path)
            yield Item(printable_id(name), only(), path, tuple(held))
        elif path.suffix.lower() in ONE_VIDEO and not alone:
            raise UsageError(f"which of {few(tree)} is meant?", fix=f"{_SAY}; a table of many videos is given itself")
        else:
            self.problems += [(f"{shown(path)} [{printable_id(id)}]", NOTHING, AGAIN) for id in empty]
            for id, inner in held.items():
                if not isinstance(inner, dict):
                    yield Item(printable_id(id), only(), path, (id,))
                    continue
                chosen = {key: known[key] for key in inner if key in known}
                if not chosen and len(own := _parted(inner)[0]) == 1:
                    chosen = {next(iter(own)): only()}
                if not chosen:
                    raise UsageError(f"which of {few(inner)} of {printable_id(id)} is meant?", fix=_SAY)
                self.ignored.update(f"{key} in {path.suffix}" for key in inner if key not in chosen)
                for key, stream in chosen.items():
                    yield Item(printable_id(id), stream, path, (id, key))

    def _pass_over(self, empty: Iterable[str], path: Path) -> None:
        self.ignored.update(f"{printable_id(key)} in {path.suffix}, which holds no array" for key in empty)


_SAVE = "save each array with numpy.save, or all in one numpy.savez"
_SAY = "say which array is which stream, with --stream NAME=KEY"


def _only(path: Path, streams: Mapping[str, str]) -> Callable[[], str]:
    """Names the one stream of a file. Raises UsageError where others were asked for."""

    def name() -> str:
        if any(streams.values()):
            wanted = ", ".join(f"{stream}={where}" for stream, where in streams.items())
            raise UsageError(
                f"{shown(path)}: neither its name nor an array in it is {wanted}",
                fix="give the end of the files' names (_rgb), a folder (rgb/), or the name of an array in the files",
            )
        return next(iter(streams), DEFAULT)

    return name


def _groups(tree: Mapping[str, Nested]) -> bool:
    return any(isinstance(inner, dict) for inner in tree.values())


def _parted(tree: Mapping[str, Nested]) -> tuple[dict[str, Nested], list[str]]:
    """What holds an array, and the names of what does not."""
    held = {key: inner for key, inner in tree.items() if not holds_nothing(inner)}
    return held, [key for key in tree if key not in held]


def _rest(name: str, where: str) -> str:
    """`name` without the folder or the end `where`; "" where it has neither."""
    if where.endswith("/"):
        return name.removeprefix(where) if name.startswith(where) else ""
    return name.removesuffix(where) if name.endswith(where) else ""
