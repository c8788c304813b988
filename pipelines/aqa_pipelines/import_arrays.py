"""One imported array: from what a file holds to float32 (rows, columns), and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from aqa_pipelines.import_files import AGAIN, NOTHING, Nested, holds_nothing
from aqa_pipelines.import_transforms import Transform
from aqa_shared.errors import UsageError
from aqa_shared.manifest_files import few
from aqa_shared.records import Record
from aqa_shared.store.layout import array_digest


class ImportSettings(Record):
    """What an import does to every array: with what is said of their origin, the identity of the streams it makes."""

    made_by: str = "not stated"
    """Network, weights, protocol, in the user's words: arrays of other words do not lie beside these."""
    columns: tuple[int, ...] = ()
    """Of the last axis, those that are kept, in this order; () keeps all."""
    transforms: tuple[str, ...] = ()
    """NAME:SETTING=VALUE,… in full, in the order in which they are applied."""

    @property
    def identity(self) -> dict[str, Any]:
        """Of a stream: what is not at its default, and that it was imported."""
        return {"made_by": self.made_by, **self.model_dump(exclude={"made_by"}, exclude_defaults=True)}


def columns_of(text: str) -> tuple[int, ...]:
    """`0-2,19` → 0, 1, 2, 19. Raises UsageError."""
    found: list[int] = []
    for part in filter(None, text.replace(" ", "").split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and (not last.isdecimal() or int(last) < int(first))):
            raise UsageError(f"--columns {text!r}: {part!r}", fix="give numbers and ranges from 0, as 0-2,19-21")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)


class Unusable(ValueError):
    """What is wrong with one array, and the fix."""

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(cause)
        self.cause, self.fix = cause, fix


@dataclass(frozen=True)
class ArrayWork:
    """From what a file holds to what the store gets."""

    settings: ImportSettings
    transforms: list[Transform]

    def __call__(self, tree: Nested) -> tuple[np.ndarray, str]:
        """float32 (rows, columns), and the digest of what it was made of. Raises Unusable."""
        x = _array(tree)
        digest = array_digest(x)
        if self.settings.columns:
            if max(self.settings.columns) >= x.shape[-1]:
                raise Unusable(f"it has {x.shape[-1]} columns", "give --columns that are there, from 0")
            x = x[..., list(self.settings.columns)]
        for transform in self.transforms:
            if x.ndim != 2 and not transform.any_shape:
                break
            x = transform(x)
        if x.ndim != 2:
            raise Unusable(
                f"its shape is {x.shape}, expected (time, channels)",
                "--transform flatten takes all of a time as one row, --transform mean averages over what lies between",
            )
        with np.errstate(over="ignore"):
            made = np.ascontiguousarray(x, dtype=np.float32)
        if not np.isfinite(made).all():
            raise Unusable(*_not_finite(np.asarray(x)))
        return made, digest


def _array(tree: Nested) -> np.ndarray:
    """(time, …). Raises Unusable."""
    if holds_nothing(tree):
        raise Unusable(NOTHING, AGAIN)
    if isinstance(tree, dict):
        raise Unusable(f"it holds {few(tree)}, not an array", "say which is meant, with --stream NAME=KEY")
    try:
        x = np.asarray(tree)
    except ValueError:
        raise Unusable("its rows differ in length", "save it as an array (time, channels)") from None
    if x.dtype.kind not in "biuf":
        raise Unusable(f"its type is {x.dtype}, not numbers", "save it as an array of floats")
    x = x[None] if x.ndim == 1 else x
    if x.ndim == 0 or not x.size:
        raise Unusable(f"it is empty, its shape is {x.shape}", AGAIN)
    return x


def _not_finite(x: np.ndarray) -> tuple[str, str]:
    missing, beyond = np.isnan(x), np.isinf(x)
    rows = np.flatnonzero((missing | beyond).any(axis=1))
    if not len(rows):
        return f"values of up to {np.abs(x).max():.3g} are too large for float32", "bring them to a usual scale"
    kinds = [f"{count} {name}" for name, count in (("NaN", missing.sum()), ("infinite", beyond.sum())) if count]
    listed = ", ".join(map(str, rows[:5])) + (" …" if len(rows) > 5 else "")
    fix = "make it again, remove it, or replace NaN with --transform fill:value=0"
    return f"values that are {' and '.join(kinds)}, in row {listed} of {len(x)}", fix
