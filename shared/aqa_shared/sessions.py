"""What a process of a Dask worker keeps of a run between its tasks: networks, features.

`aqa_shared.workers` is the other end: who is fit, and what each has to do.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aqa_shared.errors import AqaError, ExitCode
from aqa_shared.machine import keep_freed_memory


@dataclass(frozen=True)
class Ready:
    """A worker that can do the work of a run."""

    offer: Any = None
    """What the client wants to know of it."""
    gpu: str = ""
    """The GPU that it computes on, by a name that no other has; "" for a CPU."""
    said: tuple[str, ...] = ()
    """What was to be said while it got ready."""


@dataclass(frozen=True)
class Trouble:
    """Why a worker could not do its work."""

    cause: str
    fix: str
    exit_code: ExitCode
    unfit: bool
    """It would not be able to do any other either."""


class Session(Protocol):
    """What is kept of a run."""

    def stop(self) -> None:
        """Let what has begun come to its end, and begin nothing more."""


S = TypeVar("S", bound=Session)
_sessions: dict[str, Any] = {}
_lock = threading.Lock()
_stopped: set[str] = set()
_left: set[str] = set()
"""Runs that are over: what is made for them may take until after that was said, and a task may come after it."""
KEPT = 2
"""Runs of which a process keeps something: two clients may share a cluster."""


def session(run: str, make: Callable[[], S]) -> S:
    """That of a run, made where there is none. Raises AqaError where the run is over by then."""
    with _lock:
        found: S | None = _sessions.get(run)
        if found is None and run not in _left:
            while len(_sessions) >= KEPT:
                del _sessions[next(iter(_sessions))]
            gc.collect()
            keep_freed_memory()
            found = _sessions[run] = make()
            if run in _stopped:
                found.stop()
        if found is None or run in _left:
            leave(run)
            raise AqaError(f"run {run} is over", fix="run the same command again")
        return found


def stop(run: str) -> None:
    """Sent to every worker when the run is to end early."""
    _stopped.add(run)
    if found := _sessions.get(run):
        found.stop()


def leave(run: str) -> None:
    """Sent to every worker at the end: nothing is kept of the run, and nothing of it goes on."""
    _left.add(run)
    _stopped.discard(run)
    if found := _sessions.pop(run, None):
        found.stop()
    del found
    gc.collect()


def trouble(error: Exception, unfit: bool) -> Trouble:
    """What went wrong on a worker, to be sent to the client."""
    if isinstance(error, AqaError):
        return Trouble(error.cause, error.fix, error.exit_code, unfit)
    machines = isinstance(error, OSError | MemoryError)
    code = ExitCode.ENVIRONMENT if machines else ExitCode.INTERNAL
    return Trouble(f"{type(error).__name__}: {error}", "run `aqa doctor` there", code, unfit)


def device_here(device: str, places: Mapping[str, int]) -> str:
    """The device of the worker that calls it: `cuda` is the GPU of its own."""
    import torch
    from distributed import get_worker

    if device != "cuda":
        return device
    return own_gpu(places.get(str(get_worker().contact_address), 0), torch.cuda.device_count())


def own_gpu(place: int, gpus: int) -> str:
    """Of the `gpus` that a worker sees, which one is its own: by its place among the workers of its host.

    So those that see the same GPUs take one each, and a worker that sees a single one takes that.
    """
    return f"cuda:{place % max(gpus, 1)}"


def idle_gpus(device: str, asked: str) -> tuple[str, ...]:
    """What is to be said where a GPU is there that nobody declares."""
    import torch

    if device != "cpu" or asked != "auto" or not torch.cuda.is_available():
        return ()
    return ("workers have GPUs and none declares one, so CPUs compute: start them with --resources GPU=1",)


def gpu_name(device: Any) -> str:
    """Of a torch device: one name for one GPU, whatever number it has for a process; "" for a CPU."""
    import torch

    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
