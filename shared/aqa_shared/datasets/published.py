"""What an adapter makes of a published dataset: its performances, its splits, and what is wrong in its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from aqa_shared.records import Finite, Record

Sequences = Callable[[], Iterator[tuple[str, NDArray[np.float32]]]]


class Range(Record):
    """Lowest and highest score: what R-ℓ2 divides by, and what scores are rescaled by."""

    low: float
    high: float
    category: str | None = None
    """Of these performances; None is all."""
    column: str = "score"
    """Of which column."""


class About(Record):
    """A published dataset: one row of `aqa datasets list`."""

    title: str
    videos: str
    """How many of what."""
    scores: str
    paper: str
    where: str
    """Where to get its files."""
    licence: str
    ranges: tuple[Range, ...] = ()
    """Of all published scores, test videos among them, as the papers' R-ℓ2 takes them."""
    fps: float = 25.0
    """Pictures per second, of folders of pictures."""


class Performance(Record):
    """One row: where the video is, and all that the dataset says about it. Scores are in the dataset's units."""

    id: str = Field(min_length=1)
    path: str | None = None
    """Relative to the dataset's folder: a video, or a folder of pictures. Where it is missing, where it is expected;
    None where the dataset has no videos."""
    missing: bool = False
    start: int | None = Field(default=None, ge=0)
    end: int | None = Field(default=None, ge=1)
    """The part [start, end) of `path`, in frames; None is all of it."""
    frames: int | None = None
    """How many frames the annotation says that the performance has."""
    seconds: Finite | None = None
    """How long the annotation says that it is, where it does not say it in frames."""
    pictures: int | None = None
    """How many pictures the folder holds; None for a video."""
    score: Finite | None = None
    difficulty: Finite | None = None
    split: str | None = None
    category: str | None = None
    group: str | None = None
    """Who performed, or where: what leave-one-group-out leaves out."""
    columns: dict[str, Any] = Field(default_factory=dict)
    """All else, by column: numbers and texts, and lists and objects, which are written as JSON."""

    @model_validator(mode="after")
    def _part_is_in_order(self) -> Performance:
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise ValueError(f"end ({self.end}) must be greater than start ({self.start})")
        return self


@dataclass(frozen=True)
class SplitFile:
    """A split as it is published: of a table `id,split` or `id,fold`."""

    name: str
    column: Literal["split", "fold"]
    rows: list[tuple[str, str]]
    """(id, role or fold), as often as the published files name it."""


@dataclass(frozen=True)
class JudgedPair:
    """Of two videos, which one was judged better. An order, and no distance."""

    better: str
    worse: str
    category: str
    roles: dict[str, str] = field(default_factory=dict)
    """By the number of a published split: train or test."""


@dataclass(frozen=True)
class Finding:
    """Something wrong in the files, and what is done about it."""

    where: str
    """File and row, or id."""
    what: str
    done: str
    known: bool = False
    """The files are published so: nothing that the user could mend."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.done}"


@dataclass
class Published:
    """A dataset as its files say it is, in their order."""

    performances: list[Performance]
    sources: list[str]
    """The files that were read, relative to the dataset's folder, with what is taken from each."""
    splits: list[SplitFile] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    pairs: list[JudgedPair] = field(default_factory=list)
    sequences: Sequences | None = None
    """(id, (time, channels)) of signals that come with the dataset: kinematics, skeletons."""

    @property
    def roles(self) -> dict[str, str]:
        """Id → train, test or val, by the first split; empty where there is none."""
        return dict(self.splits[0].rows) if self.splits else {}
