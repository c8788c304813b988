"""The text of tables that people and programs wrote: CSV in all its dialects, JSON lists, objects and lines."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from aqa_shared.console import counted
from aqa_shared.errors import UsageError
from aqa_shared.manifest_files import printable_id

MANY = 20
"""Row errors shown in one message."""
PATH_NAMES = ("path", "video", "file", "filename", "video_path")
FIELDS = ("id", "path", "start", "end", "start_time", "end_time", "score", "difficulty", "split", "category")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
NO_TEXT = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xls", ".ods", ".numbers"), "a spreadsheet"),
    **dict.fromkeys((".parquet", ".feather"), "a table in binary"),
    **dict.fromkeys((".pkl", ".pickle", ".mat", ".npy", ".npz"), "Python or MATLAB data"),
}
"""What people give for a table, and what it is."""
NAMELESS = "(no name)"
"""The first column where the header has no name for it."""


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
            "\n  ".join([f"{self.path}: {counted(len(self.lines), 'wrong row')}", *self.lines[:MANY], *more]), fix=fix
        )


def decode_table(path: Path) -> str:
    """The text of a table. Raises UsageError for what is not text, with what to save it as."""
    try:
        data = path.read_bytes()
    except OSError as e:
        raise UsageError(f"cannot read {path}: {e.strerror}", fix="check the path and its permissions") from e
    if path.suffix.lower() in NO_TEXT or data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"PAR1")):
        raise UsageError(
            f"{path} is not a text table but {NO_TEXT.get(path.suffix.lower(), 'a spreadsheet')}",
            fix="save it as CSV (in a spreadsheet: CSV UTF-8)",
        )
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


@dataclass(frozen=True)
class Dialect:
    """How a CSV table is written."""

    delimiter: str
    columns: list[str]
    header: int
    """Rows before the header: a spreadsheet's `sep=;`, or blank ones."""


def read_header(path: Path, text: str, names: Collection[str] = ()) -> Dialect:
    """The delimiter, said by `sep=` or else decided by which gives the most names that we know or are among `names`."""
    said = re.match(r'"?sep=(.)"?\r?\n', text, flags=re.IGNORECASE)
    best: tuple[int, int, Dialect] = (-1, -1, Dialect(",", [], 0))
    for delimiter in (said[1],) if said else (",", ";", "\t", "|"):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            header, cells = next(
                ((i, row) for i, row in enumerate(reader) if any(c.strip() for c in row) and not (said and i == 0)),
                (0, []),
            )
        except csv.Error:
            continue
        columns = [_name(c) for c in cells]
        known = sum(c in FIELDS or c in PATH_NAMES or c in names for c in columns)
        if len(columns) > 1 and not columns[0]:
            columns[0] = NAMELESS
        if (known, len(columns)) > best[:2]:
            best = (known, len(columns), Dialect(delimiter, columns, header))
    columns = best[2].columns
    twice = sorted({c for c in columns if c and columns.count(c) > 1})
    if twice:
        raise UsageError(f"{path}: the header names {', '.join(twice)} twice", fix="rename or remove one of them")
    return best[2]


def csv_rows(dialect: Dialect, text: str, problems: Problems) -> Iterable[tuple[int, dict[str, Any]]]:
    """(number of the line it starts at, cells by column) of every row that is not blank."""
    columns = dialect.columns
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=dialect.delimiter, strict=True)
    line = 1
    try:
        for i, cells in enumerate(reader):
            number, line = line, reader.line_num + 1
            if i <= dialect.header or not any(c.strip() for c in cells):
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


def without_row_numbers(
    path: Path, columns: list[str], raw: Sequence[tuple[int, dict[str, Any]]], needed: Sequence[Sequence[str]]
) -> list[str]:
    """The columns without the one that only numbers the rows, as pandas writes it; `raw` loses it as well.

    A first column without a name that holds something else is the `id`, where no other column could be.
    """
    for column in [c for c in columns if c == NAMELESS or re.fullmatch(r"Unnamed: \d+", c)]:
        found = [cells[column] for _, cells in raw]
        start = int(found[0]) if found and found[0].isdecimal() else None
        counts = start in (0, 1) and all(text == str(n) for text, n in zip(found, count(start or 0), strict=False))
        others = [c for c in columns if c != column]
        has_ids = any(name in others for name in ("id", *PATH_NAMES))
        if column == NAMELESS and not counts and not has_ids and any(found):
            for _, cells in raw:
                cells["id"] = cells.pop(column)
            columns = ["id" if c == column else c for c in columns]
        elif counts or not any(found) or (column == NAMELESS and all(text.isdecimal() for text in found)):
            for _, cells in raw:
                del cells[column]
            columns = others
        elif column == NAMELESS:
            raise UsageError(
                f"{path}: its first column has no name; row {raw[0][0]} has {printable_id(found[0])[:60]!r} there",
                fix="give the column a name, or remove it",
            )
    return columns


def json_rows(text: str, problems: Problems) -> Iterable[tuple[int, dict[str, Any]]]:
    """(number, values) of every record: of a list of objects, of an object by id or by column, or of JSON lines."""
    records: Iterable[tuple[int, Any]]
    try:
        records = enumerate(_records(json.loads(text)), 1) if text.strip() else ()
    except json.JSONDecodeError as e:
        if text.lstrip().startswith("[") or text.lstrip().partition("\n")[0].strip() == "{":
            problems.add(e.lineno, "", None, f"is not JSON: {e}")
            return
        records = _json_lines(text, problems)
    for number, value in records:
        if isinstance(value, dict):
            yield number, {_name(k): v for k, v in value.items()}
        else:
            problems.add(number, "", json.dumps(value), "is not a JSON object")


def _json_lines(text: str, problems: Problems) -> Iterable[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as e:
                problems.add(number, "", line.strip(), f"is not JSON: {e}")


def _records(data: Any) -> Iterable[Any]:
    """The records of a JSON value: its items, the rows of its columns, one for each id, or itself."""
    if not isinstance(data, dict):
        return data if isinstance(data, list) else [data]
    known = [v for k, v in data.items() if _name(k) in FIELDS or _name(k) in PATH_NAMES]
    if not known:
        return [{"id": k, **(v if isinstance(v, dict) else {"score": v})} for k, v in data.items()]
    if all(isinstance(v, dict) for v in known):  # pandas' to_json
        columns = {k: v for k, v in data.items() if isinstance(v, dict)}
        return [{k: v.get(row) for k, v in columns.items()} for row in known[0]]
    if all(isinstance(v, list) and len(v) == len(known[0]) for v in data.values()):
        return [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
    return [data]
