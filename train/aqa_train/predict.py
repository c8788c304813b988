"""Use a trained checkpoint: `load_checkpoint(path).score(features)`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn

from aqa_shared.errors import StoreError, UsageError
from aqa_shared.records import ExtractSettings
from aqa_train import checkpoint
from aqa_train.features import FeatureSet, enough_memory
from aqa_train.methods import METHODS
from aqa_train.trainer import ScoreScale, Standardiser, predict


@dataclass(frozen=True)
class Model:
    """A trained method with what is needed to feed it and to read its answers."""

    network: nn.Module
    channels: dict[str, int]
    """Streams and their widths, in the order the network wants them."""
    segments: int
    scale: ScoreScale
    standardise: Standardiser | None
    settings: ExtractSettings | None
    """How the features it learned from were extracted; None for features made elsewhere."""
    weights: dict[str, Any]
    """Provenance of the extractors' weights (name, source, digest) by stream."""
    meta: dict[str, Any]
    """The whole record: method, settings, fold, seed, epoch, split digest, …"""

    @enough_memory("score fewer videos at a time")
    def score(self, features: Mapping[str, NDArray[np.floating]] | Any, device: str = "cpu") -> NDArray[np.float64]:
        """Scores in the dataset's units, one a video.

        `features`: arrays (videos, segments, channels) by stream name, or a `FeatureStore` (in the order of its
        ids), which must have been extracted as the training features were.
        """
        if isinstance(features, Mapping):
            found = self._from_arrays(features)
        else:
            self.refuse_other_features(features.settings, _weights(features.provenance))
            found = FeatureSet.from_store(features, list(self.channels))
            self._refuse_other_widths(found.channels)
        place = torch.device(device)
        network = self.network.to(place)
        values = predict(network, found, np.arange(len(found.ids)), place, self.standardise)
        return self.scale.to_scores(values)

    def refuse_other_features(self, settings: ExtractSettings | None, weights: Mapping[str, Any]) -> None:
        """Raise `StoreError` naming what differs, unless features come from the same settings and weights."""
        if self.settings is None:
            return
        if settings is None:
            raise StoreError("the features do not say how they were extracted", fix="extract them with aqa-extract")
        mine, theirs = (_comparable(s, self.channels) for s in (self.settings, settings))
        wrong = [f"{k}: trained on {mine[k]}, given {theirs.get(k)}" for k in mine if mine[k] != theirs.get(k)]
        trained, given = _digests(self.weights), _digests(weights)
        for role in _roles(self.channels):
            if role in trained and trained[role] != given.get(role):
                other = given.get(role, "unknown")[:12]
                wrong.append(f"{role} weights: trained on {trained[role][:12]}, given {other}")
        if wrong:
            raise StoreError(
                f"the features were extracted in another way than the checkpoint's: {'; '.join(wrong)}",
                fix="extract with the checkpoint's settings (aqa predict does), or train on these features",
            )

    def _from_arrays(self, features: Mapping[str, NDArray[np.floating]]) -> FeatureSet:
        missing = [n for n in self.channels if n not in features]
        if missing:
            raise UsageError(f"the checkpoint needs the stream(s) {', '.join(missing)}, got {', '.join(features)}")
        chosen = {n: np.asarray(features[n]) for n in self.channels}
        for name, array in chosen.items():
            if array.ndim != 3 or array.shape[2] != self.channels[name]:
                raise UsageError(f"{name}: got {array.shape = }, expected (videos, segments, {self.channels[name]})")
        return FeatureSet.from_arrays(chosen, {})

    def _refuse_other_widths(self, channels: Mapping[str, int]) -> None:
        if dict(channels) != self.channels:
            raise StoreError(f"the checkpoint needs channels {self.channels}, the store has {dict(channels)}")


def save_model(path: Path, state: Mapping[str, Tensor], standardise: Standardiser | None, meta: dict[str, Any]) -> None:
    """Write a model checkpoint, and its record beside it for people."""
    tensors = checkpoint.under("model", dict(state))
    if standardise is not None:
        tensors |= {"standardise.shift": standardise.shift, "standardise.scale": standardise.scale}
    checkpoint.save(path, tensors, {"kind": "model", **meta})
    with checkpoint.writing(path):
        path.with_suffix(".json").write_text(json.dumps(meta, indent=1, allow_nan=False))


def load_checkpoint(path: str | Path) -> Model:
    """From a .safetensors file, the folder of one training, or a run folder (then its first method, fold and seed)."""
    file = find_checkpoint(Path(path))
    tensors, meta = checkpoint.load(file, "model")
    if meta["method"] not in METHODS:
        raise UsageError(f"{file} is of the method {meta['method']!r}, which this version does not know")
    cls = METHODS[meta["method"]].load()
    config = TypeAdapter(cls.Config).validate_python(meta["config"])
    network = cls(list(meta["channels"].values()), meta["segments"], config)
    try:
        network.load_state_dict(checkpoint.part(tensors, "model"))
    except RuntimeError as e:
        raise UsageError(f"{file} does not fit {meta['method']}: {str(e).splitlines()[-1].strip()}") from None
    network.eval()
    standardise = checkpoint.part(tensors, "standardise")
    return Model(
        network=network,
        channels=meta["channels"],
        segments=meta["segments"],
        scale=ScoreScale(**meta["scale"]),
        standardise=Standardiser(**standardise) if standardise else None,
        settings=ExtractSettings.model_validate(meta["extract"]) if meta["extract"] else None,
        weights=meta["weights"],
        meta=meta,
    )


def find_checkpoint(path: Path) -> Path:
    """The model file that `path` names."""
    if path.suffix == ".json" and path.with_suffix(".safetensors").exists():
        return path.with_suffix(".safetensors")
    if not path.is_dir():
        return path
    if (path / "last.safetensors").exists():
        return path / "last.safetensors"
    if (path / "metrics.json").exists():
        named = json.loads((path / "metrics.json").read_text()).get("checkpoint")
        if named and (path / named).exists():
            return path / str(named)
    raise UsageError(f"{path} holds no finished training", fix="name a run folder of aqa-train, or a .safetensors file")


def _comparable(settings: ExtractSettings, streams: Mapping[str, int]) -> dict[str, Any]:
    """The settings that decide the values of these streams, flat."""
    record = settings.model_dump(mode="json")
    for name in ("streams", "logits", "maps", "rgb_weights", "flow_weights", "actor_weights"):
        record.pop(name)
    if not any("flow" in s for s in streams):
        record.pop("flow")
    if not any("actor" in s for s in streams):
        record.pop("actor")
    return {
        f"{k}.{n}" if isinstance(v, dict) else k: w
        for k, v in record.items()
        for n, w in (v.items() if isinstance(v, dict) else [("", v)])
    }


def _roles(streams: Iterable[str]) -> list[str]:
    """The networks that make these streams."""
    names = "+".join(streams)
    return [r for r in ("rgb", "flow", "actor") if r in names]


def _weights(provenance: Mapping[str, Any]) -> dict[str, Any]:
    found = provenance.get("weights", {})
    return dict(found) if isinstance(found, Mapping) else {}


def _digests(weights: Mapping[str, Any]) -> dict[str, str]:
    return {k: str(v["sha256"]) for k, v in weights.items() if isinstance(v, Mapping) and "sha256" in v}
