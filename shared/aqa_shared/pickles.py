"""Pickles of other people's making: read only if they hold names, numbers, lists and arrays."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from aqa_shared.errors import UsageError


class ArrayUnpickler(pickle.Unpickler):
    """Reads containers of NumPy arrays and nothing else."""

    # NumPy 2 moved its modules to numpy._core, and pickles name whichever wrote them.
    allowed = frozenset(
        {("numpy", "ndarray"), ("numpy", "dtype")}
        | {(f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")}
        | {(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")}
        | {("_codecs", "encode")}
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only arrays are read")
        # Called as a pickle likes, NumPy's own would take memory that no byte of the file backs.
        stand_in = {
            "ndarray": name,
            "_reconstruct": _empty_array,
            "scalar": _scalar,
            "_frombuffer": _from_buffer,
            "encode": _encode,
        }.get(name)
        return stand_in or super().find_class(module, name)


def _empty_array(kind: str, shape: tuple[int, ...], code: Any) -> Any:
    """As NumPy writes every array: an empty one, whose shape and bytes follow."""
    if shape != (0,):
        raise pickle.UnpicklingError(f"it asks for an array of {shape} without values")
    return np.ndarray(shape, dtype=code)


def _scalar(kind: np.dtype[Any], value: Any = None) -> Any:
    if not isinstance(value, bytes) or len(value) != kind.itemsize:
        raise pickle.UnpicklingError(f"it asks for a {kind} without its value")
    return np.frombuffer(value, dtype=kind)[0]


def _from_buffer(values: Any, kind: np.dtype[Any], shape: tuple[int, ...], order: str) -> Any:
    """As protocol 5 writes an array that lies in one piece."""
    if not isinstance(values, bytes | bytearray):
        raise pickle.UnpicklingError("it asks for an array without values")
    return np.frombuffer(values, dtype=kind).reshape(shape, order="F" if order == "F" else "C")


def _encode(text: str, encoding: str) -> bytes:
    """As protocols before 3 write bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for bytes in {encoding}")
    return text.encode("latin1")


def load_arrays(path: Path) -> Any:
    """What the pickle at `path` holds, arrays and tuples as lists. Raises UsageError for anything else."""
    refuse_large(path)
    try:
        with path.open("rb") as file:
            return _Plain()(ArrayUnpickler(file).load())
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}", fix="name a readable file") from None
    except Exception as e:
        # Damaged pickles raise nearly anything.
        detail = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise UsageError(f"{path} is not a pickle of lists and arrays: {detail}", fix="save it as JSON") from None


LARGEST = 256 * 2**20
"""Bytes of a file of annotations; the largest that is published has about 30 MB."""


def refuse_large(path: Path) -> None:
    """Raises UsageError for a file that is too large for one that is read whole, or cannot be looked at."""
    try:
        size = path.stat().st_size
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}", fix="name a readable file") from None
    if size > LARGEST:
        raise UsageError(
            f"{path} has {size / 2**20:.0f} MiB, more than the {LARGEST / 2**20:.0f} MiB that are read whole",
            fix="name the file of annotations, not one of features",
        )


MANY = 10_000_000
"""Values that a file may hold: lists that repeat each other grow without end."""


class _Plain:
    def __init__(self) -> None:
        self.left = MANY

    def __call__(self, value: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError(f"it holds more than {MANY} values")
        if isinstance(value, dict):
            return {k: self(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [self(v) for v in value]
        return self(value.tolist()) if hasattr(value, "tolist") else value
