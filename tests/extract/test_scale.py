"""The model of many workers loses no video, adds up by hand, and asks the store for what a real store is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scale() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import scale

        yield scale
    finally:
        sys.path.remove(str(BENCHMARKS))


def lab(scale: ModuleType, **changes: object) -> tuple[object, object]:
    return scale.Setting(videos=2000, hours=200.0, **changes), scale.costs()


CALM = {"spread": 0.0, "stragglers": 0.0, "lifetime": 0.0, "remote": False}


@pytest.mark.parametrize("engine", ["array", "dask"])
@pytest.mark.parametrize(("workers", "parts"), [(1, 1), (7, 1), (7, 3), (64, 1)])
def test_every_video_is_committed_whatever_ends(scale: ModuleType, engine: str, workers: int, parts: int) -> None:
    setting, costs = lab(scale, lifetime=0.05, parts=parts)
    r = scale.simulated(engine, setting, costs, workers)
    assert r.ends > 0
    assert r.committed == 2000
    assert r.puts == costs.commit_puts * (2000 + r.again)
    assert r.lost > 0
    calm = scale.simulated(engine, replace(setting, lifetime=0.0), costs, workers)
    assert (calm.lost, calm.again, calm.ends) == (0, 0, 0)
    assert calm.wall < r.wall


def test_one_worker_takes_the_sum_of_the_stages(scale: ModuleType) -> None:
    """Planning, loading, the first video's own decoder and device, then the longer of the two for each, the commit."""
    setting, costs = lab(scale, **CALM)
    from scale_model import finalised, made

    videos = made(setting, costs)
    r = scale.simulated("array", setting, costs, 1)
    first = videos.load[0] * setting.decoders + videos.device[0]
    by_hand = max(2000 * costs.plan, 2000 * costs.stats / setting.stats) + costs.start + first
    by_hand += videos.service[1:].sum() + costs.commit
    assert r.wall == pytest.approx(by_hand + finalised(setting, costs, 2000, 2000 * setting.segments), rel=1e-9)


def test_more_workers_are_never_faster_than_the_ideal(scale: ModuleType) -> None:
    setting, costs = lab(scale, **CALM)
    for engine in ("array", "dask"):
        walls = [scale.simulated(engine, setting, costs, n) for n in (1, 4, 16)]
        assert all(r.wall > r.ideal for r in walls)
        assert walls[0].wall > walls[1].wall > walls[2].wall


def test_the_same_seed_gives_the_same_result(scale: ModuleType) -> None:
    setting, costs = lab(scale, lifetime=0.2)
    for engine in ("array", "dask"):
        first, again = (scale.simulated(engine, setting, costs, 9, 2).to_dict() for _ in range(2))
        assert first == again
        assert first != scale.simulated(engine, replace(setting, seed=1), costs, 9, 2).to_dict()


def test_a_limit_is_kept_and_makes_others_wait(scale: ModuleType) -> None:
    from scale_model import BIN, Line

    line = Line(10.0)
    ends = [line.ask(0.0, 25, 0.1) for _ in range(8)]  # 200 requests, of which 10 a second are answered
    assert ends[:4] == [0.1] * 4
    assert max(ends) == BIN
    assert line.peak == 10
    setting, costs = lab(scale, puts=2.0)
    slow = scale.simulated("array", setting, costs, 64)
    assert slow.peak_puts <= 2.0 + 1e-9
    assert slow.wall > 2000 * costs.commit_puts / 2.0 - BIN
    assert slow.retried > 0


def test_parts_are_those_of_a_real_run(scale: ModuleType) -> None:
    from aqa_extract.plan import shard
    from aqa_shared.records import Video
    from aqa_shared.shards import all_parts

    seconds = np.random.default_rng(3).lognormal(3, 1, 50)
    videos = [Video(id=f"{i:07}", path="x", start_time=0, end_time=float(s)) for i, s in enumerate(seconds)]
    dealt = all_parts([25 * float(s) for s in seconds].__getitem__, [v.id for v in videos], 6)
    for part in range(6):
        assert [v.id for v in shard(videos, part + 1, 6)] == [f"{k:07}" for k in dealt[part]]


def test_requests_are_those_that_a_real_store_sees(scale: ModuleType) -> None:
    """What each further video costs is the same at other sizes, and what the record of the measurement says."""
    from scale_counts import by_video, counted

    each, _ = by_video(10)
    (few, _), (many, most) = counted(5), counted(45)
    for phase, of in each.items():
        more = {kind: n for kind in many[phase] if (n := many[phase][kind] - few[phase][kind])}
        assert more == {kind: 40 * n for kind, n in of.items()}, phase
    costs = scale.costs()
    assert sum(n for (what, _), n in each["commit"].items() if what == "put") == costs.commit_puts
    assert each["begin"] == {("get", "marker"): 1}
    assert sum(n for (what, _), n in each["finalise"].items() if what == "get") == costs.finalise_gets
    assert sum(n for (what, _), n in each["finalise"].items() if what == "delete") == costs.finalise_deletes
    assert sum(n / most[k] for k, n in each["finalise"].items() if k[0] != "put") == costs.finalise_rounds


def test_the_page_is_what_the_script_makes(scale: ModuleType) -> None:
    import json

    page = scale.PAGE.read_text(encoding="utf-8")
    assert page == scale.written(page, json.loads(scale.RECORD.read_text()))
    assert "array" in page
