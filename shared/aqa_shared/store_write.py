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

from aqa_shared import __version__
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
from aqa_shared.store_finalise import build_arrays, label_columns, merged_order
from aqa_shared.store_index import read_index
from aqa_shared.store_layout import (
    QUARANTINE,
    SCHEMA,
    STAGING,
    STAGING_GROUP,
    WORK,
    ArraySpec,
    digest_of,
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
        wanted = _root_attributes(specs, settings, provenance)
        with disk_errors(path, "open the store for writing"):
            _refuse_foreign(path)
            (path / WORK).mkdir(parents=True, exist_ok=True)
            with locked(path):
                roll_forward(path)
                _refuse_foreign(path)
                found = root_or_none(path)
                writers = clean_dead_sessions(path)
                if found is None:
                    (path / STAGING / "zarr.json").write_bytes(STAGING_GROUP)
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
                    _refuse_different(path, found, wanted)
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
            committed = read_index(self.path).metas()
            committed.update({s.id: s.meta for s in staged_videos(self.path, self._family).values()})
        self._committed = committed

    def forget(self, ids: Iterable[str]) -> None:
        """Let these videos (which `verify` found damaged) be committed anew; the next finalise replaces them."""
        for video_id in ids:
            self._committed.pop(video_id, None)

    def commit(self, id: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
        """Add one video, whole or not at all; again with the same content does nothing, with other replaces.

        `arrays` holds one array (segments, …) for every spec. `meta` must be a function of the video alone
        (no wall times): equal videos then give equal stores. Raises ValueError where the arrays do not fit
        the specs or features are not finite (the video's fault), StoreError where the disk refuses.
        """
        key = video_key(id)
        data = checked_arrays(self._specs, id, arrays)
        target = self.path / STAGING / key
        with disk_errors(self.path, f"commit {id}"):
            private = self._session / f"{key}-{time.monotonic_ns()}"
            try:
                staged = write_staged(
                    private,
                    specs=self._specs,
                    video_id=id,
                    arrays=data,
                    meta=meta,
                    provenance=self._provenance,
                    family=self._family,
                )
                # Not flushed to the disk (fsync costs 5 times the commit): a killed process loses nothing by
                # that, and what a power loss tears is found by size or digest and extracted again.
                there = read_marker(target)
                if there is None or (there.digests, there.meta) != (staged.digests, staged.meta):
                    _move_into_place(private, target, private.with_suffix(".old"))
            finally:
                remove(private)
                remove(private.with_suffix(".old"))
        self._committed[id] = staged.meta

    def finalise(self, labels: Mapping[str, Video]) -> None:
        """Merge all committed videos, sorted by id, into contiguous arrays with `labels` beside them.

        A video's labels are replaced as a whole by its entry in `labels`, or kept where it has none; entries
        of unknown videos are ignored. Nothing is written where nothing changed. Equal videos and labels give
        equal bytes, whatever the order of the commits. Needs room for a second copy of the features. Raises
        StoreError; a staged video found damaged is dropped, so that the next extraction makes it again.
        """
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
            if not staged and _same_columns(columns, index.labels):
                return
            new = self._session / f"new-{time.monotonic_ns()}"
            try:
                build_arrays(new, self.path, self._specs, index, staged, order, columns)
                sync_tree(new)
            except BaseException:
                remove(new)
                raise
            built = {p.name: p for p in sorted(new.iterdir())}
            kept = {n: self.path / n for n in attributes.get("integrity", {}) if n not in built}
            runs = [attributes["provenance"], *attributes["runs"]]
            for s in staged.values():
                if s.provenance not in runs:
                    runs.append(s.provenance)
            attributes = {
                **attributes,
                "videos": len(order),
                "segments": sum(o.length for o in order),
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

    def close(self) -> None:
        """Give up the private folder. Committed videos stay; nothing is finalised."""
        if self._alive is not None:
            remove(self._session)
            self._alive.close()
            self._alive = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _same_columns(new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(new[n], old[n], equal_nan=new[n].dtype != object) for n in new)


def _root_attributes(
    specs: Sequence[ArraySpec], settings: ExtractSettings, provenance: Mapping[str, Any]
) -> dict[str, Any]:
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
        "settings": settings.model_dump(mode="json"),
        "provenance": plain,
        "runs": [],
        "arrays": described,
        "family": digest_of(to_json(essence).encode()),
    }


def _refuse_foreign(path: Path) -> None:
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
        foreign += [p.name for p in (path / STAGING).iterdir() if p.name not in (".work", "zarr.json")]
    if foreign:
        seen = ", ".join(sorted(foreign)[:5]) + (" …" if len(foreign) > 5 else "")
        raise StoreError(
            f"{path}: a folder with other things in it ({seen}), not a feature store",
            fix="give a new or empty folder with --out; nothing was changed",
        )


def _without_weight_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Which weights were used is said by their digests; the name they were asked by does not change a feature."""
    return {k: v for k, v in settings.items() if not k.endswith("_weights")}


def _weight_digests(provenance: Mapping[str, Any]) -> dict[str, Any]:
    flat = _flat("weights", provenance.get("weights", {}))
    return {k: v for k, v in flat.items() if k.endswith(("sha256", "digest"))}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, below in value.items() for k, v in _flat(f"{prefix}.{key}", below).items()}
    return {prefix: value}


def _refuse_different(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if found["family"] == wanted["family"]:
        return

    def essence(a: Mapping[str, Any]) -> dict[str, Any]:
        arrays = {s["name"]: f"{s['dtype']} {s['dims']} {s['shape']}" for s in a["arrays"]}
        return {
            **_flat("settings", _without_weight_names(a["settings"])),
            **_weight_digests(a["provenance"]),
            **_flat("arrays", arrays),
        }

    old, new = essence(found), essence(wanted)
    differ = [
        f"  {k}: {old.get(k, 'absent')} in the store, {new.get(k, 'absent')} now"
        for k in sorted(old.keys() | new.keys())
        if old.get(k, "absent") != new.get(k, "absent")
    ]
    raise StoreError(
        f"{path}: made with other settings, weights or arrays, so features would not be comparable\n"
        + "\n".join(differ or ["  the order of the arrays"]),
        fix="use the settings of the store, or another --out, or --overwrite to start it afresh",
    )


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
