"""How the commands talk: results on stdout, everything else on stderr, errors as cause and fix, exit codes."""

from __future__ import annotations

import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

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

from aqa_shared.errors import AqaError, EnvironmentFault, ExitCode

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

out = Console(soft_wrap=True, highlight=False)
"""Results only."""
err = Console(stderr=True, soft_wrap=True, highlight=False)
"""Progress, notes, errors; lines are not broken, so that commands and paths can be copied."""

Say = Callable[[str], None]
"""Where a function's messages go: `note`, `warn`, or what a caller gives."""

SILENCE = 60.0
"""Seconds without a line of progress, where stderr is not a terminal, after which the next step is said."""


def printable(text: str) -> str:
    """`text` with everything a terminal or a log would act on shown as an escape."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in text.encode("utf-8", "backslashreplace").decode()
    )


def counted(number: int, what: str) -> str:
    """`1 video`, `2 videos`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def note(message: str) -> None:
    """One line for people, on stderr."""
    err.print(escape(message))


def warn(message: str) -> None:
    """Something the user should know before trusting the result."""
    err.print(f"[yellow]warning:[/] {escape(message)}")


def summary(text: str) -> None:
    """What was done, on stdout; where that cannot be written, it was done all the same."""
    try:
        out.print(text, markup=False)
    except EnvironmentFault as e:
        warn(e.cause)


@contextmanager
def progress(description: str, total: int | None) -> Iterator[Callable[..., None]]:
    """A bar on a terminal, plain lines with the time left elsewhere; yields `advance(n=1, note="", before=0)`.

    `before` are those that an earlier run did: they count as done, and say nothing of how fast it goes.
    """
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
            yield lambda n=1, note="", before=0: bar.update(task, advance=n + before, note=escape(note))
        return
    done, uncounted, shown = 0, 0, -1
    begun: float | None = None
    last = time.monotonic()

    def advance(n: int = 1, note: str = "", before: int = 0) -> None:
        nonlocal done, uncounted, begun, shown, last
        done, uncounted = done + n + before, uncounted + before
        now = time.monotonic()
        if begun is None:  # what came before the first was starting up, and says nothing of what is left
            begun, uncounted = now, done
        # A log file wants about twenty lines, whatever the total, and a long run a sign of life between them.
        mark = done if not total else done * 20 // total
        if mark == shown and done != total and now - last < SILENCE:
            return
        shown, last = mark, now
        each = (now - begun) / (done - uncounted) if done > uncounted else 0.0
        left = f"{as_time(each * (total - done))} left" if total and each and done < total else ""
        line = f"{description}: {done}/{total if total is not None else '?'}"
        err.print(escape(" ".join([line, *([", ".join(filter(None, (note, left)))] if note or left else [])])))

    yield advance


def as_time(seconds: float) -> str:
    """`40 s`, `12 min 5 s`, `3 h 20 min`: exact enough for what is left to wait."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class _Output(io.FileIO):
    """stdout or stderr, whose reader may leave: what `aqa-extract … | head` did is no less done for that.

    Drops what is written after the first error, so that Python does not fail once more at exit.
    """

    _gone = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Raises EnvironmentFault where stdout refuses results for another reason, a full disk above all."""
        if not self._gone:
            try:
                return super().write(data)
            except OSError as e:
                self._gone = True
                if self.fileno() == 1 and not isinstance(e, BrokenPipeError):
                    raise EnvironmentFault(
                        f"cannot write to stdout: {e.strerror}", fix="make room where stdout goes, and rerun"
                    ) from e
        return memoryview(data).nbytes


def _survive_readers() -> None:
    """Under every way to print, because typer and rich each answer a closed pipe with an exit code of 1."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
            continue  # closed by the caller, or not ours
        stream.flush()
        guarded = io.TextIOWrapper(
            io.BufferedWriter(_Output(stream.fileno(), "wb", closefd=False)),
            encoding=stream.encoding,
            errors=stream.errors,
            # PYTHONUNBUFFERED writes through, which would end in the buffer here.
            line_buffering=stream.line_buffering or stream.write_through,
        )
        setattr(sys, name, guarded)


def run(app: Callable[[], object]) -> NoReturn:
    """Run a typer app; turn our errors into cause, fix and exit code, without a traceback unless AQA_DEBUG=1."""
    _survive_readers()
    # What a machine without semaphores makes joblib say; scikit-learn imports it, and nothing here runs through it.
    warnings.filterwarnings("ignore", message=".*joblib will operate in serial mode")
    try:
        app()
    except AqaError as e:
        if os.environ.get("AQA_DEBUG") == "1":
            raise
        err.print(f"[red]error:[/] {escape(e.cause)}")
        if e.fix:
            err.print(f"[green]fix:[/] {escape(e.fix)}")
        if e.abrupt:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(int(e.exit_code))
        sys.exit(int(e.exit_code))
    except KeyboardInterrupt:
        err.print("interrupted")
        sys.exit(int(ExitCode.INTERRUPTED))
    except Exception as e:
        if os.environ.get("AQA_DEBUG") == "1":
            raise
        err.print(f"[red]internal error:[/] {escape(f'{type(e).__name__}: {e}')}")
        err.print("[green]fix:[/] this is a fault of ours; AQA_DEBUG=1 shows where, please report it")
        sys.exit(int(ExitCode.INTERNAL))
    sys.exit(int(ExitCode.OK))
