"""What is damage and what is not: against the pixels that were coded, and with --accept-damaged."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from tests.extract.clips import Clip, Taken, copy_from, reference, request, take

from aqa_extract.decode.child import DecodeFailure, Decoder
from aqa_shared.errors import ExitCode
from aqa_shared.store import contents


def decode(decoder: Decoder, path: Path, backend: Any = "auto", accept: bool = False, **part: int) -> Taken:
    return take(decoder.decode(request(path, backend, deadline=120.0, accept_damaged=accept, **part)))


def with_sei(source: Path, target: Path) -> Path:
    """`source` with a private, truncated SEI before each picture, as some cameras write."""
    unit = bytes([6, 195, 255, 255, 255, 123, *range(1, 40), 128])  # announces 888 bytes, has 39
    with av.open(str(source)) as inp, av.open(str(target), "w") as out:
        stream = inp.streams.video[0]
        copied = out.add_stream_from_template(stream)
        for packet in inp.demux(stream):
            if packet.dts is None:
                continue
            changed = av.Packet(len(unit).to_bytes(4, "big") + unit + bytes(packet))
            changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
            changed.is_keyframe, changed.stream = packet.is_keyframe, copied
            out.mux(changed)
    return target


@pytest.mark.parametrize("backend", ["auto", "av"])
def test_a_message_about_metadata_is_a_warning(backend: str, decoder: Decoder, tmp_path: Path) -> None:
    plain = Clip(frames=40).write(tmp_path / "plain")
    taken = decode(decoder, with_sei(plain, tmp_path / "sei.mp4"), backend)
    np.testing.assert_array_equal(taken.stack, reference(plain)[taken.sources])
    assert taken.finished.corrupt == 0
    assert any("SEI type 195" in w for w in taken.finished.warnings)
    assert not any(w.startswith("degraded") for w in taken.finished.warnings)


OPEN_GROUPS = {
    "hevc": Clip("libx265", options={"x265-params": "keyint=20:min-keyint=20:open-gop=1:bframes=3:b-adapt=0:"
                                     "scenecut=0:log-level=none"}, frames=60),
    "h264": Clip(options={"x264-params": "keyint=20:min-keyint=20:open-gop=1:bframes=3:b-adapt=0:scenecut=0"},
                 frames=60),
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("codec", OPEN_GROUPS)
def test_leading_pictures_that_cannot_exist_are_no_damage(
    codec: str, suffix: str, decoder: Decoder, tmp_path: Path
) -> None:
    source = OPEN_GROUPS[codec].write(tmp_path / "source")
    with av.open(str(source)) as container:
        keys = [i for i, p in enumerate(container.demux(video=0)) if p.is_keyframe]
    cut = copy_from(source, tmp_path / "cut", keys[1], suffix=suffix)
    whole, shown = reference(source), reference(cut)
    np.testing.assert_array_equal(shown, whole[-len(shown) :])
    taken = decode(decoder, cut)
    assert (taken.openings, taken.finished.decoded, taken.finished.corrupt) == (1, len(shown), 0)
    np.testing.assert_array_equal(taken.stack, shown[taken.sources])
    np.testing.assert_allclose(taken.opened.probe.times, np.arange(len(shown)) / 25, atol=1e-3)


def test_a_damaged_first_key_frame_is_damage(decoder: Decoder, tmp_path: Path) -> None:
    path = Clip(frames=48, suffix=".mkv", size=(160, 120)).write(tmp_path / "clip")
    with av.open(str(path)) as container:
        first = bytes(next(container.demux(video=0)))
    data = path.read_bytes()
    at = data.index(first)
    path.write_bytes(data[:at] + bytes(len(first)) + data[at + len(first) :])
    with pytest.raises(DecodeFailure) as e:
        decode(decoder, path)
    assert e.value.reason in ("corrupt", "frame_count_mismatch")


def test_empty_slots_of_an_avi_are_repeats(decoder: Decoder, tmp_path: Path) -> None:
    slots = [i + i // 2 for i in range(60)]
    dropped = Clip("mpeg4", ".avi", 60, b_frames=0, stamps=slots, time_base=Fraction(1, 25), options={"bf": "0"}).write(
        tmp_path / "dropped"
    )
    empty = slots[-1] + 1 - 60
    # FFmpeg's muxer adds one after the last picture.
    assert dropped.read_bytes().split(b"idx1")[0].count(b"00dc\0\0\0\0") == empty + 1
    taken = decode(decoder, dropped)
    assert taken.finished.decoded == 60
    np.testing.assert_array_equal(taken.stack, reference(dropped)[taken.sources])
    np.testing.assert_allclose(taken.opened.probe.times, np.array(slots) / 25)
    assert taken.finished.warnings == [
        f"{empty} of its {slots[-1] + 1} slots are empty: the picture before them is shown longer"
    ]
    data = dropped.read_bytes()
    dropped.write_bytes(data[: len(data) // 2])
    with pytest.raises(DecodeFailure, match="truncated"):
        decode(decoder, dropped)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_truncated_video_can_be_accepted(suffix: str, decoder: Decoder, tmp_path: Path) -> None:
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    whole = Clip(frames=100, suffix=suffix, container_options=options).write(tmp_path / "whole")
    truth, data = reference(whole), whole.read_bytes()
    whole.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DecodeFailure, match="--accept-damaged") as e:
        decode(decoder, whole)
    assert e.value.reason == "frame_count_mismatch"
    taken = decode(decoder, whole, accept=True)
    assert 40 < taken.finished.decoded < 80
    # The last picture may be cut through; those before are as they were.
    good = taken.sources < taken.finished.decoded - 4
    np.testing.assert_array_equal(taken.stack[good], truth[taken.sources[good]])
    assert taken.finished.accepted_damage["missing"] == 100 - taken.finished.decoded
    assert any("truncated" in w for w in taken.finished.warnings)


def test_damaged_frames_can_be_accepted(decoder: Decoder, tmp_path: Path) -> None:
    path = Clip(frames=60, size=(160, 120)).write(tmp_path / "clip")
    assert decode(decoder, path, accept=True).finished.accepted_damage is None
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    with pytest.raises(DecodeFailure, match="--accept-damaged"):
        decode(decoder, path)
    taken = decode(decoder, path, accept=True)
    accepted = taken.finished.accepted_damage
    assert accepted["damaged"] > 0
    assert accepted["missing"] + taken.finished.decoded == 60
    # A part that ends before the damage has none.
    assert decode(decoder, path, accept=True, start=0, end=12).finished.accepted_damage is None


def test_nothing_that_does_not_decode_is_accepted(decoder: Decoder, tmp_path: Path) -> None:
    path = Clip().write(tmp_path / "clip")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DecodeFailure) as e:
        decode(decoder, path, accept=True)
    assert e.value.reason == "no_moov"


DAMAGED = {
    "h264": Clip(),
    "h264 cavlc": Clip(options={"x264-params": "cabac=0:bframes=2:keyint=20"}),
    "h264 slices": Clip(options={"x264-params": "slices=4:open-gop=1:keyint=12:bframes=3"}),
    "h264 mkv": Clip(suffix=".mkv"),
    "h264 ts": Clip(suffix=".ts"),
    "hevc": Clip("libx265", options={"x265-params": "log-level=none:keyint=12:bframes=3"}),
    "mpeg4": Clip("mpeg4"),
    "mpeg2 ts": Clip("mpeg2video", ".ts"),
    "vp9": Clip("libvpx-vp9", ".webm"),
    "vp8": Clip("libvpx", ".webm"),
    "av1": Clip("libsvtav1"),
    "mjpeg": Clip("mjpeg", ".avi", pix_fmt="yuvj420p"),
}
SEEN = {"h264": 0.85, "h264 cavlc": 0.7, "h264 slices": 0.85, "h264 mkv": 0.85, "mpeg4": 0.7, "av1": 0.95}
"""Least share of files with wrong pixels that must be noticed; elsewhere most flips give another valid stream."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_against_the_pixels(
    kind: str, decoder: Decoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Random bits are turned over: what is right must be taken, and what is wrong noticed where that can be."""
    clip = DAMAGED[kind]
    path = Clip(**{**vars(clip), "frames": 40, "size": (160, 120)}).write(tmp_path / "clean")
    data, truth = path.read_bytes(), reference(path)
    counts: Counter[str] = Counter()
    for seed in range(60):
        rng = random.Random(seed)
        broken = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 3, 20])):
            broken[rng.randrange(len(data) // 6, len(data) * 19 // 20)] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            right = np.array_equal(reference(path), truth)
        except (av.error.FFmpegError, ValueError, IndexError, AssertionError):  # none of the frames, or no video at all
            right = False
        try:
            finished = decode(decoder, path).finished
            noticed = "noticed" if any("degraded" in w for w in finished.warnings) else "taken"
        except DecodeFailure:
            noticed = "refused"
        counts[f"{'right' if right else 'wrong'}, {noticed}"] += 1
    with capsys.disabled():
        print(f"\n{kind}: {dict(sorted(counts.items()))}")
    assert counts["right, refused"] == 0
    wrong = sum(n for name, n in counts.items() if name.startswith("wrong"))
    assert wrong - counts["wrong, taken"] >= SEEN.get(kind, 0.0) * wrong


def test_a_run_accepts_what_it_had_quarantined_and_says_so(tmp_path: Path, i3d_rgb_weights: str) -> None:
    (tmp_path / "in").mkdir()
    cut = Clip(frames=60, container_options={"movflags": "faststart"}).write(tmp_path / "in" / "cut")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    Clip(frames=20).write(tmp_path / "in" / "whole")
    command = [Path(sys.executable).parent / "aqa-extract", tmp_path / "in", "--out", tmp_path / "s.zarr"]
    command += ["--segments", "1", "--short-side", "32", "--crop", "32", "--weights", f"rgb={i3d_rgb_weights}"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *more], capture_output=True, text=True, timeout=300)

    refused = run()
    assert (refused.returncode, "--accept-damaged" in refused.stdout) == (ExitCode.QUARANTINED, True)
    accepted = run("--accept-damaged")
    assert accepted.returncode == ExitCode.OK, accepted.stderr
    assert "cut.mp4: accepted with" in accepted.stderr
    known = contents(tmp_path / "s.zarr")
    assert known is not None
    assert known.meta("whole.mp4")["accepted_damage"] is None
    assert known.meta("cut.mp4")["accepted_damage"]["missing"] > 10
    assert run().returncode == ExitCode.OK  # what the store has, it keeps
