"""One thing to extract: a file or a part of one, and the other ids that hold the same bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from aqa_extract.identity import Identity, same_bytes
from aqa_shared.console import note
from aqa_shared.records import Failure, Video


@dataclass(frozen=True)
class Job:
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


def without_twins(jobs: Sequence[Job]) -> list[Job]:
    """Byte-identical files are extracted once; the others become twins of the first."""
    first: dict[tuple[Any, ...], int] = {}
    kept: list[Job] = []
    for job in jobs:
        v = job.video
        if job.identity is None:
            kept.append(job)
            continue
        key = (job.identity.size, job.identity.fingerprint, v.start, v.end, v.start_time, v.end_time)
        at = first.setdefault(key, len(kept))
        if at < len(kept) and same_bytes(kept[at].video.path, v.path):
            kept[at] = replace(kept[at], twins=(*kept[at].twins, (v, job.identity)))
            note(f"{v.id} has the same bytes as {kept[at].video.id}: extracted once, stored for both")
        else:
            kept.append(job)
    return kept
