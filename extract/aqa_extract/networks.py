"""The networks a run needs, loaded once: I3D for RGB, I3D for flow, the person detector, TV-L1's settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqa_extract.actor.ssd import PersonDetector, load_detector
from aqa_extract.flow.settings import TVL1Settings
from aqa_extract.flow.tvl1 import engine, why_torch
from aqa_extract.frames import normalise
from aqa_extract.i3d import InceptionI3D, load_i3d
from aqa_extract.streams import chosen, needs_actor, needs_flow
from aqa_shared.machine import has_units_for
from aqa_shared.records import ExtractSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Networks:
    """What runs on the device. `weights` is the provenance of each, by role (`rgb`, `flow`, `actor`)."""

    settings: ExtractSettings
    device: torch.device
    backbones: dict[str, InceptionI3D]
    detector: PersonDetector | None
    tvl1: TVL1Settings
    weights: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, settings: ExtractSettings, device: torch.device, say: Callable[[str], None]) -> Networks:
        """Raises EnvironmentFault where weights cannot be had or do not fit."""
        dtype = DTYPES[settings.precision]
        if device.type == "cuda":
            # "fp32" must mean it: by default convolutions round their inputs to TF32's ten bits.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        if not has_units_for(settings.precision, device):
            say(f"this device has no units for {settings.precision}: fp32 would be faster")
        backbones: dict[str, InceptionI3D] = {}
        weights: dict[str, dict[str, Any]] = {}
        names = {"rgb": settings.rgb_weights, "flow": settings.flow_weights}
        for modality in dict.fromkeys(kind.modality for kind in chosen(settings)):
            network, weights[modality] = load_i3d(
                names[modality], modality, settings.bn_eps, say, inflate_from=settings.rgb_weights
            )
            # On CPUs the layout that its convolutions want; on GPUs it has been slower in some cuDNN releases.
            layout = torch.channels_last_3d if device.type == "cpu" else torch.preserve_format
            backbones[modality] = network.eval().to(device, dtype).to(memory_format=layout)
        detector = None
        if needs_actor(settings):
            detector, weights["actor"] = load_detector(settings.actor_weights, say)
            detector = detector.eval().to(device)
        return cls(settings, device, backbones, detector, TVL1Settings(), weights)

    @property
    def detector_size(self) -> int | None:
        """Side of the square the detector looks at, None without one."""
        return self.detector.size if self.detector is not None else None

    @property
    def flow_engine(self) -> str:
        """What computes TV-L1: the engines differ by rounding. "" where no flow is computed."""
        return engine(self.device, self.tvl1) if needs_flow(self.settings) else ""

    @property
    def slow_flow(self) -> str:
        """Why flow takes ten times as long as it could, "" where it does not."""
        return why_torch(self.device, self.tvl1) if needs_flow(self.settings) else ""

    def i3d(self, modality: str, clips: Tensor, batch: int) -> dict[str, np.ndarray]:
        """Outputs of (b, channels, time, side, side) clips, uint8 RGB or flow in [-1, 1], by array-name suffix.

        "" is the 1024-d feature; "_logits" and "_map" where the settings ask. The call always has `batch` rows.
        """
        network = self.backbones[modality]
        x = clips.to(self.device, torch.float32)
        if modality == "rgb":
            x = normalise(x, self.settings.pixels.normalise)
        count = len(x)
        if count < batch:
            x = torch.cat([x, x.new_zeros((batch - count, *x.shape[1:]))])
        maps = network.pre_pool(x.to(DTYPES[self.settings.precision]))
        outputs = {"": network.pool(maps)}
        if self.settings.logits:
            outputs["_logits"] = network.classify(maps)
        if self.settings.maps:
            outputs["_map"] = maps
        return {suffix: values[:count].float().cpu().numpy() for suffix, values in outputs.items()}
