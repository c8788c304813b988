"""The feature store: the only thing the two stages share, and the only module that knows its Zarr layout.

This file is the door; the rooms behind it are `store_write` (create, commit, finalise), `store_read` (lazy and
whole reads), `store_verify`, and below them `store_layout` (the schema) and `store_disk` (locks and the journal).
docs/store-format.md describes what is on disk.
"""

from aqa_shared.store_disk import disk_errors, root_or_none
from aqa_shared.store_identity import refuse_foreign, refuse_other_settings, refuse_other_weights
from aqa_shared.store_layout import QUARANTINE, SCHEMA, ArraySpec
from aqa_shared.store_peek import Peek, peek
from aqa_shared.store_read import FeatureStore, describe
from aqa_shared.store_verify import Damage, verify
from aqa_shared.store_write import StoreWriter

__all__ = [
    "QUARANTINE",
    "SCHEMA",
    "ArraySpec",
    "Damage",
    "FeatureStore",
    "Peek",
    "StoreWriter",
    "describe",
    "disk_errors",
    "peek",
    "refuse_foreign",
    "refuse_other_settings",
    "refuse_other_weights",
    "root_or_none",
    "verify",
]
