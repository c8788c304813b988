"""The schedule: every job ends exactly once, one bad job harms no other, and faults of the machine stop the run."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aqa_extract.budget import ByteBudget, Cancelled, TooLarge
from aqa_extract.compute import Compute, Done
from aqa_extract.config import Options
from aqa_extract.decode import child, process
from aqa_extract.decode.child import Decoder, DecodeRequest
from aqa_extract.flow.settings import TVL1Settings
from aqa_extract.identity import identify
from aqa_extract.job import JobFailed, VideoJob
from aqa_extract.loading import Decoded, Prepared, load
from aqa_extract.networks import Networks
from aqa_extract.pipeline import Outcome, Pipeline
from aqa_extract.streams import array_specs
from aqa_extract.work import Work
from aqa_shared.errors import EnvironmentFault, StoreError
from aqa_shared.records import ExtractSettings, Failure, Pixels, Sampling, Video
from aqa_shared.store import StoreWriter


def _job(number: int) -> VideoJob:
    return VideoJob(Video(id=str(number), path=""), None)


def _number(what: VideoJob | Decoded) -> int:
    return int((what.job if isinstance(what, Decoded) else what).video.id)


class PairUp(Compute):
    """A device that finishes jobs two at a time, as batches across videos do."""

    def __init__(self, poison: frozenset[int] = frozenset()) -> None:
        self.held: list[Done] = []
        self.lock = threading.Lock()
        self.poison = poison

    def submit(self, prepared: Prepared) -> list[Done]:
        if _number(prepared.video) in self.poison:
            raise ValueError("cannot compute this")
        with self.lock:
            self.held.append(Done(prepared.video, {}, {}))
            if len(self.held) < 2:
                return []
            return self.flush()

    def flush(self) -> list[Done]:
        done, self.held = self.held, []
        return done


class Bench(Work):
    """A pipeline of numbered videos without pixels, with what happened to them."""

    def __init__(
        self,
        *,
        bad: frozenset[int] = frozenset(),
        poison: frozenset[int] = frozenset(),
        workers: int = 3,
        drivers: int = 1,
        stop_after: int = 20,
        commit: Callable[[int], None] | None = None,
        limit: int = 3,
    ) -> None:
        self.done: list[int] = []
        self.reports: list[Failure | None] = []
        self.opened = 0
        self.closed = 0
        self.bad = bad
        self.budget = ByteBudget(limit, threading.Event())
        self.write = commit or self.done.append
        self.pipeline = Pipeline(
            self,
            PairUp(poison),
            lambda failure: self.reports.append(failure),
            workers=workers,
            drivers=drivers,
            stop_after=stop_after,
        )

    def run(self, jobs: Iterable[int]) -> Outcome:
        return self.pipeline.run([_job(number) for number in jobs])

    @contextmanager
    def loader(self) -> Iterator[Callable[[VideoJob], Prepared]]:
        self.opened += 1

        def load_one(job: VideoJob) -> Prepared:
            if _number(job) in self.bad:
                raise JobFailed(job.failed("bad", "decode", ""))
            self.budget.take(1)
            video = Decoded(job, *(None,) * 4)  # type: ignore[arg-type]  # nobody looks
            return Prepared(video, {}, None, None, reserved=1)

        try:
            yield load_one
        finally:
            self.closed += 1

    def commit(self, done: Done) -> None:
        self.write(_number(done.video))

    def kill_decoders(self) -> None:
        pass


@pytest.mark.parametrize(("workers", "drivers"), [(1, 1), (3, 2)])
def test_jobs_that_come_one_by_one_wait_for_no_other(workers: int, drivers: int) -> None:
    """The device pairs up: where nothing else comes it is told to compute what waits."""
    bench = Bench(workers=workers, drivers=drivers)

    def one_by_one() -> Iterator[VideoJob]:
        for number in range(5):
            yield _job(number)
            until = time.monotonic() + 20
            while number not in bench.done:
                assert time.monotonic() < until, "it waits for the next job"
                time.sleep(0.01)

    outcome = bench.pipeline.run(one_by_one())
    assert (bench.done, outcome.finished, outcome.stopped_by) == ([0, 1, 2, 3, 4], 5, None)


@pytest.mark.parametrize(("workers", "drivers"), [(1, 1), (3, 1), (1, 3), (3, 2)])
def test_every_job_is_committed_once(workers: int, drivers: int) -> None:
    bench = Bench(workers=workers, drivers=drivers)
    outcome = bench.run(range(41))
    assert sorted(bench.done) == list(range(41))
    assert outcome.finished == 41
    assert outcome.stopped_by is None
    assert bench.reports == [None] * 41
    assert bench.opened == bench.closed == workers
    assert bench.budget.used == 0


@pytest.mark.parametrize("drivers", [1, 3])
def test_bad_jobs_are_named_and_the_rest_finish(drivers: int) -> None:
    bench = Bench(bad=frozenset({3, 4}), poison=frozenset({9}), drivers=drivers)
    outcome = bench.run(range(12))
    assert sorted(bench.done) == [0, 1, 2, 5, 6, 7, 8, 10, 11]
    assert sorted((f.id, f.reason) for f in outcome.failures) == [
        ("3", "bad"),
        ("4", "bad"),
        ("9", "internal_error"),
    ]
    assert bench.budget.used == 0


def test_failures_in_a_row_stop_the_run() -> None:
    bench = Bench(bad=frozenset(range(10, 100)), workers=1, stop_after=5)
    outcome = bench.run(range(100))
    assert len(outcome.failures) == 5
    assert outcome.stopped_by == "5 failures in a row"


def test_what_the_store_refuses_is_a_failure_of_that_job() -> None:
    bench = Bench()

    def picky(job: int) -> None:
        if job == 5:
            raise JobFailed(_job(job).failed("bad_features", "commit", ""))
        bench.done.append(job)

    bench.write = picky
    outcome = bench.run(range(9))
    assert sorted(bench.done) == [0, 1, 2, 3, 4, 6, 7, 8]
    assert [(f.id, f.reason) for f in outcome.failures] == [("5", "bad_features")]
    assert len(bench.reports) == 9


def test_a_fault_of_the_store_ends_the_run_with_that_fault() -> None:
    def full(_: int) -> None:
        raise StoreError("no space left")

    bench = Bench(commit=full)
    with pytest.raises(StoreError, match="no space"):
        bench.run(range(1000))
    assert bench.opened == bench.closed


def test_a_fault_of_the_device_ends_the_run_with_that_fault() -> None:
    bench = Bench()

    def out_of_memory(_: Prepared) -> list[Done]:
        raise EnvironmentFault("out of device memory")

    bench.pipeline.compute.submit = out_of_memory  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFault):
        bench.run(range(10))


def test_a_crash_in_a_loader_is_raised_not_swallowed() -> None:
    bench = Bench()

    @contextmanager
    def broken() -> Iterator[Callable[[VideoJob], Prepared]]:
        raise OSError("cannot start the decoder")
        yield

    bench.loader = broken  # type: ignore[method-assign]
    with pytest.raises(OSError, match="cannot start"):
        bench.run(range(3))


def test_stop_keeps_what_is_committed_and_says_so() -> None:
    bench = Bench(workers=1)

    def commit(job: int) -> None:
        bench.done.append(job)
        if len(bench.done) == 4:
            bench.stop.set()

    bench.write = commit
    outcome = bench.run(range(1000))
    assert outcome.stopped_by == "signal"
    assert 4 <= len(bench.done) < 1000


def test_budget_blocks_until_there_is_room_but_lets_one_large_pass() -> None:
    stop = threading.Event()
    budget = ByteBudget(10, stop)
    budget.take(20)
    waiting = threading.Thread(target=budget.take, args=(1,), daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    budget.give(20)
    waiting.join(5)
    assert not waiting.is_alive()
    assert budget.used == 1
    stop.set()
    with pytest.raises(Cancelled):
        budget.take(10)


def test_what_would_never_fit_is_refused_at_once() -> None:
    budget = ByteBudget(10, threading.Event())
    budget.take(1)
    with pytest.raises(TooLarge, match="21 bytes, the most is 20"):
        budget.take(21)
    assert budget.used == 1


def test_a_budget_can_be_taken_anew_by_who_holds_it() -> None:
    """A second plan replaces the first: the loader gives back before it takes, so it never waits for itself."""
    budget = ByteBudget(100, threading.Event())
    budget.take(150)
    budget.give(150)
    budget.take(140)
    assert budget.used == 140


def test_a_report_that_fails_ends_the_run_instead_of_hanging_it() -> None:
    bench = Bench()

    def closed(_: Failure | None) -> None:
        raise BrokenPipeError

    bench.pipeline.report = closed
    with pytest.raises(BrokenPipeError):
        bench.run(range(100))


def test_bad_jobs_at_the_very_end_do_not_stop_what_is_already_over() -> None:
    """Not even while the good ones before them are still being written."""
    bench = Bench(bad=frozenset(range(10, 15)), workers=1, stop_after=5)
    five_failed = threading.Event()

    def report(failure: Failure | None) -> None:
        bench.reports.append(failure)
        if sum(one is not None for one in bench.reports) == 5:
            five_failed.set()

    bench.pipeline.report = report
    bench.write = lambda job: bench.done.append(job) if five_failed.wait(30) else None
    outcome = bench.run(range(15))
    assert outcome.stopped_by is None
    assert len(bench.done) == outcome.finished == 10


class SmallMemory(nn.Module):
    """In I3D's place: the mean colour of every frame, and no memory for more than `room` clips at once."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.calls: list[int] = []
        self.held: list[weakref.ref[Tensor]] = []
        """What failed calls had on the device."""

    def outputs(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        self.calls.append(len(x))
        assert not any(tensor() is not None for tensor in self.held), "a failed call still fills the memory"
        if len(x) > self.room:
            self.held.append(weakref.ref(x))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"": x.mean(dim=(3, 4)).flatten(1)}


def networks(settings: ExtractSettings, network: SmallMemory) -> Networks:
    return Networks(settings, torch.device("cpu"), {"rgb": network}, None, TVL1Settings(), {})


def features(path: Path, network: SmallMemory, batch: int, cores: int = 1) -> list[Done]:
    """The clip at `path` as 41 segments through `network`."""
    settings = ExtractSettings(sampling=Sampling(segments=41), pixels=Pixels(short_side=32, crop=32))
    cpu = torch.device("cpu")
    compute = Compute(networks(settings, network), settings, batch=batch, flow_batch=8, cores=cores)
    request = DecodeRequest(str(path), Video(id="v", path=str(path)), settings.sampling)
    with Decoder() as decoder:
        prepared = load(decoder, VideoJob(request.video, None), request, settings, cpu, None, lambda _: None)
    return [*compute.submit(prepared), *compute.flush()]


def test_a_device_that_is_too_small_gets_every_segment_in_smaller_batches(clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(frames=60).write(tmp_path / "clip")
    small = SmallMemory(room=4)
    (halved,) = features(path, small, batch=32)
    (undisturbed,) = features(path, SmallMemory(room=32), batch=4)
    assert small.calls[:4] == [32, 16, 8, 4]
    assert small.calls[3:] == [4] * 11
    assert np.isfinite(halved.arrays["rgb"]).all()
    np.testing.assert_array_equal(halved.arrays["rgb"], undisturbed.arrays["rgb"])


def test_no_room_for_a_single_segment_is_a_fault_of_the_device(clips: ModuleType, tmp_path: Path) -> None:
    network = SmallMemory(room=0)
    with pytest.raises(EnvironmentFault, match="single segment"):
        features(clips.Clip(frames=60).write(tmp_path / "clip"), network, batch=4)
    assert network.calls == [4, 2, 1]


class Together(SmallMemory):
    """Goes on only when its first `cores` calls are in progress at once."""

    def __init__(self, cores: int) -> None:
        super().__init__(room=2)
        self.all_there = threading.Barrier(cores, timeout=60)
        self.number = count()

    def outputs(self, x: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        if next(self.number) < self.all_there.parties:
            self.all_there.wait()
        return super().outputs(x, names)


def test_one_video_alone_is_computed_on_every_core(clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(frames=60).write(tmp_path / "clip")
    (spread,) = features(path, Together(cores=3), batch=2, cores=3)
    (alone,) = features(path, SmallMemory(room=2), batch=2)
    np.testing.assert_array_equal(spread.arrays["rgb"], alone.arrays["rgb"])


def test_an_error_of_one_part_is_raised_and_leaves_no_part_behind() -> None:
    settings = ExtractSettings()
    compute = Compute(networks(settings, SmallMemory(room=2)), settings, batch=2, flow_batch=8, cores=2)
    done: list[int] = []

    def work(part: int) -> None:
        if part == 1:
            raise ValueError("part 1")
        time.sleep(0.05)
        done.append(part)

    with pytest.raises(ValueError, match="part 1"):
        list(compute._spread(work, range(10)))
    assert sorted(done) == [0, 2, 3]  # what was begun is finished, and nothing begins after it


@contextmanager
def real_work(store: Path, settings: ExtractSettings, limit: int = 1 << 30) -> Iterator[Work]:
    with StoreWriter.open(store, specs=array_specs(settings), settings=settings, provenance={}) as writer:
        budget = ByteBudget(limit, threading.Event())
        yield Work(networks(settings, SmallMemory(room=2)), writer, Options(decoder="av", timeout=60), budget)


def test_a_decoder_that_starts_late_is_tried_again(
    clips: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = clips.Clip(frames=20).write(tmp_path / "clip")
    starts: list[float] = []

    def late_at_first() -> process.Child:
        starts.append(60.0 if starts else 0.0)
        monkeypatch.setattr(process, "START_SECONDS", starts[-1])
        return process.Child()

    monkeypatch.setattr(child, "Child", late_at_first)
    settings = ExtractSettings(sampling=Sampling(protocol="dense"), pixels=Pixels(short_side=32, crop=32))
    with real_work(tmp_path / "store.zarr", settings) as work, work.loader() as load_one:
        prepared = load_one(VideoJob(Video(id="v", path=str(path)), identify(str(path))))
    assert prepared.video.finished.decoded == 20
    assert starts == [0.0, 60.0]


def test_a_video_too_long_for_the_memory_is_named_and_the_others_go_on(clips: ModuleType, tmp_path: Path) -> None:
    paths = [clips.Clip(frames=n).write(tmp_path / str(n)) for n in (20, 300, 24)]
    jobs = [VideoJob(Video(id=path.stem, path=str(path)), identify(str(path))) for path in paths]
    settings = ExtractSettings(sampling=Sampling(protocol="dense"), pixels=Pixels(short_side=32, crop=32))
    # 64x48 becomes 43x32: the 288 frames of 18 segments take 1.19 MB and their features .07, more than twice the limit.
    with real_work(tmp_path / "store.zarr", settings, limit=500_000) as work:
        compute = Compute(work.networks, settings, batch=2, flow_batch=8)
        work.commit = lambda done: work.committed.add(done.video.job.video.id)  # type: ignore[method-assign]
        outcome = Pipeline(work, compute, lambda failure: None, workers=2).run(jobs)
    assert work.committed == {"20", "24"}
    (failure,) = outcome.failures
    assert (failure.id, failure.reason, failure.stage) == ("300", "too_long", "sampling")
    for said in ("0.00126 GB", "0.001 GB", "start and end", "fewer --segments", "--short-side"):
        assert said in failure.detail
    assert work.budget.used == 0
