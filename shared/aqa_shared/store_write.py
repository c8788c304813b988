"""Writing a feature store: create or resume, commit one video, finalise.

A video is absent or whole. `commit` builds it in a private folder and renames that into `videos/`; `finalise`
builds the contiguous arrays in a private folder and swaps them in under a journal. Killed at any moment, the
next writer finds a store in one of its lawful states or rolls the journal forward.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np

from aqa_shared.errors import StoreError
from aqa_shared.records import ExtractSettings, Video
from aqa_shared.store_disk import (
    apply_change,
    clean_dead_sessions,
    disk_errors,
    locked,
    new_session,
    read_root,
    remove,
    roll_forward,
    root_document,
    root_or_none,
    sync_tree,
    write_atomically,
)
from aqa_shared.store_finalise import build_arrays, content_digest, following_arrays, holds, label_columns, merged_order
from aqa_shared.store_identity import refuse_different, refuse_foreign, root_attributes
from aqa_shared.store_index import read_index
from aqa_shared.store_layout import (
    JOURNAL,
    QUARANTINE,
    STAGING,
    STAGING_GROUP,
    WORK,
    ArraySpec,
    array_digest,
    to_json,
    video_key,
)
from aqa_shared.store_staging import checked_arrays, read_marker, staged_folders, staged_videos, write_staged


class StoreWriter:
    """The only thing that writes a store. Several processes may commit to one store at the same time."""

    def __init__(self, path: Path, attributes: dict[str, Any], session: Path, alive: Any) -> None:
        self.path = path
        self._attributes = attributes
        self._specs = tuple(ArraySpec(**s) for s in attributes["arrays"])
        self._family = attributes["family"]
        self._provenance: dict[str, Any] = attributes["provenance"]
        self._session = session
        self._alive = alive
        self._committed: dict[str, dict[str, Any]] = {}
        self._finalised: dict[str, tuple[dict[str, str], dict[str, Any]]] = {}
        self._forgotten: set[str] = set()
        self.refresh()

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        specs: Sequence[ArraySpec],
        settings: ExtractSettings,
        provenance: Mapping[str, Any],
        overwrite: bool = False,
    ) -> StoreWriter:
        """Create the store, or resume one that was made with the same settings, weights and arrays.

        `provenance` is any JSON-able dict; the digests (keys ending in `sha256` or `digest`) anywhere below
        its key `weights` decide whether features are comparable. `overwrite` empties a store of ours first.
        Raises StoreError, with the differences, where the store or the folder is not one to write to.
        """
        path = Path(path)
        wanted = root_attributes(specs, settings, provenance)
        with disk_errors(path, "open the store for writing"):
            refuse_foreign(path)
            (path / WORK).mkdir(parents=True, exist_ok=True)
            with locked(path):
                roll_forward(path)
                refuse_foreign(path)
                found = root_or_none(path)
                writers = clean_dead_sessions(path)
                if _bytes_or_none(path / STAGING / "zarr.json") != STAGING_GROUP:
                    write_atomically(path / STAGING / "zarr.json", STAGING_GROUP)
                if found is None:
                    write_atomically(path / "zarr.json", root_document(path, wanted, {}))
                    found = wanted
                elif overwrite:
                    if writers:
                        raise StoreError(
                            f"{path}: another process is writing to this store; it cannot be overwritten now",
                            fix="wait until it is done, or stop it",
                        )
                    _empty(path, found, wanted)
                    found = wanted
                else:
                    found = read_root(path)
                    refuse_different(path, found, wanted)
                    _remove_torn(path, found["family"])
                session, alive = new_session(path)
                writer = cls(path, found, session, alive)
        writer._provenance = wanted["provenance"]
        return writer

    @property
    def committed(self) -> Mapping[str, dict[str, Any]]:
        """Id → meta of every video that is in the store, finalised or not; as of the last `refresh`."""
        return MappingProxyType(self._committed)

    @property
    def specs(self) -> tuple[ArraySpec, ...]:
        """The arrays every commit must bring."""
        return self._specs

    def refresh(self) -> None:
        """Look again at what other processes have committed."""
        with disk_errors(self.path, "read the store"):
            index = read_index(self.path)
            committed = index.metas()
            self._finalised = {i: (d, committed[i]) for i, d in zip(index.ids, index.digests(), strict=True)}
            committed.update({s.id: s.meta for s in staged_videos(self.path, self._family).values()})
        self._committed = {i: m for i, m in committed.items() if i not in self._forgotten}

    def forget(self, ids: Iterable[str]) -> None:
        """Let these videos (which `verify` found damaged) be committed anew; the next finalise replaces them."""
        for video_id in ids:
            self._committed.pop(video_id, None)
            self._forgotten.add(video_id)

    def commit(self, id: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Add one video, whole or not at all; again with the same content does nothing, with other replaces.

        `arrays` holds one array (segments, …) for every spec. `meta` must be a function of the video alone
        (no wall times): equal videos then give equal stores. Raises ValueError where the arrays do not fit
        the specs or features are not finite (the video's fault), StoreError where the disk refuses.
        """
        self._refuse_closed()
        key = video_key(id)
        data = checked_arrays(self._specs, id, arrays)
        content = ({n: array_digest(a) for n, a in data.items()}, json.loads(to_json(meta)))
        target = self.path / STAGING / key
        with disk_errors(self.path, f"commit {id}"):
            if id not in self._forgotten and self._content(id, target) == content:
                self._committed[id] = content[1]
                return
            private = self._session / f"{key}-{time.monotonic_ns()}"
            try:
                write_staged(
                    private,
                    specs=self._specs,
                    video_id=id,
                    arrays=data,
                    meta=meta,
                    provenance=self._provenance,
                    family=self._family,
                )
                # Not flushed to the disk (fsync takes 0.2 to 6 times the commit, as busy as the disk is): a killed
                # process loses nothing by that; what a power loss tears is found and extracted again.
                _move_into_place(private, target, private.with_suffix(".old"))
            finally:
                remove(private)
                remove(private.with_suffix(".old"))
        self._forgotten.discard(id)
        self._committed[id] = content[1]

    def _content(self, id: str, target: Path) -> object:
        """Digests and meta of the video as the store has it, or None."""
        staged = read_marker(target)
        if staged is not None and staged.family == self._family:
            if staged.id != id:
                raise StoreError(f"{target} holds {staged.id!r}, not {id!r}: equal keys of 128 bits", fix="rename one")
            return staged.digests, staged.meta
        return self._finalised.get(id)

    def finalise(self, labels: Mapping[str, Video]) -> None:
        """Merge all committed videos, sorted by id, into contiguous arrays with `labels` beside them.

        A video's labels are replaced as a whole by its entry in `labels`, or kept where it has none; entries
        of unknown videos are ignored. Nothing is written where nothing changed; a damaged array that follows from
        the rest of the store is written anew. Equal videos and labels give
        equal bytes, whatever the order of the commits. Needs room for a second copy of the features. Raises
        StoreError; a staged video found damaged is dropped, so that the next extraction makes it again.
        """
        self._refuse_closed()
        with disk_errors(self.path, "finalise the store"), locked(self.path):
            roll_forward(self.path)
            attributes = read_root(self.path)
            if attributes["family"] != self._family:
                raise StoreError(
                    f"{self.path}: another process has overwritten this store with other settings",
                    fix="run the same command again with another --out",
                )
            index = read_index(self.path)
            staged = staged_videos(self.path, self._family)
            order = merged_order(index, staged)
            columns = label_columns(index, order, labels)
            following = following_arrays(index, order, columns)
            if not staged:
                following = {n: values for n, values in following.items() if not holds(index, n, values)}
                if not following:
                    return
            new = self._session / f"new-{time.monotonic_ns()}"
            try:
                build_arrays(new, self.path, self._specs, index, staged, order, following)
                sync_tree(new)
            except BaseException:
                remove(new)
                raise
            built = {p.name: p for p in sorted(new.iterdir())}
            kept = {n: self.path / n for n in attributes.get("integrity", {}) if n not in built}
            for name in kept:
                index.open(name)  # else the new root would vouch for metadata that something else has changed
            runs = [attributes["provenance"], *attributes["runs"]]
            for s in staged.values():
                if s.provenance not in runs:
                    runs.append(s.provenance)
            attributes = {
                **attributes,
                "videos": len(order),
                "segments": sum(o.length for o in order),
                "content": content_digest(order, index, columns),
                "runs": runs[1:],
            }
            prefix = new.relative_to(self.path).as_posix()
            apply_change(
                self.path,
                moves=[(f"{prefix}/{n}", n) for n in built],
                root=root_document(self.path, attributes, {**kept, **built}),
                removals=[f"{STAGING}/{s.folder.name}" for s in staged.values()] + [prefix],
            )
            self._attributes = attributes
            if staged:
                self.refresh()

    def _refuse_closed(self) -> None:
        if self._alive is None:
            raise ValueError(f"{self.path}: this writer was closed")

    def close(self) -> None:
        """Give up the private folder. Committed videos stay; nothing is finalised."""
        if self._alive is not None:
            # A change that an error stopped half-way still needs what it was to move; the next writer cleans up.
            if not (self.path / JOURNAL).exists():
                remove(self._session)
            self._alive.close()
            self._alive = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _remove_torn(path: Path, family: str) -> None:
    """Staging folders without a whole marker of this store never counted; make room for the real ones."""
    for folder in staged_folders(path):
        marker = read_marker(folder)
        if marker is None or marker.family != family:
            remove(folder)


def _empty(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Back to a new store, through the journal, so that old videos can never be taken for new ones."""
    apply_change(
        path,
        moves=[],
        root=root_document(path, wanted, {}),
        removals=[
            *sorted(found.get("integrity", {})),
            *(f"{STAGING}/{f.name}" for f in staged_folders(path)),
            QUARANTINE,
        ],
    )


def _bytes_or_none(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _move_into_place(source: Path, target: Path, aside: Path) -> None:
    """Rename `source` to `target`, replacing what is there; another process may be doing the same."""
    for _ in range(100):
        try:
            source.rename(target)
            break
        except OSError:
            if not target.exists():
                raise
            aside.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):
                target.rename(aside / str(time.monotonic_ns()))
