"""Every way of writing a video that FFmpeg offers, as far as it can lead a decoder astray: no frame may be wrong.

Truth is the video before it was remuxed: each frame that is delivered must be one of its frames, bit for bit, in
order, at its own time. A sequential decode of the remuxed file says how many there must be.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from tests.extract.clips import EVERY_FRAME, x264

from aqa_extract.decode.child import DecodeFailure, Decoder, DecodeRequest
from aqa_shared.records import Sampling, Video

FEW_FRAMES = Sampling(protocol="even", segments=2, segment_frames=9)
"""Leaves frames out."""
FRAMES = 48


VARIABLE = [i * 40 + (i % 3) * 13 + (500 if i > 20 else 0) for i in range(FRAMES)]

H264: dict[str, dict[str, Any]] = {
    f"{b} B-frames, {name} groups": {"options": x264(bframes=b, b_pyramid=pyramid, b_adapt=0, scenecut=0, **group)}
    for b, pyramid in ((0, 0), (2, 0), (3, 2))
    for name, group in (
        ("closed", {"keyint": 12}),
        ("open", {"keyint": 12, "open_gop": 1}),
        ("one long", {"keyint": 250}),
    )
} | {
    "29.97 fps": {"fps": Fraction(30000, 1001)},
    "variable rate": {"stamps": VARIABLE, "time_base": Fraction(1, 1000)},
    "infinite groups": {"options": x264(keyint="infinite", intra_refresh=1)},
}  # fmt: skip

OTHERS: dict[str, dict[str, Any]] = {
    "hevc": {"codec": "libx265", "options": {"x265-params": "keyint=12:open-gop=1:bframes=3:log-level=none"}},
    "vp9": {"codec": "libvpx-vp9"},
    "av1": {"codec": "libsvtav1"},
    "mpeg4": {"codec": "mpeg4"},
}  # fmt: skip


def movie(flags: str = "", **options: str) -> dict[str, Any]:
    """How to mux MP4 with these flags."""
    return {"suffix": ".mp4", "options": {**({"movflags": flags} if flags else {}), **options}}


MP4: dict[str, dict[str, Any]] = {
    "mp4": movie(),
    "faststart": movie("faststart"),
    "moov at the front": movie(moov_size="20000"),
    "without edit list": movie(use_editlist="0"),
    "negative composition offsets": movie("negative_cts_offsets"),
    "timescale of 25": movie(video_track_timescale="25"),
    "fragments at key frames": movie("frag_keyframe"),
    "empty moov": movie("frag_keyframe+empty_moov"),
    "default base": movie("frag_keyframe+empty_moov+default_base_moof"),
    "delayed moov": movie("frag_keyframe+delay_moov"),
    "fragments of 0.3 s": movie("empty_moov", frag_duration="300000"),
    "small fragments": movie("empty_moov", frag_size="2000"),
    "a fragment a frame": movie("empty_moov+frag_every_frame"),
    "dash flag": movie("dash+delay_moov", frag_duration="300000"),
    "dash flag, key frames": movie("dash+frag_keyframe+delay_moov"),
    "global sidx": movie("dash+delay_moov+global_sidx", frag_duration="300000"),
    "without sidx": movie("dash+delay_moov+skip_sidx", frag_duration="300000"),
    "without mfra": movie("frag_keyframe+empty_moov+skip_trailer"),
    "cmaf": movie("cmaf+frag_keyframe+delay_moov"),
    "cmaf, 0.3 s": movie("cmaf+delay_moov", frag_duration="300000"),
    "hybrid": movie("hybrid_fragmented"),
    "smooth streaming": {"suffix": ".ismv", "format": "ismv"},
    "mov": {"suffix": ".mov"},
    "mov, fragments": {"suffix": ".mov", "options": {"movflags": "frag_keyframe+empty_moov"}},
    "3gp": {"suffix": ".3gp"},
    "ipod": {"suffix": ".m4v", "format": "ipod"},
}  # fmt: skip

MKV: dict[str, dict[str, Any]] = {
    "mkv": {"suffix": ".mkv"},
    "cues at the front": {"suffix": ".mkv", "options": {"cues_to_front": "1"}},
    "room for cues": {"suffix": ".mkv", "options": {"reserve_index_space": "5000"}},
    "short clusters": {"suffix": ".mkv", "options": {"cluster_time_limit": "100"}},
    "small clusters": {"suffix": ".mkv", "options": {"cluster_size_limit": "2000"}},
    "live": {"suffix": ".mkv", "options": {"live": "1"}},
    "dash mkv": {"suffix": ".mkv", "options": {"dash": "1"}},
}  # fmt: skip

ELSE: dict[str, dict[str, Any]] = {
    "avi": {"suffix": ".avi"},
    "ts": {"suffix": ".ts"},
    "flv": {"suffix": ".flv"},
    "asf": {"suffix": ".asf"},
}  # fmt: skip

KEY = -1
"""Stands for the second key frame's packet, the first where there is no second."""

# name: keyword arguments of clips.copy_from.
CUTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "from a key frame": {"first_packet": KEY, "shift": -0.48},
    "from a key frame, old times": {"first_packet": KEY},
    "edit list of 0.2 s": {"shift": -0.2},
    "from a key frame, edit list": {"first_packet": KEY, "shift": -0.6},
    "between key frames": {"first_packet": 7, "shift": -0.28},
    "short of the end": {"last_packet": 41},
    "5 s late": {"shift": 5.0},
    "negative times kept": {"shift": -0.2, "options": {"avoid_negative_ts": "disabled"}},
    "negative times made zero": {"shift": -0.2, "options": {"avoid_negative_ts": "make_zero"}},
    "late times made zero": {"shift": 5.0, "options": {"avoid_negative_ts": "make_zero"}},
    "twice": {"parts": ((0, None), (0, None))},
    "joined between key frames": {"parts": ((0, 29), (7, None))},
    "joined cuts": {"parts": ((7, 29), (7, None))},
}  # fmt: skip


UNKNOWABLE = (
    # ASF holds decoding times only, so nobody can tell a leading picture from a lost one.
    *(f"/ asf / {cut}" for cut in CUTS),
    # FFmpeg's muxer calls the first packet a key frame here, which it is not.
    "hevc / fragments at key frames / between key frames",
)
"""Refused although a plain decode gives right frames: from the file it cannot be told from damage."""


@dataclass
class Base:
    """A video before it is remuxed."""

    path: Path
    index: dict[bytes, int]
    """Which frame has these pixels."""
    times: np.ndarray
    """float64 (frames,), seconds."""
    key: int
    """The packet of the second key frame; 0 if there is none."""

    @classmethod
    def write(cls, clips: ModuleType, folder: Path, how: dict[str, Any]) -> Base:
        path = clips.Clip(**{"frames": FRAMES, "suffix": ".mp4", **how}).write(folder / "base")
        frames = clips.reference(path)
        index = {frame.tobytes(): i for i, frame in enumerate(frames)}
        assert len(index) == FRAMES, "every frame must be told from every other"
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            packets = [p for p in container.demux(stream) if p.pts is not None]
            times = np.array(sorted(p.pts for p in packets)) * float(stream.time_base or 0)
            keys = [i for i, p in enumerate(packets) if p.is_keyframe]
        return cls(path, index, times, keys[1] if len(keys) > 1 else 0)


@dataclass
class Sweep:
    """Remuxes, decodes, compares and counts."""

    clips: ModuleType
    folder: Path
    decoder: Decoder
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def run(self, name: str, base: Base, how: dict[str, Any], cut: dict[str, Any]) -> None:
        """One case."""
        options = {**how.get("options", {}), **cut.get("options", {})}
        if cut.get("first_packet") == KEY:
            cut = {**cut, "first_packet": base.key}
        self.counts["cases"] += 1
        try:
            path = self.clips.copy_from(base.path, self.folder / "case", **{**how, **cut, "options": options})
        except (av.error.FFmpegError, ValueError):
            self.counts["not written: FFmpeg refuses"] += 1
            return
        request = DecodeRequest(
            path=str(path), video=Video(id="v", path=str(path)), sampling=EVERY_FRAME, deadline=120.0
        )
        try:
            taken = self.clips.take(self.decoder.decode(request))
        except DecodeFailure as e:
            self.counts[f"refused: {e.reason}"] += 1
            if not name.endswith(UNKNOWABLE) and (sound := self._sound(path, base)) is not None:
                self.wrong.append(f"{name}: refused although {sound} frames are right: {e}")
            return
        self.counts[f"read with {taken.finished.backend}"] += 1
        if any(w.startswith("decord_failed") for w in taken.finished.warnings):
            self.counts["given up by decord"] += 1
        problem = self._problem(name, path, base, taken)
        if taken.finished.backend == "decord" and not problem:
            few = self.clips.take(self.decoder.decode(replace(request, sampling=FEW_FRAMES)))
            problem = self._problem(name, path, base, few)
        if problem:
            self.wrong.append(f"{name}, {taken.finished.backend}: {problem}; {taken.finished.warnings}")

    def _sound(self, path: Path, base: Base) -> int | None:
        """How many frames a plain decode gives, where all of them are right and none between them is missing."""
        try:
            frames = self.clips.reference(path)
        except (av.error.FFmpegError, ValueError, AssertionError):  # none of the frames, or no video at all
            return None
        shown = [base.index.get(frame.tobytes(), -1) for frame in frames]
        whole = all(b in (a + 1, 0) for a, b in itertools.pairwise(shown))
        return len(frames) if len(frames) > 1 and -1 not in shown and whole else None

    def _problem(self, name: str, path: Path, base: Base, taken: Any) -> str:
        truth = self.clips.reference(path)
        if taken.opened.probe.n_expected != len(truth):
            return f"{taken.opened.probe.n_expected} frames, a sequential decode gives {len(truth)}"
        if not np.array_equal(taken.stack, truth[taken.sources]):
            return f"{np.any(taken.stack != truth[taken.sources], axis=(1, 2, 3)).sum()} frames differ from a decode"
        shown = [base.index.get(frame.tobytes(), -1) for frame in taken.stack]
        if "joined" in name:  # what a decoder makes of references to another group is all there is to know
            return ""
        if -1 in shown:
            return f"{shown.count(-1)} frames are none of the video's: {shown}"
        times = taken.opened.probe.times[taken.sources]
        for a, b, step, sources in zip(shown, shown[1:], np.diff(times), np.diff(taken.sources), strict=False):
            due = base.times[b] - base.times[a]
            if b - a == sources and abs(step - due) > 0.0021 and self._keeps_times(path, taken):
                return f"frames {a} and {b} are {step:.4f} s apart, not {due:.4f}"
        turns = sum(b <= a for a, b in itertools.pairwise(shown))
        return f"out of order: {shown}" if turns > len(truth) // FRAMES else ""

    def _keeps_times(self, path: Path, taken: Any) -> bool:
        """Whether FFmpeg has written the times that it was given, each of them once."""
        odd = any("timestamps" in warning for warning in taken.opened.probe.warnings)
        return not odd and path.suffix in (".mp4", ".mov", ".mkv", ".m4v", ".3gp", ".ts")

    def report(self) -> str:
        """The counts, a line each."""
        return "\n".join(f"{count:6d} {what}" for what, count in sorted(self.counts.items()))


@pytest.fixture
def sweep(clips: ModuleType, tmp_path: Path) -> Iterator[Sweep]:
    with Decoder() as decoder:
        yield Sweep(clips, tmp_path, decoder)


def test_what_led_decord_astray_is_read_right(sweep: Sweep) -> None:
    """The combinations that gave wrong frames, and their plain neighbours."""
    bases = {name: H264[name] for name in ("2 B-frames, closed groups", "3 B-frames, open groups", "29.97 fps")}
    muxers = {name: MP4[name] for name in ("mp4", "without edit list", "dash flag", "fragments of 0.3 s")}
    cuts = ("whole", "from a key frame", "edit list of 0.2 s", "joined between key frames")
    for base_name, how in bases.items():
        base = Base.write(sweep.clips, sweep.folder, how)
        for muxer, container in {**muxers, "mkv": MKV["mkv"]}.items():
            for cut in cuts:
                sweep.run(f"{base_name} / {muxer} / {cut}", base, container, CUTS[cut])
    assert sweep.wrong == []
    assert sweep.counts["cases"] == 60
    assert sweep.counts["read with decord"] >= 10
    assert sweep.counts["read with av"] >= 30


@pytest.mark.slow
@pytest.mark.parametrize("base_name", [*H264, *OTHERS])
def test_every_container_flag_and_cut(base_name: str, sweep: Sweep, capsys: pytest.CaptureFixture[str]) -> None:
    base = Base.write(sweep.clips, sweep.folder, {**H264, **OTHERS}[base_name])
    for muxer, how in {**MP4, **MKV, **ELSE}.items():
        for cut in CUTS:
            sweep.run(f"{base_name} / {muxer} / {cut}", base, how, CUTS[cut])
    with capsys.disabled():
        print(f"\n{base_name}\n{sweep.report()}")
    assert sweep.wrong == []
    assert sweep.counts["read with av"] >= 100
    assert (sweep.counts["read with decord"] > 0) == (base_name in H264 and base_name != "variable rate")
