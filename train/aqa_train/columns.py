"""Columns of the videos' table as tensors: numbers, categories, vectors such as judges' marks, lists of tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from aqa_shared.errors import UsageError

Kind = Literal["number", "category", "vector", "tokens"]


@dataclass(frozen=True)
class ColumnEncoder:
    """How a column becomes numbers. Fitted on the training videos, so that a code means the same in every store."""

    kind: Kind
    words: tuple[str, ...] = ()
    """What the codes 0, 1, … of categories or tokens stand for."""
    width: int = 0
    """Length of vectors, or of the longest list of tokens."""
    label: bool = False
    """Belongs to the score, as judges' marks: known of labelled videos while training, and of none afterwards."""

    @classmethod
    def fit(cls, name: str, kind: Kind, values: Sequence[Any]) -> ColumnEncoder:
        """From the training videos' cells; None is unknown. Raises UsageError where they are not of this kind."""
        known = [v for v in values if v is not None]
        if kind == "number":
            return cls(kind)
        if kind == "category":
            return cls(kind, tuple(sorted({_word(v) for v in known})))
        lists = [_list(name, v, numbers=kind == "vector") for v in known]
        width = max(map(len, lists), default=0)
        if kind == "tokens":
            return cls(kind, tuple(sorted({_word(t) for own in lists for t in own})), width)
        if any(len(own) != width for own in lists):
            lengths = ", ".join(map(str, sorted({len(own) for own in lists})))
            raise UsageError(
                f"the column {name} has lists of different lengths ({lengths})",
                fix="give every video as many numbers, or none",
            )
        return cls(kind, (), width)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> ColumnEncoder:
        """Back from JSON."""
        return cls(record["kind"], tuple(record["words"]), record["width"], record["label"])

    def encode(self, name: str, values: Sequence[Any]) -> NDArray[Any]:
        """Cells as (videos,) or (videos, width): float32 with NaN, or int64 with -1, where unknown or unseen."""
        codes = {word: i for i, word in enumerate(self.words)}
        if self.kind == "number":
            return np.array([math.nan if v is None else _number(name, v) for v in values], dtype=np.float32)
        if self.kind == "category":
            return np.array([-1 if v is None else codes.get(_word(v), -1) for v in values], dtype=np.int64)
        if self.kind == "vector":
            marks = np.full((len(values), self.width), np.nan, dtype=np.float32)
            for mine, v in zip(marks, values, strict=True):
                own = [] if v is None else _list(name, v, numbers=True)
                if own and len(own) != self.width:
                    raise UsageError(f"the column {name} has {len(own)} numbers where {self.width} are needed: {v!r}")
                mine[: len(own)] = own
            return marks
        tokens = np.full((len(values), self.width), -1, dtype=np.int64)
        for row, v in zip(tokens, values, strict=True):
            own = [] if v is None else _list(name, v, numbers=False)[: self.width]
            row[: len(own)] = [codes.get(_word(t), -1) for t in own]
        return tokens


def _word(value: Any) -> str:
    """A category that is a number is the same one as 3, 3.0 and "3"."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(
            f"the column {name} has {value!r} where a number is needed", fix="correct it in the labels"
        ) from None


def _list(name: str, value: Any, *, numbers: bool) -> list[Any]:
    """A list, or text that is one: JSON, or parts between blanks, commas or semicolons."""
    if isinstance(value, str):
        try:
            parsed = json.loads(value)
        except ValueError:
            parsed = value.replace(",", " ").replace(";", " ").split() if numbers else value.split()
        value = parsed
    found = list(value) if isinstance(value, list | tuple) else [value]
    return [_number(name, v) for v in found] if numbers else found
