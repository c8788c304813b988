"""What workers of a Dask cluster do in tests: in a module that they can import."""

from __future__ import annotations

from collections.abc import Mapping

from aqa_shared.sessions import Ready, own_gpu


def ready(gpus: int, places: Mapping[str, int]) -> Ready:
    """A worker that sees so many GPUs, which are the same for all."""
    return Ready(gpu=f"GPU {own(gpus, places)}")


def work(gpus: int, places: Mapping[str, int], text: str) -> tuple[str, str]:
    return text, own(gpus, places)


def own(gpus: int, places: Mapping[str, int]) -> str:
    from distributed import get_worker

    return own_gpu(places[get_worker().contact_address], gpus)
