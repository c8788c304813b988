"""Stores and files that the tests of tables share."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aqa_pipelines.cli import app
from aqa_shared.records import ExtractSettings, FlowSettings, Sampling, Video
from aqa_shared.store import ArraySpec, StoreWriter
from aqa_train.stream_names import array_of

ROOT = Path(__file__).resolve().parents[2]
STREAMS = (
    *("rgb", "flow", "actor-rgb", "still-rgb", "rot90-rgb", "rot180-rgb", "rot270-rgb", "rgb@swin3d_b"),
    *("skeleton", "dct", "signals", "kinematics"),
)
CATEGORIES = {
    "rhythmic-gymnastics": ("Ball", "Clubs", "Hoop", "Ribbon"),
    "jigsaws": ("Suturing", "Needle_Passing", "Knot_Tying"),
    "finefs": ("SP", "FS"),
    "aqa-7": ("diving", "gym_vault", "ski_big_air", "snowboard_big_air", "sync_diving_3m", "sync_diving_10m"),
    "ui-prmd": tuple(f"m{i:02d}" for i in range(1, 11)),
}


def aqa(*arguments: object) -> object:
    """Its exit code, None for 0."""
    return app([str(a) for a in arguments], standalone_mode=False)


def miniature(folder: Path, dataset: str, each: int = 16, streams: Sequence[str] = STREAMS) -> Path:
    """A store of `each` videos a category, of which a quarter is tested, with the columns of all tables."""
    path = folder / f"{dataset}.zarr"
    categories = CATEGORIES.get(dataset, ("",))
    if len(categories) == 1:
        each = 400 if dataset == "none" else 100  # of the rendered dives, 1 % are labelled in one table
    rng = np.random.default_rng(0)
    settings = ExtractSettings(
        streams=("rgb", "flow", "actor-rgb"), sampling=Sampling(segments=8), flow=FlowSettings(mode="parity")
    )
    names = [array_of(s) for s in streams]
    specs = [
        ArraySpec(n, ("channel",), (32,), "float32", role="feature", attrs={"stream": s})
        for n, s in zip(names, streams, strict=True)
    ]
    records: dict[str, Video] = {}
    with StoreWriter.open(path, specs=specs, settings=settings, provenance={"weights": {}}) as writer:
        for number in range(each * len(categories)):
            i, category = number % each, categories[number // each]
            quality = float(rng.random())
            video = f"{category or 'dive'}_{i:02d}"
            x = rng.random((8, 32), dtype=np.float32)
            x[:, 0] += np.float32(quality)
            writer.commit(video, {n: np.roll(x, k, axis=1) for k, n in enumerate(names)}, {"fps": 25.0})
            binary = dataset == "ui-prmd"
            records[video] = Video(
                id=video,
                path=f"/{video}.mp4",
                score=float(quality > 0.5) if binary else round(20 + 60 * quality, 1),
                difficulty=2.0 + i % 3,
                split="test" if i % 4 == 0 else "train",
                category=category or None,
                extra={
                    **{"fold": i % 4, "group": f"p{i % 5}", "person": f"p{i % 16}"},
                    **{"position": i % 3, "armstand": i % 2, "rotation_type": i % 4, "ss_no": i % 5, "tw_no": i % 2},
                    **{"caption": '["a","dive"]', "judge_scores": json.dumps([7, 8, 7.5, 8, 7, 8, 7])},
                    **{"ratings": json.dumps([1 + (i + k) % 5 for k in range(6)]), "tes": 30 + i, "pcs": 25 + i},
                },
            )
        writer.finalise(records)
    with (folder / f"{dataset}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "score", "category", "tes", "pcs"])
        table.writerows([v.id, v.score, v.category, v.extra["tes"], v.extra["pcs"]] for v in records.values())
    return path


def of_mine(folder: Path, rest: str) -> Path:
    """A table file of one's own."""
    file = folder / "pipelines" / "mine.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'title = "Mine"\nsource = "nobody"\ndataset = ""\n{rest}')
    return file


def measured(file: Path, store: Path, out: Path, *options: object) -> tuple[object, dict[str, Any]]:
    """The exit code of measuring a table of one's own, and its record."""
    code = aqa("table", file, "--features", store, "--out", out, "--jobs", 1, *options)
    return code, json.loads((out / "pipelines" / "mine.json").read_text())
