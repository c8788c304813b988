"""What the store costs: commits, appending, reading all of MTL-AQA's size (1412 videos × 10 × 1024), a large index.

    python benchmarks/store.py [--videos 1412] [--many 100000] [--files 1000000]

Prints, from one run on one machine: a commit (into a folder, and into fsspec's memory); the finalise; appending one
video to what is there; the whole read through the store (checksums verified, no chunk missing) beside a plain
`numpy.load` of the same array and beside Zarr's defaults (zstd, one chunk per video); one video; the same through
Dask; opening a store of very many videos, in a process of its own, with the memory that takes; what is missing of a
run that was asked for all of them; appending videos to it, with and without labels; and planning on it, beside a folder
of `--files` files, of which the store has the first. Goals stand beside what has one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zarr

from aqa_shared.records import ExtractSettings, Video
from aqa_shared.store import ArraySpec, FeatureStore, Run, StoreWriter, compact, contents, expect

SPECS = (
    ArraySpec("rgb", ("channel",), (1024,), "float32", role="feature"),
    ArraySpec("frame_index", ("frame",), (16,), "int32", role="coordinate"),
)
ONE = (ArraySpec("rgb", ("channel",), (1,), "float32", role="feature"),)


def median_ms(call: Callable[[], object], repeats: int = 7) -> float:
    """Median milliseconds of a call; the first, which warms caches, is not counted."""
    call()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def writer(where: Path | str, specs: tuple[ArraySpec, ...] = SPECS) -> StoreWriter:
    return StoreWriter.open(where, specs=specs, settings=ExtractSettings(), provenance={})


def commit(to: StoreWriter, i: int, rgb: np.ndarray) -> None:
    to.commit(f"{i:06}.mp4", {"rgb": rgb, "frame_index": np.zeros((len(rgb), 16), np.int32)}, {"fps": 25.0})


def many(path: Path, videos: int) -> None:
    """A store of very many short videos, made without committing each: a block as finalise writes it."""
    from aqa_shared.store.blocks import Index, write_blocks
    from aqa_shared.store.layout import array_digest
    from aqa_shared.store.log import publish, write_root

    class Made:
        arrays, replaces = ("rgb",), frozenset[str]()

        def __init__(self) -> None:
            self.ids = [f"folder/{i:07}.mp4" for i in range(videos)]
            self.lengths = np.full(videos, 10, np.int64)
            self.data = np.zeros((10, 1), np.float32)
            self.of_data = array_digest(self.data)

        def digest(self, name: str, item: int) -> str:
            return self.of_data

        def meta(self, item: int) -> dict[str, object]:
            identity = {"size": 10**6 + item, "mtime_ns": 10**18 + item, "fingerprint": f"{item:032x}"}
            return {"path": f"/videos/{self.ids[item]}", "fps": 25.0, "n_frames": 103, "identity": identity}

        def rows(self, name: str, item: int) -> np.ndarray:
            return self.data

        unread = None

        def release(self) -> None: ...

    with writer(path, ONE) as to:
        state, objects = to._contents.state, to.objects
        blocks = write_blocks(objects, Index([Made()]), state.arrays, f"{state.number + 1:08}-")
        after = state.next(blocks=tuple(blocks))
        publish(objects, after)
        write_root(objects, after)


MEASURED = """
import re, sys, time
from pathlib import Path
started, cpu = time.perf_counter(), time.process_time()
found = ", ".join(work(*sys.argv[1:]))
seconds, cpu, status = time.perf_counter() - started, time.process_time() - cpu, Path("/proc/self/status").read_text()
peak = int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1e3
print(f"{seconds:8.2f} s   {peak:6.0f} MB at most; {cpu:.2f} s of a core; {found}")
"""
OPEN = """
from aqa_shared.store import FeatureStore
def work(path):
    store = FeatureStore.open(path)
    return f"{len(store.ids)} videos", f"{store.lengths.sum()} segments"
"""
PLAN = """
import time
from aqa_extract import quarantine
from aqa_extract.config import Options
from aqa_extract.plan import plan
from aqa_shared.manifest import find_videos
from aqa_shared.records import ExtractSettings
from aqa_shared.store import contents
def work(folder, store):
    started = time.perf_counter()
    videos = find_videos(folder).videos
    yield f"{time.perf_counter() - started:.1f} s of them to list {len(videos)} files"
    known = contents(store)  # its one number a segment is not what I3D says, so that `read_plan` would refuse it
    before = quarantine.read(store) if known else {}
    todo = plan(videos, known, before, set(), ExtractSettings(), Options())
    yield f"{len(todo.already)} already there, {len(todo.refused)} refused, {len(todo.jobs)} to do"
"""


MISSING = """
from aqa_shared.store import missing
def work(path):
    return [f"{row['missing']} missing" for row in missing(path)]
"""


def measured(name: str, goal: str, code: str, *arguments: object) -> None:
    """What `work` takes in a process of its own, imports apart, with its most memory."""
    command = [sys.executable, "-c", code + MEASURED, *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()
    print(f"{name:40} {found}{goal and f'; goal: {goal}'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=1412)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--files", type=int, default=1_000_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        commits, whole = [], []
        with writer(root / "s.zarr") as to:
            for i in range(options.videos):
                whole.append(rng.standard_normal((10, 1024), dtype=np.float32))
                commits.append(timed(lambda i=i: commit(to, i, whole[-1])))  # type: ignore[misc]
            finalise = timed(lambda: to.finalise({}))
        with writer("memory://bench.zarr") as to:
            remote = [timed(lambda i=i: commit(to, i, whole[i])) for i in range(100)]  # type: ignore[misc]
        data = np.concatenate(whole)
        np.save(root / "plain.npy", data)
        default = zarr.create_array(str(root / "default.zarr"), shape=data.shape, chunks=(10, 1024), dtype="f4")
        default[...] = data
        store = FeatureStore.open(root / "s.zarr")
        if not np.array_equal(store.read("rgb"), data):
            raise SystemExit("the store did not give back what was written")
        rows = {
            "numpy.load, no checksum": median_ms(lambda: np.load(root / "plain.npy")),
            "store.read('rgb')": median_ms(lambda: store.read("rgb")),
            "open the store, then read": median_ms(lambda: FeatureStore.open(root / "s.zarr").read("rgb")),
            "store.dask('rgb').compute()": median_ms(lambda: store.dask("rgb").compute()),
            "Zarr's defaults, chunk per video": median_ms(lambda: default[...], repeats=3),
            "one video of the store": median_ms(lambda: store.video(store.ids[options.videos // 2], "rgb")),
        }
        base = rows["numpy.load, no checksum"]
        print(f"{data.nbytes / 1e6:.0f} MB, {options.videos} videos")
        for name, ms in rows.items():
            print(f"{name:40} {ms:8.1f} ms   {ms / base:6.2f} × numpy.load")
        print(f"{'commit of one video, in a folder':40} {statistics.median(commits):8.1f} ms")
        print(f"{'commit of one video, fsspec memory':40} {statistics.median(remote):8.1f} ms")
        print(f"{'finalise':40} {finalise:8.0f} ms   {finalise / options.videos:6.2f} ms a video")
        for i in range(options.videos, options.videos + 3):
            before = size(root / "s.zarr")
            with writer(root / "s.zarr") as to:
                one = timed(lambda i=i: (commit(to, i, whole[0]), to.finalise({})))  # type: ignore[misc]
            more = (size(root / "s.zarr") - before) / 1e3
            print(f"{'append one video and finalise':40} {one:8.1f} ms   {more:6.0f} kB more on disk")
        print(f"{'compact':40} {timed(lambda: compact(root / 's.zarr')):8.0f} ms")
        large = root / "many.zarr"
        many(large, options.many)
        measured(f"open {options.many} videos", "1 s, 300 MB", OPEN, large)
        look_up(large, options.many)
        names = (*(f"folder/{i:07}.mp4" for i in range(options.many)), "absent.mp4")
        expect(large, Run("aqa-extract v --out many.zarr", ("rgb",), names))
        measured("what is missing of as many", "5 s", MISSING, large)
        append(large, options.many, "one video", 1, 0)
        append(large, options.many, "one video with its score", 1, 1)
        append(large, options.many, "100 videos with scores", 100, 100)
        measured("open it again", "1 s, 300 MB", OPEN, large)
        goal = "120 s, 2000 MB for a million"
        measured("the plan of files, without a store", goal, PLAN, files(root / "v", options.files), root / "none.zarr")
        measured("the plan of files, beside the store", goal, PLAN, root / "v", large)


def append(path: Path, videos: int, what: str, count: int, labelled: int) -> None:
    """Three times to a store of so many videos."""
    for i in range(3):
        ids = [f"{what}-{i}-{k}" for k in range(count)]
        before = size(path)

        def once(ids: list[str] = ids) -> None:
            with writer(path, ONE) as to:
                for video_id in ids:
                    to.commit(video_id, {"rgb": np.ones((10, 1), np.float32)}, {"fps": 25.0})
                to.finalise({i: Video(id=i, path=i, score=1.0) for i in ids[:labelled]})

        cpu = time.process_time()
        ms = timed(once)
        cpu = (time.process_time() - cpu) * 1e3
        more = (size(path) - before) / 1e3
        name = f"to {videos}, append {what}"
        print(
            f"{name:40} {ms:8.1f} ms   {cpu:6.0f} ms of a core; {more:.0f} kB more on disk; goal: 2 s, a few MB",
            flush=True,
        )


def files(folder: Path, count: int) -> Path:
    """Empty files of as many sizes, as `many` says of those that it has."""
    (folder / "folder").mkdir(parents=True)
    for i in range(count):
        path = folder / f"folder/{i:07}.mp4"
        with path.open("wb") as f:
            f.truncate(10**6 + i)
        os.utime(path, ns=(10**18 + i, 10**18 + i))
    return folder


def size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def look_up(path: Path, videos: int) -> None:
    """What planning takes of the store: which videos it has, and what it recorded of each."""
    found = contents(path)
    assert found is not None

    def look() -> None:
        known = found.having(["rgb"])
        for video_id in known:
            _ = known[video_id]["identity"]

    once = timed(lambda: contents(path))
    print(f"{f'contents of {videos} videos':40} {once:8.0f} ms; what is recorded of each: {timed(look):.0f} ms")


if __name__ == "__main__":
    main()
