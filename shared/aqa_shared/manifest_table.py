"""Tables that people wrote: CSV in all its dialects, and JSON lines, with errors that name the row."""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from aqa_shared.errors import UsageError
from aqa_shared.manifest_files import printable_id

MANY = 20
"""Row errors shown in one message."""
PATH_NAMES = ("path", "video", "file", "filename", "video_path")
FIELDS = ("id", "path", "start", "end", "start_time", "end_time", "score", "difficulty", "split", "category")


class Row(BaseModel):
    """One row, typed; what is no field of ours stays in `model_extra`."""

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


@dataclass
class Problems:
    """Row errors, gathered so that a user mends them in one go."""

    path: Path
    lines: list[str] = field(default_factory=list)

    def add(self, row: int, column: str, value: object, wrong: str) -> None:
        shown = "" if value is None else f": {printable_id(str(value))[:60]!r}"
        self.lines.append(f"row {row}{f', column {column}' if column else ''}{shown} {wrong}".replace("  ", " "))

    def raise_if_any(self, fix: str) -> None:
        if not self.lines:
            return
        more = [f"… and {len(self.lines) - MANY} more"] if len(self.lines) > MANY else []
        raise UsageError(
            "\n  ".join([f"{self.path}: {len(self.lines)} wrong row(s)", *self.lines[:MANY], *more]), fix=fix
        )


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


def read_table(path: Path, needed: Sequence[Sequence[str]]) -> Table:
    """Read and validate a CSV (also with `;` or tabs) or JSON lines file.

    `needed`: groups of names; of each group one column must be present, and is renamed to the group's first.
    Raises UsageError naming file, row, column and value.
    """
    text = _decode(path)
    problems = Problems(path)
    json_lines = path.suffix.lower() in (".jsonl", ".ndjson")
    raw = list(_json_rows(text, problems) if json_lines else _csv_rows(path, text, problems))
    problems.raise_if_any(
        "mend these rows; every row needs as many cells as the header"
        if not json_lines
        else "mend these rows; every line is one JSON object"
    )
    columns = list(dict.fromkeys(k for _, cells in raw for k in cells)) if json_lines else _header(path, text)[1]
    renames = _renames(path, columns, needed, empty=not raw)
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
    problems.raise_if_any("mend these cells; an empty score is an unlabelled video")
    return Table(path, [renames.get(c, c) for c in columns], rows)


def _plainly(kind: str, value: object, message: str) -> str:
    if kind == "float_parsing":
        if isinstance(value, str) and value.count(",") == 1 and value.replace(",", "").lstrip("+-").isdigit():
            return f"is not a number (write {value.replace(',', '.')})"
        return "is not a number"
    if kind in ("int_parsing", "int_from_float"):
        return "is not a whole number"
    return "is not finite" if kind == "finite_number" else message[:1].lower() + message[1:]


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}", fix="check the path and its permissions") from e
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):  # what spreadsheets call "Unicode text"
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as e:
            raise UsageError(f"{path}: broken UTF-16 at byte {e.start}", fix="save the file as UTF-8") from e
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        row = data.count(b"\n", 0, e.start) + 1
        raise UsageError(
            f"{path}: byte {e.start} (row {row}) is 0x{data[e.start]:02x}, which is not UTF-8",
            fix="save the file as UTF-8 (in a spreadsheet: CSV UTF-8)",
        ) from e


def _name(cell: str) -> str:
    name = cell.strip().lower().replace(" ", "_")
    return name if name in FIELDS or name in PATH_NAMES else cell.strip()


def _header(path: Path, text: str) -> tuple[str, list[str]]:
    """The delimiter, decided by which of them gives the most names that we know, and the column names."""
    best: tuple[int, int, str, list[str]] = (-1, -1, ",", [])
    for delimiter in (",", ";", "\t"):
        try:
            cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
        except csv.Error:
            continue
        names = [_name(c) for c in cells]
        known = sum(n in FIELDS or n in PATH_NAMES for n in names)
        if (known, len(names)) > best[:2]:
            best = (known, len(names), delimiter, names)
    columns = best[3]
    twice = sorted({c for c in columns if c and columns.count(c) > 1})
    if twice:
        raise UsageError(f"{path}: the header names {', '.join(twice)} twice", fix="rename or remove one of them")
    return best[2], columns


def _csv_rows(path: Path, text: str, problems: Problems) -> Iterable[tuple[int, dict[str, Any]]]:
    delimiter, columns = _header(path, text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for i, cells in enumerate(reader):
            number, line = line, reader.line_num + 1
            if i == 0 or not any(c.strip() for c in cells):
                continue
            if len(cells) != len(columns):
                problems.add(number, "", None, f"has {len(cells)} cells, the header {len(columns)}")
                continue
            for column, cell in zip(columns, cells, strict=True):
                if not column and cell.strip():
                    problems.add(number, "without a name", cell, "has no column name")
            yield number, {c: v.strip() for c, v in zip(columns, cells, strict=True)}
    except csv.Error as e:
        problems.add(line, "", None, f"cannot be read as CSV: {e}")


def _json_rows(text: str, problems: Problems) -> Iterable[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as e:
            problems.add(number, "", line.strip(), f"is not JSON: {e}")
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            problems.add(number, "", line.strip(), "is not a JSON object")


def _renames(path: Path, columns: Sequence[str], needed: Sequence[Sequence[str]], *, empty: bool) -> Mapping[str, str]:
    renames = {}
    for group in needed:
        there = [n for n in group if n in columns]
        if there:
            renames[there[0]] = group[0]
            continue
        if empty and not columns:
            raise UsageError(f"{path}: the file is empty", fix=f"it needs a header with {' or '.join(group)}")
        near = difflib.get_close_matches(group[0], columns, n=1, cutoff=0.6)
        raise UsageError(
            f"{path}: no column {' or '.join(group)}; it has {', '.join(map(repr, columns))}",
            fix=f"rename {near[0]!r} to {group[0]!r}" if near else f"add a column {group[0]!r}",
        )
    return renames
