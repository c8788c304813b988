"""`aqa datasets`: what published datasets are known, their tables and splits, and what is wrong in a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aqa_shared import console
from aqa_shared.commands import App
from aqa_shared.errors import ExitCode

app = App(help="Published datasets: list, prepare, check.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of `aqa datasets list`.", show_default=False)]
Root = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER", help="Folder that holds the dataset's files, anywhere below it.", show_default=False
    ),
]


@app.command("list", epilog="aqa datasets list --json")
def list_(json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """Every dataset that is known: its videos, scores, licence, where to get it, paper."""
    from aqa_shared.datasets import DATASETS, about

    rows = {name: about(name) for name in DATASETS}
    if json:
        console.out.print_json(data=[{"name": name, **row.model_dump(exclude_none=True)} for name, row in rows.items()])
        return
    from rich.table import Table

    table = Table(show_header=False, show_lines=True)
    table.add_column("name", no_wrap=True)
    table.add_column("what", overflow="fold")
    for name, row in rows.items():
        facts = {"videos": row.videos, "scores": row.scores, "where": row.where, "licence": row.licence}
        table.add_row(name, "\n".join(f"{fact}: {text}" for fact, text in {**facts, "paper": row.paper}.items()))
    console.out.print(table)


@app.command(epilog="aqa datasets prepare mtl-aqa --root MTL-AQA --out mtl")
def prepare(
    name: Name,
    root: Root,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for the manifest and the splits.", show_default=False)
    ],
) -> None:
    """Write the manifest that aqa-extract reads, and the splits that aqa-train reads.

    Then: aqa-extract OUT/manifest.csv, and aqa-train --split OUT/splits/NAME.csv.
    """
    from aqa_shared.datasets.check import findings
    from aqa_shared.datasets.prepare import prepare as write

    data = write(name, root, out)
    for source in data.sources:
        console.note(f"read {source}")
    found = findings(data)
    problems = [finding for finding in found if not finding.known]
    for finding in problems[:5]:
        console.warn(console.printable(str(finding)))
    if len(found) > min(len(problems), 5):
        console.note(f"aqa datasets check {name} lists all {len(found)} findings")
    scored = sum(p.score is not None for p in data.performances)
    present = sum(p.path is not None and not p.missing for p in data.performances)
    splits = f"; splits: {', '.join(split.name for split in data.splits)}" if data.splits else "; no split"
    console.summary(
        f"{out}: {len(data.performances)} performances, {scored} with a score, {present} with a video{splits}"
    )


@app.command(epilog="aqa datasets check rhythmic-gymnastics --root RG")
def check(
    name: Name,
    root: Root,
    open_: Annotated[
        bool, typer.Option("--open", help="Also open every video: damaged ones, and those of another length.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Say what is missing or wrong: videos, lengths, score rules, ids in two splits; exit code 3 if there is any.

    Errors that the published files are known to have are listed last, and change no exit code.
    """
    from dataclasses import asdict

    from aqa_shared.datasets import read
    from aqa_shared.datasets.check import findings

    data = read(name, root)
    found = findings(data)
    if open_:
        from aqa_pipelines.datasets_open import open_videos

        found = [*open_videos(data, root), *found]
    problems = sum(not finding.known for finding in found)
    if json:
        console.out.print_json(data=[asdict(finding) for finding in found])
    else:
        for source in data.sources:
            console.note(f"read {source}")
        for finding in found:
            known = " (published so)" if finding.known else ""
            console.out.print(console.printable(str(finding)) + known, markup=False)
        console.note(
            f"{console.counted(len(data.performances), 'performance')}, {console.counted(problems, 'problem')}, "
            f"{console.counted(len(found) - problems, 'known error')}"
        )
    if problems:
        raise typer.Exit(int(ExitCode.QUARANTINED))
