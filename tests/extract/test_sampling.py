"""Sampling: frame indices written by hand for every protocol, and properties that hold for any timestamps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aqa_extract.sampling import MIN_FRAMES, SamplingError, coverage, plan_segments, resample
from aqa_shared.records import Sampling, Video


def at(n: int, fps: float = 25.0) -> np.ndarray:
    """Timestamps of a constant rate."""
    return np.arange(n) / fps


def clip(**part: float) -> Video:
    return Video(id="v", path="/v.mp4", **part)


def runs(starts: list[int], frames: int = 16) -> list[list[int]]:
    return [list(range(s, s + frames)) for s in starts]


def test_even_places_ten_clips_from_the_first_frame_to_the_last() -> None:
    plan = plan_segments(Sampling(), at(106), 25)
    # (106 - 16) / 9 = 10 exactly.
    assert plan.frames.tolist() == runs([0, 10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert not plan.padded


def test_even_rounds_halves_to_the_even_frame() -> None:
    plan = plan_segments(Sampling(segments=3, segment_frames=9), at(14), 25)
    assert plan.frames[:, 0].tolist() == [0, 2, 5]  # 0, 2.5, 5


def test_even_repeats_one_clip_where_only_one_fits() -> None:
    assert plan_segments(Sampling(segments=3), at(16), 25).frames.tolist() == runs([0, 0, 0])


@pytest.mark.parametrize(("n", "starts"), [(5, [0]), (16, [0]), (17, [0, 1]), (32, [0, 16]), (40, [0, 12, 24])])
def test_auto_takes_the_fewest_segments_that_look_at_every_frame(n: int, starts: list[int]) -> None:
    plan = plan_segments(Sampling(segments="auto"), at(n), 25)
    assert plan.segments[:, 0].tolist() == starts
    assert plan.looked_at == (n, n)


@given(n=st.integers(MIN_FRAMES, 3000), frames=st.integers(9, 64), fps=st.sampled_from([None, 5.0, 40.0]))
def test_auto_passes_over_no_frame(n: int, frames: int, fps: float | None) -> None:
    sampling = Sampling(segments="auto", segment_frames=frames, fps=fps)
    if fps == 5.0 and n < 8:
        return
    plan = plan_segments(sampling, at(n), 25)
    used, of = plan.looked_at
    assert used == of
    assert len(plan.segments) == -(-max(len(plan.timeline), frames) // frames)


def test_a_share_of_the_frames_is_said_and_more_recommended_where_it_is_small() -> None:
    plans = [plan_segments(Sampling(), at(n), 25) for n in (2700, 2700, 120)]
    looked_at = [plan.looked_at for plan in plans]
    assert looked_at == [(160, 2700), (160, 2700), (120, 120)]
    assert coverage(looked_at, Sampling()) == (
        "10 segments of 16 frames look at 6% of the frames: what happens between is not seen. --segments auto looks at "
        "all of them (about 169 segments a video, 17 times the work; less with a lower --fps)"
    )
    said = coverage([(120, 120), (100, 120), (160, 200)], Sampling())
    assert said == "10 segments of 16 frames look at 83% of the frames; of one of 3 videos 80%"
    for quiet in (Sampling(segments="auto"), Sampling(protocol="mtl-aqa"), Sampling(protocol="dense")):
        assert coverage(looked_at, quiet) == ""
    assert coverage([], Sampling()) == ""


def test_dense_drops_the_last_partial_clip() -> None:
    plan = plan_segments(Sampling(protocol="dense", step=8), at(47), 25)
    assert plan.frames.tolist() == runs([0, 8, 16, 24])  # 31 is the last possible start
    assert plan_segments(Sampling(protocol="dense"), at(48), 25).frames.tolist() == runs([0, 16, 32])


@pytest.mark.parametrize("protocol", ["even", "dense", "finefs", "rhythmic-gymnastics"])
def test_short_videos_repeat_their_last_frame(protocol: str) -> None:
    fps = 2.0 if protocol == "rhythmic-gymnastics" else 25.0
    plan = plan_segments(Sampling(protocol=protocol, segments=2), at(5, fps), fps)
    assert plan.padded
    assert set(map(tuple, plan.frames.tolist())) == {(0, 1, 2, 3) + (4,) * 12}


@pytest.mark.parametrize(("last_start", "expected"), [(86, 86), (87, 87)])
def test_mtl_aqa_is_the_103_frames_before_the_end(last_start: int, expected: int) -> None:
    starts = [0, 10, 20, 30, 40, 50, 60, 70, 80, expected]
    sampling = Sampling(protocol="mtl-aqa", last_start=last_start)
    # CoRe: start_frame = end_frame - 103, whatever the annotated start is.
    plan = plan_segments(sampling, at(1000), 25, clip(start=450, end=500))
    assert plan.frames.tolist() == runs([397 + s for s in starts])
    assert plan.timeline.tolist() == list(range(397, 500))
    # The same part in seconds, and a file that holds just the dive.
    seconds = plan_segments(sampling, at(1000), 25, clip(start_time=18.0, end_time=20.0))
    np.testing.assert_array_equal(seconds.frames, plan.frames)
    assert plan_segments(sampling, at(103), 25).frames.tolist() == runs(starts)
    assert plan_segments(sampling, at(150), 25).frames[0, 0] == 47


def test_mtl_aqa_pads_a_dive_that_starts_with_its_file() -> None:
    plan = plan_segments(Sampling(protocol="mtl-aqa"), at(60), 25)
    assert plan.padded
    assert plan.frames[0].tolist() == list(range(16))
    assert plan.frames[5].tolist() == [*range(50, 60), *[59] * 6]
    assert plan.frames[9].tolist() == [59] * 16


def test_aqa_7_is_the_first_103_frames() -> None:
    plan = plan_segments(Sampling(protocol="aqa-7"), at(120), 25)
    assert plan.frames.tolist() == runs([0, 10, 20, 30, 40, 50, 60, 70, 80, 86])


def test_rhythmic_gymnastics_is_12_overlapping_clips_at_2_fps() -> None:
    # 95 s at 25 fps: 190 frames of a 2 fps grid, at 0, 12.5 (a tie: the earlier, 12), 25, 37.5 → 37, …
    plan = plan_segments(Sampling(protocol="rhythmic-gymnastics"), at(2375), 25)
    assert plan.timeline[:5].tolist() == [0, 12, 25, 37, 50]
    assert len(plan.timeline) == 190
    # rint(linspace(0, 174, 12)), steps of 15.818
    assert plan.segments[:, 0].tolist() == [0, 16, 32, 47, 63, 79, 95, 111, 127, 142, 158, 174]


def test_rhythmic_gymnastics_at_another_rate() -> None:
    plan = plan_segments(Sampling(protocol="rhythmic-gymnastics", fps=5), at(2375), 25)
    assert plan.timeline[:4].tolist() == [0, 5, 10, 15]
    assert len(plan.timeline) == 475


def test_jigsaws_is_160_frames_in_ten_disjoint_clips() -> None:
    plan = plan_segments(Sampling(protocol="jigsaws"), at(319), 30)
    assert plan.timeline.tolist() == list(range(0, 320, 2))  # 318 / 159 = 2
    assert plan.segments[:, 0].tolist() == [0, 16, 32, 48, 64, 80, 96, 112, 128, 144]
    # 1.5 a step is truncated, as NumPy's integer linspace does.
    assert plan_segments(Sampling(protocol="jigsaws"), at(240), 30).timeline[:6].tolist() == [0, 1, 3, 4, 6, 7]


def test_finediving_is_96_frames_in_nine_clips() -> None:
    plan = plan_segments(Sampling(protocol="finediving"), at(191), 25, clip(start=0, end=191))
    assert plan.timeline.tolist() == list(range(0, 191, 2))
    assert plan.segments[:, 0].tolist() == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    part = plan_segments(Sampling(protocol="finediving"), at(500), 25, clip(start=100, end=291))
    assert part.timeline.tolist() == list(range(100, 291, 2))


def test_finefs_is_disjoint_clips_at_25_fps() -> None:
    plan = plan_segments(Sampling(protocol="finefs"), at(100, 50.0), 50)
    assert plan.timeline.tolist() == list(range(0, 100, 2))
    assert plan.segments[:, 0].tolist() == [0, 16, 32]


def test_variable_rates_are_sampled_by_time() -> None:
    times = np.array([0.0, 0.01, 0.02, 0.5, 0.98, 1.01, 1.7, 2.0])
    # Grid 0, .5, 1, 1.5, 2: nearest are 0, .5, 1.01 (beats .98), 1.7, 2.
    assert resample(times, 2.0).tolist() == [0, 3, 5, 6, 7]


def test_a_slow_source_repeats_frames_and_the_origin_is_the_first_frame() -> None:
    assert resample(np.array([7.0, 8.0, 9.0]), 2.0).tolist() == [0, 0, 1, 1, 2]  # ties take the earlier
    assert resample(np.array([3.0]), 25.0).tolist() == [0]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"start": 10}, (10, 100)),
        ({"end": 50}, (0, 50)),
        ({"start": 10, "end": 100}, (10, 100)),
        ({"start_time": 1.0}, (25, 100)),
        ({"end_time": 2.0}, (0, 50)),
        ({"start_time": 0.99, "end_time": 1.05}, (25, 27)),
        ({"end_time": 4.3}, (0, 100)),
    ],
)
def test_parts_cut_the_timeline_first(part: dict[str, float], expected: tuple[int, int]) -> None:
    plan = plan_segments(Sampling(protocol="dense", segment_frames=9, step=1), at(100), 25, clip(**part))
    assert (plan.frames.min(), plan.frames.max() + 1) == expected


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"start": 100}, "part_outside"),
        ({"end": 101}, "part_outside"),
        ({"start_time": 4.0}, "part_outside"),
        ({"end_time": 4.6}, "part_outside"),
        ({"start_time": 1.001, "end_time": 1.03}, "no_frames"),
        ({"start": 5, "end": 6}, "too_short"),
    ],
)
def test_parts_that_are_not_there_are_refused(part: dict[str, float], reason: str) -> None:
    with pytest.raises(SamplingError) as e:
        plan_segments(Sampling(), at(100), 25, clip(**part))
    assert e.value.reason == reason


@pytest.mark.parametrize(("n", "reason"), [(0, "no_frames"), (1, "too_short")])
def test_nothing_to_sample_from(n: int, reason: str) -> None:
    with pytest.raises(SamplingError) as e:
        plan_segments(Sampling(), at(n), 25)
    assert e.value.reason == reason


def test_published_protocols_keep_their_clip_length() -> None:
    with pytest.raises(ValueError, match="clips of 16 frames"):
        Sampling(protocol="mtl-aqa", segment_frames=32)


def test_wanted_positions_and_their_successors() -> None:
    plan = plan_segments(Sampling(segments=2, segment_frames=9), at(30), 25)
    assert plan.wanted(False).tolist() == [*range(9), *range(21, 30)]
    assert plan.wanted(True).tolist() == [*range(10), *range(21, 30)]  # the last has no successor


PROTOCOLS = ["even", "dense", "mtl-aqa", "rhythmic-gymnastics", "jigsaws", "finediving", "aqa-7", "finefs"]


@given(
    protocol=st.sampled_from(PROTOCOLS),
    gaps=st.lists(st.floats(0.002, 0.5), min_size=0, max_size=300),
    fps=st.one_of(st.none(), st.floats(0.5, 60)),
    origin=st.floats(0, 100),
    segments=st.integers(1, 12),
    step=st.integers(1, 40),
)
def test_any_plan_is_in_range_and_in_order(
    protocol: str, gaps: list[float], fps: float | None, origin: float, segments: int, step: int
) -> None:
    times = origin + np.concatenate(([0.0], np.cumsum(gaps)))
    sampling = Sampling(protocol=protocol, fps=fps, segments=segments, step=step)
    rate = fps or {"rhythmic-gymnastics": 2.0, "finefs": 25.0}.get(protocol)
    distinct = len(times) if rate is None else len(set(resample(times, rate)))
    if distinct < MIN_FRAMES:  # Few frames, or a grid so coarse that it meets only one.
        with pytest.raises(SamplingError):
            plan_segments(sampling, times, 25)
        return
    plan = plan_segments(sampling, times, 25)
    assert plan.timeline.dtype == plan.segments.dtype == np.int32
    assert plan.segments.shape[1] == 16
    assert len(plan.segments) == {"even": segments, "rhythmic-gymnastics": 12, "finediving": 9}.get(
        protocol, len(plan.segments)
    )
    assert plan.segments.min() >= 0
    assert plan.segments.max() < len(plan.timeline)
    assert plan.timeline.min() >= 0
    assert plan.timeline.max() < len(times)
    assert np.all(np.diff(plan.timeline) >= 0)
    assert np.all(np.diff(plan.frames, axis=1) >= 0)
    assert np.all(np.diff(plan.segments[:, 0]) >= 0)
    if not plan.padded and fps is None and protocol in ("even", "dense", "mtl-aqa", "aqa-7"):
        assert np.all(np.diff(plan.frames, axis=1) == 1)


@given(
    gaps=st.lists(st.floats(0.002, 0.5), min_size=1, max_size=100),
    fps=st.floats(0.5, 60),
    origin=st.floats(0, 1000),
)
def test_resampling_takes_the_nearest_frame(gaps: list[float], fps: float, origin: float) -> None:
    times = origin + np.concatenate(([0.0], np.cumsum(gaps)))
    chosen = resample(times, fps)
    grid = times[0] + np.arange(len(chosen)) / fps
    assert grid[-1] <= times[-1] + 1e-5
    assert grid[-1] + 1 / fps > times[-1] - 1e-5
    nearest = np.abs(times[None] - grid[:, None]).min(axis=1)
    np.testing.assert_allclose(np.abs(times[chosen] - grid), nearest, atol=1e-5)
