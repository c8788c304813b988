"""Whole recipes of others by name: what `--preset` puts where no option, variable or configuration says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from aqa_shared.records import Pixels, Sampling


@dataclass(frozen=True)
class Preset:
    """Which frames, and how they become the network's input."""

    about: str
    sampling: Sampling
    pixels: Pixels

    @property
    def options(self) -> dict[str, Any]:
        """By the name of the option."""
        return {**self.sampling.model_dump(exclude_unset=True), **self.pixels.model_dump(exclude_unset=True)}


PRESETS: dict[str, Preset] = {
    "gdlt": Preset(
        "clips of 32 frames at 25 per second, one after the other; short side 256, squashed to 224 x 224: as GDLT (Xu "
        "et al., CVPR 2022) prepares its videos for a Video Swin Transformer (here rgb@swin3d_b)",
        Sampling(protocol="dense", segment_frames=32, step=32, fps=25.0),
        Pixels(short_side=256, crop=224, fit="squash"),
    ),
}
