"""Slips in a table's file or command: what is refused, by which name, and what stays as it was."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from aqa_pipelines.tables.record import read_table
from aqa_shared.errors import AqaError, StoreError, UsageError

from .table_cases import aqa, measured, miniature, of_mine

RIDGE = '[[rows]]\nname = "ridge"\nmethod = "ridge"\n'
AA = '[[rows]]\nname = "AA"\nmethod = "aa"\nstreams = ["rgb"]\n'
RUN = "[run]\nlabelled = 0.5\nseeds = 1\n"
COLUMN = '[[columns]]\nname = "all"\n'
MEAN = '[[columns]]\nname = "mean"\naverage_of = ["all"]\n'
PLACED = 'kind = "embedding"\nstreams = ["rgb"]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'[run]\nrecipe = "jigsaw"\n{COLUMN}{RIDGE}', "no method has a recipe 'jigsaw'; did you mean jigsaws"),
        (f"tolerance = inf\n{COLUMN}{RIDGE}", "tolerance"),
        (
            f"[run]\nlabelled = [0.1, 0.5]\n{COLUMN}{RIDGE}",
            "row 'ridge', column 'all': labelled: a cell is one fraction",
        ),
        (f'{COLUMN}{MEAN}measure = "mae"\n{RIDGE}', "column 'mean' is an average: it has neither"),
        (f'{COLUMN}{MEAN}{RIDGE}columns = ["mean"]\n', "row 'ridge', columns: 'mean' is an average"),
        (f'kind = "figure"\n{COLUMN}{RIDGE}', "give the columns or the rows an x"),
        (f"{PLACED}{COLUMN}{RIDGE}", "row 'ridge': ridge has no features of videos to place"),
        (f'{PLACED}{COLUMN}[[columns]]\nname = "two"\n{AA}', "kind embedding: one column"),
    ],
    ids=["recipe", "infinite", "two-fractions", "own-measure", "average-asked", "no-x", "no-features", "two-columns"],
)
def test_what_a_file_cannot_mean_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = of_mine(tmp_path, text)
    with pytest.raises(UsageError, match=re.escape(said)) as refused:
        read_table(file)
    assert str(file) in refused.value.cause


def test_t_sne_places_videos_without_scores_and_says_what_it_lacks(tmp_path: Path) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    labels, lines = tmp_path / "some.csv", ["id,score,split"]
    for n in range(100):
        split = "train" if n % 4 else "test"
        lines.append(f"dive_{n:02d},{n if n % 5 else ''},{split}")
    labels.write_text("\n".join(lines))
    file = of_mine(tmp_path, PLACED + RUN + COLUMN + AA)
    code, record = measured(file, store, out, "--epochs", 1, "--labels", labels)
    assert not code
    known = [place["score"] is not None for place in record["embedding"]["AA"]]
    assert any(known)
    assert not all(known)
    assert (out / "pipelines" / "mine.svg").stat().st_size
    file = of_mine(tmp_path / "all", PLACED + RUN.replace("0.5", "1.0") + COLUMN + AA)
    with pytest.raises(UsageError, match="t-SNE places two unlabelled videos or more, and there are 0"):
        aqa("table", file, "--features", store, "--out", out / "all", "--epochs", 1)


def test_a_table_stays_where_nothing_of_it_can_be_measured_again(tmp_path: Path) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(tmp_path, 'streams = ["rgb"]\n' + RUN + COLUMN + RIDGE)
    file = file.rename(file.with_name("mine.v2.toml"))
    command = ["table", file, "--features", store, "--out", out, "--jobs", 1]
    assert not aqa(*command)
    record = out / "pipelines" / "mine.v2.json"
    before = record.read_bytes()
    for option in ("--labels", "--dataset"):
        with pytest.raises(UsageError, match=f"{option[2:]}: there is no file {tmp_path}/nope"):
            aqa(*command, option, tmp_path / "nope")
    file.write_text(file.read_text().replace('"rgb"', '"still-flow"'))
    with pytest.raises(UsageError, match="no row can be measured"):
        aqa(*command)
    assert record.read_bytes() == before


@pytest.mark.parametrize("name", ["result.json", "environment.json", "data.json"])
def test_a_damaged_file_of_a_run_is_named_by_the_plan_and_by_the_run(tmp_path: Path, name: str) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    command = ["table", of_mine(tmp_path, 'streams = ["rgb"]\n' + RUN + COLUMN + RIDGE)]
    command += ["--features", store, "--out", out, "--jobs", 1]
    assert not aqa(*command)
    (damaged,) = out.rglob(name)
    damaged.write_text(damaged.read_text()[:20])
    for plan in ([], ["--plan"]) if name != "environment.json" else ([],):
        with pytest.raises(AqaError, match=re.escape(str(damaged))):
            aqa(*command, *plan)


def test_results_name_a_damaged_record_and_pass_over_files_of_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(tmp_path, 'streams = ["rgb"]\n' + RUN + COLUMN + RIDGE)
    assert not aqa("table", file, "--features", store, "--out", out, "--jobs", 1)
    capsys.readouterr()
    assert not aqa("results", out)
    assert "## Mine" in capsys.readouterr().out
    with pytest.raises(StoreError, match="cannot write"):
        aqa("results", out, "--out", tmp_path)
    record = out / "pipelines" / "mine.json"
    record.write_text(json.dumps(json.loads(record.read_text()))[:50])
    with pytest.raises(UsageError, match=re.escape(f"{record} is damaged")):
        aqa("results", out)


def test_a_plan_counts_what_failed_when_it_was_tried(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(tmp_path, f'{RUN}{COLUMN}{AA}settings = {{ lr = 1e30 }}\n{RIDGE}streams = ["rgb"]\n')
    assert aqa("table", file, "--features", store, "--out", out, "--epochs", 2, "--plan") == 3
    said = capsys.readouterr().out
    assert "2 trainings, 2 left" in said
    assert "failed when it was tried: AA (all): " in said
    assert "last good weights" not in said
