"""What makes a field of a record an option of the command line, and how its text is read wherever it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator


@dataclass(frozen=True)
class Option:
    """How a field is set and shown."""

    panel: str
    """The heading in `--help`."""
    help: str
    key: str = ""
    """Its name in files and variables, where it is not the field's: of a record in a record, as `flow_bound`."""
    name: str = ""
    """On the command line, where it is not the key, as `method` for `methods`."""
    default: str = ""
    """What holds where it is not given, where the field's default does not say so."""
    metavar: str | None = None
    repeated: bool = False
    """Given again for more, and not with commas between."""
    argument: bool = False
    """Known by its place, and not by its name."""


def parted(value: Any) -> Any:
    """Text at its commas; anything else as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def pairs(value: Any) -> Any:
    """`["rgb=NAME"]` or `"rgb=NAME,flow=FILE"` by what is before the `=`, of which the last counts."""
    if not isinstance(items := parted(value), list | tuple):
        return items
    found = {}
    for item in items:
        key, equals, text = str(item).partition("=")
        if not key or not equals or not text:
            raise ValueError(f"{item!r} is not written NAME=VALUE")
        found[key] = text
    return found


Several = Annotated[tuple[str, ...], BeforeValidator(parted)]
"""A list, or text with commas between."""
