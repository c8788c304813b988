"""Files of splits: ours, tables, and the layouts of folds that data sets publish."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_shared.errors import UsageError
from aqa_train.config import RunConfig
from aqa_train.features import FeatureSet
from aqa_train.protocol import make_splits
from aqa_train.split_files import FileFold, read_split_file
from aqa_train.splits import Split

from .conftest import synthetic


def test_split_files(tmp_path: Path) -> None:
    roles = tmp_path / "roles.csv"
    roles.write_text("\ufeffid,split\r\na,train\r\nb,test\r\nc,val\r\n", encoding="utf-8")
    assert read_split_file(roles) == [FileFold(train=["a"], test=["b"], val=["c"])]
    folds = tmp_path / "folds.csv"
    folds.write_text("id,fold\na,1\nb,2\nc, 1\n")
    assert read_split_file(folds) == [FileFold(train=["b"], test=["a", "c"]), FileFold(train=["a", "c"], test=["b"])]
    listed = tmp_path / "folds.json"
    listed.write_text('[{"train": ["a", 7], "test": ["b"]}]')
    assert read_split_file(listed) == [FileFold(train=["a", "7"], test=["b"])]
    roles.write_text("id,split\na,Train\nb, TEST\nc,Validation\n")
    assert read_split_file(roles) == [FileFold(train=["a"], test=["b"], val=["c"])]
    saved = FileFold(train=["a", "c"], test=["b"], saved=True)
    Split(0, 0, ("a",), ("b", "c"), ("b",), transductive=True).save(tmp_path / "saved.json")
    assert read_split_file(tmp_path / "saved.json") == [saved]
    Split(0, 0, ("a",), ("c",), ("b",)).save(tmp_path / "saved.json")
    assert read_split_file(tmp_path / "saved.json") == [saved]
    for key in ("saved", "validation"):
        listed.write_text(f'{{"train": ["a"], "test": ["b"], "{key}": true}}')
        with pytest.raises(UsageError, match=key):
            read_split_file(listed)
    listed.write_text('{"labelled": ["a"], "unlabelled": ["c"], "test": ["b"]}')
    assert read_split_file(listed) == [saved]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", "id,role\na,train\n", "the columns are id, role"),
        ("x.csv", "id,split\na,trian\n", "row 2: split is 'trian'"),
        ("x.csv", "", "the file is empty"),
        ("x.json", '{"train": ["a"]', "line 1"),
        ("x.json", '{"train": ["a"]}', "fold 0: test: Field required"),
        ("x.csv", "id,split\na\n", "row 2 has 1 cells"),
        ("x.csv", "id,split\na,\n", "row 2: split is empty"),
        ("x.csv", "id,split\na,train\n\n,test\n", "row 4: id is empty"),
        ("x.csv", "id,fold\na,1\nb, \n", "row 3: fold is empty"),
        ("x.csv", "id,fold\n ,1\n", "row 2: id is empty"),
        ("x.csv", "id,fold\n", "names no video"),
        ("x.csv", "id,fold\na,0\nb,0\n", "has one fold, and nobody to train on"),
        ("x.json", '[["a", "b"]]', "has one fold, and nobody to train on"),
        ("x.csv", "id,fold\n" + "a" * 200_000 + ",1\n", "field"),
        ("x.csv", "id,fold\na,1\nb,2\na,2\n", "row 4: a is in fold 2, and in row 2 in fold 1"),
        ("x.json", '["a", "b"]', "fold 0 is neither ids nor roles"),
        ("x.json", '{"training": ["a"], "tests": ["b"]}', "train: Field required"),
        ("x.json", '{"a": [["x"], ["y"]], "b": [["z"]]}', "different numbers of folds"),
        ("x.pkl", "no pickle", "is not a pickle of lists and arrays"),
        ("x.json", "[]", "names no video"),
        ("x.json", "[null]", "fold 0 is neither ids nor roles"),
        ("x.json", "[[]]", "fold 0 is neither ids nor roles"),
        ("x.json", '"ab"', "fold 0 is neither ids nor roles"),
        ("x.json", '{"labelled": ["a"], "test": ["b"]}', "unlabelled: Field required"),
        ("x.json", '{"train": null, "test": ["b"]}', "train: Input should be a valid list"),
        ("x.json", '{"train": "a.mp4", "test": ["b"]}', "train: Input should be a valid list"),
        ("x.json", '[{"train": ["a"], "test": ["b"]}, {"train": ["a"], "test": [""]}]', r"fold 1: test\.0: "),
        ("x.json", '{"train": ["a"], "test": ["b"], "validation": ["c"]}', "validation: Extra inputs"),
    ],
)
def test_broken_split_files(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        read_split_file(tmp_path / name)


@pytest.mark.parametrize("name", ["missing.csv", "missing.json", ""])
def test_split_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"No such file|directory"):
        read_split_file(tmp_path / name)


A = [FileFold(train=["c", "d"], test=["a", "b"]), FileFold(train=["a", "b"], test=["c", "d"])]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.json", '[["a", "b"], ["c", "d"]]'),
        ("x.json", '{"fold2": ["c", "d"], "fold1": ["a", "b"]}'),
        ("x.json", '{"10": ["c", "d"], "2": ["a", "b"]}'),
        ("x.json", '{"0": {"train": ["c", "d"], "test": ["a", "b"]}, "1": {"train": ["a", "b"], "test": ["c", "d"]}}'),
        ("x.json", '{"Suturing": [["a"], ["c", "d"]], "Knot": [["b"], []]}'.replace("[]", '["e"]')),
        ("x.json", '[{"id": "a", "fold": 1}, {"id": "b", "fold": 1}, {"id": "c", "fold": 2}, {"id": "d", "fold": 2}]'),
        ("x.csv", "id;fold\na;1\nb;1\nc;2\nd;2\n"),
        ("x.csv", "sep=;\r\nvideo;fold\r\na;9\r\nb;9\r\nc;10\r\nd;10\r\n"),
        ("x.tsv", "id\tfold\na\t1\nb\t1\nc\t2\nd\t2\n"),
    ],
)
def test_published_layouts_of_folds_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = read_split_file(tmp_path / name)
    if "Suturing" in text:
        assert [f.test for f in found] == [["a", "b"], ["c", "d", "e"]]
    else:
        assert found == A


def test_a_pickle_of_folds_by_task_is_read_and_tasks_of_other_videos_are_left_out(tmp_path: Path) -> None:
    """MUSDL's splits.pkl of JIGSAWS, of which a store often holds one task."""
    file = tmp_path / "splits.pkl"
    tasks = {"Knot": [["k1"], ["k2"]], "Suturing": [np.array(["a", "b"]), ("c", "d")]}
    file.write_bytes(pickle.dumps(tasks))
    assert read_split_file(file, known=lambda name: name in "abcd") == A
    with pytest.raises(UsageError, match="no id of Knot, Suturing is in the store"):
        read_split_file(file, known=lambda name: False)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "called"),)

    file = tmp_path / "splits.pkl"
    file.write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(UsageError, match=r"asks for posix\.mkdir"):
        read_split_file(file)
    assert not (tmp_path / "called").exists()
    again: list[Any] = ["x"]
    for _ in range(40):
        again = [again, again]
    file.write_bytes(pickle.dumps(again))
    with pytest.raises(UsageError, match="more than 10000000 values"):
        read_split_file(file)


def split(tmp_path: Path, record: Any) -> tuple[list[Split], list[str]]:
    """What a file makes of the videos v00.mp4 … v11.mp4."""
    file = tmp_path / "split.json"
    file.write_text(json.dumps(record))
    x, truth = synthetic(12, 2, 3)
    found = FeatureSet.from_arrays({"rgb": x}, {"score": truth}, [f"v{i:02d}.mp4" for i in range(12)])
    said: list[str] = []
    return make_splits(RunConfig(features="f", seeds=1, split=str(file)), found, said.append), said


NAMES = [f"v{i:02d}" for i in range(12)]


@pytest.mark.parametrize("form", ["{}", "{}.mp4", "{}.avi"])
def test_ids_are_found_with_and_without_a_suffix(tmp_path: Path, form: str) -> None:
    folds, said = split(tmp_path, [[form.format(n) for n in NAMES[:6]], [form.format(n) for n in NAMES[6:]]])
    assert [s.test for s in folds] == [tuple(f"{n}.mp4" for n in part) for part in (NAMES[:6], NAMES[6:])]
    assert not said


@pytest.mark.parametrize(
    ("train", "val", "test", "wrong"),
    [
        (["v00", "v01", "v02", "v00"], [], ["v05"], r"1 id named twice: v00 in train"),
        (["v00", "v01", "v02"], ["v01"], ["v05"], r"1 id named twice: v01 in train and validation"),
        (["v00", "v01", "v02"], [], ["v05", "v05.mp4"], r"1 id named twice: v05\.mp4 in test"),
        (["v00", "v01", "v02", "v05.mp4"], [], ["v05"], r"1 video in training and in test: v05"),
        (["v00", "v01", "v02"], ["v05"], ["v05"], r"1 video in training and in test: v05"),
        (["v00", "v01", "x", "x"], [], ["v05"], r"1 id named twice: x in train"),
    ],
)
def test_an_id_has_one_role_once(tmp_path: Path, train: list[str], val: list[str], test: list[str], wrong: str) -> None:
    with pytest.raises(UsageError, match=wrong):
        split(tmp_path, {"train": train, "val": val, "test": test})


def test_the_published_folds_of_jigsaws(shared_dir: Path) -> None:
    file = shared_dir / "annotations" / "jigsaws" / "splits.pkl"
    if not file.is_file():
        pytest.skip(f"no {file}")
    found = read_split_file(file, known=lambda name: name.startswith("Suturing"))
    assert [len(f.test) for f in found] == [9, 10, 10, 10]
    assert all(len(f.train) + len(f.test) == 39 for f in found)
    assert [len(f.test) for f in read_split_file(file)] == [25, 26, 26, 26]
