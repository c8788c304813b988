"""What is missing or wrong in a dataset's folder, beside what its adapter found in the files."""

from __future__ import annotations

from collections import Counter, defaultdict

from aqa_shared.console import counted
from aqa_shared.datasets.published import Finding, Performance, Published
from aqa_shared.manifest_files import few, printable_id


def findings(data: Published) -> list[Finding]:
    """All that is wrong: what the user can mend first, then what is known to be published so."""
    found = [*_twice(data), *_splits(data), *_missing(data), *_lengths(data), *data.findings]
    return sorted(found, key=lambda finding: finding.known)


def _twice(data: Published) -> list[Finding]:
    count = Counter(p.id for p in data.performances)
    return [
        Finding(printable_id(name), f"{n} rows have this id", "keep one of them") for name, n in count.items() if n > 1
    ]


def _splits(data: Published) -> list[Finding]:
    """Ids in two roles or folds, or twice in one, and ids without a row."""
    found = []
    ids = {p.id for p in data.performances}
    for split in data.splits:
        where = f"split {split.name}"
        values = defaultdict(list)
        for name, value in split.rows:
            values[name].append(value)
        for name, given in values.items():
            if len(given) > 1:
                what = f"{printable_id(name)} is in {split.column} {' and '.join(given)}"
                found.append(Finding(where, what, "it can be in one only; aqa-train refuses this split"))
        strange = [name for name in values if name not in ids]
        if strange:
            what = f"{counted(len(strange), 'id')} without a score: {few(strange)}"
            found.append(Finding(where, what, "aqa-train leaves them out"))
    if data.splits:
        first = data.splits[0]
        without = sorted(ids - {name for name, _ in first.rows})
        if without:
            what = f"{counted(len(without), 'scored performance')} not in it: {few(without)}"
            found.append(Finding(f"split {first.name}", what, "aqa-train leaves them out"))
    return found


def _missing(data: Published) -> list[Finding]:
    """A line a missing video; one for all where there is none at all."""
    needed = [p for p in data.performances if p.path is not None]
    absent = [p for p in needed if p.missing]
    if needed and len(absent) == len(needed):
        what = (
            f"none of the videos of {len(needed)} performances is in the folder or below; the first is {needed[0].path}"
        )
        return [Finding("videos", what, "put them there, as files or as folders of pictures")]
    count = Counter(p.path or "" for p in absent)
    return [
        Finding(path, "is missing" + (f", with {n} performances" if n > 1 else ""), "put it anywhere in the folder")
        for path, n in count.items()
    ]


def _lengths(data: Published) -> list[Finding]:
    """Folders of pictures that hold another number than the annotation says, or end before the part does."""
    return [
        Finding(p.id, what, "the pictures or the annotation are of another copy")
        for p in data.performances
        if (what := _wrong_length(p)) is not None
    ]


def _wrong_length(p: Performance) -> str | None:
    if p.pictures is None:
        return None
    if p.end is not None:
        return None if p.end <= p.pictures else f"{p.path} has {p.pictures} pictures, and the part ends at {p.end}"
    if p.frames is None or p.frames == p.pictures:
        return None
    return f"{p.path} has {p.pictures} pictures, and the annotation {p.frames} frames"
