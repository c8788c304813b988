"""Read everything again, and name each video whose bytes are not what was committed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.store.blocks import Block, Index, block_digest
from aqa_shared.store.groups import GroupReader
from aqa_shared.store.holdings import counts
from aqa_shared.store.layout import FAILURES, to_json
from aqa_shared.store.log import State, root_document, same_json, state_of
from aqa_shared.store.objects import Objects, Where, disk_errors
from aqa_shared.store.stage import not_finite, read_staged
from aqa_shared.store.table import Labels, labels_problems


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written; `id` is "" where it concerns the store as a whole."""

    id: str
    array: str
    detail: str


def verify(where: Where) -> list[Damage]:
    """Everything wrong with a store, [] when all is well. Raises StoreError where it cannot be opened at all.

    Bytes that no longer count, as of a video that was replaced, are not checked.
    """
    objects = Objects.at(where)
    with disk_errors(objects, "read the store"):
        state = state_of(objects)
        return [*_root(objects, state), *_staged(objects, state), *_blocks(objects, state), *_failures(objects)]


def _root(objects: Objects, state: State) -> Iterator[Damage]:
    try:
        same = same_json(objects.get("zarr.json"), root_document(objects, state))
    except Exception:  # what it repeats is damaged itself
        same = False
    if not same:
        yield Damage("", "zarr.json", f"not what the log says; aqa finalise {objects} writes it again")


def _staged(objects: Objects, state: State) -> Iterator[Damage]:
    staged = read_staged(objects)
    yield from (Damage("", key, "was not committed whole; it never counted") for key in staged.broken)
    for part in staged.parts:
        if not counts(state, part):
            yield Damage(part.id, part.key, "made with other settings than the store's; it does not count")
            continue
        for name in part.arrays:
            try:
                wrong = not_finite(state.arrays[name], part.rows(name, 0))
            except StoreError as e:
                wrong = e.cause
            if wrong:
                yield Damage(part.id, name, wrong)
        part.release()


def _blocks(objects: Objects, state: State) -> Iterator[Damage]:
    blocks = []
    for group in state.blocks:
        block = Block(objects, group)
        try:
            problems = list(_index_problems(objects, block))
            readable = bool(block.ids)
        except StoreError as e:
            problems, readable = [Damage("", group.path, e.cause)], False
        yield from problems
        if readable:
            blocks.append(block)
    index = Index(blocks)
    for i, video_id in enumerate(index.ids):
        for name, (source, item) in index.live(i).items():
            try:
                wrong = not_finite(state.arrays[name], source.rows(name, item))
            except StoreError as e:
                wrong = e.cause
            if wrong:
                yield Damage(video_id, name, wrong)
    for table in state.labels:
        yield from (Damage("", column, seen) for column, seen in labels_problems(objects, table))
        with suppress(StoreError):  # which was said
            yield from _metadata(objects, Labels(objects, table))


def _index_problems(objects: Objects, block: Block) -> Iterator[Damage]:
    """What is wrong with everything in a block but the values themselves."""
    described = block.about["arrays"]
    digests = [[bytes(d).hex() for d in of] for of in block.digests]
    found = block_digest(block.ids, block.lengths.tolist(), digests, list(block.metas), described)
    if not block.path.endswith(found):
        yield Damage("", block.path, "its index is not what was written")
    owner = np.repeat(np.arange(len(block.ids)), block.lengths)
    if not np.array_equal(block.column("segment_video"), owner):
        yield Damage("", f"{block.path}/segment_video", "does not agree with the lengths")
    yield from _metadata(objects, block)


def _metadata(objects: Objects, group: GroupReader) -> Iterator[Damage]:
    for name, array in group.opened.arrays():
        own = objects.get(f"{group.path}/{name}/zarr.json")
        if not same_json(own, to_json(array.metadata.to_dict()).encode()):
            yield Damage("", f"{group.path}/{name}", "its own metadata differs from the group's")


def _failures(objects: Objects) -> Iterator[Damage]:
    for name in objects.names(FAILURES):
        try:
            json.loads(objects.get(f"{FAILURES}/{name}") or b"")["id"]
        except (ValueError, KeyError, TypeError):
            yield Damage("", f"{FAILURES}/{name}", "cannot be read; the next run makes it again")
