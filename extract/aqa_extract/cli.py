"""`aqa-extract VIDEOS --out STORE`: videos in, segment features out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from aqa_extract.backbones import BACKBONES
from aqa_extract.presets import PRESETS
from aqa_extract.signals import caught
from aqa_extract.streams import GRAMMAR, VIEWS, chosen, completed, needs_actor, parse
from aqa_shared import console
from aqa_shared.commands import App, Version, group
from aqa_shared.errors import UsageError, did_you_mean
from aqa_shared.records import ExtractSettings, Protocol
from aqa_shared.toml import as_value

app = App(environment="AQA_EXTRACT")

Input, Segments, Streams, Flow, Pixels, Actor, Networks, Run = map(
    group, ("Input and output", "Segments", "Streams", "Flow", "Pixels", "Actor", "Networks and weights", "Run")
)
"""Options by the heading under which `--help` shows them."""

PROTOCOLS = get_args(Protocol)
_ABOUT_CONFIG = ("config", "preset", "print_config", "dry_run", "replace", "shard")


def _load_config(context: typer.Context, path: Path | None) -> Path | None:
    """TOML keys are option names, a list is what commas separate on the command line.

    The file gives way to AQA_EXTRACT_* variables, and those to flags.
    """
    if path is None:
        return None
    import tomllib

    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise UsageError(f"cannot read the configuration {path}: {e}") from e
    known = {parameter.name for parameter in context.command.params} - {"config"}
    several = {p.name for p in context.command.params if p.nargs != 1 or getattr(p, "multiple", False)}
    values = {key.replace("-", "_"): value for key, value in values.items()}
    values = {
        key: ",".join(map(str, value)) if isinstance(value, list) and key not in several else value
        for key, value in values.items()
    }
    if unknown := sorted(set(values) - known):
        raise UsageError(
            f"{path} sets {unknown[0]!r}, which is not an option of aqa-extract",
            fix=f"{did_you_mean(unknown[0], [k for k in known if k])} see --help".lstrip(),
        )
    context.default_map = {**(context.default_map or {}), **values}
    return path


def _take_preset(context: typer.Context, name: str | None) -> str | None:
    """A preset gives way to everything else that says something."""
    if name is None:
        return None
    if name not in PRESETS:
        fix = f"{did_you_mean(name, PRESETS)} choose one of {', '.join(PRESETS)}".lstrip()
        raise UsageError(f"--preset {name!r}", fix=fix)
    context.default_map = {**PRESETS[name].options, **(context.default_map or {})}
    return name


def _asks_only(context: typer.Context, asked: bool) -> bool:
    """--print-config needs neither videos nor a store."""
    if asked:
        for parameter in context.command.params:
            parameter.required = False
    return asked


@app.command(epilog="aqa-extract videos/ --out feats.zarr --streams rgb,actor-rgb --device cuda")
@caught()
def extract(
    context: typer.Context,
    videos: Annotated[
        list[str],
        typer.Argument(
            help="A folder, video files, a glob in quotes, a text list (.txt), or a manifest (.csv, .json).",
            show_default=False,
            rich_help_panel="Input and output",
        ),
    ],
    out: Annotated[str, Input(help="Store to create, or to go on with: a folder or a URL.", show_default=False)],
    labels: Annotated[
        Path | None,
        Input(help="Table (CSV, JSON) with id or path, and score; default: labels.csv beside the videos."),
    ] = None,
    id_column: Annotated[
        str | None, Input(help="Column of the labels that names the videos, if it is not id or path.")
    ] = None,
    score_column: Annotated[str | None, Input(help="Column of the labels that is the score.")] = None,
    protocol: Annotated[
        str, Segments(help="Which frames make up the segments: " + ", ".join(PROTOCOLS) + ".")
    ] = "even",
    segments: Annotated[str, Segments(help="Segments a video (even), or auto: as many as look at every frame.")] = "10",
    segment_frames: Annotated[
        int | None, Segments(help="Frames a segment (even, dense); default: the backbone's, 16 for i3d.")
    ] = None,
    step: Annotated[int, Segments(help="Frames between segment starts (dense).")] = 16,
    fps: Annotated[float | None, Segments(help="Resample to this rate by timestamp first.")] = None,
    last_start: Annotated[int, Segments(help="Start of the tenth clip (mtl-aqa, aqa-7): 86 or 87.")] = 86,
    streams: Annotated[
        str | None,
        Streams(
            help=f"With commas between: {GRAMMAR}. Views: {', '.join(filter(None, VIEWS))}. Backbones: "
            f"{', '.join(BACKBONES)}. Outputs: `aqa streams`. Default: rgb, and flow where --flow is on."
        ),
    ] = None,
    flow: Annotated[
        str | None,
        Flow(help="TV-L1: off, or parity (as OpenCV on a CPU); parity for flow streams."),
    ] = None,
    flow_quantise: Annotated[str, Flow(help="mediapipe (as I3D was trained), round, or none.")] = "mediapipe",
    flow_bound: Annotated[float, Flow(help="Flow is clipped to this many pixels.")] = 20.0,
    short_side: Annotated[
        int | None, Pixels(help="Frames are resized to this short side; default: the backbone's, 256 for i3d.")
    ] = None,
    crop: Annotated[int | None, Pixels(help="Square that the network sees; default: its own, 224 for i3d.")] = None,
    fit: Annotated[str | None, Pixels(help="crop (the middle of a frame) or squash; default: the backbone's.")] = None,
    normalise: Annotated[
        str | None, Pixels(help="kinetics ([-1, 1]) or imagenet (CoRe-style code); default: the backbone's.")
    ] = None,
    antialias: Annotated[bool | None, Pixels("--antialias/--no-antialias", help="Smooth when reducing frames.")] = None,
    untagged_matrix: Annotated[
        str, Pixels(help="How to read colours whose matrix the file does not name: bt601, bt709 or by-size.")
    ] = "bt601",
    actor_select: Annotated[
        str,
        Actor(help="Who of several people is the actor, over the whole video: motion, longest, largest or central."),
    ] = "motion",
    actors: Annotated[int, Actor(help="Keep the tracks of the N best people; the features are of the best.")] = 1,
    actor_every: Annotated[int, Actor(help="Look for people on every k-th frame of the video.")] = 2,
    actor_looks: Annotated[
        int, Actor(help="At most so many looks a video; longer ones are looked at less often.")
    ] = 400,
    actor_min_score: Annotated[float, Actor(help="A person is detected with at least this score, twice.")] = 0.4,
    actor_min_coverage: Annotated[
        float, Actor(help="With the actor on a smaller share of the looks, the full frame is used.")
    ] = 0.2,
    actor_enlarge: Annotated[float, Actor(help="Side of the actor's crop over the body's.")] = 1.25,
    weights: Annotated[
        list[str] | None,
        Networks(
            metavar="NETWORK=NAME",
            help="As rgb=NAME, flow=FILE, actor=NAME or rgb@swin3d_b=FILE: a name of `aqa weights list` or a file; "
            "again for several.",
        ),
    ] = None,
    bn_eps: Annotated[float, Networks(help="I3D batch-norm epsilon; 1e-5 matches CoRe-style features.")] = 1e-3,
    precision: Annotated[
        str,
        Networks(
            help="fp32, bf16 or fp16 for the backbones; bf16 is 2 to 5 times as fast on processors with units for it."
        ),
    ] = "fp32",
    decoder: Annotated[
        str, Run(help="auto, av or decord; auto uses decord only where both give the same frames.")
    ] = "auto",
    device: Annotated[str, Run(help="auto, cpu, cuda or cuda:N.")] = "auto",
    batch: Annotated[int | None, Run(min=1, help="Segments per call of a network; default by device.")] = None,
    workers: Annotated[int | None, Run(min=1, help="Decode processes; default by cores.")] = None,
    timeout: Annotated[float, Run(min=1, help="Seconds a decoder may take; long videos get more.")] = 300.0,
    stop_after: Annotated[int, Run(min=0, help="Failures in a row that stop the run; 0 never.")] = 20,
    accept_damaged: Annotated[
        bool, Run(help="Take what decodes of damaged or truncated videos; recorded with each of them.")
    ] = False,
    retry_failed: Annotated[bool, Run(help="Try quarantined videos again.")] = False,
    repair: Annotated[bool, Run(help="Extract again what `aqa verify` finds damaged.")] = False,
    replace: Annotated[
        list[str] | None,
        Run(
            metavar="ID",
            help="A file that changed takes the place of what the store holds; again or with commas for several, "
            "`changed` for all.",
        ),
    ] = None,
    overwrite: Annotated[bool, Run(help="Replace an existing store.")] = False,
    shard: Annotated[
        str | None,
        Run(metavar="I/N", help="Only the I-th of N parts of the videos; `aqa finalise STORE` ends the work of all."),
    ] = None,
    dry_run: Annotated[bool, Run(help="Say what would be done and what it would cost; write nothing.")] = False,
    print_config: Annotated[
        bool, Run(help="Print the options as --config reads them and stop.", is_eager=True, callback=_asks_only)
    ] = False,
    config: Annotated[
        Path | None,
        Run(help="TOML file of these options.", is_eager=True, callback=_load_config),
    ] = None,
    preset: Annotated[
        str | None,
        Run(
            help=f"Segments and pixels as others have them: {', '.join(PRESETS)} (`aqa streams`). Options win.",
            is_eager=True,
            callback=_take_preset,
        ),
    ] = None,
    version: Version = False,
) -> None:
    """Extract features of every video into a Zarr store. Rerun the same command to resume or append.

    Options may also come from a TOML file (--config) or from AQA_EXTRACT_<OPTION> in the environment; flags win,
    --no-antialias over `antialias = true`.

    Exit codes: 0 done, 2 usage, 3 some videos quarantined, 4 no videos, 5 environment, 6 store.
    """
    settings = settings_from(
        streams=streams,
        flow=flow,
        sampling={
            "protocol": protocol,
            "segments": "auto" if segments == "auto" else _whole("--segments", segments, "a whole number or auto"),
            "segment_frames": segment_frames,
            "step": step,
            "fps": fps,
            "last_start": last_start,
        },
        pixels={
            "short_side": short_side,
            "crop": crop,
            "fit": fit,
            "normalise": normalise,
            "antialias": antialias,
            "untagged_matrix": untagged_matrix,
        },
        flow_rest={"quantise": flow_quantise, "bound": flow_bound},
        actor={
            "select": actor_select,
            "actors": actors,
            "every": actor_every,
            "looks": actor_looks,
            "min_score": actor_min_score,
            "min_coverage": actor_min_coverage,
            "enlarge": actor_enlarge,
        },
        rest={
            "weights": _weights(weights or ()),
            "bn_eps": bn_eps,
            "precision": precision,
        },
    )
    if decoder not in ("auto", "av", "decord"):
        raise UsageError(f"--decoder {decoder!r}", fix="choose auto, av or decord")
    if print_config:
        typer.echo(as_toml(context, settings), nl=False)
        return
    refuse_ignored(context, settings)
    from aqa_extract.faults import environment_fault
    from aqa_extract.run import Options
    from aqa_extract.run import extract as run_extract
    from aqa_shared.manifest import find_videos

    columns = {field: name for field, name in (("id", id_column), ("score", score_column)) if name is not None}
    manifest = find_videos(videos, labels=labels, columns=columns)
    manifest.report(console.note, console.warn)
    options = Options(
        device=device,
        batch=batch,
        workers=workers,
        decoder=decoder,  # type: ignore[arg-type]  # checked above
        timeout=timeout,
        stop_after=stop_after,
        accept_damaged=accept_damaged,
        retry_failed=retry_failed,
        repair=repair,
        replace=tuple(replace or ()),
        overwrite=overwrite,
        shard=_shard(shard, overwrite),
        # What `aqa info` recommends to make what is missing: it must not empty the store again.
        command=shlex.join([*_program(sys.argv[0]), *(a for a in sys.argv[1:] if a != "--overwrite")]),
    )
    if dry_run:
        from aqa_extract.estimate import estimate

        found = estimate(manifest.videos, out, settings, options)
        console.out.print(found.text(), markup=False)
        found.refuse_without_room()
        raise typer.Exit(int(found.exit_code))
    labelled = bool(manifest.labels_sources)
    report = run_extract(manifest.videos, out, settings, options, labelled=labelled)
    console.summary(report.text())
    if (fault := environment_fault(report.failures)) is not None:
        raise fault
    raise typer.Exit(int(report.exit_code))


def _weights(given: Sequence[str]) -> dict[str, str]:
    """NETWORK=NAME, by network; the last of two counts."""
    found: dict[str, str] = {}
    for text in given:
        network, equals, name = text.partition("=")
        if not equals or not name:
            raise UsageError(f"--weights {text!r}", fix="give NETWORK=NAME, as rgb=rgb_imagenet or flow=my_weights.pt")
        found[network] = name
    return found


def _program(started: str) -> list[str]:
    """What to type for the program that was started, `python -m` included: as a cluster's scripts start it."""
    path = Path(started)
    return ["python", "-m", path.parent.name] if path.name == "__main__.py" else [path.name]


def _shard(text: str | None, overwrite: bool) -> tuple[int, int] | None:
    """`3/8` as (3, 8)."""
    if text is None:
        return None
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise UsageError(f"--shard {text!r}", fix="give part/parts, the parts counted from 1, as 3/8")
    if overwrite:
        raise UsageError("--shard with --overwrite would remove what the other parts do", fix="remove the store first")
    return int(i), int(n)


def _whole(option: str, text: str, what: str) -> int:
    try:
        return int(text)
    except ValueError as e:
        raise UsageError(f"{option} {text!r}", fix=f"give {what}") from e


def settings_from(
    *,
    streams: str | None,
    flow: str | None,
    sampling: dict[str, Any],
    pixels: dict[str, Any],
    flow_rest: dict[str, Any],
    actor: dict[str, Any],
    rest: dict[str, Any],
) -> ExtractSettings:
    """The typed record of the options, completed. Raises UsageError with the option and its choices."""
    from pydantic import ValidationError

    if streams is None:
        names = ["rgb"] if flow in (None, "off") else ["rgb", "flow"]
    else:
        names = list(dict.fromkeys(name.strip() for name in streams.split(",") if name.strip()))
    wants_flow = any(parse(name).modality == "flow" for name in names)
    mode = flow if flow is not None else ("parity" if wants_flow else "off")
    if wants_flow and mode == "off":
        raise UsageError("--streams asks for flow, --flow is off", fix="omit --flow, or use --flow parity")
    try:
        given = ExtractSettings.model_validate(
            {
                "streams": names,
                "sampling": sampling,
                "pixels": pixels,
                "actor": actor,
                "flow": {"mode": mode, **flow_rest},
                **rest,
            }
        )
    except ValidationError as e:
        raise _named(e.errors()[0]) from e
    return completed(given)


_USERS: tuple[tuple[str, Callable[[ExtractSettings], bool], str], ...] = (
    ("fit", lambda s: any(not stream.actor for stream in chosen(s)), "a stream that does not follow the actor"),
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


def refuse_ignored(context: typer.Context, settings: ExtractSettings) -> None:
    """Raises UsageError for an option that was given, on the command line or elsewhere, and would do nothing."""
    said = f"--protocol {settings.sampling.protocol}, --streams {','.join(settings.streams)}"
    preset = context.params.get("preset")
    by_preset = PRESETS[preset].options if preset else {}
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "DEFAULT_MAP" and name in by_preset:
            continue  # nobody gave it: what was given makes it idle
        if source is not None and source.name != "DEFAULT" and (by := _unused(name, settings)):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} would be ignored with {said}", fix=f"omit it, or use {by}")
    used = {network for stream in chosen(settings) for network in stream.networks}
    if "flow" in used:
        used.add("rgb")  # which inflated weights are made of
    if idle := [network for network in settings.weights if network not in used]:
        raise UsageError(f"--weights {idle[0]}=… would be ignored with {said}", fix="omit it, or ask for its stream")


def as_toml(context: typer.Context, settings: ExtractSettings) -> str:
    """Every option in force, resolved, as `--config` reads it; what is unset or would be ignored is omitted."""
    resolved = {
        "streams": list(settings.streams),
        "flow": settings.flow.mode,
        "segments": settings.sampling.segments,
        "segment_frames": settings.sampling.segment_frames,
    }
    values = {**context.params, **resolved}
    groups: dict[str, list[str]] = {}
    for parameter in context.command.params:
        name, heading = str(parameter.name), getattr(parameter, "rich_help_panel", None)
        value = values.get(name)
        if heading is None or name in _ABOUT_CONFIG or value in (None, [], ()) or _unused(name, settings):
            continue
        groups.setdefault(heading, []).append(f"{name} = {as_value(value)}")
    return "\n\n".join("\n".join([f"# {heading}", *lines]) for heading, lines in groups.items()) + "\n"


def _named(error: Mapping[str, Any]) -> UsageError:
    """A validation error by the option it came from: ("flow", "bound") is --flow-bound, ("flow", "mode") is --flow."""
    place = [str(part) for part in error["loc"] if part not in ("constrained-int", "literal['auto']")]
    if place[0:1] in (["sampling"], ["pixels"]) or place[-1:] in (["mode"], ["actors"]):
        place = place[:1] if place[-1:] == ["mode"] else place[1:]
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error" or not place:
        return UsageError(message, fix="see aqa-extract --help")
    option = "--" + "-".join(place).replace("_", "-")
    return UsageError(f"{option}: {message} (got {error['input']!r})", fix="see aqa-extract --help")


def main() -> None:
    """Console script."""
    console.run(app)
