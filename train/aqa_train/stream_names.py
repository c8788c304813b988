"""A stream's name as it is typed, as a store's array has it, and in the command that extracts it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any


def array_of(stream: str) -> str:
    """Name of a stream's array in a store: `actor-rgb:map` is `actor_rgb_map`."""
    return stream.replace("-", "_").replace(":", "_").replace("@", "_")


def adds_streams(store: Any, streams: Sequence[str]) -> str:
    """The command that extracts `streams`."""
    asked = ["actor-rgb" if s == "actor_box" else s for s in streams]  # boxes come with what is cut by them
    wanted = ",".join(dict.fromkeys(s if "@" in s or ":" in s else s.replace("_", "-") for s in asked))
    return f"aqa-extract VIDEOS --streams {wanted} --out {shlex.quote(str(store))}"
