"""What the three commands have in common: plain help in groups, -h, --version."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from aqa_shared import __version__

OTHERS = "Other options"
"""Heading of the options that name no group."""
_TYPE = re.compile(r" <(.*?)>")
_MEANT = {"int": "N", "float": "NUMBER", "path": "FILE", "file": "FILE", "directory": "FOLDER"}
"""What stands for a value in `--help`; for other types it is the option's own name in capitals."""
_HYPHEN = "\u2011"
"""Does not end a line: names of options and protocols in a text stay whole."""


def group(name: str) -> Callable[..., Any]:
    """`typer.Option` for options that `--help` shows under the heading `name`."""
    return partial(typer.Option, rich_help_panel=name)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
]


def _plain(name: str) -> str:
    """`--batch <int range>` → `--batch N`, `--size <str>` → `--size SIZE`, `--format <csv|json>` → `--format csv|json`.

    The bounds stand behind the text. An argument's own name says what it is.
    """
    if not name.startswith("-"):
        return _TYPE.sub("", name)
    own = name.split(" ")[0].lstrip("-").upper()
    return _TYPE.sub(lambda m: " " + (m[1] if "|" in m[1] else _MEANT.get(m[1].removesuffix(" range"), own)), name)


def _whole(text: str) -> str:
    """`text` with its hyphens kept from ending a line."""
    return text.replace("-", _HYPHEN)


class _Plain:
    """Help without boxes or colour, in groups, with every name whole however narrow the window.

    Rich's tables cut option names where they do not fit, and boxes do not belong into pipes and logs.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`VIDEO...` for an argument that must be there, `[NAME...]` for one that may."""
        pieces = super().collect_usage_pieces(ctx)  # type: ignore[misc]
        whole = [re.sub(r"^\{(.*?)\}", r"\1", piece.replace("[[", "[").replace("]]", "]")) for piece in pieces]
        return [piece.removesuffix("...") if "..." in piece[:-3] else piece for piece in whole]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):  # type: ignore[attr-defined]
            # What is not asked for is off: noise beside each.
            if getattr(parameter, "is_bool_flag", False) and not parameter.default:
                parameter.show_default = False
            if (record := parameter.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or OTHERS, []).append(record)
        others = groups.pop(OTHERS, [])
        for name, records in {**groups, OTHERS if groups else "Options": others}.items():
            if records:
                with formatter.section(name):
                    formatter.write_dl([(_plain(name), _whole(text)) for name, text in records])

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)  # type: ignore[misc]
        formatter.buffer[:] = [text.replace(_HYPHEN, "-") for text in formatter.buffer]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The epilog is an example: it is never broken, so that it can be copied."""
        if self.epilog:  # type: ignore[attr-defined]
            with formatter.section("Example"):
                formatter.write_text(f"\b\n{self.epilog}")  # type: ignore[attr-defined]


class Command(_Plain, typer.core.TyperCommand):
    """A command."""


class CommandGroup(_Plain, typer.core.TyperGroup):
    """A command of commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        rows = []
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, _whole(command.get_short_help_str(1000))))
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        super().format_options(ctx, formatter)


class Later(typer.core.TyperCommand):
    """Stands for the one command of the app at `target` (`module:app`), which is imported when it is called."""

    def __init__(self, name: str, summary: str, target: str) -> None:
        super().__init__(name, help=summary)
        self.target = target

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        return typer.main.get_command(pkgutil.resolve_name(self.target)).make_context(*arguments, **more)


class App(typer.Typer):
    """typer.Typer with the help above."""

    def __init__(self, *, cls: type[CommandGroup] = CommandGroup, **more: Any) -> None:
        names = {"help_option_names": ["-h", "--help"]}
        super().__init__(cls=cls, pretty_exceptions_enable=False, rich_markup_mode=None, context_settings=names, **more)

    def command(self, name: str | None = None, **more: Any) -> Any:
        return super().command(name, **{"cls": Command, **more})
