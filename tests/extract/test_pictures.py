"""Folders of pictures as videos: real JPEG and PNG files, read in the real child process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.extract import clips
from tests.extract.clips import Taken, picture, take

from aqa_extract.decode.child import Decoder, DecodeRequest
from aqa_extract.decode.failure import DecodeFailure
from aqa_extract.identity import identify, same_bytes, stat_matches
from aqa_shared.errors import ExitCode, UsageError
from aqa_shared.manifest import find_videos
from aqa_shared.records import Sampling
from aqa_shared.store import FeatureStore, contents

BIN = Path(sys.executable).parent


def make(folder: Path, numbers: Any = range(1, 31), suffix: str = ".jpg", size: tuple[int, int] = (64, 48)) -> Path:
    """Pictures that all differ, under 8-digit names."""
    folder.mkdir(parents=True)
    for i in numbers:
        Image.fromarray(picture(i, *size)).save(folder / f"{i:08d}{suffix}", quality=90)
    return folder


THIRTY = Sampling(segments=1, segment_frames=30)


def request(folder: Path, sampling: Sampling = THIRTY, backend: str = "auto", **more: Any) -> DecodeRequest:
    return clips.request(folder, backend, sampling, **{"frame_rate": 25.0, **more})


def decode(decoder: Decoder, folder: Path, *arguments: Any, **more: Any) -> Taken:
    return take(decoder.decode(request(folder, *arguments, **more)))


def refusal(decoder: Decoder, folder: Path, *arguments: Any, **more: Any) -> DecodeFailure:
    with pytest.raises(DecodeFailure) as error:
        decode(decoder, folder, *arguments, **more)
    return error.value


def pillow(folder: Path) -> np.ndarray:
    """What code that reads such folders does with them."""
    return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in sorted(folder.iterdir())])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".JPEG"])
def test_frames_are_pillows_in_the_order_of_their_numbers(decoder: Decoder, tmp_path: Path, suffix: str) -> None:
    folder = make(tmp_path / "frames", suffix=suffix)
    (folder / "notes.txt").write_text("no picture")
    (folder / ".hidden.jpg").write_bytes(b"no picture")
    taken = decode(decoder, folder)
    (folder / "notes.txt").unlink()
    (folder / ".hidden.jpg").unlink()
    np.testing.assert_array_equal(taken.stack, pillow(folder))
    probe = taken.opened.probe
    assert (probe.container, probe.n_expected, probe.fps) == ("pictures", 30, 25.0)
    assert (probe.codec, probe.warnings) == ("png" if suffix == ".png" else "mjpeg", ())
    np.testing.assert_allclose(probe.times, np.arange(30) / 25)
    assert (taken.finished.backend, taken.finished.decoded, taken.finished.corrupt) == ("pillow", 30, 0)


def test_numbers_without_zeros_count_as_numbers(decoder: Decoder, tmp_path: Path) -> None:
    folder = make(tmp_path / "frames")
    frames = pillow(folder)
    for path in sorted(folder.iterdir()):
        path.rename(folder / f"img_{int(path.stem)}.jpg")
    np.testing.assert_array_equal(decode(decoder, folder).stack, frames)


def test_a_part_reads_its_own_pictures_and_no_others(decoder: Decoder, tmp_path: Path) -> None:
    folder = make(tmp_path / "frames", range(489, 689))
    frames = pillow(folder)
    # Damage where nobody looks is not looked for.
    (folder / "00000489.jpg").write_bytes(b"\xff\xd8\xff damaged")
    sampling = Sampling(segments=2, segment_frames=10)
    taken = decode(decoder, folder, sampling, start=100, end=130)
    np.testing.assert_array_equal(taken.stack, frames[taken.sources])
    assert set(taken.sources.tolist()) <= set(range(100, 130))
    assert taken.finished.decoded == len(set(taken.sources.tolist()))
    assert taken.opened.decoded == taken.finished.decoded
    in_seconds = decode(decoder, folder, sampling, start_time=4.0, end_time=5.2)
    np.testing.assert_array_equal(in_seconds.stack, taken.stack)


def test_missing_numbers_are_named_and_their_time_is_kept(decoder: Decoder, tmp_path: Path) -> None:
    folder = make(tmp_path / "frames", [i for i in range(1, 201) if i not in (50, 51)])
    taken = decode(decoder, folder)
    assert taken.opened.probe.n_expected == 198
    assert taken.opened.probe.warnings[0] == "degraded: 2 of 200 pictures are missing: number 50, 51"
    np.testing.assert_allclose(taken.opened.probe.times[47:50], [47 / 25, 48 / 25, 51 / 25])
    assert taken.finished.accepted_damage is None
    (folder / "00000099.jpg").unlink()
    error = refusal(decoder, folder)
    assert (error.reason, error.stage) == ("frame_count_mismatch", "probe")
    assert "3 of 200 pictures are missing: number 50, 51, 99; --accept-damaged" in error.detail
    taken = decode(decoder, folder, accept_damaged=True)
    assert taken.finished.accepted_damage == {"missing": 3, "damaged": 0}


def test_every_fifth_number_is_no_gap(decoder: Decoder, tmp_path: Path) -> None:
    folder = make(tmp_path / "frames", range(0, 150, 5))
    probe = decode(decoder, folder).opened.probe
    assert (probe.n_expected, probe.warnings) == (30, ())
    np.testing.assert_allclose(probe.times, np.arange(30) / 25)


def zeros_for_the_rest(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros": zeros_for_the_rest,
    "empty": lambda path: path.write_bytes(b""),
    "a GIF": lambda path: Image.fromarray(picture(0, 64, 48)).save(path, "GIF"),
    "text": lambda path: path.write_text("not found"),
}


def test_what_a_camera_puts_behind_a_picture_is_no_damage(decoder: Decoder, tmp_path: Path) -> None:
    folder = make(tmp_path / "frames", range(1, 31))
    frames = pillow(folder)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes() + b"\nSEFT and the like")
    taken = decode(decoder, folder)
    assert (taken.finished.corrupt, list(taken.finished.warnings)) == (0, [])
    assert np.array_equal(taken.stack[0], frames[0])


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_picture_is_named(decoder: Decoder, tmp_path: Path, damage: str) -> None:
    folder = make(tmp_path / "frames", range(1, 121))
    sampling = Sampling(segments=1, segment_frames=120)
    frames = pillow(folder)
    DAMAGES[damage](folder / "00000007.jpg")
    taken = decode(decoder, folder, sampling)
    assert taken.finished.corrupt == 1
    assert taken.finished.warnings[0].startswith("degraded: 1 of 120 frames damaged: 00000007.jpg (")
    # The one before stands in its place, and no other frame moves.
    np.testing.assert_array_equal(taken.stack[6], frames[5])
    np.testing.assert_array_equal(taken.stack[7:], frames[7:])
    DAMAGES[damage](folder / "00000001.jpg")
    error = refusal(decoder, folder, sampling)
    assert error.reason == "corrupt"
    assert "2 damaged: 00000001.jpg (" in error.detail
    assert "00000007.jpg (" in error.detail
    taken = decode(decoder, folder, sampling, accept_damaged=True)
    assert taken.finished.accepted_damage == {"missing": 0, "damaged": 2}
    np.testing.assert_array_equal(taken.stack[0], frames[1])  # there is none before


def test_what_is_no_video_is_refused_with_its_reason(decoder: Decoder, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refusal(decoder, empty).reason == "no_frames"
    (empty / "1.jpg").write_text("no picture")
    error = refusal(decoder, empty)
    assert (error.reason, "1.jpg: not a JPEG or PNG picture" in error.detail) == ("undecodable", True)
    assert refusal(decoder, tmp_path / "nowhere").reason == "unreadable"
    folder = make(tmp_path / "frames")
    assert refusal(decoder, folder, max_pixels=100).reason == "too_large"
    assert refusal(decoder, folder, backend="decord").reason == "decord_unsupported"
    Image.fromarray(picture(0, 32, 48)).save(folder / "00000007.jpg")
    error = refusal(decoder, folder)
    assert error.reason == "resolution_change"
    assert "00000007.jpg is 32x48, the first is 64x48" in error.detail
    assert refusal(decoder, make(tmp_path / "thin", size=(512, 16))).reason == "bad_shape"
    assert refusal(decoder, make(tmp_path / "small", size=(15, 15))).reason == "too_small"
    # Without pictures per second a folder is what it was: no file.
    error = refusal(decoder, folder, frame_rate=None)
    assert (error.reason, "fps" in error.detail) == ("not_regular_file", True)


def test_what_would_wait_or_hold_too_much_is_not_opened(decoder: Decoder, tmp_path: Path) -> None:
    folder = make(tmp_path / "frames", range(1, 201))
    (folder / "00000007.jpg").unlink()
    os.mkfifo(folder / "00000007.jpg")
    assert "number 7" in decode(decoder, folder).opened.probe.warnings[0]
    (folder / "00000007.jpg").unlink()
    Image.new("L", (4097, 4097)).save(folder / "00000007.png")
    assert refusal(decoder, folder, Sampling(segments=1, segment_frames=200)).reason == "too_large"


def test_a_picture_is_turned_as_its_tag_says(decoder: Decoder, tmp_path: Path) -> None:
    folder = make(tmp_path / "frames")
    tag = Image.Exif()
    tag[0x0112] = 6
    for path in folder.iterdir():
        Image.open(path).save(path, exif=tag, quality=95)
    taken = decode(decoder, folder)
    assert (taken.opened.probe.width, taken.opened.probe.height) == (48, 64)
    np.testing.assert_array_equal(taken.stack, np.rot90(pillow(folder), -1, axes=(1, 2)))


def test_grey_and_palette_pictures_are_rgb_and_deep_ones_refused(decoder: Decoder, tmp_path: Path) -> None:
    folder = tmp_path / "grey"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(picture(i, 64, 48)).convert("L" if i % 2 else "P").save(folder / f"{i:03d}.png")
    np.testing.assert_array_equal(
        decode(decoder, folder, Sampling(segments=1, segment_frames=20)).stack, pillow(folder)
    )
    deep = tmp_path / "deep"
    deep.mkdir()
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(deep / "1.png")
    assert "not of 8 bits" in refusal(decoder, deep).detail


def test_a_folder_that_changes_while_it_is_read_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    folder = make(tmp_path / "frames", range(1, 101))
    events = decoder.decode(request(folder, Sampling(segments=1, segment_frames=100)))
    next(events)
    next(events)
    Image.fromarray(picture(0, 64, 48)).save(folder / "00000101.jpg")
    with pytest.raises(DecodeFailure, match="changed_during_read"):
        list(events)


def test_identity_is_that_of_the_pictures(tmp_path: Path) -> None:
    folder, copy = make(tmp_path / "frames"), tmp_path / "copy"
    shutil.copytree(folder, copy)
    one, two = identify(str(folder)), identify(str(copy))
    assert one is not None
    assert two is not None
    assert two.matches(one.record())
    assert stat_matches(str(folder), one.record())
    assert same_bytes(str(folder), str(copy))
    Image.fromarray(picture(99, 64, 48)).save(copy / "00000007.jpg", quality=90)
    assert not same_bytes(str(folder), str(copy))
    changed = identify(str(copy))
    assert changed is not None
    assert not stat_matches(str(copy), two.record())


def manifest(path: Path, rows: str) -> Path:
    path.write_text(rows)
    return path


def test_the_manifest_gives_a_folder_its_rate_and_leaves_files_alone(tmp_path: Path) -> None:
    make(tmp_path / "frames")
    (tmp_path / "a.mp4").touch()
    table = manifest(tmp_path / "m.csv", "id,path,fps,score\nx,frames,12.5,1\ny,a.mp4,25,2\nz,frames,,3\n")
    x, y, z = find_videos(table).videos
    assert (x.frame_rate, "fps" in x.extra) == (12.5, False)
    assert (y.frame_rate, y.extra["fps"]) == (None, "25")
    assert z.frame_rate is None
    for wrong, text in (
        ("fast", "row 2, column fps: 'fast'"),
        ("-1", "greater than 0"),
        ("nan", "finite"),
        ("1e9", "1000"),
    ):
        with pytest.raises(UsageError, match=text):
            find_videos(manifest(tmp_path / "m.csv", f"id,path,fps\nx,frames,{wrong}\n"))


@pytest.mark.usefixtures("i3d_rgb_weights")
def test_extraction_of_folders_end_to_end(tmp_path: Path) -> None:
    """Two dives of one folder, a folder of its own and its copy, one with gaps; then with other rates."""
    make(tmp_path / "whole", range(1, 101))
    make(tmp_path / "own", range(489, 519))
    shutil.copytree(tmp_path / "own", tmp_path / "twin")
    make(tmp_path / "gaps", [*range(1, 20), *range(30, 40)])
    make(tmp_path / "no_rate")
    rows = "id,path,start,end,fps,score\na,whole,0,40,25,1\nb,whole,60,100,25,2\nc,own,,,25,3\nd,twin,,,25,4\n"
    table = manifest(tmp_path / "m.csv", rows + "e,gaps,,,25,5\nf,no_rate,,,,6\n")

    def run() -> subprocess.CompletedProcess[str]:
        small = ("--segments", "2", "--short-side", "32", "--crop", "32", "--weights", "rgb=i3d-kinetics-400")
        command = [BIN / "aqa-extract", table, "--out", tmp_path / "f.zarr", *small, "--device", "cpu"]
        return subprocess.run(command, capture_output=True, text=True, timeout=240)

    done = run()
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    assert "10 of 39 pictures are missing: number 20, 21" in done.stdout + done.stderr
    store = FeatureStore.open(tmp_path / "f.zarr")
    assert sorted(store.ids) == ["a", "b", "c", "d"]
    known = contents(tmp_path / "f.zarr")
    assert known is not None
    assert known.meta("c")["container"] == "pictures"
    assert known.meta("c")["decoder"] == "pillow"
    assert known.meta("c")["identity"]["fingerprint"]
    # Another rate is another video; a folder that has its rate now is tried.
    manifest(table, rows.replace("own,,,25", "own,,,30") + "f,no_rate,,,25,6\n")
    done = run()
    assert "id_conflict" in done.stdout + done.stderr
    assert sorted(FeatureStore.open(tmp_path / "f.zarr").ids) == ["a", "b", "c", "d", "f"]
