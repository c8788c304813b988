"""Stopped at any moment, then the same work again: the store is byte-equal to an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from zarr.storage import MemoryStore, WrapperStore

from aqa_shared.store import FeatureStore, verify

from .store_cases import arrays_of
from .store_crash import compare, reader_sees_whole_videos, work

ROOT = Path(__file__).resolve().parents[2]
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


def _kills(folder: Path, points: list[str]) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.shared.store_crash", str(folder), *points],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    first, *rest = map(json.loads, done.stdout.splitlines())
    assert first["operations"] > 500
    return rest


@needs_fork
def test_a_writer_killed_anywhere_is_made_good_by_the_next(tmp_path: Path) -> None:
    """While the store is created, and evenly over the file-system operations of everything that follows."""
    birth = ["1", "3", "5"]
    points = birth + [f"{x:.4f}" for x in np.linspace(0.02, 0.995, 9)]
    results = _kills(tmp_path, points)
    assert [r["point"] for r in results] == points
    assert all(r["killed"] for r in results)


class _Died(Exception):
    """No error of a store: nothing may catch it and go on."""


class _Dying(WrapperStore[MemoryStore]):
    """A store in memory whose writer dies before one of its operations."""

    def __init__(self, store: MemoryStore, left: int) -> None:
        super().__init__(store)
        self.left = left
        self.done = 0

    def _with_store(self, store: MemoryStore) -> Self:
        return self

    def _count(self) -> None:
        if self.done >= self.left:
            raise _Died
        self.done += 1

    async def set(self, key: str, value: Any) -> None:
        self._count()
        await self._store.set(key, value)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        self._count()
        await self._store.set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        self._count()
        await self._store.delete(key)

    async def delete_dir(self, prefix: str) -> None:
        # One object after the other, as an object store does it.
        for key in [k async for k in self._store.list_prefix(prefix)]:
            await self.delete(key)


def _memory(points: Any) -> int:
    reference = MemoryStore()
    undisturbed = _Dying(reference, 1 << 30)
    work(undisturbed)
    for point in points(undisturbed.done):
        objects = MemoryStore()
        with pytest.raises(_Died):
            work(_Dying(objects, point))
        # What survives is the dictionary; a reader looks at it, then the next writer.
        reader_sees_whole_videos(objects)
        work(objects)
        compare(objects, reference)
    return undisturbed.done


def test_an_object_store_whose_writer_dies_anywhere_is_made_good_by_the_next() -> None:
    assert _memory(lambda count: np.linspace(0, count - 1, 12).astype(int).tolist()) > 200


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_object_store_whose_writer_dies_before_every_operation() -> None:
    assert _memory(range) > 200


_CROWD = """
import sys
from pathlib import Path
from tests.shared.store_cases import arrays_of, meta_of, open_writer
path, first = Path(sys.argv[1]), int(sys.argv[2])
for start in (first, first + 3):
    with open_writer(path) as writer:
        for i in range(start, start + 6):  # half of what the next process writes as well
            writer.commit(f"v{i:02}.mp4", arrays_of(i, 1 + i % 4), meta_of(i))
        writer.finalise({})
"""


def test_processes_that_create_commit_and_finalise_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s"
    crowd = [
        subprocess.Popen([sys.executable, "-c", _CROWD, str(path), str(6 * n)], cwd=ROOT, stderr=subprocess.PIPE)
        for n in range(3)
    ]
    for process in crowd:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    store = FeatureStore.open(path)
    assert store.ids == [f"v{i:02}.mp4" for i in range(21)]
    assert store.pending == 0
    assert verify(path) == []
    for i in range(21):
        np.testing.assert_array_equal(store.video(f"v{i:02}.mp4", "rgb"), arrays_of(i, 1 + i % 4)["rgb"])


@needs_fork
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_writer_killed_before_every_operation(tmp_path: Path) -> None:
    assert all(r["killed"] for r in _kills(tmp_path, ["all"]))


@needs_fork
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_a_writer_killed_at_500_random_moments(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    results = _kills(tmp_path, [f"~{t:.4f}" for t in rng.uniform(0.0, 1.5, 500)])
    assert len(results) == 500
    assert sum(bool(r["killed"]) for r in results) > 100
