"""A stream: how a clip is viewed x which pixels x which modality x which network, written

    [view-][actor-](rgb|flow)[@backbone][:output]        rot90-rgb, actor-flow, rgb@swin3d_b, actor-rgb:map

and the arrays of the store that follow. A view is one row of `VIEWS`, a backbone one file and one row of
`backbones.BACKBONES`; nothing else lists streams.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from aqa_extract.backbones import BACKBONES, DEFAULT, Backbone, Canvas, Input, Modality
from aqa_shared.errors import UsageError, did_you_mean
from aqa_shared.records import (
    PUBLISHED_FRAMES,
    ActorSettings,
    ExtractSettings,
    FlowSettings,
    Pixels,
    Record,
    Sampling,
)
from aqa_shared.store import ArraySpec


@dataclass(frozen=True)
class View:
    """What is done with the square clip that the network would see; flow's vectors turn with their field."""

    about: str
    still: bool = False
    """Every frame is the first. There is no flow of it: nothing moves."""
    turns: int = 0
    """Quarter turns, counter-clockwise."""
    mirrored: bool = False
    """Left becomes right."""


VIEWS: dict[str, View] = {
    "": View("as displayed"),
    "still": View("the first frame of the segment, repeated", still=True),
    "rot90": View("turned by 90 degrees, counter-clockwise", turns=1),
    "rot180": View("turned by 180 degrees", turns=2),
    "rot270": View("turned by 270 degrees, counter-clockwise", turns=3),
    "mirror": View("left and right exchanged", mirrored=True),
}

OTHERS = "other_"
"""What the names of arrays about people besides the actor begin with."""
GRAMMAR = "[view-][actor-](rgb|flow)[@backbone][:output]"
_WRITTEN = re.compile(
    rf"(?:({'|'.join(filter(None, VIEWS))})-)?(actor-)?(rgb|flow)(?:@({'|'.join(BACKBONES)}))?(?::([a-z]+))?"
)


@dataclass(frozen=True)
class Stream:
    """One way to look at a video, and what to keep of it."""

    view: str
    actor: bool
    """The crop follows the actor, and is not the middle of the frame."""
    modality: Modality
    backbone: Backbone
    outputs: tuple[str, ...]
    """Names in `Backbone.outputs`, in their order there."""

    @property
    def name(self) -> str:
        """As it is written, without an output."""
        view, actor = f"{self.view}-" if self.view else "", "actor-" if self.actor else ""
        return f"{view}{actor}{self.network}"

    @property
    def network(self) -> str:
        """By which name its weights are asked for and recorded."""
        return self.backbone.network(self.modality)

    @property
    def networks(self) -> tuple[str, ...]:
        """Everything whose weights decide its values."""
        return (self.network, "actor") if self.actor else (self.network,)

    def array(self, output: str) -> str:
        """Name in the store: `rot90_rgb_swin3d_b_map`."""
        return re.sub("[-@:]", "_", f"{self.name}:{output}" if output else self.name)

    def input(self, settings: ExtractSettings) -> Input:
        """What its backbone is given in this run. Raises UsageError for a crop that cannot be."""
        return self.backbone.input.adjusted(settings.pixels)


def parse(written: str) -> Stream:
    """The stream with its one output. Raises UsageError that names what there is."""
    match = _WRITTEN.fullmatch(written)
    if match is None:
        fix = f"{did_you_mean(written, (s.name for s in every()))} a stream is written {GRAMMAR}, {_choices()}"
        raise UsageError(f"unknown stream {written!r}", fix=fix.lstrip())
    view, actor, modality, name, output = match.groups(default="")
    backbone = BACKBONES[name or DEFAULT]
    if modality not in backbone.weights:
        able = ", ".join(b.name for b in BACKBONES.values() if modality in b.weights)
        raise UsageError(f"stream {written!r}: {backbone.name} does not read {modality}", fix=f"{able} does")
    if VIEWS[view].still and modality == "flow":
        raise UsageError(f"stream {written!r}: in a frame that is repeated nothing moves", fix="use still-rgb")
    if output not in backbone.outputs:
        has = ", ".join(filter(None, backbone.outputs))
        raise UsageError(
            f"stream {written!r}: {backbone.name} has no output {output!r}",
            fix=f"its outputs are {has}, and the pooled feature, for which you omit :{output}",
        )
    return Stream(view, bool(actor), modality, backbone, (output,))  # type: ignore[arg-type]  # matched


def every() -> Iterator[Stream]:
    """Every stream there is, with all outputs of its backbone, in the order of the tables."""
    for backbone in BACKBONES.values():
        for view, how in VIEWS.items():
            for actor in (False, True):
                for modality in backbone.weights:
                    if not (how.still and modality == "flow"):
                        yield Stream(view, actor, modality, backbone, tuple(backbone.outputs))


def _choices() -> str:
    views, backbones = ", ".join(filter(None, VIEWS)), ", ".join(BACKBONES)
    return f"with the views {views} and the backbones {backbones}; see `aqa streams`"


def chosen(settings: ExtractSettings) -> list[Stream]:
    """The streams asked for, each once, in the tables' order. Raises UsageError as `parse` does."""
    asked: dict[str, set[str]] = {}
    for written in settings.streams:
        found = parse(written)
        asked.setdefault(found.name, set()).update(found.outputs)
    return [
        Stream(s.view, s.actor, s.modality, s.backbone, tuple(o for o in s.outputs if o in asked[s.name]))
        for s in every()
        if s.name in asked
    ]


def by_network(settings: ExtractSettings) -> dict[str, Stream]:
    """The networks that the streams asked for are read by, each with one of its streams."""
    found: dict[str, Stream] = {}
    for stream in chosen(settings):
        found.setdefault(stream.network, stream)
    return found


def needs_flow(settings: ExtractSettings) -> bool:
    """Whether TV-L1 has to run: for a flow stream, or for the motion complexity alone."""
    return settings.flow.mode != "off"


def needs_actor(settings: ExtractSettings) -> bool:
    """Whether the detector has to run."""
    return any(stream.actor for stream in chosen(settings))


def flow_canvases(settings: ExtractSettings) -> list[Canvas]:
    """The frames that TV-L1 looks at; those of I3D where only the motion is wanted."""
    if not needs_flow(settings):
        return []
    wanted = [s.input(settings).canvas for s in chosen(settings) if s.modality == "flow"]
    return list(dict.fromkeys(wanted or [BACKBONES[DEFAULT].input.adjusted(settings.pixels).canvas]))


def canvases(settings: ExtractSettings) -> list[Canvas]:
    """The sizes at which whole frames are kept: one decoding serves them all."""
    rgb = [s.input(settings).canvas for s in chosen(settings) if s.modality == "rgb" and not s.actor]
    return list(dict.fromkeys([*rgb, *flow_canvases(settings)]))


def completed(settings: ExtractSettings) -> ExtractSettings:
    """The settings as a run takes and a store keeps them: streams in order, segments as long as the networks want.

    Raises UsageError for what cannot be extracted, or not together.
    """
    streams = chosen(settings)
    if settings.flow.mode == "off" and any(stream.modality == "flow" for stream in streams):
        raise UsageError("streams with flow need flow mode parity, got off", fix="omit --flow, or use --flow parity")
    for name in settings.weights:
        if name not in (known := _network_names()):
            raise UsageError(
                f"weights for {name!r}, which is not a network",
                fix=f"{did_you_mean(name, known)} choose one of {', '.join(known)}".lstrip(),
            )
    frames = clip_frames(settings)
    for stream in streams:
        own, used = stream.backbone.input, stream.input(settings)
        if not own.least_frames <= frames <= (own.most_frames or frames):
            takes = f"{own.least_frames}" if own.most_frames == own.least_frames else f"at least {own.least_frames}"
            raise UsageError(
                f"{stream.backbone.name} takes clips of {takes} frames, got segment_frames={frames}",
                fix="choose another --segment-frames, or extract its streams into a store of their own",
            )
        least, most = own.sides
        if not least <= used.crop <= (most or used.crop):
            takes = f"{least}" if most == least else f"at least {least}"
            raise UsageError(
                f"{stream.backbone.name} takes crops of {takes} pixels, got {used.crop}", fix="choose another --crop"
            )
    names = tuple(
        f"{stream.name}:{output}" if output else stream.name for stream in streams for output in stream.outputs
    )
    sampling = settings.sampling.model_copy(update={"segment_frames": frames})
    return settings.model_copy(update={"streams": names, "sampling": sampling})


def _network_names() -> list[str]:
    return list(dict.fromkeys(name for stream in every() for name in stream.networks))


def clip_frames(settings: ExtractSettings) -> int:
    """Frames of a segment: as set, as a published protocol has it, or as all backbones were trained.

    Raises UsageError where those disagree.
    """
    sampling = settings.sampling
    if sampling.segment_frames is not None:
        return sampling.segment_frames
    if sampling.protocol not in ("even", "dense"):
        return PUBLISHED_FRAMES
    wanted = {stream.backbone.name: stream.backbone.input.frames for stream in chosen(settings)}
    if len(set(wanted.values())) > 1:
        raise UsageError(
            f"backbones with clips of different lengths: {', '.join(f'{n} {f}' for n, f in wanted.items())} frames",
            fix="give --segment-frames, or extract them into stores of their own",
        )
    return next(iter(wanted.values()))


def decides(stream: Stream, settings: ExtractSettings) -> dict[str, Any]:
    """The settings that decide the values of `stream`, flat, where they differ from their defaults.

    Two features of one name are comparable exactly where these and the digests of their weights are equal, so a
    setting that is added later with a default changes nothing for what was extracted before.
    """
    own, used = stream.backbone.input, stream.input(settings)
    found = _sampled(settings, own.frames) | _coloured(settings)
    pairs: dict[str, tuple[Any, Any]] = {"pixels.crop": (used.crop, own.crop)}
    if not stream.actor:
        pairs["pixels.fit"] = (used.fit, own.fit)
    if stream.modality == "flow" or not stream.actor:
        pairs["pixels.canvas"] = (asdict(used.canvas), asdict(own.canvas))
    if stream.modality == "rgb":
        pairs |= {"pixels.mean": (used.mean, own.mean), "pixels.std": (used.std, own.std)}
    found |= {name: value for name, (value, default) in pairs.items() if value != default}
    if stream.modality == "flow":
        found |= _changed("flow", settings.flow, FlowSettings(mode="parity"))
    if stream.actor:
        found |= _followed(settings)
    names = ("precision", *stream.backbone.settings)
    return found | {name: getattr(settings, name) for name in names if getattr(settings, name) != _default(name)}


def identities(
    settings: ExtractSettings, weights: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """By array: what decides its values, the settings as `decides` has them and `weights.NETWORK`, the digests.

    `weights` are the records by network; None leaves them out.
    """

    def digests(networks: Iterable[str]) -> dict[str, str]:
        return {f"weights.{name}": weights[name]["sha256"] for name in networks} if weights is not None else {}

    found = {}
    for spec in array_specs(settings):
        found[spec.name] = _sampled(settings, PUBLISHED_FRAMES)
        if spec.name.startswith(("actor_", OTHERS)):
            found[spec.name] |= _coloured(settings) | _followed(settings) | digests(["actor"])
    for stream in chosen(settings):
        for output in stream.outputs:
            found[stream.array(output)] = decides(stream, settings) | digests(stream.networks)
    return found


def identified(settings: ExtractSettings, weights: Mapping[str, Mapping[str, Any]] | None = None) -> list[ArraySpec]:
    """`array_specs`, each with its identity."""
    found = identities(settings, weights)
    return [replace(spec, identity=found[spec.name]) for spec in array_specs(settings)]


def _sampled(settings: ExtractSettings, frames: int) -> dict[str, Any]:
    """What decides which frames are looked at; `frames` is the default of a segment's."""
    found = _changed("sampling", settings.sampling, Sampling(segment_frames=settings.sampling.segment_frames))
    if (length := clip_frames(settings)) != frames:
        found["sampling.segment_frames"] = length
    return found


def _coloured(settings: ExtractSettings) -> dict[str, Any]:
    return _changed("pixels", settings.pixels.model_copy(update=_OF_A_BACKBONE), Pixels())


_OF_A_BACKBONE = dict.fromkeys(("short_side", "crop", "fit", "normalise", "antialias"))
"""Fields of `Pixels` that change a backbone's own input, which `Input.adjusted` has."""


def _followed(settings: ExtractSettings) -> dict[str, Any]:
    return _changed("actor", settings.actor, ActorSettings(actors=settings.actor.actors))  # how many others are kept


def _changed(place: str, record: Record, default: Record) -> dict[str, Any]:
    return {f"{place}.{k}": v for k, v in record.model_dump().items() if v != getattr(default, k)}


def _default(name: str) -> Any:
    return ExtractSettings.model_fields[name].default


def array_specs(settings: ExtractSettings) -> list[ArraySpec]:
    """Every per-segment array that `settings` produce; leading axis `segment` is implied."""
    frames = clip_frames(settings)
    places: list[tuple[str, tuple[str, ...], tuple[int, ...], str, dict[str, Any]]] = [
        ("frame_index", ("frame",), (frames,), "int32", {"long_name": "display-order frame of the file"}),
        ("segment_start_time", (), (), "float64", {"units": "s"}),
        ("segment_end_time", (), (), "float64", {"units": "s"}),
    ]
    if needs_actor(settings):
        said = "x1, y1, x2, y2 of the crop, displayed frame = 0..1; outside where it leaves the frame"
        places.append(("actor_box", ("frame", "corner"), (frames, 4), "float32", {"long_name": said}))
        places.append(("actor_score", ("frame",), (frames,), "float32", {}))
        if others := settings.actor.actors - 1:
            said = "as actor_box, of the next best people; the full frame where there is none"
            dims = ("other", "frame", "corner")
            places.append(("other_box", dims, (others, frames, 4), "float32", {"long_name": said}))
            places.append(("other_score", ("other", "frame"), (others, frames), "float32", {}))
            said = "as actor_coverage, of the next best people: of the whole video, in every segment"
            places.append(("other_coverage", ("other",), (others,), "float32", {"long_name": said}))
    return [*(ArraySpec(*place, role="coordinate") for place in places), *_made(settings, frames)]


def _made(settings: ExtractSettings, frames: int) -> Iterable[ArraySpec]:
    """What the networks say."""
    for stream in chosen(settings):
        for name in stream.outputs:
            output = stream.backbone.outputs[name]
            # xarray wants one size of one dimension in all arrays, and backbones differ.
            own = "" if stream.backbone.name == DEFAULT else f"_{stream.backbone.name}"
            yield ArraySpec(
                stream.array(name),
                tuple(f"{dim}{own}" for dim in output.dims),
                output.shape(frames, stream.input(settings).crop),
                "float32",
                {"stream": stream.name, "backbone": stream.backbone.about},
                role=output.role,
            )
