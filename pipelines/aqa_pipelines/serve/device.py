"""A process a device: networks loaded once, jobs taken one by one, started again when it dies.

    Device (a thread here)  ──"job"──▶  work (the process)  ─▶ aqa_extract.warm
                            ◀─"next", "ended"──

The process asks when it has room, so nothing waits in it that another device could take. It ends when the service does,
however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from aqa_extract.config import Options
from aqa_extract.job import Asked
from aqa_pipelines.serve.jobs import Jobs, job_id
from aqa_shared import console
from aqa_shared.errors import AqaError, ExitCode
from aqa_shared.records import ExtractSettings, Failure

LONGEST_PAUSE = 60.0
"""Seconds between two starts of a process that keeps dying."""
POLL = 0.1
"""Seconds between two looks into an empty queue."""


def work(pipe: Connection, store: str, features: ExtractSettings, options: Options, create: bool) -> None:
    """The process: extract what comes through the pipe until "end" does; `create` allows that the store begins here."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the service says when it is over
        signal.signal(number, signal.SIG_IGN)
    from aqa_extract.warm import Warm

    inbox: queue.Queue[Asked | None] = queue.Queue()
    warm: Warm | None = None
    sending = threading.Lock()

    def say(*message: Any) -> None:
        with sending:
            pipe.send(message)

    def listen() -> None:
        try:
            while True:
                match pipe.recv():
                    case ("job", asked):
                        inbox.put(asked)
                    case ("end",):
                        inbox.put(None)
                    case ("off", number) if warm is not None:
                        warm.call_off(number)
                    case ("finalised",) if warm is not None:
                        warm.stale.set()
        except (EOFError, OSError):  # the service is gone; what is committed is whole
            os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    waiting = False

    def ask() -> Asked | None:
        nonlocal waiting
        if not waiting:
            say("next")
            waiting = True
        try:
            asked = inbox.get(timeout=0.2)
        except queue.Empty:
            return None
        waiting = False
        if asked is None:
            raise StopIteration
        return asked

    try:
        warm = Warm(store, features, options, create=create)
        say("ready", warm.device)
        warm.run(ask, lambda video_id, failure: say("ended", video_id, failure))
    except AqaError as e:
        say("fault", int(e.exit_code), e.cause, e.fix)
    except Exception as e:
        if os.environ.get("AQA_DEBUG") == "1":
            traceback.print_exc()
        say("fault", int(ExitCode.INTERNAL), f"{type(e).__name__}: {e}", "AQA_DEBUG=1 shows where; please report it")
    # Threads may be left in a library that lets nobody interrupt it.
    os._exit(0)


class Refused(AqaError):
    """The process could not even begin; with its exit code."""

    def __init__(self, code: int, cause: str, fix: str) -> None:
        super().__init__(cause, fix=fix)
        self.exit_code = ExitCode(code)


class Device:
    """The service's side of one process."""

    def __init__(
        self, name: str, jobs: Jobs, start: tuple[str, ExtractSettings, Options], committed: Callable[[], None]
    ) -> None:
        """`start` is what `work` needs; `committed()` is called after every commit."""
        self.name, self.jobs, self.start, self.committed = name, jobs, start, committed
        self.ready = False
        self.fault = ""
        """Why it is not ready, where that is known."""
        self.refused: Refused | None = None
        """Why it could not even begin, the first time."""
        self.begun = threading.Event()
        """Set when it was ready for the first time, or could not begin."""
        self.ended = threading.Event()
        self._pipe: Connection | None = None
        self._lock = threading.Lock()
        self._killed = False
        self._thread = threading.Thread(target=self._keep_alive, name=f"device-{name}", daemon=True)
        self._thread.start()

    def say(self, *message: Any) -> None:
        """Send to the process, if there is one."""
        with self._lock:
            try:
                if self._pipe is not None:
                    self._pipe.send(message)
            except OSError:
                pass  # it has died, which its thread will find

    def kill(self) -> None:
        """End the process wherever it is; it is not started again once the queue is closed. `ended` follows."""
        self._killed = True

    def _keep_alive(self) -> None:
        pause = 1.0
        while True:
            started = time.monotonic()
            try:
                said = self._run_once()
            except OSError as e:
                said = (int(ExitCode.ENVIRONMENT), f"no process can be started: {e.strerror}", "see `aqa doctor`")
            if self.jobs.open:  # before it is not ready: who asks in this moment is told why
                self.fault = said[1] if said else "the extraction process died"
            self.ready = False
            # A store that is gone is nobody's doing here; of anything else the videos at work may be the cause.
            self.jobs.give_back(self.name, died=not self._killed and not (said and said[0] == ExitCode.STORE))
            if said and not self.begun.is_set():
                self.refused = Refused(*said)
            self.begun.set()
            if not self.jobs.open or self.refused:
                self.ended.set()
                return
            console.warn(f"{self.name}: {self.fault}; started again in {pause:.0f} s")
            if time.monotonic() - started > LONGEST_PAUSE:
                pause = 1.0
            until = time.monotonic() + pause
            while time.monotonic() < until and self.jobs.open:
                time.sleep(POLL)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _run_once(self) -> tuple[int, str, str] | None:
        """One process from its start to its end; what it said was the matter, None if nothing."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        store, features, options = self.start
        options = options.model_copy(update={"device": self.name})
        process = context.Process(
            target=work, args=(theirs, store, features, options, not self.begun.is_set()), name=f"aqa-{self.name}"
        )
        process.start()
        theirs.close()
        with self._lock:
            self._pipe = ours
        fault, asks = None, False
        try:
            while not self._killed:
                if asks and not self.jobs.open:
                    asks = False
                    self.say("end")
                elif asks and (job := self.jobs.claim(self.name)) is not None:
                    asks = False
                    self.say("job", Asked(job.video, job.number, remember=not job.upload))
                if not ours.poll(POLL):
                    continue
                match ours.recv():
                    case ("next",):
                        asks = True
                    case ("ended", video_id, failure):
                        self._finish(video_id, failure)
                    case ("ready", _):
                        self.ready, self.fault = True, ""
                        self.begun.set()
                    case ("fault", code, cause, fix):
                        fault = (code, cause, fix)
        except (EOFError, OSError):
            pass
        finally:
            with self._lock:
                self._pipe = None
            ours.close()
            process.kill()
            process.join()
        return fault

    def _finish(self, video_id: str, failure: Failure | None) -> None:
        self.jobs.finish(job_id(video_id), failure)
        if failure is None:
            self.committed()
