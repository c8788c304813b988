"""Writes clips of every kind that decoding has to cope with; frames are synthetic, small and all different."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from aqa_extract.decode.child import Decoder, DecodeRequest
from aqa_extract.decode.probe import Probe
from aqa_shared.records import Sampling, Video


def picture(index: int, width: int, height: int) -> np.ndarray:
    """uint8 (height, width, 3): a drifting colour gradient, a moving block and the index as stripes."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack(
        ((x * 3 + index * 5) % 256, (y * 4 + index * 3) % 256, ((x + y) * 2 + index * 7) % 256), axis=-1
    ).astype(np.uint8)
    left = (index * 4) % max(1, width - 8)
    rgb[height // 3 : height // 3 + 8, left : left + 8] = 255 - rgb[0, 0]
    for bit in range(8):
        rgb[:4, bit * 4 : bit * 4 + 4] = 255 * (index >> bit & 1)
    return rgb


@contextlib.contextmanager
def _usual_priority() -> Iterator[None]:
    """SVT-AV1 makes the process that encodes with it a real-time one where it may (as root), for good.

    Whatever that process starts afterwards is real-time too and starves what it talks with.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        if os.sched_getscheduler(0) != policy:
            os.sched_setscheduler(0, policy, parameters)


@dataclass(frozen=True)
class Clip:
    """How to write one; the defaults are the plainest video there is."""

    codec: str = "libx264"
    suffix: str = ".mp4"
    frames: int = 30
    size: tuple[int, int] = (64, 48)
    """Width, height."""
    fps: Fraction = Fraction(25)
    pix_fmt: str = "yuv420p"
    gop: int = 12
    b_frames: int = 2
    options: dict[str, str] = field(default_factory=dict)
    container_options: dict[str, str] = field(default_factory=dict)
    aspect: Fraction | None = None
    """Sample aspect ratio; None says nothing about it."""
    rotation: int = 0
    """Degrees counter-clockwise of the display matrix."""
    stamps: Sequence[int] | None = None
    """Presentation times in `time_base`, for variable rates; None is one tick of 1/fps a frame."""
    time_base: Fraction | None = None
    format: str | None = None
    audio_seconds: float = 0.0
    interlaced: bool = False
    videos: int = 1
    color: dict[str, int] = field(default_factory=dict)
    draw: Callable[[int, int, int], np.ndarray] = picture
    """(index, width, height) → (height, width, 3), uint8 or uint16 of full range."""

    def write(self, path: Path) -> Path:
        """Encode to `path` (its suffix is replaced by the clip's) and return where it is."""
        path = path.with_suffix(self.suffix)
        with _usual_priority(), av.open(str(path), "w", format=self.format, options=self.container_options) as out:
            streams = [self._stream(out) for _ in range(self.videos)]
            sound = out.add_stream("aac", rate=16000) if self.audio_seconds else None
            for number, stream in enumerate(streams):
                for i in range(self.frames):
                    rgb = self.draw(i + 100 * number, *self.size)
                    frame = av.VideoFrame.from_ndarray(rgb, format="rgb24" if rgb.dtype == np.uint8 else "rgb48le")
                    if self.pix_fmt != "rgb24":
                        frame = frame.reformat(format=self.pix_fmt, dst_colorspace=self.color.get("colorspace"))
                    frame.pts = i if self.stamps is None else self.stamps[i]
                    frame.time_base = self.time_base or 1 / self.fps
                    out.mux(stream.encode(frame))
                out.mux(stream.encode())
            if sound is not None:
                samples = int(self.audio_seconds * 16000)
                for start in range(0, samples, 1024):
                    tone = np.zeros((1, 1024), np.float32)
                    frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
                    frame.sample_rate, frame.pts = 16000, start
                    out.mux(sound.encode(frame))
                out.mux(sound.encode())
        return path

    def _stream(self, out: av.container.OutputContainer) -> Any:
        stream = out.add_stream(self.codec, rate=self.fps, options=dict(self.options))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = self.size
        stream.pix_fmt = self.pix_fmt
        if self.time_base is not None:
            stream.codec_context.time_base = self.time_base
        context = stream.codec_context
        context.gop_size = self.gop
        if self.codec in ("libx264", "libx265", "mpeg4", "mpeg2video"):
            context.max_b_frames = self.b_frames
        if self.interlaced:
            stream.codec_context.options = {**stream.codec_context.options, "x264-params": "tff=1"}
        for name, value in self.color.items():
            setattr(context, name, value)
        if self.aspect is not None:
            context.sample_aspect_ratio = self.aspect
        if self.rotation:
            stream.set_display_rotation(self.rotation)
        return stream


def copy_from(
    source: Path,
    target: Path,
    first_packet: int = 0,
    suffix: str = ".mp4",
    *,
    last_packet: int | None = None,
    parts: Sequence[tuple[int, int | None]] = (),
    format: str | None = None,
    options: dict[str, str] | None = None,
    shift: float = 0.0,
) -> Path:
    """Stream-copy packets [first_packet, last_packet) of `source` without re-encoding, as lazy cutting tools do.

    `shift` seconds are added to every timestamp; several `parts`, (first, last) packet each, follow each other.
    """
    target = target.with_suffix(suffix)
    with contextlib.ExitStack() as opened:
        parts = parts or ((first_packet, last_packet),)
        inputs = [opened.enter_context(av.open(str(source))) for _ in parts]
        stream = inputs[0].streams.video[0]
        out = opened.enter_context(av.open(str(target), "w", format=format, options=options or {}))
        copied = out.add_stream_from_template(stream, opaque=True)  # AV1's codec is named as its decoder
        assert stream.time_base is not None
        offset = round(shift / stream.time_base)
        for inp, (first, last) in zip(inputs, parts, strict=True):
            packets = [p for p in inp.demux(video=0) if p.dts is not None][first:last]
            stamps = sorted(p.pts for p in packets)
            for packet in packets:
                packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                packet.stream = copied
                out.mux(packet)
            offset += 2 * stamps[-1] - stamps[-2] - stamps[0]
    return target


def join(parts: Sequence[Path], target: Path) -> Path:
    """Stream-copy transport streams one after the other: parameters are in band, as a recorder goes on at another."""
    with av.open(str(target), "w") as out:
        copied, offset = None, 0
        for part in parts:
            with av.open(str(part)) as inp:
                stream = inp.streams.video[0]
                copied = copied or out.add_stream_from_template(stream)
                last = 0
                for packet in inp.demux(stream):
                    if packet.dts is not None:
                        last = max(last, packet.pts + 3600)
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        packet.stream = copied
                        out.mux(packet)
            offset += last
    return target


def reference(path: Path) -> np.ndarray:
    """uint8 (frames, height, width, 3): plain sequential PyAV, turned as displayed. The truth in these tests."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        return np.stack(
            [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in container.decode(stream)]
        )


EVERY_FRAME = Sampling(protocol="dense", segment_frames=9, step=1)


def request(path: Path | str, decoder: Any = "auto", sampling: Sampling = EVERY_FRAME, **more: Any) -> DecodeRequest:
    """Of a whole file or, with what `Video` knows of it, of a part."""
    part = {name: more.pop(name) for name in list(more) if name in Video.model_fields}
    video = Video(id="v", path=str(path), **part)
    return DecodeRequest(path=str(path), video=video, sampling=sampling, decoder=decoder, **{"deadline": 60.0, **more})


def x264(**parameters: Any) -> dict[str, str]:
    """A clip's `options` of H.264 with these x264 parameters."""
    return {"x264-params": ":".join(f"{k.replace('_', '-')}={v}" for k, v in parameters.items())}


def probe(decoder: Decoder, path: Path) -> Probe:
    """What a decoder finds out about a file without decoding it."""
    return decoder.open(DecodeRequest(str(path), Video(id="v", path=str(path)), Sampling())).probe


@dataclass
class Taken:
    """What a `Decoder.decode` handed over: the last `Opened`, every frame of it, and `Finished`."""

    opened: Any = None
    openings: int = 0
    positions: list[int] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    finished: Any = None

    @property
    def stack(self) -> np.ndarray:
        return np.stack(self.frames)

    @property
    def sources(self) -> np.ndarray:
        """Source frame index of every delivered frame."""
        return self.opened.plan.timeline[self.positions]


def take(events: Any) -> Taken:
    """Run a decode generator to its end, copying the frames out of shared memory."""
    taken = Taken()
    for event in events:
        match type(event).__name__:
            case "Opened":
                taken = Taken(opened=event, openings=taken.openings + 1)
            case "Chunk":
                taken.positions += event.positions.tolist()
                taken.frames += list(event.frames.copy())
            case "Finished":
                taken.finished = event
    return taken
