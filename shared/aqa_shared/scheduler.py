"""A Dask cluster, whoever started it: an address, a scheduler file, or one of our own on this machine."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aqa_shared.errors import EnvironmentFault
from aqa_shared.machine import available_memory

if TYPE_CHECKING:
    from distributed import Client

LOCAL = "local:"
COMPARED = ("python", "dask", "distributed", "aqa")
"""What must be the same everywhere: three speak with each other, the last says what is computed."""
ANSWER = 20.0
"""Seconds for a scheduler to answer."""
DEAF = (
    "import signal; "
    "[signal.signal(s, signal.SIG_IGN) for s in signal.Signals if s.name in ('SIGINT', 'SIGTERM', 'SIGUSR1')]"
)
"""Run by workers of our own, to which terminals send Ctrl-C and batch systems their warnings as well: whoever started
them decides."""


def named(value: Any) -> Any:
    """An address, a file or `local:N` as it is. Raises ValueError for what is none of them."""
    if not isinstance(value, str):
        return value
    if value.startswith(LOCAL) and not (value.removeprefix(LOCAL).isdecimal() and int(value.removeprefix(LOCAL)) > 0):
        raise ValueError(f"say how many workers there are to be, as local:2, got {value!r}")
    if re.fullmatch(r"[\w.-]+:\d+", value) and not value.startswith(LOCAL):
        raise ValueError(f"an address begins with its protocol, as tcp://{value}")
    return value


@contextmanager
def connected(where: str, *, gpu: bool = False) -> Iterator[Client]:
    """A client of the cluster at `where`; a cluster of our own ends with it.

    The workers of our own are processes of one thread, which declare `GPU=1` where `gpu`. Raises EnvironmentFault
    where nothing answers, or where the scheduler is of other versions.
    """
    try:
        from distributed import Client, LocalCluster
        from distributed.comm.addressing import get_address_host_port
    except ImportError as e:
        raise EnvironmentFault(
            f"--scheduler {where}: {e}", fix="pip install distributed, of dask's release (the extra dask of aqa)"
        ) from e
    for name in ("distributed", "distributed.client", "distributed.core", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is said by us
    if where.startswith(LOCAL):
        count = int(where.removeprefix(LOCAL))
        if hasattr(signal, "pthread_sigmask"):  # Python's helper of these processes is deaf to the others by itself
            before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with (
            LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=available_memory() // count,
                resources={"GPU": 1} if gpu else None,
                preload=[DEAF],
                silence_logs=logging.CRITICAL,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
        return
    place = {"address": where} if "://" in where else {"scheduler_file": _file(where)}
    try:
        if "://" in where:
            get_address_host_port(where)  # a client that finds it wrong holds up the exit, and ends in a traceback
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions that differ are said below
            client = Client(**place, timeout=ANSWER, set_as_default=False)
            theirs = _packages(client)
    except (OSError, ValueError) as e:
        raise EnvironmentFault(
            f"no Dask scheduler answers at {where}: {str(e).splitlines()[0]}",
            fix="start one with `dask scheduler`, and check the address and the firewall in between",
        ) from e
    try:
        if found := differing(theirs, but=("aqa",)):  # which a scheduler does without
            raise EnvironmentFault(f"the scheduler at {where} has {found}", fix="start it with the versions used here")
        yield client
    finally:
        with suppress(Exception):  # one that is gone cannot be taken leave of
            client.close(timeout=5)


def address(client: Client) -> str:
    """Of its scheduler."""
    scheduler: Any = client.scheduler
    return str(scheduler.address)


def workers(client: Client) -> dict[str, dict[str, Any]]:
    """Address → what the scheduler knows of a worker: name, host, nthreads, resources …"""
    found: dict[str, dict[str, Any]] = _identity(client)["workers"]
    return found


def dashboard(client: Client) -> str:
    """Where to look at it, "" where the scheduler shows nothing."""
    draws = _packages(client, "bokeh").get("bokeh")
    return str(client.dashboard_link) if draws and "dashboard" in _identity(client)["services"] else ""


def versions_of(client: Client, worker: str) -> Future[Mapping[str, str | None] | None]:
    """Package → version of a worker; None where it could not be reached. One that hangs does not answer."""

    async def answer() -> Mapping[str, str | None] | None:
        scheduler: Any = client.scheduler
        asked = {"op": "versions", "packages": ["aqa"]}
        answers = await scheduler.broadcast(msg=asked, workers=[worker], on_error="ignore")
        return answers[worker]["packages"] if worker in answers else None

    loop: Any = client.loop
    return asyncio.run_coroutine_threadsafe(answer(), loop.asyncio_loop)


def differing(theirs: Mapping[str, str | None], but: tuple[str, ...] = ()) -> str:
    """In words, what of `COMPARED` is of another version than here; "" where nothing is."""
    from distributed.versions import get_versions

    ours = get_versions(packages=["aqa"])["packages"]
    said = []
    for name in COMPARED:
        here, there = (_as_compared(name, found.get(name)) for found in (ours, theirs))
        if name not in but and here != there:
            said.append(f"{name} {there} (here {here})")
    return ", ".join(said)


def _identity(client: Client) -> dict[str, Any]:
    scheduler: Any = client.scheduler
    found: dict[str, Any] = client.sync(scheduler.identity)
    return found


def _packages(client: Client, *more: str) -> dict[str, str | None]:
    """Versions of the scheduler by package; workers are not asked, as one of them may hang."""
    scheduler: Any = client.scheduler
    found: dict[str, str | None] = client.sync(scheduler.versions, packages=list(more))["packages"]
    return found


def _as_compared(name: str, version: str | None) -> str:
    """Within a minor version of Python all understand each other."""
    parts = (version or "missing").split(".")
    return ".".join(parts[:2] if name == "python" else parts)


def _file(where: str) -> str:
    """Raises EnvironmentFault for what no scheduler has written."""
    try:
        json.loads(Path(where).read_text())["address"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise EnvironmentFault(
            f"--scheduler {where}: neither an address nor a file that a scheduler wrote ({type(e).__name__}: {e})",
            fix="give tcp://HOST:PORT, local:N, or the FILE of `dask scheduler --scheduler-file FILE`",
        ) from e
    return where
