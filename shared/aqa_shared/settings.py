"""Settings of a command, from the weakest place to the strongest: defaults, a TOML file, the environment, options.

They are the fields of records. A field whose annotation carries an `Option` is an option of the command line: its name,
its type and its default are the field's own, so that nothing is written twice.
"""

from __future__ import annotations

import inspect
import os
import tomllib
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from aqa_shared.errors import UsageError, did_you_mean
from aqa_shared.options import Option
from aqa_shared.toml import as_key, as_value

Whole = TypeVar("Whole", bound=BaseModel)
LONGEST_CHOICE = 32
"""Characters of choices that `--help` shows beside an option; longer ones belong into its text."""


@dataclass(frozen=True)
class Setting:
    """A field that can be set, of a record or of a record in it."""

    path: tuple[str, ...]
    """The names of fields that lead to it."""
    field: FieldInfo
    option: Option | None

    def of(self, record: BaseModel) -> Any:
        """Its value."""
        return reduce(getattr, self.path, record)


def settings_of(record: type[BaseModel], path: tuple[str, ...] = ()) -> dict[str, Setting]:
    """By the key by which it is set: every field, and of a record in a record its fields.

    A field that is excluded from what is written is not a setting.
    """
    found: dict[str, Setting] = {}
    for name, field in record.model_fields.items():
        here, inner = (*path, name), field.annotation
        option = next((m for m in field.metadata if isinstance(m, Option)), None)
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= settings_of(inner, here)
        elif not field.exclude:
            found[(option.key if option else "") or name] = Setting(here, field, option)
    return found


def with_options(record: type[BaseModel], **words: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A command's function whose `**settings` become the options of a record; they come first in `--help`.

    `words` take the places that texts leave open, as `{views}`.
    """

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        made = [
            _parameter(key, s.field, s.option, words) for key, s in settings_of(record).items() if s.option is not None
        ]
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*made, *own)]
        function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {p.name: p.annotation for p in parameters}
        return function

    return wrap


def given(context: typer.Context, record: type[BaseModel]) -> dict[str, Any]:
    """What was written on the command line, by key."""
    known, source = settings_of(record), context.get_parameter_source
    return {n: v for n, v in context.params.items() if n in known and (s := source(n)) and s.name == "COMMANDLINE"}


def gathered(
    record: type[BaseModel],
    prefix: str,
    file: Path | None,
    flags: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    tables: Iterable[str] = (),
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values that were given, by key, and the variables of the environment (None: this process's) that gave some.

    `tables` are what only a file can give. Raises UsageError for a key that sets nothing, with the nearest that does.
    """
    known = settings_of(record)
    said = os.environ if environment is None else environment
    outside = {k.removeprefix(prefix).lower(): v for k, v in sorted(said.items()) if k.startswith(prefix)}
    variables = {key: prefix + key.upper() for key in outside}
    for key in outside.keys() & set(tables):
        raise UsageError(f"{variables[key]} cannot be set as a whole", fix="write it as a table of a file for --config")
    written = read_toml(file) if file else {}
    for key in [*written, *outside, *flags]:
        if key not in known and key not in tables:
            place = "" if key in flags else f"{variables.get(key) or file}: "
            fix = f"{did_you_mean(key, known)} see --help and --print-config".lstrip()
            raise UsageError(f"{place}there is no setting {key!r}", fix=fix)
    # A value that both give is the command's, and an error must not send its reader to the variable.
    return {**written, **outside, **flags}, {k: v for k, v in variables.items() if k not in flags}


def valid(
    record: type[Whole], values: Mapping[str, Any], variables: Mapping[str, str] | None = None, *, fix: str
) -> Whole:
    """The record with these values, by key. Raises UsageError that names those that are wrong."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *places, name = settings_of(record)[key].path
        reduce(lambda part, place: part.setdefault(place, {}), places, found)[name] = value
    try:
        return record.model_validate(found)
    except ValidationError as e:
        raise UsageError(explain(e, variables, record), fix=fix) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a file by key; `-` in a key is `_`."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise UsageError(f"{path}: {e.strerror}", fix="name a readable TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise UsageError(f"{path}: {e}", fix="write it as TOML, like the output of --print-config") from None
    return {key.replace("-", "_"): value for key, value in values.items()}


def as_toml(record: Mapping[str, Any]) -> str:
    """A file that gives these values again; mappings are tables, empty ones too."""
    plain = {k: v for k, v in record.items() if not isinstance(v, Mapping)}
    lines = [f"{as_key(k)} = {as_value(v)}" for k, v in plain.items()]
    for name in (n for n in record if n not in plain):
        lines += ["", f"[{name}]", *(f"{as_key(k)} = {as_value(v)}" for k, v in record[name].items())]
    return "\n".join(lines) + "\n"


def explain(
    error: ValidationError, variables: Mapping[str, str] | None = None, record: type[BaseModel] | None = None
) -> str:
    """What is wrong with which setting (those of `record` by key), and the environment variable that gave it."""
    keys = {s.path: key for key, s in settings_of(record).items()} if record else {}
    problems: dict[str, list[str]] = {}
    values: dict[str, str] = {}
    for e in error.errors():
        names = tuple(p for p in e["loc"] if isinstance(p, str))
        key = next((keys[names[:n]] for n in range(len(names), 0, -1) if names[:n] in keys), "")
        # What a path has beyond its setting is the place in a list, or which of several types was tried.
        place = [key, *(p for p in e["loc"] if isinstance(p, int))] if key else e["loc"] if record is None else ()
        short = e["type"] == "missing" and isinstance(e["loc"][-1], int)  # of a list, once for each value it lacks
        where = ".".join(map(str, place[:-1] if short else place))
        if variable := (variables or {}).get(key):
            where += f" (from {variable})"
        said = f"needs {int(e['loc'][-1]) + 1} values" if short else e["msg"].removeprefix("Value error, ")
        before = [p for p in problems.get(where, []) if not (short and p.startswith("needs "))]
        problems[where] = [*before, said]
        values[where] = "" if e["type"] in ("missing", "value_error") and not short else f", got {e['input']!r}"
    return "; ".join(
        (f"{where}: " if where else "") + " or ".join(said) + values[where] for where, said in problems.items()
    )


def _parameter(key: str, field: FieldInfo, option: Option, words: Mapping[str, str]) -> inspect.Parameter:
    kinds = {k for k in _kinds(field.annotation) if k is not type(None)}
    text, flag = option.help.format(**words), "--" + (option.name or key).replace("_", "-")
    kind: Any = str
    default: Any = None
    if kinds == {bool}:
        kind, flag = bool, f"{flag}/--no-{flag[2:]}"
    elif kinds in ({int}, {float}):
        kind = kinds.pop()
    elif option.repeated or any(get_origin(k) is dict for k in kinds):
        kind = list[str]
    silent = field.is_required() or field.default_factory or field.default in (None, "", ()) or kind is bool
    if said := option.default or ("" if silent else as_value(field.default)):
        text = f"{text} [default: {said.strip(chr(34))}]"
    names = () if option.argument else (flag,)
    made: Any = typer.Argument if option.argument else typer.Option
    among = "|".join(str(choice) for k in kinds if get_origin(k) is Literal for choice in get_args(k))
    metavar = option.metavar or (among if 0 < len(among) <= LONGEST_CHOICE else None)
    shown = made(*names, help=text, rich_help_panel=option.panel, metavar=metavar)
    annotation = Annotated[kind | None, shown]
    return inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _kinds(annotation: Any) -> list[Any]:
    """The members of a union, without what annotates them."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]
