"""The table of methods for people: paper, needs and recipe of each."""

from __future__ import annotations

from typing import Any

from aqa_train.config import Training
from aqa_train.methods import METHODS, Method


def catalogue() -> list[dict[str, Any]]:
    """A record for every method, JSON-able."""
    return [
        {
            "method": name,
            "summary": row.summary,
            "paper": row.paper,
            "needs": {
                "streams": list(row.streams),
                "taught_by": list(row.taught_by),
                "columns": dict(row.columns),
                "labels": dict(row.labels),
                "optional": {**row.optional, **row.optional_labels},
                "unlabelled": row.unlabelled,
            },
            "uses_difficulty": row.uses_difficulty,
            "declares": list(row.declares),
            "recipes": {dataset: dict(recipe) for dataset, recipe in row.recipes.items()} if _learns(row) else None,
        }
        for name, row in METHODS.items()
    ]


def as_text(methods: list[dict[str, Any]]) -> str:
    """Some lines a method."""
    lines = []
    for m in methods:
        needs = m["needs"]
        wanted = [
            *([f"streams {', '.join(needs['streams'])}"] if needs["streams"] else []),
            *(f"column {name} ({kind})" for name, kind in (needs["columns"] | needs["labels"]).items()),
            *(["videos without a score"] if needs["unlabelled"] else []),
        ]
        lines += [f"{m['method']}: {m['summary']}", *([f"    paper    {m['paper']}"] if m["paper"] else [])]
        lines.append(f"    needs    {', '.join(wanted) or 'features and scores'}")
        if needs["taught_by"]:
            lines.append(f"    scores   without {', '.join(needs['taught_by'])}")
        if needs["optional"]:
            lines.append(f"    reads    column {', '.join(needs['optional'])}, where there is one")
        if m["uses_difficulty"]:
            lines.append("    uses the declared difficulty")
        elif m["declares"]:
            lines.append("    uses the declared difficulty where it reads the columns that make it up")
        if m["recipes"] is None:
            lines.append("    recipe   none: fitted in one step, without epochs")
            continue
        datasets: dict[str, list[str]] = {}
        for dataset, recipe in {"": {}, **m["recipes"]}.items():
            values = Training(**recipe)
            said = f"{values.optimiser}, lr {values.lr:g}, weight decay {values.weight_decay:g}, "
            said += f"{values.schedule}, {values.epochs} epochs of the {values.epoch_of} set, batch {values.batch}"
            said += "" if values.standardise == "none" else f", standardise {values.standardise}"
            datasets.setdefault(said, []).append(f"--recipe {dataset}" if dataset else "default")
        lines += [f"    recipe   {said} ({', '.join(names)})" for said, names in datasets.items()]
    return "\n".join(lines)


def _learns(row: Method) -> bool:
    """Whether it takes epochs."""
    return hasattr(row.load(), "losses")
