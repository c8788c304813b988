"""Files that are replaced or made whole or not at all, and folders that are gone afterwards."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aqa_shared.errors import EnvironmentFault


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to: it takes the place of `path` at the end, or goes away on an error.

    Two processes do not share it, on two machines either, where process ids may be equal: in containers they are.
    After `kill -9` it stays, as `.<name>.<random>.partial`.
    """
    partial = beside(path)
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def existing(place: Path) -> Path:
    """The folder that `place` is or will be made in. Raises NotADirectoryError where that is a file."""
    place = Path(os.path.abspath(place))
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
    return place


def try_writing(folder: Path) -> None:
    """Write a file into a folder and remove it. Raises OSError, naming the folder, where that cannot be.

    What permissions say is not enough: root has them all, and a network file system has rules of its own.
    """
    probe = folder / f".probe.{secrets.token_hex(4)}.partial"
    try:
        probe.write_bytes(b"0")
        probe.unlink()
    except OSError as e:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        raise OSError(e.errno, e.strerror, str(folder)) from e


def free_bytes(place: Path) -> int:
    """Bytes that are free where `place` is or will be. Raises the OSError of writing there where that cannot be."""
    place = existing(place)
    if not os.access(place, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(place).f_flag & os.ST_RDONLY
        code = errno.EROFS if read_only else errno.EACCES
        raise OSError(code, os.strerror(code), str(place))
    return shutil.disk_usage(place).free


def replace_text(path: Path, text: str) -> None:
    """`path` holds `text` in UTF-8, line ends as they are."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_new(path: Path, text: str) -> bool:
    """`path` holds `text` in UTF-8, unless it was there before: then False, and it stays as it is.

    Of many processes that do so at once one succeeds, and the others find its file whole: it is made by a hard link.
    On a file system without them (FAT, some network file systems) others may find it before its text is in it.
    """
    partial = beside(path)
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        try:
            os.link(partial, path)
        except FileExistsError:
            raise
        except OSError:  # how a file system says that it has none differs; what else is wrong, the next line meets too
            with path.open("x", encoding="utf-8", newline="") as file:
                file.write(text)
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)
    return True


def beside(path: Path) -> Path:
    """Where to prepare what is to stand at `path`; no other process has the name, on another machine either."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


@contextmanager
def scratch(prefix: str, otherwise: Path | None = None) -> Iterator[Path]:
    """A private folder that is removed at the end: a temporary one, or one in `otherwise` (made where it is absent).

    Raises EnvironmentFault, naming TMPDIR, where neither can be written.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=prefix)
    except OSError as e:
        try:
            if otherwise is None:
                raise
            otherwise.mkdir(parents=True, exist_ok=True)
            folder = tempfile.TemporaryDirectory(prefix=f".{prefix}", dir=otherwise)
        except OSError:
            raise _no_temporary_folder(e) from e
    with folder as name:
        yield Path(name)


def temporary_folder() -> Path:
    """The system's, or TMPDIR. Raises EnvironmentFault where none can be written."""
    try:
        return Path(tempfile.gettempdir())
    except OSError as e:
        raise _no_temporary_folder(e) from e


def _no_temporary_folder(error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"there is no folder to keep temporary files in: {error.strerror or error}",
        fix="set TMPDIR to a folder that can be written",
    )
