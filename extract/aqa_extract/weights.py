"""Pretrained weights by name or file, from the cache or from their source; `weights_registry` lists them.

    name ── cached? ─────────────────────────────────────────→ state dict + record of its origin
             └ no → original put there by hand? ─┐
                     └ no → sources, in order ───┴→ digest checked → converted → cached as safetensors

The cache is `weights/` under AQA_HOME (else the user's cache folder): NAME.safetensors, and NAME.json with its
sha256 and origin, written last. AQA_OFFLINE=1 forbids the network. A source is never replaced by random numbers:
what is not available is an EnvironmentFault.

`default` is the first name of its kind's order that the cache already holds, else the first whose original was put
there, else the first that can be fetched. What it was once is kept beside the weights, so one machine keeps answering
alike while the network comes and goes, also where the answer is `inflated-from-rgb`, which has no file. Fetching a
better name, or putting its original there, changes it. Which one served is said and recorded.
"""

from __future__ import annotations

import hashlib
import os
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aqa_extract import weights_cache
from aqa_extract.weights_fetch import Origin, SourceFailed, check_digest, file_digest
from aqa_extract.weights_registry import DEFAULTS, INFLATED, READERS, REGISTRY, Entry
from aqa_shared.console import Say, note
from aqa_shared.errors import EnvironmentFault, UsageError, did_you_mean
from aqa_shared.files import scratch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LoadedWeights:
    """A state dict on the CPU, and where it came from.

    The record's `sha256` is that of the tensors written as safetensors, so equal weights have equal digests
    whatever file they came in; `origin_sha256` is the original file's.
    """

    state: dict[str, Tensor]
    record: dict[str, Any]


def resolve(name_or_path: str, kind: str, say: Say = note, inflate_from: str = "default") -> LoadedWeights:
    """Weights by registry name, `default`, or file, ready to load. `say` gets what a person should know.

    `inflate_from` are the RGB weights (name, `default` or file) that `inflated-from-rgb` is made of.

    Raises UsageError for an unknown name or one of another kind, EnvironmentFault for weights that are not available.
    """
    if name_or_path == "default":
        loaded = _default(kind, say, inflate_from)
    elif name_or_path in REGISTRY:
        entry = REGISTRY[name_or_path]
        if entry.kind != kind:
            raise UsageError(
                f"{name_or_path} are {entry.kind} weights, and {kind} weights were asked for",
                fix=f"choose one of {', '.join(_names(kind))}, or a file",
            )
        loaded = _named(entry, say, inflate_from)
    else:
        loaded = _from_file(name_or_path, kind)
    record = loaded.record
    if record["name"] == INFLATED:
        say(f"flow weights: inflated from rgb, never trained on flow; expect less of them ({record['source']})")
    else:
        say(f"{kind} weights: {record['name']} ({record['source']})")
    return loaded


def better(records: Mapping[str, Mapping[str, Any]], asked: Mapping[str, str]) -> list[str]:
    """Names that come before what `default` gave, of the kinds (by which both are) for which it was asked."""
    kinds = [kind for kind in records if asked.get(kind, "default") == "default"]
    return [DEFAULTS[kind][0] for kind in kinds if records[kind]["name"] != DEFAULTS[kind][0]]


def fetch(name: str, say: Say = note) -> dict[str, Any]:
    """Bring a name of the registry into the cache and return its record. Raises UsageError, EnvironmentFault."""
    if name not in REGISTRY:
        raise _unknown(name, REGISTRY)
    loaded = _named(REGISTRY[name], say)
    # Weights that are in hand but could not be kept are a success for a run, not for a fetch.
    kept = DEFAULTS["rgb"] if name == INFLATED else (name,)
    if all(verify([n]) for n in kept):
        raise EnvironmentFault(
            f"the weights were fetched, but the cache {weights_cache.weights_folder()} cannot be written",
            fix="set AQA_HOME to a folder of yours",
        )
    kind = REGISTRY[name].kind
    order, before = DEFAULTS[kind], weights_cache.settled(kind)
    if name in order and (before not in order or order.index(name) < order.index(before)):
        _settle(kind, name, say)
        if before in order:
            say(f"`default` now means {name} for {kind} weights, not {before}; stores that were begun keep theirs")
    return loaded.record


def listing() -> list[dict[str, Any]]:
    """The registry as rows: name, kind, cached, bytes, licence, sources, default (place in its order), settled (what
    `default` means here), note."""
    rows = []
    for entry in REGISTRY.values():
        order = DEFAULTS[entry.kind]
        cached = weights_cache.is_cached(entry.name)
        rows.append(
            {
                "name": entry.name,
                "kind": entry.kind,
                "cached": cached,
                "bytes": weights_cache.tensors_file(entry.name).stat().st_size if cached else None,
                "licence": entry.licence,
                "sources": [str(source) for source in entry.sources],
                "default": order.index(entry.name) + 1 if entry.name in order else None,
                "settled": weights_cache.settled(entry.kind) == entry.name,
                "note": entry.note,
            }
        )
    return rows


@dataclass(frozen=True)
class Problem:
    """What is wrong with cached weights."""

    name: str
    detail: str


def verify(names: Iterable[str] | None = None) -> list[Problem]:
    """Re-read cached weights (all that are cached, or those named) and tell what is missing or damaged."""
    problems = []
    for name in REGISTRY if names is None else names:
        if name not in REGISTRY:
            raise _unknown(name, REGISTRY)
        if not REGISTRY[name].sources:
            continue
        try:
            if _cached(REGISTRY[name]) is None and names is not None:
                problems.append(Problem(name, f"not in the cache ({weights_cache.tensors_file(name)})"))
        except weights_cache.DamagedWeights as e:
            problems.append(Problem(name, str(e)))
    return problems


def default_candidates(kind: str) -> list[Entry]:
    """What `default` may be: one entry once that is settled, or where something is here, else all in their order."""
    order = [REGISTRY[name] for name in DEFAULTS[kind]]
    before = weights_cache.settled(kind)
    if before in DEFAULTS[kind]:
        at = DEFAULTS[kind].index(before)
        return [next((entry for entry in order[:at] if _placed(entry)), order[at])]
    for held in (lambda entry: weights_cache.is_cached(entry.name), _placed):
        if entry := next((entry for entry in order if held(entry)), None):
            return [entry]
    return order


def _default(kind: str, say: Say, inflate_from: str = "default") -> LoadedWeights:
    candidates = default_candidates(kind)
    faults = []
    for entry in candidates:
        try:
            loaded = _named(entry, say, inflate_from)
        except EnvironmentFault as e:
            if entry is not candidates[-1] and not _offline():
                say(f"{e.cause}; trying the next")
            faults.append(e)
            continue
        if weights_cache.settled(kind) != entry.name:
            _settle(kind, entry.name, say)
        return loaded
    raise none_of_them(kind, faults)


def none_of_them(kind: str, faults: Sequence[EnvironmentFault]) -> EnvironmentFault:
    """What is raised where no default of a kind can be had."""
    return EnvironmentFault(f"no {kind} weights: {'; '.join(e.cause for e in faults)}", fix=faults[-1].fix)


def _settle(kind: str, name: str, say: Say) -> None:
    try:
        weights_cache.settle(kind, name)
    except OSError as e:
        say(f"`default` may mean other {kind} weights next time, as nothing can be kept here: {e}")


def _named(entry: Entry, say: Say, inflate_from: str = "default") -> LoadedWeights:
    if entry.name == INFLATED:
        return _inflated(entry, say, inflate_from)
    try:
        if cached := _cached(entry):
            return cached
    except weights_cache.DamagedWeights as e:
        say(f"cached weights {entry.name} are not used: {e}")
    if placed := _placed(entry):
        file, source = placed
        try:
            check_digest(file, source.digest)
        except SourceFailed as e:
            raise EnvironmentFault(f"{file}: {e}", fix="download it again, or remove it") from e
        return _convert(entry, source, file, say)
    if _offline():
        raise EnvironmentFault(
            f"{entry.name} is not in {weights_cache.weights_folder()}, and AQA_OFFLINE forbids the network",
            fix=_by_hand(entry),
        )
    reasons = []
    for source in entry.sources:
        # The system's temporary folder, as the cache may be read-only; the converted file is what is kept.
        with scratch("aqa-weights-", otherwise=weights_cache.weights_folder()) as folder:
            try:
                return _convert(entry, source, source.fetch(folder, say), say)
            except SourceFailed as e:
                reasons.append(str(e))
    raise EnvironmentFault(f"{entry.name} cannot be fetched: {'; '.join(reasons)}", fix=_by_hand(entry))


def _cached(entry: Entry) -> LoadedWeights | None:
    found = weights_cache.read(entry.name, [source.identity for source in entry.sources])
    if found is None:
        return None
    from safetensors.torch import load

    return LoadedWeights(load(found[0]), found[1])


def _convert(entry: Entry, source: Origin, file: Path, say: Say) -> LoadedWeights:
    from safetensors.torch import load, save

    data = save(pkgutil.resolve_name(entry.converter)(file))
    record = _record(entry.name, entry.kind, str(source), data, file, entry.licence, entry.layout, entry.note)
    try:
        weights_cache.write(entry.name, data, record, source.identity)
    except OSError as e:
        say(f"weights {entry.name} are used but not kept, as {weights_cache.weights_folder()} cannot be written: {e}")
    return LoadedWeights(load(data), record)


def _inflated(entry: Entry, say: Say, inflate_from: str) -> LoadedWeights:
    from safetensors.torch import save

    rgb = resolve(inflate_from, "rgb", lambda _: None)
    state = pkgutil.resolve_name(entry.converter)(rgb.state)
    base = rgb.record
    return LoadedWeights(
        state,
        {
            **base,
            "name": entry.name,
            "kind": "flow",
            "source": f"inflated from {base['name']}: {base['source']}",
            "sha256": hashlib.sha256(save(state)).hexdigest(),
            "note": "flow weights: inflated from rgb",
            "inflated_from": base["source"] if base["note"] == "a file" else base["name"],
        },
    )


def _from_file(name: str, kind: str) -> LoadedWeights:
    from safetensors.torch import save

    path = Path(os.path.expanduser(name))  # pathlib's raises where there is no such user
    if not path.is_file():
        if path.suffix or len(path.parts) > 1:
            raise EnvironmentFault(
                f"{kind} weights file {path} does not exist", fix="check the path, or pass a name of `aqa weights list`"
            )
        raise _unknown(name, ["default", *_names(kind)])
    state, layout = pkgutil.resolve_name(READERS[kind])(path)
    data = save(state)
    return LoadedWeights(state, _record(path.name, kind, str(path.resolve()), data, path, "unknown", layout, "a file"))


def _record(
    name: str, kind: str, source: str, data: bytes, origin: Path, licence: str, layout: str, note: str
) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "source": source,
        "sha256": hashlib.sha256(data).hexdigest(),
        "origin_sha256": file_digest(origin),
        "licence": licence,
        "layout": layout,
        "note": note,
    }


def _placed(entry: Entry) -> tuple[Path, Origin] | None:
    """An original file that somebody put into the cache folder by hand."""
    for source in entry.sources:
        if (file := weights_cache.weights_folder() / source.filename).is_file():
            return file, source
    return None


def _by_hand(entry: Entry) -> str:
    files = " or ".join(f"{source.filename} ({source})" for source in entry.sources)
    return (
        f"put {files} into {weights_cache.weights_folder()}, or run `aqa weights fetch {entry.name}` where the network "
        "allows and copy that folder, or pass a file of yours"
    )


def _offline() -> bool:
    return os.environ.get("AQA_OFFLINE", "").lower() not in ("", "0", "false", "no")


def _names(kind: str) -> list[str]:
    return [entry.name for entry in REGISTRY.values() if entry.kind == kind]


def _unknown(name: str, choices: Iterable[str]) -> UsageError:
    choices = list(choices)
    fix = f"{did_you_mean(name, choices)} choose one of {', '.join(choices)}, or a file".lstrip()
    return UsageError(f"no weights are named {name!r}", fix=fix)
