"""One thing to extract: a file or a part of one, and the other ids that hold the same bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from aqa_extract.identity import Identity, same_bytes
from aqa_shared.console import note
from aqa_shared.records import Failure, Video


class JobFailed(Exception):
    """This video cannot be used; the run goes on."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.id}: {failure.reason}")
        self.failure = failure


@dataclass(frozen=True)
class Asked:
    """A video that an extraction that goes on is asked for (`aqa_extract.warm`)."""

    video: Video
    number: int
    """Of this question; with it, it can be called off."""
    remember: bool = True
    """Whether the store keeps why it cannot be used; it need not for a file that is gone afterwards."""


@dataclass(frozen=True, slots=True)
class VideoJob:
    """A video to extract. `identity` is None where there is no regular, readable file."""

    video: Video
    identity: Identity | None
    twins: tuple[tuple[Video, Identity], ...] = ()
    """Byte-identical files: extracted with it, stored under their own ids."""

    @property
    def ids(self) -> list[str]:
        """Of the video and its twins."""
        return [self.video.id, *(video.id for video, _ in self.twins)]

    def failed(
        self,
        reason: str,
        stage: Any,
        detail: str,
        backend: str = "",
        seconds: float = 0.0,
        limit: float | None = None,
    ) -> Failure:
        """The quarantine line."""
        return Failure(
            id=self.video.id,
            path=self.video.path,
            reason=reason,
            stage=stage,
            detail=detail,
            backend=backend,
            seconds=round(seconds, 3),
            limit=limit,
            size=self.identity.size if self.identity else None,
            mtime_ns=self.identity.mtime_ns if self.identity else None,
        )


def without_twins(jobs: Sequence[VideoJob]) -> list[VideoJob]:
    """Byte-identical files are extracted once; the others become twins of the first.

    Only files of equal size are read, and each once.
    """
    sizes = Counter(map(_size, jobs))
    paths: dict[tuple[Any, ...], set[str]] = {}
    for job in jobs:
        if sizes[_size(job)] > 1:
            paths.setdefault(_size_and_part(job), set()).add(job.video.path)
    equal = cache(same_bytes)
    first: dict[tuple[Any, ...], int] = {}
    kept: list[VideoJob] = []
    for job in jobs:
        if sizes[_size(job)] == 1:
            kept.append(job)
            continue
        v, identity, alike = job.video, job.identity, _size_and_part(job)
        content = v.path if identity is None or len(paths[alike]) == 1 else identity.fingerprint
        at = first.setdefault((*alike, content), len(kept))
        if identity is not None and at < len(kept) and equal(kept[at].video.path, v.path):
            kept[at] = replace(kept[at], twins=(*kept[at].twins, (v, identity)))
            note(f"{v.id} has the same bytes as {kept[at].video.id}: extracted once, stored for both")
        else:
            kept.append(job)
    return kept


def _size(job: VideoJob) -> int | None:
    return job.identity.size if job.identity else None


def _size_and_part(job: VideoJob) -> tuple[Any, ...]:
    v = job.video
    return (_size(job), v.start, v.end, v.start_time, v.end_time, v.frame_rate)
