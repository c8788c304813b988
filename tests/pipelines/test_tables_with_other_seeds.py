"""A table with another number of seeds takes what there is: trainings of the same settings, data and environment."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from tests.clusters import Cluster

from .table_cases import aqa, measured, miniature, of_mine

ROWS = (
    'streams = ["rgb"]\n[run]\nlabelled = 0.5\n[[columns]]\nname = "all"\n'
    '[[rows]]\nname = "AA"\nmethod = "aa"\n[[rows]]\nname = "ridge"\nmethod = "ridge"\n'
)


def results(out: Path) -> dict[tuple[int, str, str], int]:
    """Inodes of the results, by the number of seeds of their run, method and training."""
    found = {}
    for file in out.glob("*/models/*/*/result.json"):
        seeds = json.loads((file.parents[3] / "config.json").read_text())["seeds"]
        found[seeds, file.parents[1].name, file.parent.name] = file.stat().st_ino
    return found


def planned(capsys: pytest.CaptureFixture[str], *command: object) -> str:
    capsys.readouterr()
    aqa(*command, "--plan")
    return next(line for line in capsys.readouterr().out.splitlines() if " left: about" in line).partition(":")[0]


def test_more_and_fewer_seeds_take_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out, fresh = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs", tmp_path / "fresh"
    file = of_mine(tmp_path, ROWS)
    common = ["table", file, "--features", store, "--out", out, "--epochs", 1]
    measured(file, store, out, "--epochs", 1, "--seeds", 2)
    assert planned(capsys, *common, "--seeds", 3) == "6 trainings, 2 left"
    assert not any(seeds == 3 for seeds, *_ in results(out))
    code, record = measured(file, store, out, "--epochs", 1, "--seeds", 3)
    assert not code
    assert "4 trainings of runs with another number of seeds taken over" in capsys.readouterr().err.replace("\n", " ")
    found = results(out)
    for method in ("aa", "ridge"):
        names = {name for seeds, of, name in found if (seeds, of) == (3, method)}
        assert names == {f"fold0-seed{i}" for i in range(3)}
        assert all(found[3, method, f"fold0-seed{i}"] == found[2, method, f"fold0-seed{i}"] for i in range(2))
    # The table is that of one who began with three.
    _, expected = measured(file, store, fresh, "--epochs", 1, "--seeds", 3)
    assert [r["measured"] for r in record["rows"]] == [r["measured"] for r in expected["rows"]]
    assert record["protocol"] == expected["protocol"]
    # Fewer are a part of it, and nothing is trained for them.
    assert planned(capsys, *common, "--seeds", 1) == "2 trainings, 0 left"
    _, one = measured(file, store, out, "--epochs", 1, "--seeds", 1)
    assert [r["measured"]["all"]["by_seed"] for r in one["rows"]] == [
        r["measured"]["all"]["by_seed"][:1] for r in record["rows"]
    ]
    # The runs stand alone: one may go.
    for run in out.glob("*/config.json"):
        if json.loads(run.read_text())["seeds"] == 2:
            shutil.rmtree(run.parent)
    assert planned(capsys, *common, "--seeds", 3) == "6 trainings, 0 left"
    assert not list(out.rglob("*.partial"))


@pytest.mark.parametrize("change", ["epochs", "torch", "numpy", "labels", "split", "damaged"])
def test_other_trainings_are_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file, options = of_mine(tmp_path, ROWS), ["--epochs", 1]
    measured(file, store, out, *options, "--seeds", 1)
    if change == "epochs":
        options = ["--epochs", 2]
    if change == "labels":
        with (tmp_path / "mtl-aqa.csv").open(newline="") as read:
            rows = list(csv.DictReader(read))
        labels = tmp_path / "labels.csv"
        with labels.open("w", newline="") as written:
            table = csv.writer(written)
            table.writerow(["id", "score", "split"])
            for i, row in enumerate(rows):
                table.writerow([row["id"], float(row["score"]) + 1, "train" if i % 4 else "test"])
        options += ["--labels", labels]
    for run in out.glob("*/config.json"):
        where = run.with_name("environment.json")
        if change in ("torch", "numpy"):
            where.write_text(json.dumps({**json.loads(where.read_text()), change: "1.0"}))
        if change == "damaged":
            where.write_text("{")
        for result in run.parent.rglob("result.json"):
            if change == "split":
                result.write_text(json.dumps({**json.loads(result.read_text()), "split_sha256": "0" * 64}))
    before = results(out)
    # Ridge has no epochs, so its training is the same.
    left = 3 if change == "epochs" else 4
    assert planned(capsys, "table", file, "--features", store, "--out", out, *options, "--seeds", 2) == (
        f"4 trainings, {left} left"
    )
    measured(file, store, out, *options, "--seeds", 2)
    new = {key: inode for key, inode in results(out).items() if key[0] == 2}
    assert len(new) == 4
    assert len(set(new.values()) - set(before.values())) == left


def test_folders_that_are_no_runs_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(tmp_path, ROWS)
    (out / "a" / "config.json").mkdir(parents=True)  # to read it fails, as without a permission, which root has
    (out / "b").mkdir()
    (out / "b" / "config.json").write_text('{"architectures": []}')
    measured(file, store, out, "--epochs", 1, "--seeds", 1)
    common = ["table", file, "--features", store, "--out", out, "--epochs", 1]
    assert planned(capsys, *common, "--seeds", 2) == "4 trainings, 2 left"


def test_only_what_a_training_found_is_taken_and_stays_apart(tmp_path: Path) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(tmp_path, ROWS)
    measured(file, store, out, "--epochs", 1, "--seeds", 1)
    (old,) = out.glob("*/models/aa/fold0-seed0")
    whole = {f.name for f in old.iterdir()}
    # Killed between its result and the end; and something that somebody put there.
    for name in ("state.safetensors", "failed.json", ".last.json.0123abcd.partial"):
        (old / name).write_text("left")
    (old / "figures").mkdir()
    measured(file, store, out, "--epochs", 1, "--seeds", 2)
    (new,) = (f for f in out.glob("*/models/aa/fold0-seed0") if f != old)
    assert {f.name for f in new.iterdir()} == whole
    assert all((new / name).samefile(old / name) for name in whole)
    # Trained again, it changes no file of the other run.
    (new / "result.json").unlink()
    measured(file, store, out, "--epochs", 1, "--seeds", 2)
    assert not [name for name in whole if (new / name).samefile(old / name)]


MEMORY = Path("/dev/shm")


def test_where_no_hard_link_can_be_made_they_are_copied(tmp_path: Path) -> None:
    """Between two file systems, as there is none on FAT."""
    if not os.access(MEMORY, os.W_OK) or MEMORY.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system, as /dev/shm")
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(tmp_path, ROWS)
    measured(file, store, out, "--epochs", 1, "--seeds", 1)
    with tempfile.TemporaryDirectory(dir=MEMORY) as elsewhere:
        for config in list(out.glob("*/config.json")):
            moved = shutil.move(config.parent, elsewhere)
            config.parent.symlink_to(moved)
        assert not measured(file, store, out, "--epochs", 1, "--seeds", 2)[0]
        old, new = sorted(out.glob("*/models/aa/fold0-seed0"), key=lambda f: f.parents[2].is_symlink(), reverse=True)
        assert old.stat().st_dev != new.stat().st_dev
        found = {f.name: f.read_bytes() for f in new.iterdir()}
        assert found == {f.name: f.read_bytes() for f in old.iterdir()}


@pytest.mark.slow
def test_a_cluster_trains_what_is_left(tmp_path: Path, two: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = miniature(tmp_path, "mtl-aqa"), tmp_path / "runs"
    file = of_mine(tmp_path, ROWS)
    measured(file, store, out, "--epochs", 1, "--seeds", 1)
    common = ["table", file, "--features", store, "--out", out, "--epochs", 1, "--scheduler", two.file]
    assert aqa(*common, "--seeds", 2) is None
    assert "2 trainings of runs with another number of seeds taken over" in capsys.readouterr().err.replace("\n", " ")
    found = results(out)
    assert found[1, "aa", "fold0-seed0"] == found[2, "aa", "fold0-seed0"]
    assert (2, "aa", "fold0-seed1") in found
