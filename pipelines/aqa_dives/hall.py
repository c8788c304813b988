"""The pool hall behind the dive: a still picture in world coordinates that the camera moves over, and the water.

What is here must not matter to the score: walls, windows, banners, stands, tower and colours are drawn at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter

FAR_EDGE = 0.55
"""World height at which the pool's far edge appears, metres: the camera looks slightly down on the water."""
DECK = 0.95
"""World height at which the far deck meets the wall."""


class Painter(Protocol):
    """Paints a rectangle given in world coordinates."""

    def __call__(
        self, x0: float, x1: float, y0: float, y1: float, colour: np.ndarray, strength: float = 1.0
    ) -> None: ...


@dataclass(frozen=True)
class Hall:
    """A backdrop and the numbers that place it."""

    texture: UInt8[np.ndarray, "h w 3"]
    scale: float
    """Texture pixels per metre."""
    left: float
    """World x of column 0."""
    top: float
    """World y of row 0."""
    water: Float[np.ndarray, " 3"]
    rope: Float[np.ndarray, " 3"]
    waves: Float[np.ndarray, "wave 4"]
    """Frequency along x, across, speed, phase."""


def _hue(rng: np.random.Generator, low: float, high: float, colourful: float) -> np.ndarray:
    """A random colour between two brightnesses."""
    grey = rng.uniform(low, high)
    return np.clip(grey + colourful * rng.uniform(-1, 1, 3), 0.02, 0.98).astype(np.float32)


def build(rng: np.random.Generator, platform: float, scale: float) -> Hall:
    """Draw one hall for a tower of this height (metres) at `scale` texture pixels per metre."""
    left, right, bottom, top = -8.0, 9.0, 0.0, platform + 6.0
    width, height = round((right - left) * scale), round((top - bottom) * scale)
    x = left + (np.arange(width) + 0.5) / scale
    y = top - (np.arange(height) + 0.5) / scale
    image = np.empty((height, width, 3), np.float32)

    def fill(x0: float, x1: float, y0: float, y1: float, colour: np.ndarray, strength: float = 1.0) -> None:
        rows, columns = (y >= y0) & (y < y1), (x >= x0) & (x < x1)
        if rows.any() and columns.any():
            r0, r1 = np.flatnonzero(rows)[[0, -1]]
            c0, c1 = np.flatnonzero(columns)[[0, -1]]
            part = image[r0 : r1 + 1, c0 : c1 + 1]
            part += strength * (colour - part)

    wall = _hue(rng, 0.25, 0.62, 0.055)
    image[:] = wall * (0.75 + 0.35 * (y / top))[:, None, None]
    _panels(rng, fill, wall, left, right, top)
    _windows(rng, fill, left, right, platform)
    if rng.uniform() < 0.65:
        _stands(rng, fill, image, x, y, scale)
    _banners(rng, fill, left, right)
    _tower(rng, fill, left, platform)
    fill(left, right, bottom, DECK, _hue(rng, 0.55, 0.8, 0.06))
    fill(left, right, DECK - 0.06, DECK, _hue(rng, 0.2, 0.4, 0.05))
    fill(left, right, FAR_EDGE, FAR_EDGE + 0.07, np.array([0.85, 0.88, 0.9], np.float32))
    # Plaster, dust and shadow: flow needs something to hold on to.
    rough = rng.standard_normal((height, width), np.float32)
    blotches = gaussian_filter(rough, 0.12 * scale)
    image *= 1 + (0.03 * blotches / blotches.std() + 0.03 * rough)[..., None]
    water = np.array([0.06, 0.42, 0.58], np.float32) + rng.uniform(-0.06, 0.08, 3).astype(np.float32)
    waves = np.stack(
        [rng.uniform(0.6, 4.0, 7) * rng.choice([-1, 1], 7), rng.uniform(4, 16, 7), rng.uniform(0.8, 3.2, 7),
         rng.uniform(0, 7, 7)], 1,
    )  # fmt: skip
    texture = (np.clip(image, 0, 1) * 255).astype(np.uint8)
    return Hall(texture, scale, left, top, water, _hue(rng, 0.5, 0.6, 0.4), waves)


def _panels(rng: np.random.Generator, fill: Painter, wall: np.ndarray, left: float, right: float, top: float) -> None:
    """Joints of the wall's panels, and a strip of another colour."""
    step = rng.uniform(0.9, 2.2)
    for x in np.arange(left + rng.uniform(0, step), right, step):
        fill(x, x + 0.05, 0, top, wall * 0.8)
    for y in np.arange(rng.uniform(1, 2), top, step * rng.uniform(0.6, 1.4)):
        fill(left, right, y, y + 0.05, wall * 0.82)
    y = rng.uniform(1.2, 4.0)
    fill(left, right, y, y + rng.uniform(0.2, 0.9), _hue(rng, 0.3, 0.6, 0.14), 0.8)


def _windows(rng: np.random.Generator, fill: Painter, left: float, right: float, platform: float) -> None:
    """A row or two of windows, brighter than the wall."""
    glass = _hue(rng, 0.65, 0.9, 0.08)
    for _ in range(rng.integers(1, 3)):
        y, tall = rng.uniform(3.0, platform + 2.0), rng.uniform(0.8, 2.2)
        wide, gap = rng.uniform(0.7, 2.0), rng.uniform(0.3, 1.6)
        for x in np.arange(left + rng.uniform(0, 2), right, wide + gap):
            fill(x - 0.07, x + wide + 0.07, y - 0.07, y + tall + 0.07, glass * 0.35)
            fill(x, x + wide, y, y + tall, glass)
            fill(x + wide / 2 - 0.03, x + wide / 2 + 0.03, y, y + tall, glass * 0.5)


def _stands(
    rng: np.random.Generator, fill: Painter, image: np.ndarray, x: np.ndarray, y: np.ndarray, scale: float
) -> None:
    """Rows of spectators, too small to have limbs."""
    low = rng.uniform(1.6, 2.4)
    rows = int(rng.integers(2, 5))
    seats = _hue(rng, 0.2, 0.5, 0.08)
    fill(x[0], x[-1], low - 0.2, low + rows * 0.55, seats)
    for row in range(rows):
        for seat in np.arange(x[0], x[-1], 0.52):
            if rng.uniform() < 0.62:
                at, base = seat + rng.uniform(-0.06, 0.06), low + row * 0.55
                fill(at, at + 0.34, base, base + 0.34, _hue(rng, 0.2, 0.7, 0.18))
                fill(at + 0.09, at + 0.26, base + 0.32, base + 0.52, _hue(rng, 0.35, 0.65, 0.1) * [1, 0.8, 0.68])
        fill(x[0], x[-1], low + row * 0.55 - 0.06, low + row * 0.55, seats * 0.6)


def _banners(rng: np.random.Generator, fill: Painter, left: float, right: float) -> None:
    """Advertisements: blocks of colour with bars for letters."""
    x = left + rng.uniform(0, 2)
    base = rng.uniform(1.0, 1.15)
    while x < right:
        wide = rng.uniform(1.2, 3.0)
        back, ink = _hue(rng, 0.3, 0.7, 0.28), _hue(rng, 0.1, 0.9, 0.2)
        fill(x, x + wide, base, base + 0.55, back)
        letter = x + 0.15
        while letter < x + wide - 0.3:
            size = rng.uniform(0.08, 0.26)
            fill(letter, letter + size, base + 0.13, base + rng.uniform(0.3, 0.45), ink)
            letter += size + rng.uniform(0.04, 0.12)
        x += wide + rng.uniform(0.0, 1.5)


def _tower(rng: np.random.Generator, fill: Painter, left: float, platform: float) -> None:
    """The tower: pillars, slabs with rails, the diver's slab ending at x = 0."""
    concrete = _hue(rng, 0.45, 0.72, 0.04)
    for x in (-6.4, -3.3):
        fill(x, x + 0.55, 0.0, platform, concrete * 0.75)
        fill(x, x + 0.14, 0.0, platform, concrete * 0.6)
    levels = [(platform, 0.0)] + [(h, -rng.uniform(0.6, 1.6)) for h in (3.0, 5.0, 7.5) if h < platform - 1.5]
    rail = _hue(rng, 0.6, 0.85, 0.1)
    for level, end in levels:
        fill(left, end, level - 0.30, level, concrete)
        fill(left, end, level - 0.30, level - 0.22, concrete * 0.6)
        fill(left, end, level - 0.05, level, concrete * 1.15)
        for x in np.arange(left, end - 1.0, 1.1):
            fill(x, x + 0.05, level, level + 1.0, rail * 0.9)
        for h in (0.5, 0.98):
            fill(left, end - 0.9, level + h, level + h + 0.05, rail)


def water_colour(hall: Hall, time: float, x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, "rows columns 3"]:
    """The moving surface seen from the side and slightly above, for world columns `x` and rows `y` < FAR_EDGE."""
    nearness = 1.0 / (0.45 + 0.5 * (FAR_EDGE - y))[:, None]
    surface = np.zeros((len(y), len(x)), np.float32)
    for along, across, speed, phase in hall.waves:
        surface += np.sin(along * x[None, :] * (0.6 + nearness) + across * nearness + speed * time + phase).astype(
            np.float32
        )
    glint = np.clip(surface - 2.0, 0, None)
    fade = (0.82 + 0.30 * np.clip((FAR_EDGE - y) / 2.0, 0, 1)).astype(np.float32)[:, None]
    colour = hall.water * (fade + 0.045 * surface)[..., None] + 0.13 * glint[..., None]
    for row, thick in ((0.22, 0.05), (-0.55, 0.09)):
        on = np.abs(y + 0.01 * np.sin(2 * time) - row) < thick / 2
        beads = (np.floor(x * 2.5) % 2)[None, :, None]
        colour[on] = hall.rope * beads + np.float32(0.85) * (1 - beads)
    return np.clip(colour, 0, 1).astype(np.float32)
