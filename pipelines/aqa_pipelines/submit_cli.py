"""`aqa submit`: hand work to a cluster's own scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aqa_pipelines.slurm import WORK, Slurm
from aqa_shared import console
from aqa_shared.commands import App, group
from aqa_shared.errors import UsageError
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
            metavar="-- extract ...", help="The command to part, as you would type it behind `aqa`.", show_default=False
        ),
    ],
    missing: Annotated[
        bool, Work("--missing", help="Only the parts that `aqa finalise` finds missing; what the job at the end uses.")
    ] = False,
    config: Annotated[
        Path | None, Work(help="TOML file of these options, as your site needs them; AQA_SLURM_* and flags win.")
    ] = None,
    print_config: Annotated[bool, Work("--print-config", help="Print these options as TOML and stop.")] = False,
    dry_run: Annotated[bool, Work("--dry-run", help="Print the scripts and submit nothing.")] = False,
    **settings_given: Any,
) -> None:
    """Submit an extraction to SLURM: an array of parts, and behind it a job that finalises and submits again what is
    missing.

    Exit codes: 0 submitted (or nothing to submit), 2 usage, 5 sbatch is missing or refuses, 6 store.
    """
    from aqa_pipelines import slurm as work
    from aqa_shared.store import missing_parts

    settings = work.resolve(config, given(context, Slurm))
    if print_config:
        typer.echo(work.printed(settings), nl=False)
        return
    arguments, store = _extraction(command)
    parts = missing_parts(store, arguments, settings.parts) if missing else list(range(1, settings.parts + 1))
    if not parts:
        console.summary(f"{store}: nothing is missing")
        return
    folder = Path.cwd()
    array = work.array_script(settings, arguments, parts, folder)
    if dry_run:
        typer.echo(f"{array}\n{work.end_script(settings, arguments, store, '<the array>', folder)}", nl=False)
        return
    number = work.submit(array, folder, settings.logs)
    end = work.submit(work.end_script(settings, arguments, store, number, folder), folder, settings.logs)
    some = f"{len(parts)} part{'s' if len(parts) != 1 else ''}"
    console.summary(
        f"job {number}: {some} of {settings.parts}; job {end} behind it finalises {store}\n"
        f"squeue -j {number},{end} shows them, scancel {number} {end} ends them; they print to {settings.logs}/"
    )


def _extraction(command: list[str]) -> tuple[list[str], str]:
    """The arguments of `extract` and its store; what is wrong with them is said here and not by a hundred jobs."""
    import typer.main

    from aqa_extract.cli import app as extract
    from aqa_extract.config import Config, resolve

    name, *arguments = command
    if name != "extract":
        raise UsageError(f"{name!r} cannot be submitted", fix="give an extraction: -- extract videos/ --out feats.zarr")
    context: Any = typer.main.get_command(extract).make_context("aqa extract", list(arguments))
    asked = resolve(context.params["config"], given(context, Config))
    if not asked.out:
        raise UsageError("the extraction has no --out", fix="give an extraction: -- extract videos/ --out feats.zarr")
    for option, is_given in (
        ("shard", asked.options.shard),
        ("overwrite", asked.options.overwrite),
        ("dry_run", context.params["dry_run"]),
    ):
        if is_given:
            raise UsageError(
                f"--{option.replace('_', '-')} cannot be given to an extraction in parts",
                fix="omit it: every part gets its own --shard" if option == "shard" else "omit it",
            )
    return arguments, asked.out
