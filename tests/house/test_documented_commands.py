"""Every command that README and docs show must parse: a renamed flag is found here, not by a newcomer."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer.main

ROOT = Path(__file__).resolve().parents[2]
APPS = {"aqa": "aqa_pipelines.cli", "aqa-extract": "aqa_extract.cli", "aqa-train": "aqa_train.cli"}


def documented() -> list[tuple[str, str]]:
    """(file, command) of every line in a fenced block that begins with one of our commands."""
    found = []
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"```\w*\n(.*?)```", path.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.split(" ")[0] in APPS:
                    found.append((str(path.relative_to(ROOT)), line))
    return found


def test_there_are_commands_to_check() -> None:
    named = {line.split()[1] for _, line in documented() if line.startswith("aqa ")}
    assert {"extract", "train", "predict", "doctor", "demo"} <= named


@pytest.mark.parametrize(("file", "line"), documented())
def test_it_parses(file: str, line: str) -> None:
    name, *arguments = shlex.split(line, comments=True)
    command = typer.main.get_command(importlib.import_module(APPS[name]).app)
    context = command.make_context(name, list(arguments))
    while hasattr(command, "commands"):
        rest = [*getattr(context, "_protected_args", []), *context.args]
        child, command, rest = command.resolve_command(context, rest)
        assert command is not None, f"{file}: {line}: no such command"
        context = command.make_context(child, rest, parent=context)
