"""Painting with distances: shaded capsules and soft spray on a float image, edges smooth without supersampling."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

Image = Float[np.ndarray, "height width 3"]
"""Linear colours 0..1, rows downward."""


def capsule(
    image: Image,
    a: np.ndarray,
    b: np.ndarray,
    radius: tuple[float, float],
    colour: np.ndarray,
    light: np.ndarray,
    seen: Float[np.ndarray, " height"] | None = None,
) -> None:
    """Paint, in place, the capsule from `a` to `b` (column, row; pixels) lit from `light` (x right, y up, z here).

    `seen` is the share of the paint that arrives in every row (water hides what is below it).
    """
    height, width = image.shape[:2]
    reach = max(radius) + 1.0
    left = max(int(min(a[0], b[0]) - reach), 0)
    right = min(int(max(a[0], b[0]) + reach) + 2, width)
    top = max(int(min(a[1], b[1]) - reach), 0)
    bottom = min(int(max(a[1], b[1]) + reach) + 2, height)
    if left >= right or top >= bottom:
        return
    px = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(a[0])
    py = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(a[1])
    dx, dy = np.float32(b[0] - a[0]), np.float32(b[1] - a[1])
    along = np.clip((px * dx + py * dy) / max(float(dx * dx + dy * dy), 1e-6), 0.0, 1.0)
    ox, oy = px - along * dx, py - along * dy
    thick = np.float32(radius[0]) + along * np.float32(radius[1] - radius[0])
    square = (ox * ox + oy * oy) / (thick * thick)
    cover = np.clip(0.5 - (np.sqrt(square) - 1.0) * thick, 0.0, 1.0)
    # The surface of a round limb: its normal leans outward towards the rim.
    facing = np.sqrt(np.clip(1.0 - square, 0.0, 1.0))
    lit = np.clip((ox * light[0] - oy * light[1]) / thick + facing * light[2], 0.0, None)
    shade = 0.42 + 0.66 * lit
    if seen is not None:
        cover = cover * seen[top:bottom, None]
    part = image[top:bottom, left:right]
    part += cover[..., None] * (np.clip(shade[..., None] * colour, 0, 1).astype(np.float32) - part)


def spray(shape: tuple[int, int], at: Float[np.ndarray, "drop 2"], weight: np.ndarray) -> Float[np.ndarray, "h w"]:
    """Drops at (column, row) spread over their four neighbouring pixels: density per pixel."""
    height, width = shape
    column, row = at[:, 0], at[:, 1]
    inside = (column >= 0) & (column < width - 1) & (row >= 0) & (row < height - 1)
    column, row, weight = column[inside], row[inside], weight[inside]
    c, r = column.astype(np.int64), row.astype(np.int64)
    u, v = column - c, row - r
    cells = np.concatenate([r * width + c, r * width + c + 1, (r + 1) * width + c, (r + 1) * width + c + 1])
    shares = np.concatenate([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v]) * np.tile(weight, 4)
    return np.bincount(cells, shares, height * width).reshape(height, width).astype(np.float32)


def crop_scaled(
    texture: UInt8[np.ndarray, "h w 3"], columns: Float[np.ndarray, " width"], rows: Float[np.ndarray, " height"]
) -> Image:
    """The texture at every (row, column), bilinear, its border repeated; separable, so two gathers a direction."""
    rows = np.clip(rows, 0, texture.shape[0] - 1.001)
    columns = np.clip(columns, 0, texture.shape[1] - 1.001)
    r, c = rows.astype(np.int64), columns.astype(np.int64)
    v, u = (rows - r).astype(np.float32)[:, None, None], (columns - c).astype(np.float32)[None, :, None]
    low, high = c.min(), c.max() + 2
    upper, lower = texture[r, low:high], texture[r + 1, low:high]
    band = upper + (lower.astype(np.float32) - upper) * v
    band = band[:, c - low] * (1 - u) + band[:, c - low + 1] * u
    return band * np.float32(1 / 255)
