"""A run that was killed, stopped, shared out or begun again gives what one undisturbed run gives."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tests.extract.run.command import SETTINGS, SMALL, committed, contents, run_command
from tests.pipelines.commands import BIN
from tests.shared.store_cases import Counting
from zarr.storage import MemoryStore

from aqa_extract import quarantine
from aqa_extract.config import Options
from aqa_extract.run import extract
from aqa_shared.errors import ExitCode
from aqa_shared.manifest import find_videos
from aqa_shared.records import FlowSettings, Video
from aqa_shared.store import FeatureStore, compact, finalise, missing, verify
from aqa_shared.store import contents as contents_of


def test_a_second_run_does_nothing_and_still_says_what_is_quarantined(clips: Path, undisturbed: Path) -> None:
    before = contents(undisturbed)
    done = run_command(clips, undisturbed)
    assert done.returncode == ExitCode.QUARANTINED
    assert "0 extracted, 5 already there, 1 cannot be used" in done.stdout
    assert contents(undisturbed) == before


def test_killed_at_any_moment_and_run_again_equals_an_undisturbed_run(
    clips: Path, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "killed.zarr"
    randomness = random.Random(0)
    kills = 0
    for wanted in (0, 1, 2, 4):
        process = subprocess.Popen(
            [BIN / "aqa-extract", clips, "--out", store, *SMALL], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # At no particular moment after the start, or after so many videos: somewhere in loading, computing, committing.
        while process.poll() is None and committed(store) < wanted:
            time.sleep(0.002)
        time.sleep(randomness.uniform(0, 0.05 if wanted else 1.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2, "the run was hardly disturbed"
    done = run_command(clips, store)
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    assert contents(store) == contents(undisturbed)
    assert verify(store) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_random_kills(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Each store is killed as soon as it has got a little further, until it is whole."""
    randomness = random.Random(1)
    kills = 0
    while kills < 50:
        store = tmp_path / f"killed-{kills}.zarr"
        while True:
            process = subprocess.Popen(
                [BIN / "aqa-extract", clips, "--out", store, *SMALL],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                process.wait(timeout=randomness.uniform(0.3, 3))
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        assert process.returncode == ExitCode.QUARANTINED
        assert contents(store) == contents(undisturbed)


def test_sigterm_keeps_what_is_finished_and_says_how_to_go_on(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "terminated.zarr"
    process = subprocess.Popen(
        [BIN / "aqa-extract", clips, "--out", store, *SMALL], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and not committed(store):
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    if process.returncode != ExitCode.QUARANTINED:  # it may have been done before the signal came
        assert process.returncode == ExitCode.TERMINATED, stderr
        assert "rerun the same command" in stderr
    found = contents_of(store)
    assert found is not None
    assert found.having(["rgb"])
    assert run_command(clips, store).returncode == ExitCode.QUARANTINED
    assert contents(store) == contents(undisturbed)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, ExitCode.INTERRUPTED),
        (signal.SIGTERM, ExitCode.TERMINATED),
        (signal.SIGUSR1, ExitCode.TERMINATED),
    ],
)
def test_a_signal_before_the_first_video_ends_in_order(
    clips: Path, tmp_path: Path, number: signal.Signals, code: ExitCode
) -> None:
    """A labels table that never comes holds the command where it looks for its videos."""
    os.mkfifo(tmp_path / "labels.csv")
    process = subprocess.Popen(
        [BIN / "aqa-extract", clips, "--out", tmp_path / "s", *SMALL, "--labels", tmp_path / "labels.csv"],
        stderr=subprocess.PIPE,
        text=True,
    )
    with (tmp_path / "labels.csv").open("wb"):  # opens when the command does
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert "rerun the same command" in stderr


def test_a_signal_ends_a_callers_planning_in_order(undisturbed: Path, clips: Path) -> None:
    """Planning is held where it has read the store, as a slow disk would hold it."""
    code = (
        "import time; from aqa_extract import plan; from aqa_extract.run import extract\n"
        "from aqa_extract.signals import Interrupted; from aqa_shared.manifest import find_videos\n"
        "from aqa_shared.store import FeatureStore\n"
        "def hold(*_): print('held', flush=True); time.sleep(600)\n"
        f"store = {str(undisturbed)!r}\n"
        "settings, plan.quarantine.read = FeatureStore.open(store).settings, hold\n"
        "try:\n"
        f"    extract(find_videos({str(clips)!r}).videos, store, settings)\n"
        "except Interrupted as e:\n"
        "    raise SystemExit(int(e.exit_code))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=60) == ExitCode.TERMINATED


def test_videos_appended_later_give_the_same_store(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "grown.zarr"
    videos = find_videos(clips).videos
    extract(videos[3:], store, SETTINGS)
    report = extract(videos, store, SETTINGS)
    assert report.already == 3
    assert contents(store) == contents(undisturbed)


def test_two_parts_and_a_finalise_are_one_run(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "parts.zarr"
    videos = find_videos(clips).videos
    extract(videos, store, SETTINGS, Options(shard=(2, 2), command="aqa-extract --shard 2/2"))
    assert FeatureStore.open(store).ids == []
    finalise(store)
    (never,) = missing(store)
    assert (never["missing"], never["command"]) == (None, "aqa-extract --shard 1/2")
    extract(videos, store, SETTINGS, Options(shard=(1, 2), command="aqa-extract --shard 1/2"))
    # A part that finds nothing to do has begun as well.
    extract(videos, store, SETTINGS, Options(shard=(2, 2), command="aqa-extract --shard 2/2"))
    finalise(store)
    extract(videos, store, SETTINGS, Options(shard=(1, 2), command="aqa-extract --shard=1/2"))
    (never,) = missing(store)
    assert never["command"] == "aqa-extract --shard 2/2"
    extract(videos, store, SETTINGS, Options(shard=(2, 2), command="aqa-extract --shard=2/2"))
    assert missing(store) == []
    finalise(store)
    assert missing(store) == []
    assert contents(store) == contents(undisturbed)
    assert sorted(quarantine.read(store)) == ["broken.mp4"]


def test_a_part_with_nothing_to_do_begins_the_store(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    videos = [Video(id="v", path=str(tmp_path / "v.mp4"))]
    report = extract(videos, store, SETTINGS, Options(shard=(2, 2), command="aqa-extract --shard 2/2"))
    assert (report.extracted, report.exit_code) == (0, ExitCode.OK)
    finalise(store)
    assert FeatureStore.open(store).ids == []
    (never,) = missing(store)
    assert (never["missing"], never["command"]) == (None, "aqa-extract --shard 1/2")


def test_a_run_reads_what_is_committed_once(clips: Path, i3d_rgb_weights: str) -> None:
    """For its plan and for its writer together."""
    videos, store = find_videos(clips).videos, MemoryStore()
    extract(videos, store, SETTINGS, Options(shard=(1, 1)))
    counting = Counting(store)
    report = extract(videos, counting, SETTINGS, Options(shard=(1, 1), retry_failed=True))
    assert (report.already, [f.id for f in report.failures], report.kept_out) == (5, ["broken.mp4"], set())
    assert Counter(n for key, n in counting.markers.items() if "labels" not in key) == {1: 5}


def test_a_stream_added_later_leaves_the_first_one_as_it_is(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    shutil.copytree(undisturbed, store)
    before = {p.relative_to(store): p.read_bytes() for p in store.glob("blocks/**/*") if p.is_file()}
    flow = SETTINGS.model_copy(
        update={
            "streams": ("rgb", "flow"),
            "flow": FlowSettings(mode="parity"),
            "weights": {**SETTINGS.weights, "flow": "inflated-from-rgb"},
        }
    )
    videos = find_videos(clips).videos[1:3]
    assert extract(videos, store, flow).extracted == 2
    assert all((store / name).read_bytes() == data for name, data in before.items())
    found = FeatureStore.open(store)
    assert (found.coverage["rgb"], found.coverage["flow"]) == (5, 2)
    assert found.settings is not None
    assert set(found.settings.streams) == {"rgb", "flow"}
    assert set(found.provenance["weights"]) == {"rgb", "flow"}
    assert np.isfinite(found.select("rgb", "flow").read("flow")).all()
    assert extract(videos, store, flow).already == 2
    compact(store)
    assert len(list(store.glob("blocks/*/zarr.json"))) == 2  # three videos of rgb alone, two of both
    original = FeatureStore.open(undisturbed)
    np.testing.assert_array_equal(FeatureStore.open(store).read("rgb"), original.read("rgb"))
    assert verify(store) == []


def test_new_labels_reach_the_store_without_extracting_again(clips: Path, tmp_path: Path) -> None:
    store = tmp_path / "labels.zarr"
    video = find_videos(clips).videos[1]
    extract([video], store, SETTINGS)
    report = extract([video.model_copy(update={"score": 12.5, "difficulty": 3.1})], store, SETTINGS)
    assert report.extracted == 0
    table = FeatureStore.open(store).table
    assert (table["score"][0], table["difficulty"][0]) == (12.5, 3.1)


def test_features_outlive_their_videos(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes((clips / "clip0.mp4").read_bytes())
    video = Video(id="a.mp4", path=str(tmp_path / "a.mp4"))
    extract([video], tmp_path / "s.zarr", SETTINGS)
    (tmp_path / "a.mp4").unlink()
    report = extract([video.model_copy(update={"score": 3.0})], tmp_path / "s.zarr", SETTINGS)
    assert (report.already, report.failures) == (1, [])
    assert FeatureStore.open(tmp_path / "s.zarr").table["score"][0] == 3.0


def test_a_run_without_labels_keeps_those_of_the_store(clips: Path, tmp_path: Path) -> None:
    video = find_videos(clips).videos[1]
    extract([video.model_copy(update={"score": 7.0})], tmp_path / "s.zarr", SETTINGS)
    extract([Video(id=video.id, path=video.path)], tmp_path / "s.zarr", SETTINGS)
    assert FeatureStore.open(tmp_path / "s.zarr").table["score"][0] == 7.0


def test_an_emptied_score_is_emptied_in_the_store_and_a_missing_table_empties_nothing(
    clips: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    shutil.copy(clips / "clip0.mp4", tmp_path / "in" / "a.mp4")
    store, table = tmp_path / "s.zarr", tmp_path / "in" / "labels.csv"

    def score_after_a_run() -> float:
        assert run_command(tmp_path / "in", store).returncode == ExitCode.OK
        return FeatureStore.open(store).table["score"][0]

    table.write_text("id,score\na.mp4,7\n")
    assert score_after_a_run() == 7
    table.rename(tmp_path / "away")
    assert score_after_a_run() == 7
    table.write_text("id,score\na.mp4,\n")
    assert np.isnan(score_after_a_run())
    table.write_text("id,score\na.mp4,7\n")
    assert score_after_a_run() == 7
    table.write_text("id,score\nfrom another study.mp4,1\n")
    assert run_command(tmp_path / "in", store).returncode == ExitCode.USAGE
    assert FeatureStore.open(store).table["score"][0] == 7


def test_what_verify_finds_damaged_is_extracted_again(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    shutil.copytree(undisturbed, store)
    chunk = next(p for p in store.glob("blocks/*/rgb/*") if p.name != "zarr.json")
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    assert verify(store)
    videos = find_videos(clips).videos
    report = extract(videos, store, SETTINGS, Options(repair=True))
    assert report.extracted > 0
    assert verify(store) == []
    assert contents(store) == contents(undisturbed)
