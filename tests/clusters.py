"""Real Dask schedulers and workers, started as their commands."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from distributed import Client


class Cluster:
    """`dask scheduler` and `dask worker`, as commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", self.file)
        wait_until(self.file.exists)
        self.client = Client(scheduler_file=str(self.file), set_as_default=False, timeout=60)
        self.address = self.client.scheduler.address

    def start(self, what: str, *options: object, before: tuple[str, ...] = (), **environment: str) -> None:
        log = (self.folder / f"{what}-{len(self.processes)}.log").open("wb")
        command = [*before, sys.executable, "-m", "dask", what, *map(str, options)]
        more = {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__WORKER__DAEMON": "True"}
        self.processes.append(
            subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **more, **environment})
        )

    def worker(self, *options: str, before: tuple[str, ...] = (), **environment: str) -> None:
        there = self.folder / f"scratch-{len(self.processes)}"
        given = (
            "--scheduler-file",
            self.file,
            "--nthreads",
            "1",
            "--no-dashboard",
            "--local-directory",
            there,
            *options,
        )
        count = len(self.client.nthreads())
        self.start("worker", *given, before=before, **environment)
        wait_until(lambda: len(self.client.nthreads()) > count)

    @property
    def pids(self) -> list[int]:
        """Of the workers themselves, not of the nannies that start them again."""
        return list(self.client.run(os.getpid, on_error="ignore").values())

    @property
    def tasks(self) -> int:
        return int(self.client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)))

    def close(self) -> None:
        self.client.close()
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def dask(folder: Path) -> Iterator[Cluster]:
    found = Cluster(folder)
    try:
        yield found
    finally:
        found.close()


def wait_until(true: Callable[[], object], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def without(folder: Path) -> tuple[str, ...]:
    """A command in whose view of the file system `folder` is empty."""
    return _after(f"mount -t tmpfs none {folder}")


def unable_to_write(folder: Path) -> tuple[str, ...]:
    """A command in whose view of the file system `folder` is read-only."""
    return _after(f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}")


def _after(mounting: str) -> tuple[str, ...]:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may not mount")
    return ("unshare", "--mount", "sh", "-c", f'{mounting} && exec "$@"', "sh")
