"""A store grows by videos, by streams and by writers that know nothing of each other, wherever it lies."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.storage import FsspecStore, MemoryStore, WrapperStore

from aqa_shared.errors import StoreError
from aqa_shared.store import (
    ArraySpec,
    FeatureStore,
    Objects,
    Run,
    Where,
    compact,
    contents,
    describe,
    expect,
    finalise,
    is_store,
    label,
    missing,
    verify,
)
from aqa_shared.store.blocks import Block, Index, write_blocks
from aqa_shared.store.log import Group, publish, state_of
from aqa_shared.store.merge import LARGE, SMALL, tail
from aqa_shared.store.objects import AT_A_TIME
from aqa_shared.store.stage import read_failures, write_failure

from .store_cases import FLOW, SPECS, Counting, arrays_of, commit, make_store, meta_of, open_writer, tree
from .store_cases import label as labelled


@pytest.fixture(params=["folder", "memory", "url"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    """A folder, a zarr store in memory, and fsspec's memory by URL."""
    places: dict[str, Callable[[], Any]] = {
        "folder": lambda: tmp_path / "s",
        "memory": MemoryStore,
        "url": lambda: f"memory://{uuid.uuid4().hex}/s.zarr",
    }
    return places[request.param]()


def test_a_store_is_the_same_wherever_it_lies(where: Where, tmp_path: Path) -> None:
    for place in (where, tmp_path / "reference"):
        make_store(place, 5, labels={"v1.mp4": labelled("v1.mp4", score=2)})
        compact(place)
    assert is_store(where)
    assert verify(where) == []
    assert tree(where) == tree(tmp_path / "reference")
    store = FeatureStore.open(where)
    np.testing.assert_array_equal(store.dask("rgb").compute(), store.read("rgb"))
    assert store.table["score"].tolist()[1] == 2


def test_a_stream_added_later_leaves_the_first_one_as_it_is(where: Where) -> None:
    make_store(where, 4)
    before = {k: v for k, v in tree(where).items() if k.startswith("blocks/")}
    content = FeatureStore.open(where).select("rgb").content
    with open_writer(where, specs=FLOW) as writer:
        assert set(writer.committed) == set()
        commit(writer, 0, 2)
        assert set(writer.committed) == {"v0.mp4", "v2.mp4"}
        writer.finalise()
    assert before.items() <= tree(where).items()
    store = FeatureStore.open(where)
    assert store.coverage == {"rgb": 4, "actor_rgb": 4, "frame_index": 4, "segment_start_time": 4, "actor_box": 4} | {
        "flow": 2,
        "flow_map": 2,
    }
    assert store.streams == ("rgb", "actor_rgb", "flow")
    with pytest.raises(StoreError, match=r"2 of 4 videos lack flow \(v1\.mp4, v3\.mp4\)") as caught:
        store.read("flow")
    assert "--streams flow makes just these" in caught.value.fix
    both = store.select("rgb", "flow")
    assert both.ids == ["v0.mp4", "v2.mp4"]
    for name, specs in (("rgb", SPECS), ("flow", FLOW)):
        want = np.concatenate([arrays_of(i, 1 + i, specs)[name] for i in (0, 2)])
        np.testing.assert_array_equal(both.read(name), want)
    np.testing.assert_array_equal(store.select("flow_map").read("flow_map").shape, (4, 2, 2, 6))
    assert store.select("rgb").content == content
    # The second half; then all is as if both streams had been made at once.
    with open_writer(where, specs=FLOW) as writer:
        commit(writer, *range(4))
        writer.finalise()
    compact(where)
    at_once = MemoryStore()
    with open_writer(at_once, specs=[*SPECS, *FLOW[:2]]) as writer:
        commit(writer, *range(4))
        writer.finalise()
    compact(at_once)
    assert tree(where) == tree(at_once)
    assert describe(where)["blocks"] == 1


def test_what_the_store_has_of_a_video_is_not_written_again(where: Where) -> None:
    make_store(where, 2)
    with open_writer(where, specs=FLOW) as writer:
        commit(writer, 1)
        (part,) = writer._contents.parts["v1.mp4"]
    assert part.arrays == ("flow", "flow_map")


def test_a_replaced_video_takes_all_its_streams_along(where: Where) -> None:
    make_store(where, 3)
    with open_writer(where, specs=FLOW) as writer:
        commit(writer, *range(3))
        writer.finalise()
    with open_writer(where) as writer:
        writer.replace(["v1.mp4"])
        assert "v1.mp4" not in writer.committed
        writer.commit("v1.mp4", arrays_of(7, 5), meta_of(7))
        assert FeatureStore.open(where).lengths.tolist() == [1, 2, 3]
        writer.finalise()
    store = FeatureStore.open(where)
    assert store.lengths.tolist() == [1, 5, 3]
    assert store.select("flow").ids == ["v0.mp4", "v2.mp4"]
    assert store.metas[1] == meta_of(7)
    assert verify(where) == []


def test_the_last_of_several_staged_versions_counts(where: Where) -> None:
    with open_writer(where) as writer:
        for number in (3, 1, 2):
            writer.commit("a", arrays_of(number), meta_of(number))
    finalise(where)
    np.testing.assert_array_equal(FeatureStore.open(where).read("rgb"), arrays_of(2)["rgb"])
    assert verify(where) == []


def test_going_back_to_what_the_store_has_counts(where: Where) -> None:
    """A file is replaced by another version, the run is killed, and the old version comes back."""
    for number in (1, 2, 1):
        with open_writer(where) as writer:
            writer.replace(["a"])
            writer.commit("a", arrays_of(number), meta_of(number))
            if len(FeatureStore.open(where)) == 0:
                writer.finalise()
    finalise(where)
    np.testing.assert_array_equal(FeatureStore.open(where).read("rgb"), arrays_of(1)["rgb"])


def test_finalising_again_what_a_killed_process_finalised_changes_nothing(where: Where) -> None:
    """It published, and was killed before it removed what was staged: a replaced video and a stream added to it."""
    make_store(where, 1)
    with open_writer(where) as writer:
        writer.replace(["v0.mp4"])
        writer.commit("v0.mp4", arrays_of(7), meta_of(7))
    with open_writer(where, specs=FLOW[:2]) as writer:
        commit(writer, 0)
    objects = Objects.at(where, write=True)
    staged = [f"staged/{name}" for name in objects.names("staged")]
    kept = dict(zip(staged, objects.get_all(staged), strict=True))
    finalise(where)
    before = FeatureStore.open(where)
    for key, data in kept.items():
        objects.put(key, data or b"")
    finalise(where)
    after = FeatureStore.open(where)
    assert after.coverage == before.coverage
    assert after.coverage["flow"] == 1
    np.testing.assert_array_equal(after.select("rgb").read("rgb"), arrays_of(7)["rgb"])
    assert after.pending == 0


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EIO])
def test_a_refusal_that_the_client_takes_for_a_fault_is_one(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3-compatible servers answer 412 without saying which condition failed, AWS sometimes 409."""
    objects = Objects(f"memory://{uuid.uuid4().hex}/s.zarr", write=True)
    assert isinstance(objects.store, FsspecStore)
    put = objects.store.fs._pipe_file

    async def refusing(path: str, data: bytes, mode: str = "overwrite", **more: Any) -> None:
        try:
            await put(path, data, mode=mode, **more)
        except FileExistsError as e:
            raise OSError(code, "At least one of the pre-conditions you specified did not hold") from e

    monkeypatch.setattr(objects.store.fs, "_pipe_file", refusing)
    assert objects.put_new("log/1", b"winner")
    assert not objects.put_new("log/1", b"loser")
    assert objects.get("log/1") == b"winner"


def test_two_that_finalise_at_once_both_count(where: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is held where it has made its blocks, and loses the number that it wanted."""
    make_store(where, 2)
    with open_writer(where) as first, open_writer(where) as second:
        commit(second, 2)
        held: list[int] = []

        def other_first(objects: Objects, state: Any) -> bool:
            if not held:
                held.append(state.number)
                commit(first, 3)
                finalise(where)
            return publish(objects, state)

        monkeypatch.setattr("aqa_shared.store.merge.publish", other_first)
        second.finalise({"v2.mp4": labelled("v2.mp4", score=7)})
    store = FeatureStore.open(where)
    assert store.ids == [f"v{i}.mp4" for i in range(4)]
    assert store.table["score"].tolist()[2] == 7
    assert store.pending == 0
    assert state_of(Objects.at(where)).number == held[0]
    assert verify(where) == []
    compact(where)
    make_store(reference := MemoryStore(), 4, labels={"v2.mp4": labelled("v2.mp4", score=7)})
    compact(reference)
    assert tree(where) == tree(reference)


def test_a_writer_that_slept_through_changes_and_a_compaction_is_not_lost(where: Where) -> None:
    """Its number is free again by then: the log's last number tells that it lost."""
    make_store(where, 1)
    objects = Objects.at(where, write=True)
    stale = state_of(objects).next(blocks=())
    for i in (1, 2):
        with open_writer(where) as writer:
            commit(writer, i)
            writer.finalise()
    compact(where)
    assert not publish(objects, stale)
    assert len(FeatureStore.open(where)) == 3


def test_appending_costs_what_is_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and tables of labels: what is large already stays, and there are few of them all the same."""
    where = MemoryStore()
    small, large = 2000, 30_000
    monkeypatch.setattr("aqa_shared.store.merge.SMALL", small)
    monkeypatch.setattr("aqa_shared.store.merge.LARGE", large)
    labels = {f"v{i}.mp4": labelled(f"v{i}.mp4", score=i, category=f"{i}") for i in range(0, 120, 2)}
    make_store(where, 60, labels=labels)
    objects = Objects.at(where)
    first, written = state_of(objects), []
    assert first.blocks[0].bytes > large / 2
    for i in range(60, 120):
        before = set(state_of(objects).groups)
        with open_writer(where) as writer:
            commit(writer, i)
            writer.finalise(labels)
        state = state_of(objects)
        written.append(sum(g.bytes for g in set(state.groups) - before))
    assert np.median(written) < 2 * small
    added = sum(g.bytes for g in set(state.groups) - set(first.groups))
    assert sum(written) < added / 60 * sum(range(60)) / 3  # what a copy of all that is new would be, each time
    assert 2 < len(state.blocks) < 8
    assert len(state.labels) < 8
    store = FeatureStore.open(where)
    np.testing.assert_array_equal(
        store.table["score"], [np.nan if int(i[1:-4]) % 2 else int(i[1:-4]) for i in store.ids]
    )
    np.testing.assert_array_equal(
        store.dask("rgb").compute(), np.concatenate([store.video(i, "rgb") for i in store.ids])
    )
    assert verify(where) == []
    # A label of a large table is corrected by a small one, which compacting takes in.
    monkeypatch.setattr("aqa_shared.store.merge.SMALL", 0)
    label(where, {"v0.mp4": labelled("v0.mp4", score=-1)})
    assert finalise(where).labels[:-1] == state.labels
    label(where, {"v0.mp4": labelled("v0.mp4", score=-1)})
    number = state_of(objects).number
    assert finalise(where).number == number
    content = FeatureStore.open(where).content
    assert FeatureStore.open(where).column("score")[0] == -1
    compact(where)
    assert FeatureStore.open(where).content == content
    assert (len(state_of(objects).blocks), len(state_of(objects).labels)) == (1, 1)


@pytest.mark.parametrize(("batch", "batches"), [(1, 20_000), (100, 1000), (1412, 70)])
def test_blocks_are_few_and_copied_seldom(batch: int, batches: int) -> None:
    """The rule alone, with real sizes: videos of 10 segments of 1024 numbers and their index, by batches."""
    added = 41_500 * batch
    blocks: list[Group] = []
    written = []
    for _ in range(batches):
        kept = len(blocks) - tail(blocks, added)
        blocks[kept:] = [Group("", "", bytes=added + sum(b.bytes for b in blocks[kept:]))]
        written.append(blocks[-1].bytes)
    total = added * batches
    assert sum(b.bytes for b in blocks) == total
    assert len(blocks) < 10 + total / LARGE
    assert np.median(written) < max(SMALL, 3 * added)
    assert max(written) < 2 * LARGE + added
    assert sum(written) < 10 * total + batches * SMALL


def test_features_of_any_length_and_width_need_no_settings(where: Where) -> None:
    """As features from elsewhere do: skeletons have other numbers of rows than clips."""
    skeleton = ArraySpec("skeleton", ("coordinate",), (51,), "float32", role="feature")
    rng = np.random.default_rng(0)
    poses = {f"v{i}.mp4": rng.standard_normal((20 + i, 51), dtype=np.float32) for i in range(3)}
    make_store(where, 3)
    with open_writer(where, specs=[skeleton], settings=None, provenance={}) as writer:
        for video_id, pose in poses.items():
            writer.commit(video_id, {"skeleton": pose}, {})
        writer.finalise()
    store = FeatureStore.open(where)
    assert store.select("skeleton").lengths.tolist() == [20, 21, 22]
    assert store.select("rgb").lengths.tolist() == [1, 2, 3]
    with pytest.raises(StoreError, match=r"as v0.mp4: rgb 1, actor_rgb 1, skeleton 20\).*\n.*--streams rgb"):
        store.read("rgb")
    np.testing.assert_array_equal(store.select("skeleton").read("skeleton"), np.concatenate(list(poses.values())))
    compact(where)
    assert verify(where) == []
    np.testing.assert_array_equal(FeatureStore.open(where).video("v1.mp4", "skeleton"), poses["v1.mp4"])


def test_shards_and_a_finalise_are_one_run(where: Where, tmp_path: Path) -> None:
    labels = {f"v{i}.mp4": labelled(f"v{i}.mp4", score=i) for i in range(6)}
    names, arrays = list(labels), tuple(s.name for s in SPECS)

    def part(i: int, *numbers: int) -> None:
        with open_writer(where) as writer:
            expect(where, Run(f"aqa-extract v --out s --shard {i}/3", arrays, tuple(names[i - 1 :: 3]), (i, 3)))
            commit(writer, *numbers)
            label(where, {name: labels[name] for name in names[i - 1 :: 3]})

    part(1, 0, 3)
    part(2, 1)
    finalise(where)
    first, second = missing(where)
    assert (first["missing"], first["ids"], first["command"]) == (1, ["v4.mp4"], "aqa-extract v --out s --shard 2/3")
    assert (second["missing"], second["command"]) == (None, "aqa-extract v --out s --shard 3/3")
    part(3, 2, 5)
    part(2, 4)
    finalise(where)
    assert missing(where) == []
    make_store(tmp_path / "one", 6, labels=labels)
    for place in (where, tmp_path / "one"):
        compact(place)
    assert tree(where) == tree(tmp_path / "one")


def test_what_failed_is_not_missing_and_is_one_object_each(where: Where) -> None:
    with open_writer(where) as writer:
        expect(where, Run("again", ("rgb",), ("v0.mp4", "v1.mp4"), None))
        commit(writer, 0)
        writer.finalise()
    assert [m["ids"] for m in missing(where)] == [["v1.mp4"]]
    objects = Objects.at(where, write=True)
    for i in range(2):
        write_failure(objects, {"id": "v1.mp4", "path": "caf\udce9.mp4", "try": i})
        write_failure(objects, {"id": f"x{i}", "path": ""})
    assert read_failures(objects)["v1.mp4"] == {"id": "v1.mp4", "path": "caf\udce9.mp4", "try": 1}
    assert len(read_failures(objects)) == 3
    assert missing(where) == []
    finalise(where)
    assert objects.names("runs") == []


class _Unchanged(WrapperStore[MemoryStore]):
    """Nothing may be put but what is there."""

    puts = 0

    async def set(self, key: str, value: Any) -> None:
        assert value.to_bytes() == self._store._store_dict[key].to_bytes(), key
        self.puts += 1


def test_a_block_that_is_made_twice_is_whole_at_every_moment() -> None:
    """As by two processes that finalise the same videos, while a third one reads them."""
    make_store(memory := MemoryStore(), 3)
    (block,) = state_of(Objects(memory)).blocks
    again = _Unchanged(memory)
    index = Index([Block(Objects(memory), block)])
    prefix = block.path.split("/")[1].split("-")[0] + "-"
    assert write_blocks(Objects(again), index, state_of(Objects(memory)).arrays, prefix) == [block]
    assert again.puts > 10


@pytest.mark.parametrize(("channels", "videos", "most"), [(4, 2 * AT_A_TIME, AT_A_TIME), (9 << 20, 3, 1)])
def test_finalising_reads_many_committed_videos_at_once(channels: int, videos: int, most: int) -> None:
    """One after the other, a million of them would take an object store hours; but not more bytes than fit."""
    spec = ArraySpec("rgb", ("channel",), (channels,), "float32", role="feature")
    with open_writer(memory := MemoryStore(), specs=[spec]) as writer:
        for i in range(videos):
            writer.commit(f"v{i}.mp4", {"rgb": np.full((1, channels), i, np.float32)}, meta_of(i))
    finalise(Objects(counting := Counting(memory), write=True))
    assert counting.most == most
    assert verify(memory) == []
    assert len(FeatureStore.open(memory).ids) == videos


def test_a_marker_is_read_once_and_what_others_do_meanwhile_is_seen() -> None:
    """By a plan, the writer after it, and whoever finalises, where they share what was opened."""
    other = open_writer(memory := MemoryStore())
    objects = Objects(counting := Counting(memory), write=True)
    commit(other, 0, 1)
    label(memory, {"v0.mp4": labelled("v0.mp4", score=2)})
    assert (found := contents(objects)) is not None
    assert sorted(found.parts) == ["v0.mp4", "v1.mp4"]
    commit(other, 2)
    writer = open_writer(objects, specs=(*SPECS, *FLOW[:1]))  # which it declares
    assert sorted(writer.known.parts) == ["v0.mp4", "v1.mp4", "v2.mp4"]
    assert sorted(counting.markers.values()) == [1, 1, 1]  # and nobody's labels
    other.objects.remove(other.known.parts["v1.mp4"][0].keys)  # as one that was torn
    commit(other, 3)
    finalise(objects)
    assert sorted(counting.markers.values()) == [1, 1, 1, 1, 1]
    assert verify(memory) == []
    store = FeatureStore.open(memory)
    assert store.ids == ["v0.mp4", "v2.mp4", "v3.mp4"]
    assert store.column("score")[0] == 2
    assert objects.staged == {}


def test_a_reader_reads_markers_once_and_keeps_nothing_of_them() -> None:
    commit(open_writer(memory := MemoryStore()), 0)
    finalise(memory)
    commit(open_writer(memory), 1, 2)
    objects = Objects(counting := Counting(memory))
    assert describe(objects)["pending"] == 2
    assert sorted(counting.markers.values()) == [2, 2]  # once for the size of the store, which in memory is read
    assert objects.staged == {}


def test_a_marker_that_was_torn_is_read_again_when_it_is_whole() -> None:
    other = open_writer(memory := MemoryStore())
    commit(other, 0)
    (key,) = (k for k in memory._store_dict if k.startswith("staged/") and k.endswith(".json"))
    objects, whole = Objects(memory), memory._store_dict[key]
    memory._store_dict[key] = whole[: len(whole) // 2]
    for expected in ([], ["v0.mp4"]):
        assert (found := contents(objects)) is not None
        assert list(found.parts) == expected
        memory._store_dict[key] = whole
