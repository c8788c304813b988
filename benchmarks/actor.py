"""How much of the performer the actor's crop shows: rendered dives, of which every joint is known, and test patterns.

    python benchmarks/actor.py --seed 2027 --dives 60 --out benchmarks/results/actor-dives.json

Each dive is rendered, written as H.264, decoded, and followed as `aqa-extract` follows it. Then the same dives with
passers-by: one who walks through before the diver, five spectators on the platform's level, a camera that pans. At
last noise and test patterns, where nobody may be found. The constants of the tracker were chosen on seeds 11 to 14.

Shares printed:
    flight    joints on screen inside the crop, from take-off to the first touch of the water
    entry     of the joints above the water, from then until all are under
    point     dives whose place of entry is inside the crop on the first frame after the touch, where it is on screen
    side      mean side of the crop in flight, over the frame's short side
    area      mean area of the crop up to the touch, over the short side's square
    switches  dives on which, before the entry, a detection taken for the diver was somebody else's
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import torch

from aqa_dives.dataset import Look, encode, perform, shot_of
from aqa_dives.film import Bystander, Shot, dress, film
from aqa_extract.actor.ssd import PersonDetector
from aqa_extract.actor.track import Track, full_frame
from aqa_extract.decode.child import Decoder
from aqa_pipelines.actor import Watched, load_on, watch_with
from aqa_shared.records import ActorSettings

FIXED = ("smptebars", "testsrc", "testsrc2", "mandelbrot", "rgbtestsrc", "yuvtestsrc", "zoneplate")
DRAWN = ("life", "cellauto", "gradients", "sierpinski", "noise-grey", "noise-colour")
"""Patterns that a seed decides."""
DRAWS = 20
"""Of each of these."""


def with_passer_by(shot: Shot, rng: np.random.Generator) -> Shot:
    """Somebody larger than the diver walks through in front of the tower, while the diver stands and jumps."""
    height = float(shot.camera.centre[0, 1]) - 1.4
    at = shot.times[0] + 0.3
    speed = float(rng.uniform(1.6, 2.2) * rng.choice([-1, 1]))
    middle = float(shot.camera.centre[0, 0])
    x = middle - np.sign(speed) * 2.2 - speed * at
    walker = Bystander(x, height, speed, 1.15, 0.3, dress(rng, swimmer=False))
    return replace(shot, people=[*shot.people, walker])


def with_spectators(shot: Shot, rng: np.random.Generator) -> Shot:
    """Five who stand at the height of the platform, in full view while the diver waits."""
    height = float(shot.camera.centre[0, 1]) - 0.9
    middle = float(shot.camera.centre[0, 0])
    people = [
        Bystander(middle + dx + rng.uniform(-0.1, 0.1), height, 0.0, 0.9, float(rng.uniform(0, 7)), dress(rng, False))
        for dx in (-1.7, -1.2, 0.9, 1.4, 1.9)
    ]  # fmt: skip
    return replace(shot, people=[*shot.people, *people])


def with_pan(shot: Shot, rng: np.random.Generator) -> Shot:
    """The camera swings by 0.7 m to and fro, instead of only following."""
    swing = 0.7 * np.sin(2.5 * shot.times + rng.uniform(0, 7))
    centre = shot.camera.centre + np.stack([swing, np.zeros_like(swing)], axis=-1)
    return replace(shot, camera=replace(shot.camera, centre=centre))


SCENES = {"dives": None, "passer-by": with_passer_by, "spectators": with_spectators, "pan": with_pan}


def measured(
    shot: Shot, entry_time: float, entry_x: float, size: tuple[int, int], watched: Watched
) -> dict[str, float]:
    """Counts of one dive."""
    width, height = size
    count = len(shot.times)
    tracks = watched.found.tracks
    track: Track = tracks[0] if tracks else full_frame(count, (height, width), len(watched.times))
    crops = track.boxes * np.array([width, height, width, height])
    joints = np.stack([shot.joints(k) for k in range(count)]) + 0.5
    above = shot.bodies[..., 1] >= 0
    shown = (joints >= 0).all(-1) & (joints < [width, height]).all(-1)
    inside = (joints >= crops[:, None, :2]).all(-1) & (joints <= crops[:, None, 2:]).all(-1)
    flight = (shot.times >= 0) & (shot.times < entry_time)
    entering = (shot.times >= entry_time) & above.any(1)
    first = int(np.argmax(shot.times >= entry_time))
    x = shot.middles[first, 0] + (entry_x - shot.middles[first, 0]) * np.cos(shot.camera.yaw)
    point = shot.shown(shot.camera.pixel(first, np.array(x), np.array(0.0))) + 0.5
    point_shown = bool((point >= 0).all() and (point < [width, height]).all())
    point_inside = bool((point >= crops[first, :2]).all() and (point <= crops[first, 2:]).all())
    wrong = 0
    for box, at in zip(track.found * [width, height, width, height], watched.found.looks.positions, strict=True):
        if np.isfinite(box).all() and shot.times[at] < entry_time and shown[at].any():
            body = joints[at][shown[at]]
            # Somebody else's box has none of the diver's joints, or hardly any.
            wrong += ((body >= box[:2] - 2) & (body <= box[2:] + 2)).all(-1).mean() < 0.25
    return {
        "flight": int((inside & shown)[flight].sum()),
        "flight_of": int(shown[flight].sum()),
        "entry": int((inside & shown & above)[entering].sum()),
        "entry_of": int((shown & above)[entering].sum()),
        "point": int(point_inside and point_shown),
        "point_of": int(point_shown),
        "switched": int(wrong > 0),
        "coverage": track.coverage,
        "area": float(np.mean((crops[: first + 1, 2] - crops[: first + 1, 0]) ** 2) / min(size) ** 2),
        "side": float((crops[flight, 2] - crops[flight, 0]).mean() / min(size)),
        "looks": len(watched.times),
    }


def dives(
    look: Look,
    indices: range,
    scene: str,
    folder: Path,
    actor: ActorSettings,
    decoder: Decoder,
    detector: PersonDetector,
) -> Iterator[dict]:
    for index in indices:
        shot, rng = shot_of(look, index)
        if (change := SCENES[scene]) is not None:
            shot = change(shot, np.random.Generator(np.random.PCG64([look.seed, index, 99])))
        path = folder / f"{scene}_{index:03d}.mp4"
        if not path.exists():
            encode(path, look, film(shot, rng))
        routine, _ = perform(look, index)
        step = int(np.argmin(np.abs(routine.times - routine.entry_time)))
        x = float(routine.points[step, [14, 17], 0].mean())
        watched = watch_with(decoder, path, actor, detector)
        yield {"dive": index} | measured(shot, routine.entry_time, x, (look.width, look.height), watched)


def summary(rows: list[dict]) -> dict[str, float]:
    def share(name: str) -> float:
        return sum(r[name] for r in rows) / max(sum(r[f"{name}_of"] for r in rows), 1)

    return {
        "dives": len(rows),
        "flight": share("flight"),
        "entry": share("entry"),
        "point": share("point"),
        "points_on_screen": sum(r["point_of"] for r in rows),
        "switches": sum(r["switched"] for r in rows),
        "coverage_least": min(r["coverage"] for r in rows),
        "coverage_mean": float(np.mean([r["coverage"] for r in rows])),
        "side": float(np.mean([r["side"] for r in rows])),
        "area": float(np.mean([r["area"] for r in rows])),
    }


def pattern(name: str, seed: int, path: Path) -> Path:
    """Fifty frames of a source of FFmpeg's, or of noise."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        if name.startswith("noise"):
            rng = np.random.default_rng(seed)
            shape = (240, 320, 3) if name == "noise-colour" else (240, 320, 1)
            pictures = (np.broadcast_to(rng.integers(0, 256, shape, np.uint8), (240, 320, 3)) for _ in range(50))
            frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(p), format="rgb24") for p in pictures)
        else:
            frames = _source(name, f":seed={seed}" if name in DRAWN else "")
        for k, frame in enumerate(frames):
            frame.pts, frame.time_base = k, 1 / stream.codec_context.framerate
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def _source(name: str, more: str) -> Iterator[av.VideoFrame]:
    graph = av.filter.Graph()
    source, sink = graph.add(name, f"size=320x240:rate=25{more}"), graph.add("buffersink")
    source.link_to(sink)
    graph.configure()
    for _ in range(50):
        yield graph.pull().reformat(format="yuv420p")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=2027)
    parser.add_argument("--dives", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first dive")
    parser.add_argument("--others", type=int, default=12, help="dives of every scene with passers-by")
    parser.add_argument("--patterns", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--size", default="160x128")
    parser.add_argument("--weights", default="ssd-mobilenet-v3")
    parser.add_argument("--every", type=int, default=ActorSettings().every)
    parser.add_argument("--videos", type=Path, help="keep rendered videos here; those that are there already are used")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    width, height = map(int, arguments.size.split("x"))
    look, actor = Look(seed=arguments.seed, width=width, height=height), ActorSettings(every=arguments.every)
    result: dict[str, object] = {"seed": arguments.seed, "size": arguments.size, "actor": actor.model_dump()}
    result["weights"] = arguments.weights
    detector = load_on(arguments.weights, "cpu")
    with tempfile.TemporaryDirectory() as temporary, Decoder() as decoder:
        folder = arguments.videos / f"seed{arguments.seed}-{arguments.size}" if arguments.videos else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for scene in SCENES:
            started = time.monotonic()
            count = arguments.dives if scene == "dives" else arguments.others
            indices = range(arguments.first, arguments.first + count)
            rows: list[dict] = []
            for row in dives(look, indices, scene, folder, actor, decoder, detector):
                rows.append(row)
                result[scene] = summary(rows) | {"each": rows}
                if arguments.out:
                    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
            if rows:
                said = {k: round(v, 4) for k, v in summary(rows).items()}
                print(scene, said, f"{time.monotonic() - started:.0f} s", flush=True)
        nobody: dict[str, dict[str, list[float]]] = {}
        for name in (*FIXED, *DRAWN) if arguments.patterns else ():
            for seed in range(DRAWS if name in DRAWN else 1):
                watched = watch_with(decoder, pattern(name, seed, folder / f"{name}.mp4"), actor, detector)
                tracks = watched.found.tracks
                row = nobody.setdefault(name, {"coverages": [], "best_scores": []})
                row["coverages"].append(tracks[0].coverage if tracks else 0.0)
                row["best_scores"].append(float(watched.found.looks.scores.max()))
        for name, row in nobody.items():
            found = sum(c > 0 for c in row["coverages"])
            print(
                f"{name}: somebody in {found} of {len(row['coverages'])}, best {max(row['best_scores']):.2f}",
                flush=True,
            )
        result["nobody"] = nobody
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
