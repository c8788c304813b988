"""A contact sheet: one row a video, time to the right, the score below it in labels.csv only."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from aqa_pipelines.dataset import Look, frames_of
from aqa_shared.errors import StoreError, UsageError


def write_sheet(look: Look, videos: int, path: Path, columns: int = 7) -> None:
    """Write a PNG of `columns` moments of each of the first `videos` videos; 256 colours keep it small."""
    from PIL import Image

    if path.suffix.lower() != ".png":
        raise UsageError(f"--sheet {path}", fix="name a .png file")
    moments = np.linspace(0.04, 0.93, columns)
    rows = []
    for index in range(videos):
        frames = list(frames_of(look, index))
        rows.append(np.concatenate([frames[int(m * len(frames))] for m in moments], axis=1))
    try:
        Image.fromarray(np.concatenate(rows)).quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)
    except OSError as e:
        raise StoreError(f"cannot write {path}: {e.strerror or e}", fix="name another --sheet") from e
