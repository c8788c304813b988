"""aqa-train on stores of every kind: lengths, streams, splits, and tables of labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from aqa_shared.errors import UsageError
from aqa_shared.store import FeatureStore
from aqa_train.experiment import prepare
from aqa_train.predict import load_checkpoint
from aqa_train.resolve import resolve
from aqa_train.splits import Split

from .conftest import MakeStore
from .runs import FAST, HELD, HIDING, aqa_train


def test_variable_lengths_and_two_streams_train(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=16, lengths=[4, 3, 2, 1] * 4, streams=("rgb", "flow"))
    aqa_train(
        "--features", store, "--method", "aa", "--streams", "rgb,flow", "--seeds", 1, "--epochs", 2,
        "--out", tmp_path / "o", *HELD,
    )  # fmt: skip
    model = load_checkpoint(tmp_path / "o" / "models" / "aa" / "fold0-seed0")
    assert model.channels == {"rgb": 16, "flow": 16}
    scores = model.score(FeatureStore.open(store))
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("in_memory", ["yes", "no"])
def test_lengths_that_follow_the_videos_train_and_longer_ones_are_scored(
    make_store: MakeStore, tmp_path: Path, in_memory: str
) -> None:
    """As --segments auto makes them: from one segment to many, and a new video longer than all."""
    store = make_store(videos=16, lengths=[169, 7, 1, 30] * 4)
    options = ("--method", "s4aqa,aa", "--seeds", 1, "--epochs", 2, "--in-memory", in_memory)
    aqa_train("--features", store, *options, "--out", tmp_path / "o", *HIDING, *FAST)
    model = load_checkpoint(tmp_path / "o" / "models" / "s4aqa" / "fold0-seed0")
    assert np.isfinite(model.score(FeatureStore.open(store))).all()
    longer = model.score(FeatureStore.open(make_store(videos=3, name="l.zarr", lengths=[5, 7, 200])))
    assert np.isfinite(longer).all()
    # A video's score is its own: the padding beside a longer one adds nothing but rounding.
    alone = model.score(FeatureStore.open(make_store(videos=2, name="a.zarr", lengths=[5, 7])))
    assert alone == pytest.approx(longer[:2], rel=1e-5)


def test_videos_without_scores_are_the_unlabelled(make_store: MakeStore, tmp_path: Path) -> None:
    scores = [float(i) if i % 3 else None for i in range(18)]
    store = make_store(videos=18, scores=scores)
    aqa_train("--features", store, "--method", "aa", "--seeds", 1, "--epochs", 1, "--out", tmp_path / "o", *HELD)
    p = json.loads((tmp_path / "o" / "metrics.json").read_text())["protocol"]
    assert (p["labelled_fraction"], p["labelled"], p["unlabelled"], p["test"]) == (1.0, 9, 6, 3)


def test_the_stores_own_split_is_used(make_store: MakeStore, tmp_path: Path) -> None:
    roles = ["train"] * 10 + ["val"] * 3 + ["test"] * 5
    store = make_store(videos=18, labels=[{"split": r} for r in roles])
    aqa_train("--features", store, "--method", "aa", "--seeds", 1, "--epochs", 1, "--out", tmp_path / "o", *FAST)
    split = Split.load(tmp_path / "o" / "splits" / "fold0-seed0.json")
    assert split.test == tuple(f"{i:03d}.mp4" for i in range(13, 18))
    assert split.validation == ("010.mp4", "011.mp4", "012.mp4")
    assert len(split.labelled) == 10


def test_a_split_file_wins_and_strange_ids_are_said(
    make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(videos=12, labels=[{"split": "test" if i < 6 else "train"} for i in range(12)])
    file = tmp_path / "split.json"
    file.write_text(json.dumps({"train": [f"{i:03d}.mp4" for i in range(8)], "test": ["008.mp4", "009.mp4", "nope"]}))
    aqa_train("--features", store, "--method", "s4aqa", "--split", file, "--labelled", 0.5, "--dry-run", *FAST)
    shown = capsys.readouterr()
    assert "4 labelled, 4 unlabelled, 0 validation, 2 test" in shown.out
    assert "nope" in shown.err
    file.write_text(json.dumps({"train": ["000.mp4", "001.mp4"], "test": ["001.mp4"]}))
    with pytest.raises(UsageError, match=r"in training and in test: 001\.mp4"):
        aqa_train("--features", store, "--split", file)


def test_labelled_whole_works_without_unlabelled_for_aa(make_store: MakeStore, tmp_path: Path) -> None:
    aqa_train("--features", make_store(videos=12), "--method", "aa", "--labelled", 1, "--seeds", 1,
              "--epochs", 1, "--out", tmp_path / "o", *HELD)  # fmt: skip
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["protocol"]["unlabelled"] == 0


def test_the_largest_numbers_that_are_taken_end_in_a_result(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=12, scale=1e12, scores=[(-1) ** i * (1e12 - i) for i in range(12)])
    aqa_train(
        "--features", store, "--method", "s4aqa", "--seeds", 2, "--epochs", 2, *HIDING,
        "--out", tmp_path / "o", "--jobs", 1, *HELD,
    )  # fmt: skip
    rows = json.loads((tmp_path / "o" / "metrics.json").read_text())["rows"]
    assert all(r["mae"]["mean"] < 1e14 for r in rows)


def test_a_constant_test_set_is_null(make_store: MakeStore, tmp_path: Path) -> None:
    roles = [{"split": "test" if i < 4 else "train"} for i in range(14)]
    store = make_store(videos=14, labels=roles, scores=[7.0] * 4 + [float(i) for i in range(10)])
    aqa_train("--features", store, "--method", "aa", "--seeds", 1, "--epochs", 1, "--out", tmp_path / "o", *FAST)
    summary = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert summary["rows"][0]["spearman"]["mean"] is None
    assert summary["rows"][0]["mae"]["mean"] > 0


def test_a_labels_file_replaces_the_stores_scores(
    make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(videos=16)
    labels = tmp_path / "new.csv"
    rows = [f"{i:03d},{i * 1.5},{'test' if i < 4 else 'train'}" for i in range(12)]
    labels.write_text("\ufeffid;score;split\r\n".replace(";", ",") + "\r\n".join([*rows, "nobody,3,train"]))
    aqa_train(
        "--features",
        store,
        "--method",
        "s4aqa",
        "--labels",
        labels,
        "--seeds",
        1,
        "--epochs",
        1,
        "--out",
        tmp_path / "o",
        *FAST,
    )
    assert "nobody" in capsys.readouterr().err
    split = Split.load(tmp_path / "o" / "splits" / "fold0-seed0.json")
    assert split.test == ("000.mp4", "001.mp4", "002.mp4", "003.mp4")
    assert len(split.labelled) == 8
    assert split.unlabelled == ("012.mp4", "013.mp4", "014.mp4", "015.mp4")
    result = json.loads((tmp_path / "o" / "models" / "s4aqa" / "fold0-seed0" / "result.json").read_text())
    assert result["true"] == [0.0, 1.5, 3.0, 4.5]


def test_labels_of_other_columns_in_any_dialect(make_store: MakeStore, tmp_path: Path) -> None:

    store, labels = make_store(videos=16), tmp_path / "l.csv"
    labels.write_text("sep=;\n;Clip;Total\n" + "".join(f"{i};{i};{i},5\n" for i in range(16)))
    flags = {"features": str(store), "labels": str(labels), "methods": ("aa",)}
    said: list[str] = []
    columns = {"id_column": "Clip", "score_column": "Total"}
    features = prepare(resolve(None, {**flags, **columns}), said.append).features
    assert features.table["score"].tolist() == [i + 0.5 for i in range(16)]
    assert "16 ids matched as numbers (0 for 000.mp4)" in said[0]
    with pytest.raises(UsageError, match=r"no column id or path .* and no column score; it has 'Clip', 'Total'"):
        prepare(resolve(None, flags), said.append)
    with pytest.raises(UsageError, match="id_column = Clip would be ignored without --labels"):
        resolve(None, {"features": str(store), **columns})


@pytest.mark.parametrize(
    "text", ["id,score\nx.mp4,3\n", "id,score\n000.mp4,good\n", "id,score\n000.mp4,1\n000.mp4,2\n", "a,b\n"]
)
def test_broken_labels_files_are_refused(make_store: MakeStore, tmp_path: Path, text: str) -> None:
    labels = tmp_path / "new.csv"
    labels.write_text(text)
    with pytest.raises(UsageError, match=r"new\.csv"):
        aqa_train(
            "--features", make_store(videos=12), "--labels", labels, "--out", tmp_path / "o", "--method", "aa", *HELD
        )
