"""Looking for video files: folders, globs and lists become paths with stable ids. Nothing is opened here."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from aqa_shared.errors import UsageError

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3g2", "3gp", "asf", "avi", "divx", "f4v", "flv", "m2ts", "m2v", "m4v", "mj2", "mkv", "mov"),
        *("mp4", "mpeg", "mpg", "mts", "mxf", "ogv", "rm", "ts", "vob", "webm", "wmv"),
    )
)
"""What a folder is searched for. Naming a file does not make it safe: the decoder's probe decides that."""


def printable_id(text: str) -> str:
    """`text` as an id: printable, UTF-8, and different for different texts (a backslash is doubled)."""
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode("ascii") for c in text)


def few(names: Iterable[object], most: int = 5) -> str:
    """The first of many names."""
    found = [printable_id(str(name)) for name in names]
    return ", ".join(found[:most]) + (", …" if len(found) > most else "")


def id_of(path: str, root: str) -> str:
    """The id of a file: its path below `root` with its suffix, or the whole path where it lies elsewhere."""
    inside = root if root.endswith(os.sep) else root + os.sep
    return printable_id(path.removeprefix(inside).replace(os.sep, "/"))


def shown(path: str | os.PathLike[str]) -> str:
    """A path for people: what a terminal would act on is escaped."""
    text = os.fspath(path)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


@dataclass
class FoundFiles:
    """Video files under `root` in a stable order, and what was skipped."""

    root: str
    paths: list[str] = field(default_factory=list)
    """Absolute."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(path, why)."""

    def seen(self) -> str:
        """The files that were no videos, by suffix, most frequent first."""
        if not self.skipped:
            return "nothing at all"
        counts = Counter(PurePath(path).suffix.lower() or "no suffix" for path, _ in self.skipped)
        listed = ", ".join(f"{n} × {suffix}" for suffix, n in counts.most_common(6))
        return listed + (", …" if len(counts) > 6 else "")


def in_folder(root: str) -> FoundFiles:
    """Every file with a video's suffix below `root`; links to folders are followed, each folder once.

    Real folders come first, so that what a link repeats keeps the id of its real place. FIFOs, dangling links
    and the like count as videos where they are named so: the probe refuses them, and that is then recorded.
    """
    found = FoundFiles(root)
    visited: set[tuple[int, int]] = set()
    links: list[str] = []
    _walk(root, found, visited, links)
    while links:
        batch, links = sorted(links), []
        for link in batch:
            _walk(link, found, visited, links)
    found.paths.sort(key=_path_order)
    return found


def _walk(top: str, found: FoundFiles, visited: set[tuple[int, int]], links: list[str]) -> None:
    pending = [top]
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                found.skipped.append((folder, "a link to a folder that was searched already"))
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                names = sorted(entries, key=lambda e: e.name)
        except OSError as e:
            found.skipped.append((folder, f"cannot be searched: {e.strerror}"))
            continue
        if folder != top and any(e.name in ("zarr.json", ".zgroup") for e in names):
            found.skipped.append((folder, "a Zarr store"))
            continue
        for entry in names:
            if entry.name.startswith("."):
                found.skipped.append((entry.path, "hidden"))
            elif _is_folder(entry):
                (links if entry.is_symlink() else pending).append(entry.path)
            elif is_video_name(entry.name):
                found.paths.append(entry.path)
            else:
                found.skipped.append((entry.path, f"not a video ({PurePath(entry.name).suffix or 'no suffix'})"))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def _path_order(path: str) -> str:
    """Sorts folder by folder: what no name can hold comes before all that names do."""
    return path.replace(os.sep, "\0")


def is_video_name(name: str) -> bool:
    """Whether a folder search takes a file of this name."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def by_pattern(pattern: str) -> FoundFiles:
    """The files a glob gives (`**` is any depth), folders in it searched; ids are relative to its fixed part."""
    fixed = []
    for part in PurePath(os.path.abspath(pattern)).parts:
        if glob.has_magic(part):
            break
        fixed.append(part)
    root = os.path.join(*fixed)
    found = FoundFiles(root)
    paths: set[str] = set()
    for path in glob.iglob(os.path.abspath(pattern), recursive=True):
        if os.path.isdir(path):
            if "**" not in pattern:
                inner = in_folder(path)
                paths.update(inner.paths)
                found.skipped += inner.skipped
        elif is_video_name(path):
            paths.add(path)
        else:
            found.skipped.append((path, f"not a video ({PurePath(path).suffix or 'no suffix'})"))
    found.paths = sorted(paths, key=_path_order)
    return found


def in_list(path: Path) -> FoundFiles:
    """The files of a text list, one path a line, relative to the list's folder; `#` begins a comment line.

    Bytes that are not UTF-8 are taken as they are: file names are bytes. Raises UsageError for a NUL byte,
    which no file name can hold.
    """
    root = os.path.abspath(path.parent)
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    found = FoundFiles(root)
    for number, line in enumerate(data.decode("utf-8", "surrogateescape").split("\n"), 1):
        text = line.strip("\r\t ")
        if text and not text.startswith("#"):
            if "\0" in text:
                raise UsageError(
                    f"{shown(path)}: row {number} ({shown(text)[:60]}) holds a NUL byte, which no file name can",
                    fix="save the list as plain UTF-8 text, one path a line",
                )
            found.paths.append(local_path(text, root))
    found.paths = list(dict.fromkeys(found.paths))
    return found


def local_path(text: str, folder: str) -> str:
    """`text` as an absolute local path. A URL or `concat:` is no more than an odd file name here."""
    return os.path.normpath(os.path.join(folder, text))


def common_root(found: Sequence[FoundFiles]) -> str:
    """The folder that several inputs share."""
    try:
        return os.path.commonpath([f.root for f in found])
    except ValueError:  # different drives
        return found[0].root
