"""`aqa submit`: hand work to a cluster's own scheduler."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from aqa_pipelines.slurm import WORK, Slurm
from aqa_shared import console
from aqa_shared.commands import App, group
from aqa_shared.errors import EnvironmentFault, UsageError
from aqa_shared.settings import given, with_options

app = App(help="Hand work to a cluster's scheduler: slurm.", no_args_is_help=True)

Work = group(WORK)


@app.callback()
def submit() -> None:
    """Hand work to a cluster's scheduler."""


@app.command(epilog="aqa submit slurm --parts 32 --partition gpu -- extract videos/ --out feats.zarr")
@with_options(Slurm)
def slurm(
    context: typer.Context,
    command: Annotated[
        list[str],
        typer.Argument(
            metavar="-- STAGE ...",
            help="The command to split into parts, as you would type it after `aqa`: extract or train.",
            show_default=False,
        ),
    ],
    missing: Annotated[
        bool,
        Work("--missing", help="Submit only the parts that `aqa finalise` finds missing, as the job at the end does."),
    ] = False,
    config: Annotated[
        Path | None, Work(help="TOML file of these options, as your site needs them; AQA_SLURM_* and flags win.")
    ] = None,
    print_config: Annotated[bool, Work("--print-config", help="Print these options as TOML and stop.")] = False,
    dry_run: Annotated[bool, Work("--dry-run", help="Print the scripts and submit nothing.")] = False,
    **settings_given: Any,
) -> None:
    """Submit an extraction, or trainings, to SLURM: an array of parts, and a job that submits again what is missing.

    That job starts when all parts have ended; first it finalises the store, or writes the tables of the trainings.

    Exit codes: 0 submitted (or nothing to submit), 2 usage, 5 sbatch is missing or refuses, 6 store.
    """
    from aqa_pipelines import slurm as work

    settings = work.resolve(config, given(context, Slurm))
    if print_config:
        typer.echo(work.printed(settings), nl=False)
        return
    parted = _parted(command)
    parts = parted.missing(settings.parts) if missing else list(range(1, settings.parts + 1))
    if not parts:
        console.summary(f"{parted.out}: nothing is missing")
        return
    folder = Path.cwd()
    array = work.array_script(settings, command, parts, folder)
    if dry_run:
        typer.echo(f"{array}\n{work.end_script(settings, command, parted.out, '<the array>', folder)}", nl=False)
        return
    number = work.submit(array, folder, settings.logs)
    try:
        end = work.submit(work.end_script(settings, command, parted.out, number, folder), folder, settings.logs)
    except EnvironmentFault as e:
        raise EnvironmentFault(
            f"{e.cause}; that was the job at the end, and the array is queued as job {number}",
            fix=f"end the array with `scancel {number}`; then {e.fix}",
        ) from e
    some = f"{len(parts)} part{'s' if len(parts) != 1 else ''}"
    console.summary(
        f"job {number}: {some} of {settings.parts}; job {end} behind it finalises {parted.out}\n"
        f"squeue -j {number},{end} shows them, scancel {number} {end} ends them; they print to {settings.logs}/"
    )


@dataclass(frozen=True)
class _Parted:
    """A command that parts can do, and what they have in common."""

    out: str
    """The store or the run folder."""
    missing: Callable[[int], list[int]]
    """Of so many parts, from 1, those that have something left to do."""


def _extraction(arguments: list[str]) -> _Parted:
    import typer.main

    from aqa_extract.cli import app as extract
    from aqa_extract.config import Config, resolve
    from aqa_shared.store import missing_parts

    context: Any = typer.main.get_command(extract).make_context("aqa extract", list(arguments))
    asked = resolve(context.params["config"], given(context, Config))
    _refuse(
        {
            **{name: getattr(asked.options, name) for name in ("shard", "overwrite", "scheduler")},
            **{name: context.params[name] for name in ("print_config", "dry_run")},
        }
    )
    if not asked.out:
        raise UsageError("the extraction has no --out", fix="give an extraction: -- extract videos/ --out feats.zarr")
    return _Parted(asked.out, lambda parts: missing_parts(asked.out, arguments, parts))


def _training(arguments: list[str]) -> _Parted:
    import typer.main

    from aqa_train.cli import app as train
    from aqa_train.cli import asked

    context: Any = typer.main.get_command(train).make_context("aqa train", list(arguments))
    params = context.params
    _refuse({name: params[name] for name in ("shard", "scheduler", "print_config", "dry_run")})
    settings, out = asked(context, params["out"], params["resume"], params["set_"] or [], params["config"])
    if out is None:
        raise UsageError("the training has no --out", fix="name the folder that all parts have in common: --out FOLDER")

    def missing(parts: int) -> list[int]:
        from aqa_train.parts import missing_parts
        from aqa_train.run import open_run

        return missing_parts(open_run(settings, out, resume=params["resume"] is not None).jobs, parts)

    return _Parted(str(out), missing)


STAGES = {"extract": _extraction, "train": _training}


def _parted(command: list[str]) -> _Parted:
    """What is wrong with a command is said here and not by a hundred jobs."""
    stage, *arguments = command
    if stage not in STAGES:
        raise UsageError(
            f"{stage!r} cannot be submitted",
            fix="give a stage: -- extract videos/ --out feats.zarr, or -- train --features feats.zarr --out FOLDER",
        )
    return STAGES[stage](arguments)


def _refuse(given: Mapping[str, Any]) -> None:
    """Options that make no sense to a part."""
    for name, value in given.items():
        if value:
            raise UsageError(
                f"--{name.replace('_', '-')} cannot be given to what is done in parts",
                fix="omit it: every part gets its own --shard" if name == "shard" else "omit it",
            )
