"""Extraction end to end: real clips, the real I3D weights, real processes that are really killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.extract.clips import Clip

from aqa_extract import quarantine
from aqa_extract.config import Options
from aqa_extract.estimate import Estimate
from aqa_extract.plan import Plan, pinned, read_plan
from aqa_extract.run import Report, extract
from aqa_shared.errors import EnvironmentFault, ExitCode, StoreError, UsageError
from aqa_shared.manifest import find_videos
from aqa_shared.records import ExtractSettings, FlowSettings, Pixels, Sampling, Video
from aqa_shared.store import FeatureStore, compact, finalise, missing, verify
from aqa_shared.store import contents as contents_of
from aqa_shared.store.stage import failure_key

BIN = Path(sys.executable).parent
SMALL = ("--segments", "2", "--short-side", "32", "--crop", "32", "--weights", "rgb=i3d-kinetics-400")
SETTINGS = ExtractSettings(
    sampling=Sampling(segments=2), pixels=Pixels(short_side=32, crop=32), weights={"rgb": "i3d-kinetics-400"}
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, i3d_rgb_weights: str) -> Path:
    """Six different clips, one of them broken, and labels for four."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "sub").mkdir()
    for i, frames in enumerate((20, 24, 28, 34, 40)):
        Clip(frames=frames, size=(64 + 2 * i, 48)).write(folder / ("sub" if i == 4 else "") / f"clip{i}")
    (folder / "broken.mp4").write_bytes(b"not a video at all" * 100)
    rows = ["id,score,split"] + [f"clip{i}.mp4,{50 + 7 * i},{'train' if i < 3 else 'test'}" for i in range(4)]
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def run_command(clips: Path, store: Path, *extra: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "aqa-extract", clips, "--out", store, *SMALL, *extra],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=240,
    )


def contents(store: Path) -> dict[str, bytes]:
    """Every object of a compacted copy of the store but those that say when it was made, or how long a failure took."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(store, Path(folder) / "s"))
        compact(copy)
        files = {p.relative_to(copy).as_posix(): p for p in sorted(copy.rglob("*")) if p.is_file()}
        return {k: p.read_bytes() for k, p in files.items() if not k.startswith(("zarr.json", "log/", "failures/"))}


def committed(store: Path) -> int:
    """How many videos are staged."""
    return len(list(store.glob("staged/*.npz")))


def plan(videos: Sequence[Video], store: Path, settings: ExtractSettings, options: Options) -> Plan:
    return read_plan(videos, store, settings, options)[0]


@pytest.fixture(scope="module")
def undisturbed(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("stores") / "undisturbed.zarr"
    done = run_command(clips, store)
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    return store


def test_the_command_fills_a_store_and_names_what_it_could_not_use(clips: Path, undisturbed: Path) -> None:
    store = FeatureStore.open(undisturbed)
    assert store.ids == ["clip0.mp4", "clip1.mp4", "clip2.mp4", "clip3.mp4", "sub/clip4.mp4"]
    assert store.lengths.tolist() == [2] * 5
    assert store.read("rgb").shape == (10, 1024)
    assert np.isfinite(store.read("rgb")).all()
    assert store.table["score"][:4].tolist() == [50, 57, 64, 71]
    assert np.isnan(store.table["score"][4])
    assert store.table["split"].tolist() == ["train", "train", "train", "test", ""]
    assert store.table["n_frames"].tolist() == [20, 24, 28, 34, 40]
    assert store.provenance["weights"]["rgb"]["name"] == "i3d-kinetics-400"
    assert verify(undisturbed) == []
    failures = quarantine.read(undisturbed)
    assert list(failures) == ["broken.mp4"]
    assert failures["broken.mp4"].stage == "probe"


def test_frame_indices_are_those_of_the_sampling(undisturbed: Path) -> None:
    store = FeatureStore.open(undisturbed)
    first = store.video("clip0.mp4", "frame_index")
    assert first[0].tolist() == list(range(16))
    assert first[1].tolist() == list(range(4, 20))
    times = store.video("clip0.mp4", "segment_start_time"), store.video("clip0.mp4", "segment_end_time")
    np.testing.assert_allclose(times[0], [0, 4 / 25], atol=1e-6)
    np.testing.assert_allclose(times[1], [16 / 25, 20 / 25], atol=1e-6)


def test_a_feature_is_what_the_network_says_of_those_frames(clips: Path, undisturbed: Path) -> None:
    """The engine against the shortest way there is: decode, resize, crop, one call of I3D."""
    import av

    from aqa_extract import frames as px
    from aqa_extract.i3d import load_i3d

    with av.open(str(clips / "clip1.mp4")) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    x = torch.from_numpy(frames[8:24]).permute(0, 3, 1, 2)
    x = (
        px.centre_crop(px.resize(x, px.size_at_short_side(*x.shape[-2:], SETTINGS.pixels.short_side)), 32).float()
        / 127.5
        - 1
    )
    network, _ = load_i3d("i3d-kinetics-400", "rgb")
    with torch.inference_mode():
        expected = network.features(x.transpose(0, 1)[None])[0].numpy()
    got = FeatureStore.open(undisturbed).video("clip1.mp4", "rgb")[1]
    # Another batch size may choose another kernel, whose sums are rounded in another order.
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_segments_follow_the_length_or_what_they_miss_is_said(clips: Path, tmp_path: Path) -> None:
    done = run_command(clips, tmp_path / "auto.zarr", "--segments", "auto")
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    assert "of the frames" not in done.stderr
    store = FeatureStore.open(tmp_path / "auto.zarr")
    assert dict(zip(store.ids, store.lengths.tolist(), strict=True)) == {
        "clip0.mp4": 2,
        "clip1.mp4": 2,
        "clip2.mp4": 2,
        "clip3.mp4": 3,
        "sub/clip4.mp4": 3,
    }
    done = run_command(clips / "sub", tmp_path / "one.zarr", "--segments", "1")
    assert "1 segment of 16 frames looks at 40% of the frames" in done.stderr
    assert "--segments auto looks at all of them (about 3 segments a video, 3 times the work" in done.stderr


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


def test_features_do_not_depend_on_batch_workers_or_neighbours(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    videos = [v for v in find_videos(clips).videos if v.id != "broken.mp4"]
    extract(videos[::-1], tmp_path / "b.zarr", SETTINGS, Options(workers=3))
    assert np.array_equal(
        FeatureStore.open(tmp_path / "b.zarr").read("rgb"), FeatureStore.open(undisturbed).read("rgb")
    )
    extract(videos[1:2], tmp_path / "alone.zarr", SETTINGS)
    alone = FeatureStore.open(tmp_path / "alone.zarr").read("rgb")
    assert np.array_equal(alone, FeatureStore.open(undisturbed).video(videos[1].id, "rgb"))


def test_the_cores_share_one_video_and_change_no_bit(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SETTINGS.model_copy(
        update={
            "streams": ("rgb", "flow", "actor-rgb"),
            "flow": FlowSettings(mode="parity"),
            "weights": {**SETTINGS.weights, "flow": "inflated-from-rgb", "actor": "ssd-mobilenet-v3"},
            "sampling": Sampling(segments=5),
        }
    )
    stores = []
    for cores in (1, 3):
        monkeypatch.setattr("aqa_extract.run.available_cores", lambda cores=cores: cores)
        stores.append(tmp_path / f"{cores}.zarr")
        extract(find_videos(clips).videos[4:5], stores[-1], settings)
    assert contents(stores[0]) == contents(stores[1])
    assert FeatureStore.open(stores[0]).table["motion"][0] > 0


def test_new_labels_reach_the_store_without_extracting_again(clips: Path, tmp_path: Path) -> None:
    store = tmp_path / "labels.zarr"
    video = find_videos(clips).videos[1]
    extract([video], store, SETTINGS)
    report = extract([video.model_copy(update={"score": 12.5, "difficulty": 3.1})], store, SETTINGS)
    assert report.extracted == 0
    table = FeatureStore.open(store).table
    assert (table["score"][0], table["difficulty"][0]) == (12.5, 3.1)


def test_equal_files_are_extracted_once_and_stored_under_both_ids(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "in" / name).write_bytes((clips / "clip0.mp4").read_bytes())
    videos = find_videos(tmp_path / "in").videos
    assert len(plan(videos, tmp_path / "twins.zarr", SETTINGS, Options()).jobs) == 1
    report = extract(videos, tmp_path / "twins.zarr", SETTINGS)
    assert report.extracted == 2
    store = FeatureStore.open(tmp_path / "twins.zarr")
    assert store.ids == ["a.mp4", "b.mp4"]
    assert np.array_equal(store.video("a.mp4", "rgb"), store.video("b.mp4", "rgb"))


def bytes_read() -> int:
    """By this process so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts reads as Linux does")
def test_planning_reads_no_file_that_has_no_equal_in_size(tmp_path: Path) -> None:
    for i in range(20):
        with (tmp_path / f"{i}.mp4").open("wb") as f:
            f.truncate((8 << 20) + i)
    videos = find_videos(tmp_path).videos
    before = bytes_read()
    assert len(plan(videos, tmp_path / "s.zarr", SETTINGS, Options()).jobs) == 20
    assert bytes_read() - before < 1 << 20


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts reads as Linux does")
def test_planning_reads_a_file_of_many_rows_once(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        with (tmp_path / name).open("wb") as f:
            f.write(name.encode())
            f.truncate(8 << 20)
    videos = [
        Video(id=f"{name}-{i}", path=str(tmp_path / name), start=i) for name in ("a.mp4", "b.mp4") for i in range(50)
    ]
    before = bytes_read()
    intended = plan(videos, tmp_path / "s.zarr", SETTINGS, Options())
    assert bytes_read() - before < 8 << 20
    assert len(intended.jobs) == 100
    assert "to extract  100 videos: " in (text := Estimate(intended, SETTINGS).text())
    assert "16.8 MB of files" in text


def test_a_copied_folder_is_known_by_content(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "in", copy_function=shutil.copy)
    for path in (tmp_path / "in").rglob("*.mp4"):
        os.utime(path, ns=(1, 1))
    videos = [v for v in find_videos(tmp_path / "in").videos if v.id != "broken.mp4"]
    intended = plan(videos, undisturbed, SETTINGS, Options())
    assert (len(intended.already), intended.jobs, intended.refused) == (5, [], [])


def test_a_file_that_changed_is_refused_not_mixed_in(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    target = tmp_path / "in" / "a.mp4"
    target.write_bytes((clips / "clip0.mp4").read_bytes())
    videos = find_videos(tmp_path / "in").videos
    extract(videos, tmp_path / "s.zarr", SETTINGS)
    target.write_bytes((clips / "clip1.mp4").read_bytes())
    report = extract(videos, tmp_path / "s.zarr", SETTINGS)
    assert [f.reason for f in report.failures] == ["id_conflict"]
    intended = plan(videos, tmp_path / "s.zarr", SETTINGS, Options())
    assert intended.kept_out == []
    (refused,) = [
        row for row in Estimate(intended, SETTINGS).text().splitlines() if row.startswith("refused     a.mp4: ")
    ]
    assert refused.endswith("(id_conflict)")
    assert report.exit_code == ExitCode.QUARANTINED


def test_a_corrected_file_replaces_its_old_features(clips: Path, tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    paths = {id: tmp_path / f"{i}.mp4" for i, id in enumerate(("a.mp4", "b.mp4", "c, d.mp4"))}

    def run(sources: dict[str, int], score: float, *replace: str) -> Report:
        for id, source in sources.items():
            shutil.copy(clips / f"clip{source}.mp4", paths[id])
        videos = [Video(id=id, path=str(path), score=score) for id, path in paths.items()]
        return extract(videos, store, SETTINGS, Options(replace=replace))

    assert run({"a.mp4": 0, "b.mp4": 1, "c, d.mp4": 2}, 1.0).extracted == 3
    first = FeatureStore.open(store)
    old = {id: first.video(id, "rgb") for id in paths}
    paths["b.mp4"].write_bytes(b"half a download")
    report = run({"a.mp4": 2, "c, d.mp4": 0}, 2.0)
    assert {f.id: f.reason for f in report.failures} == dict.fromkeys(paths, "id_conflict")
    assert "--replace ID" in report.text()
    with pytest.raises(UsageError, match=r"'x\.mp4'"):
        run({}, 2.0, "a.mp4,x.mp4")

    report = run({}, 2.0, "a.mp4", "c, d.mp4")
    assert (report.extracted, [f.id for f in report.failures]) == (2, ["b.mp4"])
    second = FeatureStore.open(store)
    assert np.array_equal(second.video("a.mp4", "rgb"), old["c, d.mp4"])
    assert np.array_equal(second.video("c, d.mp4", "rgb"), old["a.mp4"])
    assert second.table["score"].tolist() == [2, 1, 2]
    # A new version that cannot be used leaves the old features, with the old label.
    report = run({}, 3.0, "changed")
    assert (report.extracted, report.already, [f.id for f in report.failures]) == (0, 2, ["b.mp4"])
    third = FeatureStore.open(store)
    assert np.array_equal(third.video("b.mp4", "rgb"), old["b.mp4"])
    assert third.table["score"].tolist() == [3, 1, 3]
    assert verify(store) == []


def test_an_id_that_another_file_has_is_named_with_both_files(clips: Path, tmp_path: Path) -> None:
    """One more day of videos, of which one bears the name of an earlier one: that is no new version of it."""
    store, paths = tmp_path / "s.zarr", [tmp_path / day / "x.mp4" for day in ("monday", "tuesday")]
    for i, path in enumerate(paths):
        path.parent.mkdir()
        shutil.copy(clips / f"clip{i}.mp4", path)
    assert extract(find_videos(paths[0]).videos, store, SETTINGS).extracted == 1
    old = FeatureStore.open(store).video("x.mp4", "rgb")
    for replace in ((), ("changed",), ("changed,",)):
        report = extract(find_videos(paths[1]).videos, store, SETTINGS, Options(replace=replace))
        assert [f.reason for f in report.failures] == ["id_taken"]
        assert f"from another file, {paths[0]}" in report.failures[0].detail
        assert str(tmp_path) in report.failures[0].detail
    assert np.array_equal(FeatureStore.open(store).video("x.mp4", "rgb"), old)
    # Named by its id it is replaced: somebody may have moved the corrected files elsewhere.
    assert extract(find_videos(paths[1]).videos, store, SETTINGS, Options(replace=("changed", "x.mp4"))).extracted == 1
    # A file that was moved and changed is the old one's new version: the old one is no longer there.
    paths[1].unlink()
    report = extract(find_videos(paths[0]).videos, store, SETTINGS)
    assert [f.reason for f in report.failures] == ["id_conflict"]


def test_the_option_takes_ids_again_or_with_commas(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path / "in")
    for i in range(3):
        shutil.copy(clips / "sub" / "clip4.mp4", tmp_path / "in" / f"clip{i}.mp4")
    options = ("--replace", "clip0.mp4,clip1.mp4", "--replace", "clip2.mp4", "--dry-run")
    done = run_command(tmp_path / "in", undisturbed, *options)
    assert done.returncode == ExitCode.QUARANTINED, done.stderr
    assert [line.split()[-1] for line in done.stdout.splitlines() if "to replace" in line] == [
        "clip0.mp4",
        "clip1.mp4",
        "clip2.mp4",
    ]


def test_a_recorded_file_that_cannot_be_read_is_no_conflict(clips: Path, tmp_path: Path) -> None:
    """A link whose target is away: nobody can say that it is another file, and --overwrite would lose features."""
    (tmp_path / "a.mp4").write_bytes((clips / "clip0.mp4").read_bytes())
    video = Video(id="a.mp4", path=str(tmp_path / "link.mp4"), score=1.0)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    extract([video], tmp_path / "s.zarr", SETTINGS)
    (tmp_path / "a.mp4").rename(tmp_path / "away")
    report = extract([video], tmp_path / "s.zarr", SETTINGS)
    assert [f.reason for f in report.failures] == ["unreadable"]
    assert "overwrite" not in report.text()
    assert "retry-failed" not in report.text()
    assert [f.reason for f in plan([video], tmp_path / "s.zarr", SETTINGS, Options()).refused] == ["unreadable"]
    (tmp_path / "away").rename(tmp_path / "a.mp4")
    report = extract([video], tmp_path / "s.zarr", SETTINGS)
    assert (report.already, report.failures) == (1, [])
    assert quarantine.read(tmp_path / "s.zarr") == {}


def test_a_part_that_changed_is_refused_and_its_label_does_not_stick(clips: Path, tmp_path: Path) -> None:
    video = find_videos(clips).videos[4].model_copy(update={"start": 0, "end": 20, "score": 1.0})
    store = tmp_path / "s.zarr"
    extract([video], store, SETTINGS)
    other = video.model_copy(update={"start": 4, "end": 24, "score": 9.0})
    assert [f.reason for f in extract([other], store, SETTINGS).failures] == ["id_conflict"]
    assert FeatureStore.open(store).table["score"][0] == 1.0


def test_parts_are_extracted_as_parts(clips: Path, undisturbed: Path, tmp_path: Path) -> None:
    """The second segment of a 20-frame part that begins at 4 is frames 8..24 of the file."""
    video = find_videos(clips).videos[2].model_copy(update={"start": 4, "end": 24})
    extract([video], tmp_path / "s.zarr", SETTINGS)
    part = FeatureStore.open(tmp_path / "s.zarr")
    assert part.video(video.id, "frame_index")[1].tolist() == list(range(8, 24))
    assert np.array_equal(part.read("rgb")[1], FeatureStore.open(undisturbed).video(video.id, "rgb")[1])


def test_shape_and_colours_are_recorded(tmp_path: Path, i3d_rgb_weights: str) -> None:
    (tmp_path / "v").mkdir()
    hlg = {"colorspace": 9, "color_primaries": 9, "color_trc": 18, "color_range": 1}
    Clip(aspect=Fraction(2), color=hlg).write(tmp_path / "v" / "hlg")
    Clip().write(tmp_path / "v" / "plain")
    videos, store = find_videos(tmp_path / "v").videos, tmp_path / "s.zarr"
    extract(videos, store, SETTINGS)
    hdr, plain = FeatureStore.open(store).metas
    assert (hdr["width"], hdr["height"], hdr["sample_aspect_ratio"]) == (128, 48, "2:1")
    assert [hdr[f"color_{name}"] for name in ("primaries", "transfer", "matrix", "range")] == [
        "bt2020",
        "arib-std-b67",
        "bt2020nc",
        "tv",
    ]
    assert (hdr["tone_mapped"], hdr["assumed_matrix"]) == ("hlg", "")
    assert (plain["tone_mapped"], plain["assumed_matrix"], plain["color_matrix"]) == ("", "bt601", "unknown")
    other = SETTINGS.model_copy(update={"pixels": SETTINGS.pixels.model_copy(update={"untagged_matrix": "bt709"})})
    with pytest.raises(StoreError, match="untagged_matrix"):
        extract(videos, store, other)


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


def test_other_settings_are_refused_with_the_difference(clips: Path, undisturbed: Path) -> None:
    videos = find_videos(clips).videos
    other = SETTINGS.model_copy(update={"bn_eps": 1e-5})
    with pytest.raises(StoreError, match="bn_eps"):
        extract(videos, undisturbed, other)


def test_flow_streams_store_motion(clips: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(
        update={
            "streams": ("rgb", "flow"),
            "flow": FlowSettings(mode="parity"),
            "weights": {**SETTINGS.weights, "flow": "inflated-from-rgb"},
            "sampling": Sampling(segments=1),
        }
    )
    extract(find_videos(clips).videos[1:2], tmp_path / "flow.zarr", settings)
    store = FeatureStore.open(tmp_path / "flow.zarr")
    assert store.streams == ("rgb", "flow")
    assert np.isfinite(store.read("flow")).all()
    assert not np.allclose(store.read("flow"), store.read("rgb"))
    assert store.table["motion"][0] > 0
    assert "inflated from rgb" in json.dumps(store.provenance["weights"]["flow"])


def test_logits_and_maps_on_request(clips: Path, tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"streams": ("rgb", "rgb:logits", "rgb:map")})
    extract(find_videos(clips).videos[1:2], tmp_path / "maps.zarr", settings)
    store = FeatureStore.open(tmp_path / "maps.zarr")
    assert store.read("rgb_logits").shape == (2, 400)
    maps = store.read("rgb_map")
    assert maps.shape == (2, 1024, 2, 1, 1)
    np.testing.assert_allclose(maps.mean(axis=(2, 3, 4)), store.read("rgb"), atol=1e-5)


def test_a_store_begun_with_a_default_goes_on_with_those_weights(clips: Path, undisturbed: Path) -> None:
    asked = SETTINGS.model_copy(update={"weights": {}})
    assert pinned(asked, contents_of(undisturbed)).weights == {"rgb": "i3d-kinetics-400"}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--streams", "rgb,flwo"), ExitCode.USAGE, "flwo"),
        (("--streams", "flow", "--flow", "off"), ExitCode.USAGE, "--flow"),
        (("--crop", "64"), ExitCode.USAGE, "short_side"),
        (("--protocol", "evn"), ExitCode.USAGE, "error: protocol: "),
        (("--flow-bound", "-1"), ExitCode.USAGE, "error: flow_bound: "),
        (("--actor-every", "0"), ExitCode.USAGE, "error: actor_every: "),
        (("--untagged-matrix", "bt2020"), ExitCode.USAGE, "error: untagged_matrix: "),
        (("--workers", "0"), ExitCode.USAGE, "error: workers: "),
        (("--device", "cuda:9"), ExitCode.ENVIRONMENT, "cuda:9"),
        (("--weights", "rgb=no-such-weights"), ExitCode.USAGE, "no-such-weights"),
    ],
)
def test_wrong_options_say_what_to_do(
    clips: Path, tmp_path: Path, arguments: tuple[str, ...], code: ExitCode, words: str
) -> None:
    done = run_command(clips, tmp_path / "s.zarr", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_an_empty_folder_is_no_input(tmp_path: Path) -> None:
    done = run_command(tmp_path, tmp_path / "s.zarr")
    assert done.returncode == ExitCode.NO_INPUT
    assert not (tmp_path / "s.zarr").exists()
