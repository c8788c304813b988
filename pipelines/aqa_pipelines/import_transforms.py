"""What `aqa import-features --transform` does to the array of a video: a table of small functions of time.

A transform is written NAME or NAME:SETTING=VALUE,…; several are applied one after the other. Each is a record, so that
its settings are checked once, and written into the identity of the stream that it makes.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Shaped
from pydantic import Field, ValidationError, model_validator

from aqa_shared.errors import UsageError, did_you_mean
from aqa_shared.records import Finite, Record

Signal = Float[np.ndarray, "time channels"]


class Transform(Record):
    """From the array of a video to another one; rows are times."""

    about: ClassVar[str]
    any_shape: ClassVar[bool] = False
    """Whether it takes more than (time, channels)."""

    @abstractmethod
    def __call__(self, x: Shaped[np.ndarray, "time ..."]) -> Shaped[np.ndarray, "rows ..."]: ...


class Flatten(Transform):
    """(time, joints, 3) → (time, joints × 3)."""

    about = "all numbers of a time as one row: joints, views, maps"
    any_shape = True

    def __call__(self, x: Shaped[np.ndarray, "time ..."]) -> Signal:
        return x.reshape(len(x), -1)


class Mean(Transform):
    """(time, views, channels) → (time, channels)."""

    about = "the mean over the axes between time and channels: views, crops"
    any_shape = True

    def __call__(self, x: Shaped[np.ndarray, "time ..."]) -> Signal:
        return x.mean(axis=tuple(range(1, x.ndim - 1))) if x.ndim > 2 else x


class Fill(Transform):
    """NaN becomes a number, as features without a value are often written."""

    about = "NaN becomes `value`"
    any_shape = True
    value: Finite = 0.0

    def __call__(self, x: Shaped[np.ndarray, "time ..."]) -> Shaped[np.ndarray, "time ..."]:
        return np.where(np.isnan(x), np.asarray(self.value, x.dtype), x) if x.dtype.kind == "f" else x


class Resample(Transform):
    """`rows` rows at even distances from the first to the last time, by linear interpolation; nothing is smoothed."""

    about = "`rows` rows, linearly between those that are there"
    rows: int = Field(ge=1)

    def __call__(self, x: Signal) -> Signal:
        at = np.linspace(0, len(x) - 1, self.rows)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, len(x) - 1)
        part = (at - low)[:, None]
        return x[low] * (1 - part) + x[high] * part


class WindowsDct(Transform):
    """(windows, channels × coefficients): the lowest orthonormal DCT-II coefficients of every channel in every window.

    S4AQA (Zhang et al., TCSVT 2022, doi:10.1109/tcsvt.2022.3143549) reads a DCT of the positions of JIGSAWS' four
    manipulators; how many windows and coefficients it has is not stated, so ten windows that share the time evenly and
    15 coefficients are ours. With `window` and `stride` windows have that many rows instead; the last one is the last
    that is whole, and what is shorter than a window is one. A window shorter than `coefficients` ends in zeros.
    """

    about = "of each of `windows` even windows, or of windows of `window` rows every `stride`, `coefficients` of a DCT"
    coefficients: int = Field(default=15, ge=1)
    windows: int | None = Field(default=None, ge=1)
    window: int | None = Field(default=None, ge=1)
    stride: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_kind_of_window(self) -> WindowsDct:
        if self.windows is not None and (self.window is not None or self.stride is not None):
            raise ValueError("give windows, or window and stride, not both")
        if (self.window is None) != (self.stride is None):
            raise ValueError("window and stride belong together")
        if self.windows is None and self.window is None:
            object.__setattr__(self, "windows", 10)
        return self

    def __call__(self, x: Signal) -> Signal:
        from scipy.fft import dct

        spans = self._spans(len(x))
        out = np.zeros((len(spans), x.shape[1], self.coefficients), dtype=np.float64)
        for i, (start, stop) in enumerate(spans):
            if stop > start:
                found = dct(x[start:stop].astype(np.float64), axis=0, norm="ortho")[: self.coefficients]
                out[i, :, : len(found)] = found.T
        return out.reshape(len(spans), -1)

    def _spans(self, length: int) -> list[tuple[int, int]]:
        if self.window is not None and self.stride is not None:
            starts = range(0, max(1, length - self.window + 1), self.stride)
            return [(start, min(start + self.window, length)) for start in starts]
        edges = np.linspace(0, length, (self.windows or 1) + 1).round().astype(int).tolist()
        return list(itertools.pairwise(edges))


TRANSFORMS: dict[str, type[Transform]] = {
    "windows-dct": WindowsDct,
    "resample": Resample,
    "flatten": Flatten,
    "mean": Mean,
    "fill": Fill,
}


def transforms_of(texts: Iterable[str]) -> list[tuple[str, Transform]]:
    """(how it is written, in full, transform) of every NAME:SETTING=VALUE,…. Raises UsageError."""
    return [_transform(text) for text in texts]


def _transform(text: str) -> tuple[str, Transform]:
    name, _, rest = text.partition(":")
    if name not in TRANSFORMS:
        near = did_you_mean(name, TRANSFORMS)
        raise UsageError(f"--transform {text!r}", fix=f"{near} choose one of {', '.join(TRANSFORMS)}".lstrip())
    settings = dict(part.partition("=")[::2] for part in rest.split(",") if part)
    try:
        made = TRANSFORMS[name].model_validate(settings)
    except ValidationError as e:
        first = e.errors()[0]
        known = ", ".join(TRANSFORMS[name].model_fields) or "none"
        where = ".".join(map(str, first["loc"]))
        cause = first["msg"].removeprefix("Value error, ")
        raise UsageError(
            f"--transform {text!r}: {where + ': ' if where else ''}{cause}", fix=f"its settings are: {known}"
        ) from None
    chosen = [f"{k}={v}" for k, v in sorted(made.model_dump(exclude_none=True).items())]
    return (f"{name}:{','.join(chosen)}" if chosen else name), made
