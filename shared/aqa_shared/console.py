"""How the commands talk: results on stdout, everything else on stderr, errors as cause and fix, exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from aqa_shared.errors import AqaError, ExitCode

out = Console(soft_wrap=True, highlight=False)
"""Results only."""
err = Console(stderr=True, highlight=False)
"""Progress, notes, errors."""


def printable(text: str) -> str:
    """`text` with everything a terminal or a log would act on shown as an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text.encode("utf-8", "backslashreplace").decode()
    )


def note(message: str) -> None:
    """One line for people, on stderr."""
    err.print(escape(message))


def warn(message: str) -> None:
    """Something the user should know before trusting the result."""
    err.print(f"[yellow]warning:[/] {escape(message)}")


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, plain lines elsewhere; yields `advance(n=1, note="")`."""
    if err.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=err) as bar:
            task = bar.add_task(description, total=total, note="")
            yield lambda n=1, note="": bar.update(task, advance=n, note=escape(note))
        return
    done = 0
    shown = -1

    def advance(n: int = 1, note: str = "") -> None:
        nonlocal done, shown
        done += n
        # A log file wants about twenty lines, whatever the total.
        mark = done if not total else done * 20 // total
        if mark != shown or done == total:
            shown = mark
            err.print(f"{escape(description)}: {done}/{total if total is not None else '?'} {escape(note)}".rstrip())

    yield advance


def run(app: Callable[[], object]) -> NoReturn:
    """Run a typer app; turn our errors into cause, fix and exit code, without a traceback unless AQA_DEBUG=1."""
    try:
        app()
    except AqaError as e:
        if os.environ.get("AQA_DEBUG") == "1":
            raise
        err.print(f"[red]error:[/] {escape(e.cause)}")
        if e.fix:
            err.print(f"[green]fix:[/] {escape(e.fix)}")
        sys.exit(int(e.exit_code))
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(int(ExitCode.INTERRUPTED))
    except BrokenPipeError:
        # `aqa … | head` closed our stdout: not an error of ours, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(int(ExitCode.OK))
    except Exception as e:
        if os.environ.get("AQA_DEBUG") == "1":
            raise
        err.print(f"[red]internal error:[/] {escape(f'{type(e).__name__}: {e}')}")
        err.print("[green]fix:[/] this is a fault of ours; AQA_DEBUG=1 shows where, please report it")
        sys.exit(int(ExitCode.INTERNAL))
    sys.exit(int(ExitCode.OK))
