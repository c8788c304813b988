"""Arrays to import, and what the store of them must hold."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_pipelines.import_features import ImportReport, import_features
from aqa_shared.errors import AqaError, ExitCode
from aqa_shared.store import FeatureStore, verify

IDS = [f"Ball_{i:03d}" for i in range(1, 13)]


def signal(id: str, stream: str = "", width: int = 6, rows: int | None = None) -> np.ndarray:
    """Always the same for a name; between 3 and 6 rows."""
    rng = np.random.default_rng([*f"{id}{stream}".encode()])
    length = int(rng.integers(3, 7)) if rows is None else rows
    return rng.standard_normal((length, width)).astype(np.float32)


def save(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, value, allow_pickle=True)


def dump(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def bring(source: Path, out: Path, **more: Any) -> ImportReport:
    return import_features(source, str(out), **more)


def expect(out: Path, stream: str, arrays: Mapping[str, np.ndarray]) -> FeatureStore:
    """The store holds exactly these, and is whole."""
    store = FeatureStore.open(out)
    chosen = store.select(stream)
    assert chosen.ids == sorted(arrays)
    for id, array in arrays.items():
        np.testing.assert_array_equal(chosen.video(id, stream), array.astype(np.float32))
    assert verify(out) == []
    return store


def train(store: Path, run: Path, *arguments: str) -> list[dict[str, Any]]:
    """A short training by the command that a user types; the rows of its table."""
    from aqa_train.cli import app

    fixed = ("--test-fraction", "0.3", "--seeds", "1", "--epochs", "2", "--jobs", "1", "--device", "cpu")
    app(["--features", str(store), "--out", str(run), *fixed, *arguments], standalone_mode=False)
    rows: list[dict[str, Any]] = json.loads((run / "metrics.json").read_text())["rows"]
    return rows


def left_out(report: ImportReport, path: Path, said: str) -> None:
    """This one file was left out, with a cause that says so and a fix."""
    assert report.exit_code == ExitCode.QUARANTINED
    ((where, cause, fix),) = report.problems
    assert where == str(path)
    assert re.search(said, cause), cause
    assert fix


def problem(work: Any, kind: type[AqaError], said: str) -> AqaError:
    with pytest.raises(kind, match=said) as caught:
        work()
    assert caught.value.fix
    return caught.value
