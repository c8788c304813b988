"""A contact sheet of one video: what the detector saw, whom the track took, what the crop shows.

White the crop, green the actor's own box, yellow and orange those of the next best people, grey everybody else that the
detector reports; above each frame its time and the actor's score, below it what the actor's streams see.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from aqa_extract.actor.track import WEAK, Track

if TYPE_CHECKING:
    from PIL.Image import Image

TILE = 176
"""Width of one frame in pixels; the crop below it is as wide as the frame is high."""
COLUMNS = 8
STRIP = 14
OWN = ((60, 230, 90), (240, 220, 60), (250, 150, 40))
OTHER = (150, 150, 150)
CROP = (255, 255, 255)


def draw(
    frames: Sequence[UInt8[np.ndarray, "height width 3"]],
    times: Sequence[float],
    looks: Sequence[int],
    tracks: Sequence[Track],
    boxes: Float[np.ndarray, "looks persons 4"],
    scores: Float[np.ndarray, "looks persons"],
    shown: Sequence[int],
) -> Image:
    """The sheet of the looks `shown`: `frames` and `times` are theirs, `looks` the frame of every look."""
    from PIL import Image, ImageDraw

    height = round(TILE * frames[0].shape[0] / frames[0].shape[1])
    side = min(height, TILE)
    rows = -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * (TILE + 4), rows * (STRIP + height + side + 6)), (30, 30, 30))
    pen = ImageDraw.Draw(sheet)
    best = tracks[0]
    for n, look in enumerate(shown):
        left, top = n % COLUMNS * (TILE + 4), n // COLUMNS * (STRIP + height + side + 6)
        frame = Image.fromarray(frames[n])
        tile = frame.resize((TILE, height), Image.Resampling.BILINEAR)
        marks = ImageDraw.Draw(tile)

        def outline(
            box: np.ndarray, colour: tuple[int, int, int], width: int = 1, marks: ImageDraw.ImageDraw = marks
        ) -> None:
            x1, y1, x2, y2 = (np.clip(box, 0, 1) * np.array([TILE - 1, height - 1] * 2)).tolist()
            marks.rectangle([x1, y1, max(x1, x2), max(y1, y2)], outline=colour, width=width)

        for box, score in zip(boxes[look], scores[look], strict=True):
            if score >= WEAK:
                outline(box, OTHER)
        for track, colour in list(zip(tracks, OWN, strict=False))[::-1]:
            if np.isfinite(track.found[look]).all():
                outline(track.found[look], colour, 2)
        crop = best.boxes[looks[look] - looks[0]]
        outline(crop, CROP)
        sheet.paste(tile, (left, top + STRIP))
        corners = crop * np.array([frame.width, frame.height] * 2)
        cut = frame.transform((side, side), Image.Transform.EXTENT, tuple(corners.tolist()), Image.Resampling.BILINEAR)
        sheet.paste(cut, (left + (TILE - side) // 2, top + STRIP + height))
        seen = np.isfinite(best.found[look]).all()
        score_text = f"{best.scores[looks[look] - looks[0]]:.2f}" if seen else "lost" if best.coverage else "nobody"
        pen.text((left + 2, top + 1), f"{times[n]:.2f} s   {score_text}", fill=(235, 235, 235))
    return sheet
