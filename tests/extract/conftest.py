"""Fixtures of the extraction tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from jaxtyping import install_import_hook
from tests.typecheck import CHECKER

# The shapes in the annotations are checked while testing; no module with any is imported before this.
_ROOM = Path(__file__).resolve().parents[2] / "extract"
install_import_hook(
    [
        ".".join(path.relative_to(_ROOM).with_suffix("").parts)
        for path in _ROOM.rglob("*.py")
        if "from jaxtyping import" in path.read_text("utf-8")
    ],
    CHECKER,
)

from aqa_extract.decode.child import Decoder  # noqa: E402


@pytest.fixture(scope="session")
def clips() -> ModuleType:
    """tests/extract/clips.py, which writes video files of every kind: `clips.Clip(...).write(path)`."""
    name = "aqa_test_clips"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("clips.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    """One child process for the tests of a file."""
    with Decoder() as running:
        yield running
