"""The feature store: the only thing the two stages share, and the only package that knows its layout.

Nothing in a store is overwritten but one small root document. A committed video is staged (`stage`), finalised into
immutable blocks of many (`blocks`), and counts from when a numbered change names it (`log`). docs/store-format.md
describes what is there.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aqa_shared.store.checks import Damage, verify
    from aqa_shared.store.holdings import Contents, contents, refuse_other, refuse_to_empty
    from aqa_shared.store.layout import SCHEMA, ArraySpec, Role
    from aqa_shared.store.log import is_store
    from aqa_shared.store.merge import compact, finalise
    from aqa_shared.store.objects import Objects, Where, disk_errors
    from aqa_shared.store.read import FeatureStore
    from aqa_shared.store.stage import Run
    from aqa_shared.store.summary import describe, missing, missing_parts
    from aqa_shared.store.write import StoreWriter, expect, label

_HOMES = {
    "checks": ("Damage", "verify"),
    "holdings": ("Contents", "contents", "refuse_other", "refuse_to_empty"),
    "layout": ("SCHEMA", "ArraySpec", "Role"),
    "log": ("is_store",),
    "merge": ("compact", "finalise"),
    "objects": ("Objects", "Where", "disk_errors"),
    "read": ("FeatureStore",),
    "stage": ("Run",),
    "summary": ("describe", "missing", "missing_parts"),
    "write": ("StoreWriter", "expect", "label"),
}
"""Modules are opened when a name of theirs is asked for: Zarr takes longer to import than `--help` may take."""

__all__ = [
    "SCHEMA",
    "ArraySpec",
    "Contents",
    "Damage",
    "FeatureStore",
    "Objects",
    "Role",
    "Run",
    "StoreWriter",
    "Where",
    "compact",
    "contents",
    "describe",
    "disk_errors",
    "expect",
    "finalise",
    "is_store",
    "label",
    "missing",
    "missing_parts",
    "refuse_other",
    "refuse_to_empty",
    "verify",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
