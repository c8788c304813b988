"""Stores for people: what `aqa info` and `aqa verify` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aqa_shared.console import printable
from aqa_shared.store import Damage


def info_text(record: Mapping[str, Any]) -> str:
    """`describe(store)` as indented lines, everything it says and nothing twice."""
    return "\n".join(_lines(record, 0))


def _lines(value: Mapping[str, Any], depth: int) -> list[str]:
    width = max((len(str(k)) for k in value), default=0)
    rows = []
    for key, item in value.items():
        indent = "  " * depth
        name = printable(str(key))
        if isinstance(item, Mapping) and item:
            rows.append(f"{indent}{name}")
            rows += _lines(item, depth + 1)
        elif isinstance(item, list) and item and all(isinstance(i, Mapping) for i in item):
            rows.append(f"{indent}{name}")
            rows += [f"{indent}  {_inline(i)}" for i in item]
        else:
            rows.append(f"{indent}{name:{width}}  {_inline(item)}")
    return rows


def _inline(value: Any) -> str:
    if value is None or value == "" or value == {} or value == []:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{printable(str(k))} {_inline(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_inline(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) else printable(str(value))


def damage_text(store: Path, damage: Sequence[Damage]) -> str:
    """One line for each damaged array of each video, and what to do."""
    name = printable(str(store))
    if not damage:
        return f"{name}: whole"
    videos = sorted({d.id for d in damage if d.id})
    rows = [f"{printable(d.id) if d.id else '(store)'}  {d.array or '–'}  {printable(d.detail)}" for d in damage]
    # A rerun writes labels and what follows from the videos anew; features come from the videos alone.
    again = "aqa-extract with its videos and --repair" if videos else "aqa-extract with its videos"
    rows.append(f"{name}: damaged ({len(videos)} videos); run {again}, restore a copy, or start over with --overwrite")
    return "\n".join(rows)
