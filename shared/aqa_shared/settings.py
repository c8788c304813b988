"""Settings of a command, from the weakest place to the strongest: defaults, a TOML file, the environment, options.

They are the fields of records. A field whose annotation carries an `Option` is an option of the command line: its name,
its type and its default are the field's own, so that nothing is written twice.
"""

from __future__ import annotations

import inspect
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from aqa_shared.errors import UsageError
from aqa_shared.toml import as_key, as_value

Records = tuple[type[BaseModel], ...]


@dataclass(frozen=True)
class Option:
    """How a field is shown on the command line."""

    panel: str
    """The heading in `--help`."""
    help: str
    name: str = ""
    """Where it is not the field's, as `method` for `methods`."""
    default: str = ""
    """What holds where it is not given, where the field's default does not say so."""
    metavar: str | None = None


def fields_of(records: Iterable[type[BaseModel]]) -> dict[str, FieldInfo]:
    """All fields by name."""
    return {name: field for record in records for name, field in record.model_fields.items()}


def with_options(*records: type[BaseModel]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command's function whose `**settings` become the options of these records; they come first in `--help`."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        made = [_parameter(n, f, o) for n, f in fields_of(records).items() if (o := _option(f)) is not None]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*made, *own)]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in parameters}
        return function

    return wrap


def given(context: typer.Context, *records: type[BaseModel]) -> dict[str, Any]:
    """What was written on the command line, by the names of fields; lists are parted at commas."""
    fields = fields_of(records)
    found = {}
    for name, value in context.params.items():
        source = context.get_parameter_source(name)
        if name in fields and source is not None and source.name == "COMMANDLINE":
            found[name] = _parted(value) if is_list(fields[name]) else value
    return found


def from_environment(
    prefix: str, environment: Mapping[str, str], *records: type[BaseModel], tables: Iterable[str] = ()
) -> dict[str, Any]:
    """`AQA_TRAIN_LR=1e-3` and the like by the names of fields; `tables` cannot be set as a whole."""
    fields = fields_of(records)
    values: dict[str, Any] = {}
    for key, value in environment.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix).lower()
        if name in tables:
            raise UsageError(
                f"{key} cannot be set as a whole",
                fix=f"set one training setting, as {prefix}LR=1e-3, or use --set name=value",
            )
        values[name] = _parted(value) if name in fields and is_list(fields[name]) else value
    return values


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a file, as they are."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}", fix="name a readable TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: {e}", fix="write it as TOML, like the output of --print-config") from None


def as_toml(record: Mapping[str, Any]) -> str:
    """A file that gives these values again; mappings are tables, empty ones too."""
    plain = {k: v for k, v in record.items() if not isinstance(v, Mapping)}
    lines = [f"{as_key(k)} = {as_value(v)}" for k, v in plain.items()]
    for name in (n for n in record if n not in plain):
        lines += ["", f"[{name}]", *(f"{as_key(k)} = {as_value(v)}" for k, v in record[name].items())]
    return "\n".join(lines) + "\n"


def explain(error: ValidationError, variables: Mapping[str, str] | None = None) -> str:
    """What is wrong with which setting, and the environment variable that gave it."""
    problems = []
    for e in error.errors():
        where = ".".join(str(p) for p in e["loc"])
        if e["loc"] and (variable := (variables or {}).get(str(e["loc"][0]))):
            where += f" (from {variable})"
        value = "" if e["type"] in ("missing", "value_error") else f", got {e['input']!r}"
        problems.append(f"{where}: {e['msg'].removeprefix('Value error, ')}{value}")
    return "; ".join(problems)


def is_list(field: FieldInfo) -> bool:
    """Whether a field is a tuple, or a tuple or None."""
    kinds = [k for k in _kinds(field.annotation) if k is not type(None)]
    return all(get_origin(k) is tuple for k in kinds)


def _option(field: FieldInfo) -> Option | None:
    return next((m for m in field.metadata if isinstance(m, Option)), None)


def _parameter(name: str, field: FieldInfo, option: Option) -> inspect.Parameter:
    kinds = {k for k in _kinds(field.annotation) if k is not type(None)}
    text, flag = option.help, "--" + (option.name or name).replace("_", "-")
    kind: Any = str
    default: Any = None
    if kinds == {bool}:
        kind, default = bool, False
    elif kinds in ({int}, {float}):
        kind = kinds.pop()
    elif any(get_origin(k) is dict for k in kinds):
        kind = list[str]
    silent = kind is bool or field.is_required() or field.default_factory is not None or field.default in (None, "", ())
    if said := option.default or ("" if silent else as_value(field.default)):
        text = f"{text} [default: {said.strip(chr(34))}]"
    shown = typer.Option(flag, help=text, rich_help_panel=option.panel, metavar=option.metavar)
    annotation = Annotated[kind if kind is bool else kind | None, shown]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _kinds(annotation: Any) -> list[Any]:
    """The members of a union, without what annotates them."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]


def _parted(value: Any) -> list[str]:
    return [part.strip() for part in str(value).split(",")]
