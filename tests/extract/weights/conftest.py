"""An empty cache for each test, a server, and a registry that tests add to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.extract.weights.sources import Server

from aqa_extract import weights_fetch
from aqa_extract.weights_registry import REGISTRY, Entry


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test, no proxies between it and its own servers, and no memory of failures."""
    monkeypatch.setenv("AQA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("AQA_OFFLINE", raising=False)
    monkeypatch.setattr(weights_fetch, "_unreachable", {})
    return tmp_path / "home"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Adds a small detector `tiny` with the given sources to the registry."""

    def add(*sources: weights_fetch.Origin, name: str = "tiny", **changes: Any) -> Entry:
        entry = replace(REGISTRY["ssdlite320"], name=name, sources=sources, **changes)
        monkeypatch.setitem(REGISTRY, name, entry)
        return entry

    return add


@pytest.fixture
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """pip, as the user might have set it up: no network, archives in a folder."""
    folder = tmp_path / "archives"
    folder.mkdir()
    for name, value in {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
    }.items():
        monkeypatch.setenv(name, value)
    return folder
