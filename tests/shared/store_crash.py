"""Kill a writer at a chosen step, then run it again: a program, so that it can fork before Zarr starts threads.

    python -m tests.shared.store_crash FOLDER POINT [POINT …]

A POINT is the number of the file-system operation (as Python's audit events count them: open, rename, link, mkdir,
rmdir, remove) before which the process kills itself with SIGKILL; `~SECONDS` kills it from outside after that
time. Prints one JSON line per point: whether it was killed, and whether the store then equals an undisturbed one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

# Everything is imported before the first fork, and nothing of it is used by the parent.
import dask.array  # noqa: F401
import numpy as np
import zarr.storage  # noqa: F401
from tests.shared.store_cases import FLOW, arrays_of, commit, meta_of, open_writer, tree

from aqa_shared.errors import StoreError
from aqa_shared.records import Video
from aqa_shared.store import FeatureStore, Where, compact, verify

EVENTS = frozenset({"open", "os.rename", "os.link", "os.mkdir", "os.rmdir", "os.remove"})
NEW = 5
"""What v1.mp4 is replaced by: the video of another number, of another length."""
LABELS = {f"v{i}.mp4": Video(id=f"v{i}.mp4", path="/x", score=float(i)) for i in range(0, 4, 2)}


def work(where: Where) -> None:
    """Four videos in two finalises, a stream added, one video replaced, all compacted: what is there is skipped."""
    with open_writer(where) as writer:
        if "v1.mp4" not in writer.committed:
            commit(writer, 2, 0)
            writer.finalise({})
            commit(writer, 3, 1)
            writer.finalise(LABELS)
    with open_writer(where, specs=FLOW) as writer:
        if "v1.mp4" not in writer.committed:
            commit(writer, 3, 1)
            writer.finalise({})
    with open_writer(where) as writer:
        if writer.committed["v1.mp4"] != meta_of(NEW):
            writer.replace(["v1.mp4"])
            writer.commit("v1.mp4", arrays_of(NEW, 1 + NEW), meta_of(NEW))
        writer.finalise(LABELS)
    compact(where)


def in_child(job: Callable[[], None], seconds: float | None = None) -> int:
    """Run `job` in a forked process; returns the signal that ended it, or 0. Raises if it failed otherwise."""
    child = os.fork()
    if child == 0:
        try:
            job()
        except BaseException as e:
            print(f"child: {e!r}", file=sys.stderr, flush=True)
            os._exit(9)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    if os.WEXITSTATUS(status):
        raise SystemExit(f"a child failed with {os.WEXITSTATUS(status)}")
    return 0


def counted(path: Path, point: int) -> None:
    """`work`, killed before operation number `point` below `path`."""
    left = point
    below = str(path)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS and isinstance(arguments[0], str | os.PathLike):
            # Operations relative to a folder's descriptor (rmtree) name no full path; they are ours as well.
            name = os.fspath(arguments[0])
            if isinstance(name, str) and (name.startswith(below) or not name.startswith("/")):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    work(path)
    (path.parent / "operations").write_text(str(point - left))


def reader_sees_whole_videos(where: Where) -> None:
    """After a kill, before any repair: a reader sees nothing but whole videos, and no fewer than were finalised."""
    try:
        store = FeatureStore.open(where)
    except StoreError as e:
        if "not a feature store" in e.cause or "no such folder" in e.cause:
            return
        raise
    assert len(store) in (0, 2, 4), store.ids
    if store.coverage.get("flow"):
        assert len(store) == 4
    for i, video_id in ((int(v[1]), v) for v in store.ids):
        lengths = {len(store.video(video_id, "rgb"))}
        number = NEW if i == 1 and lengths == {1 + NEW} else i
        for name, want in {**arrays_of(number, 1 + i % 4 if number == i else 1 + NEW)}.items():
            np.testing.assert_array_equal(store.video(video_id, name), want)
        flow = store._index.live(store._index.position[video_id]).keys() & {"flow", "flow_map"}
        assert len(flow) in (0, 2)
        if flow:
            assert number == i
            for name, want in arrays_of(i, 1 + i % 4, FLOW).items():
                np.testing.assert_array_equal(store.video(video_id, name), want)


def compare(where: Where, reference: Where) -> None:
    """Raises unless the mended store equals the reference, and nothing else is left."""
    assert verify(where) == [], verify(where)
    mended, undisturbed = tree(where), tree(reference)
    assert mended.keys() == undisturbed.keys(), mended.keys() ^ undisturbed.keys()
    assert mended == undisturbed
    assert sum(k.startswith("log/") for k in tree(where, log=True)) == 1
    if isinstance(where, Path):
        assert not list(where.rglob("*.partial"))


def main() -> None:
    folder, *points = sys.argv[1:]
    reference = Path(folder) / "reference"
    in_child(lambda: counted(reference, 1 << 30))
    operations = int((Path(folder) / "operations").read_text())
    print(json.dumps({"operations": operations}), flush=True)
    if points == ["all"]:
        points = [str(i) for i in range(operations)]
    for number, point in enumerate(points):
        path = Path(folder) / f"s{number}"
        if point.startswith("~"):
            ended = in_child(lambda path=path: work(path), float(point[1:]))  # type: ignore[misc]
        else:
            at = int(float(point) * operations) if "." in point else int(point)
            ended = in_child(lambda path=path, at=at: counted(path, at))  # type: ignore[misc]
        in_child(lambda path=path: reader_sees_whole_videos(path))  # type: ignore[misc]
        in_child(lambda path=path: work(path))  # type: ignore[misc]
        in_child(lambda path=path: compare(path, reference))  # type: ignore[misc]
        print(json.dumps({"point": point, "killed": ended == signal.SIGKILL}), flush=True)


if __name__ == "__main__":
    main()
