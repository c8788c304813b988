"""`aqa serve`: a stage as a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from aqa_extract.backbones import BACKBONES
from aqa_extract.config import RUN, as_toml
from aqa_extract.streams import GRAMMAR, VIEWS
from aqa_pipelines.serve.settings import Service, resolve
from aqa_shared.commands import App, group
from aqa_shared.errors import UsageError
from aqa_shared.settings import given, with_options

app = App(help="Serve a stage over HTTP: extract.", no_args_is_help=True)

RunOption = group(RUN)


@app.callback()
def serve() -> None:
    """Serve a stage over HTTP."""


@app.command(epilog="aqa serve extract --store feats.zarr --root videos/ --watch incoming/ --streams rgb,flow")
@with_options(Service, grammar=GRAMMAR, views=", ".join(filter(None, VIEWS)), backbones=", ".join(BACKBONES))
def extract(
    context: typer.Context,
    config: Annotated[Path | None, RunOption(help="TOML file of these options.")] = None,
    print_config: Annotated[
        bool, RunOption("--print-config", help="Print the options as --config reads them and stop.")
    ] = False,
    **settings_given: Any,
) -> None:
    """Keep the networks loaded and extract what is asked for over HTTP, or put into a watched folder.

    Jobs survive a restart. SIGTERM and Ctrl-C finish what is being extracted, within 20 s, and finalise the store.
    Options may also come from a TOML file (--config) or from the environment, as AQA_SERVE_PORT=8000.

    Exit codes: 0 drained, 2 usage, 5 environment, 6 store (also where a drain could not finalise it), 143 drained, but
    some videos were given up.
    """
    service = resolve(config, given(context, Service))
    if print_config:
        typer.echo(as_toml(service), nl=False)
        return
    if not service.store:
        raise UsageError("--store is missing", fix="aqa serve extract --store feats.zarr --root videos/")
    from aqa_pipelines.serve.service import serve as run

    raise typer.Exit(int(run(service)))
