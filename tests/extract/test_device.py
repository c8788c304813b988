"""One extraction on every device: features are the CPU's, a second run's, and whole where memory runs out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aqa_extract.config import Options
from aqa_extract.run import extract
from aqa_shared.manifest import find_videos
from aqa_shared.records import ExtractSettings, Pixels, Sampling
from aqa_shared.store import FeatureStore

STREAMS = ("rgb", "flow", "actor-rgb", "actor-flow")
LOWEST_COSINE = {"fp32": 0.9999, "bf16": 0.995, "fp16": 0.999}
"""Of a segment's features with those of fp32 on a CPU. TV-L1 and the detector round differently on a device, and a flow
that stops an iteration later moves flow features more than any arithmetic of I3D does."""


@pytest.fixture(scope="module")
def dives(tmp_path_factory: pytest.TempPathFactory, i3d_rgb_weights: str) -> Path:
    from aqa_dives.dataset import Look, render

    folder = tmp_path_factory.mktemp("dives")
    render(Look(seed=3, frames=40), 2, folder, workers=1, overwrite=False, advance=lambda: None)
    return folder


def features(
    dives: Path, out: Path, device: torch.device, precision: str = "fp32", batch: int = 3
) -> dict[str, np.ndarray]:
    settings = ExtractSettings(
        streams=STREAMS,
        sampling=Sampling(segments=2),
        pixels=Pixels(short_side=96, crop=96),
        weights={"rgb": "i3d-kinetics-400", "flow": "inflated-from-rgb"},
        flow={"mode": "parity"},
        precision=precision,
    )
    report = extract(find_videos(dives).videos, out, settings, Options(device=str(device), batch=batch))
    assert report.failures == []
    store = FeatureStore.open(out)
    return {name: store.read(name) for name in ("rgb", "flow", "actor_rgb", "actor_flow", "actor_box")}


@pytest.fixture(scope="module")
def by_cpu(dives: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    return features(dives, tmp_path_factory.mktemp("cpu") / "s.zarr", torch.device("cpu"))


@pytest.mark.parametrize("precision", LOWEST_COSINE)
def test_a_device_gives_the_features_of_a_cpu(
    dives: Path, by_cpu: dict[str, np.ndarray], tmp_path: Path, device: torch.device, precision: str
) -> None:
    if (device.type, precision) == ("cpu", "fp16"):
        pytest.skip("CPUs have no fast fp16; tests/extract/test_i3d.py has its parity")
    found = features(dives, tmp_path / "s.zarr", device, precision)
    np.testing.assert_allclose(found.pop("actor_box"), by_cpu["actor_box"], atol=0.02)
    for name, values in found.items():
        a, b = values, by_cpu[name]
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        assert cosine.min() > LOWEST_COSINE[precision], (name, cosine)


def test_a_device_gives_the_same_bits_twice(dives: Path, tmp_path: Path, device: torch.device) -> None:
    once = features(dives, tmp_path / "a.zarr", device)
    again = features(dives, tmp_path / "b.zarr", device)
    for name, values in once.items():
        np.testing.assert_array_equal(values, again[name], err_msg=name)


@pytest.mark.gpu
def test_where_the_devices_memory_runs_out_batches_are_halved(
    dives: Path, by_cpu: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch that cannot fit, on real memory: what the whole device has, taken but for 600 MB."""
    cuda = torch.device("cuda")
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(cuda)
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(cuda) + 600e6) / total)
    assert free > 2e9, "another process uses this device"
    try:
        found = features(dives, tmp_path / "s.zarr", cuda, batch=512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert "going on with batches of" in capsys.readouterr().err
    for name in ("rgb", "actor_rgb"):
        np.testing.assert_allclose(found[name], by_cpu[name], atol=1e-3, err_msg=name)
