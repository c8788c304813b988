"""Why a video could not be decoded."""

from __future__ import annotations

import resource
from typing import Literal

Stage = Literal["probe", "decode", "sampling"]


class DecodeFailure(Exception):
    """One video's failure. `reason` is a stable code (docs/decoding.md lists them), `detail` is for people."""

    def __init__(
        self, reason: str, stage: Stage, detail: str, backend: str = "", *, limit: float | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.stage: Stage = stage
        self.detail = detail
        self.backend = backend
        self.limit = limit
        """Seconds that were not enough, where time was at fault."""


def out_of_memory() -> str:
    """The reason for a decoder without memory: the video's, unless the shell or batch system allows less than we do."""
    return "out_of_memory" if resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY else "no_memory"
