"""A contact sheet: one row a video, time to the right, its dive and score above."""

from __future__ import annotations

from pathlib import Path

from aqa_dives.dataset import Look, frames_of, perform
from aqa_shared.errors import StoreError, UsageError

MOMENTS = (0.05, 0.24, 0.38, 0.52, 0.64, 0.71, 0.90)
"""Shares of the video: stand, press, two of the flight, opening, entry, splash."""
TILE = 136
"""Width of one frame in pixels."""


def write_sheet(look: Look, videos: int, path: Path) -> None:
    """Write a PNG of MOMENTS of each of the first `videos` videos; few colours keep it small."""
    from PIL import Image, ImageDraw

    if path.suffix.lower() != ".png":
        raise UsageError(f"--sheet {path}", fix="name a .png file")
    strip, height = 15, round(TILE * look.height / look.width)
    sheet = Image.new("RGB", (TILE * len(MOMENTS), (strip + height) * videos), (250, 250, 250))
    draw = ImageDraw.Draw(sheet)
    for row in range(videos):
        frames = [Image.fromarray(frame) for frame in frames_of(look, row)]
        _, label = perform(look, row)
        fall = f"entry {label.measured.entry_angle:.0f}° off, splash {label.measured.splash:.2f}"
        top = row * (strip + height)
        draw.text((4, top + 2), f"{label.category}: {label.score:.1f}   ({fall})", fill=(20, 20, 20))
        for column, moment in enumerate(MOMENTS):
            frame = frames[int(moment * len(frames))].resize((TILE, height), Image.Resampling.BOX)
            sheet.paste(frame, (column * TILE, top + strip))
    try:
        sheet.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(
            path, optimize=True
        )
    except OSError as e:
        raise StoreError(f"cannot write {path}: {e.strerror or e}", fix="name another --sheet") from e
