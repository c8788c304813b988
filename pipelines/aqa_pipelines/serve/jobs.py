"""The queue: jobs in order, bounded, and a journal of them that survives a kill.

A job is a file, written whole and flushed before anybody is told of it. What was running when the service ended is
queued again at the next start: commits are idempotent, so a job that is done twice is done once.

    queued ─▶ running ─▶ committed ─▶ done        readers of the store see it when it is done
       ▲         ├─────▶ failed                   and why; `fault` says whose it is
       └─────────┴─────▶ cancelled
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from aqa_extract.faults import Fault, fault
from aqa_shared.console import printable, warn
from aqa_shared.errors import EnvironmentFault, UsageError
from aqa_shared.files import replacing
from aqa_shared.records import Failure, Record, Video

State = Literal["queued", "running", "committed", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
KEEP = 10_000
"""Ended jobs that are remembered; the oldest are forgotten first."""
DEATHS = 3
"""How often the extraction process may die over a job; from the second time on it runs alone."""


class Job(Record):
    """One video that was asked for. The journal and the answers to clients hold the same."""

    id: str
    """A digest of the video's id: a video is one job, however often it is asked for."""
    number: int
    """Jobs are listed in this order: that of the latest time that each was asked for."""
    video: Video
    version: str
    """Which content of the file was asked for: size and time, or the digest of an upload."""
    upload: bool = False
    state: State = "queued"
    reason: str = ""
    """Why it failed: a code of docs/decoding.md."""
    detail: str = ""
    fault: Literal["", "the video", "what was asked", "the machine, the installation or a library"] = ""
    submitted: float
    """Seconds since 1970."""
    ended: float | None = None
    seconds: float = 0.0
    """From the moment a device took it to its commit."""
    deaths: int = 0
    """Extraction processes that died while they had it."""

    def text(self) -> str:
        """JSON in ASCII: names that are not UTF-8 survive."""
        return json.dumps({**self.model_dump(), "video": self.video.model_dump(exclude_defaults=True)})

    @classmethod
    def read(cls, text: str | bytes) -> Job:
        """The inverse of `text`. Raises ValueError."""
        return cls.model_validate(json.loads(text))


class _Past(NamedTuple):
    """A job that has ended: its text takes a third of the memory of the record."""

    number: int
    state: State
    text: str


class Full(Exception):
    """The queue has no room."""


class Closed(Exception):
    """The service is draining."""


class Conflict(Exception):
    """Another file, part or version of this id is being extracted, or it is being cancelled."""


def job_id(video_id: str) -> str:
    """Of the job of a video: 32 hexadecimal digits, fit for a file name and a URL."""
    return hashlib.blake2b(video_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Jobs:
    """All jobs, in memory and in a folder; every method may be called from any thread."""

    def __init__(
        self, folder: Path, limit: int, told: Callable[[Job], None] = lambda job: None, *, keep: int = KEEP
    ) -> None:
        """`told` is called with every job that ends; `keep` of those are remembered.

        Raises UsageError where another service has the folder, EnvironmentFault where it cannot be used."""
        self.folder, self.uploads, self.limit, self.told = folder / "jobs", folder / "uploads", limit, told
        self.keep = keep
        self.lock = threading.RLock()
        self.known: dict[str, Job | _Past] = {}
        """By id, in the order of their numbers; `jobs[id]` is always a Job."""
        self.waiting: deque[str] = deque()
        self.running: dict[str, tuple[str, float]] = {}
        """Job → the device that has it, and since when (time.monotonic)."""
        self.cancelling: set[str] = set()
        """Running jobs that are to be called off."""
        self.reserved = 0
        """Places in the queue of uploads that are under way."""
        self.open = True
        self.number = 0
        self.deaths = 0
        """Extraction processes that died while they had jobs."""
        self.recent: deque[float] = deque(maxlen=32)
        """Seconds of the latest jobs."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.uploads.mkdir(exist_ok=True)
            self._held = (folder / "lock").open("w")
        except OSError as e:
            raise EnvironmentFault(f"{folder}: cannot keep jobs there: {e.strerror}", fix="name another --state") from e
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise UsageError(f"{folder}: another service has these jobs", fix="name another --state") from e
        self._read()

    def _read(self) -> None:
        """What an earlier service left: jobs that did not end are queued again, litter goes."""
        found = []
        for path in self.folder.iterdir():
            if not path.name.endswith(".json"):
                path.unlink()  # being written when the service was killed
                continue
            try:
                found.append(Job.read(path.read_bytes()))
            except ValueError:
                warn(f"{path}: cannot be read and is ignored; ask for that video again")
        for job in sorted(found, key=lambda job: job.number):
            self.number = max(self.number, job.number)
            if job.state == "queued":
                self.waiting.append(job.id)
            self._remember(job)
        kept = {Path(job.video.path).name for job in found if job.upload and job.state not in ENDED}
        for path in self.uploads.iterdir():
            if path.name not in kept:
                path.unlink()

    # what clients do

    def __getitem__(self, id: str) -> Job:
        """Raises KeyError for one that is not known."""
        found = self.known[id]
        return Job.read(found.text) if isinstance(found, _Past) else found

    @contextmanager
    def place(self) -> Iterator[None]:
        """Room in the queue for an upload while it comes. Raises Full and Closed."""
        with self.lock:
            self._refuse()
            self.reserved += 1
        try:
            yield
        finally:
            with self.lock:
                self.reserved -= 1

    def submit(self, video: Video, version: str, upload: Path | None = None) -> tuple[Job, bool]:
        """The job of a video, and whether it is to be done now; with `upload`, a file that becomes the video.

        The same video again is the same job. It is done again where it was cancelled, failed through no fault of the
        video's own, or the file is another since. Raises Full, Closed, Conflict, OSError.
        """
        with self.lock:
            before = self[job_id(video.id)] if job_id(video.id) in self.known else None
            if before is not None and before.id in self.cancelling:
                raise Conflict(f"{printable(video.id)} is being cancelled: ask again when it has ended")
            again = before is not None and (before.video, before.version) == (video, version)
            if before is not None and again and self._stands(before):
                return before, False
            if before is not None and before.state not in ENDED:
                raise Conflict(
                    f"{printable(video.id)} is {before.state} from another file, part or version: ask again when it "
                    "has ended, or give another id"
                )
            if upload is None:
                self._refuse()
            job = Job(
                id=job_id(video.id),
                number=self.number + 1,
                video=video,
                version=version,
                upload=upload is not None,
                submitted=time.time(),
            )
            if upload is not None:
                upload.replace(Path(job.video.path))
            try:
                self._keep(job, promised=True)
            except OSError:
                if upload is not None:
                    _remove(Path(job.video.path))
                raise
            self.number = job.number
            self.waiting.append(job.id)
            return job, True

    def cancel(self, id: str) -> Job:
        """Take a job out of the queue, or have its device call it off. Raises KeyError."""
        with self.lock:
            job = self[id]
            if job.state == "queued":
                self.waiting.remove(id)
                return self._ended(job, "cancelled")
            if job.state == "running":
                self.cancelling.add(id)
                # On the disk it is over, in case the service is killed before it is here; a commit may still be first.
                self._try_to_write(job.model_copy(update={"state": "cancelled", "ended": time.time()}))
            return job

    def called_off(self, video: Video, version: str) -> bool:
        """Whether this very file was cancelled. Only a client asks for it again, a watched folder does not."""
        with self.lock:
            if job_id(video.id) not in self.known:
                return False
            job = self[job_id(video.id)]
            return (job.state, job.video, job.version) == ("cancelled", video, version)

    def page(self, after: int, limit: int, state: str | None) -> list[Job]:
        """Jobs with higher numbers than `after`, in their order."""
        with self.lock:
            found = (i for i, job in self.known.items() if job.number > after and state in (None, job.state))
            return [self[i] for i in islice(found, limit)]

    # what devices do

    def claim(self, device: str) -> Job | None:
        """The next job for a device, now running; None where none waits, or the service drains.

        A job over which a process died runs alone, so that the next death says whose doing it is.
        """
        with self.lock:
            if not self.open or not self.waiting:
                return None
            job = self[self.waiting[0]]
            beside = [self[id] for id, (of, _) in self.running.items() if of == device]
            if beside and (job.deaths or any(other.deaths for other in beside)):
                return None
            self.waiting.popleft()
            # Only in memory: to the next service it is a job that waits.
            self.known[job.id] = job = job.model_copy(update={"state": "running"})
            self.running[job.id] = (device, time.monotonic())
            return job

    def finish(self, id: str, failure: Failure | None) -> None:
        """A device is through with a job."""
        with self.lock:
            cancelled = id in self.cancelling
            self.cancelling.discard(id)
            _, since = self.running.pop(id)
            seconds = time.monotonic() - since
            job = self[id].model_copy(update={"seconds": round(seconds, 3)})
            if failure is None:
                self.recent.append(seconds)
                self._keep(job.model_copy(update={"state": "committed"}))
            elif cancelled and failure.reason == "interrupted":
                self._ended(job, "cancelled")
            else:
                self._fail(job, failure.reason, failure.detail)

    def give_back(self, device: str, died: bool) -> None:
        """Queue again, first, what a device had. `died` says that nobody knows why its process ended."""
        with self.lock:
            had = [id for id, (of, _) in self.running.items() if of == device]
            self.deaths += bool(died and had)
            for id in sorted(had, reverse=True):
                del self.running[id]
                job = self[id]
                if id in self.cancelling:
                    self.cancelling.remove(id)
                    self._ended(job, "cancelled")
                    continue
                deaths = job.deaths + died
                if died and deaths >= DEATHS:
                    detail = (
                        f"the extraction process died {deaths} times while it had this video, at last with it alone"
                    )
                    self._fail(job.model_copy(update={"deaths": deaths}), "internal_error", detail)
                    continue
                self._keep(job.model_copy(update={"state": "queued", "deaths": deaths}))
                self.waiting.appendleft(id)

    # what the store says

    def committed(self) -> list[Job]:
        """Jobs that wait to be finalised."""
        with self.lock:
            return [job for job in self.known.values() if isinstance(job, Job) and job.state == "committed"]

    def settle(self, id: str, stored: bool) -> None:
        """The store was finalised and has the video, or lost it (a power failure): then it is made again."""
        with self.lock:
            job = self[id]
            if job.state != "committed":
                return
            if stored:
                self._ended(job, "done")
            else:
                self._keep(job.model_copy(update={"state": "queued"}))
                self.waiting.append(id)

    def forget(self, id: str) -> None:
        """An ended job."""
        with self.lock:
            _remove(self.folder / f"{id}.json")
            self.known.pop(id, None)

    # the rest

    def close(self) -> None:
        """Take no more jobs and hand none out."""
        with self.lock:
            self.open = False

    def retry_after(self) -> int:
        """Seconds after which there may be room: about as long as one job takes now."""
        with self.lock:
            devices = len({of for of, _ in self.running.values()}) or 1
            each = sum(self.recent) / len(self.recent) if self.recent else 5.0
            return max(1, min(60, round(each / devices)))

    def _refuse(self) -> None:
        if not self.open:
            raise Closed
        if len(self.waiting) + self.reserved >= self.limit:
            raise Full

    @staticmethod
    def _stands(job: Job) -> bool:
        """Whether the same question has the same answer."""
        return job.state not in ("failed", "cancelled") or job.fault == Fault.VIDEO.value

    def _fail(self, job: Job, reason: str, detail: str) -> None:
        self._ended(
            job.model_copy(update={"reason": reason, "detail": printable(detail), "fault": fault(reason).value}),
            "failed",
        )

    def _ended(self, job: Job, state: State) -> Job:
        if job.upload:
            _remove(Path(job.video.path))
        job = job.model_copy(update={"state": state, "ended": time.time()})
        self._keep(job)
        self.told(job)
        if len(self.known) > self.keep + self.limit:
            ended = (i for i, known in self.known.items() if isinstance(known, _Past))
            for old in list(islice(ended, len(self.known) - self.keep - self.limit)):
                self.forget(old)
        return job

    def _keep(self, job: Job, promised: bool = False) -> None:
        """In memory and on the disk. Raises OSError where the disk refuses what is `promised` to somebody.

        Else the disk keeps the older state: what it says is done again after a restart, which changes nothing.
        """
        if promised:
            self._write(job)
        else:
            self._try_to_write(job)
        self._remember(job)

    def _try_to_write(self, job: Job) -> None:
        try:
            self._write(job)
        except OSError as e:
            warn(f"{self.folder}: cannot keep that {printable(job.video.id)} is {job.state}: {e.strerror}")

    def _remember(self, job: Job) -> None:
        if job.id in self.known and self.known[job.id].number != job.number:
            del self.known[job.id]  # it goes to the end
        self.known[job.id] = _Past(job.number, job.state, job.text()) if job.state in ENDED else job

    def _write(self, job: Job) -> None:
        path = self.folder / f"{job.id}.json"
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(job.text().encode("ascii"))
            file.flush()
            os.fsync(file.fileno())
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    """The next start removes, or reads, what the disk keeps: that is no reason to end anything."""
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        warn(f"{path}: cannot be removed: {e.strerror}")
