"""Slips in a table's file or command: what is refused, by which name, and what stays as it was."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.manifold import TSNE

from aqa_pipelines.tables.plan import examine, time_of
from aqa_pipelines.tables.record import read_table
from aqa_shared.errors import AqaError, StoreError, UsageError
from aqa_shared.store import FeatureStore
from aqa_train.features import FeatureSet
from aqa_train.predict import load_checkpoint

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
        (f"[run]\nall_scores = true\n{COLUMN}{RIDGE}", "run: no setting 'all_scores'"),
        (f"{PLACED}{COLUMN}{RIDGE}", "row 'ridge': ridge has no features of videos to place"),
        (f'{PLACED}{COLUMN}[[columns]]\nname = "two"\n{AA}', "kind embedding: one column"),
    ],
    ids=[
        *("recipe", "infinite", "two-fractions", "own-measure", "average-asked", "no-x", "no-tests", "no-features"),
        "two-columns",
    ],
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
    file = of_mine(tmp_path, PLACED + RUN + 'standardise = "z-score"\n' + COLUMN + AA)
    code, record = measured(file, store, out, "--epochs", 1, "--labels", labels)
    assert not code
    _are_where_the_network_puts_them(record["embedding"]["AA"], store, out)
    known = [place["score"] is not None for place in record["embedding"]["AA"]]
    assert any(known)
    assert not all(known)
    assert (out / "pipelines" / "mine.svg").stat().st_size
    file = of_mine(tmp_path / "all", PLACED + RUN.replace("0.5", "1.0") + COLUMN + AA)
    with pytest.raises(UsageError, match="t-SNE places two unlabelled videos or more, and there are 0"):
        aqa("table", file, "--features", store, "--out", out / "all", "--epochs", 1)


def _are_where_the_network_puts_them(places: Sequence[Mapping[str, Any]], store: Path, out: Path) -> None:
    """By the features that it learned from, which are standardised."""
    model = load_checkpoint(next(out.glob("*/models/aa/*")))
    assert model.standardise is not None
    features = replace(FeatureSet.from_store(FeatureStore.open(store), ["rgb"]), standardise=model.standardise)
    rows = np.array([features.ids.index(place["id"]) for place in places])
    batch = features.load(rows, torch.device("cpu"))
    network: Any = model.network
    with torch.no_grad():
        f = torch.cat(network.summaries(batch.streams, batch.present), dim=1).numpy()
    found = TSNE(perplexity=min(30.0, (len(f) - 1) / 3), random_state=0).fit_transform(f)
    # Which videos are read together changes the last bits, which t-SNE makes more of.
    np.testing.assert_allclose([[place["x"], place["y"]] for place in places], found, atol=0.05 * np.abs(found).max())


def test_a_table_stays_where_nothing_of_it_can_be_measured_again(tmp_path: Path) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(tmp_path, 'streams = ["rgb"]\n' + RUN + COLUMN + RIDGE)
    file = file.rename(file.with_name("mine.v2.toml"))
    file.write_text('kind = "figure"\n' + file.read_text().replace(COLUMN, COLUMN + "x = 1\n"))
    command = ["table", file, "--features", store, "--out", out, "--jobs", 1]
    assert not aqa(*command)
    record = out / "pipelines" / "mine.v2.json"
    before = record.read_bytes()
    pictures = {record.with_suffix(kind): record.with_suffix(kind).stat() for kind in (".png", ".svg")}
    for option in ("--labels", "--dataset"):
        with pytest.raises(UsageError, match=f"{option[2:]}: there is no file {tmp_path}/nope"):
            aqa(*command, option, tmp_path / "nope")
    text = file.read_text()
    file.write_text(text + '[[rows]]\nname = "theirs"\nwhy = "no code"\npublished = { "all" = 0.5 }\n')
    with pytest.raises(UsageError, match="no row can be measured: all are only published"):
        aqa(*command, "--rows", "theirs")
    file.write_text(text.replace(RIDGE, AA + "settings = { lr = 1e30 }\n"))
    with pytest.raises(UsageError, match=r"no row was measured: AA \(all\): epoch 1"):
        aqa(*command, "--epochs", 2)
    file.write_text(text.replace('"rgb"', '"still-flow"'))
    with pytest.raises(UsageError, match="no row can be measured"):
        aqa(*command)
    assert record.read_bytes() == before
    assert {file: file.stat() for file in pictures} == pictures


def test_options_that_would_do_nothing_are_refused(tmp_path: Path) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    command = ["table", of_mine(tmp_path, RUN + COLUMN + RIDGE)]
    for features in ([], ["--features", store]):
        with pytest.raises(UsageError, match="no row 'rigde'"):
            aqa(*command, *features, "--plan", "--rows", "rigde")
        with pytest.raises(UsageError, match="--rows names no row"):
            aqa(*command, *features, "--plan", "--rows", " ; ")
    with pytest.raises(UsageError, match="--seeds is of a plan for a store"):
        aqa(*command, "--plan", "--seeds", 2)
    for options in (["--write", out], ["--in-memory", "no"]):
        with pytest.raises(UsageError, match=f"{options[0]} does nothing with --plan"):
            aqa(*command, "--plan", *options)


def test_what_is_otherwise_than_in_the_file_is_said_and_what_is_the_same_is_not(tmp_path: Path) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    twice = AA.replace('"AA"', '"AA, 3 epochs"') + "settings = { epochs = 3 }\n"
    file = of_mine(tmp_path, 'streams = ["rgb"]\n' + RUN.replace("seeds = 1", "seeds = 2") + COLUMN + AA + twice)
    _, same = measured(file, store, out, "--seeds", 2, "--epochs", 1)
    assert same["reduced"] == "run with epochs = 1, but for AA, 3 epochs"
    assert [json.loads(p.read_text())["epochs"] for p in out.glob("aa,epochs=3*/models/aa/*/result.json")] == [3, 3]
    _, fewer = measured(file, store, out, "--seeds", 1, "--rows", "AA", "--epochs", 1)
    assert fewer["reduced"] == "only the rows AA; run with epochs = 1; run with seeds = 1"
    _, more = measured(file, store, out, "--seeds", 3, "--rows", "AA", "--epochs", 1)
    assert more["reduced"] == "only the rows AA; run with epochs = 1"
    assert "run with seeds = 3" in more["differences"]
    another = '[[columns]]\nname = "often"\nrun = { seeds = 3 }\n'
    file = of_mine(tmp_path / "two", 'streams = ["rgb"]\n' + RUN + COLUMN + another + RIDGE)
    _, two = measured(file, store, out / "two", "--seeds", 2, "--epochs", 1)
    assert two["reduced"] == "run with seeds = 2"


def test_figures_of_what_a_store_has_no_more_are_not_shown(tmp_path: Path) -> None:
    """They are in the folder that the run would have, and were of features that nobody can check."""
    store, out = miniature(tmp_path, "mtl-aqa", streams=("rgb", "flow")), tmp_path / "runs"
    flow = RIDGE.replace('"ridge"', '"of flow"', 1) + 'streams = ["flow"]\n'
    file = of_mine(tmp_path, f'{RUN}{COLUMN}{RIDGE}streams = ["rgb"]\n{flow}')
    code, record = measured(file, store, out)
    assert not code
    assert [bool(row["measured"]) for row in record["rows"]] == [True, True]
    shutil.rmtree(store)
    miniature(tmp_path, "mtl-aqa", streams=("rgb",))
    code, record = measured(file, store, out)
    assert code == 3
    assert [bool(row["measured"]) for row in record["rows"]] == [True, False]
    assert "flow" in record["rows"][1]["lacks"]["all"]


def test_columns_of_other_split_files_and_ids_are_other_runs(tmp_path: Path) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    ids = FeatureStore.open(store).ids
    splits = [tmp_path / "a" / "split.csv", tmp_path / "b" / "split.csv"]
    for k, split in enumerate(splits):
        split.parent.mkdir()
        rows = [f"{v},{'test' if i % 2 == k else 'train'}" for i, v in enumerate(ids)]
        split.write_text("\n".join(["id,split", *rows]))
    labels = tmp_path / "labels.csv"
    lines = [f"{v},{ids[-1 - i]},{i},{'test' if i % 4 == 0 else 'train'}" for i, v in enumerate(ids)]
    labels.write_text("\n".join(["video,other,score,split", *lines]))
    # What is set is cut off where it is long; the digests are not.
    more = 'over_folds = "pooled", seed = 7, score_max = 5.0, save_every = 60.0, batch = 16, lr = 0.001, momentum = 0.9'
    columns = "".join(f'[[columns]]\nname = "{s.parent.name}"\nrun = {{ {more}, split = "{s}" }}\n' for s in splits)
    columns += "".join(f'[[columns]]\nname = "{c}"\nrun = {{ id_column = "{c}" }}\n' for c in ("video", "other"))
    file = of_mine(tmp_path, f'streams = ["rgb"]\n[run]\nseeds = 1\n{columns}{RIDGE}')
    code, record = measured(file, store, out, "--labels", labels)
    assert not code
    found = record["rows"][0]["measured"]
    assert set(found) == {"a", "b", "video", "other"}
    assert len({figure["mean"] for figure in found.values()}) == 4
    folders = [path.parent.name for path in out.glob("*/metrics.json")]
    assert len(folders) == 4
    assert sum(len(name) > 80 for name in folders) == 2


def test_time_is_by_what_an_epoch_goes_through(tmp_path: Path) -> None:
    """Of USDL the labelled videos, of AA the larger of the two sets."""
    store = miniature(tmp_path, "mtl-aqa")
    columns = "".join(f'[[columns]]\nname = "{f}"\nrun = {{ labelled = {f} }}\n' for f in (0.2, 0.8))
    usdl = '[[rows]]\nname = "USDL"\nmethod = "usdl"\n'
    file = of_mine(tmp_path, f'streams = ["rgb"]\n[run]\nseeds = 1\nepochs = 4\n{columns}{AA}{usdl}')
    plan = examine(read_table(file), str(store))
    seconds = time_of(plan, {one.name: () for one in plan.ready}, torch.device("cpu"))
    by_cell = {(s.row.name, s.column.name): seconds[one.name] for one in plan.works for s in one.spots}
    # Of 75 training videos 15 and 60 are labelled; the larger of the two sets has 60 both times.
    assert by_cell["USDL", "0.8"] == pytest.approx(4 * by_cell["USDL", "0.2"])
    assert by_cell["AA", "0.8"] == pytest.approx(by_cell["AA", "0.2"])


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
