"""Tables of one's own: what a store lacks, rows that fail, averages, clusters, trainings together."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tests.clusters import Cluster

from aqa_shared.errors import AqaError, UsageError
from aqa_shared.records import ExtractSettings, FlowSettings, Sampling, Video
from aqa_shared.store import ArraySpec, StoreWriter

from .table_cases import aqa, measured, miniature, of_mine


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
    assert aqa("table", file, "--features", store, "--out", out, "--epochs", 1, "--jobs", 1, "--plan") == 3
    planned = capsys.readouterr().out
    code, record = measured(file, store, out, "--epochs", 1)
    assert code == 3
    for said in (planned, capsys.readouterr().out):
        assert "mirror" in said
        assert "as published" not in said
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
        '[[rows]]\nname = "ridge"\nmethod = "ridge"\n[[rows]]\nname = "SVR"\nmethod = "svr"\n'
        '[[rows]]\nname = "half of it"\nmethod = "svr"\ncolumns = ["half"]\n',
    )
    code, record = measured(file, store, out)
    assert not code
    said = capsys.readouterr().out
    (pair,) = record["comparisons"]
    assert (pair["a"], pair["b"], pair["column"], pair["measure"]) == ("SVR", "ridge", "both", "mae")
    theirs, mine = (record["rows"][i]["measured"]["both"]["mean"] for i in (0, 1))
    assert pair["difference"] == pytest.approx(mine - theirs)
    low, high = record["rows"][1]["measured"]["both"]["interval"]
    assert low < mine < high
    assert pair["interval"][0] < pair["difference"] < pair["interval"][1]
    assert "MAE compared with `ridge`" in said
    assert f"| SVR | both | {mine - theirs:+.3f} |" in said


@pytest.mark.parametrize("first", ["rgb", "flow"])
def test_rows_whose_streams_not_all_videos_have_are_compared_on_those_that_both_have(
    tmp_path: Path, first: str
) -> None:
    store, second = tmp_path / "some.zarr", {"rgb": "flow", "flow": "rgb"}[first]
    rng = np.random.default_rng(0)
    x = rng.random((40, 4, 8), dtype=np.float32)
    for stream, fewer in (("rgb", []), ("flow", [4, 5])):
        settings = ExtractSettings(
            streams=(stream,),
            sampling=Sampling(segments=4),
            flow=FlowSettings(mode="off" if stream == "rgb" else "parity"),
        )
        spec = ArraySpec(stream, ("channel",), (8,), "float32", role="feature", attrs={"stream": stream})
        videos = {
            f"v{i}": Video(id=f"v{i}", path=f"/v{i}.mp4", score=float(x[i].sum()), split="train" if i % 4 else "test")
            for i in range(40)
            if i not in fewer
        }
        with StoreWriter.open(store, specs=[spec], settings=settings, provenance={"weights": {}}) as writer:
            for i, video in enumerate(x):
                if f"v{i}" in videos:
                    writer.commit(f"v{i}", {stream: np.roll(video, len(fewer), axis=1)}, {"fps": 25.0})
            writer.finalise(videos)
    rows = "".join(f'[[rows]]\nname = "{s}"\nmethod = "ridge"\nstreams = ["{s}"]\n' for s in (first, second))
    file = of_mine(
        tmp_path, f'kind = "cases"\nagainst = "{first}"\n[run]\nseeds = 1\n[[columns]]\nname = "all"\n{rows}'
    )
    code, record = measured(file, store, tmp_path / "runs")
    assert not code
    assert [bool(r["measured"]) for r in record["rows"]] == [True, True]
    assert record["differences"] == ["flow (all) is tested on 9 of 10 videos: the rest lack a stream that it reads."]
    (pair,) = record["comparisons"]
    assert (pair["a"], pair["b"]) == (second, first)
    assert pair["interval"] is not None
    assert {case["id"] for case in record["cases"]} <= {f"v{i}" for i in range(0, 40, 4)} - {"v4"}


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


@pytest.mark.parametrize(("how", "rows"), [("", "USDL, MLP"), ('standardise = "z-score"', "all rows"),
                                           ('standardise = "none"', "")])  # fmt: skip
def test_which_rows_read_scaled_features_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, rows: str
) -> None:
    methods = {"Ridge": "ridge", "USDL": "usdl", "MLP": "i3d+mlp"}
    file = of_mine(
        tmp_path,
        f'[run]\nseeds = 1\nlabelled = 0.5\n{how}\n[[columns]]\nname = "all"\n'
        + "".join(f'[[rows]]\nname = "{name}"\nmethod = "{method}"\n' for name, method in methods.items()),
    )
    store = miniature(tmp_path, "mtl-aqa")
    aqa("table", file, "--features", store, "--out", tmp_path / "runs", "--epochs", 1, "--jobs", 1)
    said = [line for line in capsys.readouterr().out.splitlines() if "z-scored" in line]
    assert said == [f"- Features are z-scored for {rows} (`standardise`; docs/methods/supervised.md)."] * bool(rows)
