"""The service from its start to its end: devices, HTTP, watched folders, finalise, drain."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from aqa_extract.config import Options
from aqa_extract.signals import GRACE
from aqa_pipelines.serve.device import Device
from aqa_pipelines.serve.jobs import Job, Jobs
from aqa_pipelines.serve.settings import Service, token_of
from aqa_pipelines.serve.watch import Watch
from aqa_shared import console
from aqa_shared.errors import AqaError, EnvironmentFault, ExitCode, UsageError
from aqa_shared.machine import return_freed_memory
from aqa_shared.store import Objects, contents, finalise, is_store

if TYPE_CHECKING:
    import uvicorn

STEP = 0.2
"""Seconds between two looks at what there is to do."""


def serve(service: Service) -> ExitCode:
    """Serve until a signal ends it. Raises what keeps it from beginning."""
    try:
        import uvicorn

        from aqa_pipelines.serve.app import make_app
        from aqa_pipelines.serve.metrics import Metrics
    except ImportError as e:
        raise EnvironmentFault(f"{e.name} is not installed", fix="pip install '.[serve]'") from e
    token = token_of(service)
    metrics = Metrics()
    jobs = Jobs(Path(service.state), service.queue, metrics.job_ended)
    running = Running(service, jobs)
    with running.signals():
        try:
            running.begin()
            metrics.observe(jobs, running.devices)
            app = make_app(
                jobs,
                metrics,
                roots=service.roots,
                max_upload=round(service.max_upload * 1e6),
                token=token,
                problems=running.problems,
                call_off=running.call_off,
            )
            server = uvicorn.Server(
                uvicorn.Config(
                    app,
                    service.host,
                    service.port,
                    log_level="warning",
                    access_log=False,
                    timeout_graceful_shutdown=3,
                    server_header=False,
                    lifespan="off",
                    limit_concurrency=1000,
                )
            )
            running.listen(server)
            try:
                running.until_told()
                return running.drain()
            finally:
                server.should_exit = True
                running.http.join(5)
        finally:
            running.kill()


class Running:
    """What is under way."""

    def __init__(self, service: Service, jobs: Jobs) -> None:
        self.service, self.jobs = service, jobs
        self.devices: list[Device] = []
        self.told: list[int] = []
        """Signals that came."""
        self.store_fault = ""
        self.objects: Objects | None = None
        self.news = threading.Event()
        """Something was committed since the last finalise."""
        self.http = threading.Thread()

    def signals(self) -> _Signals:
        return _Signals(self.told)

    def begin(self) -> None:
        """Start a process a device, and see which jobs the store has. Raises what keeps any of them from it."""
        service = self.service
        options = Options(**service.handling.model_dump())
        start = (service.store, service.features, options)
        for name in devices(service.devices):
            self.devices.append(Device(name, self.jobs, start, self.news.set))
        for device in self.devices:
            while not device.begun.wait(STEP) and not self.told:
                pass
            if device.refused:
                raise device.refused
        if not self.told:
            self._compare()

    def listen(self, server: uvicorn.Server) -> None:
        """Answer HTTP in a thread of its own. Raises EnvironmentFault where the address cannot be had."""
        service = self.service
        family = socket.AF_INET6 if ":" in service.host else socket.AF_INET
        try:
            found = socket.create_server((service.host, service.port), family=family, backlog=1024)
        except OSError as e:
            raise EnvironmentFault(
                f"cannot listen at {service.host}:{service.port}: {e.strerror}", fix="choose another --port or --host"
            ) from e
        self.http = threading.Thread(target=server.run, args=([found],), daemon=True)
        self.http.start()
        host = f"[{service.host}]" if ":" in service.host else service.host
        names = ", ".join(device.name for device in self.devices)
        console.note(f"listening at http://{host}:{found.getsockname()[1]}, extracting on {names} into {service.store}")

    def problems(self) -> list[str]:
        """Why the service is not ready."""
        found = [] if self.jobs.open else ["draining"]
        if not any(device.ready for device in self.devices):
            found += [f"{d.name}: {d.fault or 'loading the networks'}" for d in self.devices]
        return [*found, self.store_fault] if self.store_fault else found

    def call_off(self, job: Job) -> None:
        for device in self.devices:
            device.say("off", job.number)

    def until_told(self) -> None:
        """Finalise now and then, look at watched folders, until a signal comes."""
        service = self.service
        watched = [Path(os.path.abspath(folder)) for folder in service.watch]
        watch = Watch(watched, service.roots, self.jobs, service.settle)
        looked = finalised = 0.0
        while not self.told:
            now = time.monotonic()
            if watched and now - looked >= watch.pause:
                watch.look()
                looked = time.monotonic()
            if self.news.is_set() and now - finalised >= service.finalise_every:
                self.finalise()
                finalised = time.monotonic()
            if not self.http.is_alive():
                raise AqaError("the HTTP server ended by itself")
            time.sleep(STEP)

    def drain(self) -> ExitCode:
        """Finish what is being extracted, for at most GRACE seconds, finalise, and say what stays in the queue."""
        begun = time.monotonic()
        with self.jobs.lock:
            self.jobs.close()
            console.note(f"finishing {console.counted(len(self.jobs.running), 'video')}, for at most {GRACE:.0f} s")
        while time.monotonic() - begun < GRACE and len(self.told) < 2:
            if all(device.ended.is_set() for device in self.devices):
                break
            time.sleep(STEP)
        given_up = len(self.jobs.running)
        self.kill()
        if self.jobs.committed():
            self.finalise()
        left = len(self.jobs.waiting)
        console.note(
            f"drained; given up: {given_up}; {console.counted(left, 'job')} in {self.service.state} for the next start"
        )
        if self.jobs.committed():
            return ExitCode.STORE
        return ExitCode.TERMINATED if given_up else ExitCode.OK

    def kill(self) -> None:
        """End every process, wherever it is."""
        self.jobs.close()
        for device in self.devices:
            device.kill()
        for device in self.devices:
            device.ended.wait(5)

    def finalise(self) -> None:
        """Let readers of the store see what is committed; where the store cannot be written now, again later."""
        self.news.clear()
        try:
            self.objects = self.objects or Objects.at(self.service.store, write=True)
            waiting = self.jobs.committed()
            finalise(self.objects)
            known = contents(self.objects)
            for job in waiting:
                self.jobs.settle(job.id, stored=known is not None and bool(known.live(job.video.id)))
            self.store_fault = ""
        except AqaError as e:
            if e.cause != self.store_fault:
                console.warn(f"{e.cause}; {e.fix}")
            self.store_fault = e.cause
            self.news.set()
            return
        finally:
            return_freed_memory()  # blocks that were merged have passed through many threads
        for device in self.devices:
            device.say("finalised")

    def _compare(self) -> None:
        """After a crash: what was committed is finalised, what the store does not have is not done."""
        if self.jobs.committed():
            self.finalise()
        if not is_store(self.service.store):
            return
        known = contents(self.service.store)
        for job in self.jobs.page(0, len(self.jobs.known), "done"):
            if known is None or not known.live(job.video.id):
                self.jobs.forget(job.id)


class _Signals:
    """Notes SIGINT and SIGTERM; a third one ends the process where it stands."""

    def __init__(self, told: list[int]) -> None:
        self.told = told

    def __enter__(self) -> None:
        self.before = {n: signal.signal(n, self._note) for n in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.told.append(number)
        if len(self.told) > 2:
            os._exit(int(ExitCode.TERMINATED))


def devices(asked: Sequence[str]) -> list[str]:
    """`auto` as every GPU of this machine, else the CPU. Raises UsageError for one that is named twice."""
    if list(asked) == ["auto"]:
        # In a process of its own: this one has no use for torch and its memory.
        code = "import torch; print(torch.cuda.device_count())"
        done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
        count = int(done.stdout) if done.returncode == 0 else 0
        return [f"cuda:{i}" for i in range(count)] or ["cpu"]
    if len(set(asked)) < len(asked) or "auto" in asked or not asked:
        raise UsageError(f"--devices {','.join(asked)}: name each once", fix="as cuda:0,cuda:1, or cpu, or auto")
    return list(asked)
