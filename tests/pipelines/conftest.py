"""Fixtures of the pipelines' tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.pipelines.import_cases import IDS


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "scores.csv"
    path.write_text("id,score,person\n" + "".join(f"{id},{i % 7 + i / 10:.1f},p{i % 3}\n" for i, id in enumerate(IDS)))
    return path
