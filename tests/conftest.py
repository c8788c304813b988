"""Fixtures every room uses."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.clusters import Cluster

# The suite runs several decode children beside the tests; more threads only fight over the cores.
torch.set_num_threads(1)
# A loaded machine fails no property: no time limit for an example, and the same examples every time.
settings.register_profile("suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("suite")
# What a shell runs in the background ignores Ctrl-C, and so would everything that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = (
    *("test_stopping.py", "test_grid.py", "test_device.py", "test_supervised.py", "test_predict.py"),
    *("test_run.py", "test_run_data.py", "test_run_again.py", "test_run_files.py", "test_run_cluster.py"),
    *("test_serve_stopping.py", "test_serve_watching.py"),
)
"""Files that take minutes."""


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference clips and goldens that live beside the checkout and are not part of it."""
    path = Path(os.environ.get("AQA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (path / "goldens").is_dir():
        pytest.skip(f"reference material not found at {path} (set AQA_SHARED)")
    return path


@pytest.fixture(scope="session")
def i3d_rgb_weights() -> str:
    """The registry name of real RGB weights, in the user's own cache: fetched once, shared with every run."""
    from aqa_extract.weights import fetch
    from aqa_shared.errors import EnvironmentFault

    name = "i3d-kinetics-400"
    try:
        fetch(name)
    except EnvironmentFault as e:
        if "not the published" in e.cause:  # a wrong file is a finding, an unreachable one is a circumstance
            raise
        pytest.skip(f"no real I3D weights: {e.cause}")
    return name


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that the code runs on: the same test for each."""
    return torch.device(request.param)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no process is left with one at the end; what needs a GPU is skipped, and said."""
    items.sort(key=lambda item: item.path.name not in LONG)  # within these the order stays
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, none here"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and two workers that can do the work."""
    from tests.clusters import dask

    with dask(tmp_path_factory.mktemp("dask")) as found:
        found.worker()
        found.worker()
        yield found
