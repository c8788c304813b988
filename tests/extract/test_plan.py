"""What is to do follows from the videos and from what a store holds, and parts of it from the videos alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from aqa_extract.config import Options, resolve
from aqa_extract.plan import only, plan, read_plan, shard
from aqa_extract.streams import completed, identified
from aqa_shared import shards
from aqa_shared.errors import StoreError, UsageError
from aqa_shared.manifest import find_videos
from aqa_shared.records import ActorSettings, ExtractSettings, FlowSettings, Pixels, Video
from aqa_shared.store import StoreWriter, Where, contents
from aqa_shared.store.layout import sealed, unsealed

RGB = completed(ExtractSettings())
BOTH = completed(ExtractSettings(streams=("rgb", "flow", "rgb:logits"), flow=FlowSettings(mode="parity")))


def _store(settings: ExtractSettings, videos: list[Video]) -> Where:
    return _fill(MemoryStore(), settings, videos)


def _fill(store: Where, settings: ExtractSettings, videos: list[Video], identity: Mapping[str, Any] = {}) -> Where:
    specs = identified(settings)
    with StoreWriter.open(store, specs=specs, settings=settings, provenance={}) as writer:
        for video in videos:
            arrays = {s.name: np.zeros((2, *s.shape), s.dtype) for s in specs}
            part = video.model_dump(include={"path", "start", "end", "start_time", "end_time"})
            writer.commit(video.id, arrays, part | {"identity": identity})
        if isinstance(store, Path):
            writer.finalise()
    return store


def test_a_video_lacks_the_streams_that_the_store_does_not_have_of_it() -> None:
    videos = [Video(id=f"v{i}", path=f"/gone/{i}.mp4") for i in range(4)]
    found = plan(videos, contents(_store(RGB, videos[:3])), {}, set(), BOTH, Options(), lambda path: None)
    assert {streams: [j.video.id for j in jobs] for streams, jobs in found.passes.items()} == {
        ("rgb:logits", "flow"): ["v0", "v1", "v2"],
        ("rgb", "rgb:logits", "flow"): ["v3"],
    }
    assert found.already == []
    again = plan(videos, contents(_store(BOTH, videos)), {}, set(), RGB, Options(), lambda path: None)
    assert (again.already, again.jobs) == (["v0", "v1", "v2", "v3"], [])


def test_more_people_are_followed_where_the_store_has_the_actor_alone() -> None:
    videos = [Video(id="v0", path="/gone/0.mp4")]
    alone = completed(ExtractSettings(streams=("rgb", "actor-rgb", "actor-rgb:logits")))
    several = alone.model_copy(update={"actor": ActorSettings(actors=3)})
    store = _store(alone, videos)
    found = plan(videos, contents(store), {}, set(), several, Options(), lambda path: None)
    assert list(found.passes) == [("actor-rgb",)]
    assert read_plan(videos, _store(several, videos), several, Options())[0].jobs == []
    assert read_plan(videos, _store(several, videos), alone, Options())[0].jobs == []


def test_a_plan_is_a_function_of_its_arguments() -> None:
    videos = [Video(id=f"v{i}", path=f"/gone/{i}.mp4") for i in range(3)]
    known = contents(_store(RGB, videos[:2]))
    first, second = (plan(videos, known, {}, {"v1"}, RGB, Options(), lambda path: None) for _ in range(2))
    assert first == second
    assert [job.video.id for job in first.jobs] == ["v1", "v2"]  # the damaged one again


def test_a_damaged_store_can_be_overwritten_and_one_of_a_newer_version_not(tmp_path: Path) -> None:
    video = Video(id="v0", path="/gone/0.mp4")
    for pattern in ("blocks/*/video_id/c*", "log/*"):
        store = tmp_path / pattern[:3]
        _fill(store, RGB, [video])
        file = max(store.glob(pattern))
        good = file.read_bytes()
        file.write_bytes(bytes([good[0] ^ 1]) + good[1:])
        with pytest.raises(StoreError):
            read_plan([video], store, RGB, Options())
        found, known = read_plan([video], store, RGB, Options(overwrite=True))
        assert ([job.video for job in found.jobs], known) == ([video], None)
    file.write_bytes(sealed({**unsealed(good), "aqa_schema": 99, "aqa_version": "7.0"}))
    with pytest.raises(StoreError, match="newer version"):
        read_plan([video], store, RGB, Options(overwrite=True))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"notes\.txt"):
        read_plan([video], tmp_path / "mine", RGB, Options(overwrite=True))


def test_settings_that_no_video_was_made_with_bind_nobody() -> None:
    store = MemoryStore()
    other = RGB.model_copy(update={"pixels": Pixels(short_side=128, crop=112)})
    _fill(store, other, [])
    video = Video(id="v0", path="/gone/0.mp4")
    assert len(read_plan([video], store, RGB, Options())[0].jobs) == 1
    _fill(store, RGB, [video])  # staged
    with pytest.raises(StoreError, match="pixels"):
        read_plan([video], store, other, Options())


def test_a_changed_file_does_not_repair_features_of_the_old_one(tmp_path: Path) -> None:
    """Else the streams that are not damaged would stay those of the old one."""
    (tmp_path / "0.mp4").write_text("new")
    video = Video(id="v0", path=str(tmp_path / "0.mp4"))
    known = contents(_fill(MemoryStore(), BOTH, [video], {"size": 1, "mtime_ns": 1, "fingerprint": "old"}))
    found = plan([video], known, {}, {"v0"}, RGB, Options(repair=True))
    assert ([f.reason for f in found.refused], found.jobs) == (["id_conflict"], [])
    found = plan([video], known, {}, {"v0"}, RGB, Options(repair=True, replace=("v0",)))
    assert (found.replaced, len(found.jobs)) == ({"v0"}, 1)


def test_flow_that_is_there_already_is_not_computed_for_another_stream() -> None:
    assert only(BOTH, ["rgb:logits"]).flow.mode == "off"
    assert only(BOTH, ["rgb", "flow"]).flow.mode == "parity"
    motion = completed(ExtractSettings(flow=FlowSettings(mode="parity")))
    assert only(motion, ["rgb"]).flow.mode == "parity"  # asked for by itself


@given(
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=40),
    n=st.integers(1, 9),
    order=st.randoms(use_true_random=False),
)
def test_parts_are_all_videos_once_and_about_equal(lengths: list[int], n: int, order: object) -> None:
    videos = [Video(id=f"v{i}", path="/gone.mp4", start=0, end=length) for i, length in enumerate(lengths)]
    parts = [shard(videos, i, n) for i in range(1, n + 1)]
    assert sorted(v.id for v in chain(*parts)) == sorted(v.id for v in videos)
    loads = [sum(v.end or 0 for v in part) for part in parts]
    # Graham's bound for the longest first: none has more than the least by a video.
    assert max(loads) - min(loads) <= max(lengths)
    order.shuffle(videos)  # type: ignore[attr-defined]
    assert {v.id for v in shard(videos, 1, n)} == {v.id for v in parts[0]}


def test_files_count_by_their_size(tmp_path: Path) -> None:
    for i, size in enumerate((4, 1, 1, 1, 1)):
        with (tmp_path / f"{i}.mp4").open("wb") as f:
            f.truncate(size * 1_000_000)
    videos = [Video(id=f"{i}", path=str(tmp_path / f"{i}.mp4")) for i in range(5)]
    assert [[v.id for v in shard(videos, i, 2)] for i in (1, 2)] == [["0"], ["1", "2", "3", "4"]]


def looks(work: Callable[[], Any]) -> tuple[int, Any]:
    """How often `work` asks the system about a file, as the interpreter sees it, and what it gives."""
    count = 0

    def watch(frame: FrameType, event: str, called: object) -> None:
        nonlocal count
        count += event == "c_call" and called is os.stat

    sys.setprofile(watch)
    try:
        made = work()
    finally:
        sys.setprofile(None)
    return count, made


def test_of_a_long_list_a_part_looks_at_some_files_only(tmp_path: Path) -> None:
    """Two shares of about 12,000 videos: of twelve parts, six share what they deal; one alone has nothing to weigh."""
    (tmp_path / "v").mkdir()
    few = [f"v/{i:05}.mp4" for i in range(0, 24_000, 100)]
    for n, name in enumerate(few):
        with (tmp_path / name).open("wb") as f:
            f.truncate((n % 7) * 1_000_000)
    rows = [f"v/{i:05}.mp4" for i in range(24_000)]
    (tmp_path / "list.csv").write_text("path\n" + "\n".join(rows))
    asked, videos = looks(lambda: find_videos(tmp_path / "list.csv", with_labels=False).videos)
    assert asked < 100
    for n in (12, 2):
        parts = []
        for i in range(1, n + 1):
            asked, part = looks(partial(shard, videos, i, n))
            assert len(part) < asked < 13_000 if n == 12 else asked == 0
            parts.append([v.id for v in part])
        assert sorted(chain(*parts)) == [v.id for v in videos]
        assert {v.id for v in shard(videos[::-1], 1, n)} == set(parts[0])


def test_parts_of_a_long_list_are_about_equal() -> None:
    """Where five parts share two halves of the list, two fifths of it are for two of them, and three for three."""
    rng = np.random.default_rng(0)
    for count, videos, most in ((5, 29_000, 1.05), (100, 200_000, 1.08)):
        work, names = rng.lognormal(0, 1.2, videos), [f"{k}.mp4" for k in range(videos)]
        parts = shards.all_parts(work.__getitem__, names, count)
        assert sorted(chain(*parts)) == list(range(videos))
        loads = np.array([work[part].sum() for part in parts])
        assert loads.max() < most * loads.mean()
        assert shards.dealt(work.__getitem__, names, 4, count) == parts[3]


def test_more_parts_than_videos_leave_the_last_without_any() -> None:
    videos = [Video(id=f"v{i}", path="/gone.mp4", start=0, end=length) for i, length in enumerate((1, 3, 2))]
    parts = [[v.id for v in shard(videos, i, 10**12)] for i in (1, 2, 3, 4, 10**12)]
    assert parts == [["v1"], ["v2"], ["v0"], [], []]


@pytest.mark.parametrize("wrong", ["3", "0/2", "3/2", "a/b", "1/-2"])
def test_a_part_is_written_as_part_of_parts(wrong: str) -> None:
    with pytest.raises(UsageError, match="shard: give part/parts"):
        resolve(None, {"shard": wrong}, {})
    assert resolve(None, {"shard": "2/3"}, {}).options.shard == (2, 3)
    with pytest.raises(UsageError, match="remove the store first"):
        resolve(None, {"shard": "2/3", "overwrite": True}, {})


def _array(task: str, first: str = "1", last: str = "8", count: str = "8") -> dict[str, str]:
    said = {"ID": task, "MIN": first, "MAX": last, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": value for name, value in said.items()}


@pytest.mark.parametrize(
    ("asked", "environment", "part"),
    [
        ("auto", _array("3"), (3, 8)),
        ("auto/8", _array("3", "3", "7", "2"), (3, 8)),  # two of the eight, submitted again
        ("auto/4", {"JOB_COMPLETION_INDEX": "0"}, (1, 4)),
        ("auto/4", {"JOB_COMPLETION_INDEX": "3"}, (4, 4)),
        ("2/3", _array("3"), (2, 3)),
        (None, _array("3"), None),  # the array may have a dataset for every task
    ],
)
def test_a_scheduler_says_which_part(asked: str | None, environment: dict[str, str], part: object) -> None:
    assert resolve(None, {"shard": asked} if asked else {}, environment).options.shard == part
    if asked:
        assert resolve(None, {}, {**environment, "AQA_EXTRACT_SHARD": asked}).options.shard == part


@pytest.mark.parametrize(
    ("asked", "environment", "message"),
    [
        ("auto", {}, "no scheduler says which part"),
        ("auto", {"JOB_COMPLETION_INDEX": "0"}, "does not say how many parts"),
        ("auto", _array("0", "0", "7"), "8 tasks of this array are 0 to 7"),
        ("auto", _array("3", "3", "7", "2"), "2 tasks of this array are 3 to 7"),
        ("auto/4", {"JOB_COMPLETION_INDEX": "4"}, "got '5/4'"),
        ("auto/x", _array("3"), "got '3/x'"),
        ("automatic", _array("3"), "got 'automatic'"),
    ],
)
def test_a_part_that_is_not_known_is_an_error(asked: str, environment: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(None, {"shard": asked}, environment)
