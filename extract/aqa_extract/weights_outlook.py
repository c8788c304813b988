"""Where weights would come from, without fetching or writing anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aqa_extract import weights, weights_cache
from aqa_extract.weights_fetch import SourceFailed
from aqa_extract.weights_registry import INFLATED, REGISTRY, Entry
from aqa_shared.errors import EnvironmentFault


@dataclass(frozen=True)
class Outlook:
    """What `weights.resolve` would do."""

    name: str
    source: str
    """A URL, a package, a file, or `the cache`."""
    bytes: int | None
    """Of what is here or is to be fetched, where it is known."""
    first: Literal["", "to be fetched ", "to be converted "] = ""
    """What a run does before it can load them."""

    @property
    def ready(self) -> bool:
        """They can be loaded as they are."""
        return not self.first

    def __str__(self) -> str:
        size = "" if self.bytes is None else f", {self.bytes / 1e6:.0f} MB"
        return f"{self.name}, {self.first}from {self.source}{size}"


def outlook(name_or_path: str, kind: str, inflate_from: str = "default") -> Outlook:
    """Where `weights.resolve` would find these weights. Raises what it would raise, as far as can be known."""
    if name_or_path == "default":
        return _default(kind, inflate_from)
    if name_or_path in REGISTRY and REGISTRY[name_or_path].kind == kind:
        return _named(REGISTRY[name_or_path], inflate_from)
    # A file, which is read whole to see that it is one of weights; or a name that is none, which raises.
    loaded = weights.resolve(name_or_path, kind, lambda _: None)
    return Outlook(loaded.record["name"], "a file", Path(loaded.record["source"]).stat().st_size)


def _default(kind: str, inflate_from: str) -> Outlook:
    faults = []
    for entry in weights.default_candidates(kind):
        try:
            return _named(entry, inflate_from)
        except EnvironmentFault as e:
            faults.append(e)
    raise weights.none_of_them(kind, faults)


def _named(entry: Entry, inflate_from: str) -> Outlook:
    if entry.name == INFLATED:
        base = outlook(inflate_from, "rgb")
        return Outlook(entry.name, f"{base.name} (never trained on flow)", None, base.first)
    try:
        if weights._cached(entry) is not None:
            return Outlook(entry.name, "the cache", weights_cache.tensors_file(entry.name).stat().st_size)
    except weights_cache.DamagedWeights:
        pass  # a run says so, and fetches them again
    if placed := weights._placed(entry):
        return Outlook(entry.name, str(placed[0]), placed[0].stat().st_size, "to be converted ")
    if weights._offline():
        weights._named(entry, lambda _: None)  # raises, before it would fetch anything
    reasons = []
    for source in entry.sources:
        try:
            return Outlook(entry.name, str(source), source.ask(), "to be fetched ")
        except SourceFailed as e:
            reasons.append(str(e))
    raise EnvironmentFault(f"{entry.name} cannot be fetched: {'; '.join(reasons)}", fix=weights._by_hand(entry))
