"""aqa-train: learn to score from features, and say how well."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aqa_shared import console
from aqa_shared.commands import App, Version, group
from aqa_shared.errors import ExitCode, UsageError
from aqa_shared.machine import pick_device
from aqa_shared.settings import given, with_options
from aqa_train.config import INPUT, LEARNING, PLACES, RunConfig, absolute
from aqa_train.method_settings import as_toml, differences, spelt_out
from aqa_train.resolve import ENVIRONMENT, parse_variants, resolve
from aqa_train.signals import ended_in_order

if TYPE_CHECKING:
    from aqa_train.experiment import Experiment

app = App(no_args_is_help=True)

Input, Learning, Run = map(group, (INPUT, LEARNING, "Run"))
"""Options by the heading under which `--help` shows them; those that are settings are in `config`."""


@app.command(epilog="aqa-train --features feats.zarr --out runs/first")
@with_options(RunConfig)
def train(
    context: typer.Context,
    out: Annotated[Path | None, Input(metavar="FOLDER", help="Run folder. [default: runs/TIME-METHOD]")] = None,
    resume: Annotated[Path | None, Input(metavar="FOLDER", help="Go on with the run in this folder.")] = None,
    set_: Annotated[
        list[str] | None,
        Learning("--set", metavar="NAME=VALUE", help="A setting of a method or of the training. Repeat it for more."),
    ] = None,
    config: Annotated[Path | None, Run(help="TOML file of settings; flags and AQA_TRAIN_* win.")] = None,
    device: Annotated[str, Run(help="auto, cpu, cuda or cuda:1.")] = "auto",
    jobs: Annotated[int | None, Run(min=1, help="Trainings at a time. [default: one per core]")] = None,
    in_memory: Annotated[
        str, Run(metavar="auto|yes|no", help="Load all features once; auto does where they fit.")
    ] = "auto",
    print_config: Annotated[bool, Run("--print-config", help="Print the settings as TOML and stop.")] = False,
    dry_run: Annotated[
        bool, Run("--dry-run", help="Say what would be trained and for how long; write nothing.")
    ] = False,
    version: Version = False,
    **settings_given: Any,
) -> None:
    """Train methods on features, test them, and write a run folder with metrics, predictions and checkpoints.

    Settings also come from the environment, as AQA_TRAIN_SEEDS=3 or AQA_TRAIN_LR=1e-3: every name that
    --print-config shows outside of [settings]. They win over --config; options win over them; --resume ignores them.
    """
    flags = given(context, RunConfig)
    if "variants" in flags:
        flags["variants"] = parse_variants(flags["variants"])
    if resume is not None:
        from aqa_train.outputs import read_config, where_it_is

        if config is not None:
            raise UsageError(
                f"--resume keeps the settings of {resume}: --config {config} would be ignored",
                fix="omit --config",
            )
        settings = where_it_is(_resumed(read_config(resume), flags, set_ or [], resume, out), resume)
        out = resume
    else:
        in_environment = f"{ENVIRONMENT}FEATURES" in os.environ
        if "features" not in flags and config is None and not print_config and not in_environment:
            raise UsageError("--features is missing", fix="aqa-train --features feats.zarr")
        settings = resolve(config, flags, set_ or [], {"features": "feats.zarr"} if print_config else None)
        # A printed configuration is for people and may go elsewhere; a run must find its files from anywhere.
        settings = settings if print_config else absolute(settings)
    if in_memory not in ("auto", "yes", "no"):
        raise UsageError(f"--in-memory is {in_memory!r}", fix="use auto, yes or no")
    if print_config:
        from aqa_shared.store import is_store

        if is_store(settings.features):
            from aqa_train.experiment import open_data

            # Which streams are read follows from the store.
            settings = open_data(settings, console.warn).config
        typer.echo(as_toml(spelt_out(settings)), nl=False)
        return
    run(settings, out, device=device, jobs=jobs, in_memory=in_memory, resume=resume is not None, dry_run=dry_run)


@ended_in_order("run the same command again")
def run(
    settings: RunConfig,
    out: Path | None,
    *,
    device: str = "auto",
    jobs: int | None = None,
    in_memory: Any = "auto",
    resume: bool = False,
    dry_run: bool = False,
) -> dict[str, Any] | None:
    """The command's work: train, write `out`, print the table; returns what metrics.json of the last run holds."""
    from aqa_train import experiment as work
    from aqa_train.grid import cells, write_comparisons, write_tidy
    from aqa_train.outputs import refuse_other_data, refuse_other_digests, write_places, write_run
    from aqa_train.plots import draw
    from aqa_train.protocol import once
    from aqa_train.run import train_cells
    from aqa_train.summary import as_text
    from aqa_train.workers import choose_jobs

    where, say = pick_device(device), once(console.warn)
    data = work.open_data(settings, say)
    grid = [(cell, work.arrange(cell.config, data, say)) for cell in cells(data.named)]
    whole = grid[0][1].config if len(grid) == 1 else data.config
    jobs = choose_jobs(jobs, sum(len(e.trainings) for _, e in grid), where, settings.training.threads)
    out = out or default_folder(data.config)
    resume = resume or holds_this_run(out, whole, {cell.name for cell, _ in grid})
    if resume:
        refuse_other_digests(whole, data.digests, out)
        for cell, experiment in grid:
            if (out / cell.name / "config.json").exists():
                refuse_other_data(experiment, out / cell.name)
    if dry_run:
        from aqa_train.estimate import estimate

        for cell, experiment in grid:
            said = estimate(experiment, out / cell.name, resume, where, in_memory, jobs)
            console.out.print(said, markup=False)
        return None

    def begin() -> None:
        if len(grid) > 1 and not resume:
            write_run(whole, data.digests, out, str(where))
        elif len(grid) > 1:
            write_places(whole, out)

    found = []
    go_on = f"aqa-train --resume {shlex.quote(str(out))}"
    # Also what is done between two cells, which the loop of trainings does not see.
    with ended_in_order(go_on):
        for done in train_cells(
            grid, data.features, out, device=where, jobs=jobs, in_memory=in_memory, go_on=go_on, before=begin
        ):
            if done.cell.name:
                console.out.print(f"{done.cell.name}\n", markup=False)
            else:
                draw(done.out, console.warn)
            if done.summary["rows"]:
                console.out.print(as_text(done.summary), markup=False)
            _note_scores(done.experiment, done.out, done.summary["scores"])
            found.append(done)
        write_tidy(out, [(d.cell, [*d.results, *d.baselines]) for d in found])
        if len(grid) > 1:
            write_comparisons(out, [(d.cell, d.summary["comparisons"]) for d in found])
    console.note(f"run folder: {out}")
    if failed := [m for d in found for m, e in d.failures.items() if not isinstance(e, UsageError)]:
        console.warn(f"failed, and not in the table: {', '.join(dict.fromkeys(failed))}")
        raise typer.Exit(int(ExitCode.QUARANTINED))
    return found[-1].summary


def _note_scores(experiment: Experiment, out: Path, counts: dict[str, int]) -> None:
    said = f"scores of every video by models that did not learn from it: {out / 'scores.csv'}"
    if counts["learned_by_all"]:
        said += f" ({counts['learned_by_all']} of {counts['videos']} have none there: every model learned from them"
        said += ")" if experiment.config.all_scores else "; with --folds 5 each is left out once)"
    console.note(said)


def default_folder(settings: RunConfig) -> Path:
    """runs/<time>-<methods>, not used yet."""
    from datetime import datetime

    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{'-'.join(settings.methods)}"
    names = (stem, *(f"{stem}-{i}" for i in range(2, 1000)))
    return next(p for p in (Path("runs") / n for n in names) if not p.exists())


def _resumed(saved: RunConfig, flags: dict[str, Any], sets: list[str], resume: Path, out: Path | None) -> RunConfig:
    """A resumed run keeps its settings, whatever the environment says now; flags that repeat them are fine.

    Flags may say that the store or a table has moved; whether it is the same, its digest tells later.
    """
    if out is not None and out.resolve() != resume.resolve():
        raise UsageError(f"--out {out} is not the run being resumed, {resume}", fix="omit --out")
    base = saved.model_dump(mode="json", exclude_none=True)
    training = base.pop("training")
    own = base.pop("settings")
    wanted = resolve(None, {**base, **flags, "training": training, "settings": own}, sets, environment={})
    changed = differences(absolute(saved), absolute(wanted))
    if changed:
        raise UsageError(
            f"{resume} was run with other settings: {'; '.join(changed)}",
            fix="resume without them, or start a new run with another --out",
        )
    return saved.model_copy(update={name: getattr(absolute(wanted), name) for name in PLACES})


def holds_this_run(out: Path, config: RunConfig, parts: set[str], *, quiet: bool = False) -> bool:
    """Whether `out` has this very run or grid, begun or finished; raises for any other and for a foreign folder."""
    from aqa_train.outputs import START, read_config

    if (out / "config.json").exists():
        changed = differences(absolute(read_config(out)), absolute(config))
        if changed:
            raise UsageError(
                f"{out} already holds a run with other settings: {'; '.join(changed)}",
                fix="name another --out, or give the settings of that run to go on with it",
            )
        if not quiet:
            console.note(f"{out} holds this run: going on where it stands")
        return True
    # A run that was cut off before it began leaves these, which are written again.
    left = {*START, *parts}
    begun = out.is_dir() and all(p.name in left or p.name.endswith(".partial") for p in out.iterdir())
    if out.exists() and not begun:
        raise UsageError(f"{out} exists and is not a run folder", fix="name another --out")
    return False


def main() -> None:
    console.run(app)


if __name__ == "__main__":
    main()
