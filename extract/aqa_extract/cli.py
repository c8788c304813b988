"""`aqa-extract VIDEOS --out STORE`: videos in, segment features out."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from aqa_extract.backbones import BACKBONES
from aqa_extract.config import RUN, Config, as_toml, resolve
from aqa_extract.signals import caught
from aqa_extract.streams import GRAMMAR, VIEWS
from aqa_shared import console
from aqa_shared.commands import App, Version, group
from aqa_shared.errors import UsageError
from aqa_shared.settings import given, with_options
from aqa_shared.shards import of_part

app = App()

RunOption = group(RUN)
"""Options of the command itself; those that are settings are in `config` and the records that it is made of."""


@app.command(epilog="aqa-extract videos/ --out feats.zarr --streams rgb,actor-rgb --device cuda")
@with_options(Config, grammar=GRAMMAR, views=", ".join(filter(None, VIEWS)), backbones=", ".join(BACKBONES))
@caught()
def extract(
    context: typer.Context,
    dry_run: Annotated[
        bool, RunOption("--dry-run", help="Say what would be done and what it would cost; write nothing.")
    ] = False,
    print_config: Annotated[
        bool, RunOption("--print-config", help="Print the options as --config reads them and stop.")
    ] = False,
    config: Annotated[Path | None, RunOption(help="TOML file of these options.")] = None,
    version: Version = False,
    **settings_given: Any,
) -> None:
    """Extract features of every video into a Zarr store. Rerun the same command to resume or append.

    Options may also come from a TOML file (--config) or from the environment, as AQA_EXTRACT_SEGMENTS=20. Flags win,
    also --no-antialias over `antialias = true`.

    A video that cannot be read is remembered with the reason, and the run goes on with the others.

    Exit codes: 0 done, 2 usage, 3 some videos failed, 4 no videos, 5 environment, 6 store.
    """
    asked = resolve(config, given(context, Config))
    if print_config:
        typer.echo(as_toml(asked), nl=False)
        return
    if not asked.videos or not asked.out:
        missing = "the videos are" if not asked.videos else "--out is"
        raise UsageError(f"{missing} missing", fix="aqa-extract videos/ --out feats.zarr")
    from aqa_extract.faults import environment_fault
    from aqa_extract.run import extract as run_extract
    from aqa_shared.manifest import find_videos

    columns = {"id": asked.id_column, "score": asked.score_column}
    manifest = find_videos(
        asked.videos, labels=asked.labels, columns={field: name for field, name in columns.items() if name is not None}
    )
    manifest.report(console.note, console.warn)
    # What `aqa info` recommends to make what is missing: it must not empty the store again.
    command = shlex.join([*_program(sys.argv[0]), *(a for a in sys.argv[1:] if a != "--overwrite")])
    if asked.options.shard:  # whichever was said by the environment is said by the command
        command = of_part(command, *asked.options.shard)
    options = asked.options.model_copy(update={"command": command})
    if dry_run:
        from aqa_extract.estimate import estimate

        found = estimate(manifest.videos, asked.out, asked.features, options)
        console.out.print(found.text(), markup=False)
        found.refuse_without_room()
        raise typer.Exit(int(found.exit_code))
    labelled = bool(manifest.labels_sources)
    report = run_extract(manifest.videos, asked.out, asked.features, options, labelled=labelled)
    console.summary(report.text())
    if (fault := environment_fault(report.failures)) is not None:
        raise fault
    raise typer.Exit(int(report.exit_code))


def _program(started: str) -> list[str]:
    """What to type for the program that was started, `python -m` included: as a cluster's scripts start it."""
    path = Path(started)
    return ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name]


def main() -> None:
    """Console script."""
    console.run(app)
