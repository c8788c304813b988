"""The papers' tables: every file of pipelines/ parses, plans and runs on a miniature store of generated features."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.clusters import Cluster

from aqa_pipelines.cli import app
from aqa_pipelines.tables.record import PaperTable, read_table
from aqa_shared.errors import AqaError, UsageError
from aqa_shared.records import ExtractSettings, FlowSettings, Sampling, Video
from aqa_shared.store import ArraySpec, StoreWriter
from aqa_train.stream_names import array_of

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "pipelines").glob("*/*.toml"))
STREAMS = (
    *("rgb", "flow", "actor-rgb", "still-rgb", "rot90-rgb", "rot180-rgb", "rot270-rgb", "rgb@swin3d_b"),
    *("skeleton", "dct", "signals", "kinematics"),
)
CATEGORIES = {
    "rhythmic-gymnastics": ("Ball", "Clubs", "Hoop", "Ribbon"),
    "jigsaws": ("Suturing", "Needle_Passing", "Knot_Tying"),
    "finefs": ("SP", "FS"),
    "aqa-7": ("diving", "gym_vault", "ski_big_air", "snowboard_big_air", "sync_diving_3m", "sync_diving_10m"),
    "ui-prmd": tuple(f"m{i:02d}" for i in range(1, 11)),
}


def aqa(*arguments: object) -> object:
    """Its exit code, None for 0."""
    return app([str(a) for a in arguments], standalone_mode=False)


def miniature(folder: Path, dataset: str, each: int = 16) -> Path:
    """A store of `each` videos a category, of which a quarter is tested, with all streams and columns of all tables."""
    path = folder / f"{dataset}.zarr"
    categories = CATEGORIES.get(dataset, ("",))
    if len(categories) == 1:
        each = 400 if dataset == "none" else 100  # of the rendered dives, 1 % are labelled in one table
    rng = np.random.default_rng(0)
    settings = ExtractSettings(
        streams=("rgb", "flow", "actor-rgb"), sampling=Sampling(segments=8), flow=FlowSettings(mode="parity")
    )
    names = [array_of(s) for s in STREAMS]
    specs = [
        ArraySpec(n, ("channel",), (32,), "float32", role="feature", attrs={"stream": s})
        for n, s in zip(names, STREAMS, strict=True)
    ]
    records: dict[str, Video] = {}
    with StoreWriter.open(path, specs=specs, settings=settings, provenance={"weights": {}}) as writer:
        for number in range(each * len(categories)):
            i, category = number % each, categories[number // each]
            quality = float(rng.random())
            video = f"{category or 'dive'}_{i:02d}"
            x = rng.random((8, 32), dtype=np.float32)
            x[:, 0] += np.float32(quality)
            writer.commit(video, {n: np.roll(x, k, axis=1) for k, n in enumerate(names)}, {"fps": 25.0})
            binary = dataset == "ui-prmd"
            records[video] = Video(
                id=video,
                path=f"/{video}.mp4",
                score=float(quality > 0.5) if binary else round(20 + 60 * quality, 1),
                difficulty=2.0 + i % 3,
                split="test" if i % 4 == 0 else "train",
                category=category or None,
                extra={
                    **{"fold": i % 4, "group": f"p{i % 5}", "person": f"p{i % 16}"},
                    **{"position": i % 3, "armstand": i % 2, "rotation_type": i % 4, "ss_no": i % 5, "tw_no": i % 2},
                    **{"caption": '["a","dive"]', "judge_scores": json.dumps([7, 8, 7.5, 8, 7, 8, 7])},
                    **{"ratings": json.dumps([1 + (i + k) % 5 for k in range(6)]), "tes": 30 + i, "pcs": 25 + i},
                },
            )
        writer.finalise(records)
    with (folder / f"{dataset}.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "score", "category", "tes", "pcs"])
        table.writerows([v.id, v.score, v.category, v.extra["tes"], v.extra["pcs"]] for v in records.values())
    return path


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
    assert "the paper's are of mtl-aqa" in record["reduced"]
    full = next(r for r in record["rows"] if r["method"] == "s4aqa")
    assert full["published"] == {"10 %": 0.676, "40 %": 0.746}
    assert len(full["measured"]["10 %"]["by_seed"]) == 2
    # 8 and 30 of 75 training videos are labelled.
    assert [record["protocol"][c]["labelled"] for c in ("10 %", "40 %")] == [8, 30]
    assert {r["name"] for r in record["beside"]} >= {"mean-score", "ridge", "difficulty-only"}
    assert {p["measure"] for p in record["comparisons"]} == {"spearman"}
    against = {(p["a"], p["column"]) for p in record["comparisons"]}
    assert against == {(r, c) for r in ("AA+RDA", "AA+MSFR", "AA+MSFR+RDA") for c in ("10 %", "40 %")}
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


def of_mine(folder: Path, rest: str) -> Path:
    """A table file of one's own."""
    file = folder / "pipelines" / "mine.toml"
    file.parent.mkdir(parents=True)
    file.write_text(f'title = "Mine"\nsource = "nobody"\ndataset = ""\n{rest}')
    return file


def test_what_a_store_lacks_is_said_and_the_rest_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(
        tmp_path,
        'protocol = "even"\n[run]\nlabelled = 0.5\nseeds = 1\n'
        '[[columns]]\nname = "all"\n[[rows]]\nname = "AA"\nmethod = "aa"\nstreams = ["rgb"]\n'
        '[[rows]]\nname = "of slow motion"\nmethod = "aa"\nstreams = ["mirror-rgb"]\n'
        '[[rows]]\nname = "theirs"\nwhy = "nobody says how"\npublished = { "all" = 0.5 }\n',
    )
    for more in (["--plan"], []):
        assert aqa("table", file, "--features", store, "--out", out, "--epochs", 1, "--jobs", 1, *more) == 3
        said = capsys.readouterr()
        assert "mirror" in said.out
        assert "as published" not in said.out
    record = json.loads((out / "pipelines" / "mine.json").read_text())
    assert [bool(r["measured"]) for r in record["rows"]] == [True, False, False]
    assert list(record["rows"][1]["lacks"]) == ["all"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_row_that_fails_says_so_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: int
) -> None:
    """Ridge has no epochs, which are left to those that do."""
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(
        tmp_path,
        'streams = ["rgb"]\nagainst = "ridge"\n'
        '[run]\nlabelled = 0.5\nseeds = 2\n[[columns]]\nname = "all"\n'
        '[[rows]]\nname = "astray"\nmethod = "aa"\nsettings = { lr = 1e30 }\n'
        '[[rows]]\nname = "AA"\nmethod = "aa"\n[[rows]]\nname = "ridge"\nmethod = "ridge"\n',
    )
    common = ["table", file, "--features", store, "--out", out, "--epochs", 2, "--jobs", jobs]
    assert aqa(*common, "--plan") == 3
    assert "failed when it was tried: astray (all): " in capsys.readouterr().out
    assert aqa(*common) == 3
    said = capsys.readouterr()
    record = json.loads((out / "pipelines" / "mine.json").read_text())
    assert [bool(r["measured"]) for r in record["rows"]] == [False, True, True]
    why = record["rows"][0]["failed"]["all"]
    assert f"| astray | failed: {why} |" in said.out
    assert f"failed: astray (all): {why}" in said.err.replace("\n", " ")
    assert {p["a"] for p in record["comparisons"]} == {"AA"}
    # What is done is not done again, and what failed is tried again.
    done = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert len(done) == 4
    assert aqa(*common) == 3
    assert {p: p.stat().st_mtime_ns for p in out.rglob("result.json")} == done


def test_averages_are_compared_where_there_are_some_in_the_measure_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(
        tmp_path,
        'streams = ["rgb"]\nagainst = "ridge"\nmeasure = "mae"\n[run]\nseeds = 2\n'
        '[[columns]]\nname = "half"\nrun = { labelled = 0.5 }\n[[columns]]\nname = "all"\n'
        '[[columns]]\nname = "both"\naverage_of = ["half", "all"]\n'
        '[[rows]]\nname = "SVR"\nmethod = "svr"\n[[rows]]\nname = "ridge"\nmethod = "ridge"\n'
        '[[rows]]\nname = "half of it"\nmethod = "svr"\ncolumns = ["half"]\n',
    )
    assert not aqa("table", file, "--features", store, "--out", out, "--jobs", 1)
    said = capsys.readouterr().out
    record = json.loads((out / "pipelines" / "mine.json").read_text())
    (pair,) = record["comparisons"]
    assert (pair["a"], pair["b"], pair["column"], pair["measure"]) == ("SVR", "ridge", "both", "mae")
    mine, theirs = (record["rows"][i]["measured"]["both"]["mean"] for i in (0, 1))
    assert pair["difference"] == pytest.approx(mine - theirs)
    low, high = record["rows"][0]["measured"]["both"]["interval"]
    assert low < mine < high
    assert pair["interval"][0] < pair["difference"] < pair["interval"][1]
    assert "MAE compared with `ridge`" in said
    assert f"| SVR | both | {mine - theirs:+.3f} |" in said


SEVERAL = (
    'against = "ridge"\n[run]\nseeds = 2\n'
    '[[columns]]\nname = "half"\nrun = { labelled = 0.5 }\n[[columns]]\nname = "all"\n'
    '[[rows]]\nname = "AA"\nmethod = "aa"\nstreams = ["rgb"]\n'
    '[[rows]]\nname = "of flow"\nmethod = "aa"\nstreams = ["flow"]\ncolumns = ["all"]\n'
    '[[rows]]\nname = "astray"\nmethod = "aa"\nstreams = ["rgb"]\ncolumns = ["all"]\nsettings = { lr = 1e30 }\n'
    '[[rows]]\nname = "ridge"\nmethod = "ridge"\nstreams = ["rgb"]\n'
)
"""Runs that have nothing but the store in common, one of which fails."""


@pytest.mark.slow
def test_the_workers_of_a_cluster_give_what_one_process_gives(
    tmp_path: Path, two: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    store, file = miniature(tmp_path, "mtl-aqa"), of_mine(tmp_path, SEVERAL)
    common = ["table", file, "--features", store, "--epochs", 2]
    here, there = tmp_path / "here", tmp_path / "there"
    assert aqa(*common, "--out", here, "--jobs", 1) == 3
    printed = capsys.readouterr().out
    assert aqa(*common, "--out", there, "--scheduler", two.file) == 3
    said = capsys.readouterr()
    assert f"Dask scheduler {two.address}" in said.err
    assert "failed: astray (all): " in said.err
    assert re.sub(r"\d+ s of tra", "0 s of tra", said.out) == re.sub(r"\d+ s of tra", "0 s of tra", printed)
    done = {p.relative_to(there): p.stat().st_mtime_ns for p in there.rglob("result.json")}
    assert len(done) == 10
    for name in done:
        found, expected = (json.loads((out / name).read_text()) for out in (there, here))
        assert {**found, "seconds": 0} == {**expected, "seconds": 0}
        weights = name.with_name("last.safetensors")
        assert (there / weights).read_bytes() == (here / weights).read_bytes()
    # What is done is not done again: only what failed is tried, without which no cluster is needed.
    assert aqa(*common, "--out", there, "--rows", "AA;of flow", "--scheduler", "tcp://127.0.0.1:1") is None
    assert {p.relative_to(there): p.stat().st_mtime_ns for p in there.rglob("result.json")} == done


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--scheduler", "local:2", "--jobs", 2], "--jobs does nothing with --scheduler"),
        (["--scheduler", "local:2", "--plan"], "--plan does nothing with --scheduler: it estimates"),
        (["--scheduler", "host:8786"], "tcp://host:8786"),
        (["--scheduler-wait", 5], "--scheduler-wait does nothing without --scheduler"),
        (["--scheduler", "none.json"], "neither an address nor a file that a scheduler wrote"),
    ],
)
def test_a_cluster_that_cannot_be_used_is_refused(tmp_path: Path, options: list[object], said: str) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    with pytest.raises(AqaError, match=said) as caught:
        aqa("table", of_mine(tmp_path, SEVERAL), "--features", store, "--out", out, *options)
    assert caught.value.exit_code == (5 if "none.json" in options else 2)
    assert not out.exists()


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


def test_a_table_computes_seeds_together_and_plans_alone(tmp_path: Path) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(
        tmp_path,
        "[run]\nseeds = 2\nlabelled = 0.5\n"
        '[[columns]]\nname = "all"\n[[rows]]\nname = "AA"\nmethod = "aa"\nstreams = ["rgb"]\n',
    )
    common = ["table", file, "--features", store, "--out", out, "--epochs", 1, "--jobs", 1, "--together", 2]
    with pytest.raises(UsageError, match="--together does nothing with --plan"):
        aqa(*common, "--plan")
    aqa(*common)
    assert [json.loads(f.read_text())["together"] for f in sorted(out.rglob("result.json"))] == [2, 2]


def test_bfloat16_is_a_known_reason_for_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = miniature(tmp_path, "mtl-aqa")
    for precision in ("bf16", "fp32"):
        file = of_mine(
            tmp_path / precision,
            f'differences = ["Mine."]\n[run]\nseeds = 1\nprecision = "{precision}"\nlabelled = 0.5\n'
            '[[columns]]\nname = "all"\n[[rows]]\nname = "AA"\nmethod = "aa"\nstreams = ["rgb"]\n',
        )
        aqa("table", file, "--features", store, "--out", tmp_path / "runs", "--epochs", 1, "--jobs", 1)
        said = capsys.readouterr().out
        assert "- Mine." in said
        assert ("- Networks are computed in bfloat16" in said) == (precision == "bf16")


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
