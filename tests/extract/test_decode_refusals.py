"""Files that must not become features: each is refused with its reason, and the decoder serves the next one."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from tests.extract.clips import request

from aqa_extract.decode.child import DecodeFailure, Decoder


def refusal(decoder: Decoder, clips: ModuleType, path: Path | str, backend: str = "auto", **more: Any) -> DecodeFailure:
    with pytest.raises(DecodeFailure) as e:
        clips.take(decoder.decode(request(path, backend, **more)))
    assert e.value.detail
    return e.value


def flipped(data: bytes, first: int, last: int, count: int, seed: int) -> bytes:
    """`data` with `count` random bits of bytes [first, last) turned over."""
    rng = random.Random(seed)
    out = bytearray(data)
    for _ in range(count):
        out[rng.randrange(first, last)] ^= 1 << rng.randrange(8)
    return bytes(out)


def box(data: bytes, kind: bytes) -> tuple[int, int]:
    """Where a top-level box of an MP4 starts and ends."""
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == kind:
            return at, at + size
        at += size
    raise AssertionError(f"no {kind!r} box")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty_file"),
        (random.Random(0).randbytes(20_000), "not_a_video"),
        (b"This is a text.\n" * 500, "not_a_video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nother.mp4\n#EXT-X-ENDLIST\n", "forbidden_format"),
        (b"ffconcat version 1.0\nfile other.mp4\n", "forbidden_format"),
    ],
    ids=["empty", "random", "text", "hls", "ffconcat"],
)
def test_not_videos(content: bytes, reason: str, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    clips.Clip().write(tmp_path / "other")  # what the playlists name exists
    path = tmp_path / "named.mp4"
    path.write_bytes(content)
    failure = refusal(decoder, clips, path)
    assert failure.reason == reason
    assert "/proc/" not in failure.detail


@pytest.mark.parametrize(("codec", "suffix", "pix_fmt"), [("png", ".png", "rgb24"), ("gif", ".gif", "rgb8")])
def test_pictures(codec: str, suffix: str, pix_fmt: str, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(codec=codec, suffix=suffix, frames=1, pix_fmt=pix_fmt, gop=1, format={".png": "image2"}.get(
        suffix)).write(tmp_path / "picture")  # fmt: skip
    assert refusal(decoder, clips, path).reason == "forbidden_format"


def test_special_files(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.mp4"))
        for name in ("fifo", "folder", "dangling", "loop", "zero", "s"):
            assert refusal(decoder, clips, tmp_path / f"{name}.mp4").reason == "not_regular_file", name
    assert refusal(decoder, clips, tmp_path / "absent.mp4").reason == "unreadable"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip().write(tmp_path / "clip")
    path.chmod(0)
    assert refusal(decoder, clips, path).reason == "unreadable"


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/a.mp4", "concat:a.mp4|a.mp4", "subfile,,start,0,end,9,,:a.mp4"])
def test_urls_are_literal_names(
    name: str, decoder: Decoder, clips: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips.Clip().write(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with Decoder() as here:  # started in this folder, where the names would resolve
        assert refusal(here, clips, name).reason == "unreadable"


@pytest.mark.parametrize(
    "name",
    ["a b.mp4", "-i.mp4", "new\nline.mp4", "é😀.mp4", "<script>.mp4", "[b]*%d.mp4", "file:x.mp4", "'\".mp4",
     b"\xff\xfe.mp4".decode(errors="surrogateescape"), "n" * 251 + ".mp4"],
)  # fmt: skip
def test_any_name_works(name: str, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    plain = clips.Clip(frames=10).write(tmp_path / "plain")
    path = tmp_path / name
    plain.rename(path)
    for backend in ("av", "decord"):
        taken = clips.take(decoder.decode(request(path, backend)))
        assert taken.finished.backend == backend
        assert taken.finished.decoded == 10


def test_sound_only_and_cover_art(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert refusal(decoder, clips, path).reason == "no_video"

    covered = tmp_path / "covered.mp4"
    with av.open(str(covered), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        cover = out.add_stream("png", rate=1)
        assert isinstance(cover, av.VideoStream)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(stream.encode(frame))
        out.mux(cover.encode(av.VideoFrame.from_ndarray(clips.picture(0, 64, 48), format="rgb24")))
        out.mux(stream.encode())
    assert refusal(decoder, clips, covered).reason == "no_video"


def test_too_small_and_too_large(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    small = clips.Clip(codec="ffv1", suffix=".mkv", size=(8, 48)).write(tmp_path / "small")
    assert refusal(decoder, clips, small).reason == "too_small"
    # A frame bomb: 18 megapixels in a few kilobytes.
    bomb = tmp_path / "bomb.mp4"
    with av.open(str(bomb), "w") as out:
        stream = out.add_stream("mpeg4", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 4200, 4200, "yuv420p"
        out.mux(stream.encode(av.VideoFrame(4200, 4200, "yuv420p")))
        out.mux(stream.encode())
    assert refusal(decoder, clips, bomb).reason == "too_large"
    fine = clips.Clip(size=(64, 48)).write(tmp_path / "fine")
    assert refusal(decoder, clips, fine, max_pixels=64 * 48 - 1).reason == "too_large"
    clips.take(decoder.decode(request(fine, max_pixels=64 * 48)))


def test_the_decoder_itself_refuses_frames_larger_than_announced(
    decoder: Decoder, clips: ModuleType, tmp_path: Path
) -> None:
    # The container says 64x48, the stream holds 320x240: only the codec can know.
    path = clips.Clip(codec="mpeg4", suffix=".avi", size=(320, 240)).write(tmp_path / "liar")
    data = bytearray(path.read_bytes())
    for old, new in ((320, 64), (240, 48)):
        at = data.index(old.to_bytes(4, "little"), data.index(b"strf"))
        data[at : at + 4] = new.to_bytes(4, "little")
    path.write_bytes(data)
    assert refusal(decoder, clips, path, max_pixels=100 * 100).reason == "too_large"


def test_too_few_frames_and_parts(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    one = clips.Clip(frames=1).write(tmp_path / "one")
    failure = refusal(decoder, clips, one)
    assert (failure.reason, failure.stage) == ("too_short", "sampling")
    many = clips.Clip().write(tmp_path / "many")
    assert refusal(decoder, clips, many, start=20, end=31).reason == "part_outside"


def test_truncated_downloads(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    late = clips.Clip(frames=100).write(tmp_path / "late").read_bytes()
    fast = clips.Clip(frames=100, container_options={"movflags": "faststart"}).write(tmp_path / "fast").read_bytes()
    mkv = clips.Clip(frames=100, suffix=".mkv").write(tmp_path / "mkv").read_bytes()
    for part in (0.25, 0.5, 0.75, 0.95):
        for data, suffix, reasons in (
            (late, ".mp4", {"no_moov"}),
            (fast, ".mp4", {"frame_count_mismatch"}),
            (mkv, ".mkv", {"frame_count_mismatch"}),
        ):
            path = tmp_path / f"cut{suffix}"
            path.write_bytes(data[: int(len(data) * part)])
            failure = refusal(decoder, clips, path)
            assert failure.reason in reasons, (part, suffix, failure.detail)
    detail = refusal(decoder, clips, _written(tmp_path, late[:-600])).detail
    assert detail.endswith("usually an incomplete download: End of file")


def _written(folder: Path, data: bytes) -> Path:
    path = folder / "written.mp4"
    path.write_bytes(data)
    return path


def test_one_missing_byte_degrades(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    clip = clips.Clip(frames=200, container_options={"movflags": "faststart"}, codec="libx264")
    data = clip.write(tmp_path / "whole").read_bytes()
    taken = clips.take(decoder.decode(request(_written(tmp_path, data[:-1]))))
    assert taken.finished.backend == "av"
    assert any(w.startswith("degraded") for w in taken.finished.warnings)


def test_flipped_bytes_are_counted(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    data = clips.Clip(frames=60, size=(160, 120)).write(tmp_path / "clean").read_bytes()
    first, last = box(data, b"mdat")
    for seed in range(4):
        broken = _written(tmp_path, flipped(data, first + 8, last, 200, seed))
        for backend in ("auto", "av"):
            assert refusal(decoder, clips, broken, backend=backend).reason in ("corrupt", "undecodable")
    hole = bytearray(data)
    middle = (first + last) // 2
    hole[middle : middle + 2000] = bytes(2000)
    assert refusal(decoder, clips, _written(tmp_path, bytes(hole))).reason == "corrupt"


def test_flips_in_the_index_never_pass_unseen(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    """A damaged moov gives a refusal, or exactly what PyAV makes of the same file."""
    data = clips.Clip(frames=60).write(tmp_path / "clean").read_bytes()
    first, last = box(data, b"moov")
    refused = 0
    for seed in range(20):
        broken = _written(tmp_path, flipped(data, first + 8, last, 3, seed))
        try:
            taken = clips.take(decoder.decode(request(broken)))
        except DecodeFailure:
            refused += 1
            continue
        np.testing.assert_array_equal(taken.stack, clips.reference(broken)[taken.sources])
    assert refused >= 5


def test_backends_agree_on_damaged_files(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    """Whatever decord conceals silently, `auto` must not: the result never depends on the backend chosen."""
    backends = set()
    for suffix in (".mp4", ".mkv"):
        data = clips.Clip(frames=40, suffix=suffix, size=(160, 120)).write(tmp_path / "clean").read_bytes()
        for seed in range(30):
            path = tmp_path / f"broken{suffix}"
            path.write_bytes(flipped(data, len(data) // 8, len(data), 1, seed))
            results: list[Any] = []
            for backend in ("auto", "av"):
                try:
                    taken = clips.take(decoder.decode(request(path, backend)))
                    results.append(taken.stack.tobytes())
                    backends.add(taken.finished.backend)
                except DecodeFailure as e:
                    results.append(e.reason)
            assert results[0] == results[1], (suffix, seed)
    assert backends == {"av", "decord"}


def test_a_change_of_resolution_is_refused(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    sizes = ((64, 48), (96, 64))
    parts = [clips.Clip(suffix=".ts", size=s, b_frames=0).write(tmp_path / f"{s[0]}") for s in sizes]
    path = clips.join(parts, tmp_path / "joined.ts")
    assert refusal(decoder, clips, path).reason == "resolution_change"


def test_an_edit_list_that_shows_nothing(decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip().write(tmp_path / "clip")
    data = bytearray(path.read_bytes())
    # elst: version, count 1, then duration and media time; start after the last frame.
    at = data.index(b"elst") + 12
    data[at + 4 : at + 8] = (1 << 24).to_bytes(4, "big")
    path.write_bytes(data)
    assert refusal(decoder, clips, path).reason in ("no_frames", "frame_count_mismatch")


@pytest.mark.parametrize("change", ["grow", "rewrite", "replace", "delete"])
def test_files_that_change_while_read(change: str, decoder: Decoder, clips: ModuleType, tmp_path: Path) -> None:
    path = clips.Clip(frames=60).write(tmp_path / "clip")
    other = clips.Clip(frames=60).write(tmp_path / "other")
    events = decoder.decode(request(path, chunk_frames=4))
    next(events)
    match change:
        case "grow":
            with path.open("ab") as f:
                f.write(b"more")
        case "rewrite":
            os.utime(path, ns=(0, 0))
        case "replace":
            other.replace(path)
        case "delete":
            path.unlink()
    with pytest.raises(DecodeFailure) as e:
        clips.take(events)
    assert e.value.reason == "changed_during_read"
