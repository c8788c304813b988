"""What a run has to do: videos as they are asked for, beside what the store and its quarantine hold.

videos ─▶ in the store already / of another file or part / quarantined before / to do
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aqa_extract import faults, quarantine
from aqa_extract.identity import Identity, identify, stat_matches
from aqa_extract.job import Job, without_twins
from aqa_extract.streams import completed
from aqa_shared import console
from aqa_shared.errors import UsageError, did_you_mean
from aqa_shared.records import ExtractSettings, Failure, Video
from aqa_shared.store import disk_errors, peek, refuse_foreign, refuse_other_settings, verify

if TYPE_CHECKING:
    from aqa_extract.run import Options

PART = ("start", "end", "start_time", "end_time", "frame_rate")
REFUSALS = {
    "id_conflict": "the store holds this id from another version of the file, or another part of it; --replace ID puts "
    "new features in the place of the old (--replace changed: for all of these); or give it another id in a manifest",
    "id_taken": "the store holds this id from another file, {other}; give another store, or an id of its own in a "
    "manifest (--replace ID drops the features of that other file)",
    "unreadable": "the store holds this id, but the file has another time now and cannot be read, so nobody knows "
    "whether it is still the same; make it readable and rerun",
}
"""Reasons why an id that the store holds is not taken for what is asked; looked at again by every run."""


@dataclass
class Plan:
    """What a run would do."""

    store: Path
    jobs: list[Job]
    already: list[str]
    kept_out: list[Failure]
    """Failed before and unchanged since."""
    refused: list[Failure] = field(default_factory=list)
    """In the store, but not known to be from this part of this file."""
    damaged: set[str] = field(default_factory=set)
    """In the store, but not whole; extracted again."""
    replaced: set[str] = field(default_factory=set)
    """In the store from another version of the file or another part; extracted again."""


def plan(videos: Sequence[Video], out: Path, settings: ExtractSettings, options: Options, *, dry: bool = False) -> Plan:
    """Compare what is asked with what the store holds; opens no video with a decoder and loads no network.

    Raises StoreError for a folder that is no store, or a store of other settings, UsageError for ids to replace that
    are not among the videos. `dry` writes nothing at all.
    """
    named, changed = _to_replace([video.id for video in videos], options.replace)
    with disk_errors(out, "read the store"):
        refuse_foreign(out)  # also before --overwrite
    known = None if options.overwrite else peek(out, repair=not dry)
    if known is not None:
        refuse_other_settings(out, known.settings, completed(settings))
    before = quarantine.read(out) if known else {}
    damaged = {damage.id for damage in verify(out)} if known and options.repair else set()
    result = Plan(out, [], [], [], damaged=damaged)
    fresh: list[Job] = []
    look = cache(identify)  # a manifest may have hundreds of rows of one file
    recorded = {i: meta for i, meta in known.committed.items() if i not in damaged} if known else {}
    refusals = _refusals([video for video in videos if video.id in recorded], recorded, look)
    for video in videos:
        failed = before.get(video.id)
        reason = refusals.get(video.id)
        if (reason in ("id_conflict", "id_taken") and video.id in named) or (reason == "id_conflict" and changed):
            result.replaced.add(video.id)
            fresh.append(Job(video, look(video.path)))
        elif reason:
            detail = REFUSALS[reason].format(other=recorded[video.id].get("path"))
            result.refused.append(Job(video, look(video.path)).failed(reason, "probe", detail))
        elif video.id in recorded:
            result.already.append(video.id)
        elif failed is not None and not options.retry_failed and _would_fail_again(video, failed, options):
            result.kept_out.append(failed)
        else:
            fresh.append(Job(video, look(video.path)))
    result.jobs = without_twins(fresh)
    return result


def _to_replace(ids: Sequence[str], asked: Sequence[str]) -> tuple[set[str], bool]:
    """The ids that `Options.replace` names, which may have commas of their own, and whether it says `changed`."""
    known = set(ids)
    names: set[str] = set()
    for entry in asked:
        names |= {entry} if entry in known else {name.strip() for name in entry.split(",") if name.strip()}
    for name in sorted(names - known - {"changed"}):
        raise UsageError(
            f"--replace {name!r}: no video of this run has that id",
            fix=f"{did_you_mean(name, known)} give ids as `aqa info` and the quarantine name them".lstrip(),
        )
    return names & known, "changed" in names


def _refusals(
    videos: Sequence[Video], recorded: Mapping[str, Mapping[str, Any]], look: Callable[[str], Identity | None]
) -> dict[str, str]:
    """Id → reason, for every video of which the store's features may be those of another part or file.

    Features of a file that is gone since are as good as ever.
    """
    found: dict[str, str] = {}
    touched: list[tuple[Video, Mapping[str, Any]]] = []
    for video in videos:
        was = recorded[video.id].get("identity") or {}
        if any(recorded[video.id].get(name) != getattr(video, name) for name in PART):
            found[video.id] = "id_conflict"
        elif not stat_matches(video.path, was) and os.path.lexists(video.path):
            touched.append((video, was))
    if touched:  # these are read, which takes a while where a whole folder was copied
        with console.progress("compare with the store", len(touched)) as advance:
            for video, was in touched:
                now = look(video.path)
                if now is None or now.fingerprint is None:
                    found[video.id] = "unreadable"
                elif not now.matches(was):
                    found[video.id] = "id_taken" if _is_another(video.path, recorded[video.id]) else "id_conflict"
                advance()
    return found


def _is_another(path: str, recorded: Mapping[str, Any]) -> bool:
    """Whether the store's file still is where it was, so that the one at `path` is no new version of it."""
    was = str(recorded.get("path") or path)
    return os.path.exists(was) and not (os.path.exists(path) and os.path.samefile(was, path))


def _would_fail_again(video: Video, failed: Failure, options: Options) -> bool:
    """Whether neither the file nor the option that was at fault has changed."""
    if not faults.would_fail_again(failed, options.decoder, options.timeout, options.accept_damaged):
        return False
    if failed.reason == "not_regular_file" and video.frame_rate is not None:  # a folder that has its fps now
        return False
    if failed.size is None:  # there was no regular file; look again only if there is one now
        return identify(video.path) is None
    return stat_matches(video.path, {"size": failed.size, "mtime_ns": failed.mtime_ns})


def pinned(settings: ExtractSettings, out: Path, options: Options, *, dry: bool = False) -> ExtractSettings:
    """`settings` with every `default` weight replaced by what the store was begun with, where it was begun.

    Else a store begun offline could not be continued once better weights can be reached. `dry` writes nothing.
    """
    known = None if options.overwrite else peek(out, repair=not dry)
    if known is None:
        return settings
    begun_with = known.provenance.get("weights", {})
    names = {
        network: record["source"] if record["note"] == "a file" else record["name"]
        for network, record in begun_with.items()
    }
    if "inflated_from" in begun_with.get("flow", {}):
        names.setdefault("rgb", begun_with["flow"]["inflated_from"])
    asked = {network: name for network, name in settings.weights.items() if name != "default"}
    return settings.model_copy(update={"weights": {**names, **asked}})
