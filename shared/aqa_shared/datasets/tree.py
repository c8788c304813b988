"""What lies in a dataset's folder, scanned once: tables by name, videos and folders of pictures by their place."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from aqa_shared.errors import NoInputError, UsageError
from aqa_shared.manifest_files import is_video_name, shown
from aqa_shared.pickles import load_arrays

PICTURES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class VideoPlace:
    """Where a performance is, or is expected: fields of a `Performance`."""

    path: str
    missing: bool = False
    pictures: int | None = None
    """Of a folder of pictures, how many."""

    def fields(self) -> dict[str, Any]:
        return {"path": self.path, "missing": self.missing, "pictures": self.pictures}


class Tree:
    """The files below `root`; links to folders are followed, each folder once, and hidden ones are skipped."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, list[str]] = defaultdict(list)
        self._media: dict[str, list[VideoPlace]] = defaultdict(list)
        """By the last part of the path, without a suffix."""
        if not root.is_dir():
            raise NoInputError(f"{shown(root)} is not a folder", fix="name the dataset's folder with --root")
        try:
            self._walk()
        except OSError as e:
            raise UsageError(f"cannot search {shown(e.filename or root)}: {e.strerror}", fix="check --root") from e
        for files in self._files.values():
            files.sort(key=lambda path: (path.count("/"), path))
        for places in self._media.values():
            # Videos before pictures, for their time stamps, and what lies higher before what is in some copy's folder.
            places.sort(key=lambda p: (p.pictures is not None, p.path.count("/"), p.path))

    def _walk(self) -> None:
        visited: set[tuple[int, int]] = set()
        pending = [""]
        while pending:
            folder = pending.pop()
            status = os.stat(self.root / folder)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            pictures = 0
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.name.lower().endswith(PICTURES):
                        pictures += 1
                    elif entry.is_dir():
                        pending.append(path)
                    elif is_video_name(entry.name):
                        self._media[os.path.splitext(entry.name)[0]].append(VideoPlace(path))
                    else:
                        self._files[entry.name].append(path)
            if pictures and folder:
                self._media[PurePosixPath(folder).name].append(VideoPlace(folder, pictures=pictures))

    def files(self, pattern: str) -> list[Path]:
        """The files whose whole name fits the regular expression `pattern`, those that lie highest first."""
        found = [path for name, paths in self._files.items() if re.fullmatch(pattern, name) for path in paths]
        return [self.root / path for path in sorted(found, key=lambda path: (path.count("/"), path))]

    def first(self, *patterns: str) -> Path | None:
        """The first file of the first of `patterns` that any file fits."""
        return next((path for pattern in patterns for path in self.files(pattern)), None)

    def needed(self, *patterns: str, fix: str) -> Path:
        """As `first`. Raises NoInputError where there is none."""
        if (path := self.first(*patterns)) is None:
            names = " or ".join(pattern.replace("\\", "") for pattern in patterns)
            raise NoInputError(f"{shown(self.root)}: no {names} in it or below", fix=fix)
        return path

    def media(self, *names: str, suffix: str = ".mp4") -> VideoPlace:
        """The video, or the folder of pictures, whose path ends in one of `names`, given without a suffix.

        The first name that fits any decides. Where none fits, the place is missing: the first name with `suffix`.
        """
        for name in names:
            tail = PurePosixPath(name).parts
            for place in self._media.get(tail[-1], ()) if tail else ():
                parts = PurePosixPath(place.path).parts
                if parts[-len(tail) : -1] == tail[:-1]:
                    return place
        return VideoPlace(f"{names[0]}{suffix}", missing=True)

    def part(self, own: str, whole: str, start: int, end: int) -> dict[str, Any]:
        """Fields of a performance that has a video `own`, else is the frames [start, end) of the video `whole`."""
        place = self.media(own)
        return self.media(whole).fields() | {"start": start, "end": end} if place.missing else place.fields()

    def relative(self, path: Path) -> str:
        """A path of `files`, for people: below the root."""
        return shown(path.relative_to(self.root))

    def pickle(self, path: Path, kind: type) -> Any:
        """The dictionary or list that a pickle holds. Raises UsageError for anything else."""
        content = load_arrays(path)
        if not isinstance(content, kind):
            raise UsageError(
                f"{shown(path)} holds a {type(content).__name__}, not a {kind.__name__}",
                fix="take the file as it is published",
            )
        return content


@contextmanager
def reading(path: Path, row: object) -> Iterator[None]:
    """What goes wrong with a row's values is an error of that row. Raises UsageError that names file, row and cause."""
    try:
        yield
    except ValidationError as e:
        first = e.errors()[0]
        cause = ".".join(map(str, first["loc"])) + f": {first['msg']}, got {first['input']!r}"[:200]
        raise _wrong(path, row, cause) from e
    except (KeyError, IndexError) as e:
        raise _wrong(path, row, f"it has no {e.args[0]!r}" if isinstance(e, KeyError) else "it is too short") from e
    except (TypeError, ValueError, AttributeError) as e:
        raise _wrong(path, row, str(e)) from e


def _wrong(path: Path, row: object, cause: str) -> UsageError:
    return UsageError(
        f"{shown(path)}, {row if isinstance(row, str) else f'entry {row!r}'}: {cause}",
        fix="take the file as it is published, or correct this entry",
    )


def words(path: Path, columns: int, header: bool = False) -> Iterator[tuple[int, list[str]]]:
    """(number, cells) of every row of a text table parted by blanks. Raises UsageError for a row of another length."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as e:
        raise UsageError(f"cannot read {shown(path)}: {e.strerror}", fix="check its permissions") from e
    except UnicodeDecodeError as e:
        raise UsageError(f"{shown(path)}: byte {e.start} is not UTF-8", fix="save the file as UTF-8") from e
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if not cells or (header and number == 1):
            continue
        if len(cells) != columns:
            raise UsageError(
                f"{shown(path)}, row {number}: {len(cells)} cells, expected {columns}",
                fix="take the file as it is published, or correct this row",
            )
        yield number, cells
