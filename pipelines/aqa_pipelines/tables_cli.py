"""`aqa table` and `aqa results`: the papers' tables, published beside measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aqa_shared import console
from aqa_shared.commands import App
from aqa_shared.errors import ExitCode, UsageError
from aqa_train.cluster import options as cluster_options
from aqa_train.config import TOGETHER

RESULTS = Path("benchmarks/results/tables")


def add(app: App) -> None:
    """The two commands."""
    app.command(epilog="aqa table pipelines/s4aqa/table1.toml --features mtl.zarr --plan")(table)
    app.command(epilog="aqa results --out docs/results.md")(results)


def table(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of pipelines/.", exists=True, dir_okay=False)],
    features: Annotated[
        str | None,
        typer.Option(help="Store of features; may be omitted with --plan.", metavar="STORE", show_default=False),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say how many trainings, how long, and what is missing.")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the runs, which tables share.")] = Path(
        "runs/tables"
    ),
    write: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for the table's .json, .csv and .md. [default: --out]")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Table of labels to use instead of the store's.", show_default=False),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="dataset.json of `aqa datasets prepare`, for R-l2.", show_default=False),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(metavar="ROW;...", help="Only these rows of it.", show_default=False)
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Fewer or more than the file says.", min=1)] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Of every method, instead of its own; a row keeps those of the file.", min=1)
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    jobs: Annotated[int | None, typer.Option(min=1, help="Trainings at a time. [default: one per core]")] = None,
    together: Annotated[int, typer.Option(min=1, help=TOGETHER)] = 1,
    in_memory: Annotated[
        str, typer.Option(metavar="auto|yes|no", help="Load all features once; auto does where they fit.")
    ] = "auto",
    scheduler: Annotated[
        str | None,
        typer.Option(metavar=cluster_options.METAVAR, help=cluster_options.HELP, show_default=False),
    ] = None,
    scheduler_wait: Annotated[float, typer.Option(min=0, help=cluster_options.WAIT_HELP)] = cluster_options.WAIT,
) -> None:
    """Run or resume what a table of a paper takes, and print published beside measured.

    What is done is not done again. Rows that lack a stream or a column are left out, with what brings them, and
    those that fail while they are trained say so; the others go on.
    Exit codes: 0 done, 2 usage, 3 some rows could not be measured, 5 environment, 6 store.
    """
    from aqa_pipelines.tables.run import plan_text, run_table
    from aqa_pipelines.tables.text import as_markdown
    from aqa_train.cli import refuse_together

    given: dict[str, Any] = {"labels": labels, "dataset": dataset, "seeds": seeds, "epochs": epochs}
    given = {name: value for name, value in given.items() if value is not None}
    only = () if rows is None else tuple(part.strip() for part in rows.split(";") if part.strip())
    if rows is not None and not only:
        raise UsageError("--rows names no row", fix="name some, parted by semicolons, or omit it for all")
    if in_memory not in ("auto", "yes", "no"):
        raise UsageError(f"--in-memory is {in_memory!r}", fix="use auto, yes or no")
    refused = {"--jobs": jobs is not None, "--together": together > 1, "--plan": plan}
    cluster = cluster_options.cluster_asked(scheduler, scheduler_wait, refused)
    if plan:
        refuse_together(together, "--plan")
        for option, given_too in (("--write", write is not None), ("--in-memory", in_memory != "auto")):
            if given_too:
                raise UsageError(f"{option} does nothing with --plan, which writes and trains nothing", fix="omit it")
        text, found = plan_text(file, features, out, given, device=device, jobs=jobs, only=only)
        console.out.print(text, markup=False)
    elif features is None:
        raise UsageError("--features is missing", fix=f"aqa table {file} --plan says how they are made")
    else:
        how: dict[str, Any] = {"device": device, "jobs": jobs, "together": together, "in_memory": in_memory}
        record, found = run_table(file, features, out, given, write=write, only=only, cluster=cluster, **how)
        typer.echo(as_markdown(record), nl=False)
        console.note(f"written: {(write or out) / record['pipeline']}.json, .csv, .md")
        for (cause, fix), _ in found.lacking.items():
            console.warn(f"not measured: {cause}. {fix}")
        for where, error in found.failures.items():
            console.warn(f"failed: {where}: {error.cause}. {error.fix}".rstrip(" ."))
    if found is not None and (found.lacking or found.failures):
        raise typer.Exit(int(ExitCode.QUARANTINED))


def results(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Records of tables, as `aqa table --write` writes them.")
    ] = RESULTS,
    out: Annotated[Path | None, typer.Option(help="Write here instead of stdout.", show_default=False)] = None,
) -> None:
    """Write all measured tables as one document, as docs/results.md."""
    from aqa_pipelines.tables.text import report
    from aqa_shared.files import replace_text
    from aqa_train.checkpoint import writing

    text = report(folder, Path() if out is None else out.parent)
    if out is None:
        typer.echo(text, nl=False)
    else:
        with writing(out, fix="name another --out"):
            replace_text(out, text)
