"""What a store holds already, finalised or staged: all that a writer, or a plan, needs to know."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from typing import Any

from aqa_shared.errors import StoreError
from aqa_shared.records import ExtractSettings
from aqa_shared.store.blocks import Source, index_of
from aqa_shared.store.layout import OURS, ArraySpec, merged_meta
from aqa_shared.store.log import Damaged, State, numbers, state_of, state_or_none
from aqa_shared.store.objects import Objects, Where, disk_errors
from aqa_shared.store.stage import Part, read_staged


class Contents:
    """A store as the next writer finds it."""

    def __init__(self, objects: Objects, state: State) -> None:
        self.objects, self.state = objects, state
        self.index = index_of(objects, state.blocks)
        staged = read_staged(objects, labels=False)
        self.parts: dict[str, list[Part]] = {}
        for part in staged.parts:
            self.add(part)

    def add(self, part: Part) -> None:
        """Take a committed video in; one of another family never counts."""
        if counts(self.state, part):
            self.parts.setdefault(part.id, []).append(part)

    def live(self, video_id: str) -> dict[str, tuple[Source, int]]:
        """Array → where it is, for one video; {} where it is not in the store."""
        i = self.index.position.get(video_id)
        found: dict[str, tuple[Source, int]] = {} if i is None else dict(self.index.live(i))
        for part in self.parts.get(video_id, ()):
            if part.replaces_all:
                found.clear()
            found.update(dict.fromkeys(part.arrays, (part, 0)))
        return found

    def digests(self, video_id: str) -> dict[str, str]:
        """Array → digest of its values."""
        return {name: source.digest(name, item) for name, (source, item) in self.live(video_id).items()}

    def meta(self, video_id: str) -> dict[str, Any]:
        """What was recorded of a video; {} where it is not in the store."""
        if video_id not in self.parts:
            return self.index.meta(self.index.position[video_id]) if video_id in self.index.position else {}
        sources = {(id(s), k): (s, k) for s, k in self.live(video_id).values()}
        order = {id(s): n for n, s in enumerate([*self.index.sources, *self.parts.get(video_id, ())])}
        found: dict[str, Any] = {}
        for source, item in sorted(sources.values(), key=lambda x: order[id(x[0])]):
            meta = source.meta(item)
            found = merged_meta(found, meta) if found else meta
        return found

    def having(self, names: Iterable[str]) -> Metas:
        """The videos that have all of these arrays."""
        names = set(names)
        found = {self.index.ids[i] for i in self.index.has(names).nonzero()[0]}
        for video_id in self.parts:
            (found.add if names <= self.live(video_id).keys() else found.discard)(video_id)
        return Metas(self, found)

    @property
    def used(self) -> dict[str, ArraySpec]:
        """The arrays that some video has; what was only declared gives way to another declaration."""
        names = {name for b in self.state.blocks for name in b.arrays}
        names |= {name for parts in self.parts.values() for p in parts for name in p.arrays}
        return {n: s for n, s in self.state.arrays.items() if n in names}

    @property
    def settings(self) -> ExtractSettings | None:
        """Of all runs together; None for features from elsewhere."""
        return settings_of(self.objects, self.state)

    @property
    def provenance(self) -> dict[str, Any]:
        """Of the first run, with the weights of all."""
        return provenance_of(self.state)


class Metas(Mapping[str, dict[str, Any]]):
    """Id → what was recorded; looked up when asked for."""

    def __init__(self, contents: Contents, ids: set[str]) -> None:
        self._contents, self._ids = contents, ids

    def __getitem__(self, video_id: str) -> dict[str, Any]:
        if video_id not in self._ids:
            raise KeyError(video_id)
        return self._contents.meta(video_id)

    def __contains__(self, video_id: object) -> bool:
        return video_id in self._ids

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._ids))

    def __len__(self) -> int:
        return len(self._ids)


def counts(state: State, part: Part) -> bool:
    """Whether a staged video was made as the store says its arrays are."""
    return all(name in state.arrays and state.arrays[name].family == f for name, f in part.families.items())


def contents(where: Where) -> Contents | None:
    """None where there is no store yet. Raises StoreError, also for a folder that is not a store of ours."""
    objects = Objects.at(where)
    with disk_errors(objects, "read the store"):
        refuse_foreign(objects)
        for attempt in range(20):
            state = state_or_none(objects)
            if state is None:
                return None
            try:
                found = Contents(objects, state)
            except StoreError:
                # Another process may have compacted it in this moment; a store that stands still is damaged.
                if state_of(objects).number == state.number:
                    raise
                continue
            # What was finalised since the state was read is in neither.
            if numbers(objects)[-1] == state.number or attempt == 19:
                return found
    raise StoreError(f"{objects}: the store keeps changing", fix="run again when nothing else writes to it")


def refuse_foreign(objects: Objects) -> None:
    """Raise unless the place is absent, empty, a store of ours, or one whose creation was interrupted."""
    folder = objects.folder
    if folder is not None:
        if folder.is_symlink() and not folder.exists():
            raise StoreError(f"{folder}: a dangling link", fix="give another folder with --out")
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"{folder}: exists and is a file, not a store", fix="give another folder with --out")
    names = objects.names("")
    foreign = [n for n in names if n not in OURS or n == "zarr.json"]
    # Another process may have created the store since the first look: then these things are ours.
    if foreign and not numbers(objects):
        seen = ", ".join(sorted(foreign)[:5]) + (" …" if len(foreign) > 5 else "")
        raise StoreError(
            f"{objects}: has other things in it ({seen}), and is not a feature store",
            fix="give a new or empty folder with --out; nothing was changed",
        )


def refuse_to_empty(where: Where) -> None:
    """Raise where `--overwrite` must leave a place alone: what is not ours, or of a newer version; damage is fine."""
    objects = Objects.at(where)
    with disk_errors(objects, "read the store"):
        refuse_foreign(objects)
        with suppress(Damaged):
            state_or_none(objects)


def settings_of(objects: Objects, state: State, arrays: Collection[str] | None = None) -> ExtractSettings | None:
    """The settings of all runs of a store together, or of those that made some of `arrays`.

    Raises StoreError for those of a newer version.
    """
    runs: list[ExtractSettings] = []
    for run in state.runs:
        if run.get("settings") is None:
            continue
        try:
            runs.append(ExtractSettings.model_validate(run["settings"]))
        except ValueError as e:
            raise StoreError(
                f"{objects}: made by {run.get('tool') or f'aqa {state.version}'} with settings that this version does "
                f"not know: {e}",
                fix="update this package (in its folder: git pull, then pip install .)",
            ) from e
    if arrays is not None:
        # An array is named as its stream is written, with _ for what a name cannot have.
        runs = [s for s in runs if {re.sub("[-@:]", "_", name) for name in s.streams} & set(arrays)] or runs
    return reduce(ExtractSettings.joined, runs) if runs else None


def provenance_of(state: State) -> dict[str, Any]:
    """Of the first run, without its settings, with the weights of all runs."""
    if not state.runs:
        return {}
    weights = {role: w for run in reversed(state.runs) for role, w in (run.get("weights") or {}).items()}
    first = {k: v for k, v in state.runs[0].items() if k != "settings"}
    return {**first, "weights": weights} if weights else first


def refuse_other(
    where: object, arrays: Mapping[str, ArraySpec], wanted: Sequence[ArraySpec], *, weights: bool = True
) -> None:
    """Raise StoreError, naming each field that differs, where an array in the store was made otherwise.

    Without `weights` what is said of them does not matter: they are not known before they are loaded.
    """
    differ: dict[str, list[str]] = {}
    for spec in wanted:
        if spec.name not in arrays:
            continue
        old, new = arrays[spec.name].essence, spec.essence
        for field in sorted(old.keys() | new.keys()):
            if not weights and field.startswith("weights."):
                continue
            if old.get(field, "default") != new.get(field, "default"):
                line = f"{field}: {old.get(field, 'default')} in the store, {new.get(field, 'default')} now"
                differ.setdefault(line, []).append(spec.name)
    if differ:
        raise StoreError(
            f"{where}: made with other settings or weights, so features would not be comparable\n"
            + "\n".join(f"  {line} ({', '.join(names)})" for line, names in differ.items()),
            fix="use the settings of the store, or another --out for a second store",
        )
