"""aqa-train: learn to score from features, and say how well."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aqa_shared import console
from aqa_shared.commands import App, Version, group
from aqa_shared.console import counted
from aqa_shared.errors import AqaError, ExitCode, UsageError
from aqa_shared.machine import pick_device
from aqa_shared.settings import given, with_options
from aqa_shared.shards import asked as part_asked
from aqa_train.cluster import options as cluster_options
from aqa_train.cluster.options import Cluster, cluster_asked
from aqa_train.config import INPUT, LEARNING, PLACES, TOGETHER, RunConfig, absolute
from aqa_train.method_settings import as_toml, differences, spelt_out
from aqa_train.resolve import ENVIRONMENT, parse_variants, resolve
from aqa_train.signals import ended_in_order

if TYPE_CHECKING:
    from aqa_train.experiment import Experiment
    from aqa_train.run import Opened, Trained

app = App(no_args_is_help=True)

Input, Learning, RunOption = map(group, (INPUT, LEARNING, "Run"))
"""Options by the heading under which `--help` shows them; those that are settings are in `config`."""


def _in_memory(value: str) -> str:
    if value not in ("auto", "yes", "no"):
        raise UsageError(f"--in-memory is {value!r}", fix="use auto, yes or no")
    return value


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
    config: Annotated[Path | None, RunOption(help="TOML file of settings; flags and AQA_TRAIN_* win.")] = None,
    device: Annotated[str, RunOption(help="auto, cpu, cuda or cuda:1.")] = "auto",
    jobs: Annotated[int | None, RunOption(min=1, help="Trainings at a time. [default: one per core]")] = None,
    together: Annotated[int, RunOption(min=1, help=TOGETHER)] = 1,
    in_memory: Annotated[
        str,
        RunOption(metavar="auto|yes|no", callback=_in_memory, help="Load all features once; auto does where they fit."),
    ] = "auto",
    print_config: Annotated[bool, RunOption("--print-config", help="Print the settings as TOML and stop.")] = False,
    dry_run: Annotated[
        bool, RunOption("--dry-run", help="Say what would be trained and for how long; write nothing.")
    ] = False,
    shard: Annotated[
        str | None,
        RunOption(
            metavar="I/N",
            help="Only the I-th of N parts of the trainings; all parts have the same --out. auto takes I and N from "
            "SLURM or Kubernetes. After all parts, run `aqa finalise FOLDER`.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        RunOption(metavar=cluster_options.METAVAR, help=cluster_options.HELP),
    ] = None,
    scheduler_wait: Annotated[float, RunOption(min=0, help=cluster_options.WAIT_HELP)] = cluster_options.WAIT,
    version: Version = False,
    **settings_given: Any,
) -> None:
    """Train methods on features, test them, and write a run folder with metrics, predictions and checkpoints.

    Settings also come from the environment, as AQA_TRAIN_SEEDS=3 or AQA_TRAIN_LR=1e-3: every name that
    --print-config shows outside of [settings]. They win over --config; options win over them; --resume ignores them.

    Exit codes: 0 done, 2 usage, 3 a method of `--method all` failed, 5 environment, 6 store or run folder.
    """
    settings, out = asked(context, out, resume, set_ or [], config, print_config=print_config)
    if print_config:
        from aqa_shared.store import is_store

        if is_store(settings.features):
            from aqa_train.experiment import open_data

            # Which streams are read follows from the store.
            settings = open_data(settings, console.warn).config
        typer.echo(as_toml(spelt_out(settings)), nl=False)
        return
    part = None if shard is None else part_asked(shard, os.environ)
    if part is not None and out is None:
        raise UsageError("--shard needs the folder that all parts have in common", fix="name it with --out")
    refused = {"--jobs": jobs is not None, "--together": together > 1, "--dry-run": dry_run}
    cluster = cluster_asked(scheduler, scheduler_wait, refused)
    how: dict[str, Any] = {
        "device": device,
        "jobs": jobs,
        "together": together,
        "in_memory": in_memory,
        "dry_run": dry_run,
    }
    run(settings, out, resume=resume is not None, part=part, cluster=cluster, **how)


def refuse_together(together: int, option: str) -> None:
    """What a training takes beside others is not tried."""
    if together > 1:
        raise UsageError(f"--together does nothing with {option}, which tries one training at a time", fix="omit it")


def asked(
    context: typer.Context,
    out: Path | None,
    resume: Path | None,
    sets: list[str],
    config: Path | None,
    *,
    print_config: bool = False,
) -> tuple[RunConfig, Path | None]:
    """The settings in force and the run folder, where one is named, of a command line."""
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
        return where_it_is(_resumed(read_config(resume), flags, sets, resume, out), resume), resume
    in_environment = f"{ENVIRONMENT}FEATURES" in os.environ
    if "features" not in flags and config is None and not print_config and not in_environment:
        raise UsageError("--features is missing", fix="aqa-train --features feats.zarr")
    settings = resolve(config, flags, sets, {"features": "feats.zarr"} if print_config else None)
    # A printed configuration is for people and may go elsewhere; a run must find its files from anywhere.
    return (settings if print_config else absolute(settings)), out


@ended_in_order("run the same command again")
def run(
    settings: RunConfig,
    out: Path | None,
    *,
    device: str = "auto",
    jobs: int | None = None,
    together: int = 1,
    in_memory: Any = "auto",
    resume: bool = False,
    dry_run: bool = False,
    part: tuple[int, int] | None = None,
    cluster: Cluster | None = None,
) -> dict[str, Any] | None:
    """The command's work: train, write `out`, print the table; returns what metrics.json of the last run holds.

    With `part` (i, n) only the i-th of n parts of the trainings, and no tables. `cluster`: a Dask cluster, whose
    workers train.
    """
    from aqa_train.parts import go_on, part_of
    from aqa_train.run import gather, open_run, refuse_unwritable, train_cells, train_on, train_part
    from aqa_train.workers import choose_jobs, failures_of

    where = pick_device("cpu" if cluster else device)
    opened = open_run(settings, out, resume=resume)
    out, mine = opened.out, part_of(opened.jobs, part)
    jobs = choose_jobs(jobs, len(mine), where, settings.training.threads)
    if dry_run:
        refuse_together(together, "--dry-run")
        from aqa_train.estimate import estimate

        for cell, experiment in opened.grid:
            own = [job.training for job in mine if job.out == out / cell.name]
            said = estimate(experiment, own, out / cell.name, opened.begun, where, in_memory, jobs)
            console.out.print(said, markup=False)
        return None
    refuse_unwritable(mine, [out, *(out / cell.name for cell, _ in opened.grid)] if part is None else [])
    if cluster is not None and not all(job.done for job in mine):
        train_on(
            cluster,
            opened.grid,
            out,
            device=device,
            in_memory=in_memory,
            again=go_on(out, part),
            part=part,
            before=lambda found: opened.begin(found, part),
        )
    elif part is not None:
        train_part(opened, part, device=where, jobs=jobs, together=together, in_memory=in_memory)
    if part is not None:
        console.note(
            f"{out}: part {part[0]} of {part[1]}, {counted(len(mine), 'training')} of {len(opened.jobs)}, is done; "
            f"when all parts are: aqa finalise {shlex.quote(str(out))}"
        )
        _end_with([{method: error for (_, method), error in failures_of(mine).items()}])
        return None
    again = go_on(out)
    # Also what is done between two cells, which the loop of trainings does not see.
    with ended_in_order(again):
        cells = (
            gather(opened.grid, opened.data.features, out)
            if cluster is not None
            else train_cells(
                opened.grid,
                opened.data.features,
                out,
                device=where,
                jobs=jobs,
                together=together,
                in_memory=in_memory,
                again=again,
                before=lambda: opened.begin(str(where), None),
            )
        )
        found = _written(opened, cells)
    _end_with(done.failures for done in found)
    return found[-1].summary


@ended_in_order("run the same command again")
def finalise(out: Path, *, quiet: bool = False, tell: Callable[[list[dict[str, Any]]], None]) -> None:
    """Write the tables of a run whose trainings were done in parts; where some are missing nothing is written.

    Trains nothing. `quiet`: without the tables on stdout. `tell` is given what is missing: `aqa_train.parts.missing`.
    """
    from aqa_train.outputs import read_config, where_it_is
    from aqa_train.parts import missing
    from aqa_train.run import gather, open_run

    opened = open_run(where_it_is(read_config(out), out), out, resume=True)
    lacking = missing(opened.jobs, out, opened.parts)
    cells = [] if lacking else gather(opened.grid, opened.data.features, out)
    found = [] if lacking else _written(opened, cells, quiet=quiet)
    tell(lacking)
    if lacking:
        raise typer.Exit(int(ExitCode.QUARANTINED))
    _end_with(done.failures for done in found)


def _written(opened: Opened, cells: Iterable[Trained], *, quiet: bool = False) -> list[Trained]:
    """Print every cell's table, and write those of the grid."""
    from aqa_train.grid import write_comparisons, write_tidy
    from aqa_train.plots import draw
    from aqa_train.summary import as_text

    found, out = [], opened.out
    for done in cells:
        if not done.cell.name:
            draw(done.out, console.warn)
        elif not quiet:
            console.out.print(f"{done.cell.name}\n", markup=False)
        if done.summary["rows"] and not quiet:
            console.out.print(as_text(done.summary), markup=False)
        _note_scores(done.experiment, done.out, done.summary["scores"])
        found.append(done)
    write_tidy(out, [(d.cell, [*d.results, *d.baselines]) for d in found])
    if len(opened.grid) > 1:
        write_comparisons(out, [(d.cell, d.summary["comparisons"]) for d in found])
    console.note(f"run folder: {out}")
    return found


def _end_with(failures: Iterable[Mapping[str, AqaError]]) -> None:
    """With 3 where methods were left out because they failed while they learned; their names are said."""
    if failed := [m for by_method in failures for m, e in by_method.items() if not isinstance(e, UsageError)]:
        console.warn(f"failed, and not in the table: {', '.join(dict.fromkeys(failed))}")
        raise typer.Exit(int(ExitCode.QUARANTINED))


def _note_scores(experiment: Experiment, out: Path, counts: dict[str, int]) -> None:
    said = f"scores of every video by models that did not learn from it: {out / 'scores.csv'}"
    if counts["learned_by_all"]:
        said += f" ({counts['learned_by_all']} of {counts['videos']} have none there: every model learned from them"
        said += ")" if experiment.config.all_scores else "; with --folds 5 each is left out once)"
    console.note(said)


def _resumed(saved: RunConfig, flags: dict[str, Any], sets: list[str], resume: Path, out: Path | None) -> RunConfig:
    """A resumed run keeps its settings, whatever the environment says now; flags that repeat them are fine.

    Flags may say that the store or a table has moved; whether it is the same, its digest tells later.
    """
    if out is not None and out.resolve() != resume.resolve():
        raise UsageError(f"--out {out} is not the run being resumed, {resume}", fix="omit --out")
    base = saved.model_dump(mode="json", exclude_none=True)
    training = base.pop("training")
    own = base.pop("settings")
    try:
        wanted = resolve(None, {**base, **flags, "training": training, "settings": own}, sets, environment={})
    except UsageError:
        if tuple(flags.get("methods", saved.methods)) == saved.methods:
            raise
        raise UsageError(
            f"{resume} was run with other methods: {', '.join(saved.methods)}",
            fix="resume without --method, or start a new run with another --out",
        ) from None
    changed = differences(absolute(saved), absolute(wanted))
    if changed:
        raise UsageError(
            f"{resume} was run with other settings: {'; '.join(changed)}",
            fix="resume without them, or start a new run with another --out",
        )
    return saved.model_copy(update={name: getattr(absolute(wanted), name) for name in PLACES})


def main() -> None:
    console.run(app)


if __name__ == "__main__":
    main()
