"""What a method reads of the data, and what it lacks there: said before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from aqa_shared.errors import UsageError
from aqa_train import protocol
from aqa_train.batch import Batch, Inputs
from aqa_train.columns import Kind
from aqa_train.config import RunConfig
from aqa_train.features import FeatureSet
from aqa_train.memory import enough_memory
from aqa_train.method_settings import method_config
from aqa_train.methods import DEFAULT, METHODS
from aqa_train.order import Rows
from aqa_train.splits import Split
from aqa_train.stream_names import adds_streams, array_of


def what_it_reads(
    config: RunConfig, method: str, split: Split, features: FeatureSet, standardise: str
) -> tuple[FeatureSet, Inputs]:
    """The streams and columns that a method asks for, as the training videos of `split` tell to read them."""
    row = METHODS[method]
    chosen = features.select([array_of(s) for s in row.streams or config.streams])
    labelled, seen = (protocol.rows_of(features, ids) for ids in (split.labelled, split.labelled + split.unlabelled))
    columns = {**row.columns, **_known(features, row.optional, seen)}
    labels = {**row.labels, **_known(features, row.optional_labels, labelled)}
    return chosen.prepared(columns, labels, seen, labelled, standardise)


def _known(features: FeatureSet, columns: Mapping[str, Kind], rows: Rows) -> dict[str, Kind]:
    """Those of the columns that at least one of these videos has."""
    cells = {name: features.cells(name) for name in columns}
    return {name: kind for name, kind in columns.items() if any(cells[name][r] is not None for r in rows)}


def without_streams(methods: Sequence[str], config: RunConfig, store: Any) -> dict[str, UsageError]:
    """Those of the methods that read streams which the store does not have, with what adds them."""
    needs = {m: METHODS[m].streams for m in methods}
    lacking = {m: [s for s in streams if array_of(s) not in store.specs] for m, streams in needs.items()}
    return {
        m: UsageError(
            f"method {m} needs {', '.join(missing)}, and {store.path} holds {', '.join(store.streams) or 'no streams'}",
            fix=f"add them: {adds_streams(store.path, [*config.streams, *needs[m]])}",
        )
        for m, missing in lacking.items()
        if missing
    }


def unmet(method: str, config: RunConfig, features: FeatureSet, splits: Sequence[Split]) -> UsageError | None:
    """What a method needs that the data do not have, by the name of what gives it, or why it cannot be built."""
    row = METHODS[method]
    for name in (*row.columns, *row.labels):
        if all(cell is None for cell in features.cells(name)):
            return UsageError(
                f"method {method} reads the column {name}, and no video has it",
                fix=f"give it with --labels FILE, a table with the columns id,score,{name}",
            )
    if row.unlabelled and not all(s.unlabelled for s in splits):
        return UsageError(
            f"method {method} learns from unlabelled videos, and there are none",
            fix=f"use --method {DEFAULT}, add videos without scores, or hide scores to try it (--labelled 0.4)",
        )
    try:
        _probe(method, config, features, splits[0])
    except UsageError as e:
        return e
    return None


def _probe(method: str, config: RunConfig, features: FeatureSet, split: Split) -> None:
    """Build the method and evaluate its losses once on random features, so that a wrong setting ends the run now.

    What `prepare` and `begin_epoch` need are real videos, so the losses of a method with those are not tried.
    """
    settings = method_config(config, method)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        read, inputs = what_it_reads(config, method, split, features, "none")
        try:
            with enough_memory("use smaller --set widths"):
                model = METHODS[method].load()(inputs, settings)
                if hasattr(model, "losses") and not (hasattr(model, "prepare") or hasattr(model, "begin_epoch")):
                    labelled, unlabelled = (
                        _imagined(read, protocol.rows_of(read, ids)[:2]) for ids in (split.labelled, split.unlabelled)
                    )
                    model.losses(replace(labelled, scores=torch.tensor([0.0, 1.0])), unlabelled)
        except (ValueError, RuntimeError) as e:
            raise UsageError(f"method {method} cannot work with these features: {e}") from e


def _imagined(features: FeatureSet, rows: Rows) -> Batch:
    """These videos with random features, without reading them."""
    n = len(rows)
    streams = {name: torch.rand(n, features.segments, *shape) for name, shape in features.shapes.items()}
    present = torch.ones(n, features.segments, dtype=torch.bool) if features.ragged else None
    columns = {name: values[torch.as_tensor(rows)] for name, values in features.columns.items()}
    return Batch(streams, torch.full((n,), torch.nan), present, columns)
