"""Which videos are kept out of a store, and why: one Failure an object, so that runs side by side lose none."""

from __future__ import annotations

from collections.abc import Collection

from aqa_shared.console import warn
from aqa_shared.records import Failure
from aqa_shared.store import Objects, Where, disk_errors
from aqa_shared.store.stage import failure_key, read_failures, write_failure


def read(store: Where) -> dict[str, Failure]:
    """What is known of every video that could not be used; what cannot be read is left out, and said."""
    found: dict[str, Failure] = {}
    with disk_errors(store, "read the quarantine"):
        records = read_failures(Objects.at(store))
    for video_id, record in records.items():
        try:
            found[video_id] = Failure.model_validate(record)
        except ValueError:
            warn(f"{store}: {failure_key(video_id)} cannot be read and is ignored")
    return found


def write(store: Where, failure: Failure) -> None:
    """Add it at once, so that a killed run keeps it; it replaces what was known of the video."""
    with disk_errors(store, "write the quarantine"):
        write_failure(Objects.at(store, write=True), failure.model_dump(mode="python"))


def release(store: Where, ids: Collection[str]) -> None:
    """Forget videos that have been extracted since."""
    with disk_errors(store, "write the quarantine"):
        objects = Objects.at(store, write=True)
        objects.remove([failure_key(i) for i in read_failures(objects).keys() & set(ids)])
