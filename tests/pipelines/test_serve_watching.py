"""A watched folder, a token, and every command of docs/service.md."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.extract.run.command import contents, run_command
from tests.pipelines.commands import BIN
from tests.pipelines.serving import SMALL, Serving, until

from aqa_shared.errors import ExitCode
from aqa_shared.store import FeatureStore

ROOT = Path(__file__).resolve().parents[2]


def test_a_watched_folder_and_a_token(videos: Path, tmp_path: Path) -> None:
    incoming, token = tmp_path / "incoming", "0123456789abcdef-token"
    (incoming / "day1").mkdir(parents=True)
    (tmp_path / "token").write_text(token + "\n")
    data = (videos / "clip1.mp4").read_bytes()
    options = ["--watch", incoming, "--settle", "5", "--host", "0.0.0.0", "--token-file", tmp_path / "token"]
    with Serving(tmp_path / "s.zarr", *options) as service:
        for path in ("/jobs", "/metrics", "/openapi.json", "/none"):
            for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token}"}):
                answer = service.call("GET", path, headers=header)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert service.call("GET", "/readyz").status_code == 200
        service.session.headers["Authorization"] = f"Bearer {token}"
        assert service.jobs() == []
        with (incoming / "day1" / "slow.mp4").open("wb") as slow:
            for i in range(20):  # for ten seconds, twice what it has to be still for
                slow.write(data[i * len(data) // 20 : (i + 1) * len(data) // 20])
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
        until(lambda: len(service.jobs()) == 2)
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


def free_port() -> str:
    """Below those that Linux gives to whoever asks for any: another test's may have one of them by the time."""
    for port in random.sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return str(port)
    raise AssertionError("every port is taken")


def test_every_command_of_the_documentation_works(videos: Path, tmp_path: Path) -> None:
    for name, source in (("videos/dive_014", 6), ("videos/dive_015", 1), ("new", 2), ("arrived", 3)):
        path = tmp_path / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((videos / f"clip{source}.mp4").read_bytes())
    (tmp_path / "incoming").mkdir()
    port = free_port()
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
            until(lambda: not waiting())
            server.terminate()
            assert server.wait(120) == 0
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
                until(lambda: any("dive_016" in p.read_text() for p in tmp_path.glob("feats.zarr.jobs/jobs/*.json")))
    finally:
        end()
    assert len(lines) >= 16
    ids = set(FeatureStore.open(tmp_path / "feats.zarr").ids)
    assert {"dive_014.mp4", "dive 14, entry", "new.mp4", "dive_016.mp4"} <= ids
