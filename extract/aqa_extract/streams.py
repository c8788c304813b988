"""A stream = which pixels (full frame or actor) x which modality (RGB or flow).

The table is the list of what can be extracted: a new stream is one row, and one branch of `clips` where its
pixels come from somewhere new.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from aqa_shared.records import ExtractSettings, Stream
from aqa_shared.store import ArraySpec

CHANNELS = 1024
KINETICS_CLASSES = 400


@dataclass(frozen=True)
class StreamKind:
    """One row of the table."""

    name: Stream
    modality: Literal["rgb", "flow"]
    """Which I3D network reads it."""
    region: Literal["frame", "actor"]
    """Centre crop of the frame, or the crop that follows the actor."""

    @property
    def array(self) -> str:
        """Name of its feature array in the store."""
        return self.name.replace("-", "_")


KINDS: dict[Stream, StreamKind] = {
    "rgb": StreamKind("rgb", "rgb", "frame"),
    "flow": StreamKind("flow", "flow", "frame"),
    "actor-rgb": StreamKind("actor-rgb", "rgb", "actor"),
    "actor-flow": StreamKind("actor-flow", "flow", "actor"),
}


def chosen(settings: ExtractSettings) -> list[StreamKind]:
    """The streams asked for, in the table's order whatever the order they were asked in."""
    return [kind for name, kind in KINDS.items() if name in settings.streams]


def needs_flow(settings: ExtractSettings) -> bool:
    """Whether TV-L1 has to run: for a flow stream, or for the motion complexity alone."""
    return settings.flow.mode != "off"


def needs_actor(settings: ExtractSettings) -> bool:
    """Whether the detector has to run."""
    return any(kind.region == "actor" for kind in chosen(settings))


def array_specs(settings: ExtractSettings) -> list[ArraySpec]:
    """Every per-segment array that `settings` produce; leading axis `segment` is implied."""
    frames = settings.sampling.segment_frames
    specs = [
        ArraySpec(
            "frame_index",
            ("frame",),
            (frames,),
            "int32",
            {"long_name": "display-order frame of the file"},
            role="coordinate",
        ),
        ArraySpec("segment_start_time", (), (), "float64", {"units": "s"}, role="coordinate"),
        ArraySpec("segment_end_time", (), (), "float64", {"units": "s"}, role="coordinate"),
    ]
    for kind in chosen(settings):
        attrs = {"stream": kind.name, "backbone": "Inception-I3D, mean of Mixed_5c after the 2x7x7 pool"}
        specs.append(ArraySpec(kind.array, ("channel",), (CHANNELS,), "float32", attrs, role="feature"))
        if settings.logits:
            specs.append(
                ArraySpec(
                    f"{kind.array}_logits",
                    ("class",),
                    (KINETICS_CLASSES,),
                    "float32",
                    {"stream": kind.name},
                    role="logits",
                )
            )
        if settings.maps:
            time, space = map_size(settings)
            specs.append(
                ArraySpec(
                    f"{kind.array}_map",
                    ("channel", "map_time", "map_row", "map_column"),
                    (CHANNELS, time, space, space),
                    "float32",
                    {"stream": kind.name},
                    role="map",
                )
            )
    if needs_actor(settings):
        specs.append(
            ArraySpec(
                "actor_box",
                ("frame", "corner"),
                (frames, 4),
                "float32",
                {"long_name": "x1, y1, x2, y2 of the crop, displayed frame = 0..1; outside where it leaves the frame"},
                role="coordinate",
            )
        )
        specs.append(ArraySpec("actor_score", ("frame",), (frames,), "float32", role="coordinate"))
        if others := settings.actor.actors - 1:
            said = {"long_name": "as actor_box, of the next best people; the full frame where there is none"}
            specs.append(
                ArraySpec(
                    "other_box", ("other", "frame", "corner"), (others, frames, 4), "float32", said, role="coordinate"
                )
            )
            specs.append(ArraySpec("other_score", ("other", "frame"), (others, frames), "float32", role="coordinate"))
            said = {"long_name": "as actor_coverage, of the next best people: of the whole video, in every segment"}
            specs.append(ArraySpec("other_coverage", ("other",), (others,), "float32", said, role="coordinate"))
    return specs


def map_size(settings: ExtractSettings) -> tuple[int, int]:
    """(time, side) of I3D's last map: the input halved five times (three in time), each time rounded up."""
    time, side = settings.sampling.segment_frames, settings.pixels.crop
    for _ in range(3):
        time = -(-time // 2)
    for _ in range(5):
        side = -(-side // 2)
    return time, side
