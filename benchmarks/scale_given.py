"""What the model of many workers is given, and what it says of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Costs:
    """What `--measure` finds; seconds are those of a core, but for `start`."""

    decode_rate: float
    """Frames a second of one decoder."""
    clip_rate: float
    """Clips a second of one network on one core."""
    flow_rate: float
    """Pairs a second of TV-L1 on one core."""
    start: float
    """Seconds until a process has loaded its networks."""
    plan: float
    """Seconds for each file that is listed, dealt and planned."""
    stats: float
    """Questions to the file system for each file that a part looks at."""
    commit: float
    commit_puts: float
    marker: float
    """Seconds to read a committed video's marker."""
    marker_bytes: float
    marker_memory: float
    """Bytes of memory for each committed video while a process knows of it."""
    index: float
    """Seconds to read a finalised video's place in the index."""
    finalise: float
    """Seconds for each committed video."""
    finalise_memory: float
    finalise_rounds: float
    """Requests of a finalise for each video, each divided by how many are under way at once."""
    finalise_gets: float
    finalise_deletes: float


@dataclass(frozen=True)
class Setting:
    """What a lab has; whatever is not known here is an assumption, and can be given."""

    videos: int = 1_000_000
    hours: float = 100_000.0
    tail: float = 1.2
    """Sigma of the log-normal distribution of lengths; none is longer than four hours."""
    fps: float = 25.0
    segments: int = 10
    """Clips of 16 frames a video; 0 is one after the other, over all frames."""
    read: float = 0.33
    """Of the frames, those that are decoded for ten segments (benchmarks/decode.py)."""
    networks: int = 2
    flow: bool = True
    device: float = 50.0
    """Assumed: one worker's device beside one of the measured cores."""
    decoders: int = 8
    """Cores that decode for each device."""
    latency: float = 0.03
    puts: float = 3500.0
    gets: float = 5500.0
    """Requests a second of one prefix (assumed: what Amazon documents for S3)."""
    stats: float = 20_000.0
    """Assumed: questions a second that the file system of the videos answers."""
    remote: bool = True
    spread: float = 0.1
    stragglers: float = 0.02
    slower: float = 2.0
    lifetime: float = 24.0
    """Hours between two ends of a worker: pre-emption, a time limit, a fault. 0: none ends."""
    warned: float = 0.5
    """Of these ends, those that a signal announces: what has begun is finished then."""
    requeue: float = 600.0
    """Mean seconds until it, or another one, goes on."""
    bitrate_spread: float = 0.3
    """Sigma: how far sizes of files, by which parts are dealt, are from their lengths."""
    bandwidth: float = 1e9
    """Assumed: bytes a second between the store and the machine that finalises."""
    parts: int = 1
    """Of an array, for each worker: what waits is begun when a part has ended."""
    per_block: float = 0.005
    """Assumed: seconds that Dask's client is busy with a block."""
    seed: int = 0


@dataclass
class Result:
    engine: str
    workers: int
    batches: int
    wall: float = 0.0
    """Seconds, all of it."""
    ideal: float = 0.0
    """Seconds of all videos, one after the other with everything overlapped, divided by the workers."""
    plan: float = 0.0
    finalise: float = 0.0
    finalise_memory: float = 0.0
    start_memory: float = 0.0
    """The largest of a process that begins."""
    idle: float = 0.0
    lost: float = 0.0
    """Worker seconds."""
    committed: int = 0
    again: int = 0
    """Videos that were made more than once."""
    ends: int = 0
    puts: float = 0.0
    gets: float = 0.0
    deletes: float = 0.0
    peak_puts: float = 0.0
    peak_gets: float = 0.0
    waited: dict[str, float] | None = None
    """Seconds of workers by what they waited for."""
    retried: int = 0
    refused: int = 0
    """Requests that a client would have given up: its run ends with code 6."""

    @property
    def efficiency(self) -> float:
        return self.ideal / self.wall

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "waited": dict(sorted((self.waited or {}).items())), "efficiency": self.efficiency}
