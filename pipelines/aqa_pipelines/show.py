"""Stores for people: what `aqa info` and `aqa verify` print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aqa_shared.console import counted, printable
from aqa_shared.store import Damage

MANY = 8
"""Splits or categories (the largest first), or failed videos, that are listed; `--json` has all."""


def info_text(record: Mapping[str, Any]) -> str:
    """The short form of `describe(store)`: a screen at most."""
    videos, lengths = record["videos"], record["segments_per_video"]
    each = "" if not lengths else f", of {lengths[0]}" + (f" to {lengths[1]}" if lengths[1] > lengths[0] else "")
    waiting = f"; {record['pending']} committed and not finalised" if record["pending"] else ""
    rows = [
        ("store", f"{record['path']}: {record['bytes'] / 1e6:.1f} MB in {counted(record['blocks'], 'block')}"),
        ("videos", f"{videos}{each + ' segments' if each else ''}{waiting}"),
    ]
    for name, array in record["arrays"].items():
        if array["role"] != "coordinate":
            shape = " × ".join(map(str, array["shape"][1:]))
            lacking = f", {videos - array['videos']} lack it" if array["videos"] < videos else ""
            what = f"{array['role']} of {shape}, {array['dtype']}{_imported(array['identity'])}"
            rows.append((name, f"{counted(array['videos'], 'video')}{lacking}; {what}"))
    rows += [(f"{role} weights", _weights(found)) for role, found in record["weights"].items()]
    low_high = record["score_range"]
    span = f", {low_high[0]:g} to {low_high[1]:g}" if low_high else ""
    rows.append(("scores", f"{record['labelled']} of {videos}{span}"))
    for name in ("splits", "categories"):
        if most := sorted(record[name].items(), key=lambda row: -row[1])[:MANY]:
            more = f" and {len(record[name]) - MANY} others" if len(record[name]) > MANY else ""
            rows.append((name, ", ".join(f"{value} {count}" for value, count in most) + more))
    if record["failed"]:
        rows.append(("failed", f"{counted(record['failed'], 'video')}; aqa-extract --retry-failed tries again"))
        rows += [("", f"{row['id']}: {row['detail']} ({row['reason']})") for row in record["failures"][:MANY]]
        if record["failed"] > MANY:
            rows.append(("", f"and {record['failed'] - MANY} others: aqa info --json lists all"))
    rows += [("missing", text) for text in map(_missing, record["missing"])]
    if record["changes"] > 1:
        rows.append(("changes", f"{record['changes']} are kept; aqa compact removes what only earlier ones use"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {printable(text)}" for name, text in rows)


def missing_text(store: str, lacking: Sequence[Mapping[str, Any]], what: str = "video") -> str:
    """What was asked for and a store, or a folder of trainings, does not have, a command for each."""
    if not lacking:
        return f"{printable(store)}: whole, nothing is missing"
    return "\n".join(printable(f"missing: {_missing(row, what)}") for row in lacking)


def _missing(row: Mapping[str, Any], what: str = "video") -> str:
    part = f"part {row['shard'][0]} of {row['shard'][1]}" if row["shard"] else ""
    if row["missing"] is None:
        return f"{part} never began; run: {row['command']}"
    some = ", ".join(row["ids"]) + (" …" if row["missing"] > len(row["ids"]) else "")
    return f"{counted(row['missing'], what)}{part and ' of ' + part} ({some}); run: {row['command']}"


def _imported(identity: Mapping[str, Any]) -> str:
    """Of features from elsewhere, what is said of them."""
    if "made_by" not in identity:
        return ""
    return "; " + ", ".join([f"imported (made by: {identity['made_by']})", *identity.get("transforms", ())])


def _weights(record: Any) -> str:
    name, digest = (record.get(k, "") for k in ("name", "sha256")) if isinstance(record, Mapping) else (record, "")
    return f"{name} {digest[:12]}".strip() or "not known"


def damage_text(store: str, damage: Sequence[Damage]) -> str:
    """One line for each damaged array of each video, and what to do."""
    name = printable(store)
    if not damage:
        return f"{name}: whole"
    videos = sorted({d.id for d in damage if d.id})
    rows = [f"{printable(d.id) if d.id else '(store)'}  {d.array or '–'}  {printable(d.detail)}" for d in damage]
    # A rerun writes labels and what follows from the videos again; features come from the videos alone.
    again = "what made it (aqa-extract, aqa import-features) again" + (" with --repair" if videos else "")
    rows.append(
        f"{name}: damaged ({counted(len(videos), 'video')}); run {again}, restore a copy, "
        "or start over with --overwrite"
    )
    return "\n".join(rows)
