"""Stores of features of real people, for the tables in pipelines/real/, from three published sets.

    python benchmarks/real_stores.py ../shared/features --out stores

- `jigsaws_suturing.zarr`: I3D RGB features (10, 1024) of 39 surgical trials, six expert ratings, published folds.
  No actor was cropped: `actor_rgb`, for methods that read two streams, repeats `rgb`;
- `ui_prmd.zarr`: 2000 skeleton sequences of ten movements, right or deliberately wrong. `skeleton` is (10, 66), the
  sequence at the middles of ten equal parts; `dct` its eight lowest orthonormal DCT coefficients (528), alike in every
  segment;
- `finger_tapping.zarr`: 116 signal features (1, 116) of 489 videos that three experts rated; unknown values are the
  median.

The files are not part of the repository. See the README beside them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct

from aqa_shared.records import ExtractSettings, Sampling, Video
from aqa_shared.store import ArraySpec, StoreWriter

SEGMENTS, COEFFICIENTS = 10, 8
Features = Mapping[str, Sequence[NDArray[Any]]]


def write(path: Path, segments: int, features: Features, videos: Sequence[Video]) -> None:
    """A store of streams, each a sequence of (segments, channels) in the order of the videos."""
    specs = [
        ArraySpec(name, ("channel",), (values[0].shape[1],), "float32", role="feature")
        for name, values in features.items()
    ]
    settings = ExtractSettings(sampling=Sampling(segments=segments))
    with StoreWriter.open(path, specs=specs, settings=settings, provenance={"weights": {}}) as writer:
        for i, video in enumerate(videos):
            writer.commit(video.id, {name: np.float32(values[i]) for name, values in features.items()}, {})
        writer.finalise({video.id: video for video in videos})
    print(f"{path}: {len(videos)} videos")


def suturing(file: Path, out: Path) -> None:
    found = np.load(file)
    columns = ("id", "score", "fold", "elements")
    videos = [
        Video(
            id=str(name), path=f"/{name}.avi", score=float(score), category="Suturing",
            extra={"fold": int(fold), "group": str(name).split("_")[-1][0], "ratings": json.dumps(ratings.tolist())},
        )
        for name, score, fold, ratings in zip(*(found[c] for c in columns), strict=True)
    ]  # fmt: skip
    rgb = list(found["features"])
    write(out / "jigsaws_suturing.zarr", SEGMENTS, {"rgb": rgb, "actor_rgb": rgb}, videos)


def exercises(file: Path, out: Path) -> None:
    found = np.load(file)
    offset, data = found["offset"], found["data"]
    columns = ("movement", "subject", "repetition", "correct")
    skeleton, coefficients, videos = [], [], []
    people = {s: i // 2 for i, s in enumerate(sorted({int(s) for s in found["subject"]}))}
    for i, (m, s, r, right) in enumerate(zip(*(found[c] for c in columns), strict=True)):
        x = data[offset[i] : offset[i + 1]].astype(np.float64)
        skeleton.append(x[((np.arange(SEGMENTS) + 0.5) * len(x) / SEGMENTS).astype(int)])
        low = dct(x, axis=0, norm="ortho")[:COEFFICIENTS].ravel()
        coefficients.append(np.tile(low, (SEGMENTS, 1)))
        name = f"m{int(m):02d}_s{int(s):02d}_e{int(r):02d}_{'right' if right else 'wrong'}"
        videos.append(
            Video(
                id=name, path=f"/{name}.txt", score=float(bool(right)), category=f"m{int(m):02d}",
                extra={"subject": int(s), "fold": people[int(s)]},
            )
        )  # fmt: skip
    write(out / "ui_prmd.zarr", SEGMENTS, {"skeleton": skeleton, "dct": coefficients}, videos)


def tapping(file: Path, out: Path) -> None:
    found = np.load(file, allow_pickle=False)
    x = found["features"].astype(np.float64)
    x = np.where(np.isnan(x), np.nanmedian(x, axis=0), x)
    videos = [
        Video(
            id=f"tapping_{i:03d}", path=f"/tapping_{i:03d}.mp4", score=float(score),
            extra={"person": str(person), "hand": str(hand)},
        )
        for i, (score, person, hand) in enumerate(zip(found["score"], found["person"], found["hand"], strict=True))
    ]  # fmt: skip
    write(out / "finger_tapping.zarr", 1, {"signals": list(x[:, None])}, videos)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="folder of the .npz files")
    parser.add_argument("--out", type=Path, default=Path("stores"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    suturing(options.features / "jigsaws_suturing_i3d_rgb.npz", options.out)
    exercises(options.features / "ui_prmd_kinect.npz", options.out)
    tapping(options.features / "finger_tapping.npz", options.out)


if __name__ == "__main__":
    main()
