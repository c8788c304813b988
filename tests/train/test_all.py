"""`--method all`: what does not fit the data is left out and said, what fails ends as a row that says so."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aqa_train.cli import app
from aqa_train.methods import METHODS

from .conftest import MakeStore
from .runs import FAST, aqa_train, read_csv, results

KEPT = (
    *("auto", "s4aqa", "aa", "keep-first-frame", "core", "sap-net", "ridge"),
    *("mean-score", "random", "difficulty-only", "duration-only", "category-mean"),
)


@pytest.fixture
def few_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them take a minute, and are tried elsewhere; these need all that a store may lack."""
    for name in [n for n in METHODS if n not in KEPT]:
        monkeypatch.delitem(METHODS, name)


@pytest.fixture
def store(make_store: MakeStore) -> Path:
    """One stream, no difficulty, and a single video of its category, which CoRe cannot compare."""
    labels = [{"category": "lonely" if i == 5 else "crowd"} for i in range(24)]
    return make_store(videos=24, labels=labels, metas=[{"duration": 4.0 + i} for i in range(24)])


SHORT = ("--epochs", "2", "--seeds", "1", "--test-fraction", "0.25", "--jobs", "1", "--device", "cpu")


def train(*arguments: object) -> int:
    """The exit code."""
    common = ["--epochs", 2, "--seeds", 2, "--test-fraction", 0.25, "--labelled", 0.5, *FAST]
    return app([str(a) for a in (*common, *arguments)], standalone_mode=False) or 0


def record(out: Path) -> tuple[list[str], dict[str, Any]]:
    """Methods of the table in its order, and those left out."""
    summary = json.loads((out / "metrics.json").read_text())
    return [r["method"] for r in summary["rows"]], {r["method"]: r for r in summary["left_out"]}


def assert_bar_is_full(said: str) -> None:
    """Whatever was left out or failed counts as over."""
    done, total = re.findall(r"epochs: (\d+)/(\d+)", said)[-1]
    assert done == total


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_refuses_is_left_out_and_the_others_are_trained(
    few_methods: None, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: int
) -> None:
    out = tmp_path / "run"
    assert train("--features", store, "--method", "all", "--out", out, "--jobs", jobs) == 0
    rows, left = record(out)
    assert rows == ["mean-score", "random", "duration-only", "category-mean", "ridge", "auto", "s4aqa", "aa"]
    assert left.keys() == {"keep-first-frame", "sap-net", "difficulty-only", "core"}
    assert not any(r["failed"] for r in left.values())
    assert "still-rgb" in left["keep-first-frame"]["why"]
    assert "difficulty" in left["difficulty-only"]["why"]
    assert "cannot be compared" in left["core"]["why"]
    said = capsys.readouterr()
    assert "core is left out: 005.mp4 cannot be compared" in said.out
    assert "sap-net is left out" in said.err
    assert_bar_is_full(said.err)
    assert {r["method"] for r in read_csv(out / "results.csv")} == set(rows)
    # The same command and --resume find it done; what was refused is refused again.
    done = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    assert train("--features", store, "--method", "all", "--out", out, "--jobs", 1) == 0
    assert app(["--resume", str(out), "--jobs", "1"], standalone_mode=False) in (0, None)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("result.json")} == done
    assert record(out) == (rows, left)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_fails_while_it_learns_says_so_and_the_others_go_on(
    few_methods: None, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], jobs: int
) -> None:
    out = tmp_path / "run"
    common = ["--features", store, "--method", "all", "--out", out, "--jobs", jobs, "--set", "aa.lr=1e30"]
    assert train(*common) == 3
    rows, left = record(out)
    assert rows == ["mean-score", "random", "duration-only", "category-mean", "ridge", "auto", "s4aqa"]
    assert left["aa"]["failed"]
    said = capsys.readouterr()
    assert f"aa failed: {left['aa']['why']}" in said.out
    assert "failed, and not in the table: aa" in said.err
    assert_bar_is_full(said.err)


def test_what_was_named_and_refuses_ends_the_run(store: Path, tmp_path: Path) -> None:
    from aqa_shared.errors import UsageError

    for methods in ("core", "aa,core"):
        out = tmp_path / methods
        with pytest.raises(UsageError, match="cannot be compared"):
            app(["--features", str(store), "--method", methods, "--out", str(out), *SHORT], standalone_mode=False)


def test_a_dry_run_names_what_would_be_left_out(
    few_methods: None, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--features", store, "--method", "all", "--out", tmp_path / "run", "--dry-run") == 0
    said = capsys.readouterr().out
    assert "core is left out: 005.mp4 cannot be compared" in said
    assert "16 trainings" in said
    assert not (tmp_path / "run").exists()


def test_a_fault_of_our_own_in_one_method_does_not_stop_the_others(
    few_methods: None, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aqa_train.methods.auto import Auto

    def singular(self: Any, pool: Any) -> None:
        raise RuntimeError("the matrix is singular")

    monkeypatch.setattr(Auto, "prepare", singular)
    out = tmp_path / "run"
    assert train("--features", store, "--method", "all", "--out", out, "--jobs", 1) == 3
    rows, left = record(out)
    assert "auto" not in rows
    assert left["auto"] == {"method": "auto", "failed": True, "why": "RuntimeError: the matrix is singular"}


@pytest.mark.usefixtures("few_methods")
def test_a_grid_goes_on_as_it_began_where_another_version_has_other_defaults(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert train("--features", store, "--method", "all", "--labelled", "0.4,0.8", "--out", out) == 0
    whole = [results(out / cell) for cell in ("labelled=0.4", "labelled=0.8")]
    shutil.rmtree(out / "labelled=0.8" / "models" / "aa" / "fold0-seed1")
    # Another version's table of methods.
    monkeypatch.setitem(METHODS, "aa", replace(METHODS["aa"], recipes={"": {"standardise": "z-score"}}))
    aqa_train("--resume", out, "--device", "cpu")
    assert [results(out / cell) for cell in ("labelled=0.4", "labelled=0.8")] == whole


@pytest.mark.slow
def test_every_method_that_fits_is_trained(make_store: MakeStore, tmp_path: Path) -> None:
    labels = [{"category": "ab"[i % 2], "difficulty": 2 + i % 3} for i in range(32)]
    metas = [{"duration": 4.0 + i} for i in range(32)]
    store = make_store(videos=32, labels=labels, metas=metas, streams=("rgb", "actor-rgb"))
    small = ("--set", "hgcn.widths=32,32,32", "--set", "tsa.heads=2")  # of what FAST says does not fit these two
    assert train("--features", store, "--method", "all", "--out", tmp_path / "run", "--jobs", 1, *small) == 0
    rows, left = record(tmp_path / "run")
    assert set(rows) | left.keys() == set(METHODS)
    assert left.keys() == {"keep-first-frame", "s4l", "musdl", "musdl-jigsaws", "tsa-net", "c3d-avg-mtl"}
