"""The networks a run needs, loaded once: backbones, the person detector, TV-L1's settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aqa_extract.actor.ssd import PersonDetector, load_detector
from aqa_extract.flow.settings import TVL1Settings
from aqa_extract.flow.tvl1 import engine, why_torch
from aqa_extract.frames import normalise
from aqa_extract.streams import Stream, by_network, chosen, needs_actor, needs_flow
from aqa_extract.weights import better, resolve
from aqa_shared.console import Say
from aqa_shared.errors import EnvironmentFault
from aqa_shared.machine import has_units_for
from aqa_shared.records import ExtractSettings

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Networks:
    """What runs on the device, by the name of the network: `rgb` and `flow` are I3D's, `rgb@swin3d_b` another's."""

    settings: ExtractSettings
    device: torch.device
    backbones: dict[str, nn.Module]
    detector: PersonDetector | None
    tvl1: TVL1Settings
    weights: dict[str, dict[str, Any]]
    """The provenance of each, that of the detector as `actor`."""

    @classmethod
    def load(cls, settings: ExtractSettings, device: torch.device, say: Say) -> Networks:
        """Raises EnvironmentFault where weights are not available or do not fit."""
        dtype = DTYPES[settings.precision]
        if device.type == "cuda":
            # "fp32" must mean it: by default convolutions round their inputs to TF32's ten bits.
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cuda.matmul.allow_tf32 = False
        if not has_units_for(settings.precision, device):
            say(f"this device has no units for {settings.precision}: fp32 would be faster")
        backbones: dict[str, nn.Module] = {}
        weights: dict[str, dict[str, Any]] = {}
        for name, stream in by_network(settings).items():
            asked = settings.weights.get(name, "default")
            loaded = resolve(asked, name, say, inflate_from=settings.weights.get("rgb", "default"))
            weights[name] = loaded.record
            network = stream.backbone.builder(loaded.state, stream.modality, settings, loaded.record["name"])
            _refuse_other_classes(network, stream, settings, loaded.record["name"])
            # On CPUs the layout that its convolutions want; on GPUs it has been slower in some cuDNN releases.
            layout = torch.channels_last_3d if device.type == "cpu" else torch.preserve_format
            backbones[name] = network.eval().to(device, dtype).to(memory_format=layout)
        detector = None
        if needs_actor(settings):
            detector, weights["actor"] = load_detector(settings.weights.get("actor", "default"), say)
            detector = detector.eval().to(device)
        if names := better(weights, settings.weights):
            say(f"better weights, for a new store: `aqa weights fetch {' '.join(names)}`")
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

    def run(self, name: str, clips: Tensor, batch: int, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        """`outputs` by name of (b, channels, time, side, side) clips, uint8 RGB or flow in [-1, 1].

        The network always gets `batch` rows.
        """
        stream = by_network(self.settings)[name]
        x = clips.to(self.device, torch.float32)
        if stream.modality == "rgb":
            x = normalise(x, stream.input(self.settings))
        count = len(x)
        if count < batch:
            x = torch.cat([x, x.new_zeros((batch - count, *x.shape[1:]))])
        network: Any = self.backbones[name]
        made = network.outputs(x.to(DTYPES[self.settings.precision]), outputs)
        return {output: values[:count].float().cpu().numpy() for output, values in made.items()}


def _refuse_other_classes(network: Any, stream: Stream, settings: ExtractSettings, weights: str) -> None:
    """Raises EnvironmentFault where logits are asked for that these weights do not give."""
    wanted = any("logits" in s.outputs for s in chosen(settings) if s.network == stream.network)
    classes = stream.backbone.outputs["logits"].channels if "logits" in stream.backbone.outputs else 0
    if wanted and network.classes != classes:
        has = f"a classifier of {network.classes} classes" if network.classes else "no classifier"
        raise EnvironmentFault(
            f"weights {weights} have {has}, so there are no logits of {classes} classes",
            fix="omit the logits, or choose weights with that classifier (aqa weights list)",
        )
