"""People on single looks → tracklets that overlap → tracks of one person each.

    detections ─ overlap with the prediction ─▶ tracklets ─ motion and colours across gaps ─▶ tracks

A tracklet ends at the first look where no box overlaps its prediction. Whether the next tracklet is the same person
is asked afterwards, when both tracklets are whole: it has to be where the first was going, as large, and alike
in colour; across a change of camera, where places mean nothing, much alike in colour.

Places are in pixels against the background (camera motion removed). Everything is NumPy on a few hundred boxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray

Floats = NDArray[np.float64]

GROWN = 1.5
"""Boxes are compared so many times as large: the body turns, and the prediction is not exact."""
GROWN_FIRST = 2.0
"""The same where a tracklet has one box and hence no velocity yet."""
LEAST_OVERLAP = 0.1
"""Intersection over union of the grown boxes at which a box continues a tracklet."""
LEAST_RATIO = 0.4
"""Of the boxes' longer sides: bodies fold and stretch, but do not become children between two looks."""
LEAST_ALIKE = 0.65
"""Colours of one person on successive looks agree by 0.6 or more on 98 %."""
MEMORY = 5
"""Looks whose colours a tracklet remembers: one box that took in too much background is outvoted."""
UNMIXED = 0.55
"""Mean colours of the looks before and after; less is a change of person within a tracklet."""
ALIKE = 0.77
"""Colours over a gap: of a person's boxes five in six agree by more with the mean of his others, of his neighbours'
one in nine."""
ALIKE_FOLLOWED = 0.8
"""Colours from which a body may also have stayed where it was in the picture, as one does that the camera follows."""
FOLLOWED = 0.5
"""What that is worth beside having gone on as before."""
ALIKE_AFTER_CUT = 0.85
MAX_GAP = 12
"""Looks that motion can bridge,"""
GAP_FOR_EACH = 2
"""and how many for each look of the shorter tracklet: a single box says little about where its person goes."""
CALMED = 0.8
"""What a pair of tracklets loses where one has moved out of its box by the next look and the other stands: who stood
beside the take-off does not go on as the body that just passed him. A single box counts as one that stands."""
LEAST_MERIT = 0.4
"""Colours × way × liveliness above which two tracklets are one person. Less is a guess: what belongs together and is
not joined here is found when the track is filled, with 0.2 there were twice as many looks at somebody else."""
FRAYED = 2
"""Looks at the end of a tracklet that may be a bad box, while the body itself already began the next one."""
REACH = 0.75
"""Body lengths that a prediction may be off, and as much again for every look of the gap up to `MAX_REACH`."""
MAX_REACH = 3.0
JOLT = 0.45
"""Body lengths a look by which nobody's velocity changes at once. In free fall it is an eighth between looks a tenth of
a second apart; a body that fell ten metres and now stands is somebody else's, by 0.6."""
DUPLICATE = 0.8
"""A box that lies so far inside a surer one, or covers it so far, is the same person's."""


@dataclass(frozen=True)
class Detections:
    """Everybody found, one after the other, look by look."""

    look: Int64[np.ndarray, " n"]
    """Rising."""
    boxes: Float[np.ndarray, "n 4"]
    """Pixels in the picture."""
    fixed: Float[np.ndarray, "n 4"]
    """Pixels against the background."""
    scores: Float[np.ndarray, " n"]
    colours: Float[np.ndarray, "n bins"]

    @property
    def centres(self) -> Floats:
        """(n, 2), against the background."""
        return (self.fixed[:, :2] + self.fixed[:, 2:]) / 2

    @property
    def sides(self) -> Floats:
        """(n,), the longer ones."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).max(axis=1)


def iou(a: Floats, b: Floats) -> Floats:
    """Intersection over union, (..., 4) with (..., 4); 0 where neither has an area."""
    shared = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - shared
    return np.asarray(shared / np.maximum(union, 1e-12))


def motion(found: Detections, rows: NDArray[np.int64]) -> Floats:
    """(n - 1,) how far each detection of a track left the box before, against the background: 0 stands, 1 is clear."""
    return 1 - iou(found.fixed[rows[:-1]], found.fixed[rows[1:]])


def distinct(
    boxes: Float[np.ndarray, "persons 4"], scores: Float[np.ndarray, " persons"]
) -> Bool[np.ndarray, " persons"]:
    """Which boxes of one look are people of their own, not parts or surroundings of a surer box."""
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    shared = np.clip(
        np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2]), 0, None
    ).prod(-1)
    covers = shared > DUPLICATE * np.minimum(area[:, None], area[None])
    keep = np.zeros(len(boxes), bool)
    for person in np.argsort(-scores, kind="stable"):
        keep[person] = not (covers[person] & keep).any()
    return keep


def grown(boxes: Floats, factor: Floats | float) -> Floats:
    """Boxes (..., 4) enlarged about their centres."""
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2 * factor
    return np.concatenate([centre - half, centre + half], axis=-1)


def tracklets(found: Detections, positions: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """Rows of `found` that belong together without a gap."""
    done: list[list[int]] = []
    alive: list[list[int]] = []
    bounds = np.searchsorted(found.look, np.arange(len(positions) + 1))
    for look in range(len(positions)):
        here = np.arange(bounds[look], bounds[look + 1])
        taken: set[int] = set()
        continued: list[list[int]] = []
        if alive and len(here):
            agreement = _agreement(found, alive, here, positions)
            # Best pairs first; ties go to the older tracklet and the surer box.
            for flat in np.argsort(-agreement, axis=None, kind="stable"):
                track, box = divmod(int(flat), len(here))
                if agreement[track, box] <= 0:
                    break
                if alive[track] not in continued and int(here[box]) not in taken:
                    taken.add(int(here[box]))
                    continued.append(alive[track])
                    alive[track].append(int(here[box]))
        done += [track for track in alive if track not in continued]
        alive = [track for track in alive if track in continued] + [[int(row)] for row in here if row not in taken]
    whole = [np.array(track, np.int64) for track in sorted(done + alive, key=lambda rows: rows[0])]
    return sorted(
        (part for track in whole for part in _unmixed(found, track, positions)), key=lambda rows: int(rows[0])
    )


def _unmixed(found: Detections, rows: NDArray[np.int64], positions: NDArray[np.integer]) -> list[NDArray[np.int64]]:
    """A tracklet, cut where its colours change for good or it stops dead: there it slid from one person to another."""
    cuts = [at for at in range(2, len(rows) - 1) if _another(found, rows[:at], rows[at:], positions)]
    if not cuts:
        return [rows]
    # Neighbouring cuts are one change; it is where the colours differ most.
    alike = [_alike(found, rows[:at], rows[at:]) for at in cuts]
    at = cuts[int(np.argmin(alike))]
    return [*_unmixed(found, rows[:at], positions), *_unmixed(found, rows[at:], positions)]


def _alike(found: Detections, before: NDArray[np.int64], after: NDArray[np.int64]) -> float:
    return float(mean_colours(found, before[-MEMORY:]) @ mean_colours(found, after[:MEMORY]))


def _another(
    found: Detections, before: NDArray[np.int64], after: NDArray[np.int64], positions: NDArray[np.integer]
) -> bool:
    """Whether two successive parts of a tracklet cannot be one person."""
    return _alike(found, before, after) < UNMIXED or _jolt(found, before, after, positions) > JOLT


def _jolt(
    found: Detections, before: NDArray[np.int64], after: NDArray[np.int64], positions: NDArray[np.integer]
) -> float:
    """Change of velocity in body lengths a look; 0 where one of both has no velocity."""
    if min(len(before), len(after)) < 2:
        return 0.0
    step = float(np.median(np.diff(positions)))
    change = velocity(found, after[:3], positions, last=False, over=2) - velocity(found, before[-3:], positions, over=2)
    side = float(np.sqrt(found.sides[before[-3:]].max() * found.sides[after[:3]].max()))
    return float(np.hypot(*change)) * step / side


def velocity(
    found: Detections, rows: NDArray[np.int64], positions: NDArray[np.integer], last: bool = True, over: int = 1
) -> Floats:
    """Pixels a frame (2,) over the last `over` steps of a tracklet, or the first; 0 for a single box."""
    if len(rows) < 2:
        return np.zeros(2)
    ends = rows[-over - 1 :] if last else rows[: over + 1]
    step = found.centres[ends[-1]] - found.centres[ends[0]]
    elapsed = float(positions[found.look[ends[-1]]] - positions[found.look[ends[0]]])
    return step / elapsed if elapsed > 0 else np.zeros(2)


def _agreement(
    found: Detections, alive: list[list[int]], here: NDArray[np.int64], positions: NDArray[np.integer]
) -> Floats:
    """(tracklets, boxes): how well each box continues each tracklet, 0 where it does not."""
    tails = np.array([track[-1] for track in alive])
    elapsed = positions[found.look[here[0]]] - positions[found.look[tails]]
    shift = np.stack([velocity(found, np.array(track[-2:]), positions) for track in alive]) * elapsed[:, None]
    factor = np.where([len(track) > 1 for track in alive], GROWN, GROWN_FIRST)[:, None, None]
    expected = found.fixed[tails] + np.tile(shift, 2)
    overlap = iou(grown(expected[:, None], factor), grown(found.fixed[here][None], factor))
    known = np.stack([mean_colours(found, np.array(track[-MEMORY:])) for track in alive])
    alike = known @ found.colours[here].T
    still = iou(grown(found.boxes[tails][:, None], factor), grown(found.boxes[here][None], factor))
    overlap = np.maximum(overlap, np.where(alike >= ALIKE_FOLLOWED, FOLLOWED * still, 0.0))
    ratio = found.sides[tails][:, None] / found.sides[here][None]
    ratio = np.minimum(ratio, 1 / ratio)
    possible = (overlap >= LEAST_OVERLAP) & (ratio >= LEAST_RATIO) & (alike >= LEAST_ALIKE)
    return np.where(possible, overlap * ratio * alike * np.sqrt(found.scores[here]), 0.0)


def join(
    found: Detections, parts: list[NDArray[np.int64]], positions: NDArray[np.integer], cuts: Bool[np.ndarray, " looks"]
) -> list[list[NDArray[np.int64]]]:
    """Tracklets that are one person, in the order of time: the best pairs first, each end used once.

    `cuts`: whether the camera changed before a look.
    """
    first = np.array([found.look[part[0]] for part in parts], np.int64)
    last = np.array([found.look[part[-1]] for part in parts], np.int64)
    means = np.stack([mean_colours(found, part) for part in parts]) if parts else np.zeros((0, 1))
    alike = means @ means.T
    counts = np.array([len(part) for part in parts])
    lively = [float(motion(found, part).mean()) if len(part) > 1 else 0.0 for part in parts]
    epoch = np.cumsum(cuts)
    pairs: list[tuple[float, int, int]] = []
    for a in range(len(parts)):
        later = (first > np.maximum(first[a], last[a] - FRAYED)) & (last > last[a])
        changed = epoch[first] != epoch[last[a]]
        known = np.minimum(MAX_GAP, GAP_FOR_EACH * np.minimum(counts[a], counts))
        near = (first - last[a] <= known) & (alike[a] >= ALIKE)
        for b in np.flatnonzero(later & np.where(changed, alike[a] > ALIKE_AFTER_CUT, near)).tolist():
            merit = float(alike[a, b])
            if not changed[b]:
                followed = merit >= ALIKE_FOLLOWED
                seam = _seam(found, parts[a], parts[b])
                merit *= _on_the_way(found, *seam, positions, followed)
                merit *= 1 - CALMED * abs(lively[a] - lively[b])
            if merit > LEAST_MERIT:
                pairs.append((merit, a, b))
    after: dict[int, int] = {}
    before: dict[int, int] = {}
    for _, a, b in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
        if a not in after and b not in before:
            after[a], before[b] = b, a
    tracks = []
    for begin in range(len(parts)):
        if begin in before:
            continue
        chain, at = [parts[begin]], begin
        while at in after:
            at = after[at]
            chain[-1:] = _seam(found, chain[-1], parts[at])
        tracks.append(chain)
    return tracks


def _seam(found: Detections, a: NDArray[np.int64], b: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two tracklets of one person, without the looks on which both are: the surer one has those. One row is left."""
    frayed = int((found.look[a] >= found.look[b[0]]).sum())
    begun = int((found.look[b] <= found.look[a[-1]]).sum())
    if not frayed:
        return a, b
    if found.scores[a[len(a) - frayed :]].sum() <= found.scores[b[:begun]].sum():
        return a[: max(1, len(a) - frayed)], b
    return a, b[min(begun, len(b) - 1) :]


def mean_colours(found: Detections, rows: NDArray[np.int64]) -> Floats:
    """Of a track, of unit length; sure boxes count more."""
    squared = (found.scores[rows, None] * found.colours[rows] ** 2).sum(axis=0)
    return np.sqrt(squared / max(float(squared.sum()), 1e-12))


def _on_the_way(
    found: Detections,
    a: NDArray[np.int64],
    b: NDArray[np.int64],
    positions: NDArray[np.integer],
    followed: bool,
) -> float:
    """1 where `b` begins just where `a` was going and `a` ends just where `b` came from, 0 where one of them is not so.

    Both, since a body that fell does not stand in the same place a moment later: somebody else does. With `followed`,
    staying where it was in the picture will do as well.
    """
    tail, head = a[-1], b[0]
    gap = int(found.look[head] - found.look[tail])
    elapsed = float(positions[found.look[head]] - positions[found.look[tail]])
    side = float(np.sqrt(found.sides[tail] * found.sides[head]))
    ratio = float(found.sides[tail] / found.sides[head])
    if min(ratio, 1 / ratio) < LEAST_RATIO:
        return 0.0
    if _jolt(found, a, b, positions) > JOLT * gap:
        return 0.0
    way = found.centres[head] - found.centres[tail]
    # A single box has no velocity: the other's has to do.
    speeds = [velocity(found, rows, positions, last) for rows, last in ((a, True), (b, False)) if len(rows) > 1]
    reach = side * min(REACH * (1 + gap), MAX_REACH)
    near = 1 - max(float(np.hypot(*(way - elapsed * speed))) for speed in speeds or [np.zeros(2)]) / reach
    if followed:
        shown = (found.boxes[head] - found.boxes[tail]).reshape(2, 2).mean(axis=0)
        near = max(near, FOLLOWED * (1 - float(np.hypot(*shown)) / reach))
    return max(0.0, near)
