"""What workers of a Dask cluster do in tests: in a module that they can import."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from aqa_shared import sessions
from aqa_shared.errors import AqaError
from aqa_shared.sessions import Ready, Trouble, own_gpu, session, trouble


def ready(gpus: int, places: Mapping[str, int]) -> Ready:
    """A worker that sees so many GPUs, which are the same for all."""
    return Ready(gpu=f"GPU {own(gpus, places)}")


def sit(gpus: int, places: Mapping[str, int]) -> Ready:
    """A worker without a GPU."""
    return Ready()


def work(gpus: int, places: Mapping[str, int], text: str) -> tuple[str, str]:
    return text, own(gpus, places)


def own(gpus: int, places: Mapping[str, int]) -> str:
    from distributed import get_worker

    return own_gpu(places[get_worker().contact_address], gpus)


class Kept:
    """Of a run."""

    stopped = False

    def stop(self) -> None:
        self.stopped = True


def load(terms: tuple[str, Path], places: Mapping[str, int]) -> Ready | Trouble:
    """A worker that loads until the folder says that it has."""
    run, folder = terms

    def make() -> Kept:
        (folder / "begun").touch()
        while not (folder / "loaded").exists():
            time.sleep(0.05)
        return Kept()

    try:
        session(run, make)
    except AqaError as e:
        return trouble(e, unfit=True)
    finally:
        (folder / "over").touch()
    return Ready()


def kept() -> dict[str, bool]:
    """Of each run that this process keeps something of, whether that was told to stop."""
    return {run: found.stopped for run, found in sessions._sessions.items()}
