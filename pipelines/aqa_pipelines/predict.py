"""Scores of a store or of new videos, by all models of a run's method.

run ─▶ models ─▶ settings ─▶ extract into a temporary store, or take the store given ─▶ id, path, score, spread
"""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from aqa_shared import console
from aqa_shared.console import counted
from aqa_shared.errors import NoInputError, StoreError, UsageError
from aqa_shared.files import replace_text, scratch
from aqa_shared.machine import pick_device
from aqa_shared.records import ExtractSettings, Failure

if TYPE_CHECKING:
    from aqa_extract.config import Options
    from aqa_shared.store import FeatureStore
    from aqa_train.predict import Ensemble, Scores


@dataclass(frozen=True)
class Scored:
    """What the models say of one video, in the units of the scores they learned from."""

    id: str
    path: str
    score: float
    """Mean over the members."""
    spread: float | None
    """Sample deviation over them; None for one alone."""
    members: int
    """How many models that is: those that did not learn from this video's own score."""
    in_sample: bool
    """Every model learned from it; then all are used, and the score is not a prediction."""


@dataclass(frozen=True)
class Predictions:
    """Scores in the order of the input, the models they are of, and the videos that have none."""

    model: dict[str, Any]
    rows: list[Scored]
    failures: list[Failure]


def predict_videos(
    run: Path,
    videos: Sequence[str],
    *,
    method: str | None = None,
    device: str = "auto",
    decoder: Literal["auto", "av", "decord"] = "auto",
    workers: int | None = None,
    accept_damaged: bool = False,
) -> Predictions:
    """Score the videos of a store, or extract and score. `run` and `method` as `open_ensemble` takes them.

    Raises UsageError, NoInputError, EnvironmentFault, and StoreError for features of another kind.
    """
    from aqa_extract.config import Options
    from aqa_shared.store import FeatureStore, is_store
    from aqa_train.predict import open_ensemble

    ensemble = open_ensemble(run, method)
    model = {"run": str(run), "method": ensemble.method, "models": len(ensemble.files)}
    console.note(f"model: {ensemble}")
    where = str(pick_device(device))
    stores = [v for v in videos if is_store(v)]
    if stores:
        if len(videos) > 1:
            raise UsageError(f"{stores[0]} is a store, given beside others", fix="give one store, or videos")
        if decoder != "auto" or workers is not None or accept_damaged:
            raise UsageError(
                f"{stores[0]} is a store, of which nothing is decoded",
                fix="omit --decoder, --workers and --accept-damaged",
            )
        store = FeatureStore.open(stores[0])
        store = store.select(*(name for name in ensemble.first.channels if name in store.specs))
        return Predictions(model, _scored(ensemble.score(store, where), store), [])
    options = Options(device=device, decoder=decoder, workers=workers, accept_damaged=accept_damaged, stop_after=0)
    found, failures = _extracted(run, ensemble, videos, where, options)
    return Predictions(model, found, failures)


def _extracted(
    run: Path,
    ensemble: Ensemble,
    videos: Sequence[str],
    where: str,
    options: Options,
) -> tuple[list[Scored], list[Failure]]:
    """Videos scored in their order, from features made as those that were learned from; and those that failed."""
    from aqa_extract.run import extract
    from aqa_shared.manifest import find_videos
    from aqa_shared.store import FeatureStore

    trained = ensemble.first
    if trained.settings is None:
        raise UsageError(
            f"{ensemble.files[0]} was trained on features made elsewhere, so how to extract them is not known",
            fix="make such features of these videos, import them (aqa import-features), then aqa predict RUN STORE",
        )
    told = {"duration"}  # by the video itself
    if unknown := [n for n, c in trained.inputs.columns.items() if not c.label and n not in told]:
        raise UsageError(
            f"{ensemble.method} reads {', '.join(unknown)}, which videos alone do not have",
            fix=f"extract with aqa-extract --labels FILE, then aqa predict {shlex.quote(str(run))} STORE",
        )
    settings = settings_for(trained.settings, list(trained.channels), trained.weights)
    manifest = find_videos(videos, with_labels=False)
    manifest.report(console.note, console.warn)
    with scratch("aqa-predict-") as folder:
        out = folder / "feats.zarr"
        report = extract(manifest.videos, out, settings, options)
        rows = []
        if report.extracted:
            store = FeatureStore.open(out)
            by_id = {r.id: r for r in _scored(ensemble.score(store, where), store)}
            rows = [replace(by_id[v.id], path=v.path) for v in manifest.videos if v.id in by_id]
    if not rows and not report.failures:
        raise NoInputError("no video was scored", fix="check the inputs with aqa-extract --dry-run")
    return rows, report.failures


def _scored(scores: Scores, store: FeatureStore) -> list[Scored]:
    """In the order of the store; a warning where videos were learned from."""
    found, in_sample = scores.combined, np.asarray(scores.learned.all(axis=0))
    if some := int((scores.learned.any(axis=0) & ~in_sample).sum()):
        console.note(f"models that learned from a video are left out of its score ({counted(some, 'video')})")
    if in_sample.any():
        console.warn(
            f"no prediction for {counted(int(in_sample.sum()), 'video')} (in_sample): every model learned from "
            "the true score"
        )
    return [
        Scored(name, str(path), float(score), None if np.isnan(spread) else float(spread), int(members), bool(known))
        for name, path, score, spread, members, known in zip(
            scores.ids, store.column("path"), found.score, found.spread, found.members, in_sample, strict=True
        )
    ]


def settings_for(settings: ExtractSettings, channels: Sequence[str], weights: Mapping[str, Any]) -> ExtractSettings:
    """The checkpoint's settings, for the streams that the model reads and with the very weights they came from."""
    from aqa_extract.streams import every
    from aqa_extract.weights import REGISTRY

    asked = [(s, o) for s in every() for o in s.outputs if s.array(o) in channels]
    if "actor_box" in channels and not any(s.actor for s, _ in asked):
        asked += [(s, "") for s in every() if s.name == "actor-rgb"]  # the boxes come with it
    streams = [s for s, _ in asked]
    flow = settings.flow
    if not any(s.modality == "flow" for s in streams):
        # Flow that only told of the motion is not worth its time here.
        flow = flow.model_copy(update={"mode": "off"})
    # A file is known by its path; whether it is still the same file, the model checks by digest.
    names = {
        network: str(weights[network]["name" if weights[network]["name"] in REGISTRY else "source"])
        for network in dict.fromkeys(name for s in streams for name in s.networks)
        if network in weights
    }
    written = tuple(f"{s.name}:{output}" if output else s.name for s, output in asked)
    return settings.model_copy(update={"streams": written, "flow": flow, "weights": {**settings.weights, **names}})


def as_text(result: Predictions, format: str) -> str:
    """CSV (a row a video) or JSON (the model too, and the failures)."""
    if format == "json":
        record = {
            "model": {**result.model, "run": _text(result.model["run"])},
            "scores": [{**asdict(r), "path": _text(r.path)} for r in result.rows],
            "failures": [
                {"id": f.id, "path": _text(f.path), "reason": f.reason, "detail": f.detail} for f in result.failures
            ],
        }
        return json.dumps(record, indent=1, allow_nan=False) + "\n"
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "path", "score", "spread", "method", "members", "in_sample"])
    writer.writerows(
        [
            *(r.id, _text(r.path), f"{r.score:.4f}", "" if r.spread is None else f"{r.spread:.4f}"),
            *(result.model["method"], r.members, str(r.in_sample).lower()),
        ]
        for r in result.rows
    )
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
