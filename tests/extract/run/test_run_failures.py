"""Videos that fail: named, remembered where the fault is theirs, and tried again where it is not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.extract.clips import Clip
from tests.extract.run.command import SETTINGS, SMALL, plan
from tests.pipelines.commands import BIN

from aqa_extract import quarantine
from aqa_extract.config import Options
from aqa_extract.run import extract
from aqa_shared.errors import EnvironmentFault, ExitCode
from aqa_shared.manifest import find_videos
from aqa_shared.store import verify
from aqa_shared.store.stage import failure_key


def test_a_broken_file_and_its_copy_are_both_named(tmp_path: Path, i3d_rgb_weights: str) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "in" / name).write_bytes(b"half a download")
    report = extract(find_videos(tmp_path / "in").videos, tmp_path / "s.zarr", SETTINGS)
    assert sorted(f.id for f in report.failures) == ["a.mp4", "b.mp4"]
    assert sorted(quarantine.read(tmp_path / "s.zarr")) == ["a.mp4", "b.mp4"]


def test_names_that_are_no_text_can_be_quarantined(tmp_path: Path, i3d_rgb_weights: str) -> None:
    (tmp_path / "in").mkdir()
    for name in (b"caf\xe9.mp4", "a\u2028b.mp4".encode(), b"line\nbreak.mp4"):
        (tmp_path.joinpath("in") / os.fsdecode(name)).write_bytes(b"x" * (10 + len(name)))
    store = tmp_path / "s.zarr"
    videos = find_videos(tmp_path / "in").videos
    assert len(extract(videos, store, SETTINGS).failures) == 3
    assert len(quarantine.read(store)) == 3
    assert len(extract(videos, store, SETTINGS).failures) == 3


def test_a_torn_failure_is_left_alone(tmp_path: Path, i3d_rgb_weights: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"half a download")
    videos = find_videos(tmp_path / "in").videos
    store = tmp_path / "s.zarr"
    extract(videos, store, SETTINGS)
    (store / failure_key("torn")).write_bytes(b'{"id": "torn')
    quarantine.write(store, quarantine.read(store)["a.mp4"].model_copy(update={"id": "b.mp4"}))
    assert sorted(quarantine.read(store)) == ["a.mp4", "b.mp4"]
    assert [d.array for d in verify(store)] == [failure_key("torn")]


def test_a_mended_file_leaves_quarantine_by_itself(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    target = tmp_path / "in" / "a.mp4"
    target.write_bytes(b"half a download")
    videos = find_videos(tmp_path / "in").videos
    store = tmp_path / "s.zarr"
    assert extract(videos, store, SETTINGS).exit_code == ExitCode.QUARANTINED
    assert extract(videos, store, SETTINGS).failures[0].id == "a.mp4"
    target.write_bytes((clips / "clip0.mp4").read_bytes())
    report = extract(videos, store, SETTINGS)
    assert (report.extracted, report.exit_code) == (1, ExitCode.OK)
    assert quarantine.read(store) == {}


def test_retry_failed_tries_again(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"half a download")
    videos = find_videos(tmp_path / "in").videos
    extract(videos, tmp_path / "s.zarr", SETTINGS)
    assert plan(videos, tmp_path / "s.zarr", SETTINGS, Options()).jobs == []
    assert len(plan(videos, tmp_path / "s.zarr", SETTINGS, Options(retry_failed=True)).jobs) == 1


def test_a_failure_of_an_option_is_tried_again_with_another(clips: Path, tmp_path: Path) -> None:
    """decord refuses AVI, and no decoder answers within a microsecond: `auto` and more time mend that."""
    (tmp_path / "in").mkdir()
    Clip(codec="mpeg4", suffix=".avi").write(tmp_path / "in" / "a")
    (tmp_path / "in" / "b.mp4").write_bytes(b"half a download")
    videos = find_videos(tmp_path / "in").videos
    store = tmp_path / "s.zarr"
    hasty = Options(timeout=1e-6)
    with_decord = Options(decoder="decord")

    def reason(options: Options) -> str:
        return {f.id: f.reason for f in extract(videos[:1], store, SETTINGS, options).failures}["a.avi"]

    assert reason(hasty) == "decode_timeout"
    assert quarantine.read(store)["a.avi"].limit == 1e-6
    assert plan(videos[:1], store, SETTINGS, hasty).jobs == []
    assert reason(with_decord) == "decord_unsupported"
    assert plan(videos[:1], store, SETTINGS, with_decord).jobs == []
    report = extract(videos, store, SETTINGS)
    assert (report.extracted, [f.id for f in report.failures]) == (1, ["b.mp4"])
    assert "--retry-failed" not in report.text()
    assert "[as before; --retry-failed tries it again]" in extract(videos, store, SETTINGS).text()


def test_a_failure_of_the_machine_is_tried_again(tmp_path: Path, i3d_rgb_weights: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(b"half a download")
    videos, store = find_videos(tmp_path / "in").videos, tmp_path / "s.zarr"
    failed = extract(videos, store, SETTINGS).failures[0]
    assert plan(videos, store, SETTINGS, Options()).kept_out == [failed]
    quarantine.write(store, failed.model_copy(update={"reason": "decoder_not_started"}))
    assert len(plan(videos, store, SETTINGS, Options()).jobs) == 1
    quarantine.release(store, ["a.mp4"])
    assert quarantine.read(store) == {}


def test_many_failures_in_a_row_stop_the_run(tmp_path: Path, i3d_rgb_weights: str) -> None:
    (tmp_path / "in").mkdir()
    for i in range(8):
        (tmp_path / "in" / f"{i}.mp4").write_bytes(b"x" * (100 + i))
    videos = find_videos(tmp_path / "in").videos
    with pytest.raises(EnvironmentFault, match="3 failures in a row"):
        extract(videos, tmp_path / "s.zarr", SETTINGS, Options(stop_after=3, workers=1))


@pytest.mark.parametrize("device", ["closed", "full"])
def test_a_report_that_nobody_reads_leaves_the_exit_code(clips: Path, undisturbed: Path, device: str) -> None:
    if device == "full":
        target = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, target = os.pipe()
        os.close(reader)
    done = subprocess.run(
        [BIN / "aqa-extract", clips, "--out", undisturbed, *SMALL], stdout=target, stderr=subprocess.PIPE, text=True
    )
    os.close(target)
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    assert ("warning: cannot write to stdout" in done.stderr) == (device == "full")
