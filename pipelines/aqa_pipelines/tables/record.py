"""A table or figure of a paper as a file says it: rows, columns, published figures, and how each cell is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from aqa_shared.datasets import DATASETS
from aqa_shared.errors import UsageError, did_you_mean
from aqa_shared.records import Finite, Protocol, Record
from aqa_shared.settings import explain, read_toml
from aqa_train.config import RunConfig, Training
from aqa_train.grid import reads
from aqa_train.methods import METHODS
from aqa_train.resolve import resolve

Measure = Literal["spearman", "kendall", "mae", "rl2_dataset_range", "rl2_test_range", "auc"]
NOT_IN_RUN = (
    *("features", "methods", "leave_out", "settings", "variants", "labels", "dataset", "training", "streams"),
    "all_scores",
)
"""Settings of a run that a table says elsewhere, or the command does; and what leaves nothing to test on."""


class TableColumn(Record):
    """One column: a measure of the runs with these settings, or the average of other columns."""

    name: str = Field(min_length=1)
    run: dict[str, Any] = Field(default_factory=dict)
    """Settings of `aqa-train` that differ from the table's."""
    measure: Measure | None = None
    """None: the table's."""
    average_of: tuple[str, ...] = ()
    """Names of columns of one measure: Fisher's mean of correlations, the plain mean of errors."""
    x: Finite | None = None
    """Where the column lies in a figure."""


class TableRow(Record):
    """One row: a method with its settings, or figures that nobody can measure from public descriptions."""

    name: str = Field(min_length=1)
    method: str | None = None
    """Of `aqa methods`; None where the row is only published."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The method's or its training's settings, as of `--set`."""
    streams: tuple[str, ...] = ()
    """Empty: the table's."""
    published: dict[str, Finite] = Field(default_factory=dict)
    """By the names of columns."""
    source: str | None = None
    """Where the published figures stand, if not where the table does."""
    end_to_end: bool = False
    """The published network trained its backbone too, ours reads frozen features: figures of two leagues."""
    why: str | None = None
    """Why it is only published, or what is ours in it."""
    columns: tuple[str, ...] = ()
    """Those that are measured; empty: all."""
    x: Finite | None = None
    """Where the row lies in a figure, as a point of `series`."""
    series: str = ""

    @model_validator(mode="after")
    def _says_how_or_why(self) -> TableRow:
        if self.method is None and not self.why:
            raise ValueError(f"row {self.name!r} has no method: say why")
        if self.method is None and not self.published:
            raise ValueError(f"row {self.name!r} has neither a method nor published figures")
        if self.method is not None and self.method not in METHODS:
            raise ValueError(f"row {self.name!r}: no method {self.method!r}; {did_you_mean(self.method, METHODS)}")
        return self


class PaperTable(Record):
    """A table or figure of a paper, with what it takes to measure it."""

    title: str
    source: str
    """Paper and number, which the published figures are from."""
    dataset: str = ""
    """A name of `aqa datasets list`, or "" for one that needs no adapter."""
    kind: Literal["table", "figure", "cases", "embedding"] = "table"
    """`figure`: curves of rows over columns with an `x`, or of `series` of rows with one, also as a picture. `cases`:
    test videos that the first row errs on and the last does not, and the other way round. `embedding`: where the rows'
    networks place unlabelled videos, by t-SNE."""
    measure: Measure = "spearman"
    tolerance: Annotated[Finite, Field(ge=0)] | None = None
    """How far from a published figure a measured one may be and count as reproduced."""
    differences: tuple[str, ...] = ()
    """Known reasons for a difference."""
    against: str | None = None
    """The row that the others are compared with."""
    protocol: Protocol | None = None
    """That of `aqa-extract` by which the paper's features came about."""
    prepared: str = ""
    """How features come about otherwise than by `aqa-extract`: a command."""
    streams: tuple[str, ...] = ()
    """Those that a method reads which asks for none; empty: all of the store."""
    reduced: str = ""
    """What the run has less of than the protocol asks for, and why."""
    run: dict[str, Any] = Field(default_factory=dict)
    """Settings of `aqa-train` for every cell."""
    columns: Annotated[tuple[TableColumn, ...], Field(min_length=1)]
    rows: Annotated[tuple[TableRow, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> PaperTable:
        names = _once("column", [c.name for c in self.columns])
        rows = _once("row", [r.name for r in self.rows])
        if self.dataset and self.dataset not in DATASETS:
            raise ValueError(f"no dataset {self.dataset!r}; {did_you_mean(self.dataset, DATASETS)}")
        if self.against is not None and self.against not in rows:
            raise ValueError(f"against: no row {self.against!r}; {did_you_mean(self.against, rows)}")
        plain = [c.name for c in self.columns if not c.average_of]
        for column in self.columns:
            if wrong := [n for n in column.average_of if n not in plain]:
                raise ValueError(f"column {column.name!r}: no column {wrong[0]!r} to average")
            if len({self.measure_of(self.column(n)) for n in column.average_of}) > 1:
                raise ValueError(f"column {column.name!r} averages different measures")
            if column.average_of and (column.run or column.measure):
                raise ValueError(f"column {column.name!r} is an average: it has neither a run nor a measure of its own")
        for row in self.rows:
            for what, given in (("published", row.published), ("columns", row.columns)):
                if wrong := [n for n in given if n not in names]:
                    near = did_you_mean(wrong[0], names)
                    raise ValueError(f"row {row.name!r}, {what}: no column {wrong[0]!r}; {near}")
            if wrong := [n for n in row.columns if n not in plain]:
                raise ValueError(f"row {row.name!r}, columns: {wrong[0]!r} is an average: name what it averages")
        for where, given in (("run", self.run), *((f"column {c.name!r}, run", c.run) for c in self.columns)):
            known = (RunConfig.model_fields.keys() | Training.model_fields.keys()) - set(NOT_IN_RUN)
            if wrong := [n for n in given if n not in known]:
                raise ValueError(f"{where}: no setting {wrong[0]!r}; {did_you_mean(wrong[0], known)}")
            recipes = {name for row in METHODS.values() for name in row.recipes if name}
            if (recipe := given.get("recipe")) and recipe not in recipes:
                raise ValueError(f"{where}: no method has a recipe {recipe!r}; {did_you_mean(str(recipe), recipes)}")
        self._can_be_drawn()
        return self

    def _can_be_drawn(self) -> None:
        places = [*(c.x for c in self.columns), *(r.x for r in self.rows)]
        if self.kind == "figure" and all(x is None for x in places):
            raise ValueError("kind figure: give the columns or the rows an x")
        if self.kind != "embedding":
            return
        if len(self.columns) > 1:
            raise ValueError("kind embedding: one column, the run whose networks place the videos")
        for row in self.rows:
            if row.method and not hasattr(METHODS[row.method].load(), "summaries"):
                raise ValueError(
                    f"row {row.name!r}: {row.method} has no features of videos to place, as AA and S4AQA have"
                )

    def column(self, name: str) -> TableColumn:
        return next(c for c in self.columns if c.name == name)

    def measure_of(self, column: TableColumn) -> Measure:
        """That of what it averages, where it does."""
        if column.average_of:
            return self.measure_of(self.column(column.average_of[0]))
        return column.measure or self.measure

    def chosen(self, only: Sequence[str]) -> list[TableRow]:
        """The rows of these names; of none, all."""
        names = [r.name for r in self.rows]
        if wrong := [n for n in only if n not in names]:
            fix = did_you_mean(wrong[0], names) or "name its rows as they stand in the file"
            raise UsageError(f"the table has no row {wrong[0]!r}", fix=fix)
        return [r for r in self.rows if not only or r.name in only]

    def streams_of(self, row: TableRow) -> tuple[str, ...]:
        return row.streams or self.streams

    def streams_to_make(self, row: TableRow) -> tuple[str, ...]:
        """Those to extract for a row: its method's own, else the table's, else `rgb`. Without any, all are read."""
        return METHODS[str(row.method)].streams or self.streams_of(row) or ("rgb",)


def _once(what: str, names: list[str]) -> list[str]:
    if twice := [n for n in names if names.count(n) > 1]:
        raise ValueError(f"{what} {twice[0]!r} is named twice")
    return names


def read_table(path: Path) -> PaperTable:
    """The table of a file. Raises UsageError that names the file, the key and what is wrong with it."""
    found = read_toml(path)
    try:
        table = PaperTable.model_validate(found)
    except ValidationError as e:
        raise UsageError(f"{path}: {explain(e)}", fix="docs/tables.md says what stands in such a file") from None
    for row in table.rows:
        for column in table.columns:
            if row.method is not None and not column.average_of:
                try:
                    of_labels = {"score_column", "id_column"} & {**table.run, **column.run}.keys()
                    labels = {"labels": "labels.csv"} if of_labels else {}
                    settings(table, row, column, "feats.zarr", labels)
                except UsageError as e:
                    where = f"{path}: row {row.name!r}, column {column.name!r}"
                    raise UsageError(f"{where}: {e.cause}", fix=e.fix) from None
    return table


def settings(
    table: PaperTable, row: TableRow, column: TableColumn, features: str, given: Mapping[str, Any] | None = None
) -> RunConfig:
    """The run of one cell; `given` are settings of the command line, which win over the table's but not over a row's.

    Those of the run that a method has no use for, as epochs of ridge, are left to it.
    """
    method, asked = str(row.method), {**table.run, **column.run, **(given or {})}
    asked = {name: v for name, v in asked.items() if name not in Training.model_fields or reads(method, name)}
    sets = [f"{name}={_text(value)}" for name, value in row.settings.items()]
    if streams := table.streams_of(row):
        asked["streams"] = streams
    if (recipe := asked.get("recipe")) and recipe not in METHODS[method].recipes:
        del asked["recipe"]  # its authors did not train it on that
    asked |= {"features": features, "methods": (method,), "leave_out": True}
    config = resolve(None, asked, sets, environment={})
    if len(config.fractions) > 1:
        raise UsageError("labelled: a cell is one fraction", fix="give every fraction a column of its own")
    return config


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
