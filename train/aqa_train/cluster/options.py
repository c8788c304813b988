"""`--scheduler` and `--scheduler-wait` of the commands that train."""

from __future__ import annotations

from collections.abc import Mapping

from aqa_shared.errors import UsageError
from aqa_shared.scheduler import named

METAVAR = "ADDRESS|FILE"
HELP = (
    "Let the workers of a Dask cluster train: the address of its scheduler (tcp://HOST:PORT), the file that it wrote, "
    "or local:N for N processes on this machine."
)
WAIT_HELP = "Seconds to wait for a worker of the cluster that can train."
WAIT = 60.0

Cluster = tuple[str, float]
"""Where the scheduler is, and the seconds to wait for a worker."""


def cluster_asked(scheduler: str | None, wait: float, useless: Mapping[str, bool]) -> Cluster | None:
    """What the two options say. Raises UsageError for what would do nothing: a wait without a scheduler, or an option
    of `useless` that is given with one."""
    if scheduler is None:
        if wait != WAIT:
            raise UsageError("--scheduler-wait does nothing without --scheduler", fix="omit it, or name the cluster")
        return None
    for option in [name for name, is_given in useless.items() if is_given]:
        one = option in ("--jobs", "--together")
        why = "each worker trains one at a time" if one else "it estimates the time on this machine"
        raise UsageError(f"{option} does nothing with --scheduler: {why}", fix="omit one of them")
    try:
        return str(named(scheduler)), wait
    except ValueError as e:
        raise UsageError(f"--scheduler: {e}", fix="give tcp://HOST:PORT, the scheduler's file, or local:N") from None
