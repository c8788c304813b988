"""Processes that change one store at the same moment: the other one acts at the worst operation of the first."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.shared.store_cases import arrays_of, commit, make_store, meta_of, open_writer
from tests.shared.store_cases import label as labelled
from zarr.abc.store import Store
from zarr.storage import MemoryStore, WrapperStore

from aqa_shared.store import (
    ArraySpec,
    FeatureStore,
    Objects,
    Run,
    compact,
    contents,
    expect,
    finalise,
    label,
    missing,
    verify,
)


class Killed(Exception):
    """Of a process, as far as the store can tell."""


Moment = Callable[[str, str], bool]


class Meanwhile(WrapperStore[Store]):
    """An object store that is slow at one moment: before the first operation that `when` names, `what` happens."""

    def __init__(
        self,
        store: Store,
        when: Moment = lambda operation, key: False,
        what: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__(store)
        self.when, self.what, self.came = when, what, False

    async def _wait(self, operation: str, key: str) -> None:
        if not self.came and self.when(operation, key):
            self.came = True
            await asyncio.to_thread(self.what)

    async def get(self, key: str, *arguments: Any, **more: Any) -> Any:
        await self._wait("get", key)
        return await super().get(key, *arguments, **more)

    async def set(self, key: str, value: Any) -> None:
        await self._wait("set", key)
        await super().set(key, value)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        await self._wait("set", key)
        await super().set_if_not_exists(key, value)

    async def delete(self, key: str) -> None:
        await self._wait("delete", key)
        await super().delete(key)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        await self._wait("list", prefix)
        async for name in super().list_dir(prefix):
            yield name


def removes_the_older(operation: str, key: str) -> bool:
    """Requests that are under way at once end in any order: those of the newer may have ended."""
    return operation == "delete" and "-0000-" in key and key.endswith(".json")


def test_the_copy_for_plain_readers_is_of_the_last_change() -> None:
    commit(open_writer(memory := MemoryStore()), 0)

    def other() -> None:
        commit(open_writer(memory), 1)
        finalise(memory)

    finalise(Meanwhile(memory, lambda operation, key: (operation, key) == ("set", "zarr.json"), other))
    assert FeatureStore.open(memory).ids == ["v0.mp4", "v1.mp4"]
    assert verify(memory) == []


def test_a_video_that_is_being_finalised_is_never_missing() -> None:
    commit(open_writer(memory := MemoryStore()), 0)
    expect(memory, Run("again", ("rgb",), ("v0.mp4",)))

    def slow() -> Meanwhile:  # the state was read, and what is staged is about to be
        return Meanwhile(
            memory, lambda operation, key: (operation, key) == ("list", "staged"), lambda: finalise(memory)
        )

    assert missing(slow()) == []
    commit(open_writer(memory), 1)
    assert (found := contents(slow())) is not None
    assert found.live("v1.mp4")


def test_what_replaced_a_video_is_not_undone_by_two_that_finalise_at_once() -> None:
    writer = open_writer(memory := MemoryStore())
    commit(writer, 0)
    writer.replace(["v0.mp4"])
    writer.commit("v0.mp4", arrays_of(7), meta_of(7))
    finalise(Meanwhile(memory, removes_the_older, lambda: finalise(memory)))
    store = FeatureStore.open(memory)
    assert np.array_equal(store.video("v0.mp4", "rgb"), arrays_of(7)["rgb"])
    assert store.pending == 0
    assert verify(memory) == []


@pytest.mark.parametrize("killed", [False, True])
def test_the_last_labels_count_whoever_finalises(killed: bool) -> None:
    make_store(memory := MemoryStore(), 1)
    for score in (1, 2):
        label(memory, {"v0.mp4": labelled("v0.mp4", score=score)})

    def other() -> None:
        if killed:
            raise Killed
        finalise(memory)

    try:
        finalise(Meanwhile(memory, removes_the_older, other))
    except Killed:
        finalise(memory)
    assert FeatureStore.open(memory).column("score") == [2]
    assert Objects(memory).names("staged") == []


def test_what_another_process_finalises_now_is_not_taken_for_damaged() -> None:
    """A repaired video: its marker is read before the other one removes it, and its arrays afterwards."""
    make_store(memory := MemoryStore(), 1)
    writer = open_writer(memory)
    writer.forget(["v0.mp4"])
    commit(writer, 0)
    met, gone, found = threading.Event(), threading.Event(), []

    def wait() -> None:
        met.set()
        assert gone.wait(60)

    def second() -> None:
        found.append(finalise(Meanwhile(memory, lambda operation, key: key.endswith(".npz"), wait)))

    thread = threading.Thread(target=second)

    def other() -> None:
        thread.start()
        assert met.wait(60)

    finalise(Meanwhile(memory, lambda operation, key: operation == "delete", other))
    gone.set()
    thread.join()
    assert len(found) == 1
    assert verify(memory) == []


def test_what_another_process_is_writing_is_not_flushed(tmp_path: Path) -> None:
    """It has its name before it can be opened under this one: as a link that leads nowhere."""
    commit(open_writer(tmp_path / "s"), 0)
    (tmp_path / "s" / "log" / "00000001.0a1b.partial").symlink_to("gone")
    finalise(tmp_path / "s")
    assert verify(tmp_path / "s") == []


def test_a_compaction_leaves_what_a_later_one_is_writing() -> None:
    make_store(memory := MemoryStore(), 2)
    compact(memory)
    begun, over = threading.Event(), threading.Event()
    looks = []

    def last_look(operation: str, key: str) -> bool:
        looks.extend([key] if (operation, key) == ("list", "blocks") else [])
        return len(looks) == 2

    def hold() -> None:
        begun.set()
        assert over.wait(60)

    second = threading.Thread(
        target=lambda: compact(
            Meanwhile(memory, lambda operation, key: key.startswith("log/0") and operation == "set", hold)
        )
    )

    def other() -> None:
        commit(open_writer(memory), 2)
        finalise(memory)
        second.start()
        assert begun.wait(60)

    compact(Meanwhile(memory, last_look, other))
    over.set()
    second.join()
    assert FeatureStore.open(memory).ids == ["v0.mp4", "v1.mp4", "v2.mp4"]
    assert verify(memory) == []


def test_a_committed_video_is_read_while_another_thread_forgets_it() -> None:
    """As where threads finalise with what one of them opened."""
    wide = ArraySpec("wide", ("channel",), (1 << 20,), "float32", role="feature")
    writer = open_writer(MemoryStore(), specs=[wide])
    writer.commit("v0.mp4", {"wide": np.ones((1, 1 << 20), np.float32)}, meta_of(0))
    (part,) = writer.known.parts["v0.mp4"]
    read = threading.Event()

    def forget() -> None:
        while not read.is_set():
            part.release()

    with ThreadPoolExecutor() as pool:
        pool.submit(forget)
        try:
            for _ in range(10):
                assert part.rows("wide", 0).all()
        finally:
            read.set()
