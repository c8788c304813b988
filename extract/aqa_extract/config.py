"""Every setting of a run, validated once: preset < TOML file < AQA_EXTRACT_* environment < options."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from aqa_extract.presets import PRESETS
from aqa_extract.streams import canvases, chosen, completed, needs_actor, parse
from aqa_shared.errors import UsageError
from aqa_shared.options import Option, Several, parted
from aqa_shared.records import ExtractSettings, Record
from aqa_shared.scheduler import named
from aqa_shared.settings import as_toml as written
from aqa_shared.settings import gathered, settings_of, valid
from aqa_shared.shards import AUTO, part_of_parts, scheduled

ENVIRONMENT = "AQA_EXTRACT_"
INPUT, RUN = "Input and output", "Run"
"""Headings of the options that are not what decides a feature."""


def preset_name(name: str) -> str:
    if name not in PRESETS:
        raise ValueError(f"choose one of {', '.join(PRESETS)}, got {name!r}")
    return name


class Handling(Record):
    """How one video is handled, by a run or by a service."""

    decoder: Annotated[
        Literal["auto", "av", "decord"],
        Option(RUN, "auto uses decord only where both give the same frames."),
    ] = "auto"
    batch: Annotated[int | None, Option(RUN, "Segments per call of a network.", default="by device")] = Field(
        default=None, ge=1
    )
    workers: Annotated[int | None, Option(RUN, "Decode processes.", default="by cores")] = Field(default=None, ge=1)
    timeout: Annotated[float, Option(RUN, "Seconds a decoder may take; long videos get more.")] = Field(
        default=300.0, gt=0
    )
    accept_damaged: Annotated[
        bool, Option(RUN, "Use what can be decoded of damaged or truncated videos; it is recorded with each.")
    ] = False


class Options(Handling):
    """How to run.

    Nothing here changes a feature beyond rounding (`batch` and `device` may choose other kernels), except for
    `accept_damaged`, which is recorded with each video.
    """

    device: Annotated[str, Option(RUN, "auto, cpu, cuda or cuda:N.")] = "auto"
    stop_after: Annotated[int, Option(RUN, "Failures in a row that stop the run; with 0 it never stops.")] = Field(
        default=20, ge=0
    )
    retry_failed: Annotated[bool, Option(RUN, "Try videos again that failed and are remembered.")] = False
    repair: Annotated[bool, Option(RUN, "Extract again what `aqa verify` finds damaged.")] = False
    replace: Annotated[
        Several,
        Option(
            RUN,
            "Extract videos again whose file has changed, in place of what the store holds; `changed` stands for all "
            "of them.",
            metavar="ID,...",
            repeated=True,
        ),
    ] = ()
    """Ids, each its own entry or several separated by commas, of which a file or part that changed takes the place of
    what the store holds; `changed` means all of those."""
    overwrite: Annotated[bool, Option(RUN, "Replace an existing store.")] = False
    shard: Annotated[
        tuple[int, int] | None,
        BeforeValidator(part_of_parts),
        Option(
            RUN,
            "Only the I-th of N parts of the videos; auto takes I and N from SLURM or Kubernetes. After all parts, run "
            "`aqa finalise STORE`.",
            metavar="I/N",
        ),
    ] = None
    """(i, n): only the i-th of n parts, from 1; what it commits waits for `finalise`."""
    scheduler: Annotated[
        str | None,
        BeforeValidator(named),
        Option(
            RUN,
            "Let the workers of a Dask cluster do the work: the address of its scheduler (tcp://HOST:PORT), the file "
            "that it wrote, or local:N for N processes on this machine.",
            metavar="ADDRESS|FILE",
        ),
    ] = None
    scheduler_wait: Annotated[
        float, Option(RUN, "Seconds to wait for a worker of the cluster that can do the work.")
    ] = Field(default=60.0, ge=0)
    command: str = Field(default="aqa-extract with the same arguments", exclude=True)
    """What makes the rest, should this run not come to its end."""

    @model_validator(mode="after")
    def _parts_share_a_store(self) -> Options:
        if self.shard and self.overwrite:
            raise ValueError("--shard with --overwrite would remove what the other parts do: remove the store first")
        if self.scheduler is None and self.scheduler_wait != Options.model_fields["scheduler_wait"].default:
            raise ValueError("--scheduler-wait does nothing without --scheduler: omit it, or name the cluster")
        return self


class Config(Record):
    """A whole run of aqa-extract: what is read, what is made of it, and how."""

    videos: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
        Option(
            INPUT,
            "A folder, video files, a glob in quotes, a text list (.txt), or a manifest (.csv, .json). [required]",
            argument=True,
            repeated=True,
            metavar="VIDEOS",
        ),
    ] = ()
    out: Annotated[
        str, Option(INPUT, "Store to create, or to go on with: a folder or a URL. [required]", metavar="STORE")
    ] = ""
    labels: Annotated[
        Path | None,
        Option(
            INPUT,
            "Table (CSV, JSON) with id or path, and score.",
            default="labels.csv beside the videos",
            metavar="FILE",
        ),
    ] = None
    id_column: Annotated[
        str | None,
        Option(INPUT, "Column of the labels that names the videos, if it is not id or path.", metavar="COLUMN"),
    ] = None
    score_column: Annotated[str | None, Option(INPUT, "Column of the labels that is the score.", metavar="COLUMN")] = (
        None
    )
    features: ExtractSettings = ExtractSettings()
    options: Options = Options()
    preset: Annotated[
        str | None,
        BeforeValidator(preset_name),
        Option(RUN, f"Segments and pixels as in published work: {', '.join(PRESETS)} (`aqa streams`). Options win."),
    ] = None


def resolve(file: Path | None, flags: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Config:
    """The settings in force, completed.

    Raises UsageError for what cannot be, and for what was given and would do nothing.
    """
    asked, variables = gathered(Config, ENVIRONMENT, file, flags, environment)
    values = made_whole(asked)
    if str(values.get("shard", "")).partition("/")[0] == AUTO:
        values["shard"] = scheduled(values["shard"], os.environ if environment is None else environment)
    config = valid(Config, values, variables, fix="see aqa-extract --help")
    return config.model_copy(update={"features": checked(config.features, asked)})


def made_whole(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, by key, with what follows from it: of a preset, of streams and flow."""
    preset = PRESETS.get(str(asked.get("preset")))
    values = {**(preset.options if preset else {}), **asked}
    # Either follows from the other where it is not given.
    values.setdefault("streams", ["rgb"] if values.get("flow", "off") == "off" else ["rgb", "flow"])
    values["streams"] = list(dict.fromkeys(map(str, parted(values["streams"]))))
    wants_flow = any(parse(stream).modality == "flow" for stream in values["streams"])
    values.setdefault("flow", "parity" if wants_flow else "off")
    return values


def checked(features: ExtractSettings, asked: Iterable[str]) -> ExtractSettings:
    """The settings in force, completed. Raises UsageError where one that was `asked` for would do nothing."""
    features = completed(features)
    _refuse_ignored(asked, features)
    return features


_WHOLE_FRAMES = "a stream that does not follow the actor"
_USERS: tuple[tuple[str, Callable[[ExtractSettings], bool], str], ...] = (
    ("fit", lambda s: any(not stream.actor for stream in chosen(s)), _WHOLE_FRAMES),
    ("short_side", lambda s: bool(canvases(s)), _WHOLE_FRAMES),  # flow that follows the actor is cut out of these
    ("antialias", lambda s: bool(canvases(s)), _WHOLE_FRAMES),
    ("segments", lambda s: s.sampling.protocol == "even", "--protocol even"),
    ("segment_frames", lambda s: s.sampling.protocol in ("even", "dense"), "--protocol even or dense"),
    ("step", lambda s: s.sampling.protocol == "dense", "--protocol dense"),
    ("last_start", lambda s: s.sampling.protocol in ("mtl-aqa", "aqa-7"), "--protocol mtl-aqa or aqa-7"),
    ("normalise", lambda s: any(stream.modality == "rgb" for stream in chosen(s)), "a stream of rgb"),
    ("flow_", lambda s: any(stream.modality == "flow" for stream in chosen(s)), "a stream of flow"),
    ("actor", needs_actor, "--streams actor-rgb or actor-flow"),
    ("bn_eps", lambda s: any("bn_eps" in stream.backbone.settings for stream in chosen(s)), "a stream of i3d"),
)
"""(what the names of options begin with; whether they are used; by what)."""


def _unused(name: str, settings: ExtractSettings) -> str | None:
    """What would use the option `name`, where nothing does."""
    for start, used, by in _USERS:
        if name.startswith(start):
            return None if used(settings) else by
    return None


def _refuse_ignored(asked: Iterable[str], settings: ExtractSettings) -> None:
    said = f"--protocol {settings.sampling.protocol}, --streams {','.join(settings.streams)}"
    for name in asked:
        if by := _unused(name, settings):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} would be ignored with {said}", fix=f"omit it, or use {by}")
    used = {network for stream in chosen(settings) for network in stream.networks}
    if "flow" in used:
        used.add("rgb")  # which inflated weights are made of
    if idle := [network for network in settings.weights if network not in used]:
        raise UsageError(f"--weights {idle[0]}=… would be ignored with {said}", fix="omit it, or ask for its stream")


def as_toml(config: Any) -> str:
    """Every option in force of a record with `features`, as `--config` reads it.

    What is unset or would be ignored is omitted.
    """
    groups: dict[str, dict[str, Any]] = {}
    for key, setting in settings_of(type(config)).items():
        value = setting.of(config)
        once = key in ("preset", "replace", "shard")
        if setting.option is None or once or value in (None, "", (), {}) or _unused(key, config.features):
            continue
        value = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
        groups.setdefault(setting.option.panel, {})[key] = value
    return "\n".join(f"# {panel}\n{written(values)}" for panel, values in groups.items())
