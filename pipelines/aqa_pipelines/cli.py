"""`aqa`: the umbrella over the two stages. Thin commands; the work is in the modules they import late."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from aqa_pipelines import datasets_cli, submit_cli, tables_cli, weights_cli
from aqa_pipelines.serve import cli as serve_cli
from aqa_shared import console
from aqa_shared.commands import App, CommandGroup, Later, Version
from aqa_shared.errors import ExitCode, StoreError, UsageError


class _Umbrella(CommandGroup):
    """The two stages before our own commands."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        stages = (
            Later("extract", "Videos in, a store of features out; also as aqa-extract.", "aqa_extract.cli:app"),
            Later("train", "Features in, scores and models out; also as aqa-train.", "aqa_train.cli:app"),
        )
        self.commands = {**{str(stage.name): stage for stage in stages}, **self.commands}


app = App(
    cls=_Umbrella,
    help="Judge how well an action was performed, from video, with few scored videos.\n\n"
    "`extract` makes features of videos, `train` learns to score them, `predict` scores new ones.",
    no_args_is_help=True,
)
app.add_typer(datasets_cli.app, name="datasets")
app.add_typer(serve_cli.app, name="serve")
app.add_typer(submit_cli.app, name="submit")
app.add_typer(weights_cli.app, name="weights")
tables_cli.add(app)

StorePath = Annotated[
    str, typer.Argument(metavar="STORE", help="Store of aqa-extract: a folder or a URL.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
AcceptDamaged = Annotated[
    bool,
    typer.Option("--accept-damaged", help="Use what can be decoded of damaged or truncated videos; a warning says so."),
]


@app.callback()
def aqa(version: Version = False) -> None:
    """Judge how well an action was performed, from video, with few scored videos."""


@app.command(epilog="aqa demo --videos 500 --out dives --render-only")
def demo(
    videos: Annotated[int, typer.Option(help="How many to render.")] = 60,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for videos/, feats.zarr and run/.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Another seed makes other dives.", min=0)] = 0,
    size: Annotated[str, typer.Option(metavar="WxH", help="Width x height in pixels.")] = "160x128",
    frames: Annotated[int, typer.Option(help="Frames per video.")] = 64,
    fps: Annotated[float, typer.Option(help="Frames per second.")] = 20.0,
    workers: Annotated[int, typer.Option(help="Rendering processes; 0 takes every core.", min=0)] = 0,
    render_only: Annotated[bool, typer.Option("--render-only", help="Only render videos and labels.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace videos that other settings made.")] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Also write a contact sheet of the first videos (.png).", show_default=False)
    ] = None,
) -> None:
    """Render scored dives, then run the two real commands on them and compare the default method, AA and S4AQA.

    The same seed renders the same videos, however many; rerunning goes on where it stopped.
    """
    from aqa_dives.dataset import Look
    from aqa_pipelines import demo as work

    width, height = _size(size)
    look = Look(seed=seed, width=width, height=height, frames=frames, fps=fps)
    work.render_videos(look, videos, out, workers=workers, overwrite=overwrite)
    if sheet is not None:
        from aqa_dives.sheet import write_sheet

        write_sheet(look, min(videos, 4), sheet)
    if not render_only:
        raise typer.Exit(work.run_stages(out))


@app.command(epilog="aqa predict runs/first new.mp4 --format json")
def predict(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="Run folder of aqa-train, or one model's folder or file in it.", show_default=False
        ),
    ],
    videos: Annotated[
        list[str],
        typer.Argument(
            metavar="STORE|VIDEO...",
            help="A store of aqa-extract; or videos as aqa-extract takes them: files, a folder, a glob, a list.",
        ),
    ],
    method: Annotated[
        str | None, typer.Option(help="The one to use, of a run of several methods.", show_default=False)
    ] = None,
    format: Annotated[Literal["csv", "json"], typer.Option(help="How the scores are written.")] = "csv",
    out: Annotated[Path | None, typer.Option(help="Write here instead of stdout.", show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    decoder: Annotated[Literal["auto", "av", "decord"], typer.Option(help="As for aqa-extract.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Decode processes. [default: by cores]")] = None,
    accept_damaged: AcceptDamaged = False,
) -> None:
    """Score videos with a trained run: extract the features that it needs, and print a score for each video.

    A score is the mean over the run's seeds and folds, the spread its deviation over them. Models that learned from a
    video's own score are left out; where all did, all are used, and the column in_sample says true.

    Exit codes: 0 done, 2 usage, 3 some videos could not be used, 4 no videos, 5 environment, 6 other features
    or weights than the models learned from.
    """
    from aqa_extract.faults import environment_fault, told
    from aqa_pipelines.predict import as_text, predict_videos, write_text

    result = predict_videos(
        run, videos, method=method, device=device, decoder=decoder, workers=workers, accept_damaged=accept_damaged
    )
    text = as_text(result, format)
    if out is None:
        # Names are data in a file; on a terminal they must not be obeyed.
        typer.echo(text, nl=False, color=not sys.stdout.isatty())
    else:
        write_text(out, text)
    for failure in result.failures:
        console.warn(told(failure))
    if (fault := environment_fault(result.failures)) is not None:
        raise fault
    if result.failures:
        raise typer.Exit(int(ExitCode.QUARANTINED))


@app.command("import-features", epilog="aqa import-features i3d/ --out feats.zarr --labels scores.csv")
def import_features(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of .npy, .npz, .pkl, .mat or .h5 files, or one such file.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option(metavar="STORE", help="Store to create, or to add to: a folder or a URL.", show_default=False)
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="Table (CSV, JSON) with id and score; default: what SOURCE says.", show_default=False),
    ] = None,
    id_column: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of --labels that names the videos, if it is not id or path."),
    ] = None,
    score_column: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of --labels, or array of SOURCE, that is the score.")
    ] = None,
    stream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=WHERE]",
            help="Name of the features; of several, each with the end of its files' names (rgb=_rgb), a folder "
            "(rgb=rgb/) or the name of an array in the files. Default: rgb and flow by these, else features.",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        str, typer.Option(metavar="FROM-TO,...", help="Keep these of the last axis, from 0, as 0-2,19.")
    ] = "",
    transform: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:SETTING=VALUE,...]",
            help="windows-dct (windows, or window and stride; coefficients), resample (rows), flatten, mean, fill "
            "(value). Repeat it for more; they apply in this order.",
            show_default=False,
        ),
    ] = None,
    made_by: Annotated[
        str,
        typer.Option(metavar="TEXT", help="What made the features; features made by something else are then refused."),
    ] = "",
    replace: Annotated[bool, typer.Option("--replace", help="Take the new values of files that have changed.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Import damaged videos of the store again.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Empty the store first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check everything, write nothing.")] = False,
) -> None:
    """Make a store of features, skeletons or kinematics that you have, or add them to one; aqa-train takes it as it is.

    An array is (time, channels), or (channels,), of any width and length. Layouts: docs/importing.md. Running it again
    adds what is new.

    Exit codes: 0 done, 2 usage, 3 some arrays were left out, 4 nothing to import, 6 the store has other such features.
    """
    from aqa_pipelines.import_features import import_features as work

    named = {"id": id_column, "score": score_column}
    report = work(
        source,
        out,
        streams=stream or [],
        labels=labels,
        label_columns={k: v for k, v in named.items() if v is not None},
        columns=columns,
        transforms=transform or [],
        made_by=made_by,
        replace_changed=replace,
        repair=repair,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    console.summary(report.text())
    if report.exit_code:
        raise typer.Exit(int(report.exit_code))


@app.command(epilog="aqa actor dive.mp4 --sheet dive.png")
def actor(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="One video file.", exists=True, show_default=False)],
    sheet: Annotated[
        Path | None,
        typer.Option(help="Write a contact sheet (.png): frames with boxes, and the crop of each.", show_default=False),
    ] = None,
    select: Annotated[
        Literal["motion", "longest", "largest", "central"], typer.Option(help="Who of several people is the actor.")
    ] = "motion",
    actors: Annotated[int, typer.Option(help="Also show the next best people.", min=1, max=16)] = 3,
    every: Annotated[int, typer.Option(help="Look for people on every N-th frame.", min=1)] = 2,
    weights: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="Weights of the detector: a name of `aqa weights list` or a file.")
    ] = "default",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    accept_damaged: AcceptDamaged = False,
    json: Json = False,
) -> None:
    """Say whom the actor's streams would follow through a video, and draw it.

    White is the crop, green the actor, yellow and orange the next best people, grey what else was detected.
    Exit codes: 0 done, 2 usage, 3 the video cannot be read, 5 environment.
    """
    from aqa_extract.decode.failure import DecodeFailure
    from aqa_pipelines import actor as work
    from aqa_shared.records import ActorSettings

    try:
        settings = ActorSettings(select=select, actors=actors, every=every)
        watched = work.watch(video, settings, work.load_on(weights, device), accept_damaged)
    except DecodeFailure as e:
        console.warn(f"{console.printable(str(video))}: {console.printable(e.detail)} ({e.reason})")
        raise typer.Exit(int(ExitCode.QUARANTINED)) from e
    if sheet is not None:
        work.save(work.sheet(watched), sheet)
    if json:
        console.out.print_json(data=work.record(watched))
    else:
        console.out.print(work.text(watched), markup=False)


@app.command(epilog="aqa streams --json")
def streams(json: Json = False) -> None:
    """What `aqa-extract --streams` can make: views, networks, their outputs and weights. Downloads nothing."""
    from aqa_pipelines.streams import record, text

    if json:
        console.out.print_json(data=record())
    else:
        typer.echo(text(record()))


@app.command(epilog="aqa methods --json")
def methods(json: Json = False) -> None:
    """List the methods that aqa-train knows: paper, what each needs, how its authors trained it."""
    from aqa_train.catalogue import as_text, catalogue

    if json:
        console.out.print_json(data=catalogue())
    else:
        console.out.print(as_text(catalogue()), markup=False)


@app.command(epilog="aqa info feats.zarr --json")
def info(store: StorePath, json: Json = False) -> None:
    """Say what a store holds: streams, labels, failed videos, and what is missing and how to make only that.

    --json has everything that is known: arrays, settings, weights, versions.
    """
    from aqa_pipelines.show import info_text
    from aqa_shared.store import describe

    record = describe(store)
    if json:
        console.out.print_json(data=record)
    else:
        console.out.print(info_text(record), markup=False)


@app.command(epilog="aqa finalise s3://bucket/feats.zarr")
def finalise(
    store: Annotated[
        str,
        typer.Argument(metavar="STORE", help="Store of aqa-extract, or run folder of aqa-train.", show_default=False),
    ],
    json: Json = False,
) -> None:
    """Put together what parts have made (--shard of aqa-extract and aqa-train); say what is missing and how to make it.

    Of a run folder it writes the tables and plots, once no training is missing; it trains nothing.

    Exit codes: 0 nothing is missing, 2 usage, 3 something is missing or a method failed, 5 environment, 6 it cannot be
    read or written.
    """
    from aqa_pipelines.show import missing_text

    if (Path(store) / "config.json").exists():
        from aqa_train.cli import finalise as finalise_run

        def tell(lacking: list[dict[str, Any]]) -> None:
            if json:
                console.out.print_json(data={"missing": lacking})
            else:
                console.out.print(missing_text(store, lacking, "training"), markup=False)

        finalise_run(Path(store), quiet=json, tell=tell)
        return
    from aqa_shared.store import finalise as put_together
    from aqa_shared.store import is_store, missing

    if Path(store).is_dir() and not is_store(store):
        raise StoreError(
            f"{console.printable(store)}: neither a feature store nor a run folder in which a part has begun",
            fix="give the --out of aqa-extract or aqa-train; where no part has begun, see what the parts printed",
        )

    state = put_together(store)
    lacking = missing(store)
    if json:
        console.out.print_json(data={"number": state.number, "missing": lacking})
    else:
        console.out.print(missing_text(store, lacking), markup=False)
    if lacking:
        raise typer.Exit(int(ExitCode.QUARANTINED))


@app.command(epilog="aqa compact feats.zarr")
def compact(store: StorePath) -> None:
    """Merge all blocks of a store into as few as can be, and remove what no longer counts.

    Equal videos then give equal bytes. Needs room for a second copy of the features; run it when nothing extracts into
    the store, and open the store again where it is being read.
    """
    from aqa_shared.store import Objects
    from aqa_shared.store import compact as merge

    objects = Objects(store)
    before = objects.size()
    state = merge(store)
    after = objects.size()
    blocks = f"{len(state.blocks)} block{'s' if len(state.blocks) != 1 else ''}"
    name = console.printable(store)
    console.out.print(f"{name}: {blocks}, {after / 1e6:.1f} MB, {before / 1e6:.1f} MB before", markup=False)


@app.command(epilog="aqa verify feats.zarr")
def verify(store: StorePath, json: Json = False) -> None:
    """Read a whole store again and name every damaged video; exit code 6 if there is one."""
    from dataclasses import asdict

    from aqa_pipelines.show import damage_text
    from aqa_shared.store import verify as find_damage

    damage = find_damage(store)
    if json:
        console.out.print_json(data=[asdict(d) for d in damage])
    else:
        console.out.print(damage_text(store, damage), markup=False)
    if damage:
        raise typer.Exit(int(ExitCode.STORE))


@app.command(epilog="aqa doctor --json")
def doctor(json: Json = False) -> None:
    """Say what this machine offers and whether it computes right; exit code 5 if something needed is missing."""
    from aqa_pipelines.doctor import as_table, examine

    checks = examine()
    if json:
        from dataclasses import asdict

        console.out.print_json(data=[asdict(check) for check in checks])
    else:
        console.out.print(as_table(checks))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(int(ExitCode.ENVIRONMENT))


def _size(text: str) -> tuple[int, int]:
    """Width and height of `160x128`."""
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(p.strip().isdigit() for p in parts):
        raise UsageError(f"--size {text!r}", fix="give width x height, as 160x128")
    return int(parts[0]), int(parts[1])


def main() -> None:
    """Console script."""
    console.run(app)
