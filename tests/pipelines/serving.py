"""A service as it is started: a real process on loopback, with small networks' input."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import requests
from tests.extract.clips import Clip
from tests.processes import children

SMALL = {
    "AQA_SERVE_SEGMENTS": "2",
    "AQA_SERVE_SHORT_SIDE": "32",
    "AQA_SERVE_CROP": "32",
    "AQA_SERVE_WEIGHTS": "rgb=i3d-kinetics-400",
}
LARGE = {
    "AQA_SERVE_STREAMS": "rgb,flow",
    "AQA_SERVE_SHORT_SIDE": "512",
    "AQA_SERVE_SEGMENTS": "10",
}
"""Minutes of flow on any processor, for a video of full HD."""
GRACE = 3
COMMAND = f"import aqa_pipelines.serve.service as s; s.GRACE = {GRACE}; from aqa_pipelines.cli import main; main()"
ENDED = ("done", "failed", "cancelled")


class Serving:
    """`with Serving(store, "--root", videos) as service:`; killed at the end, unless it has ended."""

    def __init__(self, store: Path | str, *options: str | Path, **environment: str) -> None:
        arguments = [
            "serve",
            "extract",
            "--store",
            str(store),
            "--port",
            "0",
            "--finalise-every",
            "1",
            *map(str, options),
        ]
        environment = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1", **(environment or SMALL)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self.url = ""
        self.session = requests.Session()
        self.lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.put(line)
        self.lines.put(None)

    def __enter__(self) -> Self:
        found = re.search(r"http://\S+?:(\d+)", self.wait_for("listening"))
        assert found is not None
        self.url = f"http://127.0.0.1:{found[1]}"
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        if e is not None:
            self.finish_reading()
            print("".join(self.said))

    def wait_for(self, words: str, seconds: float = 120) -> str:
        """The line of stderr that has `words`."""
        until = time.monotonic() + seconds
        while (line := self.lines.get(timeout=max(0.1, until - time.monotonic()))) is not None:
            self.said.append(line)
            if words in line:
                return line
        raise AssertionError(f"ended without {words!r}: {self.said}")

    def finish_reading(self) -> str:
        while (line := self.lines.get(timeout=60)) is not None:
            self.said.append(line)
        return "".join(self.said)

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        return self.session.request(method, self.url + path, timeout=120, **more)

    def submit(self, path: str | Path, **more: Any) -> requests.Response:
        return self.call("POST", "/jobs", json={"path": str(path), **more})

    def upload(self, name: str, data: Any) -> requests.Response:
        return self.call("PUT", f"/uploads/{name}", data=data)

    def job(self, id: str) -> dict[str, Any]:
        return self.call("GET", f"/jobs/{id}").json()

    def jobs(self) -> list[dict[str, Any]]:
        return self.call("GET", "/jobs?limit=1000").json()["jobs"]

    def ended(self, id: str, seconds: float = 120) -> dict[str, Any]:
        """The job, once it has ended."""
        return until(lambda: (job := self.job(id))["state"] in ENDED and job, seconds)

    def all_ended(self, seconds: float = 200) -> dict[str, dict[str, Any]]:
        """By video, once all jobs have ended."""
        found = until(lambda: (jobs := self.jobs()) and all(j["state"] in ENDED for j in jobs) and jobs, seconds)
        return {job["video"]["id"]: job for job in found}

    def extractor(self) -> int:
        """The process that has the networks."""
        found: list[int] = until(lambda: children(self.process.pid, "spawn_main"))
        return found[0]

    def stop(self, seconds: float = 120) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def until(true: Callable[[], Any], seconds: float = 120) -> Any:
    """What `true` gives, once that is something."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.1)
    return found


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
