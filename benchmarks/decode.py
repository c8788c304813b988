"""What jumps save, what noting their entries costs, and what HDR costs, on this machine.

    python benchmarks/decode.py [--frames 6000] [--repeats 3] [--video FILE]

Every row is a ratio to a reference in the same run: sequential decoding by the same reader for jumps, plain demuxing
for the probe's packet table, FFmpeg's conversion to 8-bit RGB for HDR. Ours and the reference alternate; the ratio is
the median over the pairs. Frames after jumps are compared with the sequential ones, bit for bit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from aqa_extract.decode.colour import Converter
from aqa_extract.decode.probe import Probe, probe
from aqa_extract.decode.readers import AvReader
from aqa_extract.decode.seek import PacketLog, PacketTable
from aqa_extract.decode.source import VideoFile, open_video, packets_of
from aqa_extract.sampling import plan_segments
from aqa_shared.records import Sampling, Video

PIXELS = 4096**2


def write_clip(path: Path, frames: int, size: tuple[int, int], codec: str, hlg: bool = False) -> None:
    """A textured scene that shifts: real motion and detail for the codec; key frames as its encoder sets them."""
    width, height = size
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8 + 30, width // 8 + 60, 3), np.uint8)
    scene = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    with av.open(str(path), "w") as container:
        options = {"preset": "veryfast", "x265-params": "log-level=none"}
        stream = container.add_stream(codec, rate=Fraction(25), options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p10le" if hlg else "yuv420p"
        if hlg:
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc, context.color_range = 9, 9, 18, 1
        for i in range(frames):
            top, left = 60 + int(40 * np.sin(i / 9)), 160 + int(150 * np.sin(i / 70))
            picture = np.ascontiguousarray(scene[top : top + height, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())


def compare(name: str, repeats: int, ours: Callable[[], object], reference: Callable[[], object], what: str) -> None:
    """One row: the median ratio of alternating runs."""
    ratios, seconds = [], []
    for _ in range(repeats):
        started = time.perf_counter()
        reference()
        middle = time.perf_counter()
        ours()
        ended = time.perf_counter()
        ratios.append((ended - middle) / (middle - started))
        seconds.append((ended - middle, middle - started))
    mine, other = (statistics.median(column) for column in zip(*seconds, strict=True))
    print(f"{name:34s} {mine:8.3f} s  {what} {other:8.3f} s  ratio {statistics.median(ratios):.3f}", flush=True)


def jumps(source: VideoFile, found: Probe, table: PacketTable | None, repeats: int) -> None:
    n = found.n_expected
    cases = {
        "last 160 frames": (Video(id="v", path="v", start=n - 160), Sampling(segments=10)),
        "160 frames of 10 segments": (Video(id="v", path="v"), Sampling(segments=10)),
        "every frame": (Video(id="v", path="v"), Sampling(protocol="dense")),
    }
    for name, (video, sampling) in cases.items():
        plan = plan_segments(sampling, found.times, found.fps, video)
        wanted = plan.timeline[plan.wanted(False)].tolist()

        def read(seen: Probe, wanted: list[int] = wanted) -> tuple[int, int]:
            reader = AvReader(source, seen, PIXELS, "bt601", table)
            digest = 0
            for frame in reader.read(wanted, None):
                digest = hash((digest, frame.tobytes()))
            return digest, reader.tally.decoded - reader.tally.skipped

        (ours, decoded), (truth, _) = read(found), read(replace(found, entries=()))
        assert ours == truth, "frames after a jump differ"
        what = f"{decoded} of {n} frames decoded, equal; sequential"
        compare(name, repeats, partial(read, found), partial(read, replace(found, entries=())), what)


def packet_table(source: VideoFile, repeats: int) -> None:
    def demux(note: bool) -> None:
        with open_video(source, PIXELS) as (container, stream):
            log, count = PacketLog(container, stream), 0
            for packet in packets_of(container.demux(stream)):
                if note and packet is not None and packet.size:
                    log.add(packet)
                    count += 1
            log.table(count)

    compare("demux and note entries", repeats, lambda: demux(True), lambda: demux(False), "demux alone")


def hdr(path: Path, repeats: int) -> None:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    convert, plain = Converter("bt601"), VideoReformatter()

    def decode() -> None:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_count = 1
            for _ in container.decode(video=0):
                pass

    def to_rgb() -> None:
        for frame in frames:
            plain.reformat(frame, format="rgb24", threads=1).to_ndarray()

    def to_sdr() -> None:
        for frame in frames:
            convert(frame)

    name = f"HLG to SDR, {len(frames)} x {frames[0].width}x{frames[0].height}"
    compare(name, repeats, to_sdr, to_rgb, "to 8-bit RGB")
    compare(name, repeats, to_sdr, decode, "decoding them")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--video", type=Path, help="Compare jumps on this file instead.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.video or Path(folder) / "long.mp4"
        if arguments.video is None:
            write_clip(path, arguments.frames, (320, 180), "libx264")
        source = VideoFile(str(path))
        found, table = probe(source, PIXELS, "bt601")
        shape = f"{found.frame_width}x{found.frame_height}"
        print(f"{found.codec} {shape}, {found.n_expected} frames, {len(found.entries)} entries")
        jumps(source, found, table, arguments.repeats)
        packet_table(source, arguments.repeats)
        source.close()
        write_clip(Path(folder) / "hlg.mp4", 25, (1920, 1080), "libx265", hlg=True)
        hdr(Path(folder) / "hlg.mp4", arguments.repeats)


if __name__ == "__main__":
    main()
