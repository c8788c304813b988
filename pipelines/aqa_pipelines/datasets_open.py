"""Every video of a dataset opened without decoding it: can it be read, and is it as long as the annotation says?"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from aqa_extract import faults
from aqa_extract.decode.child import DecodeFailure, Decoder, DecodeRequest
from aqa_extract.decode.probe import Probe
from aqa_shared import console
from aqa_shared.datasets.published import Finding, Performance, Published
from aqa_shared.errors import EnvironmentFault
from aqa_shared.records import Sampling, Video

SECONDS = 2.0
"""Lengths are published in whole seconds."""


def open_videos(data: Published, root: Path) -> list[Finding]:
    """What is wrong with the video files that are there, each opened once; folders of pictures need no opening.

    Raises EnvironmentFault where a file cannot be opened through no fault of its own.
    """
    by_path: dict[str, list[Performance]] = defaultdict(list)
    for performance in data.performances:
        if performance.path is not None and not performance.missing and performance.pictures is None:
            by_path[performance.path].append(performance)
    found = []
    with Decoder() as decoder, console.progress("open", len(by_path)) as advance:
        for path, performances in by_path.items():
            video = Video(id=path, path=str((root / path).absolute()))
            try:
                probe = decoder.open(DecodeRequest(video.path, video, Sampling(segments=1))).probe
            except DecodeFailure as e:
                if faults.fault(e.reason) is faults.Fault.OURS:
                    fix = "`aqa doctor` examines this machine; then rerun"
                    raise EnvironmentFault(f"{path} cannot be opened: {e.detail} ({e.reason})", fix=fix) from e
                found.append(Finding(path, f"cannot be read: {e.detail} ({e.reason})", "aqa-extract would refuse it"))
            else:
                found += [f for p in performances if (f := _wrong_length(p, probe)) is not None]
            advance()
    return found


def _wrong_length(p: Performance, probe: Probe) -> Finding | None:
    frames, seconds = probe.n_expected, float(probe.times[-1]) + 1 / probe.fps
    what = None
    if p.end is not None:
        if p.end > frames:
            what = f"{p.path} has {frames} frames, and the part ends at {p.end}"
    elif p.frames is not None and p.frames != frames:
        what = f"{p.path} has {frames} frames, and the annotation {p.frames}"
    elif p.seconds is not None and abs(p.seconds - seconds) > SECONDS:
        what = f"{p.path} lasts {seconds:.1f} s, and the annotation says {p.seconds:g} s"
    return None if what is None else Finding(p.id, what, "the video or the annotation is of another copy")
