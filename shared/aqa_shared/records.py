"""The typed records that cross borders, validated once where they enter.

All are frozen and serialise to JSON, because the store keeps them as provenance: two feature arrays are
comparable exactly when their `ExtractSettings` and weight digests are equal.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from aqa_shared.options import Option, Several, pairs

Protocol = Literal["even", "dense", "mtl-aqa", "rhythmic-gymnastics", "jigsaws", "finediving", "aqa-7", "finefs"]

SEGMENTS, STREAMS, FLOW, PIXELS, ACTOR = "Segments", "Streams", "Flow", "Pixels", "Actor"
NETWORKS = "Networks and weights"
"""Headings of the options that these records are (`aqa_extract.config`)."""

UntaggedMatrix = Literal["bt601", "bt709", "by-size"]

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""JSON has neither infinity nor NaN, and no setting or label means anything with them."""


class Record(BaseModel):
    """Base of all records: immutable, and an unknown field is an error rather than a silent loss."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Video(Record):
    """One performance: a video file, or a part of one, with what is known about it.

    The part is [start, end) in display-order frames, or [start_time, end_time) in seconds; not both.
    """

    id: str = Field(min_length=1)
    """Stable and unique in a store; printable text."""
    path: str
    """Where the file is, absolute (surrogate-escaped where the name is not UTF-8)."""
    start: int | None = Field(default=None, ge=0)
    end: int | None = Field(default=None, ge=1)
    start_time: Finite | None = Field(default=None, ge=0)
    end_time: Finite | None = Field(default=None, gt=0)
    frame_rate: Finite | None = Field(default=None, gt=0, le=1000)
    """Pictures per second, where `path` is a folder of pictures; None is a file."""
    score: Finite | None = None
    """In the dataset's own units; None is an unlabelled video."""
    difficulty: Finite | None = None
    split: str | None = None
    """`train`, `test` or `val` as the dataset gives it."""
    category: str | None = None
    """Action class or apparatus."""
    extra: dict[str, str | float | int | bool | None] = Field(default_factory=dict)
    """Every other manifest column, kept with the features."""

    @property
    def has_labels(self) -> bool:
        """Whether anything is known about it beyond the file."""
        known = (self.score, self.difficulty, self.split, self.category)
        return any(value is not None for value in known) or bool(self.extra)

    @model_validator(mode="after")
    def _one_kind_of_part(self) -> Video:
        frames = self.start is not None or self.end is not None
        seconds = self.start_time is not None or self.end_time is not None
        if frames and seconds:
            raise ValueError("give the part in frames (start, end) or in seconds (start_time, end_time), not both")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"end ({self.end}) must be greater than start ({self.start})")
        if self.start_time is not None and self.end_time is not None and self.end_time <= self.start_time:
            raise ValueError(f"end_time ({self.end_time}) must be greater than start_time ({self.start_time})")
        return self


PUBLISHED_FRAMES = 16
"""Frames of a clip in the protocols of published code, and of I3D's."""


class Sampling(Record):
    """Which frames make up the segments; `aqa_extract.sampling` gives the exact indices."""

    protocol: Annotated[
        Protocol, Option(SEGMENTS, f"Which frames make up the segments: {', '.join(get_args(Protocol))}.")
    ] = "even"
    segments: Annotated[
        Annotated[int, Field(ge=1)] | Literal["auto"],
        Option(
            SEGMENTS, "Segments per video (even), or auto: as many as it takes to see every frame.", metavar="N|auto"
        ),
    ] = 10
    segment_frames: Annotated[
        int | None, Option(SEGMENTS, "Frames per segment (even, dense).", default="the backbone's, 16 for i3d")
    ] = Field(default=None, ge=1)
    """None is what the backbones were trained on. A run's own settings always say."""
    step: Annotated[int, Option(SEGMENTS, "Frames between segment starts (dense).")] = Field(default=16, ge=1)
    """In frames of the timeline."""
    fps: Annotated[Finite | None, Option(SEGMENTS, "Resample to this frame rate by timestamp first.")] = Field(
        default=None, gt=0
    )
    """None keeps every frame, or the protocol's own rate."""
    last_start: Annotated[int, Option(SEGMENTS, "Start of the tenth clip (mtl-aqa, aqa-7): 86 or 87.")] = Field(
        default=86, ge=86, le=87
    )
    """86 in CoRe's code, 87 in MUSDL's."""

    @model_validator(mode="after")
    def _published_protocols_have_their_clip(self) -> Sampling:
        if self.protocol not in ("even", "dense") and self.segment_frames not in (None, PUBLISHED_FRAMES):
            raise ValueError(
                f"protocol {self.protocol} has clips of {PUBLISHED_FRAMES} frames, got "
                f"segment_frames={self.segment_frames}"
            )
        return self

    @property
    def frames(self) -> int:
        """`segment_frames`, 16 where nothing is said."""
        return self.segment_frames or PUBLISHED_FRAMES


class Pixels(Record):
    """From a decoded frame to the networks' input. None is what each backbone was trained on."""

    short_side: Annotated[
        int | None,
        Option(PIXELS, "Pixels of the short side to which frames are resized.", default="the backbone's, 256 for i3d"),
    ] = Field(default=None, ge=32)
    crop: Annotated[
        int | None, Option(PIXELS, "Side of the square that the network sees.", default="its own, 224 for i3d")
    ] = Field(default=None, ge=32)
    fit: Annotated[
        Literal["crop", "squash"] | None,
        Option(PIXELS, "The middle square of a frame, or the whole frame made square.", default="the backbone's"),
    ] = None
    normalise: Annotated[
        Literal["kinetics", "imagenet"] | None,
        Option(PIXELS, "kinetics is [-1, 1]; imagenet is what CoRe-style code feeds to I3D.", default="the backbone's"),
    ] = None
    """`kinetics` maps 0..255 to [-1, 1] as I3D was trained; `imagenet` is what CoRe-style code feeds it."""
    antialias: Annotated[bool | None, Option(PIXELS, "Smooth frames when they are made smaller.")] = None
    """Off matches the OpenCV/TF bilinear resize of the I3D authors, and torchvision's video transforms."""
    untagged_matrix: Annotated[
        UntaggedMatrix,
        Option(PIXELS, "How to read colours where the file does not name their matrix."),
    ] = "bt601"
    """How to read YCbCr whose file names no matrix: as FFmpeg, OpenCV and decord do (BT.601), as HDTV (BT.709), or
    BT.709 from 1280 pixels of width or 577 of height on."""

    @model_validator(mode="after")
    def _crop_fits(self) -> Pixels:
        known = self.crop is not None and self.short_side is not None and self.fit != "squash"
        if known and self.crop > self.short_side:  # type: ignore[operator]
            raise ValueError(f"crop ({self.crop}) must not exceed short_side ({self.short_side})")
        return self


class FlowSettings(Record):
    """TV-L1 optical flow and how it becomes network input."""

    mode: Annotated[
        Literal["off", "parity"],
        Option(FLOW, "TV-L1; parity is as OpenCV on a CPU.", key="flow", default="parity for flow streams, else off"),
    ] = "off"
    """`parity` is OpenCV's CPU DualTVL1, which I3D's flow network was trained on."""
    quantise: Annotated[
        Literal["mediapipe", "round", "none"],
        Option(FLOW, "How flow is rounded to 8 bits; mediapipe is as I3D was trained.", key="flow_quantise"),
    ] = "mediapipe"
    bound: Annotated[Finite, Option(FLOW, "Pixels at which flow is clipped.", key="flow_bound")] = Field(
        default=20.0, gt=0
    )
    """Displacements are clipped to ±bound pixels, then scaled to [-1, 1]."""


class ActorSettings(Record):
    """Where the actor is looked for, who it is, and how the crop is made."""

    select: Annotated[
        Literal["motion", "longest", "largest", "central"],
        Option(
            ACTOR,
            "Which of several people is the actor: who moves most, is seen longest, is largest, or most central.",
            key="actor_select",
        ),
    ] = "motion"
    actors: Annotated[
        int, Option(ACTOR, "How many of the best people to keep tracks of; the features are of the best.")
    ] = Field(default=1, ge=1, le=16)
    every: Annotated[int, Option(ACTOR, "Look for people on every N-th frame of the video.", key="actor_every")] = (
        Field(default=2, ge=1)
    )
    """Between them, boxes are interpolated."""
    looks: Annotated[
        int,
        Option(
            ACTOR, "Look for people on at most this many frames of a video, spread over all of it.", key="actor_looks"
        ),
    ] = Field(default=400, ge=2)
    min_score: Annotated[
        Finite, Option(ACTOR, "Lowest score of a detection; a person needs two.", key="actor_min_score")
    ] = Field(default=0.4, gt=0, le=1)
    """Whole frames of noise and test patterns seldom have as much (docs/actor.md)."""
    min_coverage: Annotated[
        Finite,
        Option(
            ACTOR,
            "Below this share of frames with the actor, of those that were searched, the full frame is used.",
            key="actor_min_coverage",
        ),
    ] = Field(default=0.2, ge=0, le=1)
    enlarge: Annotated[
        Finite, Option(ACTOR, "Side of the actor's crop, as a multiple of the body's.", key="actor_enlarge")
    ] = Field(default=1.25, ge=1)
    """The crop is a square, and the body's side its longer one."""


class ExtractSettings(Record):
    """Everything that decides the value of a feature; two stores that differ here do not mix."""

    streams: Annotated[
        Several,
        Option(
            STREAMS,
            "Each is {grammar}. Views: {views}. Backbones: {backbones}. Outputs: `aqa streams`.",
            metavar="STREAM,...",
            default="rgb, and flow where --flow is on",
        ),
    ] = ("rgb",)
    """What to keep: STREAM or STREAM:OUTPUT, each an array; `aqa_extract.streams` has the table."""
    sampling: Sampling = Sampling()
    pixels: Pixels = Pixels()
    flow: FlowSettings = FlowSettings()
    actor: ActorSettings = ActorSettings()
    weights: Annotated[
        dict[str, str],
        BeforeValidator(pairs),
        Option(
            NETWORKS,
            "Of the networks rgb, flow, actor or rgb@BACKBONE: a name of `aqa weights list` or a file. Repeat it for "
            "several.",
            metavar="NETWORK=NAME|FILE",
        ),
    ] = Field(default_factory=dict)
    """By network (`rgb`, `flow`, `actor`, `rgb@BACKBONE`): a registry name or a file; `default` for those that are not
    here. Which source served them, with its digest, is provenance."""
    bn_eps: Annotated[Finite, Option(NETWORKS, "I3D batch-norm epsilon; 1e-5 matches CoRe-style features.")] = Field(
        default=1e-3, gt=0
    )
    """1e-3 is I3D's own; 1e-5 reproduces features of CoRe-style code."""
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"],
        Option(
            NETWORKS,
            "Of the backbones; bf16 is 2 to 4 times as fast on processors with units for it.",
        ),
    ] = "fp32"

    @model_validator(mode="after")
    def _streams_are_named_once(self) -> ExtractSettings:
        if not self.streams or len(set(self.streams)) != len(self.streams):
            raise ValueError(f"streams must name each stream once, got {self.streams}")
        return self

    def joined(self, later: ExtractSettings) -> ExtractSettings:
        """Of a store to which a later run added streams: of each part the settings of the run that used it."""
        changes: dict[str, object] = {
            "streams": tuple(dict.fromkeys((*self.streams, *later.streams))),
            "weights": {**later.weights, **self.weights},
        }
        if self.flow.mode == "off":
            changes["flow"] = later.flow
        if not any("actor" in s for s in self.streams):
            changes["actor"] = later.actor
        if not any("rgb" in s for s in self.streams):
            changes["pixels"] = later.pixels
        return self.model_copy(update=changes)


class Failure(Record):
    """Why a video is not in the store."""

    id: str
    path: str
    reason: str
    """A stable code such as `no_moov`, `too_large`, `decode_timeout`."""
    stage: Literal["probe", "decode", "sampling", "features", "commit"]
    detail: str
    """For people: cause and, where there is one, the fix."""
    backend: str = ""
    seconds: float = 0.0
    limit: float | None = None
    """Of a `decode_timeout`: the seconds it was given. With more, the next run tries again by itself."""
    size: int | None = None
    mtime_ns: int | None = None
    """The file as it was: when it changes, the next run tries it again by itself."""
