"""Filming a routine: camera, people, water, splash and lens, one frame after the other.

The picture of a frame is painted back to front: hall, far pool side with its people, water, diver, splash, lens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from aqa_dives import hall as hall_of
from aqa_dives.body import CHANNELS, INDEX, LIMBS, Lengths, kinematics, turn
from aqa_dives.raster import Image, capsule, crop_scaled, spray
from aqa_dives.routine import DT, GRAVITY, Routine

Colours = dict[str, np.ndarray]
"""Colour of each part of the clothing, by `Limb.dress`, and of `hair`."""

SKINS = np.array([[0.95, 0.76, 0.64], [0.87, 0.66, 0.52], [0.76, 0.55, 0.41], [0.58, 0.40, 0.29], [0.42, 0.29, 0.21]])


FOAM = np.array([0.93, 0.97, 1.0], np.float32)


@dataclass(frozen=True)
class Camera:
    """Where the picture is taken, for every frame."""

    centre: Float[np.ndarray, "frame 2"]
    """World point in the middle of the picture, metres."""
    scale: Float[np.ndarray, " frame"]
    """Pixels per metre."""
    yaw: float
    """Radians by which the camera looks along the pool instead of across it."""
    size: tuple[int, int]
    """Width and height in pixels."""

    def pixel(self, frame: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(column, row) of world points."""
        s = self.scale[frame]
        return np.stack(
            [
                (x - self.centre[frame, 0]) * s + (self.size[0] - 1) / 2,
                (self.size[1] - 1) / 2 - (y - self.centre[frame, 1]) * s,
            ],
            axis=-1,
        )


@dataclass(frozen=True)
class Bystander:
    """Somebody at the pool side who has nothing to do with the score."""

    x: float
    y: float
    """Where the feet are, as seen in the diver's plane."""
    speed: float
    """Metres per second along the pool; 0 stands."""
    scale: float
    phase: float
    colours: Colours


def frame_times(routine: Routine, frames: int, fps: float, entry_at: float) -> Float[np.ndarray, " frame"]:
    """Seconds of each frame; the hands touch the water after the share `entry_at` of the video."""
    return routine.entry_time + (np.arange(frames) - round(entry_at * frames)) / fps


def follow(rng: np.random.Generator, routine: Routine, times: np.ndarray, size: tuple[int, int]) -> Camera:
    """A hand-held camera that follows the diver, a bit unsteady, and stops at the water."""
    view = rng.uniform(2.9, 3.5)
    low = view / 2 - rng.uniform(0.65, 0.85)
    target = routine.centre[:, :2].copy()
    target[:, 0] += rng.uniform(-0.25, 0.25)
    target[:, 1] = np.maximum(target[:, 1] + rng.uniform(-0.1, 0.2), low)
    path = gaussian_filter1d(target, rng.uniform(0.05, 0.14) / DT, axis=0)
    clock = routine.times
    for axis in range(2):
        for _ in range(3):
            path[:, axis] += rng.uniform(0.004, 0.03) * np.sin(rng.uniform(2, 12) * clock + rng.uniform(0, 7))
    zoom = 1 + rng.uniform(0.0, 0.06) * np.sin(rng.uniform(0.5, 1.5) * clock + rng.uniform(0, 7))
    centre = np.stack([np.interp(times, clock, path[:, a]) for a in range(2)], -1)
    return Camera(centre, size[1] / view * np.interp(times, clock, zoom), float(rng.uniform(-0.3, 0.3)), size)


def dress(rng: np.random.Generator, swimmer: bool) -> Colours:
    """Skin, hair and clothes of one person."""
    skin = np.clip(SKINS[rng.integers(len(SKINS))] + rng.uniform(-0.04, 0.04, 3), 0, 1)
    hair = np.array([0.16, 0.11, 0.08]) * rng.uniform(0.5, 3.5)
    cloth, second = rng.uniform(0.05, 0.95, 3), rng.uniform(0.05, 0.6, 3)
    if swimmer:
        cloth = cloth * np.array([1, 0.6, 0.6]) if rng.uniform() < 0.5 else cloth * np.array([0.4, 0.4, 0.8])
        suit = rng.uniform() < 0.5
        parts = {"pelvis": cloth, "torso": cloth if suit else skin, "thigh": skin, "shank": skin, "arm": skin}
    else:
        shorts = rng.uniform() < 0.4
        parts = {"pelvis": second, "torso": cloth, "thigh": second, "shank": skin if shorts else second,
                 "arm": skin if rng.uniform() < 0.5 else cloth}  # fmt: skip
    return {k: np.asarray(v, np.float32) for k, v in (parts | {"skin": skin, "hair": hair}).items()}


def bystanders(rng: np.random.Generator, routine: Routine) -> list[Bystander]:
    """People at the far side of the pool, and others who wait on the tower."""
    people = []
    for _ in range(int(rng.integers(2, 8))):
        walks = rng.uniform() < 0.5
        speed = float(rng.uniform(0.5, 1.3) * rng.choice([-1, 1])) if walks else 0.0
        people.append(Bystander(float(rng.uniform(-4, 7)), 0.72, speed, float(rng.uniform(0.72, 0.9)),
                                float(rng.uniform(0, 7)), dress(rng, rng.uniform() < 0.4)))  # fmt: skip
    if rng.uniform() < 0.6:
        people.append(Bystander(float(rng.uniform(-4.2, -2.6)), routine.platform, 0.0, 1.0,
                                float(rng.uniform(0, 7)), dress(rng, True)))  # fmt: skip
    return people


def paint_person(
    image: Image,
    points: Float[np.ndarray, "point 2"],
    depth: Float[np.ndarray, " point"],
    scale: float,
    colours: Colours,
    light: np.ndarray,
    seen: np.ndarray | None = None,
) -> None:
    """A body from its points in pixels; limbs far from the camera first and a little darker."""
    middle = [(depth[INDEX[limb.start]] + depth[INDEX[limb.end]]) / 2 for limb in LIMBS]
    for i in np.argsort(middle, kind="stable"):
        limb = LIMBS[i]
        colour = colours[limb.dress] * np.float32(np.clip(1.0 + 1.1 * middle[i], 0.72, 1.06))
        a, b = points[INDEX[limb.start]], points[INDEX[limb.end]]
        radius = (limb.radius[0] * scale, limb.radius[1] * scale)
        if limb.start == "neck":
            # Neck, hair behind, face before.
            head, face = points[INDEX["head"]], points[INDEX["face"]]
            capsule(image, a, head, (0.055 * scale, 0.06 * scale), colour, light, seen)
            back = head - 0.5 * (face - head)
            capsule(image, back, back, (0.118 * scale,) * 2, colours["hair"], light, seen)
            capsule(image, face, face, (0.092 * scale,) * 2, colour, light, seen)
            continue
        if limb.start == "waist":
            # Shoulders as wide as they are seen.
            left, right = points[INDEX["shoulder_l"]], points[INDEX["shoulder_r"]]
            capsule(image, left, right, (0.07 * scale,) * 2, colour, light, seen)
        if limb.start == "pelvis":
            left, right = points[INDEX["hip_l"]], points[INDEX["hip_r"]]
            capsule(image, left, right, (0.10 * scale,) * 2, colour, light, seen)
        capsule(image, a, b, radius, colour, light, seen)


@dataclass(frozen=True)
class Splash:
    """Drops thrown up where the body pierced the water."""

    born: Float[np.ndarray, " drop"]
    start: Float[np.ndarray, " drop"]
    """World x of birth."""
    speed: Float[np.ndarray, "drop 2"]
    weight: Float[np.ndarray, " drop"]


def throw(rng: np.random.Generator, routine: Routine) -> Splash:
    """As many drops, as high and as wide, as the measured splash says, from the limbs' own holes."""
    size = routine.measured.splash
    count = int(90 + 1500 * size)
    mass = np.array([limb.mass for limb in LIMBS])
    limb = rng.choice(len(LIMBS), count, p=mass / mass.sum())
    x, _, when, _, _ = routine.hits[limb].T
    up = np.sqrt(2 * GRAVITY * (0.10 + 1.7 * size)) * rng.uniform(0.25, 1.0, count) ** 0.7
    out = rng.normal(0.0, 0.35 + 1.3 * size, count)
    return Splash(
        born=when + rng.uniform(0.0, 0.16, count),
        start=x + rng.normal(0, 0.06, count),
        speed=np.stack([out, up], -1),
        weight=rng.uniform(0.4, 1.6, count),
    )


def paint_splash(image: Image, splash: Splash, camera: Camera, frame: int, time: float) -> None:
    """The drops that are in the air, and the foam they leave."""
    age = time - splash.born
    alive = age > 0
    if not alive.any():
        return
    age, start = age[alive], splash.start[alive]
    x = start + splash.speed[alive, 0] * age
    y = splash.speed[alive, 1] * age - GRAVITY * age**2 / 2
    fallen = y < 0
    landing = 2 * splash.speed[alive, 1] / GRAVITY
    x = np.where(fallen, start + splash.speed[alive, 0] * landing, x)
    # Foam lies on the surface, seen slightly from above, and dissolves.
    y = np.where(fallen, 0.16 * np.sin(np.arange(len(x)) * 2.4), y)
    fade = np.where(fallen, 0.6 * np.exp(-(age - landing) / 0.9), 1.0)
    scale = camera.scale[frame]
    density = spray(image.shape[:2], camera.pixel(frame, x, y), splash.weight[alive] * fade)
    # Weight per square metre, so that the picture's size does not matter.
    density = gaussian_filter(density, 0.035 * scale) * (scale / 28.0) ** 2
    cover = (1 - np.exp(-1.7 * density))[..., None]
    image += cover * (FOAM - image)


@dataclass(frozen=True)
class Lens:
    """What light, sensor and mirror make of the picture."""

    gain: Float[np.ndarray, " 3"]
    gamma: float
    noise: float
    vignette: float
    mirror: bool
    light: Float[np.ndarray, " 3"]


def choose_lens(rng: np.random.Generator) -> Lens:
    """Exposure, white balance, contrast, grain, direction of the light, left-right."""
    light = np.array([rng.uniform(-0.7, 0.7), rng.uniform(0.4, 0.9), rng.uniform(0.4, 0.9)])
    return Lens(
        gain=rng.uniform(0.85, 1.15) * (1 + rng.uniform(-0.06, 0.06, 3)),
        gamma=float(rng.uniform(0.85, 1.15)),
        noise=float(rng.uniform(0.004, 0.018)),
        vignette=float(rng.uniform(0.0, 0.25)),
        mirror=bool(rng.uniform() < 0.5),
        light=light / np.linalg.norm(light),
    )


@dataclass(frozen=True)
class Shot:
    """Everything that decides a video's pixels, except for the grain."""

    camera: Camera
    hall: hall_of.Hall
    colours: Colours
    people: list[Bystander]
    splash: Splash
    lens: Lens
    times: Float[np.ndarray, " frame"]
    """Seconds from take-off."""
    bodies: Float[np.ndarray, "frame point 3"]
    """POINTS of the diver in the world."""
    middles: Float[np.ndarray, "frame 3"]
    """The diver's centre of mass."""

    def diver(self, frame: int) -> tuple[Float[np.ndarray, "point 2"], Float[np.ndarray, " point"]]:
        """POINTS as the lens sees them, before it mirrors: pixels (column, row), and depths in metres."""
        offset, yaw = self.bodies[frame] - self.middles[frame], self.camera.yaw
        across = offset[:, 0] * np.cos(yaw) + offset[:, 2] * np.sin(yaw)
        depth = offset[:, 2] * np.cos(yaw) - offset[:, 0] * np.sin(yaw)
        return self.camera.pixel(frame, self.middles[frame, 0] + across, self.bodies[frame, :, 1]), depth

    def joints(self, frame: int) -> Float[np.ndarray, "point 2"]:
        """POINTS in the picture as it is filmed: pixels (column, row), pixel centres at whole numbers."""
        points, _ = self.diver(frame)
        return self.shown(points)

    def shown(self, points: Float[np.ndarray, "*shape 2"]) -> Float[np.ndarray, "*shape 2"]:
        """Pixels (column, row) before the mirror → after it."""
        return np.stack([self.camera.size[0] - 1 - points[..., 0], points[..., 1]], -1) if self.lens.mirror else points


def stage(routine: Routine, rng: np.random.Generator, frames: int, fps: float, size: tuple[int, int]) -> Shot:
    """Draw camera, hall, people, water and lens of one video; the grain is drawn by `film`, from the same `rng`."""
    times = frame_times(routine, frames, fps, float(rng.uniform(0.72, 0.77)))
    camera = follow(rng, routine, times, size)
    hall = hall_of.build(rng, routine.platform, scale=float(camera.scale.mean()))
    colours, people = dress(rng, swimmer=True), bystanders(rng, routine)
    splash, lens = throw(rng, routine), choose_lens(rng)
    flat = np.array(
        [np.interp(times, routine.times, routine.points[:, p, a]) for p in range(len(INDEX)) for a in range(3)]
    )
    bodies = flat.reshape(len(INDEX), 3, frames).transpose(2, 0, 1)
    middles = np.stack([np.interp(times, routine.times, routine.centre[:, a]) for a in range(3)], -1)
    return Shot(camera, hall, colours, people, splash, lens, times, bodies, middles)


def film(shot: Shot, rng: np.random.Generator) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Every frame of the video, RGB."""
    camera, hall, lens = shot.camera, shot.hall, shot.lens
    width, height = camera.size
    row, column = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1) - 0.5
    corner = (lens.gain * (1 - lens.vignette * 2 * (row**2 + column**2))[..., None]).astype(np.float32)
    for k, time in enumerate(shot.times.tolist()):
        s = camera.scale[k]
        x = camera.centre[k, 0] + (np.arange(width) - (width - 1) / 2) / s
        y = camera.centre[k, 1] - (np.arange(height) - (height - 1) / 2) / s
        image = crop_scaled(hall.texture, (x - hall.left) * hall.scale, (hall.top - y) * hall.scale)
        for person in shot.people:
            _paint_bystander(image, person, camera, k, time, lens)
        wet = y < hall_of.FAR_EDGE
        if wet.any():
            image[wet] = hall_of.water_colour(hall, time, x, y[wet])
        seen = np.where(y >= 0, 1.0, 0.62 * np.exp(np.minimum(y, 0) / 0.55)).astype(np.float32)
        points, depth = shot.diver(k)
        paint_person(image, points, depth, s, shot.colours, lens.light, seen)
        paint_splash(image, shot.splash, camera, k, time)
        image = np.clip(image * corner, 0, 1) ** np.float32(lens.gamma)
        image += lens.noise * rng.standard_normal((height, width, 1), np.float32)
        frame = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
        yield np.ascontiguousarray(frame[:, ::-1]) if lens.mirror else frame


def _paint_bystander(image: Image, person: Bystander, camera: Camera, frame: int, time: float, lens: Lens) -> None:
    x = person.x + person.speed * time
    left, right = camera.pixel(frame, np.array([x - 1.0, x + 1.0]), np.zeros(2))[:, 0]
    feet = camera.pixel(frame, np.array(x), np.array(person.y))[1]
    if right < 0 or left > camera.size[0] or feet < 0 or feet - 2.2 * camera.scale[frame] > camera.size[1]:
        return
    pose = np.zeros((1, len(CHANNELS)))
    walk = 0.45 * np.sin(2 * np.pi * 0.9 * time + person.phase) if person.speed else 0.0
    for side, sign in (("l", 1), ("r", -1)):
        pose[0, CHANNELS.index(f"hip_{side}")] = sign * walk
        pose[0, CHANNELS.index(f"knee_{side}")] = max(0.0, -0.9 * sign * walk)
        pose[0, CHANNELS.index(f"shoulder_{side}")] = -sign * walk + 0.1
    pose[0, CHANNELS.index("elbow")] = 0.3
    points = kinematics(pose, Lengths(scale=person.scale))
    heading = np.array([0.0 if person.speed else person.phase])
    points = turn(points, np.zeros(1), heading, -1 if person.speed < 0 else 1)[0]
    points[:, 1] += person.y - points[:, 1].min()
    pixels = camera.pixel(frame, x + points[:, 0], points[:, 1])
    paint_person(image, pixels, points[:, 2], camera.scale[frame] * person.scale, person.colours, lens.light)
