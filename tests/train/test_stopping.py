"""Ctrl-C, SIGTERM and SIGUSR1 at any moment: what is saved, what is said, and that going on gives the same."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.processes import children

from aqa_train.signals import TERMINATING, asked_to_stop

from .conftest import MakeStore
from .runs import FAST, HELD, HIDING, aqa_train, results


@pytest.mark.parametrize(
    ("jobs", "stopped_by", "code"), [(1, signal.SIGTERM, 143), (1, signal.SIGUSR1, 143), (2, signal.SIGINT, 130)]
)
def test_signals_save_and_resuming_gives_the_same(
    make_store: MakeStore, tmp_path: Path, jobs: int, stopped_by: signal.Signals, code: int
) -> None:
    store = make_store(videos=20)
    common = ["--features", store, "--method", "s4aqa", "--seeds", 2, "--epochs", 120, "--jobs", jobs, *HIDING, *HELD]
    for attempt in range(5):
        cut = tmp_path / f"cut{attempt}"
        command = [sys.executable, "-m", "aqa_train.cli", *map(str, common), "--out", str(cut)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stderr is not None
        # The first progress line says that training has begun.
        while not (line := process.stderr.readline()).startswith("epochs"):
            assert line, "it ended before it trained"
        process.send_signal(stopped_by)
        _, rest = process.communicate(timeout=200)
        if process.returncode != 0 and any(cut.rglob("state.safetensors")):
            break  # else a training was just over when the signal came: a busy machine
    assert process.returncode == code, rest
    assert f"aqa-train --resume {cut}" in rest.replace("\n", "")
    # A second process may not have begun yet.
    assert 1 <= len(list(cut.rglob("state.safetensors"))) <= jobs
    aqa_train("--resume", cut, "--jobs", 1, "--device", "cpu")
    aqa_train(*common, "--out", tmp_path / "whole", "--jobs", 1)
    assert results(cut) == results(tmp_path / "whole")
    assert (cut / "metrics.json").exists()


@pytest.mark.parametrize("number", TERMINATING)
def test_signals_may_come_twice_and_a_second_ctrl_c_acts_at_once(number: signal.Signals) -> None:
    with asked_to_stop() as stop:
        assert stop() == 0
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop() == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("number", TERMINATING)
def test_a_signal_to_every_process_at_once_loses_nothing(
    make_store: MakeStore, tmp_path: Path, number: signal.Signals
) -> None:
    """Batch systems signal the whole group, so a worker hears it twice; wide networks take a moment to save."""
    wide = ["--set", "widths=1024,1024", "--set", "batch=8", "--device", "cpu", "--test-fraction", "0.25"]
    common = ["--features", make_store(videos=20), "--method", "aa", "--seeds", 2, "--epochs", 12, *wide]
    for attempt in range(5):
        cut = tmp_path / f"cut off {attempt}"
        command = [sys.executable, "-m", "aqa_train.cli", *map(str, common), "--jobs", "2", "--out", str(cut)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
        assert process.stderr is not None
        while not (line := process.stderr.readline()).startswith("epochs"):
            assert line, "it ended before it trained"
        os.killpg(process.pid, number)
        _, rest = process.communicate(timeout=200)
        if process.returncode != 0 and any(cut.rglob("state.safetensors")):
            break  # else a training was just over when the signal came: a busy machine
    assert process.returncode == 143, rest
    said = " ".join(rest.split())
    assert "every training saved where it stands" in said
    assert f"aqa-train --resume '{cut}'" in said
    # A second process may not have begun yet.
    assert any(cut.rglob("state.safetensors"))
    aqa_train("--resume", cut, "--jobs", 1, "--device", "cpu")
    aqa_train(*common, "--out", tmp_path / "whole", "--jobs", 1)
    assert results(cut) == results(tmp_path / "whole")


def two_at_a_time(store: Path, out: Path, *more: object) -> subprocess.Popen[str]:
    """A long run of two processes, one of which trains by now."""
    options = ["--features", store, "--method", "s4aqa", "--seeds", 2, "--epochs", 5000, "--out", out, "--jobs", 2]
    options += [*HIDING, *HELD, *more]
    command = [sys.executable, "-m", "aqa_train.cli", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("epochs"):
        assert line, "it ended before it trained"
    return process


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes in /proc")
def test_work_that_was_lost_is_not_said_to_be_saved(make_store: MakeStore, tmp_path: Path) -> None:
    process = two_at_a_time(make_store(videos=20), tmp_path / "run", "--set", "save_every=0.1")
    while len(list((tmp_path / "run").rglob("state.safetensors"))) < 2:  # both have something to lose
        assert process.poll() is None
        time.sleep(0.01)
    # The parent is held, so that it sees both signals only when one of its processes is gone.
    process.send_signal(signal.SIGSTOP)
    killed = children(process.pid, "spawn_main")[0]
    os.kill(killed, signal.SIGKILL)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, rest = process.communicate(timeout=200)
    assert process.returncode == 143, rest
    said = " ".join(rest.split())
    assert "saved where it stands" not in said
    assert re.search(r"code -9, and what it did since its last save is lost: s4aqa/fold0-seed\d", said)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes in /proc")
def test_a_process_that_is_told_alone_ends_the_run(make_store: MakeStore, tmp_path: Path) -> None:
    """Its parent must not go on with its part by itself, deaf and without a word."""
    process = two_at_a_time(make_store(videos=20), tmp_path / "run")
    for worker in children(process.pid, "spawn_main"):
        os.kill(worker, signal.SIGUSR1)
    _, rest = process.communicate(timeout=200)
    assert process.returncode == 143, rest
    assert "every training saved where it stands" in " ".join(rest.split())
    assert any((tmp_path / "run").rglob("state.safetensors"))


@pytest.mark.parametrize("number", TERMINATING)
def test_a_signal_before_or_after_training_ends_the_command_in_order(
    make_store: MakeStore, tmp_path: Path, number: signal.Signals
) -> None:
    """Sent by the process to itself at two places that no loop watches: on opening the store, on drawing."""
    program = """
import os, sys
from aqa_shared import console
from aqa_train import experiment, plots
from aqa_train.cli import app
module, name, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
before = getattr(globals()[module], name)
def told(*args):
    os.kill(os.getpid(), number)
    return before(*args)
setattr(globals()[module], name, told)
console.run(lambda: app(sys.argv[4:]))
"""
    options = ["--features", make_store(videos=12), "--method", "aa", "--seeds", 1, "--epochs", 1, "--jobs", 1, *FAST]
    for moment, fix in (("experiment open_data", "the same command again"), ("plots draw", "--resume")):
        told = [*moment.split(), int(number), *options, "--out", tmp_path / moment]
        done = subprocess.run([sys.executable, "-c", program, *map(str, told)], capture_output=True, text=True)
        assert done.returncode == 143, done.stderr
        assert fix in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes in /proc")
def test_a_second_ctrl_c_does_not_wait(make_store: MakeStore, tmp_path: Path) -> None:
    """A worker that stands still would never save, and its parent would wait for it."""
    process = two_at_a_time(make_store(videos=20), tmp_path / "run")
    workers = children(process.pid, "spawn_main")
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    for patience in (5, 100, 100):  # the first two are one, where both come before it looks
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)  # one that came while Python ends would end it by the signal itself
            break
    assert process.returncode == 130
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes in /proc")
@pytest.mark.parametrize("wait", [0.0, 0.7])
def test_ctrl_c_while_processes_start_is_no_error(make_store: MakeStore, tmp_path: Path, wait: float) -> None:
    """A terminal sends it to every process at once, also to those that still import."""
    options = ["--features", make_store(videos=12), "--method", "aa", "--out", tmp_path / "run", "--seeds", 2]
    options += ["--jobs", 2, *HELD]
    command = [sys.executable, "-m", "aqa_train.cli", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(children(process.pid, "spawn_main")) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130, said
    assert "Traceback" not in said
