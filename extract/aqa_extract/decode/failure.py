"""Why a video could not be decoded."""

from __future__ import annotations

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
