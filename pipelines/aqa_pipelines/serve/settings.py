"""Settings of the service: AQA_SERVE_* < TOML file < options; those of the features are aqa-extract's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from aqa_extract.config import RUN, Handling, checked, made_whole, preset_name
from aqa_shared.errors import EnvironmentFault, UsageError
from aqa_shared.options import Option, Several
from aqa_shared.records import ExtractSettings, Record
from aqa_shared.settings import gathered, valid

ENVIRONMENT = "AQA_SERVE_"
TOKEN = "AQA_SERVE_TOKEN"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
FILES, ACCESS, QUEUE = "Videos and store", "Who may ask", "Queue"


def _paths(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Service(Record):
    """What is served, to whom, and how much of it at a time."""

    store: Annotated[
        str, Option(FILES, "Store to create, or to go on with: a folder or a URL. [required]", metavar="STORE")
    ] = ""
    root: Annotated[
        tuple[str, ...],
        BeforeValidator(_paths),
        Option(
            FILES,
            "Folder whose videos may be asked for by path. Ids are paths below it. Repeat it for more.",
            metavar="FOLDER",
            repeated=True,
            default="none: only uploads",
        ),
    ] = ()
    watch: Annotated[
        tuple[str, ...],
        BeforeValidator(_paths),
        Option(
            FILES,
            "Folder whose videos are extracted as they arrive; it is also a root. Repeat it for more.",
            metavar="FOLDER",
            repeated=True,
            default="none",
        ),
    ] = ()
    settle: Annotated[
        float, Option(FILES, "Seconds without a change after which a file in a watched folder is complete.")
    ] = Field(default=10.0, ge=0.5)
    finalise_every: Annotated[
        float, Option(FILES, "Seconds after which readers of the store see what was extracted.")
    ] = Field(default=30.0, ge=0.5)
    host: Annotated[str, Option(ACCESS, "Address to listen at; any but a loopback needs a token.")] = "127.0.0.1"
    port: Annotated[int, Option(ACCESS, "Port; 0 takes a free one and prints it.")] = Field(
        default=8790, ge=0, le=65535
    )
    token_file: Annotated[
        Path | None,
        Option(ACCESS, f"File with the token that clients have to send; or {TOKEN} has it.", metavar="FILE"),
    ] = None
    queue: Annotated[int, Option(QUEUE, "Jobs that may wait; further ones are refused (429) until there is room.")] = (
        Field(default=1000, ge=1)
    )
    state: Annotated[
        str,
        Option(QUEUE, "Folder of the jobs and of uploads, on a local disk.", metavar="FOLDER", default="STORE.jobs"),
    ] = ""
    max_upload: Annotated[float, Option(QUEUE, "Megabytes an upload may have; 0 refuses uploads.")] = Field(
        default=2000.0, ge=0
    )
    devices: Annotated[
        Several,
        Option(
            RUN,
            "A process each: cpu, or cuda:0,cuda:1; auto is every GPU, else the CPU.",
            metavar="DEVICE,...",
            default="auto",
        ),
    ] = ("auto",)
    handling: Handling = Handling()
    features: ExtractSettings = ExtractSettings()
    preset: Annotated[
        str | None, BeforeValidator(preset_name), Option(RUN, "As of aqa-extract (`aqa streams`). Options win.")
    ] = None

    @property
    def roots(self) -> list[Path]:
        """Absolute, as they are named; links in them are not resolved."""
        return [Path(os.path.abspath(folder)) for folder in dict.fromkeys((*self.root, *self.watch))]


def resolve(file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Service:
    """The settings in force, completed. Raises UsageError for what cannot be or would do nothing."""
    said = os.environ if environment is None else environment
    settable = {name: value for name, value in said.items() if name != TOKEN}
    asked, variables = gathered(Service, ENVIRONMENT, file, flags, settable)
    service = valid(Service, made_whole(asked), variables, fix="see aqa serve extract --help")
    service = service.model_copy(update={"features": checked(service.features, asked)})
    for folder in service.roots:
        if not folder.is_dir():
            option = "--watch" if str(folder) in map(os.path.abspath, service.watch) else "--root"
            raise UsageError(f"{option} {folder}: is not a folder", fix="make it, or name another one")
    if not service.state and "://" in service.store:
        raise UsageError("--state is missing, and the store is not on this machine", fix="add --state FOLDER")
    service = service if service.state else service.model_copy(update={"state": service.store.rstrip("/") + ".jobs"})
    for watched in map(os.path.abspath, service.watch):
        if service.store and Path(os.path.abspath(service.state)).is_relative_to(watched):
            cause = f"--state {service.state} is in {watched}, which is watched"
            raise UsageError(cause, fix="add --state FOLDER elsewhere")
    return service


def token_of(service: Service, environment: Mapping[str, str] | None = None) -> str:
    """What clients have to send; "" where everybody on this machine may ask. Raises UsageError, EnvironmentFault."""
    token = (os.environ if environment is None else environment).get(TOKEN, "")
    if service.token_file is not None:
        try:
            token = service.token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as e:
            raise EnvironmentFault(
                f"--token-file {service.token_file}: {getattr(e, 'strerror', None) or 'is not plain text'}",
                fix="write one there: openssl rand -hex 32",
            ) from e
    if token and (len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token):
        raise UsageError(
            "the token is not one: fewer than 16 characters, or not plain ASCII", fix="openssl rand -hex 32"
        )
    if not token and (service.token_file or service.host not in LOOPBACK):
        raise UsageError(
            f"{service.token_file or f'--host {service.host}'}: a service that others can reach needs a token",
            fix=f"openssl rand -hex 32 > token; then --token-file token, or {TOKEN}; or --host 127.0.0.1",
        )
    return token
