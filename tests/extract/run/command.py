"""aqa-extract on small clips, and what its store holds."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.pipelines.commands import run

from aqa_extract.config import Options
from aqa_extract.plan import Plan, read_plan
from aqa_shared.records import ExtractSettings, Pixels, Sampling, Video
from aqa_shared.store import compact

SMALL = ("--segments", "2", "--short-side", "32", "--crop", "32", "--weights", "rgb=i3d-kinetics-400")
SETTINGS = ExtractSettings(
    sampling=Sampling(segments=2), pixels=Pixels(short_side=32, crop=32), weights={"rgb": "i3d-kinetics-400"}
)


def run_command(clips: Path, store: Path, *extra: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run("aqa-extract", clips, "--out", store, *SMALL, *extra, **environment)


def contents(store: Path) -> dict[str, bytes]:
    """Every object of a compacted copy of the store but those that say when it was made, or how long a failure took."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(store, Path(folder) / "s"))
        compact(copy)
        files = {p.relative_to(copy).as_posix(): p for p in sorted(copy.rglob("*")) if p.is_file()}
        return {k: p.read_bytes() for k, p in files.items() if not k.startswith(("zarr.json", "log/", "failures/"))}


def committed(store: Path) -> int:
    """How many videos are staged."""
    return len(list(store.glob("staged/*.npz")))


def plan(videos: Sequence[Video], store: Path, settings: ExtractSettings, options: Options) -> Plan:
    return read_plan(videos, store, settings, options)[0]
