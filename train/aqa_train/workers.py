"""Run the trainings of an experiment one after the other, or spread over processes, with the same results."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from aqa_shared import console
from aqa_shared.errors import AqaError, ExitCode
from aqa_shared.machine import available_cores, pick_device
from aqa_train.config import RunConfig
from aqa_train.experiment import Experiment, OneTraining, epochs_of, place, prepare, run_training
from aqa_train.features import FeatureSet, InMemory
from aqa_train.outputs import refuse_other_data
from aqa_train.signals import Stopped, asked_to_stop, starting_workers, worker_asked_to_stop


def choose_jobs(jobs: int | None, trainings: int, device: torch.device, threads: int) -> int:
    """As many processes as cores can feed, at most one a training; one on a GPU."""
    if jobs is not None:
        return max(1, min(jobs, trainings))
    if device.type != "cpu":
        return 1
    return max(1, min(available_cores() // threads, trainings))


def run_all(
    experiment: Experiment,
    features: FeatureSet,
    out: Path,
    device: torch.device,
    jobs: int,
    in_memory: InMemory,
) -> None:
    """Finish every training of the experiment in `out`; raises `Stopped` when asked to, after saving."""
    left = set(_unfinished([t.name for t in experiment.trainings], out))
    todo = [t for t in experiment.trainings if t.name in left]
    epochs = {m: epochs_of(experiment.config, m) for m in experiment.config.methods}
    total = sum(epochs[t.method] for t in todo)
    with console.progress("epochs", total) as advance, asked_to_stop() as stop:
        if jobs <= 1:
            for training in todo:
                show = _shown(training.name, epochs[training.method], advance)
                run_training(experiment, training, features, out, device, stop, show)
        elif todo:
            _in_processes(experiment.config, todo, out, str(device), jobs, in_memory, stop, advance)


def _shown(
    name: str, epochs: int, advance: Callable[..., None], every: int = 1
) -> Callable[[int, dict[str, float]], None]:
    """Tells `advance` of each `every` epochs; those of an earlier run come with the first, as `before`."""
    told: int | None = None

    def show(epoch: int, row: dict[str, float]) -> None:
        nonlocal told
        before, told = (epoch - 1, epoch - 1) if told is None else (0, told)
        if before or epoch - told >= every or epoch == epochs:
            advance(epoch - told, note=f"{name} loss {row['total']:.4g}", before=before)
            told = epoch

    return show


def _in_processes(
    config: RunConfig,
    todo: list[OneTraining],
    out: Path,
    device: str,
    jobs: int,
    in_memory: InMemory,
    stop: Callable[[], int],
    advance: Callable[..., None],
) -> None:
    context = multiprocessing.get_context("spawn")
    names = [[t.name for t in todo[i::jobs]] for i in range(jobs)]
    # Pipes, as a queue takes semaphores, which take a writable /dev/shm.
    pipes = [context.Pipe(duplex=False) for _ in names]
    workers = [
        context.Process(target=_work, args=(config, n, out, device, jobs, in_memory, messages), daemon=True)
        for n, (_, messages) in zip(names, pipes, strict=True)
    ]
    with starting_workers():
        for w, (_, messages) in zip(workers, pipes, strict=True):
            w.start()
            messages.close()  # theirs alone now, so that it ends with them
    try:
        failure = _watch(workers, [receiving for receiving, _ in pipes], stop, advance)
    except KeyboardInterrupt:
        # A second Ctrl-C does not wait for a save; what was saved before stays whole.
        for w in workers:
            w.kill()
        raise
    if failure is not None:
        raise failure
    # Somebody may have told a process of ours alone to stop: it saved, and what is left is not for us to go on with.
    if number := stop() or (signal.SIGTERM if _unfinished([t.name for t in todo], out) else 0):
        raise Stopped(number, f"stopped by signal {int(number)}; {_kept(workers, names, out)}")


def _watch(
    workers: Sequence[BaseProcess],
    pipes: Sequence[Connection],
    stop: Callable[[], int],
    advance: Callable[..., None],
) -> AqaError | None:
    """Until every process has ended: show progress, pass a signal on, and return the first failure."""
    failure: AqaError | None = None
    stopping = False
    talking = dict(zip(pipes, workers, strict=True))
    while talking:
        for pipe in wait(list(talking), timeout=0.2):
            assert isinstance(pipe, Connection)
            try:
                kind, *rest = pipe.recv()
            except (EOFError, OSError):  # all that it said has been heard
                worker = talking.pop(pipe)
                worker.join()
                if worker.exitcode and failure is None and not stopping and not stop():
                    failure = AqaError(
                        f"a training process ended with code {worker.exitcode}"
                        + (" (killed: out of memory?)" if worker.exitcode == -signal.SIGKILL else ""),
                        fix="resume with fewer --jobs",
                    )
                continue
            if kind == "epoch":
                advance(rest[0], note=rest[1], before=rest[2])
            elif failure is None:
                failure = AqaError(rest[0], fix=rest[1])
                failure.exit_code = ExitCode(rest[2])
        if (failure is not None or stop()) and not stopping:
            # They save, then end; what they finished stays.
            stopping = True
            for w in workers:
                w.terminate()
    return failure


def _kept(workers: Sequence[BaseProcess], names: list[list[str]], out: Path) -> str:
    """What is saved after all processes ended."""
    lost = [
        f"a process ended with code {w.exitcode}, and what it did since its last save is lost: "
        + ", ".join(_unfinished(own, out))
        for w, own in zip(workers, names, strict=True)
        if w.exitcode != 0
    ]
    return "; ".join(lost) or "every training saved where it stands"


def _unfinished(names: Sequence[str], out: Path) -> list[str]:
    return [n for n in names if not (out / "models" / n / "result.json").exists()]


def _work(
    config: RunConfig, names: list[str], out: Path, device: str, jobs: int, in_memory: InMemory, messages: Connection
) -> None:
    """A process: its trainings, one after the other."""
    try:
        with worker_asked_to_stop() as stop:
            if stop():
                return
            experiment = prepare(config, lambda message: None)
            refuse_other_data(experiment, out)
            torch.set_num_threads(config.training.threads)
            where = pick_device(device)
            features = place(experiment, where, in_memory, jobs)
            for training in experiment.trainings:
                if training.name not in names:
                    continue
                if stop():
                    return

                def tell(n: int, note: str, before: int) -> None:
                    messages.send(("epoch", n, note, before))

                # A message an epoch would cost more than a short epoch.
                epochs = epochs_of(config, training.method)
                report = _shown(training.name, epochs, tell, every=max(1, epochs // 50))
                run_training(experiment, training, features, out, where, stop, report)
    except (Stopped, BrokenPipeError):  # of the pipe: who started us is gone, and may be started again
        return
    except AqaError as e:
        messages.send(("error", e.cause, e.fix, int(e.exit_code)))
