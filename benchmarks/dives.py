"""1,412 rendered dives with I3D features, as many as MTL-AQA has: for the tables in pipelines/dives/.

    python benchmarks/dives.py --out dives
    aqa table pipelines/dives/s4aqa-table1.toml --features dives/feats.zarr --plan

Renders videos of MTL-AQA's length (seed 1412; the first 1,059 are for training), and extracts RGB features of the
whole picture and of the actor, ten segments of 224x224 pixels in bf16. Prints the digests of the labels and of each
stream's features. Rerunning goes on where it stopped. On two kinds of processors features differ in their last digits,
and so do their digests.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import subprocess
import sys
from pathlib import Path

import numpy as np

from aqa_dives.dataset import LABELS, Look
from aqa_pipelines.demo import render_videos
from aqa_shared.files import replace_text
from aqa_shared.store import FeatureStore

VIDEOS, TRAINING = 1412, 1059
LOOK = Look(seed=1412, width=320, height=256, frames=103, fps=25.0)
STREAMS = "rgb,actor-rgb"
EXTRACT = ["--protocol", "mtl-aqa", "--precision", "bf16"]


def write_manifest(folder: Path, videos: int, training: int) -> Path:
    """Beside the folder of videos: their labels with a split like MTL-AQA's."""
    with (folder / LABELS).open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    out, text = folder.parent / "manifest.csv", io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for i, row in enumerate(rows[:videos]):
        split = "train" if i < training else "test"
        writer.writerow({**row, "path": f"{folder.name}/{row['path']}", "split": split})
    replace_text(out, text.getvalue())
    return out


def digest(store: FeatureStore, stream: str) -> str:
    """Of all its segments, the videos in the order of their ids."""
    having = store.select(stream)  # videos that were added later may lack it
    values = having.read(stream)
    found = hashlib.sha256()
    for i in np.argsort(having.ids):
        first = int(having.offsets[i])
        found.update(np.ascontiguousarray(values[first : first + int(having.lengths[i])]).tobytes())
    return found.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dives"))
    parser.add_argument("--videos", type=int, default=VIDEOS, help="three quarters are for training")
    parser.add_argument("--streams", default=STREAMS, help="others can be added later by the same command")
    asked = parser.parse_args()
    videos = render_videos(LOOK, asked.videos, asked.out)
    manifest = write_manifest(videos, asked.videos, round(asked.videos * TRAINING / VIDEOS))
    store = asked.out / "feats.zarr"
    extract = [sys.executable, "-m", "aqa_extract", str(manifest), "--out", str(store), *EXTRACT]
    if code := subprocess.run([*extract, "--streams", asked.streams], check=False).returncode:
        return code
    print(f"labels {hashlib.sha256(manifest.read_bytes()).hexdigest()}")
    made = FeatureStore.open(store)
    for stream in sorted(made.streams):
        print(f"{stream} {digest(made, stream)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
