"""Decoded frames equal a plain sequential PyAV decode, for every kind of clip, whichever backend reads them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from tests.extract.clips import request

from aqa_extract.decode.child import DecodeFailure, Decoder
from aqa_shared.records import Sampling

# name: (how to write it, the backend that `auto` chooses)
KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "decord"),
    "mov": ({"suffix": ".mov"}, "decord"),
    "mkv": ({"suffix": ".mkv"}, "decord"),
    "avi": ({"suffix": ".avi"}, "av"),
    "ts": ({"suffix": ".ts"}, "av"),
    "flv": ({"suffix": ".flv"}, "av"),
    "mpeg": ({"suffix": ".mpg", "codec": "mpeg2video"}, "av"),
    "mpeg4": ({"codec": "mpeg4"}, "av"),
    "hevc": ({"codec": "libx265"}, "av"),
    "av1": ({"codec": "libsvtav1"}, "av"),
    "vp8 with hidden frames": (
        {"codec": "libvpx", "suffix": ".webm", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
        "av",
    ),
    "vp9": ({"codec": "libvpx-vp9", "suffix": ".webm"}, "av"),
    "key frames only": ({"gop": 1, "b_frames": 0}, "decord"),
    "one long group": ({"gop": 250, "b_frames": 3, "frames": 90}, "decord"),
    "open groups": ({"options": {"x264-params": "open-gop=1:keyint=10"}, "frames": 40}, "decord"),
    "intra refresh": ({"options": {"x264-params": "intra-refresh=1:keyint=10"}, "b_frames": 0}, "decord"),
    "slices": ({"options": {"x264-params": "slices=3"}, "size": (96, 96)}, "decord"),
    "fragmented": ({"container_options": {"movflags": "frag_keyframe+empty_moov"}}, "av"),
    "faststart": ({"container_options": {"movflags": "faststart"}}, "decord"),
    "size no multiple of a block": ({"size": (350, 198)}, "decord"),
    "odd size": ({"codec": "mpeg4", "size": (65, 49)}, "av"),
    "odd size 4:4:4": ({"size": (65, 49), "pix_fmt": "yuv444p"}, "av"),
    "4:2:2": ({"pix_fmt": "yuv422p"}, "av"),
    "ten bits": ({"pix_fmt": "yuv420p10le"}, "av"),
    "full range": ({"pix_fmt": "yuvj420p"}, "av"),
    "gray": ({"codec": "ffv1", "suffix": ".mkv", "pix_fmt": "gray"}, "av"),
    "alpha": ({"codec": "png", "suffix": ".mov", "pix_fmt": "rgba"}, "av"),
    "tagged bt.709": ({"color": {"colorspace": 1, "color_range": 1}}, "decord"),
    "tagged bt.2020": ({"color": {"colorspace": 9}, "suffix": ".mkv"}, "decord"),
    "rotated 90": ({"rotation": 90, "size": (64, 32)}, "av"),
    "rotated 180": ({"rotation": 180, "size": (64, 32)}, "av"),
    "rotated 270": ({"rotation": 270, "size": (64, 32)}, "av"),
    "variable rate": (
        {"stamps": [i * 40 + (i % 3) * 13 + (500 if i > 20 else 0) for i in range(30)],
         "time_base": Fraction(1, 1000)},
        "av",
    ),
    "1 fps": ({"fps": Fraction(1)}, "decord"),
    "240 fps": ({"fps": Fraction(240)}, "decord"),
    "ntsc": ({"fps": Fraction(30000, 1001), "suffix": ".mkv"}, "decord"),
    "starts at 5 s": (
        {"stamps": [5000 + 40 * i for i in range(30)], "time_base": Fraction(1, 1000), "suffix": ".ts"},
        "av",
    ),
    "longer sound": ({"audio_seconds": 4.0}, "decord"),
    "two videos": ({"videos": 2, "suffix": ".mkv"}, "av"),
    "interlaced": ({"interlaced": True}, "av"),
    "five frames": ({"frames": 5}, "decord"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_auto_and_av_equal_the_reference(kind: str, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    how, backend = KINDS[kind]
    path = clips.Clip(**how).write(tmp_path / "clip")
    truth = clips.reference(path)
    for asked, expected in (("auto", backend), ("av", "av")):
        taken = clips.take(decoder.decode(request(path, asked, need_next=True)))
        assert taken.finished.backend == expected
        assert taken.finished.decoded == taken.opened.probe.n_expected == len(truth)
        assert taken.finished.corrupt == 0
        assert taken.positions == taken.opened.wanted.tolist()
        np.testing.assert_array_equal(taken.stack, truth[taken.sources])
        probe = taken.opened.probe
        assert (probe.height, probe.width) == truth.shape[1:3]
        assert probe.times[0] == 0
        assert np.all(np.diff(probe.times) > 0)


@pytest.mark.parametrize("kind", [k for k, (_, backend) in KINDS.items() if backend == "av"])
def test_decord_is_refused_where_it_may_differ(kind: str, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(**KINDS[kind][0]).write(tmp_path / "clip")
    with pytest.raises(DecodeFailure) as e:
        clips.take(decoder.decode(request(path, "decord")))
    assert e.value.reason == "decord_unsupported"


def test_probe_says_what_it_is(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    probe = clips.probe(decoder, clips.Clip(codec="libsvtav1", rotation=90, size=(64, 32)).write(tmp_path / "a"))
    assert (probe.container, probe.codec, probe.width, probe.height) == ("mov,mp4,m4a,3gp,3g2,mj2", "av1", 32, 64)
    assert (probe.rotation, probe.fps, probe.n_expected, probe.vfr) == (90, 25.0, 30, False)
    np.testing.assert_allclose(probe.times, np.arange(30) / 25)
    how, _ = KINDS["variable rate"]
    probe = clips.probe(decoder, clips.Clip(**how).write(tmp_path / "v"))
    assert probe.vfr
    np.testing.assert_allclose(probe.times, np.array(how["stamps"]) / 1000, atol=1e-3)
    interlaced = clips.probe(decoder, clips.Clip(interlaced=True).write(tmp_path / "i"))
    assert interlaced.interlaced
    assert "interlaced" in interlaced.warnings[0]
    ntsc = clips.probe(decoder, clips.Clip(fps=Fraction(30000, 1001), suffix=".mkv").write(tmp_path / "n"))
    assert ntsc.fps == pytest.approx(30000 / 1001, abs=1e-9)
    late = clips.probe(decoder, clips.Clip(**KINDS["starts at 5 s"][0]).write(tmp_path / "l"))
    np.testing.assert_allclose(late.times, np.arange(30) / 25, atol=1e-4)


def test_a_mirrored_video_is_shown_mirrored(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    # PyAV writes rotations only, so the matrix in the file's tkhd box is edited: a = -1 mirrors left to right.
    path = clips.Clip(size=(64, 48)).write(tmp_path / "m")
    truth = clips.reference(path)
    data = path.read_bytes()
    identity = b"".join(v.to_bytes(4, "big") for v in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
    track = data.index(b"tkhd")
    at = data.index(identity, track)
    mirrored = (-(1 << 16) & 0xFFFFFFFF).to_bytes(4, "big") + identity[4:]
    path.write_bytes(data[:at] + mirrored + data[at + 36 :])
    taken = clips.take(decoder.decode(request(path)))
    assert (taken.opened.probe.mirrored, taken.opened.probe.rotation) == (True, 0)
    np.testing.assert_array_equal(taken.stack, truth[:, :, ::-1][taken.sources])


@pytest.mark.parametrize("backend", ["av", "decord"])
def test_only_wanted_frames_come_and_they_are_the_right_ones(
    backend: str, decoder: Decoder, clips: ModuleType, tmp_path: Path
) -> None:
    path = clips.Clip(frames=200, gop=30, b_frames=3).write(tmp_path / "clip")
    truth = clips.reference(path)
    sampling = Sampling(protocol="even", segments=3, segment_frames=9)
    taken = clips.take(decoder.decode(request(path, backend, sampling, need_next=True, chunk_frames=4)))
    assert taken.positions == [*range(10), *range(96, 106), *range(191, 200)]
    np.testing.assert_array_equal(taken.stack, truth[taken.positions])
    assert taken.finished.backend == backend
    # PyAV jumps over what nobody wants; decord reads all.
    assert taken.finished.decoded == 200 if backend == "decord" else taken.finished.decoded < 200


@pytest.mark.parametrize("backend", ["av", "decord"])
def test_parts_and_rates(backend: str, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(frames=100).write(tmp_path / "clip")
    truth = clips.reference(path)
    sampling = Sampling(protocol="even", segments=2, segment_frames=9, fps=5)
    taken = clips.take(decoder.decode(request(path, backend, sampling, start_time=1.0, end_time=3.0)))
    assert taken.opened.plan.timeline.tolist() == list(range(25, 75, 5))
    np.testing.assert_array_equal(taken.stack, truth[taken.sources])
    # Read no further than the part's last frame.
    assert taken.finished.decoded == 71
    # A rate above the source's repeats frames, and each repetition is delivered.
    fast = Sampling(protocol="dense", segment_frames=9, step=9, fps=50)
    taken = clips.take(decoder.decode(request(path, backend, fast, start=10, end=20)))
    assert taken.sources.tolist() == [10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 16, 16, 17, 17, 18, 18]
    np.testing.assert_array_equal(taken.stack, truth[taken.sources])


def test_an_edit_list_hides_frames(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    # Cut in the middle of a group by copying: the file keeps the frames before the cut and hides them.
    source = clips.Clip(frames=60, gop=20, b_frames=0).write(tmp_path / "source")
    path = tmp_path / "cut.mp4"
    with av.open(str(source)) as inp, av.open(str(path), "w") as out:
        stream = inp.streams.video[0]
        copied = out.add_stream_from_template(stream)
        for packet in inp.demux(stream):
            if packet.dts is None:
                continue
            offset = int(7 / (25 * stream.time_base))
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            packet.stream = copied
            out.mux(packet)
    truth = clips.reference(path)
    taken = clips.take(decoder.decode(request(path)))
    assert taken.opened.probe.has_edit_list
    assert taken.finished.decoded == len(truth) == 53
    np.testing.assert_array_equal(taken.stack, truth[taken.sources])
    np.testing.assert_array_equal(truth[0], clips.reference(source)[7])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_lazy_cut_shows_what_can_be_shown(suffix: str, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    source = clips.Clip(frames=60, gop=12, b_frames=0).write(tmp_path / "source")
    path = clips.copy_from(source, tmp_path / "cut", first_packet=7, suffix=suffix)
    truth = clips.reference(path)
    taken = clips.take(decoder.decode(request(path)))
    # 53 packets, of which the first 5 depend on a key frame that is gone.
    assert (taken.openings, taken.finished.decoded, len(truth)) == (1, 48, 48)
    assert taken.finished.backend == "av"
    assert taken.finished.warnings == [
        "its first 5 frames refer to frames before its first key frame, and cannot be shown"
    ]
    np.testing.assert_array_equal(taken.stack, truth[taken.sources])


def _shared_clips() -> list[str]:
    return [
        "decord_flipping_a_pancake.mkv", "decord_video_0.mov", "decord_video_90.mov", "mmaction2_demo.mp4",
        "mmaction2_ntu.avi", "mmaction2_stdet.mp4", "paddle_example.avi", "torchcodec_h265_10bits.mp4",
        "torchcodec_nasa_13013.mp4", "v_GGSY1Qvo990.mp4", "hostile/c0.mp4", "hostile/c105.mp4",
        "hostile/c40.mp4", "hostile/c9.mp4", "hostile/c98.mp4",
    ]  # fmt: skip


@pytest.mark.parametrize("name", _shared_clips())
def test_real_clips_equal_the_reference_or_are_refused(
    name: str, decoder: Decoder, clips: ModuleType, shared_dir: Path
) -> None:
    path = shared_dir / "videos" / name
    truth = clips.reference(path)
    sampling = Sampling(protocol="even", segments=4)
    taken = clips.take(decoder.decode(request(path, sampling=sampling, need_next=True)))
    np.testing.assert_array_equal(taken.stack, truth[taken.sources])
    assert taken.opened.probe.n_expected == len(truth)
    forced = request(path, "decord", sampling, need_next=True, deadline=30.0)
    if taken.opened.probe.decord_refusal:
        assert taken.finished.backend == "av"
        with pytest.raises(DecodeFailure) as e:
            clips.take(decoder.decode(forced))
        assert e.value.reason == "decord_unsupported"
    else:
        assert taken.finished.backend == "decord"
        np.testing.assert_array_equal(clips.take(decoder.decode(forced)).stack, taken.stack)


@pytest.mark.parametrize(
    ("name", "reason"), [("cricket_rgb.gif", "forbidden_format"), ("decord_corrupted.mp4", "corrupt")]
)
@pytest.mark.parametrize("backend", ["auto", "av"])
def test_real_files_that_are_refused(
    name: str, reason: str, backend: str, decoder: Decoder, clips: ModuleType, shared_dir: Path
) -> None:
    with pytest.raises(DecodeFailure) as e:
        clips.take(decoder.decode(request(shared_dir / "videos" / name, backend)))
    assert e.value.reason == reason
