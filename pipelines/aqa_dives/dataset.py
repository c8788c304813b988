"""A scored video dataset out of nothing: render dives, write them as H.264, write their labels.

    (seed, index) → dive, faults → routine → score, and frames → dive_0007.mp4;  all scores → labels.csv

A video depends on the seed, its index and the picture settings only, never on how many are made: a benchmark may
ask for 50 today and 5000 tomorrow. Rendering again continues where it stopped.
"""

from __future__ import annotations

import csv
import io
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from aqa_dives.body import Lengths
from aqa_dives.dives import DIVES, sample_faults
from aqa_dives.film import Shot, film, stage
from aqa_dives.judging import Measured, execution, panel
from aqa_dives.routine import Routine, simulate
from aqa_shared.console import note
from aqa_shared.errors import StoreError, UsageError
from aqa_shared.files import replace_text, replacing
from aqa_shared.machine import available_cores

GENERATOR = 1
"""Raised whenever the same seed would give other videos or scores."""
MARKER = "generator.json"
"""Says that a folder is ours and with which settings its videos were rendered."""
LABELS = "labels.csv"
REPEATABLE = "mbtree=0:asm=" + ("sse2" if platform.machine() in ("x86_64", "AMD64") else "0")
"""x264 as bundled with PyAV 18 gives other bytes at each call with mbtree on AVX-512 (measured), and other bytes
with AVX2 than without; SSE2 agrees with its plain C code."""


@dataclass(frozen=True)
class Look:
    """What decides the content of video number i, besides i."""

    seed: int = 0
    width: int = 160
    height: int = 128
    frames: int = 64
    fps: float = 20.0
    judge_noise: float = 0.25
    """Standard deviation of one judge around the fair score, points."""
    generator: int = GENERATOR

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 32 or self.width % 2 or self.height % 2:
            raise UsageError(
                f"size {self.width}x{self.height} cannot be encoded",
                fix="give two even numbers of at least 32, such as --size 160x128",
            )
        if self.frames < 9:
            raise UsageError(
                f"{self.frames} frames are too few for one I3D segment", fix="give --frames 9 or more (64)"
            )
        if not 1 <= self.fps <= 120:
            raise UsageError(f"{self.fps} frames per second is out of range", fix="give --fps between 1 and 120")


@dataclass(frozen=True)
class Label:
    """One row of labels.csv: what a dataset publishes, then what only a simulator knows."""

    path: str
    score: float
    """Mean of the middle three of seven judges, 0..10."""
    difficulty: float
    split: str
    category: str
    execution: float
    """The score before the judges' noise."""
    measured: Measured

    def row(self) -> dict[str, str]:
        """The cells, every number with a fixed count of decimals."""
        numbers = {f.name: f"{getattr(self.measured, f.name):.4f}" for f in fields(Measured)}
        return {
            "path": self.path,
            "score": f"{self.score:.2f}",
            "difficulty": f"{self.difficulty:.1f}",
            "split": self.split,
            "category": self.category,
            "execution": f"{self.execution:.4f}",
            **numbers,
        }


def name_of(index: int) -> str:
    """File name of video number `index`."""
    return f"dive_{index:05d}.mp4"


def _streams(look: Look, index: int) -> list[np.random.Generator]:
    """Independent generators for the routine, the judges and the picture of one video."""
    # Named by entropy, not by spawning from a shared parent: video i needs nothing from video i - 1.
    return [np.random.Generator(np.random.PCG64([look.seed, index, part])) for part in range(3)]


def perform(look: Look, index: int) -> tuple[Routine, Label]:
    """Simulate and judge dive number `index`; milliseconds."""
    body, judges, _ = _streams(look, index)
    dive = DIVES[int(body.integers(len(DIVES)))]
    faults = sample_faults(body, dive)
    platform = float(body.uniform(5.0, 10.0))
    lengths = Lengths(scale=float(body.uniform(0.93, 1.07)))
    length = look.frames / look.fps
    routine = simulate(dive, faults, platform, lengths, before=length + 0.5, after=length + 0.5)
    fair = execution(routine.measured)
    return routine, Label(
        path=name_of(index),
        score=panel(fair, look.judge_noise, judges),
        difficulty=dive.difficulty,
        # Every third video is held out; a rule of the index alone, so that adding videos moves none.
        split="test" if index % 3 == 2 else "train",
        category=dive.name,
        execution=fair,
        measured=routine.measured,
    )


def frames_of(look: Look, index: int) -> Iterator[np.ndarray]:
    """The rendered frames of one video: uint8 (height, width, 3), RGB."""
    return film(*shot_of(look, index))


def shot_of(look: Look, index: int) -> tuple[Shot, np.random.Generator]:
    """What `film` takes for this video: where everybody is on every frame, and what draws the grain."""
    rng = _streams(look, index)[2]
    routine, _ = perform(look, index)
    return stage(routine, rng, look.frames, look.fps, (look.width, look.height)), rng


def write_video(look: Look, index: int, folder: Path) -> Path:
    """Render video number `index` into `folder`; whole or absent."""
    return encode(folder / name_of(index), look, frames_of(look, index))


def encode(path: Path, look: Look, images: Iterable[np.ndarray]) -> Path:
    """Write RGB frames of the look's size and rate as H.264; whole or absent."""
    import av

    rate = Fraction(look.fps).limit_denominator(1001)
    with replacing(path) as partial, av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = look.width, look.height, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "18", "preset": "veryfast", "g": "16", "x264-params": REPEATABLE}
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def labels_text(look: Look, count: int) -> str:
    """labels.csv of the first `count` videos."""
    rows = [perform(look, index)[1].row() for index in range(count)]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def render(
    look: Look,
    count: int,
    folder: Path,
    *,
    workers: int = 0,
    overwrite: bool = False,
    advance: Callable[..., None] = lambda n=1, note="": None,
) -> int:
    """Render the first `count` videos and their labels into `folder`; returns how many had to be rendered.

    Videos that are there already with the same settings stay. `workers` 0 takes every core. Raises `UsageError`
    when the folder holds videos of other settings (unless `overwrite`) or files that are not ours, `StoreError`
    when it cannot be written.
    """
    if count < 1:
        raise UsageError(f"{count} videos is nothing to render", fix="give --videos 1 or more")
    try:
        _claim(look, folder, overwrite)
        missing = [i for i in range(count) if not (folder / name_of(i)).is_file()]
        if len(missing) < count:
            advance(count - len(missing), note="kept")
        replace_text(folder / LABELS, labels_text(look, count))
        pool = _pool(min(workers or available_cores(), len(missing)))
        if pool is None:
            for index in missing:
                write_video(look, index, folder)
                advance()
        else:
            with pool:
                jobs = [pool.submit(write_video, look, index, folder) for index in missing]
                for job in as_completed(jobs):
                    job.result()
                    advance()
    except OSError as e:
        raise StoreError(
            f"cannot write {e.filename or folder}: {e.strerror or e}", fix="free space, or give another --out"
        ) from e
    return len(missing)


def _pool(processes: int) -> ProcessPoolExecutor | None:
    """None where one process is as good, or several cannot talk to each other."""
    if processes <= 1:
        return None
    try:
        # spawn: a forked child would inherit the threads' locks of whatever was imported before.
        return ProcessPoolExecutor(processes, mp_context=get_context("spawn"))
    except (OSError, ImportError, NotImplementedError) as e:
        note(f"rendering in one process, as this machine has no semaphores (is /dev/shm writable? {e})")
        return None


def _claim(look: Look, folder: Path, overwrite: bool) -> None:
    """Make `folder` ours for these settings, or say why not."""
    marker = folder / MARKER
    wanted = asdict(look)
    if marker.is_file():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            found = {}
        if found != wanted and not overwrite:
            other = ", ".join(
                f"{k} {found.get(k)} (wanted {wanted.get(k)})"
                for k in sorted(found.keys() | wanted.keys())
                if found.get(k) != wanted.get(k)
            )
            raise UsageError(
                f"{folder} holds videos rendered with other settings: {other}",
                fix="give another --out, or --overwrite to replace these videos",
            )
        if found != wanted:
            for video in folder.glob("dive_*.mp4"):
                video.unlink()
    elif folder.exists() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} is not empty and was not made by this command", fix="give a new or empty folder with --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".*.partial"):
        # Of a rendering that was killed; a younger one may still be at work.
        if time.time() - left.stat().st_mtime > 3600:
            left.unlink(missing_ok=True)
    replace_text(marker, json.dumps(wanted, indent=2) + "\n")
