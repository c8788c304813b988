"""Rules of the house that no single room can keep: arrows between packages, instant help, no stray tracebacks."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def test_imports_point_one_way() -> None:
    """extract → shared ← train, pipelines on top: the contract is in pyproject.toml."""
    done = subprocess.run([BIN / "lint-imports"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("command", ["aqa", "aqa-extract", "aqa-train"])
def test_help_does_not_load_torch(command: str) -> None:
    """`--help` answers at once because the heavy libraries are imported late."""
    code = (
        "import sys\n"
        f"sys.argv = ['{command}', '--help']\n"
        "from importlib.metadata import entry_points\n"
        f"main = next(iter(entry_points(group='console_scripts', name='{command}'))).load()\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "heavy = {'torch', 'torchvision', 'zarr', 'dask', 'av', 'decord', 'scipy', 'sklearn', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_every_dependency_has_a_lowest_and_a_highest_version() -> None:
    """`make test-versions` can try a bound only where there is one; without, a new release breaks what was whole."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    named = [Requirement(text) for text in chain(project["dependencies"], *extras)]
    assert len(named) > 20
    for requirement in named:
        operators = {bound.operator for bound in requirement.specifier}
        assert operators == {">=", "<"}, f"{requirement}: give it a lowest and a highest version, as >=1.2,<3"
