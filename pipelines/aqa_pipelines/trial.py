"""One small clip through the whole extraction on every decoder and device of this machine, for `aqa doctor`.

A package can be installed and import, and still decode nothing: only decoding tells. The networks get random
weights, so nothing is fetched; everything else is what a real run does.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aqa_shared.files import scratch

if TYPE_CHECKING:
    import numpy as np

FRAMES = 32
SIDE = 64
"""Pixels; the least that I3D's five halvings leave something of."""
DEVICES_AGREE = 1e-3
"""Largest difference from the CPU over its largest value: both compute in fp32, and sum in another order."""


def extractions() -> Iterator[tuple[str, str | None]]:
    """(decoder and device, what is wrong or None), for every decoder on the CPU and PyAV on every other device."""
    import torch

    from aqa_dives.dataset import Look, write_video

    accelerators = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    decoders = ["av", *(["decord"] if find_spec("decord") else [])]
    with scratch("aqa-doctor-") as folder, _home(folder):
        clip = write_video(Look(width=2 * SIDE, height=SIDE, frames=FRAMES), 0, folder)
        weights = _random_weights(folder / "random.safetensors")
        reference: np.ndarray | None = None
        for decoder, device in [(d, "cpu") for d in decoders] + [("av", device) for device in accelerators]:
            try:
                found = _extract(clip, weights, folder / f"{decoder}-{device}.zarr", decoder, device)
            except Exception as e:  # of any library: that is what is looked for
                yield f"{decoder} on {device}", f"{type(e).__name__}: {e}"
                continue
            reference = found if reference is None else reference
            difference = float(abs(found - reference).max() / abs(reference).max())
            same = difference <= (0 if device == "cpu" else DEVICES_AGREE)
            yield (
                f"{decoder} on {device}",
                None if same else f"features differ from PyAV's on the CPU by {difference:.1e}",
            )


def _extract(clip: Path, weights: Path, out: Path, decoder: Any, device: str) -> np.ndarray:
    """RGB and flow features of the clip, (2, 1024), as they are read back from the store."""
    import numpy as np

    from aqa_extract.config import Options
    from aqa_extract.run import extract
    from aqa_shared.records import ExtractSettings, FlowSettings, Pixels, Sampling, Video
    from aqa_shared.store import FeatureStore, verify

    settings = ExtractSettings(
        streams=("rgb", "flow"),
        sampling=Sampling(segments=1),
        pixels=Pixels(short_side=SIDE, crop=SIDE),
        flow=FlowSettings(mode="parity"),
        weights={"rgb": str(weights), "flow": "inflated-from-rgb"},
    )
    with contextlib.redirect_stderr(io.StringIO()):
        report = extract([Video(id="clip", path=str(clip))], out, settings, Options(device=device, decoder=decoder))
    if report.failures:
        raise RuntimeError(f"{report.failures[0].reason}: {report.failures[0].detail}")
    if damage := verify(out):
        raise RuntimeError(f"the store reads back other bytes than were written: {damage[0].detail}")
    store = FeatureStore.open(out)
    return np.concatenate([store.video("clip", stream) for stream in ("rgb", "flow")])


def _random_weights(path: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    from aqa_extract.i3d import InceptionI3D

    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        save_file(InceptionI3D(3).state_dict(), path)
    return path


@contextlib.contextmanager
def _home(folder: Path) -> Iterator[None]:
    """Caches of this process go to `folder`: a look at the machine leaves nothing behind."""
    before = os.environ.get("AQA_HOME")
    os.environ["AQA_HOME"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("AQA_HOME")
        if before is not None:
            os.environ["AQA_HOME"] = before
