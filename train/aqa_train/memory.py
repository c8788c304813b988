"""Features in memory: how much there is, tensors that other processes may map, and what is said when it is full."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aqa_shared.errors import EnvironmentFault
from aqa_shared.machine import available_memory


@contextmanager
def enough_memory(fix: str) -> Iterator[None]:
    """Running out of memory is the machine's fault, not ours: say what needs less."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        # Torch has a class for a GPU's memory only; main memory's allocator says its name.
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in str(e):
            raise
        cause = (str(e) or "main memory is full").splitlines()[0]
        raise EnvironmentFault(f"not enough memory: {cause}", fix=fix) from e


def available(device: torch.device) -> int:
    """Bytes that may be used on the device, or in main memory."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return available_memory()


@dataclass(frozen=True)
class Loaded:
    """Features of some videos, padded to the longest."""

    streams: dict[str, Tensor]
    """(videos, segments, …), float32, by stream."""
    present: Tensor | None
    """(videos, segments): which segments exist; None where all do."""

    @classmethod
    def room(
        cls,
        videos: int,
        segments: int,
        shapes: Mapping[str, tuple[int, ...]],
        ragged: bool,
        folder: Path | None = None,
        new: bool = True,
    ) -> Loaded:
        """Zeros: in memory, or in files in `folder`; with `new` false what these files hold, in pages of our own.

        Raises OSError where the files find no room.
        """

        def tensor(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            if folder is None or 0 in shape:
                return torch.zeros(shape, dtype=dtype)
            file = folder / f"{name}.raw"
            if new:
                _reserve(file, math.prod(shape) * dtype.itemsize)
            kind = torch.empty(0, dtype=dtype).numpy().dtype
            return torch.from_numpy(np.memmap(file, kind, "r+" if new else "c", shape=shape))

        streams = {n: tensor(n, (videos, segments, *s), torch.float32) for n, s in shapes.items()}
        return cls(streams, tensor("present", (videos, segments), torch.bool) if ragged else None)

    def __len__(self) -> int:
        return len(next(iter(self.streams.values())))

    def take(self, rows: Any) -> Loaded:
        """These rows, an index or a slice."""
        present = None if self.present is None else self.present[rows]
        return Loaded({n: x[rows] for n, x in self.streams.items()}, present)

    @classmethod
    def joined(cls, parts: Sequence[Loaded]) -> Loaded:
        """A copy of them, one after the other."""
        streams = {n: torch.cat([p.streams[n] for p in parts]) for n in parts[0].streams}
        masks = [p.present for p in parts if p.present is not None]
        return cls(streams, torch.cat(masks) if masks else None)

    def to(self, device: torch.device) -> Loaded:
        present = None if self.present is None else self.present.to(device)
        return Loaded({n: x.to(device) for n, x in self.streams.items()}, present)


def _reserve(file: Path, size: int) -> None:
    with file.open("wb") as reserved:
        reserved.truncate(size)
        # A map of a file that has no room ends the process at the first touch.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(reserved.fileno(), 0, size)
