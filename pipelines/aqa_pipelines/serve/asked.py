"""From what a client, or a watched folder, names to a video that may be extracted: no path leads out of the roots."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pydantic import ValidationError

from aqa_shared.console import printable
from aqa_shared.manifest import part_name, printable_id
from aqa_shared.manifest_files import VIDEO_SUFFIXES, id_of
from aqa_shared.records import Video
from aqa_shared.settings import explain

LONGEST = 200
"""Characters of an id: names of files in archives have no more."""


class Refused(Exception):
    """With the HTTP status that says why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail


def video_at(text: str, roots: Sequence[Path], id: str | None = None, **part: float | None) -> tuple[Video, str]:
    """The video at a path below a root, and its version; relative paths are looked for in each root.

    A link counts as what it points to, which has to be in a root as well. The id is that of `aqa-extract ROOT`, with
    the part. Raises Refused.
    """
    if "\0" in text or not text:
        raise Refused(422, "path: is empty or holds a NUL byte")
    if ".." in PurePosixPath(text).parts:
        raise Refused(403, f"{printable(text)}: paths with .. are refused; write where it leads")
    found = [(root, Path(os.path.normpath(root / text))) for root in roots]
    inside = [(root, path) for root, path in found if path.is_relative_to(root)]
    named = next(((root, path) for root, path in inside if os.path.lexists(path)), None)
    if not inside:
        raise Refused(403, f"{printable(text)}: is not below a root of this service (--root)")
    if named is None:
        raise Refused(404, f"{printable(text)}: there is no such file")
    root, path = named
    real = Path(os.path.realpath(path))
    if not any(real.is_relative_to(os.path.realpath(each)) for each in roots):
        raise Refused(403, f"{printable(text)}: a link that leads out of the roots of this service")
    try:
        status = os.stat(real)
    except OSError as e:
        raise Refused(404, f"{printable(text)}: {e.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise Refused(422, f"{printable(text)}: is not a regular file; ask for each video by its own path")
    try:
        video = Video.model_validate({"id": "?", "path": str(path), **part})
        video = video.model_copy(
            update={"id": checked_id(id) if id else id_of(str(path), str(root)) + part_name(video)}
        )
    except ValidationError as e:
        raise Refused(422, explain(e)) from None
    return video, f"{status.st_size}-{status.st_mtime_ns}"


def checked_id(text: str) -> str:
    """An id that a client chose. Raises Refused."""
    if len(text) > LONGEST or printable_id(text) != text or text != text.strip():
        raise Refused(422, f"id: up to {LONGEST} printable characters without backslashes or blanks around them")
    return text


def upload_name(text: str) -> str:
    """The id of an upload: its name without folders, and with _ for what is not a letter, a digit, or one of ._- .

    Raises Refused where nothing is left.
    """
    name = re.sub(r"[^\w.-]", "_", text.replace("\\", "/").rsplit("/", 1)[-1]).lstrip(".")
    name = printable_id(name)[:LONGEST]
    if not re.search(r"\w", name):
        raise Refused(422, "the name of an upload needs a letter or a digit, as PUT /uploads/dive.mp4")
    return name


def upload_suffix(name: str) -> str:
    """What of the name becomes part of a path here: the suffix of a video, or nothing."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix if suffix in VIDEO_SUFFIXES else ""
