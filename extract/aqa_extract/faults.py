"""Whose fault a failure is: the one table that second tries, planning, the quarantine and the exit code ask.

Only what is the video's own is held against it. A fault of the machine, the installation or a library is never
written into the quarantine, and the next run tries that video again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from aqa_shared.errors import EnvironmentFault, ExitCode

if TYPE_CHECKING:  # the decode child reads this table too, and starts in a fifth of a second
    from aqa_shared.records import Failure


class Fault(Enum):
    """Who is at fault, and so what the next run does."""

    VIDEO = "the video"
    """Quarantined until the file changes."""
    REQUEST = "what was asked"
    """Quarantined; the part, the protocol, an option or the store's id was at fault, so it is tried again."""
    OURS = "the machine, the installation or a library"
    """Not quarantined, tried again by every run."""


@dataclass(frozen=True)
class Reason:
    """What follows from a reason code."""

    fault: Fault
    second_try: bool = False
    """One more try within the run, in a clean process: it may have been a neighbour's doing."""


_VIDEO = (
    "not_regular_file empty_file forbidden_format not_a_video no_video no_moov too_small too_large bad_shape no_frames "
    "frame_count_mismatch corrupt undecodable resolution_change"
)
_REQUEST = (
    "unreadable changed_during_read too_short part_outside too_long decode_timeout decord_unsupported id_conflict "
    "id_taken"
)
_OURS = "decoder_error decoder_stalled read_error internal_error bad_features interrupted worker_failed"

REASONS: dict[str, Reason] = {
    **{name: Reason(Fault.VIDEO) for name in _VIDEO.split()},
    **{name: Reason(Fault.VIDEO, second_try=True) for name in ("decoder_crashed", "out_of_memory")},
    **{name: Reason(Fault.REQUEST) for name in _REQUEST.split()},
    **{name: Reason(Fault.OURS) for name in _OURS.split()},
    **{name: Reason(Fault.OURS, second_try=True) for name in ("decoder_not_started", "decoder_killed", "no_memory")},
}
"""Every reason code; docs/decoding.md says what they mean."""


def fault(reason: str) -> Fault:
    """Whose fault it is; that of the video for a code that this version does not know."""
    return REASONS[reason].fault if reason in REASONS else Fault.VIDEO


def second_try(reason: str) -> bool:
    """Whether the run tries the video once more, in a clean process."""
    return reason in REASONS and REASONS[reason].second_try


def would_fail_again(failed: Failure, decoder: str, timeout: float, accept_damaged: bool = False) -> bool:
    """Whether the same file would fail in the same way with these options."""
    if failed.stage == "sampling":  # the part or the protocol was at fault, and may have been mended
        return False
    if accept_damaged and failed.reason in ("corrupt", "frame_count_mismatch"):
        return False
    if failed.reason == "decode_timeout":
        return failed.limit is not None and timeout <= failed.limit
    if failed.backend == "decord" and decoder != "decord":  # `auto` turns to PyAV by itself
        return False
    return fault(failed.reason) is Fault.VIDEO or failed.reason == "decord_unsupported"


def told(failed: Failure) -> str:
    """A failure as a person reads it."""
    from aqa_shared.console import printable  # not for the decode child, which needs none of it

    return f"{printable(failed.id)}: {printable(failed.detail)} ({failed.reason})"


def ours(failures: Sequence[Failure]) -> list[Failure]:
    """Those for which no video is to blame."""
    return [failure for failure in failures if fault(failure.reason) is Fault.OURS]


def exit_code(failures: Sequence[Failure]) -> ExitCode:
    """5 as soon as one failure is ours, since a video that may be good is missing; else 3 for any failure."""
    if ours(failures):
        return ExitCode.ENVIRONMENT
    return ExitCode.QUARANTINED if failures else ExitCode.OK


def environment_fault(failures: Sequence[Failure]) -> EnvironmentFault | None:
    """What a command ends with where videos failed through no fault of theirs."""
    from aqa_shared.console import counted

    if not (found := ours(failures)):
        return None
    return EnvironmentFault(
        f"{counted(len(found), 'video')} failed through {Fault.OURS.value}, and through no fault of the video",
        fix="`aqa doctor` examines this machine; then rerun the same command, which tries them again",
    )
