"""The queue and its journal, without processes: what is done again, by whom, and what is remembered."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from aqa_extract.job import VideoJob
from aqa_pipelines.serve.asked import video_at
from aqa_pipelines.serve.jobs import DEATHS, Closed, Conflict, Full, Job, Jobs, job_id
from aqa_pipelines.serve.watch import Watch
from aqa_shared.records import Failure, Video


def video(name: str) -> Video:
    return Video(id=name, path=f"/videos/{name}")


def failure(name: str, reason: str) -> Failure:
    return VideoJob(video(name), None).failed(reason, "decode", f"{reason}, it was")


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path, 4)


def again(jobs: Jobs) -> Jobs:
    """As the next start finds them, after a kill."""
    jobs._held.close()
    return Jobs(jobs.folder.parent, jobs.limit)


def claimed(jobs: Jobs, device: str = "cpu") -> str | None:
    job = jobs.claim(device)
    return job.video.id if job else None


def states(jobs: Jobs) -> dict[str, str]:
    return {job.video.id: job.state for job in jobs.page(0, 100, None)}


def end(jobs: Jobs, name: str, reason: str = "") -> Job:
    assert claimed(jobs) == name
    jobs.finish(job_id(name), failure(name, reason) if reason else None)
    if not reason:
        jobs.settle(job_id(name), stored=True)
    return jobs[job_id(name)]


def test_it_has_room_for_so_many(jobs: Jobs) -> None:
    for name in "abc":
        jobs.submit(video(name), "1")
    with jobs.place():
        with pytest.raises(Full):
            jobs.submit(video("d"), "1")
        with pytest.raises(Full), jobs.place():
            pass
        assert jobs.submit(video("a"), "1")[1] is False, "it is known"
    jobs.submit(video("d"), "1")
    assert claimed(jobs) == "a"
    jobs.submit(video("e"), "1")
    jobs.close()
    with pytest.raises(Closed):
        jobs.submit(video("f"), "1")
    assert claimed(jobs) is None


def test_the_same_question_has_the_same_answer(jobs: Jobs) -> None:
    first, new = jobs.submit(video("a"), "1")
    assert (new, first.number, jobs.submit(video("a"), "1")) == (True, 1, (first, False))
    with pytest.raises(Conflict, match="another file, part or version"):
        jobs.submit(video("a"), "2")
    done = end(jobs, "a")
    assert (done.state, jobs.submit(video("a"), "1")) == ("done", (done, False))
    assert jobs.submit(video("a"), "2")[0].number == 2, "the file has changed"
    assert end(jobs, "a", "not_a_video").fault == "the video"
    assert jobs.submit(video("a"), "2")[1] is False, "it would fail again"
    jobs.submit(video("a"), "3")
    assert end(jobs, "a", "read_error").fault == "the machine, the installation or a library"
    job, new = jobs.submit(video("a"), "3")
    assert (new, job.reason, job.detail, job.state) == (True, "", "", "queued")
    assert jobs.cancel(job.id).state == "cancelled"
    assert jobs.submit(video("a"), "3")[1] is True


def test_a_kill_loses_nothing(jobs: Jobs) -> None:
    for name in "abcd":
        jobs.submit(video(name), "1")
    assert claimed(jobs) == "a"
    jobs.finish(job_id("a"), None)
    assert claimed(jobs) == "b"
    jobs.cancel(job_id("d"))
    (jobs.folder / f"{job_id('c')}.json").write_bytes(b"{torn")
    then = again(jobs)
    assert states(then) == {"a": "committed", "b": "queued", "d": "cancelled"}
    assert (then.submit(video("c"), "1")[0].number, claimed(then)) == (5, "b")
    then.settle(job_id("a"), stored=False)
    assert states(then)["a"] == "queued", "the store lost it"


def test_what_is_being_cancelled_is_not_done_after_a_kill_nor_asked_for_again_meanwhile(jobs: Jobs) -> None:
    for name in "ab":
        jobs.submit(video(name), "1")
        assert claimed(jobs) == name
        assert jobs.cancel(job_id(name)).state == "running"
    with pytest.raises(Conflict, match="a is being cancelled: ask again when it has ended"):
        jobs.submit(video("a"), "1")
    jobs.finish(job_id("b"), None)  # its commit was first
    then = again(jobs)
    assert states(then) == {"a": "cancelled", "b": "committed"}
    assert claimed(then) is None
    assert then.submit(video("a"), "1")[1] is True


def test_names_that_are_no_text_survive(jobs: Jobs) -> None:
    odd = Video(id="\\udcff.mp4", path="/videos/\udcff.mp4")
    jobs.submit(odd, "1")
    assert again(jobs).claim("cpu").video == odd


def test_who_kills_processes_is_found_out(jobs: Jobs) -> None:
    for name in "abc":
        jobs.submit(video(name), "1")
    assert [claimed(jobs) for _ in range(3)] == ["a", "b", "c"]
    jobs.give_back("cpu", died=True)
    assert claimed(jobs) == "a"
    assert claimed(jobs) is None, "it runs alone"
    jobs.finish(job_id("a"), None)
    for deaths in range(2, DEATHS + 1):
        assert claimed(jobs) == "b"
        assert claimed(jobs) is None
        jobs.give_back("cpu", died=True)
        assert jobs[job_id("b")].deaths == deaths
    job = jobs[job_id("b")]
    assert (job.state, job.fault) == ("failed", "the machine, the installation or a library")
    assert "died 3 times" in job.detail
    assert end(jobs, "c").state == "done"
    assert jobs.submit(video("b"), "1")[1] is True, "asked for again it is tried again"


def test_a_store_that_is_gone_is_no_death(jobs: Jobs) -> None:
    jobs.submit(video("a"), "1")
    jobs.submit(video("b"), "1")
    for _ in range(2 * DEATHS):
        assert [claimed(jobs), claimed(jobs)] == ["a", "b"]
        jobs.give_back("cpu", died=False)
    assert (states(jobs), jobs[job_id("a")].deaths) == ({"a": "queued", "b": "queued"}, 0)


def test_a_journal_that_cannot_be_written_promises_nothing(jobs: Jobs, tmp_path: Path) -> None:
    jobs.submit(video("a"), "1")
    shutil.rmtree(jobs.folder)
    with pytest.raises(OSError, match="No such file"):
        jobs.submit(video("b"), "1")
    (tmp_path / "coming").write_bytes(b"x")
    with pytest.raises(OSError, match="No such file"):
        jobs.submit(Video(id="c", path=str(jobs.uploads / "c")), "1", tmp_path / "coming")
    assert not list(jobs.uploads.iterdir()), "nothing is left of an upload that was refused"
    assert end(jobs, "a").state == "done"
    assert states(jobs) == {"a": "done"}


def test_a_disk_that_removes_nothing_ends_nothing(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 4, keep=0)
    for name in "xy":  # which are to be forgotten when the others have ended
        jobs.submit(video(name), "1")
        end(jobs, name)
    (tmp_path / "coming").write_bytes(b"x")
    upload = Video(id="upload", path=str(jobs.uploads / "upload"))
    jobs.submit(upload, "1", tmp_path / "coming")
    for name in "abc":
        jobs.submit(video(name), "1")
    for folder in (jobs.folder, jobs.uploads):  # to remove what is below a file is an error even of root's
        shutil.rmtree(folder)
        folder.touch()
    for name in ("upload", *"abc"):
        assert claimed(jobs) == name
        jobs.finish(job_id(name), failure(name, "not_a_video"))
    assert states(jobs) == dict.fromkeys(("upload", *"abc"), "failed")


def test_what_is_called_off_is_not_queued_again(jobs: Jobs) -> None:
    for name in "ab":
        jobs.submit(video(name), "1")
        claimed(jobs)
        assert jobs.cancel(job_id(name)).state == "running"
    jobs.finish(job_id("a"), failure("a", "interrupted"))
    jobs.give_back("cpu", died=True)
    assert states(jobs) == {"a": "cancelled", "b": "cancelled"}


def test_the_oldest_are_forgotten(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, 4, keep=6)
    jobs.submit(video("waits"), "1")
    jobs.waiting.clear()
    for i in range(20):
        jobs.submit(video(str(i)), "1")
        end(jobs, str(i))
    assert len(jobs.known) == len(list(jobs.folder.iterdir())) == 10
    assert set(states(jobs)) == {"waits", *map(str, range(11, 20))}
    assert [job.number for job in jobs.page(15, 2, "done")] == [16, 17]


def test_a_watched_folder_does_not_ask_again_for_what_was_cancelled(jobs: Jobs, tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        (folder / name).write_bytes(b"1")
        os.utime(folder / name, (time.time() - 100,) * 2)

    def looked(jobs: Jobs) -> dict[str, str]:
        watch = Watch([folder], [], jobs, settle=0.0)
        for _ in range(2):  # a file is complete when it has not changed since the first
            watch.look()
        return states(jobs)

    assert looked(jobs) == {"a.mp4": "queued", "b.mp4": "queued"}
    jobs.cancel(job_id("a.mp4"))
    jobs = again(jobs)
    assert looked(jobs) == {"a.mp4": "cancelled", "b.mp4": "queued"}
    (folder / "a.mp4").write_bytes(b"12")
    assert looked(jobs) == {"a.mp4": "queued", "b.mp4": "queued"}
    jobs.cancel(job_id("a.mp4"))
    asked, version = video_at("a.mp4", [folder])
    assert jobs.submit(asked, version)[1], "a client may"
