"""Tables that people wrote: CSV in all its dialects, and JSON lines, with errors that name the row."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from aqa_shared.errors import UsageError, did_you_mean
from aqa_shared.manifest_files import is_video_name
from aqa_shared.manifest_text import (
    FIELDS,
    JSON_SUFFIXES,
    Problems,
    csv_rows,
    decode_table,
    json_rows,
    read_header,
    without_row_numbers,
)


class Row(BaseModel):
    """One row, typed; what is not a field of ours stays in `model_extra`."""

    model_config = ConfigDict(extra="allow", str_strip_whitespace=True)

    id: str | None = None
    path: str | None = None
    start: int | None = Field(default=None, ge=0)
    end: int | None = Field(default=None, ge=1)
    start_time: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    end_time: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    score: float | None = Field(default=None, allow_inf_nan=False)
    difficulty: float | None = Field(default=None, allow_inf_nan=False)
    split: str | None = None
    category: str | None = None

    @field_validator("id", "path", "split", "category", mode="before")
    @classmethod
    def _numbers_are_names_too(cls, value: object) -> object:
        """JSON lines may give an id or a class as a number."""
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @property
    def extra(self) -> dict[str, str | float | int | bool | None]:
        """The other columns; what is not a plain value becomes JSON text."""
        return {
            k: v if isinstance(v, str | float | int | bool | None) else json.dumps(v, ensure_ascii=False)
            for k, v in (self.model_extra or {}).items()
        }


@dataclass(frozen=True)
class Table:
    """Rows with the number of the line each starts at."""

    path: Path
    columns: list[str]
    rows: list[tuple[int, Row]]

    @property
    def has_labels(self) -> bool:
        """Whether it says anything beyond which part of which file a video is, be it that all scores are unknown."""
        if not {"score", "difficulty", "split", "category"}.isdisjoint(self.columns):
            return True
        return any(value not in (None, "") for _, row in self.rows for value in row.extra.values())

    def odd_columns(self) -> list[str]:
        """Columns that are kept as extras but look like a misspelt field."""
        odd = []
        for column in self.columns:
            near = difflib.get_close_matches(column, FIELDS, n=1, cutoff=0.8)
            if near and column not in FIELDS and near[0] not in self.columns:
                odd.append(f"{self.path}: column {column!r} is kept as an extra; did you mean {near[0]!r}?")
        return odd


def read_table(path: Path, needed: Sequence[Sequence[str]], names: Mapping[str, str] | None = None) -> Table:
    """Read and validate a CSV (also with `;`, `|` or tabs), a JSON list or object, or JSON lines.

    `needed`: groups of names; of each group one column must be present, and is renamed to the group's first.
    `names`: field of ours → the column of this table that holds it.
    Raises UsageError naming file, row, column and value.
    """
    text, names = decode_table(path), dict(names or {})
    problems = Problems(path)
    json_kind = path.suffix.lower() in JSON_SUFFIXES
    raw: list[tuple[int, dict[str, Any]]]
    if json_kind:
        raw = list(json_rows(text, problems))
        problems.raise_if_any("correct these rows: a list of objects, or one object a line")
        columns = list(dict.fromkeys(k for _, cells in raw for k in cells))
    else:
        dialect = read_header(path, text, names.values())
        raw = list(csv_rows(dialect, text, problems))
        problems.raise_if_any("correct these rows: every row needs as many cells as the header")
        columns = without_row_numbers(path, dialect.columns, raw, list(needed))
        _decimal_commas(dialect.delimiter, raw, (*_NUMBERS, *(names[n] for n in _NUMBERS if n in names)))
    renames = _renames(path, columns, needed, names, empty=not raw)
    rows = []
    for number, cells in raw:
        named = {renames.get(k, k): None if v == "" else v for k, v in cells.items() if k}
        try:
            rows.append((number, Row.model_validate(named)))
        except ValidationError as e:
            for error in e.errors():
                column = ".".join(str(x) for x in error["loc"])
                problems.add(
                    number, column, error["input"], f"— {_plainly(error['type'], error['input'], error['msg'])}"
                )
    problems.raise_if_any("correct these cells; an empty score is an unlabelled video")
    return Table(path, [renames.get(c, c) for c in columns], rows)


_COMMA = re.compile(r"[+-]?\d+,\d+")
_NUMBERS = ("score", "difficulty", "start_time", "end_time")


def _decimal_commas(delimiter: str, raw: list[tuple[int, dict[str, Any]]], columns: Iterable[str]) -> None:
    """Spreadsheets that separate cells with `;` do so because their decimals have commas; with tabs both occur.

    Behind tabs `1,234` may be a thousand and more: a column is read with commas only where some number cannot be.
    """
    for column in columns:
        found = [cells[column] for _, cells in raw if cells.get(column)]
        commas = [text for text in found if _COMMA.fullmatch(text)]
        if delimiter == "," or any("." in text for text in found):
            continue
        if delimiter == ";" or any(len(text.split(",")[1]) != 3 for text in commas):
            for _, cells in raw:
                if _COMMA.fullmatch(cells.get(column) or ""):
                    cells[column] = cells[column].replace(",", ".")


def _plainly(kind: str, value: object, message: str) -> str:
    if kind == "float_parsing":
        if isinstance(value, str) and value.count(",") == 1 and value.replace(",", "").lstrip("+-").isdigit():
            return f"is not a number (write {value.replace(',', '.')})"
        if isinstance(value, str) and value.rstrip().endswith("%"):
            return f"is not a number (write {value.rstrip(' %')}, without the sign)"
        return "is not a number"
    if kind in ("int_parsing", "int_from_float"):
        return "is not a whole number"
    return "is not finite" if kind == "finite_number" else message[:1].lower() + message[1:]


def _renames(
    path: Path, columns: Sequence[str], needed: Sequence[Sequence[str]], names: Mapping[str, str], *, empty: bool
) -> Mapping[str, str]:
    """Column → field. Raises UsageError that names everything missing at once."""
    renames: dict[str, str] = {}
    missing, fixes = [], []
    for field_name, asked in names.items():
        there = [c for c in columns if c == asked] or [c for c in columns if c.casefold() == asked.casefold()]
        if there:
            # What else bears the field's name is kept under another.
            renames |= {field_name: f"other_{field_name}"} | {there[0]: field_name}
        else:
            missing.append(repr(asked))
            fixes.append(did_you_mean(asked, columns))
    for group in needed:
        there = [c for c in columns if renames.get(c, c) in group]
        if there:
            renames.setdefault(there[0], group[0])
        elif group[0] not in names:
            missing.append(" or ".join(group))
            near = difflib.get_close_matches(group[0], columns, n=1, cutoff=0.6)
            option = f" (or --{group[0]}-column {near[0] if near else 'NAME'})" if group[0] in ("id", "score") else ""
            fixes.append((f"rename {near[0]!r} to {group[0]!r}" if near else f"add a column {group[0]!r}") + option)
    if not missing:
        return renames
    if empty and not columns:
        raise UsageError(f"{path}: the file is empty", fix=f"it needs a header with {', '.join(missing)}")
    if any(is_video_name(c) or _COMMA.fullmatch(c) or c.replace(".", "", 1).isdigit() for c in columns):
        raise UsageError(
            f"{path}: the first row is not a header but data: {', '.join(map(repr, columns[:5]))}",
            fix=f"begin the table with the names of its columns, as {','.join(group[0] for group in needed)}",
        )
    raise UsageError(
        f"{path}: no column {' and no column '.join(missing)}; it has {', '.join(map(repr, columns))}",
        fix="; ".join(filter(None, fixes)) or "name a column that it has",
    )
