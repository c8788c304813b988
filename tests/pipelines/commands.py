"""Our commands as people type them: real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
ALWAYS = {"COLUMNS": "120", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def run(*arguments: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """One command of ours, as a process."""
    command = [str(BIN / str(arguments[0])), *map(str, arguments[1:])]
    environment = {**os.environ, **ALWAYS, **env}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)
