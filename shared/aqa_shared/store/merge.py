"""From committed videos to blocks; and from many blocks to as few as there can be."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from aqa_shared.console import warn
from aqa_shared.errors import StoreError
from aqa_shared.store.blocks import Index, Source, Torn, index_of, write_blocks
from aqa_shared.store.holdings import counts
from aqa_shared.store.layout import BLOCKS, FAILURES, LABELS, RUNS, STAGED, merged_meta
from aqa_shared.store.log import Group, State, log_key, numbers, publish, state_of, write_root
from aqa_shared.store.objects import Objects, Where, disk_errors
from aqa_shared.store.stage import Part, read_failures, read_runs, read_staged
from aqa_shared.store.table import Labels, differing, given_columns, label_columns, write_table

SMALL, LARGE = 1 << 20, 64 << 20
"""Bytes of a block that is merged with whatever is added, so that small stores stay one block; and of one that only
`compact` copies again."""


def tail(groups: Sequence[Group], size: int) -> int:
    """How many groups at the end are merged with `size` bytes that are added: those at most twice as large as that.

    So what is copied is at most two thirds of what comes of it: blocks are few, and no byte is copied more than
    log(LARGE / SMALL) / log(3 / 2) times, apart from the last SMALL bytes.
    """
    count = 0
    while count < len(groups) and (last := groups[-1 - count].bytes) <= min(LARGE, max(SMALL, 2 * size)):
        size += last
        count += 1
    return count


def finalise(where: Where) -> State:
    """Make everything that is committed part of the store, with the labels that were staged.

    Costs what is new, the small blocks before it, and a look at the index. Where nothing is new, nothing is written.
    Any number of processes may do it at once. Raises StoreError; a staged video found damaged is dropped, so that the
    next extraction makes it again; one that was made with other settings than the store's is dropped with a warning.
    """
    objects = Objects.at(where, write=True)
    return _change(objects, "finalise the store", _finalised)


def compact(where: Where) -> State:
    """Merge all blocks, each video into the one of those that have the same arrays, and remove what no longer counts.

    Equal videos and labels then give equal bytes, in whatever order and by however many runs they were made; only the
    log and the root document say when. Readers that opened the store before have to open it again. Costs a copy of the
    features, and room for it.
    """
    objects = Objects.at(where, write=True)
    _change(objects, "finalise the store", _finalised)
    for _ in range(2):  # twice where a name was taken by a damaged block, which is removed after the first time
        state = _change(objects, "compact the store", _compacted)
        with disk_errors(objects, "compact the store"):
            clear(objects, state, staged=False)
    return state


def _change(objects: Objects, doing: str, step: Callable[[Objects, State], tuple[State, Sequence[str]]]) -> State:
    """Bring `step` about: the state after a given one, and the objects that are then of no more use."""
    with disk_errors(objects, doing):
        for _ in range(100):
            state = state_of(objects)
            try:
                after, used = step(objects, state)
                objects.flush(*sorted({g.path for g in after.groups} - {g.path for g in state.groups}))
            except (StoreError, OSError) as e:
                if numbers(objects)[-1] != state.number or isinstance(e, _Overtaken):
                    continue  # another process has changed the store meanwhile, which is why something was gone
                if isinstance(e, Torn):
                    if _any_gone(objects, [p.keys[0] for p in e.sources]):
                        continue
                    objects.remove([k for p in e.sources for k in p.keys])
                raise
            if after.groups == state.groups:
                after = state
            elif not publish(objects, after):
                continue
            write_root(objects, after)
            for turn in _in_turns([key for key in used if key.endswith(".json")]):  # markers before their arrays
                objects.remove(turn)
            objects.remove([key for key in used if not key.endswith(".json")])
            objects.staged = {}
            return after
    raise StoreError(f"{objects}: the store keeps changing", fix="run again when nothing else writes to it")


class _Overtaken(StoreError):
    """Another process has finalised some of what was to be, and is removing it."""


def _any_gone(objects: Objects, markers: Sequence[str]) -> bool:
    names = set(objects.names(STAGED)) if markers else set()
    return any(marker.removeprefix(f"{STAGED}/") not in names for marker in markers)


def _in_turns(markers: Sequence[str]) -> list[list[str]]:
    """What is to be removed together: of one video, or of the labels, the older before the newer.

    So that whoever is killed, or looks, in between never takes an older one for what counts.
    """
    turns: list[list[str]] = []
    seen: Counter[str] = Counter()
    for marker in markers:
        of = marker.split("-")[0]
        if seen[of] == len(turns):
            turns.append([])
        turns[seen[of]].append(marker)
        seen[of] += 1
    return turns


def _finalised(objects: Objects, state: State) -> tuple[State, list[str]]:
    staged = read_staged(objects)
    parts = [p for p in staged.parts if counts(state, p)]
    if lost := sorted({p.id for p in staged.parts if not counts(state, p)}):
        warn(
            f"{objects}: dropped as made with other settings than the store's: {', '.join(lost[:5])}"
            f"{f' and {len(lost) - 5} more' if len(lost) > 5 else ''}; extract them again"
        )
    before = index_of(objects, state.blocks)
    new: list[Part] = []
    touched: set[str] = set()
    for part in parts:  # what follows a change of a video is a change, even one back to what the blocks hold
        if part.id in touched or not _holds(before, part):
            new.append(part)
            touched.add(part.id)
    prefix = f"{state.number + 1:08}-"
    groups = list(state.blocks)
    if new:
        kept = len(groups) - tail(groups, sum(p.length * state.arrays[n].row_bytes for p in new for n in p.arrays))
        small = before.sources[kept:]
        try:
            groups[kept:] = write_blocks(objects, Index[Source]([*small, *new]), state.arrays, prefix)
        except Torn:
            raise
        except StoreError:
            if not small:
                raise
            # A small block is damaged: it stays as it is, and what is new counts for more.
            groups = [*state.blocks, *write_blocks(objects, Index(new), state.arrays, prefix)]
    given = {i: c for _, labels in staged.labels for i, c in labels.items()}
    labels = _labelled(objects, state.labels, before.position.keys(), {p.id for p in new}, given, prefix)
    runs = list(state.runs)
    for part in new:
        if part.run not in runs:
            runs.append(part.run)
    used = [k for p in staged.parts for k in p.keys] + [k for k, _ in staged.labels]
    used += [k for b in staged.broken for k in (b, b.removesuffix(".json") + ".npz")]
    used += _done(objects, before, new)
    # An older part without the newer one that was read too late: then the older one is gone by now, too.
    if _any_gone(objects, [*(p.keys[0] for p in new), *(k for k, _ in staged.labels)]):
        raise _Overtaken(f"{objects}: another process finalises it", fix="run again")
    return state.next(blocks=tuple(groups), labels=labels, runs=tuple(runs)), used


def _labelled(
    objects: Objects,
    tables: tuple[Group, ...],
    before: Set[str],
    new: set[str],
    given: Mapping[str, Mapping[str, Any]],
    prefix: str,
) -> tuple[Group, ...]:
    """The tables with what is `given` in place of what was known; every video is in one, labelled or not."""
    told = sorted(i for i in given if i in before or i in new)
    fresh = new - before
    try:
        known = label_columns(objects, tables, told) if told else {}
    except StoreError:
        if not before <= given.keys():
            raise
        tables, fresh = (), new.union(before)  # all are given: what was damaged need not be read
    else:
        fresh |= set(np.array(told)[differing(known, given_columns(told, given))]) if told else set()
    if not fresh:
        return tables
    kept = len(tables) - tail(tables, 64 * len(fresh))
    merged = [i for table in tables[kept:] for i in Labels(objects, table).column("video_id")]
    ids = sorted(fresh.union(merged))
    columns = label_columns(objects, tables[kept:], ids)
    rows = [n for n, i in enumerate(ids) if i in given]
    for name, values in given_columns([ids[n] for n in rows], given).items():
        columns[name][rows] = values
    return (*tables[:kept], write_table(objects, ids, columns, prefix, tables))


def _done(objects: Objects, before: Index[Any], new: Sequence[Part]) -> list[str]:
    """Runs that need not be remembered: the store has what they were asked for, as far as that is possible.

    Of shards all have to be done: else it would look as if those that are had never begun.
    """
    runs = read_runs(objects)
    if not runs:
        return []
    index = Index([*before.sources, *new]) if new else before
    failed = read_failures(objects).keys()
    has = {arrays: {index.ids[i] for i in index.has(arrays).nonzero()[0]} for arrays in {r.arrays for r in runs}}
    ready = [r for r in runs if not set(r.ids) - failed - has[r.arrays]]
    shards: dict[tuple[int, tuple[str, ...]], set[int]] = {}
    for run in ready:
        if run.shard:
            shards.setdefault((run.shard[1], run.arrays), set()).add(run.shard[0])
    return [r.key for r in ready if not r.shard or len(shards[r.shard[1], r.arrays]) == r.shard[1]]


def _holds(index: Index[Any], part: Part) -> bool:
    """Whether the store has all that a staged video brings."""
    i = index.position.get(part.id)
    if i is None or part.again:
        return False
    live = index.digests(i)
    if part.replaces_all and set(live) != set(part.arrays):
        return False
    recorded = index.meta(i)
    return all(live.get(n) == d for n, d in part.digests.items()) and merged_meta(recorded, part.recorded) == recorded


def _compacted(objects: Objects, state: State) -> tuple[State, list[str]]:
    index = index_of(objects, state.blocks)
    known = {b.path: b for b in state.blocks}
    blocks = tuple(write_blocks(objects, index, state.arrays, "", known, f"{state.number + 1:08}-"))
    columns = label_columns(objects, state.labels, index.ids)
    labels = (write_table(objects, index.ids, columns, "", state.labels),) if index.ids else ()
    return state.next(blocks=blocks, labels=labels), []


def clear(objects: Objects, state: State, *, staged: bool = True) -> None:
    """Remove what `state` makes useless; what is being made for a later one bears a later number and stays."""
    for prefix, kept in (
        (BLOCKS, {b.path for b in state.blocks}),
        (LABELS, {g.path for g in state.labels}),
    ):
        found = objects.names(prefix)
        latest = numbers(objects)[-1] == state.number
        for name in found:
            number = re.match(r"(\d{8})-", name)
            # One without a number may be of another compaction, if that began with a later state.
            if f"{prefix}/{name}" not in kept and (latest if number is None else int(number[1]) <= state.number):
                objects.remove_below(f"{prefix}/{name}")
    objects.remove([log_key(n) for n in numbers(objects) if n < state.number])
    for prefix in (STAGED, FAILURES, RUNS) if staged else ():
        objects.remove([f"{prefix}/{name}" for name in objects.names(prefix)])
    if not staged:
        names = set(objects.names(STAGED))
        lone = [n for n in names if n.endswith(".npz") and n.removesuffix(".npz") + ".json" not in names]
        objects.remove([f"{STAGED}/{n}" for n in lone])
    objects.remove_litter()
