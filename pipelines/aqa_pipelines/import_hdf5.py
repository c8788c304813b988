"""HDF5 files of arrays: groups are dictionaries by name.

What a file says of other files is refused: external links, virtual arrays and arrays with external storage would read
anything that the user may read. A soft link is followed to an array of the same file.
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aqa_shared.errors import UsageError
from aqa_shared.manifest_files import printable_id, shown
from aqa_shared.pickles import MANY

if TYPE_CHECKING:
    import h5py  # type: ignore[import-untyped]

    from aqa_pipelines.import_files import Nested

DEEPEST = 8
"""Groups within groups; a group may hold itself."""
_AT_ONCE = 64 << 20
"""Bytes of text that are read at a time."""
_CHUNK_RECORD = 4096
"""Bytes that HDF5 keeps of every chunk while an array is read, also of those that were never written."""


def read_hdf5(path: Path, refuse_large: Callable[[int], None]) -> Nested:
    """What the file holds. `refuse_large` is told how many bytes that is before any are read.

    Raises ValueError for what is not an array, and UsageError where h5py is not installed.
    """
    try:
        import h5py
    except ImportError:
        raise UsageError(
            f"{shown(path)}: h5py, which reads {path.suffix} files, is not installed",
            fix="pip install h5py (the extra h5 of aqa)",
        ) from None
    with h5py.File(path, "r", locking=False) as file:
        arrays, links, empty = _arrays(file)
        refuse_large(sum(map(_claimed, arrays.values())))
        read = {name: _values(array, path.stat().st_size, refuse_large) for name, array in arrays.items()}
    for name, target in links.items():
        for _ in range(DEEPEST):  # a link may lead to a link, and to itself
            target = links.get(target, target)
        if target not in arrays:
            raise ValueError(f"{printable_id(name)} is a link to {printable_id(target)}, which is no array in it")
        read[name] = read[target]
    return _nested(read, empty)


def _arrays(file: h5py.File) -> tuple[dict[str, h5py.Dataset], dict[str, str], list[str]]:
    """The arrays by path, the paths of soft links with where they lead, and groups without anything in them.

    Raises ValueError for anything else.
    """
    import h5py

    arrays: dict[str, h5py.Dataset] = {}
    links: dict[str, str] = {}
    empty: list[str] = []
    left = MANY
    groups: list[tuple[h5py.Group, int]] = [(file, 0)]
    for group, depth in groups:  # grows meanwhile
        if depth and not len(group):
            empty.append(group.name)
        for key in group:
            left -= 1
            if left < 0:
                raise ValueError(f"it holds more than {MANY} arrays and groups")
            if isinstance(key, bytes):
                raise ValueError(f"the name {key!r} in {printable_id(group.name)} is not UTF-8")
            name, link = posixpath.join(group.name, key), group.get(key, getlink=True)
            if isinstance(link, h5py.SoftLink):
                links[name] = posixpath.join(group.name, link.path)
                continue
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{printable_id(name)} is a link to another file, which is not followed")
            found = group[key]
            if isinstance(found, h5py.Dataset):
                _refuse_other_files(name, found)
                arrays[name] = found
            elif not isinstance(found, h5py.Group):
                raise ValueError(f"{printable_id(name)} is a {type(found).__name__}, and only arrays are read")
            elif depth == DEEPEST:
                raise ValueError(f"{printable_id(name)} lies more than {DEEPEST} groups deep, or holds itself")
            else:
                groups.append((found, depth + 1))
    return arrays, links, empty


def _refuse_other_files(name: str, array: h5py.Dataset) -> None:
    import h5py

    if array.is_virtual or array.external:
        raise ValueError(f"{printable_id(name)} is virtual or has its values in another file, which is not read")
    if array.dtype.hasobject and h5py.check_string_dtype(array.dtype) is None:
        raise ValueError(f"{printable_id(name)} holds objects or references, and only numbers and text are read")


def _claimed(array: h5py.Dataset) -> int:
    """Bytes in memory; a chunk is unpacked whole, however little of it belongs to the array."""
    shape, chunks = array.shape or (0,), array.chunks
    if chunks is None:
        return math.prod(shape) * array.dtype.itemsize
    number = math.prod(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))
    return max(math.prod(shape), math.prod(chunks)) * array.dtype.itemsize + number * _CHUNK_RECORD


def _values(array: h5py.Dataset, file_size: int, refuse_large: Callable[[int], None]) -> np.ndarray:
    import h5py

    if array.shape is None:
        return np.empty(0)
    if h5py.check_string_dtype(array.dtype) is None:
        return np.asarray(array[()])
    texts = array.asstr(errors="replace")
    if array.ndim == 0:
        return np.array(texts[()])
    # Many entries may be one text of the file, so what they take is known only while they are read.
    row = math.prod(array.shape[1:])
    refuse_large(row * file_size)
    step = max(1, _AT_ONCE // max(1, row * file_size))
    read = [np.empty((0, *array.shape[1:]), dtype=str)]
    for first in range(0, len(array), step):
        read.append(np.asarray(texts[first : first + step], dtype=str))
        refuse_large(array.size * max(part.itemsize for part in read))
    return np.concatenate(read)


def _nested(arrays: dict[str, np.ndarray], empty: list[str]) -> Nested:
    tree: dict[str, Nested] = {}
    found: dict[str, Nested] = {**arrays, **{name: {} for name in empty}}
    for name, values in found.items():
        *folders, last = name.strip("/").split("/")
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})  # type: ignore[assignment]
        inner[last] = values
    return tree
