"""Which frames become which segment: pure functions from timestamps to frame indices.

    display-order frames → part → (resampled by timestamp) → timeline → segments

A *timeline* lists source frames; a *segment* is a run of positions in it. The named protocols give the
frames that published code reads, so that features can be compared with published ones; every choice that the
sources leave open is marked (ours). docs/sampling.md has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64

from aqa_shared.records import Sampling, Video

MIN_FRAMES = 2
"""A video with fewer real frames is refused (ours): one picture repeated is not a performance."""
TIME_SLACK = 0.5
"""Seconds by which `end_time` may exceed the video, as rounded annotations do (ours)."""
_SAME_TIME = 1e-6

WINDOW = 103
"""Frames of a dive in MTL-AQA and AQA-7 code."""


class SamplingError(ValueError):
    """No plan can be made; `reason` is a stable code: `no_frames`, `too_short` or `part_outside`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class FramePlan:
    """The frames of one video's segments."""

    timeline: Int32[np.ndarray, "positions"]
    """Source frame (display order) of every position; non-decreasing."""
    segments: Int32[np.ndarray, "segments frames"]
    """Positions into the timeline."""
    padded: bool
    """The video had fewer frames than the protocol wants, so frames repeat."""

    @property
    def frames(self) -> Int32[np.ndarray, "segments frames"]:
        """Source frame indices of every segment."""
        return self.timeline[self.segments]

    @property
    def looked_at(self) -> tuple[int, int]:
        """Different source frames that segments use, and those of the timeline they were chosen from."""
        return len(np.unique(self.frames)), len(np.unique(self.timeline))

    def wanted(self, need_next: bool) -> Int32[np.ndarray, "n"]:
        """Sorted positions that segments use; with `need_next` also each one's successor, for flow."""
        used = np.unique(self.segments)
        if need_next:
            used = np.union1d(used, np.minimum(used + 1, len(self.timeline) - 1))
        return used.astype(np.int32)


def plan_segments(
    sampling: Sampling, times: Float64[np.ndarray, "n"], fps: float, video: Video | None = None
) -> FramePlan:
    """The plan for one video.

    Args:
        sampling: protocol and its settings.
        times: seconds of every display-order frame, strictly increasing; the first frame's time is the origin.
        fps: frames per second of the source; only the length of the last frame is taken from it.
        video: its part (`start`…`end` in frames or `start_time`…`end_time` in seconds), whole where None.

    Raises:
        SamplingError: no frame in the part (`no_frames`), fewer than two (`too_short`), or a part that the
            video does not have (`part_outside`): guessing would score another performance.
    """
    if not len(times):
        raise SamplingError("no_frames", "the video has no frame to show")
    first, end = part(times - times[0], fps, video)
    if sampling.protocol == "mtl-aqa" and video is not None and (video.end or video.end_time):
        # The authors count back from the annotated end, also past the annotated start.
        first = 0
    rate = sampling.fps or _DEFAULT_FPS.get(sampling.protocol)
    kept = np.arange(first, end) if rate is None else first + resample(times[first:end], rate)
    if len(np.unique(kept)) < MIN_FRAMES:
        raise SamplingError("too_short", f"{len(np.unique(kept))} frame to sample from, {MIN_FRAMES} is the least")
    timeline, starts, padded = _PROTOCOLS[sampling.protocol](kept, sampling)
    segments = starts[:, None] + np.arange(sampling.frames)
    return FramePlan(timeline.astype(np.int32), segments.astype(np.int32), padded)


SMALL_SHARE = 0.5
"""Of the frames; below, a run recommends more segments (ours)."""


def coverage(looked_at: Sequence[tuple[int, int]], sampling: Sampling) -> str:
    """What share of the frames the segments of many videos look at, and what to do where it is small; "" for none.

    `looked_at` are `FramePlan.looked_at` of each. Only `even` is judged: the other protocols say themselves what they
    use.
    """
    if not looked_at or sampling.protocol != "even" or sampling.segments == "auto":
        return ""
    shares = [used / of for used, of in looked_at]
    middle, least = float(np.median(shares)), min(shares)
    among = f"; of one of {len(shares)} videos {least:.0%}" if least < middle - 0.005 else ""
    some = "1 segment of" if sampling.segments == 1 else f"{sampling.segments} segments of"
    verb = "looks" if sampling.segments == 1 else "look"
    said = f"{some} {sampling.frames} frames {verb} at {middle:.0%} of the frames{among}"
    if middle >= SMALL_SHARE:
        return said
    count = -(-float(np.median([of for _, of in looked_at])) // sampling.frames)
    return (
        f"{said}: what happens between is not seen. --segments auto looks at all of them (about {count:.0f} segments a "
        f"video, {count / sampling.segments:.0f} times the work; less with a lower --fps)"
    )


def part(times: Float64[np.ndarray, "n"], fps: float, video: Video | None) -> tuple[int, int]:
    """First and one-past-last frame of `video`'s part; `times` start at 0."""
    n = len(times)
    if video is None:
        return 0, n
    if video.start is not None or video.end is not None:
        first, end = video.start or 0, n if video.end is None else video.end
        if first >= n or end > n:
            raise SamplingError("part_outside", f"frames {first} to {end} asked for, the video has {n}")
        return first, end
    if video.start_time is None and video.end_time is None:
        return 0, n
    seconds = float(times[-1]) + 1 / fps
    start_time = video.start_time or 0.0
    end_time = seconds if video.end_time is None else video.end_time
    if start_time > times[-1] + _SAME_TIME or end_time > seconds + TIME_SLACK:
        raise SamplingError(
            "part_outside", f"{start_time:g} s to {end_time:g} s asked for, the video has {seconds:.3f} s"
        )
    first = int(np.searchsorted(times, start_time - _SAME_TIME))
    end = int(np.searchsorted(times, end_time - _SAME_TIME))
    if end <= first:
        raise SamplingError("no_frames", f"no frame between {start_time:g} s and {end_time:g} s")
    return first, end


def resample(times: Float64[np.ndarray, "n"], fps: float) -> Int64[np.ndarray, m]:
    """Indices of the frames nearest in time to a grid of `fps` that starts at the first frame.

    The grid ends with the last frame's time; a tie takes the earlier frame; slow sources repeat frames.
    """
    offsets = times - times[0]
    grid = np.arange(int(np.floor(offsets[-1] * fps + _SAME_TIME)) + 1) / fps
    after = np.clip(np.searchsorted(offsets, grid), 1, max(len(offsets) - 1, 1))
    if len(offsets) == 1:
        return np.zeros(len(grid), np.int64)
    before_is_nearer = grid - offsets[after - 1] <= offsets[after] - grid + _SAME_TIME
    return np.where(before_is_nearer, after - 1, after).astype(np.int64)


def _spread(kept: np.ndarray, count: int, frames: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """`count` segments from the first frame to the last, evenly placed, overlapping where they must."""
    timeline, padded = _repeat_last(kept, frames)
    starts = np.rint(np.linspace(0, len(timeline) - frames, count)).astype(np.int64)
    return timeline, starts, padded


def _even(kept: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray, bool]:
    """(ours) Starts are rint(linspace(0, N - F, T)): halves round to the even number, as NumPy does.

    `auto` is T = ceil(N / F), the least with which no frame is skipped.
    """
    count = -(-len(kept) // s.frames) if s.segments == "auto" else s.segments
    return _spread(kept, count, s.frames)


def _dense(kept: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray, bool]:
    """Every `step` frames while a whole segment fits: the last partial one is dropped, but one always stays."""
    timeline, padded = _repeat_last(kept, s.frames)
    return timeline, np.arange(0, len(timeline) - s.frames + 1, s.step), padded


def _mtl_aqa(kept: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray, bool]:
    """The 103 frames before the end, clips at 0, 10, …, 80 and `last_start`.

    CoRe (datasets/MTLPair.py, models/Backbone.py) reads frames end-103 … end-1 and starts its last clip at 86,
    never seeing frame 102; MUSDL and its successors start it at 87. A video with fewer than 103 frames before
    its end repeats the last one (ours; the authors always have the whole event before the dive).
    """
    timeline, padded = _repeat_last(kept[-WINDOW:], WINDOW)
    return timeline, np.array([*range(0, 90, 10), s.last_start]), padded


def _aqa_7(kept: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray, bool]:
    """The first 103 frames, as CoRe (datasets/SevenPair.py) reads img_00001 … img_00103; clips as in MTL-AQA."""
    timeline, padded = _repeat_last(kept[:WINDOW], WINDOW)
    return timeline, np.array([*range(0, 90, 10), s.last_start]), padded


def _rhythmic_gymnastics(kept: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray, bool]:
    """2 fps, then 12 clips of 16: S4AQA's "about 180" frames do not hold 12 disjoint ones, so they overlap.

    The even placement is (ours); starts round as in `even`.
    """
    return _spread(kept, 12, s.frames)


def _jigsaws(kept: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray, bool]:
    """160 frames over the video (MUSDL JIGSAWS/dataset.py: linspace, truncated), 10 disjoint clips."""
    return _stretch(kept, 160), np.arange(0, 160, 16), len(kept) < 160


def _finediving(kept: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray, bool]:
    """96 frames over the clip (FineDiving datasets/FineDiving_Pair.py: linspace, truncated), 9 clips, step 10."""
    return _stretch(kept, 96), np.arange(0, 90, 10), len(kept) < 96


def _finefs(kept: np.ndarray, s: Sampling) -> tuple[np.ndarray, np.ndarray, bool]:
    """25 fps as the dataset, disjoint clips of 16 (ours: how its released features were cut is not published)."""
    timeline, padded = _repeat_last(kept, s.frames)
    return timeline, np.arange(0, len(timeline) - s.frames + 1, s.frames), padded


def _repeat_last(kept: np.ndarray, least: int) -> tuple[np.ndarray, bool]:
    """`kept`, lengthened to `least` by repeating its last frame."""
    missing = max(0, least - len(kept))
    return np.concatenate((kept, np.repeat(kept[-1:], missing))), missing > 0


def _stretch(kept: np.ndarray, count: int) -> np.ndarray:
    """`count` frames from the first to the last, truncated to the frame before."""
    return kept[np.linspace(0, len(kept) - 1, count, dtype=np.int64)]


_DEFAULT_FPS = {"rhythmic-gymnastics": 2.0, "finefs": 25.0}
"""Rates that belong to a protocol; `Sampling.fps` overrides them."""

_PROTOCOLS: dict[str, Callable[[np.ndarray, Sampling], tuple[np.ndarray, np.ndarray, bool]]] = {
    "even": _even,
    "dense": _dense,
    "mtl-aqa": _mtl_aqa,
    "rhythmic-gymnastics": _rhythmic_gymnastics,
    "jigsaws": _jigsaws,
    "finediving": _finediving,
    "aqa-7": _aqa_7,
    "finefs": _finefs,
}
