"""What a store holds, in a few words and numbers: for `aqa info`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from aqa_shared.shards import of_part, whole
from aqa_shared.store.holdings import contents
from aqa_shared.store.log import numbers
from aqa_shared.store.objects import Objects, Where, disk_errors
from aqa_shared.store.read import FeatureStore
from aqa_shared.store.stage import Run, read_failures, read_runs


def missing(where: Where) -> list[dict[str, Any]]:
    """What runs were asked for and the store does not have, with the command that makes only that; JSON-able.

    `missing` counts what was neither made nor failed. A shard that never began is there with `missing` None.
    """
    objects = Objects.at(where)
    with disk_errors(objects, "read the store"):
        found = contents(objects)
        runs, failed = read_runs(objects), read_failures(objects)
    rows: list[dict[str, Any]] = []
    has = {arrays: found.having(arrays).keys() if found else set() for arrays in {run.arrays for run in runs}}
    for run in runs:
        lacking = sorted(i for i in run.ids if i not in has[run.arrays] and i not in failed)
        if lacking:
            rows.append({"command": run.command, "missing": len(lacking), "ids": lacking[:5], "shard": run.shard})
    return rows + _never_began(runs)


def _never_began(runs: list[Run]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for n in sorted({r.shard[1] for r in runs if r.shard}):
        of = [r for r in runs if r.shard and r.shard[1] == n]
        for i in sorted(set(range(1, n + 1)) - {r.shard[0] for r in of if r.shard}):
            command = of_part(of[0].command, i, n)
            rows.append({"command": command, "missing": None, "ids": [], "shard": (i, n)})
    return rows


def missing_parts(where: Where, arguments: Sequence[str], n: int) -> list[int]:
    """Of the `n` shards of an extraction with these `arguments`, those that never began or lack a video, from 1.

    All of them where there is no store yet.
    """
    objects = Objects.at(where)
    with disk_errors(objects, "read the store"):
        runs = [r for r in read_runs(objects) if r.shard and r.shard[1] == n]
    alike = [r for r in runs if shlex.split(whole(r.command))[-len(arguments) :] == [*arguments]]
    lacking = {row["shard"] for row in missing(where) if row["missing"]}
    ended = {r.shard[0] for r in alike if r.shard and r.shard not in lacking}
    return [i for i in range(1, n + 1) if i not in ended]


def describe(where: Where) -> dict[str, Any]:
    """Counts, coverage, labels, settings, weights, versions, and what is missing; JSON-able."""
    store = FeatureStore.open(where)
    objects, state = store._objects, store._state
    score, split, category = (store.column(n) for n in ("score", "split", "category"))
    labelled = score[~np.isnan(score)]
    lengths, failures, lacking = store.lengths, read_failures(objects), missing(objects)
    return {
        "path": str(where),
        "videos": len(store),
        "segments": int(lengths.sum()),
        "segments_per_video": [int(lengths.min()), int(lengths.max())] if len(store) else None,
        "pending": store.pending,
        "failed": len(failures),
        "failures": [
            {k: str(row.get(k, "")) for k in ("id", "reason", "detail")} for _, row in sorted(failures.items())
        ],
        "missing": lacking,
        "streams": list(store.streams),
        "arrays": {
            n: {
                "role": s.role,
                "videos": store.coverage[n],
                "dims": ["segment", *s.dims],
                "shape": [int(lengths.sum()), *s.shape],
                "dtype": s.dtype,
                "identity": s.identity,
            }
            for n, s in store.specs.items()
        },
        "bytes": objects.size(),
        "blocks": len(state.blocks),
        "changes": len(numbers(objects)),
        "number": state.number,
        "labelled": len(labelled),
        "score_range": [float(labelled.min()), float(labelled.max())] if len(labelled) else None,
        "splits": _counts(split),
        "categories": _counts(category),
        "settings": store.settings.model_dump(mode="json") if store.settings else None,
        "weights": store.provenance.get("weights", {}),
        "runs": [{k: v for k, v in run.items() if k != "settings"} for run in store.runs],
        "created": state.created,
        "aqa_version": state.version,
    }


def _counts(values: np.ndarray) -> dict[str, int]:
    names, counts = np.unique(values[values != ""].astype(str), return_counts=True)
    return {str(n): int(c) for n, c in zip(names, counts, strict=True)}
