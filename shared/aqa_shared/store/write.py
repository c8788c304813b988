"""Writing a store: create or go on, commit one video, finalise.

A video is absent or whole: `commit` puts its arrays and then the marker that makes them count. Killed at any moment,
what was committed is there, and the next writer goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.records import ExtractSettings, Video
from aqa_shared.store.holdings import Contents, Metas, contents, refuse_foreign, refuse_other
from aqa_shared.store.layout import ArraySpec, array_digest, merged_meta, to_json
from aqa_shared.store.log import Damaged, State, new_state, numbers, publish, state_of, state_or_none, write_root
from aqa_shared.store.merge import clear, finalise
from aqa_shared.store.objects import Objects, Where, disk_errors
from aqa_shared.store.stage import Run, checked_arrays, write_labels, write_part, write_run


class StoreWriter:
    """Commits videos. Several processes, on several machines, may write to one store at the same time."""

    def __init__(self, objects: Objects, specs: Sequence[ArraySpec], run: dict[str, Any], found: Contents) -> None:
        self.objects, self.specs = objects, tuple(specs)
        self._run = run
        self._found: Contents | None = found
        self._again: set[str] = set()
        self._replaced: set[str] = set()
        self._begun = False

    @classmethod
    def open(
        cls,
        where: Where,
        *,
        specs: Sequence[ArraySpec],
        settings: ExtractSettings | None = None,
        provenance: Mapping[str, Any],
        overwrite: bool = False,
    ) -> StoreWriter:
        """Create the store, or go on with one; arrays that it does not have yet are added to it.

        `provenance` is any JSON-able dict. `overwrite` empties a store of ours first. Raises StoreError, with the
        differences, where the store has one of these arrays with another identity, or the place is not one to write to.
        """
        objects = Objects.at(where, write=True)
        run = json.loads(to_json({**provenance, "settings": settings and settings.model_dump(mode="json")}))
        with disk_errors(objects, "open the store for writing"):
            refuse_foreign(objects)
            found = _declared(objects, specs, overwrite)
            write_root(objects, found.state)
            if overwrite:
                clear(objects, found.state)
                found = Contents(objects, found.state)
            return cls(objects, specs, run, found)

    @property
    def _contents(self) -> Contents:
        if self._found is None:
            self.refresh()
        assert self._found is not None
        return self._found

    @property
    def known(self) -> Contents:
        """What the store holds, as far as this writer knows; `refresh` looks again."""
        return self._contents

    @property
    def committed(self) -> Metas:
        """Id → meta of every video that is in the store with all of this writer's arrays, finalised or not."""
        found = self._contents.having(s.name for s in self.specs)
        return Metas(self._contents, set(found) - self._again - self._replaced)

    def refresh(self) -> None:
        """Look again at what other processes have committed."""
        found = contents(self.objects)
        if found is None:
            raise StoreError(f"{self.objects}: the store is gone", fix="run the same command again")
        self._found = found

    def forget(self, ids: Iterable[str]) -> None:
        """Let these videos (which `verify` found damaged) be committed again, though the store has them."""
        self._again |= set(ids)

    def replace(self, ids: Iterable[str]) -> None:
        """Let these videos take the place of all that the store has under their ids, in every array."""
        self._replaced |= set(ids)

    def commit(self, id: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Add one video, whole or not at all; what the store has already is not written again.

        `arrays` holds one array (segments, …) for every spec. `meta` must be a function of the video alone (no wall
        times): equal videos then give equal stores. Raises ValueError where the arrays do not fit the specs or values
        are not finite (the video's fault), StoreError where the disk refuses, or, at the first commit, where another
        writer has declared the arrays otherwise since.
        """
        data = checked_arrays(self.specs, id, arrays)
        meta = json.loads(to_json(meta))
        again, replaced = id in self._again, id in self._replaced
        if not again and not replaced:
            known = self._contents.digests(id)
            fresh = {n: a for n, a in data.items() if known.get(n) != array_digest(a)}
            if not fresh:
                recorded = self._contents.meta(id)
                if merged_meta(recorded, meta) == recorded:
                    return
                fresh = data
            data = fresh
        before = self._contents.parts.get(id, [])
        with disk_errors(self.objects, f"commit {id}"):
            if not self._begun:  # until now another writer could declare these arrays otherwise
                refuse_other(self.objects, state_of(self.objects).arrays, self.specs)
                self._begun = True
            part = write_part(
                self.objects,
                id,
                data,
                {s.name: s.family for s in self.specs if s.name in data},
                meta,
                self._run,
                sequence=max((p.sequence for p in before), default=-1) + 1,
                replaces_all=replaced,
                again=again,
            )
        self._contents.add(part)
        self._again.discard(id)
        self._replaced.discard(id)

    def finalise(self, labels: Mapping[str, Video] | None = None) -> None:
        """Make everything that is committed, by whomever, part of the store; see `finalise`."""
        label(self.objects, labels or {})
        finalise(self.objects)
        self._found = None  # looked at again when somebody asks

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Committed videos stay; nothing is finalised."""


def label(where: Where, labels: Mapping[str, Video]) -> None:
    """Put labels that the next finalise applies: each video's replace what was known about it, empty ones too."""
    objects = Objects.at(where, write=True)
    if labels:
        with disk_errors(objects, "write labels"):
            write_labels(objects, labels)


def expect(where: Where, run: Run) -> None:
    """Remember what a run was asked for, until the store has it."""
    objects = Objects.at(where, write=True)
    with disk_errors(objects, "write to the store"):
        write_run(objects, run)


def _declared(objects: Objects, specs: Sequence[ArraySpec], overwrite: bool) -> Contents:
    """What the store holds once all of these arrays are declared."""
    wanted = {s.name: s for s in specs}
    for _ in range(100):
        try:
            state = state_or_none(objects)
        except Damaged:
            if not overwrite:
                raise
            state = State(numbers(objects)[-1])
        if state is None or overwrite:
            after = replace(new_state(), number=0 if state is None else state.number + 1, arrays=wanted)
        else:
            found = Contents(objects, state)
            refuse_other(objects, found.used, specs)
            arrays = {**state.arrays, **wanted, **found.used}
            if arrays == state.arrays:
                return found
            after = state.next(arrays=arrays)
        if publish(objects, after):
            return Contents(objects, after)
    raise StoreError(f"{objects}: the store keeps changing", fix="run again when nothing else writes to it")
