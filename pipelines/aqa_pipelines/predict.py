"""Scores of new videos: the checkpoint says how features are made, the extractor makes them, the model reads them.

checkpoint ─▶ settings ─▶ extract into a temporary store ─▶ model ─▶ id, path, score
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from aqa_shared import console
from aqa_shared.errors import NoInputError, StoreError, UsageError
from aqa_shared.files import replace_text, scratch
from aqa_shared.machine import pick_device
from aqa_shared.records import STREAMS, ExtractSettings, Failure


@dataclass(frozen=True)
class Scored:
    """What the model says of one video, in the units of the scores it learned from."""

    id: str
    path: str
    score: float


@dataclass(frozen=True)
class Predictions:
    """Scores in the order of the input, and the videos that have none."""

    rows: list[Scored]
    failures: list[Failure]


def predict_videos(
    checkpoint: Path,
    videos: Sequence[str],
    *,
    device: str = "auto",
    decoder: Literal["auto", "av", "decord"] = "auto",
    workers: int | None = None,
) -> Predictions:
    """Extract and score. Raises UsageError, NoInputError, EnvironmentFault, and StoreError for other weights."""
    from aqa_extract.run import Options, extract
    from aqa_shared.manifest import find_videos
    from aqa_shared.store import FeatureStore
    from aqa_train.predict import load_checkpoint

    model = load_checkpoint(checkpoint)
    console.note(f"model: {describe(model.meta)}")
    if model.settings is None:
        raise UsageError(
            f"{checkpoint} was trained on features made elsewhere, so how to extract them is not known",
            fix="train on a store written by aqa-extract",
        )
    settings = settings_for(model.settings, list(model.channels), model.weights)
    where = pick_device(device)
    manifest = find_videos(videos, with_labels=False)
    manifest.report(console.note, console.warn)
    with scratch("aqa-predict-") as folder:
        out = folder / "feats.zarr"
        options = Options(device=device, decoder=decoder, workers=workers, stop_after=0)
        report = extract(manifest.videos, out, settings, options)
        scores: dict[str, float] = {}
        if report.extracted:
            store = FeatureStore.open(out)
            scores = dict(zip(store.ids, model.score(store, str(where)).tolist(), strict=True))
    rows = [Scored(v.id, v.path, scores[v.id]) for v in manifest.videos if v.id in scores]
    if not rows and not report.failures:
        raise NoInputError("no video was scored")
    return Predictions(rows, report.failures)


def describe(meta: Mapping[str, Any]) -> str:
    """Which of a run's models it is."""
    return f"{meta['method']}, fold {meta['split']['fold']}, seed {meta['split']['seed']}, epoch {meta['epoch']}"


def settings_for(settings: ExtractSettings, channels: Sequence[str], weights: Mapping[str, Any]) -> ExtractSettings:
    """The checkpoint's settings, for the streams that the model reads and with the very weights they came from."""
    from aqa_extract.weights import REGISTRY

    wanted = {name.replace("_", "-") for name in channels}
    streams = tuple(s for s in STREAMS if s in wanted)
    flow = settings.flow
    if not any("flow" in s for s in streams):
        # Flow that only told of the motion is not worth its time here.
        flow = flow.model_copy(update={"mode": "off"})
    # A file is known by its path; whether it is still the same file, the model checks by digest.
    names = {
        f"{role}_weights": str(weights[role]["name" if weights[role]["name"] in REGISTRY else "source"])
        for role in ("rgb", "flow", "actor")
        if role in weights
    }
    return settings.model_copy(update={"streams": streams, "flow": flow, "logits": False, "maps": False, **names})


def as_text(result: Predictions, format: str) -> str:
    """CSV (id, path, score) or JSON (the same, and the failures)."""
    if format == "json":
        record = {
            "scores": [{"id": r.id, "path": _text(r.path), "score": r.score} for r in result.rows],
            "failures": [
                {"id": f.id, "path": _text(f.path), "reason": f.reason, "detail": f.detail} for f in result.failures
            ],
        }
        return json.dumps(record, indent=1, allow_nan=False) + "\n"
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "path", "score"])
    writer.writerows([r.id, _text(r.path), f"{r.score:.4f}"] for r in result.rows)
    return out.getvalue()


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`, whole or not at all."""
    try:
        replace_text(path, text)
    except OSError as e:
        raise StoreError(f"cannot write {path}: {e.strerror}", fix="name another --out") from e


def _text(path: str) -> str:
    """A path that is not UTF-8 with its odd bytes escaped: output must be readable text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
