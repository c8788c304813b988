"""Kill a writer at a chosen step, then run it again: a program, so that it can fork before Zarr starts threads.

    python -m tests.shared.store_crash FOLDER POINT [POINT …]

A POINT is the number of the file-system operation (as Python's audit events count them: open, rename, mkdir,
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
import zarr.storage  # noqa: F401
from tests.shared.store_cases import arrays_of, meta_of, open_writer, tree  # type: ignore[import-not-found]

from aqa_shared.errors import StoreError
from aqa_shared.records import Video
from aqa_shared.store import FeatureStore, verify

EVENTS = frozenset({"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove"})
NEW = 5
"""What v1.mp4 is replaced by: the video of another number, of another length."""
LABELS = {f"v{i}.mp4": Video(id=f"v{i}.mp4", path="/x", score=float(i)) for i in range(0, 4, 2)}


def work(path: Path) -> None:
    """Four videos in two finalises, then one of them replaced: what is committed is skipped, as in the engine."""
    with open_writer(path) as writer:
        for i in (2, 0):
            if f"v{i}.mp4" not in writer.committed:
                writer.commit(f"v{i}.mp4", arrays_of(i, 1 + i), meta_of(i))
        if len(writer.committed) < 4:
            writer.finalise({})
        for i in (3, 1):
            if f"v{i}.mp4" not in writer.committed:
                writer.commit(f"v{i}.mp4", arrays_of(i, 1 + i), meta_of(i))
        writer.finalise(LABELS)
    had(path).touch()
    with open_writer(path) as writer:
        if writer.committed["v1.mp4"] != meta_of(NEW):
            writer.finalise({})
            writer.forget(["v1.mp4"])
            writer.commit("v1.mp4", arrays_of(NEW, 1 + NEW), meta_of(NEW))
        writer.finalise({})


def had(path: Path) -> Path:
    """Exists from when all four videos are in the store: none may be missing from then on."""
    return path.with_name(f"of-{path.name}")


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


def reader_sees_whole_videos(path: Path) -> None:
    """After a kill, before any repair: a reader refuses, or sees nothing but whole videos."""
    try:
        store = FeatureStore.open(path)
        assert len(store.ids) == 4 or not had(path).exists()
        for video_id in store.ids:
            i = int(video_id[1])
            if i == 1 and len(store.video(video_id, "rgb")) == 1 + NEW:
                i = NEW
            for name, want in arrays_of(i, 1 + i).items():
                assert (store.video(video_id, name) == want).all(), (video_id, name)
    except StoreError as e:
        # Only between two states (a journal), or before there was a store.
        if not any(why in e.cause for why in ("under way", "not a feature store", "no such")):
            raise


def compare(path: Path, reference: Path) -> None:
    """Exit 9 unless the mended store equals the reference."""
    assert verify(path) == [], verify(path)
    assert tree(path) == tree(reference)
    assert [p.name for p in (path / "videos/.work").iterdir()] == ["lock"]


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
