"""Requests, seconds and bytes that the store takes for each video, found by using it at two small sizes."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from zarr.storage import MemoryStore, WrapperStore

from aqa_extract.config import Options
from aqa_extract.plan import read_plan, shard
from aqa_extract.streams import completed, identified
from aqa_shared.manifest import find_videos
from aqa_shared.records import ExtractSettings, FlowSettings, Video
from aqa_shared.store import Objects, Run, StoreWriter, contents, expect, finalise

SETTINGS = completed(ExtractSettings(streams=("rgb", "flow"), flow=FlowSettings(mode="parity")))
SEGMENTS = 10
PAGE = 1000
"""Names in an answer of an object store to a question for a list."""


class Counting(WrapperStore[Any]):
    """Counts requests as (what, of what), and how many of each were under way at once."""

    def __init__(self, store: Any, counts: Counter[tuple[str, str]] | None = None, most: Counter | None = None) -> None:
        super().__init__(store)
        self.counts: Counter[tuple[str, str]] = Counter() if counts is None else counts
        self.most: Counter[tuple[str, str]] = Counter() if most is None else most
        self._now: Counter[tuple[str, str]] = Counter()

    def with_read_only(self, read_only: bool = False) -> Counting:
        return Counting(self._store.with_read_only(read_only), self.counts, self.most)

    async def _counted(self, what: str, key: str, call: Callable[[], Any]) -> Any:
        top = key.split("/")[0]
        kind = (what, {".json": "marker", ".npz": "arrays"}.get(key[key.rfind(".") :], top) if top == "staged" else top)
        self.counts[kind] += 1
        self._now[kind] += 1
        self.most[kind] = max(self.most[kind], self._now[kind])
        await asyncio.sleep(0)  # others may begin meanwhile, as they do where an answer takes a while
        try:
            return await call()
        finally:
            self._now[kind] -= 1

    async def get(self, key: str, *arguments: Any, **more: Any) -> Any:
        return await self._counted("get", key, lambda: self._store.get(key, *arguments, **more))

    async def exists(self, key: str) -> bool:
        return await self._counted("get", key, lambda: self._store.exists(key))

    async def set(self, key: str, value: Any) -> None:
        await self._counted("put", key, lambda: self._store.set(key, value))

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        await self._counted("put", key, lambda: self._store.set_if_not_exists(key, value))

    async def delete(self, key: str) -> None:
        await self._counted("delete", key, lambda: self._store.delete(key))

    async def list_dir(self, prefix: str) -> Any:
        names = [name async for name in self._store.list_dir(prefix)]
        self.counts["list", prefix.split("/")[0]] += max(1, math.ceil(len(names) / PAGE))
        for name in names:
            yield name


def filled(videos: int, store: Any) -> StoreWriter:
    """A store with so many committed videos of two streams and ten segments."""
    writer = StoreWriter.open(store, specs=identified(SETTINGS), settings=SETTINGS, provenance={"versions": {"a": "1"}})
    for i in range(videos):
        commit(writer, i)
    return writer


def commit(writer: StoreWriter, i: int) -> None:
    arrays = {s.name: np.zeros((SEGMENTS, *s.shape), s.dtype) for s in writer.specs}
    identity = {"size": 10**6 + i, "mtime_ns": 10**18 + i, "fingerprint": f"{i:032x}"}
    writer.commit(f"{i:07}.mp4", arrays, {"path": f"/videos/{i:07}.mp4", "fps": 25.0, "identity": identity})


def begin(store: Any, name: str) -> None:
    """What a part does before its first video, and whenever it goes on: plan, open, say what it was asked for."""
    one, objects = Video(id=name, path=f"/videos/{name}"), Objects(store, write=True)
    read_plan([one], objects, SETTINGS, Options())
    filled(0, objects)
    expect(objects, Run("aqa-extract v --out s", ("rgb",), (name,), (1, 1)))


def counted(videos: int) -> tuple[dict[str, Counter[tuple[str, str]]], Counter[tuple[str, str]]]:
    """Requests by phase for so many videos, and the most that were under way at once."""
    store = Counting(MemoryStore())
    found: dict[str, Counter[tuple[str, str]]] = {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        before = store.counts.copy()
        yield
        found[name] = store.counts - before

    with phase("first"):
        begin(store, "new.mp4")
    with phase("commit"):
        filled(videos, store)
    with phase("begin"):
        begin(store, "new.mp4")
    with phase("finalise"):
        finalise(store)
    with phase("later"):
        begin(store, "new.mp4")
    return found, store.most


def by_video(videos: int = 40) -> tuple[dict[str, dict[tuple[str, str], float]], Counter[tuple[str, str]]]:
    """Requests by phase that come with every further video: the difference between two sizes."""
    (few, _), (many, most) = counted(videos), counted(2 * videos)
    return {
        phase: {k: n / videos for k in many[phase] if (n := many[phase][k] - few[phase][k])} for phase in many
    }, most


def cpu(call: Callable[[], object]) -> float:
    started = time.process_time()
    call()
    return time.process_time() - started


def peak(call: Callable[[], object]) -> int:
    """The most bytes of Python's during a call, above those before it."""
    tracemalloc.start()
    try:
        kept = call()
        found = tracemalloc.get_traced_memory()[1]
        del kept
        return found
    finally:
        tracemalloc.stop()


def questions(folder: Path, videos: int) -> tuple[float, float]:
    """Seconds and questions to the file system for each file that a part deals: of so few, each part deals all."""
    for i in range(videos):
        with (folder / f"{i:07}.mp4").open("wb") as f:
            f.truncate(10**6 + i)
    asked, real = Counter[str](), os.stat

    def work() -> None:
        read_plan(shard(find_videos(folder).videos, 1, videos), folder.parent / "none", SETTINGS, Options())

    seconds = cpu(work)
    os.stat = lambda *a, **k: (asked.update(["stat"]), real(*a, **k))[1]  # type: ignore[assignment]
    try:
        work()
    finally:
        os.stat = real
    return seconds / videos, asked["stat"] / videos


def measured(folder: Path, videos: int) -> dict[str, float]:
    """The costs of the store and of planning, on this machine."""
    counts, most = by_video()
    store, larger = MemoryStore(), MemoryStore()
    commits = cpu(lambda: filled(videos, store)) / videos
    filled(2 * videos, larger)
    reads = (cpu(lambda: contents(larger)) - cpu(lambda: contents(store))) / videos
    memory = (peak(lambda: contents(larger)) - peak(lambda: contents(store))) / videos
    sizes = [len(v.to_bytes()) for k, v in store._store_dict.items() if k.startswith("staged/") and k.endswith(".json")]
    for n in (1, 2):
        filled(n * videos, folder.parent / f"{n}.zarr")
    of_memory = (
        peak(lambda: finalise(folder.parent / "2.zarr")) - peak(lambda: finalise(folder.parent / "1.zarr"))
    ) / videos
    seconds = cpu(lambda: finalise(larger)), cpu(lambda: finalise(store))
    index = (cpu(lambda: contents(larger)) - cpu(lambda: contents(store))) / videos
    plan, stats = questions(folder, videos)
    each = seconds[1] / videos * 1e3, seconds[0] / videos * 500
    print(f"finalise: {each[0]:.2f} ms a video of {videos}, {each[1]:.2f} ms of twice as many")
    gets = {k: n for k, n in counts["finalise"].items() if k[0] in ("get", "delete")}
    return {
        "plan": plan,
        "stats": stats,
        "commit": commits,
        "commit_puts": sum(n for (what, _), n in counts["commit"].items() if what == "put"),
        "marker": reads,
        "marker_bytes": float(np.mean(sizes)),
        "marker_memory": memory,
        "index": max(index, 0.0),
        "finalise": (seconds[0] - seconds[1]) / videos,
        "finalise_memory": of_memory,
        "finalise_rounds": sum(n / most[k] for k, n in gets.items()),
        "finalise_gets": sum(n for k, n in gets.items() if k[0] == "get"),
        "finalise_deletes": sum(n for k, n in gets.items() if k[0] == "delete"),
    }


def as_rows(counts: dict[str, dict[tuple[str, str], float]]) -> str:
    """JSON of the counts, for a reader."""
    return json.dumps({p: {" ".join(k): n for k, n in sorted(c.items())} for p, c in counts.items()})
