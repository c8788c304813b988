"""Errors that people can act on, and the exit codes that scripts can."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's exit status says; documented in docs/exit-codes.md."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    QUARANTINED = 3
    """Finished, but some videos could not be used; the store says why."""
    NO_INPUT = 4
    ENVIRONMENT = 5
    """No device as asked, weights missing or wrong."""
    STORE = 6
    """Store incompatible, damaged or not writable."""
    INTERRUPTED = 130
    TERMINATED = 143


class AqaError(Exception):
    """A failure with its cause and, where one is known, its fix.

    `cause` names the value and the file or row; `fix` says what to do next.
    """

    exit_code = ExitCode.INTERNAL
    abrupt = False
    """Threads were left at work: a command ends without waiting for anything."""

    def __init__(self, cause: str, *, fix: str = "") -> None:
        super().__init__(f"{cause}\n{fix}" if fix else cause)
        self.cause = cause
        self.fix = fix


class UsageError(AqaError):
    """Wrong options, configuration, labels or manifest."""

    exit_code = ExitCode.USAGE


class NoInputError(AqaError):
    """Nothing usable was found where input was looked for."""

    exit_code = ExitCode.NO_INPUT


class EnvironmentFault(AqaError):
    """The machine lacks what was asked: a device, weights, a package."""

    exit_code = ExitCode.ENVIRONMENT


class StoreError(AqaError):
    """A store that is incompatible, damaged, unfinished or not writable."""

    exit_code = ExitCode.STORE


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`did you mean x?` where one of `choices` is near `name`, else nothing: a part of a `fix`.

    A path that ends in `name` is nearer than one that is merely spelled alike.
    """
    by_lower = {choice.lower(): choice for choice in choices}
    near = [choice for choice in by_lower if choice.endswith(f"/{name.lower()}")]
    near = near or difflib.get_close_matches(name.lower(), list(by_lower), n=1)
    return f"did you mean {by_lower[near[0]]}?" if near else ""
