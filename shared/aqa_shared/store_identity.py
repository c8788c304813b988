"""Whether a folder is a store of ours, and whether its features may lie beside new ones."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aqa_shared import __version__
from aqa_shared.errors import StoreError
from aqa_shared.records import ExtractSettings
from aqa_shared.store_disk import root_or_none
from aqa_shared.store_layout import SCHEMA, STAGING, ArraySpec, digest_of, to_json


def root_attributes(
    specs: Sequence[ArraySpec], settings: ExtractSettings, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The attributes of a new store's root."""
    plain = json.loads(to_json(provenance))
    described = [s.to_dict() for s in specs]
    # What decides whether two videos may lie side by side.
    essence = [
        _without_weight_names(settings.model_dump(mode="json")),
        _weight_digests(plain),
        [{k: v for k, v in d.items() if k != "attrs"} for d in described],
    ]
    return {
        "Conventions": "CF-1.11",
        "aqa_schema": SCHEMA,
        "aqa_version": __version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "videos": 0,
        "segments": 0,
        "content": "",
        "settings": settings.model_dump(mode="json"),
        "provenance": plain,
        "runs": [],
        "arrays": described,
        "family": digest_of(to_json(essence).encode()),
    }


def refuse_foreign(path: Path) -> None:
    """Raise unless `path` is absent, empty, a store of ours, or one whose creation was interrupted."""
    if path.is_symlink() and not path.exists():
        raise StoreError(f"{path}: a dangling link", fix="give another folder with --out")
    if not path.exists():
        return
    if not path.is_dir():
        raise StoreError(f"{path}: exists and is a file, not a store", fix="give another folder with --out")
    if root_or_none(path) is not None:
        return
    foreign = [p.name for p in path.iterdir() if p.name != STAGING and not p.name.startswith("zarr.json.")]
    if (path / STAGING).exists():
        foreign += [p.name for p in (path / STAGING).iterdir() if not p.name.startswith((".work", "zarr.json"))]
    # Another process may have created the store since the first look: then these things are ours.
    if foreign and root_or_none(path) is None:
        seen = ", ".join(sorted(foreign)[:5]) + (" …" if len(foreign) > 5 else "")
        raise StoreError(
            f"{path}: a folder with other things in it ({seen}), not a feature store",
            fix="give a new or empty folder with --out; nothing was changed",
        )


def _without_weight_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Which weights were used is said by their digests; the name they were asked by does not change a feature."""
    return {k: v for k, v in settings.items() if k != "weights"}


def _weight_digests(provenance: Mapping[str, Any]) -> dict[str, Any]:
    flat = _flat("weights", provenance.get("weights", {}))
    return {k: v for k, v in flat.items() if k.endswith(("sha256", "digest"))}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, below in value.items() for k, v in _flat(f"{prefix}.{key}", below).items()}
    return {prefix: value}


def refuse_other_settings(path: Path, found: ExtractSettings, wanted: ExtractSettings) -> None:
    """The part of `refuse_different` that needs no weights: raise StoreError before anything heavy is loaded."""
    old, new = (_flat("settings", _without_weight_names(s.model_dump(mode="json"))) for s in (found, wanted))
    _raise_if_different(path, old, new)


def refuse_other_weights(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """The part of `refuse_different` that concerns weights, from two provenances. Raises StoreError."""
    _raise_if_different(path, _weight_digests(found), _weight_digests(wanted))


def refuse_different(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise StoreError, naming each field that differs, unless the two roots describe comparable features."""
    if found["family"] == wanted["family"]:
        return

    def essence(a: Mapping[str, Any]) -> dict[str, Any]:
        arrays = {s["name"]: f"{s['dtype']} {s['dims']} {s['shape']}" for s in a["arrays"]}
        return {
            **_flat("settings", _without_weight_names(a["settings"])),
            **_weight_digests(a["provenance"]),
            **_flat("arrays", arrays),
        }

    _raise_if_different(path, essence(found), essence(wanted), otherwise="  the order of the arrays")


def _raise_if_different(path: Path, old: dict[str, Any], new: dict[str, Any], otherwise: str = "") -> None:
    differ = [
        f"  {k}: {old.get(k, 'absent')} in the store, {new.get(k, 'absent')} now"
        for k in sorted(old.keys() | new.keys())
        if old.get(k, "absent") != new.get(k, "absent")
    ]
    if not differ and not otherwise:
        return
    streams = old.get("settings.streams")
    named = f" (--streams {','.join(streams)})" if streams and streams != new.get("settings.streams") else ""
    raise StoreError(
        f"{path}: made with other settings, weights or arrays, so features would not be comparable\n"
        + "\n".join(differ or [otherwise]),
        fix=f"use the settings of the store{named}, or another --out for a second store",
    )
