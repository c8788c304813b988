"""Which part of the work a process is asked for: named, or as the scheduler that started it says."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from aqa_shared.errors import UsageError

AUTO = "auto"
TOGETHER = 10_000
"""Pieces of work that are shared out together, on the average; or more. Where each deviates by twice their mean, sums
of so many deviate by 2 %."""


def part_of_parts(value: Any) -> Any:
    """`3/8` as (3, 8), the parts counted from 1; what is no text as it is."""
    if not isinstance(value, str):
        return value
    part, _, count = value.partition("/")
    if not (part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count)):
        raise ValueError(f"give part/parts, the parts counted from 1, as 3/8, or auto, got {value!r}")
    return int(part), int(count)


def asked(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
    """What `--shard` says: `3/8`, or `auto` in a task with this environment. Raises UsageError for what is neither."""
    try:
        part, count = part_of_parts(scheduled(text, environment) if text.partition("/")[0] == AUTO else text)
    except ValueError as e:
        raise UsageError(f"--shard: {e}", fix="for example --shard 3/8") from None
    return part, count


def dealt(work: Callable[[int], float], names: Sequence[str], part: int, count: int) -> list[int]:
    """The places of what is this part's, from 1, of `count` parts of about equal work; together they are all.

    A function of what there is to do alone, so that all processes cut it in the same way, whatever is done by now.
    `work` says how much there is at a place, and is asked only where `shared_out` says that it matters to this part.
    """
    for parts, places in shared_out(names, count):
        if part - 1 in parts:
            return _equal(work, names, places, len(parts))[part - 1 - parts.start]
    return []


def all_parts(work: Callable[[int], float], names: Sequence[str], count: int) -> list[list[int]]:
    """The places of every part, as `dealt` gives them."""
    return [p for parts, places in shared_out(names, count) for p in _equal(work, names, places, len(parts))]


def shared_out(names: Sequence[str], count: int) -> list[tuple[range, list[int]]]:
    """(parts, from 0; the places that these share), for all parts: by a digest of the names, whatever the work.

    How much work there is may take a question to a file system, and every part would ask about everything. Of more
    parts than there is work the last get none, and are not there: a mistyped count must not take all memory.
    """
    count = min(count, len(names))
    shares = max(1, min(count, len(names) // TOGETHER))
    places: list[list[int]] = [[] for _ in range(shares)]
    for k, name in enumerate(names):
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        part = int.from_bytes(digest) * count >> 64
        places[part * shares // count].append(k)
    first = [-(-share * count // shares) for share in range(shares + 1)]
    return [(range(*ends), of) for ends, of in zip(pairwise(first), places, strict=True)]


def _equal(work: Callable[[int], float], names: Sequence[str], places: list[int], count: int) -> list[list[int]]:
    """`places` in so many parts: what takes longest is given out first, then by name, each to who has the least."""
    if count == 1:
        return [places]
    known = {k: work(k) for k in places}
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [(0.0, n) for n in range(count)]
    for k in sorted(places, key=lambda k: (-known[k], names[k])):
        load, to = heapq.heappop(loads)
        heapq.heappush(loads, (load + known[k], to))
        parts[to].append(k)
    return [sorted(part) for part in parts]


def scheduled(text: str, environment: Mapping[str, str]) -> str:
    """What `auto` or `auto/8` means in a task with this environment, as `3/8`.

    An array of SLURM has tasks 1 to N (SLURM_ARRAY_TASK_ID); `auto/N` serves where only some of them run again. An
    Indexed Job of Kubernetes counts from 0 (JOB_COMPLETION_INDEX) and does not say how many there are. A part is
    taken from there only where `auto` asks for it, since an array may as well have a dataset for every task.
    Raises UsageError where no part is known.
    """
    count = text.removeprefix(AUTO).removeprefix("/")
    index, part = environment.get("JOB_COMPLETION_INDEX", ""), environment.get("SLURM_ARRAY_TASK_ID", "")
    if index.isdecimal():
        if not count:
            raise UsageError("an Indexed Job does not say how many parts there are", fix="add it, as --shard auto/8")
        return f"{int(index) + 1}/{count}"
    if not part:
        raise UsageError(
            f"--shard {text}: no scheduler says which part this is",
            fix="give it, as --shard 3/8; auto is for tasks of a SLURM array or of an Indexed Job",
        )
    if not count:
        first, last, count = (environment.get(f"SLURM_ARRAY_TASK_{n}", "") for n in ("MIN", "MAX", "COUNT"))
        if (first, last) != ("1", count):
            raise UsageError(
                f"the {count} tasks of this array are {first} to {last}, and not 1 to the number of parts",
                fix="submit with --array=1-N, or say how many parts there are, as --shard auto/8",
            )
    return f"{part}/{count}"


def whole(command: str) -> str:
    """A command of a part, as that of all parts."""
    return re.sub(r" --shard[= ]\S+", "", command)


def of_part(command: str, part: int, count: int) -> str:
    """A command, whatever part it was of, as that of this one."""
    return f"{whole(command)} --shard {part}/{count}"
