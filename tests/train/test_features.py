"""FeatureSet on real stores: the same values however they are read, orders as documented, bad features named."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef

from aqa_shared import console
from aqa_shared.errors import EnvironmentFault, StoreError, UsageError
from aqa_shared.store import FeatureStore
from aqa_train import features as module
from aqa_train.config import RunConfig
from aqa_train.experiment import prepare
from aqa_train.features import FeatureSet
from aqa_train.memory import Loaded, enough_memory
from aqa_train.order import blocks_of, read_ahead, windows
from aqa_train.standardise import moments

from .conftest import MakeStore, synthetic

CPU = torch.device("cpu")


def in_blocks(found: FeatureSet, size: int, window: int) -> FeatureSet:
    """The same features, streamed in blocks of `size` videos."""
    n = len(found.ids)
    edges = [*range(0, n, size), n]
    return replace(found, blocks=tuple(pairwise(edges)), window=window, resident=None)


def test_values_are_the_stores(make_store: MakeStore) -> None:
    store = FeatureStore.open(make_store(videos=10))
    found = FeatureSet.from_store(store)
    x, _ = synthetic(10)
    everything = found.load(np.arange(10), CPU)
    assert everything.present is None
    np.testing.assert_array_equal(everything.streams["rgb"].numpy(), x)
    assert found.channels == {"rgb": 16}
    assert not np.isnan(found.column("score")).any()
    for placed in (found, found.place(CPU, "yes"), in_blocks(found, 3, 1)):
        rows = np.array([7, 2, 2, 9, 0])
        np.testing.assert_array_equal(placed.load(rows, CPU).streams["rgb"].numpy(), x[rows])


def test_streams_are_given_by_name_in_the_order_asked(make_store: MakeStore) -> None:
    store = FeatureStore.open(make_store(videos=5, streams=("rgb", "flow", "actor-rgb")))
    assert list(FeatureSet.from_store(store).channels) == ["rgb", "flow", "actor_rgb"]
    both = FeatureSet.from_store(store, ["flow", "actor-rgb"])
    assert list(both.channels) == ["flow", "actor_rgb"]
    streams = both.load(np.arange(5), CPU).streams
    assert list(streams) == ["flow", "actor_rgb"]
    for name, x in streams.items():
        np.testing.assert_array_equal(x[2].numpy(), store.video("002.mp4", name))
    # Of one alone the order of reading is that of a store without the other.
    alone = both.select(["actor_rgb"])
    np.testing.assert_array_equal(alone.load(np.arange(5), CPU).streams["actor_rgb"], streams["actor_rgb"])
    assert alone.blocks == FeatureSet.from_store(store, ["actor-rgb"]).blocks


def test_a_run_takes_all_streams_and_records_them(make_store: MakeStore) -> None:
    path = make_store(videos=12, streams=("rgb", "flow", "actor-rgb", "actor-flow"))
    found = prepare(RunConfig(features=str(path), methods=("aa",), seeds=1, test_fraction=0.25), console.warn)
    assert found.config.streams == ("rgb", "flow", "actor-rgb", "actor-flow")
    assert list(found.features.channels.values()) == [16] * 4
    asked = RunConfig(features=str(path), streams=("flow",), methods=("aa",), seeds=1, test_fraction=0.25)
    assert list(prepare(asked, console.warn).features.channels) == ["flow"]


def test_a_missing_stream_is_named(make_store: MakeStore) -> None:
    with pytest.raises(UsageError, match="holds the streams rgb, asked for rgb, flow"):
        FeatureSet.from_store(FeatureStore.open(make_store(videos=3)), ["rgb", "flow"])


def test_videos_of_different_length_are_padded_and_masked(make_store: MakeStore) -> None:
    lengths = [4, 2, 1, 4, 3, 4]
    store = FeatureStore.open(make_store(videos=6, lengths=lengths))
    found = FeatureSet.from_store(store)
    assert found.ragged
    assert found.segments == 4
    for placed in (found, found.place(CPU, "yes"), in_blocks(found, 2, 1)):
        batch = placed.load(np.array([1, 4, 2]), CPU)
        x, present = batch.streams["rgb"], batch.present
        assert present is not None
        assert present.sum(dim=1).tolist() == [2, 3, 1]
        np.testing.assert_array_equal(x[1, :3].numpy(), store.video("004.mp4", "rgb"))
        assert (x[~present] == 0).all()


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40),
    size=st.integers(1, 12),
    window=st.integers(1, 4),
    count=st.integers(1, 90),
    seed=st.integers(0, 9),
)
def test_an_epoch_has_every_video_once_before_any_twice(n: int, size: int, window: int, count: int, seed: int) -> None:
    x, _ = synthetic(n, 2, 3)
    found = in_blocks(FeatureSet.from_arrays({"rgb": x}, {}), size, window)
    rows = np.random.default_rng(seed).permutation(n)[: max(1, n // 2)]
    drawn = np.concatenate(windows(found.blocks, window, rows, count, np.random.default_rng(seed)))
    assert len(drawn) == count
    for start in range(0, count, len(rows)):
        part = drawn[start : start + len(rows)]
        assert len(set(part.tolist())) == len(part)
        assert set(part.tolist()) <= set(rows.tolist())


def test_a_window_that_holds_everything_has_the_order_of_memory() -> None:
    x, _ = synthetic(50, 2, 3)
    found = FeatureSet.from_arrays({"rgb": x}, {})
    resident, wide = found.place(CPU, "yes"), in_blocks(found, 7, 8)
    narrow = in_blocks(found, 7, 2)
    rows, sizes = np.arange(3, 45), [10, 10, 10, 12, 9]

    def read(f: FeatureSet, skip: int = 0) -> list[tuple[list[int], np.ndarray]]:
        batches = f.batches(rows, sizes, np.random.default_rng(5), CPU, skip=skip)
        return [(r.tolist(), b.streams["rgb"].numpy()) for r, b in batches]

    a, b, c = read(resident), read(wide), read(narrow)
    assert [r for r, _ in a] == [r for r, _ in b] != [r for r, _ in c]
    for batches in (a, b, c):
        assert [len(r) for r, _ in batches] == sizes
        for r, y in batches:
            np.testing.assert_array_equal(y, x[r])
    for f, full in ((resident, a), (narrow, c)):
        rest = read(f, skip=3)
        assert [r for r, _ in rest] == [r for r, _ in full[3:]]


def test_the_order_is_the_same_in_memory_and_streamed() -> None:
    """With more blocks than a window holds too: where the features are depends on the machine."""
    x, _ = synthetic(50, 2, 3)
    streamed = in_blocks(FeatureSet.from_arrays({"rgb": x}, {}), 7, 2)
    resident = streamed.place(CPU, "yes")
    assert resident.resident is not None
    assert len(streamed.blocks) == 8

    def read(f: FeatureSet) -> list[tuple[list[int], bytes]]:
        batches = f.batches(np.arange(3, 45), [10, 10, 10, 12, 9], np.random.default_rng(5), CPU)
        return [(r.tolist(), b.streams["rgb"].numpy().tobytes()) for r, b in batches]

    assert read(resident) == read(streamed)


class Watched(FeatureSet):
    """Features that remember, by weak references, every window they make room for."""

    def __init__(self, found: FeatureSet) -> None:
        vars(self).update(vars(found), made=[], beside=[])

    def _room(self, videos: int, folder: Path | None, new: bool = True) -> Loaded:
        window = super()._room(videos, folder, new)
        self.made.extend(StorageWeakRef(t.untyped_storage()) for t in window.streams.values())
        self.beside.append(self.alive())
        return window

    def alive(self) -> int:
        return sum(not storage.expired() for storage in self.made)

    made: list[StorageWeakRef]
    beside: list[int]
    """How many were alive when each was made, itself included."""


def test_two_windows_are_in_memory_while_a_batch_is_used() -> None:
    x, _ = synthetic(160, 7, 11)
    found = Watched(in_blocks(FeatureSet.from_arrays({"rgb": x}, {}), 8, 4))
    # Batches of 20 from windows of 32: most windows end within a batch. The last one has none to be read beside it.
    batches = found.batches(np.arange(160), [20] * 8, np.random.default_rng(5), CPU)
    for two, (rows, batch) in zip([True] * 6 + [False] * 2, batches, strict=True):
        np.testing.assert_array_equal(batch.streams["rgb"], x[rows])
        end = time.monotonic() + 60
        while two and found.alive() < 2 and time.monotonic() < end:
            time.sleep(0.01)  # the next one is read meanwhile
        time.sleep(0.1)  # in which a third would come
        assert (found.alive() == 2) if two else (found.alive() <= 1)
    assert found.beside == [1, 2, 2, 2, 2]  # a window is gone before the next but one is read


@pytest.mark.parametrize("how", ["fails", "closed"])
def test_what_is_read_ahead_comes_in_order_and_ends_at_once(how: str) -> None:
    begun: list[int] = []

    def read(one: int) -> int:
        begun.append(one)
        if how == "fails" and one == 2:
            raise OSError("damaged")
        return one

    reading = read_ahead(range(9), read)
    assert [next(reading), next(reading)] == [0, 1]
    if how == "fails":
        with pytest.raises(OSError, match="damaged"):
            next(reading)
    reading.close()
    assert begun == [0, 1, 2]  # nothing after the one that failed, or that was read when it was closed
    assert "aqa-features" not in " ".join(t.name for t in threading.enumerate())


def test_loading_takes_the_memory_of_the_features_once() -> None:
    x, _ = synthetic(2000, 4, 256)
    found = in_blocks(FeatureSet.from_arrays({"rgb": x[:, :, :128], "flow": x[:, :, 128:]}, {}), 100, 4)
    tracemalloc.start()
    try:
        placed = found.place(CPU, "yes")
        # NumPy tells tracemalloc what it takes, torch does not: this is what passes through on the way.
        passing = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert placed.resident is not None
    np.testing.assert_array_equal(torch.cat(list(placed.resident.streams.values()), dim=-1).numpy(), x)
    assert passing < 0.5 * found.nbytes


def test_moments_are_the_same_bits_however_they_are_read() -> None:
    x, _ = synthetic(40, 3, 5)
    found = FeatureSet.from_arrays({"rgb": x}, {})
    rows = np.arange(2, 33)
    mean, deviation = moments(found.place(CPU, "yes"), rows)["rgb"]
    np.testing.assert_allclose(mean, x[rows].mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(deviation, x[rows].std((0, 1)), rtol=1e-4)
    again = moments(in_blocks(found, 6, 1), rows)["rgb"]
    assert (again[0] == mean).all()
    assert (again[1] == deviation).all()


def test_moments_do_not_count_padding(make_store: MakeStore) -> None:
    store = FeatureStore.open(make_store(videos=4, lengths=[4, 1, 2, 4]))
    mean, _ = moments(FeatureSet.from_store(store), np.arange(4))["rgb"]
    np.testing.assert_allclose(mean, store.read("rgb").mean(axis=0), rtol=1e-5)


def test_blocks_end_where_chunks_end() -> None:
    # Chunks of 10 segments; videos begin at 0, 4, 8, 12, 16, 20, 24: one block for every 10 segments.
    assert blocks_of(np.arange(0, 28, 4), [10, 10, 8], 10) == ((0, 3), (3, 5), (5, 7))
    assert blocks_of(np.arange(0, 28, 4), [10, 10, 8], 1000) == ((0, 7),)


def test_auto_streams_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = synthetic(10, 2, 3)
    found = FeatureSet.from_arrays({"rgb": x}, {})
    room = found.nbytes / module.MEMORY_SHARE + 1
    monkeypatch.setattr(module, "available", lambda device: room)
    assert found.place(CPU).resident is not None
    assert found.place(CPU, copies=2).resident is None
    monkeypatch.setattr(module, "available", lambda device: 2 * room)
    assert found.place(CPU, copies=2).resident is not None
    # A GPU with room is of no use when the way there is too narrow.
    monkeypatch.setattr(module, "available", lambda device: room if device.type == "cuda" else room / 2)
    assert found.place(CPU).resident is None
    assert found.place(CPU, "yes", copies=2).resident is not None
    assert found.place(CPU, "no").resident is None


TOO_LARGE = r"add up to more than 1e\+15 in 1 video: v4\.mp4 \(\de"


@pytest.mark.parametrize(
    ("value", "said"),
    [*((v, r"1 video.*v4\.mp4") for v in (np.nan, np.inf, -np.inf)), *((v, TOO_LARGE) for v in (1e30, -1e30, 2e15))],
)
def test_features_that_no_training_survives_are_named(value: float, said: str) -> None:
    x, _ = synthetic(6, 2, 3)
    x[4, 1, 2] = value
    found = FeatureSet.from_arrays({"rgb": x}, {}, [f"v{i}.mp4" for i in range(6)])
    with pytest.raises(StoreError, match=said):
        found.place(CPU, "yes")
    with pytest.raises(StoreError, match=r"v4\.mp4"):
        list(in_blocks(found, 2, 1).batches(np.arange(6), [3, 3], np.random.default_rng(0), CPU))


def test_streamed_videos_are_checked_when_they_are_asked_for() -> None:
    """What lies between them in a block is read with them, and no more."""
    x, _ = synthetic(6, 2, 3)
    x[2, 1, 2], x[3] = np.nan, 0
    said: list[str] = []
    ids = [f"v{i}.mp4" for i in range(6)]
    found = in_blocks(FeatureSet.from_arrays({"rgb": x}, {}, ids, say=said.append), 6, 1)
    batch = found.load(np.array([5, 0, 4, 5]), CPU)
    np.testing.assert_array_equal(batch.streams["rgb"].numpy(), x[[5, 0, 4, 5]])
    assert not said
    with pytest.raises(StoreError, match=r"1 video: v2\.mp4"):
        found.load(np.array([5, 2]), CPU)


def test_features_that_are_all_zero_are_said() -> None:
    x, _ = synthetic(6, 2, 3)
    x[3] = 0
    said: list[str] = []
    FeatureSet.from_arrays({"rgb": x}, {}, [f"v{i}.mp4" for i in range(6)], say=said.append).place(CPU, "yes")
    assert said == ["features that are all zero in 1 video: v3.mp4"]


def test_features_that_are_all_zero_are_said_once_however_often_they_are_read() -> None:
    x, _ = synthetic(6, 2, 3)
    x[[0, 3]] = 0
    said: list[str] = []
    whole = FeatureSet.from_arrays({"rgb": x}, {}, [f"v{i}.mp4" for i in range(6)], say=said.append)
    streamed = in_blocks(whole, 2, 1)
    for seed in range(3):
        list(streamed.batches(np.arange(6), [3, 3], np.random.default_rng(seed), CPU))
    streamed.place(CPU, "yes")
    assert sorted(said) == [f"features that are all zero in 1 video: v{i}.mp4" for i in (0, 3)]


def test_warnings_are_no_results(make_store: MakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    FeatureSet.from_store(FeatureStore.open(make_store(videos=5, pending=2)))
    FeatureSet.from_arrays({"rgb": np.zeros((1, 4, 3), np.float32)}, {}).place(CPU, "yes")
    shown = capsys.readouterr()
    assert shown.out == ""
    said = " ".join(shown.err.split())
    assert "2 extracted videos" in said
    assert "all zero" in said


@pytest.mark.parametrize("shape", [(3, 5, 2), (2, 4, 2), (3, 4), (12, 1, 2)])
def test_streams_of_other_videos_or_segments_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"got rgb \(3, 4, 2\), flow \("):
        FeatureSet.from_arrays({"rgb": np.ones((3, 4, 2)), "flow": np.ones(shape)}, {})


def _gpu_is_full() -> None:
    raise torch.OutOfMemoryError("tried 9 GiB\nmore")


@pytest.mark.parametrize(
    ("allocate", "said"),
    [
        (lambda: torch.zeros(2**50), "can't allocate memory"),
        (lambda: np.zeros(2**50), "Unable to allocate"),
        (_gpu_is_full, "tried 9 GiB\n"),
    ],
)
def test_too_little_memory_is_an_environment_fault(allocate: Callable[[], object], said: str) -> None:
    with pytest.raises(EnvironmentFault, match=said) as e, enough_memory("use less"):
        allocate()
    assert e.value.fix == "use less"


def test_other_errors_are_not_called_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), enough_memory("use less"):
        raise RuntimeError("shapes differ")


def test_unfinished_and_empty_stores_are_said(make_store: MakeStore) -> None:
    said: list[str] = []
    FeatureSet.from_store(FeatureStore.open(make_store(videos=5, pending=2)), say=said.append)
    assert len(said) == 1
    assert "2 extracted videos" in said[0]
    with pytest.raises(StoreError, match="no finished video"):
        FeatureSet.from_store(FeatureStore.open(make_store(videos=2, pending=2, name="begun.zarr")))


def test_a_flipped_bit_is_caught(make_store: MakeStore) -> None:
    path = make_store(videos=8)
    chunk = max(
        (p for p in path.glob("blocks/*/rgb/*") if p.is_file() and p.name != "zarr.json"),
        key=lambda p: p.stat().st_size,
    )
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(bytes(data))
    with pytest.raises(StoreError):
        FeatureSet.from_store(FeatureStore.open(path)).place(CPU, "yes")


def test_columns_of_the_labels_files_rest(make_store: MakeStore) -> None:
    labels = [{"extra": {"athlete": f"a{i // 2}"}} for i in range(6)]
    found = FeatureSet.from_store(FeatureStore.open(make_store(videos=6, labels=labels)))
    assert found.column("athlete").tolist() == ["a0", "a0", "a1", "a1", "a2", "a2"]
    assert found.column("nothing").tolist() == [""] * 6
