"""Use what was trained: `open_ensemble(run).score(store)`, or one checkpoint by `load_checkpoint(path)`."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn

from aqa_shared.console import counted
from aqa_shared.errors import StoreError, UsageError, did_you_mean
from aqa_shared.files import replace_text
from aqa_shared.records import ExtractSettings
from aqa_train import checkpoint
from aqa_train.batch import Inputs
from aqa_train.features import FeatureSet
from aqa_train.memory import enough_memory
from aqa_train.methods import METHODS
from aqa_train.scores import Combined, combine, identities
from aqa_train.standardise import Standardiser
from aqa_train.storage import load_state, packed
from aqa_train.stream_names import array_of
from aqa_train.trainer import predict


@dataclass(frozen=True)
class Model:
    """A trained method with what is needed to feed it and to read its answers."""

    network: nn.Module
    inputs: Inputs
    """Streams, in the order the network wants them, and columns that it reads."""
    standardise: Standardiser | None
    settings: ExtractSettings | None
    """How the features it learned from were extracted; None for features made elsewhere."""
    weights: dict[str, Any]
    """Provenance of the extractors' weights (name, source, digest) by stream."""
    meta: dict[str, Any]
    """The whole record: method, settings, fold, seed, epoch, split digest, …"""

    @property
    def streams(self) -> dict[str, tuple[int, ...]]:
        """Shape of one segment of each stream that scores are read from; others taught the network alone."""
        unread = {array_of(s) for s in METHODS[self.meta["method"]].taught_by}
        return {n: shape for n, shape in self.inputs.streams.items() if n not in unread}

    @property
    def channels(self) -> dict[str, int]:
        """The same, as how many numbers there are in a segment."""
        return {n: self.inputs.widths[n] for n in self.streams}

    @enough_memory("score fewer videos at a time")
    def score(self, features: Mapping[str, NDArray[np.floating]] | Any, device: str = "cpu") -> NDArray[np.float64]:
        """Scores in the dataset's units, one a video.

        `features`: arrays (videos, segments, channels) by stream name and columns by theirs, or a `FeatureStore` (in
        the order of its ids), which must have been extracted as the training features were.
        """
        return self.score_set(self.read(features), torch.device(device))

    def read(self, features: Mapping[str, NDArray[np.floating]] | Any) -> FeatureSet:
        """What `score` takes, checked to be what this model can read."""
        if isinstance(features, Mapping):
            return self._from_arrays(features)
        read = features.select(*(name for name in self.channels if name in features.specs))
        self.refuse_other_features(read.settings, _weights(features.provenance))
        self._refuse_made_otherwise(features)
        found = FeatureSet.from_store(features, list(self.streams))
        self._refuse_other_shapes(found.shapes)
        for name, column in self.inputs.columns.items():
            if not column.label and all(cell is None for cell in found.cells(name)):
                raise UsageError(
                    f"{self.meta['method']} reads the column {name}, and no video of {features.path} has it",
                    fix=f"aqa-extract with --labels FILE, a table with the columns id,{name}",
                )
        return found

    def score_set(self, features: FeatureSet, device: torch.device) -> NDArray[np.float64]:
        """Scores of all videos of a set that `read` gave."""
        network = self.network.to(device)
        read = self.seen(features)
        return self.inputs.scale.to_scores(predict(network, read, np.arange(len(features.ids)), device))

    def seen(self, features: FeatureSet) -> FeatureSet:
        """The set as the network learned from it: with its columns, standardised as its training features were."""
        return replace(features.with_columns(self.inputs), standardise=self.standardise)

    def refuse_other_features(self, settings: ExtractSettings | None, weights: Mapping[str, Any]) -> None:
        """Raise `StoreError` naming what differs, unless features come from the same settings and weights."""
        if self.settings is None:
            return
        if settings is None:
            raise StoreError("the features do not say how they were extracted", fix="extract them with aqa-extract")
        mine, theirs = (_comparable(s, self.channels) for s in (self.settings, settings))
        wrong = [f"{k}: trained on {mine[k]}, given {theirs.get(k)}" for k in mine if mine[k] != theirs.get(k)]
        trained, given = _digests(self.weights), _digests(weights)
        for role in _roles(self.channels, trained):
            if trained[role] != given.get(role):
                other = given.get(role, "unknown")[:12]
                wrong.append(f"{role} weights: trained on {trained[role][:12]}, given {other}")
        if wrong:
            raise StoreError(
                f"the features were extracted in another way than the checkpoint's: {'; '.join(wrong)}",
                fix="extract with the checkpoint's settings (aqa predict does), or train on these features",
            )

    def _refuse_made_otherwise(self, features: Any) -> None:
        """A store's settings are those of all its runs together; what decided a stream, the stream itself says."""
        for name, mine in self.meta.get("made", {}).items():
            if name not in self.streams:
                continue
            theirs = features.specs[name].identity if name in features.specs else mine
            wrong = [
                f"{k}: trained on {mine.get(k, 'the default')}, given {theirs.get(k, 'the default')}"
                for k in sorted({*mine, *theirs})
                if mine.get(k) != theirs.get(k)
            ]
            if wrong:
                raise StoreError(
                    f"the features {name} were made in another way than the checkpoint's: {'; '.join(wrong)}",
                    fix="make a store as the run's was (`aqa info` shows its settings), then aqa predict RUN STORE",
                )

    def _from_arrays(self, features: Mapping[str, NDArray[np.floating]]) -> FeatureSet:
        missing = [n for n in self.channels if n not in features]
        if missing:
            raise UsageError(
                f"the checkpoint needs {', '.join(missing)}, got {', '.join(features)}",
                fix="give an array for each stream that it was trained on",
            )
        chosen = {n: np.asarray(features[n]) for n in self.channels}
        for name, array in chosen.items():
            expected = self.streams[name]
            if array.shape[2:] != expected:
                raise UsageError(
                    f"{name}: got {array.shape = }, expected (videos, segments, {', '.join(map(str, expected))})",
                    fix="give features of the backbone that it was trained on",
                )
        table = {n: np.asarray(features[n], dtype=object) for n in self.inputs.columns if n in features}
        return FeatureSet.from_arrays(chosen, table)

    def _refuse_other_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if dict(shapes) != self.streams:
            raise StoreError(
                f"the checkpoint needs segments of {self.streams}, the store has {dict(shapes)}",
                fix="extract with the backbone that it was trained on",
            )


@dataclass(frozen=True)
class Scores:
    """What an ensemble says of some videos."""

    ids: tuple[str, ...]
    by_member: NDArray[np.float64]
    """(members, videos), in the dataset's units."""
    learned: NDArray[np.bool_]
    """(members, videos): which members learned from that video's score."""

    @property
    def combined(self) -> Combined:
        """Of every video by the members that did not learn from its score; by all of them where all did."""
        return combine(self.by_member, self.learned & ~self.learned.all(axis=0))


@dataclass(frozen=True)
class Ensemble:
    """The models of one method of a run, over its seeds and folds."""

    files: tuple[Path, ...]
    first: Model
    """What is the same for all: method, streams, settings of the extraction."""

    def __str__(self) -> str:
        if len(self.files) == 1:
            split = self.first.meta["split"]
            return f"{self.method}, fold {split['fold']}, seed {split['seed']}, epoch {self.first.meta['epoch']}"
        return f"{self.method}, the mean of {counted(len(self.files), 'model')}"

    @property
    def method(self) -> str:
        return str(self.first.meta["method"])

    @enough_memory("score fewer videos at a time")
    def score(self, features: Mapping[str, NDArray[np.floating]] | Any, device: str = "cpu") -> Scores:
        """As `Model.score`: features are read once, and one network takes the weights of one member after the other."""
        place = torch.device(device)
        found = self.first.read(features).place(place)
        own = np.array(identities(found))
        values, learned = [], []
        for model in self._models():
            values.append(model.score_set(found, place))
            learned.append(np.isin(own, model.meta["learned_from"]))
        return Scores(found.ids, np.stack(values), np.stack(learned))

    def _models(self) -> Iterator[Model]:
        for file in self.files:
            model = load_checkpoint(file)
            other = [k for k in _SHARED if model.meta[k] != self.first.meta[k]]
            other += [] if model.inputs.streams == self.first.inputs.streams else ["streams"]
            if other:
                raise UsageError(
                    f"{file} and {self.files[0]} differ in {', '.join(other)}: they are not of one run",
                    fix="name the run folder that aqa-train wrote",
                )
            yield model


_SHARED = ("method", "config", "extract", "weights")


def save_model(path: Path, state: Mapping[str, Tensor], standardise: Standardiser | None, meta: dict[str, Any]) -> None:
    """Write a model checkpoint, and its record beside it for people; `meta["not_stored"]` is left out of it."""
    tensors = checkpoint.under("model", packed({k: v for k, v in state.items() if k not in meta["not_stored"]}))
    if standardise is not None:
        tensors |= checkpoint.under("shift", standardise.shift) | checkpoint.under("scale", standardise.scale)
    checkpoint.save(path, tensors, {"kind": "model", **meta})
    with checkpoint.writing(path):
        record = {k: v for k, v in meta.items() if k != "learned_from"}
        # As the checkpoint: another run may have a hard link to the one that was there.
        replace_text(path.with_suffix(".json"), json.dumps(record, indent=1, allow_nan=False))


def load_checkpoint(path: str | Path) -> Model:
    """From a .safetensors file or the folder of one training."""
    file = Path(path)
    if file.suffix == ".json" and file.with_suffix(".safetensors").exists():
        file = file.with_suffix(".safetensors")
    elif file.is_dir():
        file /= "last.safetensors"
    tensors, meta = checkpoint.load(file, "model")
    if meta["method"] not in METHODS:
        raise UsageError(
            f"{file} is of the method {meta['method']!r}, which this version does not know", fix="update aqa"
        )
    cls, inputs = METHODS[meta["method"]].load(), Inputs.of(meta["inputs"])
    network = cls(inputs, TypeAdapter(cls.Config).validate_python(meta["config"]))
    expected = network.state_dict()
    state = {k: v.float() if v.dtype == torch.float16 else v for k, v in checkpoint.part(tensors, "model").items()}
    # What forward does not need was not stored. Should it be read all the same, that will be seen.
    missing = {k: torch.full_like(expected[k], torch.nan) for k in meta["not_stored"]}
    try:
        load_state(network, state | missing)
    except RuntimeError as e:
        raise UsageError(
            f"{file} does not fit {meta['method']}: {str(e).splitlines()[-1].strip()}",
            fix="use the version of aqa that trained it, or name models of one run",
        ) from None
    network.eval()
    shift, factor = (checkpoint.part(tensors, name) for name in ("shift", "scale"))
    return Model(
        network=network,
        inputs=inputs,
        standardise=Standardiser(shift, factor) if shift else None,
        settings=ExtractSettings.model_validate(meta["extract"]) if meta["extract"] else None,
        weights=meta["weights"],
        meta=meta,
    )


def open_ensemble(path: str | Path, method: str | None = None) -> Ensemble:
    """All models of `method` of a run folder; `path` may also be RUN/models/METHOD, one training's folder or a file.

    Raises UsageError where a run has several methods and none is named, is not finished, or lacks a model.
    """
    path = Path(path)
    if not path.is_dir():
        files = [path]
    elif (path / "last.safetensors").exists():
        files = [path / "last.safetensors"]
    elif (path / "metrics.json").exists():
        files = _of_run(path, method)
    else:
        files = sorted(path.glob("fold*-seed*/last.safetensors"), key=_number)
    runs = sorted(f"{path / file.parent.name}" for file in path.glob("*/metrics.json"))
    if not files and runs:
        raise UsageError(f"{path} holds {len(runs)} runs: {', '.join(runs[:5])}", fix="name one of them")
    if not files:
        begun = (path / "config.json").exists()
        raise UsageError(
            f"{path} holds no finished {'run' if begun else 'training'}",
            fix=f"aqa-train --resume {shlex.quote(str(path))} finishes it"
            if begun
            else "name a run folder of aqa-train, or a .safetensors file",
        )
    first = load_checkpoint(files[0])
    if method is not None and method != first.meta["method"]:
        raise UsageError(f"{path} is of {first.meta['method']}, not {method}", fix="omit --method, or name the run")
    return Ensemble(tuple(files), first)


def _of_run(run: Path, method: str | None) -> list[Path]:
    """The last checkpoints of one method of a finished run; which one is never guessed."""
    try:
        summary = json.loads((run / "metrics.json").read_text())
        trained = [r for r in summary["runs"] if "split_sha256" in r]
    except (ValueError, KeyError, TypeError) as e:
        raise UsageError(
            f"{run / 'metrics.json'} is damaged or not of aqa-train: {e!r}",
            fix=f"aqa-train --resume {shlex.quote(str(run))} writes it again",
        ) from None
    methods = list(dict.fromkeys(r["method"] for r in trained))
    if method is None and len(methods) > 1:
        found = {r["method"]: r["spearman"]["mean"] for r in summary["rows"] if r["selection"] == "last"}
        said = ", ".join(m if found.get(m) is None else f"{m} (Spearman on test {found[m]:.3f})" for m in methods)
        raise UsageError(
            f"{run} holds the methods {said}", fix=f"name one: {' or '.join(f'--method {m}' for m in methods)}"
        )
    chosen = method or methods[0]
    if chosen not in methods:
        raise UsageError(
            f"{run} holds no method {chosen!r}",
            fix=did_you_mean(chosen, methods) or f"choose from {', '.join(methods)}",
        )
    names = [
        f"models/{chosen}/fold{r['fold']}-seed{r['seed']}/last.safetensors" for r in trained if r["method"] == chosen
    ]
    missing = [n for n in names if not (run / n).exists()]
    if missing:
        raise UsageError(
            f"{run} lacks {len(missing)} of its {len(names)} models of {chosen}: {', '.join(missing[:3])}",
            fix="copy the whole run folder, or name the folders of the models that are there",
        )
    return [run / n for n in names]


def _number(file: Path) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", file.parent.name)]


def _comparable(settings: ExtractSettings, streams: Mapping[str, int]) -> dict[str, Any]:
    """The settings that decide the values of these streams, flat."""
    record = settings.model_dump(mode="json")
    for name in ("streams", "weights"):
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


def _roles(streams: Iterable[str], weights: Iterable[str]) -> list[str]:
    """Those of the networks `weights` that make these streams: an array's name ends in that of its network."""
    return [
        network
        for network in weights
        if any((network == "actor" and "actor_" in s) or s.endswith(network.replace("@", "_")) for s in streams)
    ]


def _weights(provenance: Mapping[str, Any]) -> dict[str, Any]:
    found = provenance.get("weights", {})
    return dict(found) if isinstance(found, Mapping) else {}


def _digests(weights: Mapping[str, Any]) -> dict[str, str]:
    return {k: str(v["sha256"]) for k, v in weights.items() if isinstance(v, Mapping) and "sha256" in v}
