"""`aqa table`: run or resume what a table takes, then write it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from aqa_pipelines.tables.finished import Finished
from aqa_pipelines.tables.measured import cases, embedding, measure
from aqa_pipelines.tables.plan import Spot, TablePlan, TableRun, examine, time_of
from aqa_pipelines.tables.record import PaperTable, TableRow, read_table
from aqa_pipelines.tables.text import as_csv, as_markdown
from aqa_shared import console
from aqa_shared.console import as_time, counted
from aqa_shared.errors import UsageError
from aqa_shared.files import replace_text
from aqa_shared.machine import pick_device
from aqa_train.cluster.options import Cluster
from aqa_train.config import RunConfig
from aqa_train.experiment import open_features
from aqa_train.grid import Cell, reads
from aqa_train.method_settings import epochs_of
from aqa_train.methods import METHODS
from aqa_train.outputs import refuse_other_data, refuse_other_digests
from aqa_train.parts import Grid, jobs_of
from aqa_train.plots import draw
from aqa_train.protocol import once
from aqa_train.run import gather, holds_this_run, refuse_unwritable, train_cells, train_on
from aqa_train.signals import ended_in_order
from aqa_train.workers import choose_jobs

AGAIN = "run the same command again"


def name_of(path: Path) -> str:
    """`s4aqa/table1` of pipelines/s4aqa/table1.toml."""
    return f"{path.resolve().parent.name or 'tables'}/{path.stem}"


@ended_in_order(AGAIN)
def run_table(
    path: Path,
    features: str,
    out: Path,
    given: Mapping[str, Any],
    *,
    device: str = "auto",
    jobs: int | None = None,
    together: int = 1,
    in_memory: Any = "auto",
    write: Path | None = None,
    only: Sequence[str] = (),
    cluster: Cluster | None = None,
) -> tuple[dict[str, Any], TablePlan]:
    """Train what is left of a table, and write it as `<name>.json`, `.csv` and `.md` into `write`, or `out`.

    Runs lie in `out`, each in a folder of its own, which other tables on the same store share. `cluster`: a Dask
    cluster, whose workers train.
    """
    table, where = read_table(path), pick_device("cpu" if cluster else device)
    plan = examine(table, features, given, only)
    _refuse_empty(plan)
    for one in plan.ready:
        _refuse_another(one, out)
    stem = (write or out) / name_of(path)
    refuse_unwritable(jobs_of(_grid(plan.ready), out), [stem.parent, *(out / w.name for w in plan.ready)])
    finished = cache(partial(Finished, out))  # asked only where something is left, and the folder is read once
    groups: dict[tuple[Any, ...], list[TableRun]] = {}
    for one in plan.ready:
        # Streams that not all videos have are read apart: together they would have the videos alone that have both.
        videos = one.experiment.features.ids
        groups.setdefault((one.config.labels, one.config.score_column, one.config.id_column, videos), []).append(one)
    for works in groups.values():
        grid = _grid(works)
        features_of_all = open_features([w.config for w in works], once(console.warn))
        left = sum(not job.done for job in jobs_of(grid, out))
        take = partial(_take_over, finished, works if left else [])
        if cluster is None:
            number = choose_jobs(jobs, max(left, 1), where, works[0].config.training.threads)
            how: dict[str, Any] = {"device": where, "jobs": number, "together": together, "in_memory": in_memory}
            cells = train_cells(grid, features_of_all, out, **how, again=AGAIN, before=partial(take, str(where)))
        else:
            if left:
                names = [cell.name for cell, _ in grid]
                train_on(cluster, grid, out, device=device, in_memory=in_memory, again=AGAIN, runs=names, before=take)
            cells = gather(grid, features_of_all, out)
        by_name = {work.name: work for work in works}
        for done in cells:
            by_name[done.cell.name].failed = next(iter(done.failures.values()), None)
    _refuse_empty(plan)
    record = measure(plan, name_of(path), out)
    record["features"] = Path(features.rstrip("/")).name
    reduced, otherwise = _changes(table, given, only)
    record["reduced"] = "; ".join(filter(None, [record["reduced"], *reduced]))
    record["differences"] += [*otherwise, *plan.otherwise]
    if table.kind == "cases":
        record["cases"] = cases(plan, out)
    if table.kind == "embedding":
        record["embedding"] = embedding(plan, out)
    write_record(record, stem)
    for kind in ("png", "svg"):
        _beside(stem, kind).unlink(missing_ok=True)  # of an earlier record, if drawing fails
    if table.kind in ("figure", "embedding") and any(r["measured"] for r in record["rows"]):
        draw(_beside(stem, "json"), console.warn)
    return record, plan


def _refuse_empty(plan: TablePlan) -> None:
    """A table without any figure would take the place of what was measured before."""
    if plan.ready:
        return
    if plan.failures:
        where, error = next(iter(plan.failures.items()))
        raise UsageError(f"no row was measured: {where}: {error.cause}", fix=error.fix)
    if plan.lacking:
        cause, fix = next(iter(plan.lacking))
        raise UsageError(f"no row can be measured: {cause}", fix=fix)
    raise UsageError("no row can be measured: all are only published", fix="name one that has a method with --rows")


def _changes(table: PaperTable, given: Mapping[str, Any], only: Sequence[str]) -> tuple[list[str], list[str]]:
    """What the command asks for otherwise than the file: what reduces the table, and what is more."""
    reduced = [f"only the rows {'; '.join(only)}"] if only else []
    otherwise: list[str] = []
    rows = [row for row in table.chosen(only) if row.method is not None and reads(row.method, "epochs")]
    if "epochs" in given and rows and given["epochs"] != table.run.get("epochs"):
        keep = [row.name for row in rows if {"epochs", f"{row.method}.epochs"} & row.settings.keys()]
        but = f", but for {', '.join(keep)}" if keep else ""
        reduced.append(f"run with epochs = {given['epochs']}{but}")
    default = RunConfig.model_fields["seeds"].default
    usual = {{**table.run, **c.run}.get("seeds", default) for c in table.columns if not c.average_of}
    if "seeds" in given and usual != {given["seeds"]}:
        (reduced if given["seeds"] < max(usual) else otherwise).append(f"run with seeds = {given['seeds']}")
    return reduced, otherwise


def _take_over(finished: Callable[[str], Finished], works: Sequence[TableRun], device: str) -> None:
    if works:
        finished(device).take(works)


def write_record(record: Mapping[str, Any], stem: Path) -> None:
    """The three files of a table."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    replace_text(_beside(stem, "json"), text + "\n")
    replace_text(_beside(stem, "csv"), as_csv(record))
    replace_text(_beside(stem, "md"), as_markdown(record))


def _beside(stem: Path, kind: str) -> Path:
    """A table's file of this kind; a dot in its name is no suffix."""
    return stem.with_name(f"{stem.name}.{kind}")


def _grid(works: Sequence[TableRun]) -> Grid:
    """The runs as cells of one grid."""
    return [(Cell(w.name, w.config.fraction, {}, w.config), w.experiment) for w in works]


def _refuse_another(one: TableRun, out: Path) -> None:
    """Other data than a run began with are refused."""
    folder = out / one.name
    if holds_this_run(folder, one.config, set(), quiet=True):
        refuse_other_digests(one.config, one.experiment.data, folder)
        refuse_other_data(one.experiment, folder)


def plan_text(
    path: Path,
    features: str | None,
    out: Path,
    given: Mapping[str, Any],
    *,
    device: str = "auto",
    jobs: int | None = None,
    only: Sequence[str] = (),
) -> tuple[str, TablePlan | None]:
    """What a table takes: trainings, time, what is missing and how to get it. Trains nothing that stays."""
    table = read_table(path)
    rows = table.chosen(only)
    lines = [f"{name_of(path)}: {table.title}"]
    published = [f"only published: {row.name}: {row.why}" for row in rows if row.method is None]
    if features is None:
        if given:
            raise UsageError(f"--{next(iter(given))} is of a plan for a store", fix="give --features")
        return "\n".join([*lines, *published, *_needs(table, rows)]), None
    where = pick_device(device)
    plan = examine(table, features, given, only)
    for one in plan.ready:
        _refuse_another(one, out)
    finished = Finished(out, str(where))
    done = {w.name: finished.of(w) for w in plan.ready}
    every = {w.name: len(w.experiment.trainings) for w in plan.ready}
    seconds = time_of(plan, {name: tuple(of.values()) for name, of in done.items()}, where)
    left = {name: count - len(done[name]) for name, count in every.items()}
    threads = plan.ready[0].config.training.threads if plan.ready else 1
    number = choose_jobs(jobs, max(sum(left.values()), 1), where, threads)
    for one in plan.ready:
        (method,) = one.config.methods
        total, epochs = every[one.name], counted(epochs_of(one.config, method), "epoch")
        lines.append(
            f"  {_where(one.spots)}: {method}, {counted(total, 'training')} of {epochs}, "
            f"{len(done[one.name])} done, {as_time(seconds[one.name])} each"
        )
    time = sum(seconds.get(n, 0) * count for n, count in left.items()) / number
    lines.append(
        f"{counted(sum(every.values()), 'training')}, {sum(left.values())} left: "
        f"about {as_time(time)}, {number} at a time on {where}"
    )
    lines += [f"not as published: {what}" for what in plan.otherwise]
    lines += published
    lines += [f"failed when it was tried: {where}: {error.cause}" for where, error in plan.failures.items()]
    for (cause, fix), spots in plan.lacking.items():
        lines += [f"missing for {_where(spots)}: {cause}", f"  {fix}"]
    if plan.lacking:
        lines += _needs(table, rows)
    return "\n".join(lines), plan


def _where(spots: list[Spot]) -> str:
    rows = list(dict.fromkeys(s.row.name for s in spots))
    columns = list(dict.fromkeys(s.column.name for s in spots))
    return f"{', '.join(rows)} ({', '.join(columns)})"


def _needs(table: PaperTable, rows: Sequence[TableRow]) -> list[str]:
    """The commands that make what these rows of a table need."""
    measured = [row for row in rows if row.method is not None]
    if not measured:
        return []
    methods = [METHODS[str(row.method)] for row in measured]
    streams = list(dict.fromkeys(s for row in measured for s in table.streams_to_make(row)))
    columns = list(dict.fromkeys(c for method in methods for c in (*method.columns, *method.labels)))
    lines = ["what it needs:"]
    if table.dataset:
        lines.append(f"  aqa datasets prepare {table.dataset} --root FILES --out {table.dataset}")
    if table.prepared:
        lines.append(f"  {table.prepared}")
    else:
        options = f" --protocol {table.protocol}" if table.protocol else ""
        lines.append(
            f"  aqa-extract {table.dataset or 'VIDEOS'}{'/manifest.csv' if table.dataset else ''} "
            f"--out feats.zarr --streams {','.join(streams)}{options}"
        )
    if columns:
        lines.append(f"  columns of the videos' table: {', '.join(columns)}")
    return lines
