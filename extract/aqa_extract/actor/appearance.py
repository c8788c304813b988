"""What people look like: the colours of each box, as one histogram.

Only the middle of a box is counted, an ellipse that a body fills and the background seldom does. A body that turns
over keeps its colours, which is why nothing here knows where in the box a colour is.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

LEVELS = 6
"""Of each of red, green and blue."""
SAMPLES = 16
"""A box is sampled on a grid of so many rows and columns."""
INNER = 0.8
"""Axes of the ellipse over those of the box."""


def colours(
    frames: UInt8[Tensor, "looks 3 height width"], look: np.ndarray, boxes: Float[np.ndarray, "boxes 4"]
) -> Float[np.ndarray, "boxes 216"]:
    """Square roots of each box's histogram, of unit length: `a @ b` is the Bhattacharyya coefficient, 0..1.

    `look` (boxes,) is the row of `frames` each box (x1, y1, x2, y2 in 0..1) is in. Nearest pixels are counted, so
    that every device finds the same.
    """
    steps = (np.arange(SAMPLES) + 0.5) / SAMPLES
    ellipse = np.hypot(steps[:, None] * 2 - 1, steps[None] * 2 - 1) <= INNER
    y, x = (steps[axis] for axis in np.nonzero(ellipse))
    height, width = frames.shape[-2:]
    low, high = boxes[:, None, :2], boxes[:, None, 2:]
    columns = np.clip(np.floor((low[..., 0] + (high - low)[..., 0] * x) * width), 0, width - 1).astype(np.int64)
    rows = np.clip(np.floor((low[..., 1] + (high - low)[..., 1] * y) * height), 0, height - 1).astype(np.int64)
    device = frames.device
    at = (torch.from_numpy(index).to(device) for index in (look[:, None].astype(np.int64), rows, columns))
    frame, row, column = at
    level = frames[frame, :, row, column].cpu().numpy().astype(np.int64) * LEVELS // 256
    code = (level[..., 0] * LEVELS + level[..., 1]) * LEVELS + level[..., 2]
    bins = LEVELS**3
    flat = (code + np.arange(len(boxes))[:, None] * bins).ravel()
    return np.sqrt(np.bincount(flat, minlength=len(boxes) * bins).reshape(-1, bins) / len(x))
