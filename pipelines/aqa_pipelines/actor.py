"""`aqa actor`: whom the actor's streams would follow through a video, as numbers and as a contact sheet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from aqa_extract.actor.find import FoundActor, find
from aqa_extract.actor.ssd import PersonDetector, load_detector
from aqa_extract.actor.track import full_frame
from aqa_extract.decode.child import Decoder, DecodeRequest
from aqa_extract.frames import resize, size_at_short_side
from aqa_extract.job import VideoJob
from aqa_extract.loading import load
from aqa_pipelines.actor_sheet import draw
from aqa_shared import console
from aqa_shared.errors import StoreError, UsageError
from aqa_shared.machine import pick_device
from aqa_shared.records import ActorSettings, ExtractSettings, Sampling, Video

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN_SHORT_SIDE = 256
MOST_TILES = 64


@dataclass(frozen=True)
class Watched:
    """One video and its actor."""

    frames: np.ndarray
    """uint8 (looks, height, width, 3), small, in the displayed shape."""
    times: np.ndarray
    """(looks,) seconds."""
    size: tuple[int, int]
    """Height and width of the displayed frame in pixels."""
    found: FoundActor


def load_on(weights: str, device: str) -> PersonDetector:
    """The detector, ready. Raises EnvironmentFault."""
    detector, _ = load_detector(weights, console.note)
    return detector.eval().to(pick_device(device))


def watch(path: Path, actor: ActorSettings, detector: PersonDetector, accept_damaged: bool = False) -> Watched:
    """Decode a video and follow its actor, as `aqa-extract` would. Raises DecodeFailure."""
    with Decoder() as decoder:
        return watch_with(decoder, path, actor, detector, accept_damaged)


def watch_with(
    decoder: Decoder, path: Path, actor: ActorSettings, detector: PersonDetector, accept_damaged: bool = False
) -> Watched:
    """The same, by a decoder that is there already."""
    torch.set_num_threads(1)
    where = detector.anchors.device
    settings = ExtractSettings(streams=("actor-rgb",), sampling=Sampling(segments=1), actor=actor)
    video = Video(id=path.name, path=str(path.resolve()))
    request = DecodeRequest(
        path=video.path, video=video, sampling=settings.sampling, actor=actor, accept_damaged=accept_damaged
    )
    prepared = load(decoder, VideoJob(video, None), request, settings, where, detector.size, lambda _: None)
    assert prepared.views is not None, "a stream that follows the actor was asked for"
    if accepted := prepared.video.finished.accepted:
        console.warn(f"{video.id}: {accepted}")
    looks, size = prepared.views.positions, (prepared.video.probe.height, prepared.video.probe.width)
    with torch.inference_mode():
        found = find(detector, prepared.views, int(looks[-1] - looks[0]) + 1, size, actor)
    shown = resize(prepared.views.frames, size_at_short_side(*size, SHOWN_SHORT_SIDE))
    return Watched(shown.permute(0, 2, 3, 1).cpu().numpy(), prepared.video.probe.times[looks], size, found)


def sheet(watched: Watched) -> Image:
    """The looks, or `MOST_TILES` of them evenly."""
    found, looks = watched.found, watched.found.looks
    length = int(looks.positions[-1] - looks.positions[0]) + 1
    tracks = found.tracks or [full_frame(length, watched.size, len(looks.positions))]
    shown = np.unique(np.linspace(0, len(looks.positions) - 1, MOST_TILES).astype(int)).tolist()
    frames, times = [watched.frames[k] for k in shown], [float(watched.times[k]) for k in shown]
    return draw(frames, times, looks.positions.tolist(), tracks, looks.boxes, looks.scores, shown)


def save(image: Image, path: Path) -> None:
    """Raises UsageError for a name that is not a picture's, StoreError where it cannot be written."""
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"--sheet {path}", fix="name a .png or .jpg file")
    try:
        image.save(path)
    except OSError as e:
        raise StoreError(f"cannot write {path}: {e.strerror or e}", fix="name another --sheet") from e


def record(watched: Watched) -> dict[str, Any]:
    """For JSON: every track with its boxes at the looks, the actor first."""
    looks = watched.found.looks
    at = looks.positions - looks.positions[0]
    tracks = []
    for track in watched.found.tracks:
        seen = np.asarray(np.isfinite(track.found).all(axis=1))
        tracks.append(
            {
                "coverage": track.coverage,
                "score": float(track.scores[at][seen].mean()),
                "crops": track.boxes[at].tolist(),
                "boxes": [box.tolist() if here else None for box, here in zip(track.found, seen, strict=True)],
            }
        )
    return {
        "frames": looks.positions.tolist(),
        "times": watched.times.tolist(),
        "tracks": tracks,
    }


def text(watched: Watched) -> str:
    """For people."""
    tracks, count = watched.found.tracks, len(watched.times)
    head = f"{console.counted(count, 'frame')} looked at"
    if not tracks:
        return f"{head}: no actor, the full frame would be used"
    at = watched.found.looks.positions - watched.found.looks.positions[0]
    said = []
    for name, track in zip(["actor", *["next"] * len(tracks)], tracks, strict=False):
        seen = np.asarray(np.isfinite(track.found).all(axis=1))
        said.append(
            f"{name}: detected on {seen.sum()} ({track.coverage:.0%}), mean score {track.scores[at][seen].mean():.2f}"
        )
    return "\n".join([head, *said])
