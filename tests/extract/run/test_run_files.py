"""Which file a video was: equal files, copies, corrected files, other files of the same id."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.extract.run.command import SETTINGS, plan, run_command

from aqa_extract import quarantine
from aqa_extract.config import Options
from aqa_extract.estimate import Estimate
from aqa_extract.run import Report, extract
from aqa_shared.errors import ExitCode, UsageError
from aqa_shared.manifest import find_videos
from aqa_shared.records import Video
from aqa_shared.store import FeatureStore, verify


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
