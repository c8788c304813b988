"""How commands talk as processes: exit codes when their reader leaves, lines that can be copied."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from aqa_shared.errors import did_you_mean

COMMAND = """
import sys, typer
from aqa_shared import console
app = typer.Typer()
@app.command()
def work(code: int):
    console.note("working")
    for _ in range(3):
        {say}
    raise typer.Exit(code)
sys.argv[1:] = ["3"]
console.run(app)
"""
WAYS = ["console.out.print('a result')", "typer.echo('a result')", "print('a result')"]


def ran(say: str, stdout: int, stderr: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", COMMAND.format(say=say)], stdout=stdout, stderr=stderr, text=True)


@pytest.fixture
def closed() -> int:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("say", WAYS)
def test_a_reader_that_leaves_changes_no_exit_code(say: str, closed: int) -> None:
    done = ran(say, closed, subprocess.PIPE)
    assert (done.returncode, done.stderr) == (3, "working\n")
    assert ran(say, closed, closed).returncode == 3
    done = ran(say, subprocess.PIPE, closed)
    assert (done.returncode, done.stdout) == (3, "a result\n" * 3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("say", WAYS[:2])
def test_results_that_cannot_be_written_are_an_error_with_its_cause(say: str) -> None:
    with open("/dev/full", "w") as full:
        done = ran(say, full.fileno(), subprocess.PIPE)
    assert done.returncode == 5
    assert "cannot write to stdout: No space left on device" in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_command_to_copy_stays_in_one_line() -> None:
    command = "aqa-train --resume " + "/".join(["a folder of a run"] * 8)
    code = f"from aqa_shared import console; console.note({command!r}); console.warn({command!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "COLUMNS": "40"}, check=True
    )
    assert done.stderr.splitlines() == [command, f"warning: {command}"]


def test_an_unbuffered_process_loses_nothing_when_it_is_killed() -> None:
    say = "import os, sys; print('a result'); print('a trace', file=sys.stderr); os._exit(9)"
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run([sys.executable, "-c", COMMAND.format(say=say)], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout, done.stderr) == (9, "a result\n", "working\na trace\n")


def progress_lines(total: int | None, steps: int, silence: float = 60) -> list[str]:
    code = (
        "import time\nfrom aqa_shared import console\n"
        f"console.SILENCE = {silence}\n"
        f"with console.progress('extract', {total}) as advance:\n"
        f"    for i in range({steps}):\n        time.sleep(0.01)\n        advance(1, note='2 videos/s [x]')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_without_a_terminal_progress_is_twenty_lines_with_the_time_left() -> None:
    lines = progress_lines(100, 100)
    assert len(lines) in (20, 21)
    assert lines[-1] == "extract: 100/100 2 videos/s [x]"
    assert re.fullmatch(r"extract: 5/100 2 videos/s \[x\], (\d+ min )?\d+ s left", lines[1])
    assert len(progress_lines(100, 50, silence=0)) == 50
    assert progress_lines(None, 2) == ["extract: 1/? 2 videos/s [x]", "extract: 2/? 2 videos/s [x]"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (12345, "3 h 25 min"), (-1, "0 s")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    from aqa_shared.console import as_time

    assert as_time(seconds) == words


def test_what_an_earlier_run_did_counts_as_done_and_not_as_speed() -> None:
    """80 of 100 were done before: 5 in 0.5 s leave 14 for about a second, not for 0.1 s."""
    code = (
        "import time\nfrom aqa_shared import console\n"
        "with console.progress('epochs', 100) as advance:\n"
        "    time.sleep(0.1)\n    advance(1, before=80)\n    time.sleep(0.5)\n    advance(5)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    first, second = done.stderr.splitlines()
    assert first == "epochs: 81/100"
    left = re.fullmatch(r"epochs: 86/100 (\d+) s left", second)
    assert left is not None
    assert int(left.group(1)) >= 1


def test_a_name_is_nearest_to_the_path_that_ends_in_it() -> None:
    assert did_you_mean("clip_08.mp4", ["clip_02.mp4", "day2/clip_08.mp4"]) == "did you mean day2/clip_08.mp4?"
    assert did_you_mean("clip_2.mp4", ["clip_02.mp4", "day2/clip_08.mp4"]) == "did you mean clip_02.mp4?"
