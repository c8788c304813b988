"""Our commands as people type them: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av

BIN = Path(sys.executable).parent
ALWAYS = {"COLUMNS": "120", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def run(*arguments: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """One command of ours, as a process."""
    command = [str(BIN / str(arguments[0])), *map(str, arguments[1:])]
    environment = {**os.environ, **ALWAYS, **env}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


def copy_cut(video: Path, target: Path) -> None:
    """A truncated copy whose index is whole: the last third of the bytes is missing."""
    with av.open(video) as source, av.open(target, "w", container_options={"movflags": "faststart"}) as written:
        stream = written.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                written.mux(packet)
    target.write_bytes(target.read_bytes()[: target.stat().st_size * 2 // 3])
