"""Who is trained on, validated and tested, as a file says it: ours, or one of the layouts that data sets publish."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aqa_shared.errors import UsageError
from aqa_shared.manifest_table import read_table
from aqa_shared.manifest_text import PATH_NAMES
from aqa_shared.pickles import load_arrays
from aqa_train.splits import ROLES, role_named

FORMS = (
    'give a table with the columns id,fold or id,split; or JSON: {"train": [ids], "test": [ids]} and "val" if there '
    "is one, a list of such, a list of lists of ids (each fold is tested once), or "
    '{"fold0": [ids], "fold1": [ids]}, {"task": [[ids], [ids]]}'
)
Ids = list[Annotated[str, Field(min_length=1)]]


@dataclass(frozen=True)
class FileFold:
    """Who is what in one fold, as a file of splits says it."""

    train: list[str]
    test: list[str]
    val: list[str] = field(default_factory=list)
    saved: bool = False
    """Written by an earlier run, so it names everyone who takes part."""


class _Roles(BaseModel):
    """A fold as people write it; a key that is none of these is refused, as it may be a misspelt one."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    train: Ids
    test: Ids
    val: Ids = Field(default_factory=list)

    def fold(self) -> FileFold:
        return FileFold(self.train, self.test, self.val)


class _Saved(BaseModel):
    """What is read of a `Split` that a run saved."""

    model_config = ConfigDict(frozen=True)

    labelled: Ids
    unlabelled: Ids
    test: Ids
    validation: Ids = Field(default_factory=list)

    def fold(self) -> FileFold:
        # A transductive run learned from its test videos too; they are returned as what they are.
        test = set(self.test)
        train = [i for i in [*self.labelled, *self.unlabelled] if i not in test]
        return FileFold(train=train, test=self.test, val=self.validation, saved=True)


def read_split_file(path: Path, known: Callable[[str], bool] = lambda name: True) -> list[FileFold]:
    """The folds of a file: a table `id,split` or `id,fold`, JSON, or a pickle of names and lists (see `FORMS`).

    Where folds are lists of ids, each is the test set once. Of folds by task (MUSDL's splits.pkl), tasks of which
    no id is `known` are left out, and fold i is that of all others together.
    """
    suffix = path.suffix.lower()
    if suffix in (".pkl", ".pickle"):
        folds = _folds_of(path, load_arrays(path), known)
    elif suffix == ".json" and not _is_table(record := _read_json(path)):
        folds = _folds_of(path, record, known)
    else:
        folds = _table_folds(path)
    if not any(f.train or f.test for f in folds):
        raise UsageError(f"{path} names no video", fix="say in it who trains and who is tested")
    return folds


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}", fix="name a readable file of splits") from None
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: byte {e.start} is not UTF-8", fix="save the file as UTF-8") from None
    except json.JSONDecodeError as e:
        raise UsageError(f"{path}, line {e.lineno}: {e.msg}", fix="give valid JSON") from None


def _is_table(record: Any) -> bool:
    return isinstance(record, list) and bool(record) and isinstance(record[0], dict) and "id" in record[0]


def _table_folds(path: Path) -> list[FileFold]:
    table = read_table(path, [("id", *PATH_NAMES)])
    if not {"split", "fold"} & set(table.columns):
        raise UsageError(f"{path}: the columns are {', '.join(table.columns)}", fix="give id,split or id,fold")
    column = "fold" if "fold" in table.columns else "split"
    named: dict[str, list[str]] = {}
    first: dict[str, tuple[int, str]] = {}
    for number, row in table.rows:
        where, name = f"{path}, row {number}", row.id or ""
        given = row.extra.get("fold") if column == "fold" else row.split
        value = "" if given is None else str(given).strip()
        empty = "id" if not name else column if not value else None
        if empty:
            raise UsageError(f"{where}: {empty} is empty", fix=f"give every row an id and a {column}, or remove it")
        if column == "split":
            value = role_named(value)
            if value not in ROLES:
                raise UsageError(f"{where}: split is {row.split!r}", fix="use train, val or test")
        elif name in first:
            raise UsageError(
                f"{where}: {name} is in fold {value}, and in row {first[name][0]} in fold {first[name][1]}",
                fix="name every id once",
            )
        first[name] = (number, value)
        named.setdefault(value, []).append(name)
    if column == "split":
        train, test, val = (named.get(role, []) for role in ("train", "test", "val"))
        return [FileFold(train, test, val)]
    return _each_tested(path, [named[n] for n in sorted(named, key=_natural)])


def _natural(name: str) -> tuple[int, str]:
    """Fold 10 comes after fold 2."""
    digits = re.search(r"\d+", name)
    return (int(digits[0]) if digits else -1, name)


def _each_tested(path: Path, folds: list[list[str]]) -> list[FileFold]:
    if len(folds) == 1:
        raise UsageError(
            f"{path} has one fold, and nobody to train on while it is tested",
            fix="give at least two folds, or say who is train and who is test",
        )
    return [
        FileFold(train=[i for j, others in enumerate(folds) if j != k for i in others], test=tested)
        for k, tested in enumerate(folds)
    ]


_FOLD = re.compile(r"(fold|split|cv)?[ _-]*\d+", re.IGNORECASE)


def _folds_of(path: Path, record: Any, known: Callable[[str], bool]) -> list[FileFold]:
    """The folds that nested lists and dictionaries mean."""
    if isinstance(record, dict) and record and all(_FOLD.fullmatch(str(name)) for name in record):
        record = [record[name] for name in sorted(record, key=lambda name: _natural(str(name)))]
    if isinstance(record, list) and record and all(_are_ids(fold) for fold in record):
        return _each_tested(path, [[str(i) for i in fold] for fold in record])
    if isinstance(record, dict) and record and all(_are_folds(folds) for folds in record.values()):
        return _tasks(path, {str(k): [[str(i) for i in fold] for fold in v] for k, v in record.items()}, known)
    result = []
    for number, fold in enumerate(record if isinstance(record, list) else [record]):
        if not isinstance(fold, dict):
            raise UsageError(f"{path}, fold {number} is neither ids nor roles with ids", fix=FORMS)
        try:
            result.append((_Saved if "labelled" in fold else _Roles).model_validate(fold).fold())
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise UsageError(f"{path}, fold {number}: {where}: {first['msg']}", fix=FORMS) from None
    return result


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(i, str | int) and i != "" for i in value)


def _are_folds(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_are_ids(fold) for fold in value)


def _tasks(path: Path, tasks: Mapping[str, list[list[str]]], known: Callable[[str], bool]) -> list[FileFold]:
    mine = {name: folds for name, folds in tasks.items() if any(known(i) for fold in folds for i in fold)}
    if not mine:
        some = next(iter(tasks.values()))[0][:3]
        raise UsageError(
            f"{path}: no id of {', '.join(tasks)} is in the store: {', '.join(some)} …",
            fix="use the store's ids; aqa info STORE lists them",
        )
    numbers = {name: len(folds) for name, folds in mine.items()}
    if len(set(numbers.values())) > 1:
        raise UsageError(f"{path}: the tasks have different numbers of folds: {numbers}", fix="give one task's folds")
    return _each_tested(path, [[i for f in folds for i in f] for folds in zip(*mine.values(), strict=True)])
