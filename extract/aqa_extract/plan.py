"""What a run has to do: videos as they are asked for, beside what the store and its quarantine hold.

videos ─▶ in the store already / of another file or part / quarantined before / to do, by the streams that are missing
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

from aqa_extract import faults, quarantine
from aqa_extract.identity import Identity, identify, size_and_time, stat_matches
from aqa_extract.job import VideoJob, without_twins
from aqa_extract.streams import OTHERS, array_specs, identified, parse
from aqa_shared import console
from aqa_shared.errors import UsageError, did_you_mean
from aqa_shared.records import ExtractSettings, Failure, Video
from aqa_shared.shards import dealt
from aqa_shared.store import Contents, Where, contents, refuse_other, refuse_to_empty, verify

if TYPE_CHECKING:
    from aqa_extract.config import Options

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

    passes: dict[tuple[str, ...], list[VideoJob]] = field(default_factory=dict)
    """By the streams that are to be made of them: videos that have some of a store's streams lack only the others."""
    already: list[str] = field(default_factory=list)
    kept_out: list[Failure] = field(default_factory=list)
    """Failed before and unchanged since."""
    refused: list[Failure] = field(default_factory=list)
    """In the store, but not known to be from this part of this file."""
    damaged: set[str] = field(default_factory=set)
    """In the store, but not whole; extracted again."""
    replaced: set[str] = field(default_factory=set)
    """In the store from another version of the file or another part; extracted again."""

    @property
    def jobs(self) -> list[VideoJob]:
        """Of all passes."""
        return list(chain.from_iterable(self.passes.values()))


def read_plan(
    videos: Sequence[Video], out: Where, settings: ExtractSettings, options: Options
) -> tuple[Plan, Contents | None]:
    """The plan for a store, and what the store holds, which is read once; writes nothing, opens no video.

    Raises StoreError for what is not a store, or a store of other settings, UsageError for ids to replace that are not
    among the videos.
    """
    known = None
    if options.overwrite:
        refuse_to_empty(out)
    elif (known := contents(out)) is not None:
        refuse_other(out, known.used, identified(settings), weights=False)
    before = quarantine.read(out) if known else {}
    damaged = {damage.id for damage in verify(out)} if known and options.repair else set()
    return plan(videos, known, before, damaged, settings, options), known


def plan(
    videos: Sequence[Video],
    known: Contents | None,
    before: Mapping[str, Failure],
    damaged: set[str],
    settings: ExtractSettings,
    options: Options,
    look: Callable[[str], Identity | None] = identify,
) -> Plan:
    """Compare what is asked with what a store holds: a function of its arguments alone.

    `before` are the failures of earlier runs, `look` says what file is at a path. Raises UsageError for ids to
    replace that are not among the videos.
    """
    named, changed = _to_replace([video.id for video in videos], options.replace)
    result = Plan(damaged=damaged)
    fresh: dict[tuple[str, ...], list[VideoJob]] = {}
    if len({video.path for video in videos}) < len(videos):
        look = cache(look)  # a manifest may have hundreds of rows of one file
    needs = _needs(settings)
    refusals = _refusals(videos, known, look) if known else {}
    for video in videos:
        has = known.live(video.id).keys() if known else set()
        failed = before.get(video.id)
        reason = refusals.get(video.id)
        wanted = settings.streams
        if (reason in ("id_conflict", "id_taken") and video.id in named) or (reason == "id_conflict" and changed):
            result.replaced.add(video.id)
        elif reason:
            assert known is not None
            detail = REFUSALS[reason].format(other=known.meta(video.id).get("path"))
            result.refused.append(VideoJob(video, look(video.path)).failed(reason, "probe", detail))
            continue
        elif has and video.id not in damaged:
            wanted = tuple(s for s in settings.streams if needs[s] - has)
            if not wanted:
                result.already.append(video.id)
                continue
        if not (failed is None or options.retry_failed or video.id in result.replaced) and _would_fail_again(
            video, failed, options
        ):
            result.kept_out.append(failed)
            continue
        fresh.setdefault(wanted, []).append(VideoJob(video, look(video.path)))
    result.passes = {streams: without_twins(jobs) for streams, jobs in fresh.items()}
    return result


def _needs(settings: ExtractSettings) -> dict[str, set[str]]:
    """By stream, the arrays that the store has where it has that stream.

    The tracks of other people come with the first stream that follows the actor: `--actors 3` adds them to a store
    that has the stream without them.
    """
    streams = {name: parse(name) for name in settings.streams}
    needs = {name: {stream.array(stream.outputs[0])} for name, stream in streams.items()}
    if first := next((name for name, stream in streams.items() if stream.actor), None):
        needs[first] |= {spec.name for spec in array_specs(settings) if spec.name.startswith(OTHERS)}
    return needs


def shard(videos: Sequence[Video], i: int, n: int) -> list[Video]:
    """The i-th (from 1) of n parts of about equal work, in the order of `videos`; the parts together are all of them.

    A function of the videos alone: whatever the store holds by now, every run cuts them in the same way. Of a long list
    only some files are looked at: see `shared_out`.
    """
    return [videos[k] for k in dealt(lambda k: _work(videos[k]), [video.id for video in videos], i, n)]


def _work(video: Video) -> float:
    """About how many frames a video has, as far as that can be told without opening it.

    Files of a data set are of a kind, so their sizes compare; 10 kB a frame and 25 frames a second are ordinary.
    """
    if video.start_time is not None and video.end_time is not None:
        return 25 * (video.end_time - video.start_time)
    if video.end is not None:
        return float(video.end - (video.start or 0))
    try:
        return 1 + size_and_time(video.path)[0] / 10_000
    except OSError:
        return 1.0


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


def _refusals(videos: Sequence[Video], known: Contents, look: Callable[[str], Identity | None]) -> dict[str, str]:
    """Id → reason, for every video of which the store's features may be those of another part or file.

    Features of a file that is gone since are as good as ever.
    """
    found: dict[str, str] = {}
    touched: list[tuple[Video, Mapping[str, Any]]] = []
    for video in videos:
        if not known.live(video.id):
            continue
        recorded = known.meta(video.id)
        if any(recorded.get(name) != getattr(video, name) for name in PART):
            found[video.id] = "id_conflict"
        elif not stat_matches(video.path, recorded.get("identity") or {}) and os.path.lexists(video.path):
            touched.append((video, recorded))
    if touched:  # these are read, which takes a while where a whole folder was copied
        with console.progress("compare with the store", len(touched)) as advance:
            for video, was in touched:
                now = look(video.path)
                if now is None or now.fingerprint is None:
                    found[video.id] = "unreadable"
                elif not now.matches(was.get("identity") or {}):
                    found[video.id] = "id_taken" if _is_another(video.path, was) else "id_conflict"
                advance()
    return found


def _is_another(path: str, recorded: Mapping[str, Any]) -> bool:
    """Whether the store's file still is where it was, so that the one at `path` is not a new version of it."""
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


def only(settings: ExtractSettings, streams: Sequence[str]) -> ExtractSettings:
    """`settings` for fewer streams; flow that none of them needs is not computed for those that are there already."""
    changes: dict[str, Any] = {"streams": tuple(streams)}
    had_flow, has_flow = (any(parse(s).modality == "flow" for s in of) for of in (settings.streams, streams))
    if had_flow and not has_flow:
        changes["flow"] = settings.flow.model_copy(update={"mode": "off"})
    return settings.model_copy(update=changes)


def pinned(settings: ExtractSettings, known: Contents | None) -> ExtractSettings:
    """`settings` with every `default` weight replaced by what the store was begun with, where it was begun.

    Else a store begun offline could not be continued once better weights can be reached.
    """
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
