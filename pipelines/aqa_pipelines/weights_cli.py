"""`aqa weights`: what pretrained weights there are, bring them here, check them."""

from __future__ import annotations

from typing import Annotated

import typer

from aqa_shared import console
from aqa_shared.commands import App
from aqa_shared.errors import ExitCode

app = App(help="Pretrained weights: list, fetch, verify.", no_args_is_help=True)


@app.command("list", epilog="aqa weights list --json")
def list_(json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """Every name of the registry, whether it is here, and under which licence. Downloads nothing."""
    from aqa_extract.weights import listing

    rows = listing()
    if json:
        console.out.print_json(data=rows)
        return
    from rich.table import Table

    table = Table()
    for column in ("name", "kind", "default", "here", "licence"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for row in rows:
        here = f"{row['bytes'] / 2**20:.0f} MiB" if row["cached"] else "made of others" if not row["sources"] else "–"
        place = f"{row['default'] or ''}{' (in use)' if row['settled'] else ''}"
        table.add_row(row["name"], row["kind"], place, here, row["licence"])
    console.out.print(table)


@app.command(epilog="aqa weights fetch i3d-kinetics-400")
def fetch(names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of `aqa weights list`.")]) -> None:
    """Bring weights into the cache and print their digests."""
    from aqa_extract.weights import fetch as bring

    for name in names:
        record = bring(name)
        console.out.print(f"{record['name']}  sha256:{record['sha256']}  {record['source']}", markup=False)


@app.command(epilog="aqa weights verify")
def verify(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Default: all that are here.")] = None,
) -> None:
    """Read cached weights again; exit code 5 if some are missing or damaged."""
    from aqa_extract.weights import listing
    from aqa_extract.weights import verify as find_problems

    problems = find_problems(names or None)
    for problem in problems:
        console.out.print(f"{problem.name}: {problem.detail}", markup=False)
    if problems:
        raise typer.Exit(int(ExitCode.ENVIRONMENT))
    here = names or [row["name"] for row in listing() if row["cached"]]
    console.out.print(f"{len(here)} whole: {', '.join(here)}" if here else "no weights are cached", markup=False)
