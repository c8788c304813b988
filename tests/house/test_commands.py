"""What all commands promise: plain, grouped help, -h, --version, `python -m`, variables that must exist."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.core
import typer.main

from aqa_shared.commands import Later

BIN = Path(sys.executable).parent
APPS = {"aqa": "aqa_pipelines", "aqa-extract": "aqa_extract", "aqa-train": "aqa_train"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / arguments[0]), *arguments[1:]] if arguments[0] in APPS else [sys.executable, *arguments]
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "TERM")}
    return subprocess.run(command, env={**env, **environment}, capture_output=True, text=True, timeout=120)


def options(command: str) -> list[str]:
    """Every option name of a command with a single app."""
    found = typer.main.get_command(importlib.import_module(f"{APPS[command]}.cli").app)
    return [name for p in found.params if p.param_type_name == "option" for name in (*p.opts, *p.secondary_opts)]


@pytest.mark.parametrize("columns", ["40", "80", "200"])
@pytest.mark.parametrize("command", ["aqa-extract", "aqa-train"])
def test_help_is_plain_grouped_and_cuts_no_name(command: str, columns: str) -> None:
    done = run(command, "--help", COLUMNS=columns, FORCE_COLOR="1", TERM="xterm-256color")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii(), [c for c in done.stdout if not c.isascii()]
    assert "\x1b" not in done.stdout
    assert "<" not in done.stdout
    words = re.split(r"[\s,]+", done.stdout)
    assert set(options(command)) <= set(words)
    headings = re.findall(r"^(\w.*):$", done.stdout, flags=re.MULTILINE)
    assert headings[0] == "Input and output"
    assert len(headings) > 4
    others = done.stdout.split("Other options:")[1]
    assert re.findall(r"^  (-.*?)(?:  |$)", others, flags=re.MULTILINE) == [
        "--version",
        "--install-completion",
        "--show-completion",
        "-h, --help",
    ]


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for part in command.commands if isinstance(command, typer.core.TyperGroup) else ():
        yield from commands(command.commands[part], f"{name} {part}")
    if not isinstance(command, Later):
        yield name, command


def test_help_says_what_a_value_is_and_not_its_type() -> None:
    shown = {}
    for name, command in commands(typer.main.get_command(importlib.import_module("aqa_pipelines.cli").app), "aqa"):
        with command.make_context(name, [], resilient_parsing=True) as context:
            shown[name] = command.get_help(context)
    assert len(shown) > 15
    for name, text in shown.items():
        assert not re.search(r"\s<\w|[{}]|\.{4}|\brange\b", text), name
    assert shown["aqa predict"].startswith("Usage: aqa predict [OPTIONS] RUN STORE|VIDEO...\n")
    assert shown["aqa weights verify"].startswith("Usage: aqa weights verify [OPTIONS] [NAME...]\n")
    for written in ("--videos N ", "--fps NUMBER ", "--out FOLDER ", "--size WxH ", "--sheet FILE "):
        assert f"\n  {written}" in shown["aqa demo"]
    assert "\n  --format csv|json " in shown["aqa predict"]


def test_the_example_can_be_copied_from_a_narrow_window() -> None:
    done = run("aqa-train", "-h", COLUMNS="40")
    assert "\n  aqa-train --features feats.zarr --out runs/first\n" in done.stdout


@pytest.mark.parametrize("command", ["aqa", "aqa-extract", "aqa-train"])
def test_short_help_version_and_module(command: str) -> None:
    from aqa_shared import __version__

    assert run(command, "-h").stdout == run(command, "--help").stdout != ""
    for way in ([command], ["-m", APPS[command]]):
        done = run(*way, "--version")
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")
    assert f"Usage: python -m {APPS[command]}" in run("-m", APPS[command], "-h").stdout


@pytest.mark.parametrize("stage", ["extract", "train"])
def test_the_umbrella_has_both_stages(stage: str) -> None:
    alone = run(f"aqa-{stage}", "--help").stdout
    below = run("aqa", stage, "--help").stdout
    assert below.startswith(f"Usage: aqa {stage} [OPTIONS]")
    assert below.split("\n")[2:] == alone.split("\n")[2:]
    assert re.search(rf"^  {stage} ", run("aqa", "-h").stdout, flags=re.MULTILINE)
    wrong = run("aqa", stage[:-1])
    assert (wrong.returncode, stage in wrong.stderr) == (2, True)


def test_the_umbrella_runs_a_stage(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run("aqa", "extract", str(tmp_path / "empty"), "--out", str(tmp_path / "s.zarr"))
    assert done.returncode == 4, done.stderr
    done = run("aqa", "train", "--features", str(tmp_path / "none.zarr"), "--method", "aa", "--lr", "1e-3")
    assert done.returncode == 6, done.stderr


@pytest.mark.parametrize(
    ("command", "variable", "meant"),
    [
        (["aqa-extract", "v", "--out", "s.zarr"], "AQA_EXTRACT_SEGMENT", "segments"),
        (["aqa", "extract", "v", "--out", "s.zarr"], "AQA_EXTRACT_STREEMS", "streams"),
        (["aqa-train", "--features", "s.zarr"], "AQA_TRAIN_SEDS", "seeds"),
    ],
)
def test_a_variable_that_sets_nothing_is_refused(command: list[str], variable: str, meant: str) -> None:
    done = run(*command, **{variable: "3"})
    assert done.returncode == 2
    assert variable in done.stderr
    assert f"did you mean {meant}?" in done.stderr


@pytest.mark.parametrize(("command", "record"), [("aqa-train", "RunConfig"), ("aqa-extract", "Config")])
def test_options_are_the_settings(command: str, record: str) -> None:
    """Names and defaults come from the records; what is no setting is about the command itself."""
    from aqa_shared.settings import settings_of

    settings = settings_of(getattr(importlib.import_module(f"{APPS[command]}.config"), record))
    found = {str(p.name): p for p in typer.main.get_command(importlib.import_module(f"{APPS[command]}.cli").app).params}
    shown = {name: setting for name, setting in settings.items() if setting.option is not None}
    assert len(shown) > 20
    own = {"out", "resume", "set_", "device", "jobs", "together", "in_memory", "shard", "scheduler", "scheduler_wait"}
    assert found.keys() - shown.keys() == (own if command == "aqa-train" else set()) | {
        "config",
        "print_config",
        "dry_run",
        "version",
        "install_completion",
        "show_completion",
    }
    for name, setting in shown.items():
        assert setting.option.argument or f"--{(setting.option.name or name).replace('_', '-')}" in found[name].opts
        if isinstance(default := setting.field.default, int | float) and not isinstance(default, bool):
            assert f"[default: {setting.option.default or default}]" in found[name].help
