"""`aqa-train --dry-run`: what would be trained, and for how long, tried on a few epochs that leave nothing behind."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from aqa_shared.console import as_time, counted
from aqa_shared.errors import UsageError
from aqa_shared.files import free_bytes, scratch
from aqa_train.checkpoint import writing
from aqa_train.config import Training
from aqa_train.method_settings import epochs_of
from aqa_train.methods import METHODS
from aqa_train.signals import Stopped
from aqa_train.train_one import place, run_training
from aqa_train.trainer import KEPT, Diverged

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from aqa_train.experiment import Experiment, OneTraining
    from aqa_train.features import FeatureSet, InMemory

TRIED_EPOCHS = 5
TRY_SECONDS = 15.0
"""A method is tried no longer, once it had two epochs."""


def estimate(
    experiment: Experiment,
    own: Sequence[OneTraining],
    out: Path,
    resume: bool,
    device: torch.device,
    in_memory: InMemory,
    jobs: int,
) -> str:
    """What the command would do, as a person reads it. Raises what it would raise; writes nothing.

    `own`: those of the experiment's trainings that are asked for.
    """
    with writing(out):
        free = free_bytes(out)
    placed = place(experiment.features, device, in_memory)
    config, features, split = experiment.config, experiment.features, experiment.splits[0]
    streams = ", ".join(f"{n} ({c})" for n, c in features.channels.items())
    seeds = len({training.split.seed for training in experiment.trainings})
    each, left_out = {}, dict(experiment.left_out)
    for method in dict.fromkeys(t.method for t in own):
        try:
            each[method] = seconds_of(method, experiment, placed, device)
        except (UsageError, Diverged) as e:
            if not config.leave_out:
                raise
            left_out[method] = e.cause
    trainings = [t for t in own if t.method in each]
    every = len(experiment.trainings)
    part = f" (this part of {every})" if len(own) < every else ""
    seconds = sum(each[t.method] for t in trainings) / jobs
    takes = {m: hasattr(METHODS[m].load(), "losses") for m in each}
    epochs = ", ".join(f"{m} of {counted(epochs_of(config, m), 'epoch')}" if takes[m] else m for m in each)
    return "\n".join(
        (
            f"{counted(len(trainings), 'training')}{part}: {epochs} "
            f"× {counted(len({s.fold for s in experiment.splits}), 'fold')} × {counted(seeds, 'seed')}, "
            f"{jobs} at a time on {device}",
            f"{counted(len(features.ids), 'video')} of up to {counted(features.segments, 'segment')}; {streams}; "
            f"{features.nbytes / 2**20:.1f} MiB",
            f"fold 0, seed {split.seed}: {len(split.labelled)} labelled, {len(split.unlabelled)} unlabelled, "
            f"{len(split.validation)} validation, {len(split.test)} test",
            f"run folder: {out} ({'goes on where it stands' if resume else 'new'}), {free / 1e9:.1f} GB free",
            f"time: about {as_time(seconds)}{' less what is done' if resume else ''}, estimated from a few "
            "epochs of each method, tried just now one at a time; a busier machine takes longer",
            *(f"{method} is left out: {why}" for method, why in left_out.items()),
        )
    )


def seconds_of(method: str, experiment: Experiment, features: FeatureSet, device: torch.device) -> float:
    """How long one training of a method takes, by a few epochs of its first."""
    first = next(t for t in experiment.trainings if t.method == method)
    return epochs_of(experiment.config, method) * _seconds_an_epoch(experiment, first, features, device)


def _seconds_an_epoch(
    experiment: Experiment, training: OneTraining, features: FeatureSet, device: torch.device
) -> float:
    """Of one training, without its first epoch, which pays for what is only done once; of one without epochs, all."""
    config = experiment.config
    asked = {**config.training.model_dump(exclude_unset=True), "epochs": TRIED_EPOCHS}
    own = {k: v for k, v in config.settings.items() if not k.endswith(".epochs")}
    short = config.model_copy(update={"training": Training(**asked), "settings": own})
    trial = replace(experiment, config=short)
    ends: list[float] = [time.monotonic()]
    limit = time.monotonic() + TRY_SECONDS
    with scratch("aqa-try-") as folder, suppress(Stopped):
        try:
            run_training(
                trial,
                training,
                features,
                folder,
                device,
                stop=lambda: int(len(ends) > 2 and time.monotonic() > limit),
                on_epoch=lambda epoch, row: ends.append(time.monotonic()),
            )
        except Diverged as e:
            # What a trial keeps goes with its folder.
            raise Diverged(e.cause.partition(KEPT)[0], fix=e.fix) from None
    if len(ends) < 3:
        return time.monotonic() - ends[0]
    return (ends[-1] - ends[1]) / (len(ends) - 2)
