"""What a published dataset says of a run: the ranges of its scores, its folds, its sports and tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aqa_shared.errors import UsageError

from .conftest import MakeStore
from .runs import FAST, aqa_train, read_csv

SPORTS = [
    {"category": "vault" if i % 2 else "diving", "fold": i // 2 % 3, "group": "AB"[i % 4 // 2]} for i in range(24)
]
LABELS = [{"category": s["category"], "extra": {"fold": s["fold"], "surgeon": s["group"], "one": 1}} for s in SPORTS]


@pytest.fixture
def store(make_store: MakeStore) -> Path:
    return make_store(videos=24, labels=LABELS)


def record(path: Path, ranges: object) -> Path:
    path.write_text(json.dumps({"name": "x", "ranges": ranges}))
    return path


def test_relative_error_is_over_each_videos_own_range(store: Path, tmp_path: Path) -> None:
    ranges = [
        {"low": 0.0, "high": 100.0, "category": "diving"},
        {"low": 10.0, "high": 60.0, "category": "vault"},
        {"low": 0.0, "high": 7.0, "column": "tes"},
    ]
    out = tmp_path / "run"
    aqa_train("--features", store, "--method", "ridge", "--seeds", 1, "--test-fraction", 0.25, "--device", "cpu",
              "--dataset", record(tmp_path / "dataset.json", ranges), "--out", out)  # fmt: skip
    rows = [r for r in read_csv(out / "predictions.csv") if r["method"] == "ridge"]
    kinds = {f"{i:03d}.mp4": s["category"] for i, s in enumerate(SPORTS)}
    span = np.array([100 if kinds[r["id"]] == "diving" else 50 for r in rows])
    expected = np.square(np.array([float(r["residual"]) for r in rows]) / span).mean() * 100
    found = next(r for r in json.loads((out / "metrics.json").read_text())["rows"] if r["method"] == "ridge")
    assert found["rl2_dataset_range"]["mean"] == pytest.approx(expected)
    assert json.loads((out / "data.json").read_text())["dataset_sha256"]


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ([{"low": 0, "high": 1, "category": "diving"}], r"no range of score for 001\.mp4 \(category 'vault'\)"),
        ([{"low": 0}], "not the record of a dataset"),
        (None, "not the record of a dataset"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(store: Path, tmp_path: Path, ranges: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        aqa_train("--features", store, "--method", "ridge", "--device", "cpu", "--out", tmp_path / "run",
                  "--dataset", record(tmp_path / "dataset.json", ranges))  # fmt: skip


def test_other_ranges_are_another_run(store: Path, tmp_path: Path) -> None:
    file = record(tmp_path / "dataset.json", [{"low": 0.0, "high": 100.0}])
    common = ["--features", store, "--method", "ridge", "--seeds", 1, "--dataset", file, "--out", tmp_path / "run"]
    aqa_train(*common)
    record(file, [{"low": 0.0, "high": 50.0}])
    with pytest.raises(UsageError, match=r"the ranges in .*dataset\.json changed"):
        aqa_train(*common)


def test_one_category_alone_and_folds_by_a_column(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    aqa_train("--features", store, "--method", "aa", "--seeds", 1, "--epochs", 1, "--category", "vault",
              "--folds-by", "fold", "--jobs", 1, *FAST, "--out", out)  # fmt: skip
    splits = [json.loads(f.read_text()) for f in sorted((out / "splits").glob("*.json"))]
    assert len(splits) == 3
    vaults = [i for i, s in enumerate(SPORTS) if s["category"] == "vault"]
    for fold, split in enumerate(splits):
        tested = {f"{i:03d}.mp4" for i in vaults if SPORTS[i]["fold"] == fold}
        assert set(split["test"]) == tested
        assert set(split["labelled"]) == {f"{i:03d}.mp4" for i in vaults} - tested
    protocol = json.loads((out / "metrics.json").read_text())["protocol"]
    assert (protocol["folds"], protocol["over_folds"]) == (3, "mean")


def test_leaving_one_surgeon_out(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    aqa_train("--features", store, "--method", "ridge", "--seeds", 1, "--folds-by", "surgeon", "--out", out)
    assert len(list((out / "splits").glob("*.json"))) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--category", "volt"], "no video is of the category 'volt'"),
        (["--folds-by", "nothing"], "have no column 'nothing'"),
        (["--folds-by", "one"], "have 1 value in it"),
        (["--folds-by", "fold", "--folds", 3], "say what is tested"),
        (["--folds-by", "fold", "--group", "surgeon"], "the fold 0 divides a group"),
    ],
)
def test_what_cannot_be_is_refused(store: Path, tmp_path: Path, options: list[object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        aqa_train("--features", store, "--method", "ridge", *options, "--out", tmp_path / "run")


def test_a_column_that_is_not_there_is_told_with_those_that_are(store: Path, tmp_path: Path) -> None:
    options = ["--features", store, "--method", "ridge", "--out", tmp_path / "run"]
    for option in ("--folds-by", "--group"):
        for name, fix in (("Surgeon", "did you mean surgeon?"), ("doctor", "the videos have category, fold, one, ")):
            with pytest.raises(UsageError) as e:
                aqa_train(*options, option, name)
            assert e.value.cause == f"{option} {name}: the videos have no column {name!r}"
            assert fix in e.value.fix


def test_uncertainty_and_comparisons_are_in_the_run_folder(make_store: MakeStore, tmp_path: Path) -> None:
    store, out = make_store(videos=60), tmp_path / "run"
    aqa_train("--features", store, "--method", "dae,aa-x2", "--seeds", 2, "--epochs", 2, "--labelled", "0.5,1",
              "--folds", 2, "--jobs", 1, *FAST[2:], "--set", "aa-x2.widths=8,8", "--out", out)  # fmt: skip
    part = out / "labelled=0.5"
    rows = {r["method"]: r for r in json.loads((part / "metrics.json").read_text())["rows"]}
    for method in ("dae", "aa-x2"):
        sure = rows[method]["uncertainty"]
        assert len(sure["calibration"]["by_seed"]) == 2
        assert sure["mae"][-1] == pytest.approx(rows[method]["mae"]["mean"])
        assert all(b <= m + 1e-9 for m, b in zip(sure["mae"], sure["best"], strict=True))
    assert "uncertainty" not in rows["ridge"]
    predicted = read_csv(part / "predictions.csv")
    assert all(float(r["uncertainty"]) > 0 for r in predicted if r["method"] == "dae")
    assert {r["uncertainty"] for r in predicted if r["method"] == "ridge"} == {""}
    assert {r["kept"] for r in read_csv(part / "selective.csv")} >= {"0.1", "1.0"}
    pairs = read_csv(out / "comparisons.csv")
    assert {r["labelled"] for r in pairs} == {"0.5", "1.0"}
    mine = next(r for r in pairs if {r["a"], r["b"]} == {"dae", "aa-x2"} and r["measure"] == "spearman")
    assert float(mine["bootstrap_holm"]) >= float(mine["bootstrap"])
    assert mine["pairs"] == "4"
