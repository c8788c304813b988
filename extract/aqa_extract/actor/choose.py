"""Who is the actor: every track gets one number for the whole video, and the largest wins.

    score = Σ over its looks of  detection score × √(side / frame's short side) × central × (STILL + motion)

`central` is 1 in the middle of the frame and ½ in its corners. `motion` is what the body's boxes on successive looks
do not have in common (1 - intersection over union), camera motion removed, less what a detector's trembling makes of
someone who stands, and at most `MOST`: who jumps on the spot throughout moves more than who runs through.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from aqa_extract.actor.link import Detections, iou, motion
from aqa_shared.records import ActorSettings

STILL = 0.05
"""What a look counts at which the actor stands still: among people who all stand, the surest, largest and longest."""
TREMBLING = 0.15
MOST = 0.6
SURE_LOOKS = 2
"""Detections of at least `min_score` that make a track one of a person."""
WHOLE = 0.9
"""Of the frame's area, from which a box says nothing of where somebody is. The detector frames any fine texture so,
with up to 0.48, and nothing else in noise and test patterns with more than 0.26; of people, it seldom does."""
SAME = 0.5
"""Overlap at which two boxes are of one person; a track that has half of its looks so is not another actor."""


def ranked(
    tracks: Sequence[NDArray[np.int64]],
    found: Detections,
    size: tuple[int, int],
    looks: int,
    settings: ActorSettings,
) -> list[NDArray[np.int64]]:
    """The tracks (rows of `found`) that are people, best first, at most `settings.actors` of them.

    A track must have `SURE_LOOKS` detections of `min_score` (one where there is one look) that are not of the `WHOLE`
    frame, and be found on `min_coverage` of the looks.
    """
    area = (found.boxes[:, 2:] - found.boxes[:, :2]).prod(-1)
    sure = (found.scores >= settings.min_score) & (area < WHOLE * size[0] * size[1])
    people = [
        rows
        for rows in tracks
        if sure[rows].sum() >= min(SURE_LOOKS, looks) and len(rows) >= settings.min_coverage * looks
    ]
    merits = [_merit(rows, found, size, settings.select) for rows in people]
    best: list[NDArray[np.int64]] = []
    for i in sorted(range(len(people)), key=lambda i: (-merits[i], people[i][0])):
        if len(best) == settings.actors:
            break
        if not any(_same(people[i], other, found) for other in best):
            best.append(people[i])
    return best


def _merit(rows: NDArray[np.int64], found: Detections, size: tuple[int, int], select: str) -> float:
    height, width = size
    sides = np.sqrt(found.sides[rows] / min(size))
    middle = np.array([width, height]) / 2
    centres = (found.boxes[rows, :2] + found.boxes[rows, 2:]) / 2
    central = 1 - np.hypot(*(centres - middle).T) / np.hypot(*middle) / 2
    scores = found.scores[rows]
    if select == "longest":
        return float(scores.sum())
    if select == "largest":
        return float((scores * sides**2).sum() / scores.sum())
    if select == "central":
        return float((scores * central).sum() / scores.sum())
    return float((scores * sides * central * (STILL + _motion(rows, found))).sum())


def _motion(rows: NDArray[np.int64], found: Detections) -> NDArray[np.float64]:
    """(n,) of each detection since the one before; the first has none."""
    moved = np.zeros(len(rows))
    moved[1:] = np.clip(motion(found, rows) - TREMBLING, 0, MOST)
    return moved


def _same(rows: NDArray[np.int64], other: NDArray[np.int64], found: Detections) -> bool:
    shared, mine, theirs = np.intersect1d(found.look[rows], found.look[other], return_indices=True)
    close = iou(found.boxes[rows[mine]], found.boxes[other[theirs]]) > SAME
    return bool(len(shared)) and int(close.sum()) * 2 >= min(len(rows), len(other))
