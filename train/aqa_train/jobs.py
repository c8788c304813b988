"""What executors take: trainings, each with the folder that it leaves, and which of them can be computed together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aqa_train.experiment import Experiment, OneTraining
from aqa_train.method_settings import epochs_of, method_config, training_of
from aqa_train.methods import METHODS
from aqa_train.train_one import RESULT, STATE


@dataclass(frozen=True, eq=False)
class Job:
    """One training of one run."""

    experiment: Experiment
    training: OneTraining
    out: Path
    """The run's folder."""
    name: str
    """For people."""

    @property
    def folder(self) -> Path:
        return self.out / "models" / self.training.name

    @property
    def done(self) -> bool:
        return (self.folder / RESULT).exists()

    @property
    def saved(self) -> float:
        """When it was saved last, to go on from there; 0 where it was not."""
        try:
            return (self.folder / STATE).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @property
    def epochs(self) -> int:
        return epochs_of(self.experiment.config, self.training.method)

    @property
    def key(self) -> tuple[Path, str]:
        """Run folder and method: of what fails once, the other seeds and folds are not tried."""
        return self.out, self.training.method

    @property
    def shape(self) -> tuple[Any, ...] | None:
        """Equal for trainings that can be computed together; None where it is computed alone.

        They differ in the videos of their sets, in random numbers, and in the weights of their losses; a weight of 0,
        which leaves a loss out, all have or none.
        """
        config, method, split = self.experiment.config, self.training.method, self.training.split
        if not getattr(METHODS[method].load(), "together", False) or self.experiment.features.ragged:
            return None
        settings = {
            name: value > 0 if name.endswith("_weight") else value
            for name, value in dataclasses.asdict(method_config(config, method)).items()
        }
        how = training_of(config, method)
        return method, repr(settings), how, config.streams, len(split.labelled), len(split.unlabelled)


def bundles(jobs: Sequence[Job], together: int) -> list[list[Job]]:
    """Trainings to be computed together, at most so many, in the order of the first of each."""
    found: list[list[Job]] = []
    filling: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        shape = job.shape if together > 1 else None
        if shape is not None and len(filling.get(shape, ())) % together:
            filling[shape].append(job)
            continue
        found.append([job])
        if shape is not None:
            filling[shape] = found[-1]
    return found
