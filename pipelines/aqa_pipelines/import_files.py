"""Files of arrays, of any making, as plain trees: an array, a dictionary by name, or a list, of such.

Nothing in a file is called: pickles pass an allowlist, also those inside of NumPy's own formats. A file may claim at
most half of the memory that is free.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from aqa_shared.errors import UsageError
from aqa_shared.machine import available_memory
from aqa_shared.manifest_files import shown
from aqa_shared.pickles import MANY, ArrayUnpickler

Nested: TypeAlias = "np.ndarray | dict[str, Nested] | list[Nested]"


NOTHING, AGAIN = "it holds no array", "make it again, or remove it"
"""What is wrong with a file or a part of one, and the fix."""


def holds_nothing(tree: Nested) -> bool:
    """Whether it is a dictionary without an array in it, at any depth: an empty group."""
    return isinstance(tree, dict) and all(map(holds_nothing, tree.values()))


def read_tree(path: Path) -> Nested:
    """What the file at `path` holds. Raises UsageError that names the file, the cause and the fix."""
    read, fix = READERS[path.suffix.lower()]
    try:
        return read(path)
    except UsageError:
        raise
    except MemoryError as e:
        raise UsageError(f"{shown(path)}: {e or 'it needs more memory than there is'}", fix="split it") from e
    except Exception as e:
        if isinstance(e, OSError) and e.errno is not None:
            raise UsageError(f"{shown(path)}: cannot be read: {e.strerror}", fix="check the file") from e
        # Damaged files raise nearly anything.
        detail = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise UsageError(f"{shown(path)}: cannot be read as {path.suffix}: {detail}", fix=fix) from e


def _refuse_large(claimed: int) -> None:
    most = available_memory() // 2
    if claimed > most:
        raise MemoryError(f"it holds {claimed / 2**20:.0f} MiB, and {most / 2**20:.0f} MiB may be used for it")


def _npy(path: Path) -> Nested:
    with path.open("rb") as file:
        return _npy_of(file, path.stat().st_size)


def _npy_of(file: BinaryIO, size: int) -> Nested:
    """An array in NumPy's format, of `size` bytes with its header; one of objects through the allowlist."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read(file)
    if kind.hasobject:
        return _unpickled(file, size)
    claimed = int(np.prod(shape, dtype=object)) * kind.itemsize
    if claimed > size:
        raise ValueError(f"it ends too early: {size} bytes, and an array of {claimed}")
    _refuse_large(claimed)
    file.seek(0)
    return _tree(np.lib.format.read_array(file, allow_pickle=False))


def _npz(path: Path) -> Nested:
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
        _refuse_large(sum(m.file_size for m in members))
        found: dict[str, Nested] = {}
        for member in members:
            with archive.open(member) as file:
                found[member.filename.removesuffix(".npy")] = _npy_of(file, member.file_size)  # type: ignore[arg-type]
        return found


def _pickle(path: Path) -> Nested:
    with path.open("rb") as file:
        return _unpickled(file, path.stat().st_size)


def _unpickled(file: BinaryIO, size: int) -> Nested:
    _refuse_large(size)
    # Python 2 wrote the bytes of arrays as text.
    return _tree(ArrayUnpickler(file, encoding="latin1").load())


def _mat(path: Path) -> Nested:
    from scipy.io import loadmat, whosmat

    sizes = {name: int(np.prod(shape, dtype=object)) for name, shape, _ in whosmat(path)}
    _refuse_large(8 * sum(sizes.values()))
    found = loadmat(path)
    return {name: _cells(found[name]) if found[name].dtype == object else _tree(found[name]) for name in sizes}


def _cells(cells: np.ndarray) -> Nested:
    """A cell array as a list; a text lies in an array of one."""
    return _tree([c.item() if c.size == 1 else c for c in cells.ravel().tolist()])


def _hdf5(path: Path) -> Nested:
    from aqa_pipelines.import_hdf5 import read_hdf5

    return read_hdf5(path, _refuse_large)


def _tree(value: Any) -> Nested:
    left = MANY

    def walk(value: Any) -> Nested:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it holds more than {MANY} values")
        if isinstance(value, Mapping):
            named = {_key(k): walk(v) for k, v in value.items()}
            if len(named) < len(value):
                raise ValueError("two of its keys are the same as text")
            return named
        if isinstance(value, np.ndarray) and value.dtype.hasobject and value.dtype.names is None:
            return walk(value.item() if value.ndim == 0 else value.tolist())
        if isinstance(value, list | tuple):
            if all(isinstance(v, str | int | float | np.generic) for v in value):
                left -= len(value)
                return np.array(value)
            return [walk(v) for v in value]
        if isinstance(value, np.ndarray | str | int | float | np.generic):
            return np.asarray(value)
        raise ValueError(f"it holds a {type(value).__name__}, and only arrays are read")

    return walk(value)


def _key(key: Any) -> str:
    """As an id: (1, 23), MTL-AQA's (event, dive), is 01_23 as `aqa datasets` writes it."""
    if isinstance(key, tuple):
        return "_".join(f"{k:02d}" if isinstance(k, int | np.integer) else str(k) for k in key)
    return str(key)


_AGAIN = "save it again, as with numpy.save, or remove it"
_NEWER = "MATLAB: save it with -v7; NumPy: save it as .npz"
_PLAIN = "save its arrays in one file, as groups and arrays of numbers"
READERS: dict[str, tuple[Callable[[Path], Nested], str]] = {
    ".npy": (_npy, _AGAIN),
    ".npz": (_npz, _AGAIN),
    ".pkl": (_pickle, "save its arrays with numpy.savez, or as a pickle of a dictionary of NumPy arrays"),
    ".pickle": (_pickle, "save its arrays with numpy.savez, or as a pickle of a dictionary of NumPy arrays"),
    ".mat": (_mat, _NEWER),
    ".h5": (_hdf5, _PLAIN),
    ".hdf5": (_hdf5, _PLAIN),
}
"""By suffix: how a file is read, and what to do where it cannot be."""


def files_below(root: Path) -> tuple[list[Path], dict[str, int]]:
    """The files of arrays below a folder, sorted, and how many others by suffix; what is hidden is passed over.

    Raises UsageError where it cannot be searched.
    """
    found: list[Path] = []
    others: dict[str, int] = {}

    def fail(error: OSError) -> None:
        raise UsageError(f"cannot search {shown(error.filename or root)}: {error.strerror}", fix="check the folder")

    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and not _is_zarr(Path(folder, f)))
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in READERS:
                found.append(Path(folder, name))
            else:
                others[suffix or "no suffix"] = others.get(suffix or "no suffix", 0) + 1
    return sorted(found, key=lambda p: p.parts), others


def _is_zarr(folder: Path) -> bool:
    return (folder / "zarr.json").exists() or (folder / ".zgroup").exists()
