"""Frames after a jump equal those of a sequential decode, bit for bit, or there is no jump."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from tests.extract.clips import request as of_clip
from tests.extract.clips import x264

from aqa_extract.decode import seek
from aqa_extract.decode.child import DecodeFailure, Decoder, DecodeRequest
from aqa_shared.records import ActorSettings, Sampling

FRAMES = 240
EVERY_FRAME = Sampling(protocol="dense", segment_frames=9, step=9)


def request(path: Path, decoder: str = "av", sampling: Sampling = EVERY_FRAME, **part: Any) -> DecodeRequest:
    return of_clip(path, decoder, sampling, **part)


def x265(**parameters: Any) -> dict[str, str]:
    return {"x265-params": x264(log_level="none", **parameters)["x264-params"]}


# name: (how to write it, whether jumps are made)
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "h264 mp4": ({}, True),
    "h264 mkv": ({"suffix": ".mkv"}, True),
    "h264 mov": ({"suffix": ".mov"}, True),
    "h264 no b-frames": ({"b_frames": 0}, True),
    "h264 no b-frames mkv": ({"b_frames": 0, "suffix": ".mkv"}, True),
    "h264 many b-frames": ({"b_frames": 8, "options": x264(b_pyramid="strict", ref=6)}, True),
    "h264 b-pyramid": ({"b_frames": 5, "options": x264(b_pyramid="normal", ref=5, weightp=2)}, True),
    "h264 fixed groups": ({"options": x264(scenecut=0, keyint=30, min_keyint=30)}, True),
    "h264 4:4:4": ({"pix_fmt": "yuv444p", "options": x264(keyint=30)}, True),
    "h264 ten bits": ({"pix_fmt": "yuv420p10le", "options": x264(keyint=30)}, True),
    "h264 slices": ({"options": x264(slices=4, keyint=30), "size": (96, 96)}, True),
    "h264 aud": ({"options": x264(aud=1, keyint=30), "suffix": ".mkv"}, True),
    "h264 fragmented": ({"container_options": {"movflags": "frag_keyframe+empty_moov"}}, True),
    "h264 fragments of one frame": ({"container_options": {"movflags": "frag_every_frame+empty_moov"}}, True),
    "h264 faststart": ({"container_options": {"movflags": "faststart"}}, True),
    "h264 sound": ({"audio_seconds": 9.0, "suffix": ".mkv"}, True),
    "h264 turned": ({"rotation": 90}, True),
    "h264 variable rate": ({"stamps": [40 * i + 13 * (i % 3) for i in range(FRAMES)]}, True),
    "hevc closed": ({"codec": "libx265", "options": x265(open_gop=0, keyint=24)}, True),
    "hevc closed mkv": ({"codec": "libx265", "options": x265(open_gop=0, keyint=24), "suffix": ".mkv"}, True),
    "hevc open": ({"codec": "libx265", "options": x265(open_gop=1, keyint=24, bframes=4)}, True),
    "hevc open mkv": ({"codec": "libx265", "options": x265(open_gop=1, keyint=24), "suffix": ".mkv"}, True),
    "hevc radl": ({"codec": "libx265", "options": x265(open_gop=0, keyint=24, radl=2, bframes=4)}, True),
    "vp9": ({"codec": "libvpx-vp9", "suffix": ".webm"}, True),
    "vp9 mp4": ({"codec": "libvpx-vp9"}, True),
    "vp9 hidden frames": (
        {"codec": "libvpx-vp9", "suffix": ".webm", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
        True,
    ),
    "av1": ({"codec": "libsvtav1"}, True),
    "av1 mkv": ({"codec": "libsvtav1", "suffix": ".mkv"}, True),
    "motion jpeg": ({"codec": "mjpeg", "suffix": ".mov", "pix_fmt": "yuvj420p"}, True),
    "prores": ({"codec": "prores_ks", "suffix": ".mov", "pix_fmt": "yuv422p10le"}, True),
    # Where jumps cannot be proven.
    "h264 open": ({"options": x264(open_gop=1, keyint=24, scenecut=0)}, False),
    "h264 open mkv": ({"options": x264(open_gop=1, keyint=24, scenecut=0), "suffix": ".mkv"}, False),
    "h264 intra refresh": ({"options": x264(intra_refresh=1, keyint=24, scenecut=0), "b_frames": 0}, False),
    "h264 one group": ({"options": x264(scenecut=0, keyint=1000), "gop": 1000}, False),
    "h264 ts": ({"suffix": ".ts"}, False),
    "h264 avi": ({"suffix": ".avi"}, False),
    "h264 flv": ({"suffix": ".flv"}, False),
    "h264 interlaced": ({"interlaced": True, "options": x264(keyint=24)}, False),
    "mpeg4": ({"codec": "mpeg4"}, False),
    "mpeg2": ({"codec": "mpeg2video", "suffix": ".mkv"}, False),
    "vp8": ({"codec": "libvpx", "suffix": ".webm"}, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_parts_equal_a_sequential_decode(kind: str, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    how, jumps = KINDS[kind]
    path = clips.Clip(**{"frames": FRAMES, "gop": 24, **how}).write(tmp_path / "clip")
    truth = clips.reference(path)
    entries = clips.probe(decoder, path).entries
    assert (len(entries) > 1) == jumps
    starts = {100, 151, 231, *entries[-4::2]}
    for start in sorted(s for s in starts if seek.MIN_SKIP <= s <= FRAMES - 9):
        taken = clips.take(decoder.decode(request(path, start=start, end=start + 9)))
        assert taken.openings == 1, taken.finished.warnings  # no fall-back
        np.testing.assert_array_equal(taken.stack, truth[taken.sources])
        # No more than a group of pictures, and one entry earlier where the index says so.
        assert taken.finished.decoded <= (9 + 2 * 30 if jumps else start + 9)
    if jumps:  # everything after one entry, to the end of the file
        taken = clips.take(decoder.decode(request(path, start=entries[len(entries) // 2] + 5)))
        assert taken.finished.decoded < FRAMES - seek.MIN_SKIP
        np.testing.assert_array_equal(taken.stack, truth[taken.sources])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("first", [0, 24, 31])
def test_parts_of_cuts(suffix: str, first: int, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    """A stream copied from a key frame on can be jumped in; one copied from between key frames is read."""
    source = clips.Clip(frames=FRAMES, gop=24, b_frames=0, options=x264(scenecut=0)).write(tmp_path / "source")
    path = clips.copy_from(source, tmp_path / "cut", first, suffix)
    truth = clips.reference(path)
    taken = clips.take(decoder.decode(request(path, start=150, end=159)))
    np.testing.assert_array_equal(taken.stack, truth[taken.sources])
    assert (taken.finished.decoded < 100) == (first != 31)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_parts_of_random_clips(seed: int, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    """Encoders, containers, groups, references and cuts at random: never another frame, never a fall-back."""
    rng = random.Random(seed)
    codec = rng.choice(["libx264", "libx264", "libx265", "libvpx-vp9"])
    suffix = rng.choice([".mp4", ".webm"] if codec == "libvpx-vp9" else [".mp4", ".mov", ".mkv"])
    common = {"keyint": rng.randint(5, 60), "bframes": rng.randint(0, 7), "open_gop": rng.randint(0, 1)}
    common |= {"ref": rng.randint(1, 6), "scenecut": rng.choice([0, 40]), "b_adapt": rng.randint(0, 2)}
    options = {
        "libx264": x264(**common, weightp=rng.randint(0, 2), b_pyramid=rng.choice(["none", "strict", "normal"])),
        "libx265": x265(**common, radl=rng.choice([0, 2]) if common["bframes"] > 3 else 0),
        "libvpx-vp9": {"auto-alt-ref": rng.choice("016"), "lag-in-frames": rng.choice(["0", "16"]), "cpu-used": "8"},
    }[codec]
    flags = rng.choice(["", "faststart", "frag_keyframe+empty_moov", "negative_cts_offsets", "cmaf+frag_keyframe"])
    container = {"movflags": flags} if flags and suffix in (".mp4", ".mov") else {}
    clip = clips.Clip(
        codec=codec,
        suffix=suffix,
        frames=rng.randint(150, 400),
        gop=common["keyint"],
        b_frames=common["bframes"],
        options=options,
        container_options=container,
        pix_fmt=rng.choice(["yuv420p", "yuv420p", "yuv444p"]),
    )
    path = clip.write(tmp_path / "clip")
    if codec != "libvpx-vp9" and rng.random() < 0.3:
        path = clips.copy_from(path, tmp_path / "cut", rng.choice([0, common["keyint"]]), suffix)
    truth = clips.reference(path)
    if clips.probe(decoder, path).n_expected != len(truth):
        pytest.skip("a cut that lacks frames: numbered by what can be decoded")
    for start in rng.sample(range(seek.MIN_SKIP, len(truth) - 9), 4):
        taken = clips.take(decoder.decode(request(path, start=start, end=start + 9)))
        assert taken.openings == 1, taken.finished.warnings
        np.testing.assert_array_equal(taken.stack, truth[taken.sources])


def test_sparse_segments_jump_over_what_nobody_looks_at(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(frames=600, gop=24, options=x264(scenecut=0)).write(tmp_path / "clip")
    truth = clips.reference(path)
    sampling = Sampling(protocol="even", segments=3, segment_frames=9)
    for backend in ("av", "auto"):  # auto takes the decoder that has less to do
        taken = clips.take(decoder.decode(request(path, backend, sampling)))
        assert taken.finished.backend == "av"
        assert taken.positions == [*range(9), *range(296, 305), *range(591, 600)]
        np.testing.assert_array_equal(taken.stack, truth[taken.positions])
        assert taken.finished.decoded < 120
    assert clips.take(decoder.decode(request(path, "auto"))).finished.backend == "decord"
    # What a video would cost is known beforehand; the actor's looks leave nothing to jump over.
    looks = replace(request(path, "auto", sampling), actor=ActorSettings(every=2))
    for wanted, backend in ((request(path, "auto", sampling), "av"), (looks, "decord"), (request(path), "av")):
        opened, finished = decoder.open(wanted), clips.take(decoder.decode(wanted)).finished
        assert (opened.backend, opened.decoded) == (finished.backend, finished.decoded)
        assert finished.backend == backend
    assert decoder.open(request(path, start=200, end=290)).decoded < 200


def test_an_index_that_lies_is_found_out(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(frames=1500, gop=24, options=x264(scenecut=0), suffix=".mkv").write(tmp_path / "clip")
    truth = clips.reference(path)
    data = bytearray(path.read_bytes())
    # Every CueClusterPosition (0xf1) of the Cues is made to name the last cluster.
    cues = data.rindex(b"\x1c\x53\xbb\x6b")
    places = [at for at in range(cues, len(data) - 4) if data[at : at + 2] == b"\xf1\x82"]
    assert len(places) > 3
    for at in places:
        data[at + 2 : at + 4] = data[places[-1] + 2 :][:2]
    path.write_bytes(data)
    taken = clips.take(decoder.decode(request(path, start=300, end=309)))
    np.testing.assert_array_equal(taken.stack, truth[taken.sources])
    assert taken.openings == 2
    assert taken.finished.decoded == 309
    assert any("a jump in the video went wrong" in w for w in taken.finished.warnings)


def test_damage_counts_where_frames_are_decoded(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(frames=FRAMES, gop=24, options=x264(scenecut=0)).write(tmp_path / "clip")
    truth = clips.reference(path)
    with av.open(str(path)) as container:
        spans = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    for at, size in spans[40:80]:
        data[at + size // 2 : at + size - 2] = bytes(255 - b for b in data[at + size // 2 : at + size - 2])
    path.write_bytes(data)
    taken = clips.take(decoder.decode(request(path, start=200, end=209)))
    np.testing.assert_array_equal(taken.stack, truth[taken.sources])
    assert taken.finished.corrupt == 0
    with pytest.raises(DecodeFailure) as e:
        clips.take(decoder.decode(request(path, start=50, end=209)))
    assert e.value.reason == "corrupt"


def test_jumps_by_hand() -> None:
    entries = (0, 100, 200, 320)
    assert seek.next_entry(entries, 0, 99) is None  # the first frame is an entry, and no jump
    assert seek.next_entry(entries, 0, 100) == 100
    assert seek.next_entry(entries, 0, 319) == 200
    assert seek.next_entry(entries, 150, 205) is None  # 50 frames do not pay
    assert seek.next_entry((), 0, 500) is None
    assert seek.skipped(entries, [5, 250, 251, 390]) == (200 - 6) + (320 - 252)
    assert seek.skipped(entries, [5, 260, 390]) == 200 - 6


def test_a_refresh_must_bring_every_parameter_set() -> None:
    def packet(*units: bytes) -> av.Packet:
        return av.Packet(b"".join(len(u).to_bytes(4, "big") + u for u in units))

    sps, pps, other, refresh, slice_ = b"\x67sps", b"\x68pps", b"\x68other", b"\x65idr", b"\x41p"
    judge = seek._judge("h264", bytes([1, 100, 0, 30, 0xFF, 0xE1, 0, 0]))
    assert judge is not None
    assert judge(packet(refresh))
    assert not judge(packet(slice_))
    assert judge(packet(sps, pps, refresh))
    assert not judge(packet(refresh))  # a decoder that begins here lacks them
    assert judge(packet(sps, pps, refresh))
    assert not judge(packet(other, slice_))
    assert not judge(packet(sps, pps, refresh))
    with pytest.raises(seek._Unsound):
        judge(av.Packet(b"\0\0\0\1\x65"[:4] + b"\x7f\xff"))
    assert seek._judge("h264", b"\0\0\0\1\x67") is None  # not length-prefixed
    assert seek._judge("mpeg4", b"") is None
