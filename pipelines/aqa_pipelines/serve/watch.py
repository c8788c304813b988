"""A watched folder: what is complete in it is asked for, as if a client had."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from aqa_pipelines.serve.asked import Refused, video_at
from aqa_pipelines.serve.jobs import Closed, Conflict, Full, Jobs
from aqa_shared.console import printable, warn
from aqa_shared.manifest_files import in_folder


class Watch:
    """Looks at folders again and again; polling works on every file system, also those that other machines write to.

    A file is complete when size and time have not changed for `settle` seconds. One that was renamed into the folder
    and was last written longer ago than that is complete at the second look.
    """

    def __init__(self, folders: Sequence[Path], roots: Sequence[Path], jobs: Jobs, settle: float) -> None:
        self.folders, self.roots, self.jobs, self.settle = folders, roots, jobs, settle
        self.pause = min(1.0, settle / 2)
        """Seconds between two looks."""
        self.since: dict[str, tuple[str, float]] = {}
        """Path → its version, and since when that is unchanged."""
        self.asked: dict[str, str] = {}
        """Path → the version that became a job, or was refused."""

    def look(self) -> None:
        """Once: ask for everything that is complete by now."""
        there: set[str] = set()
        for folder in self.folders:
            for path in in_folder(str(folder)).paths:
                there.add(path)
                if not self._ask(path, folder):
                    return  # the queue is full: the others at the next look
        for path in self.since.keys() - there:
            del self.since[path]
        for path in self.asked.keys() - there:
            del self.asked[path]

    def _ask(self, path: str, folder: Path) -> bool:
        """False where nothing more can be asked for now."""
        try:
            status = os.stat(path)
        except OSError:
            return True
        version, now = f"{status.st_size}-{status.st_mtime_ns}", time.monotonic()
        if self.asked.get(path) == version:
            return True
        before, since = self.since.get(path, ("", now))
        if before != version:
            # Written before it was first seen: it need not be waited for twice.
            age = max(0.0, time.time() - status.st_mtime) if not before else 0.0
            self.since[path] = (version, now - min(age, self.settle))
            return True
        if now - since < self.settle:
            return True
        try:
            video, version = video_at(path, [folder, *self.roots])
            if not self.jobs.called_off(video, version):
                self.jobs.submit(video, version)
        except Conflict:  # an earlier version of it is being extracted
            return True
        except Refused as e:
            warn(printable(e.detail))
        except (Full, Closed):
            return False
        except OSError as e:
            warn(f"{path}: cannot be queued: {e.strerror}")
            return False
        self.asked[path] = version
        self.since.pop(path, None)
        return True
