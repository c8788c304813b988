"""The papers' tables: every file of pipelines/ parses, plans and runs on a miniature store of generated features."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from aqa_pipelines.tables.record import PaperTable, read_table
from aqa_shared.errors import UsageError
from aqa_train.comparisons import holm

from .table_cases import ROOT, aqa, miniature

FILES = sorted((ROOT / "pipelines").glob("*/*.toml"))


def test_there_is_a_file_for_every_table_and_figure() -> None:
    roman = {f"table{i}" for i in range(1, 10)}
    assert {f.stem for f in FILES if f.parent.name == "s4aqa"} == roman | {"fig4", "fig5", "fig6", "fig7"}
    expected = {*(f"table{i}" for i in range(1, 8)), *(f"fig{i}" for i in range(6, 11))}
    assert {f.stem for f in FILES if f.parent.name == "sap-net"} == expected
    assert {f.stem for f in FILES if f.parent.name == "core"} == {"table1", "table2", "table3", "table4", "fig5"}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_every_file_parses_and_says_what_it_wants(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = read_table(file)
    assert table.source
    aqa("table", file, "--plan")
    said = capsys.readouterr().out
    assert table.title in said
    assert "aqa-extract" in said or table.prepared in said


def test_a_table_runs_resumes_and_stands_beside_the_published_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = ROOT / "pipelines" / "s4aqa" / "table4.toml"
    common = ["table", file, "--features", store, "--out", out, "--seeds", 2, "--epochs", 1, "--jobs", 1]
    aqa(*common, "--plan")
    said = capsys.readouterr().out
    assert "16 trainings, 16 left" in said
    assert "not as published: features of --protocol even, the paper's are of mtl-aqa" in said
    assert not out.exists()
    aqa(*common)
    printed = capsys.readouterr().out
    assert printed == (out / "s4aqa" / "table4.md").read_text()
    assert "| AA | 0.618 |" in printed
    record = json.loads((out / "s4aqa" / "table4.json").read_text())
    assert any("the paper's are of mtl-aqa" in said for said in record["differences"])
    assert record["reduced"].endswith("run with epochs = 1; run with seeds = 2")
    full = next(r for r in record["rows"] if r["method"] == "s4aqa")
    assert full["published"] == {"10 %": 0.676, "40 %": 0.746}
    assert len(full["measured"]["10 %"]["by_seed"]) == 2
    # 8 and 30 of 75 training videos are labelled.
    assert [record["protocol"][c]["labelled"] for c in ("10 %", "40 %")] == [8, 30]
    assert {r["name"] for r in record["beside"]} >= {"mean-score", "ridge", "difficulty-only"}
    assert {p["measure"] for p in record["comparisons"]} == {"spearman"}
    against = {(p["a"], p["column"]) for p in record["comparisons"]}
    assert against == {(r, c) for r in ("AA+RDA", "AA+MSFR", "AA+MSFR+RDA") for c in ("10 %", "40 %")}
    # Over both columns.
    expected = holm([p["bootstrap"] for p in record["comparisons"]])
    assert [p["bootstrap_holm"] for p in record["comparisons"]] == expected
    done = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert len(done) == 16
    # Table IX has S4AQA in common, which is not trained again.
    aqa("table", file.with_name("table9.toml"), *common[2:-1], 99, "--plan")
    assert re.search("12 trainings, 8 left: .*, 8 at a time", capsys.readouterr().out)
    aqa(*common)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("result.json")} == done
    assert capsys.readouterr().out == printed
    # Where it was trained, not where it is written.
    for one in out.rglob("environment.json"):
        one.write_text(json.dumps({**json.loads(one.read_text()), "device": "cuda:3", "torch": "9.9"}))
    aqa(*common)
    assert "by cuda:3 (torch 9.9, aqa " in capsys.readouterr().out
    with (out / "s4aqa" / "table4.csv").open(newline="") as found:
        rows = list(csv.DictReader(found))
    mine = next(r for r in rows if (r["row"], r["column"]) == ("AA+MSFR", "40 %"))
    assert mine["published"] == "0.732"
    assert mine["mean"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rows": [{"name": "a", "method": "s5aqa"}]}, "did you mean s4aqa"),
        ({"rows": [{"name": "a"}]}, "has no method: say why"),
        ({"rows": [{"name": "a", "method": "aa", "published": {"11 %": 0.1}}]}, "no column '11 %'"),
        ({"rows": [{"name": "a", "method": "aa", "settings": {"widhts": "8"}}]}, "row 'a', column '10 %'.*widhts"),
        ({"run": {"seds": 1}}, "run: no setting 'seds'"),
        ({"run": {"seeds": 0}}, "seeds"),
        ({"against": "b"}, "against: no row 'b'"),
        ({"dataset": "mtl"}, "no dataset 'mtl'"),
        ({"columns": [{"name": "x"}, {"name": "x"}]}, "named twice"),
        ({"columns": [{"name": "x", "average_of": ["y"]}]}, "no column 'y' to average"),
        ({"tolerence": 1}, "tolerence"),
    ],
)
def test_a_wrong_file_is_refused_with_its_key(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    from aqa_shared.settings import as_toml
    from aqa_shared.toml import as_key, as_value

    record: dict[str, Any] = {
        "title": "T", "source": "S", "dataset": "", "run": {"seeds": 1},
        "columns": [{"name": "10 %", "run": {"labelled": 0.1}}],
        "rows": [{"name": "a", "method": "aa"}], **change,
    }  # fmt: skip

    def table(value: dict[str, Any]) -> str:
        inner = (f"{as_key(k)} = {table(v) if isinstance(v, dict) else as_value(v)}" for k, v in value.items())
        return "{ " + ", ".join(inner) + " }"

    lists = {k: "[" + ", ".join(map(table, record.pop(k))) + "]" for k in ("columns", "rows")}
    head = "".join(f"{k} = {v}\n" for k, v in lists.items())
    file = tmp_path / "t.toml"
    file.write_text(head + as_toml(record))
    with pytest.raises(UsageError, match=said) as e:
        read_table(file)
    assert str(file) in str(e.value)


def test_the_curves_of_a_figure() -> None:
    from aqa_train.plots import series_of

    point = {"mean": 0.5, "interval": None}
    columns = [{"name": "10 %", "measure": "spearman", "x": 10.0}, {"name": "20 %", "measure": "spearman", "x": 5.0}]
    row = {"name": "AA", "x": None, "series": "", "measured": {"10 %": point}, "published": {"20 %": 0.6}}
    # Rows over the columns' x, by x.
    assert series_of({"rows": [row], "columns": columns}) == {
        "spearman": {"AA": [(5.0, None, 0.6), (10.0, point, None)]}
    }
    by_row = [{**row, "x": x, "series": "K", "published": {}} for x in (3.0, 2.0)]
    assert series_of({"rows": by_row, "columns": columns}) == {"10 %": {"K": [(2.0, point, None), (3.0, point, None)]}}


def test_results_link_the_pictures_of_figures(tmp_path: Path) -> None:
    records, docs = tmp_path / "records", tmp_path / "docs"
    shutil.copytree(ROOT / "benchmarks" / "results" / "tables" / "real", records / "real")
    docs.mkdir()
    for name in ("ui_prmd.svg", "ui_prmd.png", "of-nothing.svg"):
        (records / "real" / name).touch()
    aqa("results", records, "--out", docs / "results.md")
    links = re.findall(r"^!\[(.+)\]\((.+)\)$", (docs / "results.md").read_text(), re.MULTILINE)
    assert links == [("UI-PRMD: exercises done right or wrong, by people never seen", "../records/real/ui_prmd.svg")]


def test_results_begin_with_the_best_row_of_each_column_or_average(tmp_path: Path) -> None:
    def row(name: str, **means: float | None) -> dict[str, Any]:
        figures = {c: {"mean": m, "std": None, "interval": None, "by_seed": [m]} for c, m in means.items()}
        common: dict[str, Any] = {"why": None, "lacks": {}, "uses_difficulty": False, "best_on_validation": {}}
        return {**common, "name": name, "method": name, "end_to_end": False, "published": {}, "measured": figures}

    def column(name: str, measure: str, *parts: str) -> dict[str, Any]:
        return {"name": name, "measure": measure, "x": None, "average_of": parts}

    common = {
        "source": "S", "reduced": "", "seconds": 0, "tolerance": None, "differences": [], "comparisons": [],
        "protocol": {"c": {"seeds": 5, "labelled": 9, "unlabelled": 9, "validation": 0, "test": 9, "folds": 1,
                           "streams": ["rgb"]}},
        "beside": [row("mean-score", c=0.99, avg=0.99)],
    }  # fmt: skip
    rows = [row("a", c=0.5, d=4.0), row("b", c=0.7, d=3.0, avg=None), row("c"), row("d", c=0.6, d=3.004, avg=0.2)]
    tables = {
        "t/one": ("Dives [two's | three], 10 %", [column("c", "spearman"), column("d", "mae")]),
        "t/two": ("Averages", [column("c", "spearman"), column("avg", "spearman", "c")]),
        "t/none": ("Nobody has begun", [column("e", "spearman")]),
    }
    for name, (title, columns) in tables.items():
        record = {**common, "pipeline": name, "title": title, "columns": columns, "rows": rows}
        (tmp_path / f"{name[2:]}.json").write_text(json.dumps(record))
    aqa("results", tmp_path, "--out", tmp_path / "results.md")
    lines = (tmp_path / "results.md").read_text().splitlines()
    link = r"[Dives \[two's \| three\], 10 %](#dives-twos--three-10-)"
    assert f"| {link} | 3 | 5 | c: b 0.700; d: b and d 3.00 |" in lines
    assert "| [Averages](#averages) | 3 | 5 | avg: d 0.200 |" in lines
    assert "| [Nobody has begun](#nobody-has-begun) | 3 | 5 |  |" in lines


def test_wide_tables_stand_on_their_side_and_leagues_are_apart() -> None:
    from aqa_pipelines.tables.text import as_markdown

    def record(columns: int) -> dict[str, Any]:
        names = [f"c{i}" for i in range(columns)]
        figure = {"mean": 0.52, "std": 0.01, "interval": [0.4, 0.6], "by_seed": [0.52], "defined": 2, "of": 2}
        common = {
            "method": "aa", "source": None, "why": None, "x": None, "series": "", "lacks": {},
            "uses_difficulty": False, "best_on_validation": {}, "measured": dict.fromkeys(names, figure),
        }  # fmt: skip
        return {
            "title": "T", "source": "S", "reduced": "", "seconds": 0, "tolerance": 0.03, "differences": [],
            "beside": [], "comparisons": [], "against": None, "protocol": {},
            "columns": [{"name": n, "measure": "spearman", "x": None, "average_of": []} for n in names],
            "rows": [
                {**common, "name": "frozen", "end_to_end": False, "published": {"c0": 0.5}},
                {**common, "name": "whole", "end_to_end": True, "published": {"c0": 0.5}},
            ],
        }  # fmt: skip

    lines = as_markdown(record(1)).splitlines()
    assert "| row | c0, published | c0, published, trained end to end | c0, measured |" in lines
    assert "| frozen | 0.500 |  | 0.520 ± 0.010 [0.400, 0.600] ✓ |" in lines
    assert "| whole |  | 0.500 | 0.520 ± 0.010 [0.400, 0.600] |" in lines
    assert "| row | frozen | whole |" in as_markdown(record(20)).splitlines()


def test_columns_of_epochs_are_not_made_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, file = miniature(tmp_path, "mtl-aqa"), ROOT / "pipelines" / "dives" / "epochs.toml"
    with pytest.raises(UsageError, match=r"--epochs would train the columns 4 epochs, 10 epochs, .* alike"):
        aqa("table", file, "--features", store, "--plan", "--epochs", 3)
    aqa("table", file, "--features", store, "--plan", "--out", tmp_path / "runs")
    said = capsys.readouterr().out
    assert "AA (4 epochs): aa, 5 trainings of 4 epochs" in said
    assert "AA (400 epochs): aa, 5 trainings of 400 epochs" in said


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}-{f.stem}")
def test_every_file_runs_on_a_miniature_store(tmp_path_factory: pytest.TempPathFactory, file: Path) -> None:
    table = read_table(file)
    folder = tmp_path_factory.getbasetemp() / "miniatures"
    folder.mkdir(exist_ok=True)
    dataset = table.dataset or "none"
    store = folder / f"{dataset}.zarr"
    if not store.exists():
        miniature(folder, dataset)
    out = folder / f"runs-{dataset}"
    labels = ["--labels", folder / f"{dataset}.csv"] if any("score_column" in c.run for c in table.columns) else []
    short = [] if any("epochs" in c.run for c in table.columns) else ["--epochs", 1]
    aqa("table", file, "--features", store, "--out", out, "--seeds", 1, *short, *labels)
    record = json.loads((out / file.parent.name / f"{file.stem}.json").read_text())
    drawn = table.kind in ("figure", "embedding")
    assert all((out / file.parent.name / f"{file.stem}.{kind}").exists() == drawn for kind in ("png", "svg"))
    if table.kind == "embedding":
        assert set(record["embedding"]) == {r.name for r in table.rows}
    if table.kind == "cases":
        gains = [case["gain"] for case in record["cases"]]
        assert gains == sorted(gains, reverse=True)
    for row in record["rows"]:
        # An average is there where all it averages is defined, which four videos of one score may not be.
        averages = {c.name for c in table.columns if c.average_of}
        wanted = {c.name for c in table.columns} - averages if row["method"] else set()
        if own := next(r.columns for r in table.rows if r.name == row["name"]):
            wanted &= set(own)
        if file.parent.name == "real":
            wanted -= set(row["lacks"])  # a tenth of twelve videos is one
        assert set(row["measured"]) - averages == wanted, row["name"]


def test_the_shape_of_a_table_is_documented() -> None:
    """docs/tables.md names every key."""
    text = (ROOT / "docs" / "tables.md").read_text()
    assert not [key for key in PaperTable.model_fields if f"`{key}`" not in text]
