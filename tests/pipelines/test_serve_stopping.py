"""The service begins, is killed, loses its store, drains: no job is lost."""

from __future__ import annotations

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.extract.clips import Clip
from tests.extract.run.command import contents, run_command
from tests.pipelines.commands import run
from tests.pipelines.serving import ENDED, GRACE, LARGE, Serving, state_files, until

from aqa_extract import quarantine
from aqa_shared.errors import ExitCode
from aqa_shared.store import FeatureStore, verify


@pytest.mark.slow
def test_a_queue_killed_twice_gives_the_bytes_of_aqa_extract(videos: Path, names: list[str], tmp_path: Path) -> None:
    once, store, state = tmp_path / "once.zarr", tmp_path / "s.zarr", tmp_path / "s.zarr.jobs"
    assert run_command(videos, once).returncode == ExitCode.QUARANTINED
    with Serving(store, "--root", videos) as service:
        for name in names:
            assert service.submit(name).status_code == 202
        until(lambda: list(store.glob("staged/*.json")))
        extractor = service.extractor()
    until(lambda: not Path(f"/proc/{extractor}").exists())
    (state / "jobs" / ".torn.json.1.partial").write_text("{")
    (state / "uploads" / ".half.part").write_bytes(b"half")
    with Serving(store, "--root", videos) as service:
        until(lambda: sum(j["state"] in ENDED for j in service.jobs()) >= 2)
    with Serving(store, "--root", videos) as service:
        jobs = service.all_ended()
        assert {k: j["state"] for k, j in jobs.items()} == {
            name: "failed" if name == "broken.mp4" else "done" for name in names
        }
        assert service.stop() == ExitCode.OK
    assert not verify(store)
    assert state_files(state) == []
    assert {i: f.reason for i, f in quarantine.read(store).items()} == {"broken.mp4": "not_a_video"}
    assert contents(store) == contents(once)


def test_an_extraction_process_that_dies_loses_nothing(videos: Path, names: list[str], tmp_path: Path) -> None:
    with Serving(tmp_path / "s.zarr", "--root", videos) as service:
        extractor = service.extractor()
        os.kill(extractor, signal.SIGSTOP)  # until there is enough to do for a while
        for name in names:
            service.submit(name)
        for name in set(names) - {"broken.mp4"}:
            for start in range(6):
                assert service.submit(name, start=start, end=start + 10).status_code == 202
        os.kill(extractor, signal.SIGCONT)
        until(lambda: any(job["state"] == "running" for job in service.jobs()))
        os.kill(extractor, signal.SIGKILL)
        service.wait_for("started again")
        assert service.call("GET", "/readyz").status_code == 503
        assert service.call("GET", "/healthz").status_code == 200
        jobs = service.all_ended()
        assert {k for k, j in jobs.items() if j["state"] != "done"} == {"broken.mp4"}
        until(lambda: service.call("GET", "/readyz").status_code == 200)


def test_a_store_that_is_gone_fails_no_video(videos: Path, tmp_path: Path) -> None:
    store, away = tmp_path / "s.zarr", tmp_path / "away"
    with Serving(store, "--root", videos) as service:
        service.ended(service.submit("clip0.mp4").json()["id"])
        store.rename(away)
        store.write_text("in the way")
        job = service.submit("clip1.mp4").json()["id"]
        until(lambda: service.call("GET", "/readyz").status_code == 503)
        assert str(store) in service.call("GET", "/readyz").json()["detail"]
        assert service.job(job)["state"] in ("queued", "running")
        store.unlink()
        away.rename(store)
        assert service.ended(job)["state"] == "done"
        assert service.job(job)["deaths"] == 0
        store.rename(away)
        job = service.submit("clip2.mp4").json()["id"]
        until(lambda: service.call("GET", "/readyz").status_code == 503)
        assert service.job(job)["state"] not in ENDED

        def put_back() -> bool:
            shutil.rmtree(store, ignore_errors=True)  # what was put there without a store around it
            with suppress(OSError):  # more of that
                away.rename(store)
            return not away.exists()

        until(put_back)
        assert service.ended(job)["state"] == "done"
    assert set(FeatureStore.open(store).ids) == {"clip0.mp4", "clip1.mp4", "clip2.mp4"}


def test_a_drain_that_cannot_finalise_says_so_and_the_next_start_makes_up_for_it(videos: Path, tmp_path: Path) -> None:
    store, away = tmp_path / "s.zarr", tmp_path / "away"
    with Serving(store, "--root", videos, "--finalise-every", "3600") as service:
        service.ended(service.submit("clip0.mp4").json()["id"])  # the first is finalised at once
        job = service.submit("clip1.mp4").json()["id"]
        until(lambda: service.job(job)["state"] == "committed")
        store.rename(away)
        store.write_text("in the way")
        assert service.stop() == ExitCode.STORE
        assert str(store) in service.finish_reading()
    store.unlink()
    away.rename(store)
    assert FeatureStore.open(store).ids == ["clip0.mp4"]
    with Serving(store, "--root", videos) as service:
        assert service.ended(job)["state"] == "done"
        assert service.stop() == ExitCode.OK
    assert FeatureStore.open(store).ids == ["clip0.mp4", "clip1.mp4"]


@pytest.mark.slow
def test_what_keeps_it_from_beginning_is_said(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    store = tmp_path / "s.zarr"
    for options, code, words in (
        (["--store", tmp_path / "other"], ExitCode.STORE, "has other things in it"),
        (["--store", store, "--devices", "cuda:7"], ExitCode.ENVIRONMENT, "cuda:7"),
        (["--store", store, "--root", tmp_path / "none"], ExitCode.USAGE, "is not a folder"),
        (["--store", store, "--host", "0.0.0.0"], ExitCode.USAGE, "needs a token"),
        (["--store", store, "--token-file", tmp_path / "none"], ExitCode.ENVIRONMENT, "openssl"),
        (["--store", tmp_path / "s.zarr", "--watch", tmp_path], ExitCode.USAGE, "which is watched"),
        (["--store", "s3://bucket/s.zarr"], ExitCode.USAGE, "--state"),
        (["--store", store, "--segments", "0"], ExitCode.USAGE, "segments"),
        (["--store", store, "--flow-bound", "3"], ExitCode.USAGE, "would be ignored"),
        ([], ExitCode.USAGE, "--store is missing"),
    ):
        done = run("aqa", "serve", "extract", *options, "--port", "0")
        assert (done.returncode, words in done.stderr) == (code, True), (options, done.stderr)
    done = run("aqa", "serve", "extract", "--store", str(store), AQA_SERVE_TOKEN="short")
    assert (done.returncode, "16 characters" in done.stderr) == (ExitCode.USAGE, True)
    with Serving(store, "--root", videos):
        done = run("aqa", "serve", "extract", "--store", store)
        assert (done.returncode, "another service" in done.stderr) == (ExitCode.USAGE, True)


def test_the_options_are_written_as_a_file_reads_them(videos: Path, tmp_path: Path) -> None:
    asked = ["aqa", "serve", "extract", "--store", "s.zarr", "--root", videos, "--preset", "gdlt", "--devices", "cpu"]
    written = run(*asked, "--print-config")
    (tmp_path / "serve.toml").write_text(written.stdout)
    again = run("aqa", "serve", "extract", "--config", tmp_path / "serve.toml", "--print-config")
    assert (again.returncode, again.stdout) == (0, written.stdout), again.stderr


@pytest.mark.slow
def test_a_full_queue_a_cancel_and_a_drain(tmp_path: Path, i3d_rgb_weights: str) -> None:
    folder = tmp_path / "large"
    folder.mkdir()
    large = Clip(frames=40, size=(1920, 1080), options={"preset": "ultrafast"}).write(tmp_path / "large0")
    for i in range(16):
        os.link(large, folder / f"large{i:02}.mp4")
    weights = {"AQA_SERVE_WEIGHTS": f"rgb={i3d_rgb_weights},flow=inflated-from-rgb"}
    with Serving(tmp_path / "s.zarr", "--root", folder, "--queue", "2", **{**LARGE, **weights}) as service:
        taken = []
        for path in sorted(folder.iterdir()):
            answer = service.submit(path)
            if answer.status_code != 202:
                break
            taken.append(answer.json()["id"])
            time.sleep(0.5)  # for the device to take what it has room for
        assert (answer.status_code, answer.headers["Retry-After"].isdecimal()) == (429, True)
        assert "--queue" in answer.json()["detail"]
        assert service.submit("large00.mp4").status_code == 200, "what is known needs no room"
        assert service.upload("more.mp4", b"x").status_code == 429
        queued = next(job["id"] for job in service.jobs() if job["state"] == "queued")
        assert service.call("DELETE", f"/jobs/{queued}").json()["state"] == "cancelled"
        assert service.call("DELETE", f"/jobs/{queued}").status_code == 200
        assert service.submit(path).status_code == 202
        running = until(lambda: len(r := [j["id"] for j in service.jobs() if j["state"] == "running"]) > 1 and r)
        assert service.call("DELETE", f"/jobs/{running[-1]}").status_code == 202
        assert service.ended(running[-1])["state"] == "cancelled"
        assert service.job(running[0])["state"] == "running", "it takes minutes"
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.call("GET", "/readyz").status_code == 503)
        assert service.submit("large15.mp4").status_code == 503
        assert service.call("GET", "/healthz").status_code == 200
        begun = time.monotonic()
        assert service.process.wait(GRACE + 10) == ExitCode.TERMINATED
        assert time.monotonic() - begun < GRACE + 8
        assert "for the next start" in service.finish_reading()
    assert len(list((tmp_path / "s.zarr.jobs" / "jobs").iterdir())) == len(taken) + 1


def test_a_drain_finishes_what_has_begun_and_keeps_the_rest(videos: Path, names: list[str], tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    with Serving(store, "--root", videos) as service:
        for name in names:
            service.submit(name)
        service.upload("kept.mp4", (videos / "clip0.mp4").read_bytes())
        until(lambda: any(job["state"] in ("committed", "done") for job in service.jobs()))
        assert service.stop() in (ExitCode.OK, ExitCode.TERMINATED)
        said = service.finish_reading()
    in_store = set(FeatureStore.open(store).ids)
    assert in_store, said
    assert not list(store.glob("staged/*")), "finalised"
    with Serving(store, "--root", videos) as service:
        jobs = service.all_ended()
        assert in_store < jobs.keys() or in_store == jobs.keys() - {"broken.mp4"}
        assert all(job["state"] == "done" for name, job in jobs.items() if name != "broken.mp4")
        assert service.stop() == ExitCode.OK
    assert set(FeatureStore.open(store).ids) == {*names, "kept.mp4"} - {"broken.mp4"}
    assert state_files(tmp_path / "s.zarr.jobs") == []
