"""The extraction service: real processes on loopback, real clips, real signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from tests.extract.clips import Clip
from tests.extract.run.command import contents, run_command
from tests.pipelines.commands import BIN, run
from tests.pipelines.serving import ENDED, GRACE, LARGE, SMALL, Serving, until

from aqa_extract import quarantine
from aqa_shared.errors import ExitCode
from aqa_shared.store import FeatureStore, verify

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory, i3d_rgb_weights: str) -> Path:
    """Eight different clips, one of them broken; nobody changes them."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    for i in range(7):
        Clip(frames=20 + 2 * i, size=(64 + 2 * i, 48)).write(folder / ("sub" if i == 4 else "") / f"clip{i}")
    (folder / "broken.mp4").write_bytes(b"not a video at all" * 100)
    return folder


@pytest.fixture(scope="module")
def names(videos: Path) -> list[str]:
    return sorted(p.relative_to(videos).as_posix() for p in videos.rglob("*.mp4"))


@pytest.fixture(scope="module")
def service(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """One for the tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("service")
    with Serving(folder / "s.zarr", "--root", videos, "--max-upload", "1", "--state", folder / "state") as running:
        yield running


def state_files(service_folder: Path) -> list[str]:
    """What is left of uploads."""
    return [p.name for p in (service_folder / "uploads").iterdir()]


@pytest.fixture(scope="module")
def state(service: Serving) -> Path:
    arguments = service.process.args
    assert isinstance(arguments, list)
    return Path(str(arguments[arguments.index("--state") + 1]))


# asking


def test_a_path_is_extracted_once_and_readers_see_it(service: Serving, videos: Path, state: Path) -> None:
    first = service.submit("clip0.mp4")
    assert first.status_code == 202
    job = first.json()
    assert first.headers["Location"] == f"/jobs/{job['id']}"
    assert job["video"] == {"id": "clip0.mp4", "path": str(videos / "clip0.mp4")}
    again = service.submit(videos / "clip0.mp4")
    assert (again.status_code, again.json()["id"], again.json()["number"]) == (200, job["id"], job["number"])
    done = service.ended(job["id"])
    assert (done["state"], done["reason"], done["fault"]) == ("done", "", "")
    assert service.submit("clip0.mp4").status_code == 200
    store = FeatureStore.open(state.parent / "s.zarr")
    assert store.video("clip0.mp4", "rgb").shape == (2, 1024)


def test_a_part_has_the_id_that_a_manifest_gives_it(service: Serving) -> None:
    job = service.submit("clip1.mp4", start=2, end=20).json()
    assert job["video"]["id"] == "clip1.mp4#2-20"
    named = service.submit("clip1.mp4", id="entry", start_time=0.1, end_time=0.7).json()
    assert named["video"]["id"] == "entry"
    assert [service.ended(j["id"])["state"] for j in (job, named)] == ["done", "done"]
    other = service.submit("clip2.mp4", id="entry").json()
    failed = service.ended(other["id"])
    assert (failed["state"], failed["reason"], failed["fault"]) == ("failed", "id_conflict", "what was asked")


def test_lists_come_in_pages(service: Serving) -> None:
    for name in ("clip2.mp4", "clip3.mp4", "broken.mp4"):
        service.submit(name)
    service.all_ended()
    everything = [job["number"] for job in service.jobs()]
    assert everything == sorted(everything)
    seen, after = [], 0
    while after is not None:
        page = service.call("GET", f"/jobs?limit=2&after={after}").json()
        assert len(page["jobs"]) <= 2
        seen += [job["number"] for job in page["jobs"]]
        after = page["next"]
    assert seen == everything
    failed = service.call("GET", "/jobs?state=failed").json()["jobs"]
    assert {"broken.mp4"} <= {job["video"]["id"] for job in failed}
    broken = next(job for job in failed if job["video"]["id"] == "broken.mp4")
    assert (broken["reason"], broken["fault"]) == ("not_a_video", "the video")
    assert service.submit("broken.mp4").status_code == 200, "it would fail again"


def test_no_path_leads_out_of_the_roots(service: Serving, videos: Path, tmp_path: Path) -> None:
    secret = Clip(frames=20).write(tmp_path / "secret")
    link, inner = videos / "link.mp4", videos / "inner.mp4"
    folder = videos / "folder"
    os.mkfifo(videos / "pipe.mp4")
    try:
        link.symlink_to(secret)
        inner.symlink_to(videos / "clip3.mp4")
        folder.symlink_to(tmp_path)
        for path, status in (
            (secret, 403),
            (f"../{tmp_path.name}/secret.mp4", 403),
            (f"{videos}/sub/../../{tmp_path.name}/secret.mp4", 403),
            (f"{videos}x/clip0.mp4", 403),
            ("link.mp4", 403),
            ("folder/secret.mp4", 403),
            ("/etc/passwd", 403),
            ("none.mp4", 404),
            ("sub", 422),
            ("pipe.mp4", 422),
            ("nul\0.mp4", 422),
            ("", 422),
        ):
            answer = service.submit(path)
            assert answer.status_code == status, (path, answer.text)
            assert "secret" not in str(service.jobs())
        assert service.submit("inner.mp4").status_code == 202
        assert service.all_ended()["inner.mp4"]["state"] == "done"
    finally:
        for path in (link, inner, folder, videos / "pipe.mp4"):
            path.unlink(missing_ok=True)


def test_a_wrong_question_is_answered(service: Serving) -> None:
    assert service.call("GET", "/jobs/0123").status_code == 404
    assert service.call("DELETE", "/jobs/0123").status_code == 404
    assert service.submit("clip0.mp4", end=-1).status_code == 422
    assert "not both" in service.submit("clip0.mp4", start=1, end_time=2).text
    assert service.submit("clip0.mp4", id="a\x1b[31m").status_code == 422
    assert service.submit("clip0.mp4", segments=3).status_code == 422
    assert service.call("POST", "/jobs", data='{"path": "clip0.mp4"}').status_code == 422, "a form of a web page"
    assert service.call("POST", "/jobs", json={"path": "x" * 70_000}).status_code == 413
    assert service.call("GET", "/readyz", headers={"Host": "evil.example"}).status_code == 400
    done = service.submit("clip0.mp4").json()
    assert service.call("DELETE", f"/jobs/{service.ended(done['id'])['id']}").status_code == 409


def test_metrics_are_those_of_prometheus(service: Serving) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    service.submit("clip0.mp4")
    service.all_ended()
    found = {m.name: m for m in text_string_to_metric_families(service.call("GET", "/metrics").text)}
    ended = {(s.labels["state"], s.labels["fault"]): s.value for s in found["aqa_jobs_ended"].samples}
    assert ended["done", ""] >= 1
    assert found["aqa_device_ready"].samples[0].value == 1
    assert {s.labels["state"]: s.value for s in found["aqa_jobs"].samples} == {
        "queued": 0,
        "running": 0,
        "committed": 0,
    }
    assert found["process_resident_memory_bytes"].samples[0].value > 1e6


# uploads


def test_an_upload_is_extracted_and_its_file_is_gone(service: Serving, videos: Path, state: Path) -> None:
    data = (videos / "clip5.mp4").read_bytes()
    job = service.upload("..%5Cmy dive!.mp4", data)
    assert job.status_code == 202, job.text
    assert job.json()["video"]["id"] == "my_dive_.mp4"
    assert service.upload("my dive!.mp4", data).json()["id"] == job.json()["id"]
    assert service.ended(job.json()["id"])["state"] == "done"
    assert service.upload("my_dive_.mp4", data).status_code == 200, "the same bytes"
    assert state_files(state) == []
    other = service.upload("my_dive_.mp4", (videos / "clip6.mp4").read_bytes())
    assert service.ended(other.json()["id"])["reason"] == "id_conflict"
    assert state_files(state) == []


def test_hostile_uploads_fail_alone_and_leave_nothing(
    service: Serving, videos: Path, state: Path, tmp_path: Path
) -> None:
    good = (videos / "clip6.mp4").read_bytes()
    bomb = tmp_path / "bomb.mp4"
    with av.open(str(bomb), "w") as out:  # 18 megapixels in a few kilobytes
        stream = out.add_stream("mpeg4", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 4200, 4200, "yuv420p"
        black = av.VideoFrame.from_ndarray(np.zeros((6300, 4200), np.uint8), format="yuv420p")
        out.mux(stream.encode(black))
        out.mux(stream.encode())
    store = state.parent / "s.zarr"
    before = sorted((store / "failures").rglob("*"))
    wrong = {
        "empty.mp4": (b"", "empty_file"),
        "text.mp4": (b"not a video" * 1000, "not_a_video"),
        "zip.mkv": (b"PK\x03\x04" + bytes(100_000), None),
        "playlist.ts": (b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", None),
        "cut.mp4": (good[: len(good) // 2], None),
        "bomb.mp4": (bomb.read_bytes(), "too_large"),
        "no-suffix": (b"\0" * 5000, None),
    }
    answers = {name: service.upload(name, data) for name, (data, _) in wrong.items()}
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(wrong, 202), [
        answer.text for answer in answers.values()
    ]
    ids = {name: answer.json()["id"] for name, answer in answers.items()}
    for name, (_, reason) in wrong.items():
        job = service.ended(ids[name])
        assert (job["state"], job["fault"]) == ("failed", "the video"), job
        assert reason in (None, job["reason"]), job
        assert job["detail"]
    assert service.upload("too-large.mp4", bytes(1_000_001)).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(50_000)

    answer = service.upload("chunked.mp4", chunks())
    assert (answer.status_code, "--max-upload" in answer.text) == (413, True)
    assert service.upload("...", b"x").status_code == 422
    with socket.create_connection(("127.0.0.1", int(service.url.rsplit(":", 1)[1]))) as half:
        half.sendall(b"PUT /uploads/half.mp4 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n" + bytes(500))
        until(lambda: state_files(state), 10)
    until(lambda: not state_files(state), 10)
    assert sorted((store / "failures").rglob("*")) == before
    assert not list((state / "jobs").glob(".*"))
    assert service.call("GET", "/readyz").status_code == 200
    assert service.ended(service.upload("fine.mp4", good).json()["id"])["state"] == "done"


def test_a_full_disk_is_not_the_uploads_fault(videos: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", small], capture_output=True).returncode:
        pytest.skip("may not mount a small file system")
    try:
        with Serving(tmp_path / "s.zarr", "--root", videos, "--state", small) as service:
            answer = service.upload("large.mp4", bytes(900_000))
            assert (answer.status_code, "--state" in answer.text) == (507, True)
            assert state_files(small) == []
            job = service.upload("fine.mp4", (videos / "clip0.mp4").read_bytes())
            assert service.ended(job.json()["id"])["state"] == "done"
    finally:
        subprocess.run(["umount", "-l", small])


# the store and the machine


@pytest.mark.slow
def test_a_queue_killed_twice_gives_the_bytes_of_aqa_extract(videos: Path, names: list[str], tmp_path: Path) -> None:
    once, store, state = tmp_path / "once.zarr", tmp_path / "s.zarr", tmp_path / "s.zarr.jobs"
    assert run_command(videos, once).returncode == ExitCode.QUARANTINED
    with Serving(store, "--root", videos) as service:
        for name in names:
            assert service.submit(name).status_code == 202
        until(lambda: list(store.glob("staged/*.json")), 60)
        extractor = service.extractor()
    until(lambda: not Path(f"/proc/{extractor}").exists(), 10)
    (state / "jobs" / ".torn.json.1.partial").write_text("{")
    (state / "uploads" / ".half.part").write_bytes(b"half")
    with Serving(store, "--root", videos) as service:
        until(lambda: sum(j["state"] in ENDED for j in service.jobs()) >= 2, 60)
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
        for name in names:
            service.submit(name)
        until(lambda: any(job["state"] == "running" for job in service.jobs()), 30)
        os.kill(service.extractor(), signal.SIGKILL)
        service.wait_for("started again")
        assert service.call("GET", "/readyz").status_code == 503
        assert service.call("GET", "/healthz").status_code == 200
        jobs = service.all_ended()
        assert {k for k, j in jobs.items() if j["state"] != "done"} == {"broken.mp4"}
        assert service.call("GET", "/readyz").status_code == 200


def test_a_store_that_is_gone_fails_no_video(videos: Path, tmp_path: Path) -> None:
    store, away = tmp_path / "s.zarr", tmp_path / "away"
    with Serving(store, "--root", videos) as service:
        service.ended(service.submit("clip0.mp4").json()["id"])
        store.rename(away)
        store.write_text("in the way")
        job = service.submit("clip1.mp4").json()["id"]
        until(lambda: service.call("GET", "/readyz").status_code == 503, 30)
        assert str(store) in service.call("GET", "/readyz").json()["detail"]
        assert service.job(job)["state"] in ("queued", "running")
        store.unlink()
        away.rename(store)
        assert service.ended(job)["state"] == "done"
        assert service.job(job)["deaths"] == 0
        store.rename(away)
        job = service.submit("clip2.mp4").json()["id"]
        until(lambda: service.call("GET", "/readyz").status_code == 503, 30)
        assert service.job(job)["state"] not in ENDED
        shutil.rmtree(store, ignore_errors=True)  # what was put there without a store around it
        away.rename(store)
        assert service.ended(job)["state"] == "done"
    assert set(FeatureStore.open(store).ids) == {"clip0.mp4", "clip1.mp4", "clip2.mp4"}


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


# a full queue, cancelling, draining


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
        running = until(lambda: len(r := [j["id"] for j in service.jobs() if j["state"] == "running"]) > 1 and r, 60)
        assert service.call("DELETE", f"/jobs/{running[-1]}").status_code == 202
        assert service.ended(running[-1])["state"] == "cancelled"
        assert service.job(running[0])["state"] == "running", "it takes minutes"
        service.process.send_signal(signal.SIGTERM)
        until(lambda: service.call("GET", "/readyz").status_code == 503, 5)
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
        until(lambda: any(job["state"] in ("committed", "done") for job in service.jobs()), 60)
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


# watching, tokens


def test_a_watched_folder_and_a_token(videos: Path, tmp_path: Path) -> None:
    incoming, token = tmp_path / "incoming", "0123456789abcdef-token"
    (incoming / "day1").mkdir(parents=True)
    (tmp_path / "token").write_text(token + "\n")
    data = (videos / "clip1.mp4").read_bytes()
    options = ["--watch", incoming, "--settle", "2", "--host", "0.0.0.0", "--token-file", tmp_path / "token"]
    with Serving(tmp_path / "s.zarr", *options) as service:
        for path in ("/jobs", "/metrics", "/openapi.json", "/none"):
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token}"}):
                answer = service.call("GET", path, headers=header)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert service.call("GET", "/readyz").status_code == 200
        service.session.headers["Authorization"] = f"Bearer {token}"
        assert service.jobs() == []
        with (incoming / "day1" / "slow.mp4").open("wb") as slow:
            for i in range(8):  # for four seconds, twice what it has to be still for
                slow.write(data[i * len(data) // 8 : (i + 1) * len(data) // 8])
                slow.flush()
                assert service.jobs() == []
                time.sleep(0.5)
        (incoming / ".hidden.mp4").write_bytes(data)
        (incoming / "notes.txt").write_text("not a video")
        (incoming / "out.mp4").symlink_to(videos / "clip2.mp4")
        renamed = tmp_path / "renamed.mp4"
        renamed.write_bytes((videos / "clip3.mp4").read_bytes())
        os.utime(renamed, (time.time() - 100,) * 2)
        renamed.rename(incoming / "renamed.mp4")
        until(lambda: len(service.jobs()) == 2, 20)
        jobs = service.all_ended()
        assert {k: j["state"] for k, j in jobs.items()} == {"day1/slow.mp4": "done", "renamed.mp4": "done"}
        assert service.submit("day1/slow.mp4").status_code == 200
        assert service.stop() == ExitCode.OK
        assert "leads out of the roots" in service.finish_reading()
    assert set(FeatureStore.open(tmp_path / "s.zarr").ids) == {"day1/slow.mp4", "renamed.mp4"}
    once = tmp_path / "once.zarr"
    (incoming / "out.mp4").unlink()
    assert run_command(incoming, once).returncode == 0
    assert contents(once) == contents(tmp_path / "s.zarr")


# what the documentation shows


def test_every_command_of_the_documentation_works(videos: Path, tmp_path: Path) -> None:
    for name, source in (("videos/dive_014", 6), ("videos/dive_015", 1), ("new", 2), ("arrived", 3)):
        path = tmp_path / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((videos / f"clip{source}.mp4").read_bytes())
    (tmp_path / "incoming").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shown = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "service.md").read_text(), flags=re.DOTALL)
    lines = [line for block in shown for line in block.splitlines()]
    lines = [
        line.replace(":8790", f":{port}") for line in lines if not line.startswith(("pip install", "python bench"))
    ]
    environment = {**os.environ, **SMALL, "AQA_SERVE_PORT": port, "AQA_SERVE_SETTLE": "1", "NO_COLOR": "1"}
    environment["PATH"] = f"{BIN}:{environment['PATH']}"
    servers: list[subprocess.Popen[bytes]] = []

    def waiting() -> list[str]:
        journal = (tmp_path / "feats.zarr.jobs" / "jobs").glob("*.json")
        return [text for path in journal if '"queued"' in (text := path.read_text())]

    def end() -> None:
        for server in servers:
            until(lambda: not waiting(), 60)
            server.terminate()
            assert server.wait(30) == 0
        servers.clear()

    try:
        # One shell, as a reader's: what starts a server goes on beside it.
        script = ""
        for line in lines:
            if line.startswith("aqa serve"):
                end()
                servers.append(subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=tmp_path, env=environment))
                continue
            script = line if "$id" not in line else f"{script}\n{line}"
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, (script, done.stdout, done.stderr)
            if line.startswith("mv "):  # only the server that watches will see it
                until(lambda: any("dive_016" in p.read_text() for p in tmp_path.glob("feats.zarr.jobs/jobs/*")), 20)
    finally:
        end()
    assert len(lines) >= 16
    ids = set(FeatureStore.open(tmp_path / "feats.zarr").ids)
    assert {"dive_014.mp4", "dive 14, entry", "new.mp4", "dive_016.mp4"} <= ids


@pytest.mark.slow
def test_answers_are_as_the_openapi_document_says(service: Serving) -> None:
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.core.result import Ok

    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == 8
    for operation in operations:

        @settings(
            max_examples=40,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=True,
        )
        @given(case=operation.as_strategy())
        def check(case) -> None:
            case.call_and_validate()

        check()
    assert service.call("GET", "/healthz").status_code == 200
