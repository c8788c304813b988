"""A grid in parts: which trainings are whose, two at a time in one folder, a killed one, and the tables in the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
import torch
import typer

from aqa_shared.errors import UsageError
from aqa_shared.shards import dealt
from aqa_train.cli import app, finalise
from aqa_train.config import RunConfig
from aqa_train.parts import jobs_of, missing, part_of
from aqa_train.run import Opened, _begin, open_run, train_part
from aqa_train.train_one import ABANDONED

from .conftest import MakeStore
from .runs import FAST, HIDING, aqa_train, files, started

SMALL = [*FAST, "--jobs", 1]


def told(lacking: list[dict[str, Any]], out: Path) -> None:
    """`finalise`, and what it finds missing."""
    lacking.clear()
    finalise(out, quiet=True, tell=lacking.extend)


def test_parts_at_the_same_time_one_of_them_killed_give_what_one_process_gives(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(videos=24)
    common = ["--features", store, "--method", "s4aqa,ridge", "--labelled", "0.4,0.8", "--seeds", 2, "--folds", 2,
              "--variant", "recovery_weight=1,40", "--epochs", 30, *SMALL]  # fmt: skip
    whole, lacking = tmp_path / "whole", list[dict[str, Any]]()
    for attempt in range(5):
        out = tmp_path / f"parts{attempt}"
        # Both begin an empty folder at the same moment.
        first, second = (started([*common, "--out", out, "--shard", f"{i}/3"]) for i in (1, 2))
        while len(list(out.rglob("result.json"))) < 3:
            assert (first.poll(), second.poll()) == (None, None)
            time.sleep(0.02)
        first.kill()
        _, said = second.communicate(timeout=200)
        assert second.returncode == 0, said
        assert f"part 2 of 3, 9 trainings of 24, is done; when all parts are: aqa finalise {out}" in said
        first.communicate()
        if len(list(out.rglob("result.json"))) < 18:
            break  # else the first was just over when it was to be killed: a busy machine
    with pytest.raises(typer.Exit) as end:
        told(lacking, out)
    assert end.value.exit_code == 3
    assert not list(out.rglob("metrics.json"))
    assert not list(out.rglob("*.csv"))
    done = {p: p.stat().st_mtime_ns for p in out.rglob("result.json")}
    names = {str(p.parent.relative_to(out)).replace("models/", "") for p in done}
    # Exactly which, by part, and the command of each.
    assert [row["shard"] for row in lacking] == [(1, 3), (3, 3)]
    assert [row["command"] for row in lacking] == [f"aqa-train --resume {out} --shard {i}/3" for i in (1, 3)]
    ids = [name for row in lacking for name in row["ids"]]
    assert not names & set(ids)
    assert len(names) + len(ids) == len(names | set(ids)) == 24
    # Part 1 goes on, as the third does with the command that is printed; nothing is done twice.
    again = [started([*common, "--out", out, "--shard", "auto/3"], JOB_COMPLETION_INDEX="0"),
             started([*lacking[1]["command"].split()[1:], *SMALL[-4:]])]  # fmt: skip
    for process in again:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
    told(lacking, out)
    assert lacking == []
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    aqa_train(*common, "--out", whole)
    assert files(out) == files(whole)
    assert json.loads((out / "environment.json").read_text())["parts"] == 3


def test_a_single_run_in_parts_has_its_plots_too(make_store: MakeStore, tmp_path: Path) -> None:
    common = ["--features", make_store(videos=16), "--method", "aa", "--seeds", 3, "--folds", 2, "--epochs", 2, *SMALL]
    # Of more parts than trainings some have nothing to do, and leave nothing where nobody has begun.
    nothing = started([*common, "--out", tmp_path / "none", "--shard", "auto"], **array(8, 8))
    _, said = nothing.communicate(timeout=100)
    assert (nothing.returncode, (tmp_path / "none").exists()) == (0, False), said
    for i in range(1, 9):
        aqa_train(*common, "--out", tmp_path / "parts", "--shard", f"{i}/8")
    told([], tmp_path / "parts")
    aqa_train(*common, "--out", tmp_path / "whole")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert (tmp_path / "parts/plots/scatter.png").exists()


def array(task: int, tasks: int) -> dict[str, str]:
    """What SLURM says in a task."""
    said = {"ID": task, "MIN": 1, "MAX": tasks, "COUNT": tasks}
    return {f"SLURM_ARRAY_TASK_{k}": str(v) for k, v in said.items()}


@pytest.mark.parametrize("labelled", [(1.0,), (0.4, 0.8)])
def test_of_two_that_find_an_empty_folder_the_second_must_be_the_same_run(
    make_store: MakeStore, tmp_path: Path, labelled: tuple[float, ...]
) -> None:
    """Both looked before either had written, as all tasks of an array do while they read the features."""
    store, out = make_store(videos=16), tmp_path / "run"

    def looked(seeds: int, store: Path = store) -> Opened:
        config = RunConfig(features=str(store), methods=("ridge",), labelled=labelled, seeds=seeds, folds=2)
        return open_run(config, out)

    def trained(run: Opened, part: int) -> None:
        train_part(run, (part, 3), device=torch.device("cpu"), jobs=1, in_memory="auto")

    first, second, other = looked(2), looked(2), looked(3)
    grown = looked(2, make_store(videos=20, name="grown.zarr"))
    trained(first, 1)
    trained(second, 2)
    before = files(out)
    with pytest.raises(UsageError, match="already holds a run with other settings: seeds: 2 → 3"):
        trained(other, 3)
    with pytest.raises(UsageError, match=r"changed since the run in .* began"):
        trained(grown, 3)
    assert files(out) == before


BEGIN = """
import sys
from pathlib import Path
from aqa_shared.errors import UsageError
from aqa_train.config import RunConfig
from aqa_train.run import _begin, open_run
opened = open_run(RunConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]) / "none")
print("ready", flush=True)
for folder in sys.stdin:
    try:
        _begin(opened.grid, Path(folder.strip()), "cpu", None)
        print(flush=True)
    except UsageError as e:
        print(e.cause, flush=True)
"""
"""A process that begins its run in every folder that it is told, and says what became of it."""


@pytest.mark.slow
def test_of_many_that_begin_at_the_same_moment_all_others_must_be_the_same_run(
    make_store: MakeStore, tmp_path: Path
) -> None:
    """One decides, and its folder has nothing of another run; whoever begins the same run may go on."""
    first = RunConfig(features=str(make_store(videos=16)), methods=("ridge",), seeds=2, folds=2)
    grown = str(make_store(videos=20, name="grown.zarr"))
    configs = [first, first, first.model_copy(update={"seeds": 3}), first.model_copy(update={"features": grown})]
    begin = [sys.executable, "-c", BEGIN]
    processes = [
        subprocess.Popen([*begin, c.model_dump_json(), tmp_path], stdin=PIPE, stdout=PIPE, text=True) for c in configs
    ]
    assert [hear(process) for process in processes] == ["ready"] * 4
    alone = []
    for n, process in enumerate(processes):
        tell([process], tmp_path / f"alone{n}")
        assert hear(process) == ""
        alone.append(files(tmp_path / f"alone{n}"))
    for i in range(24):
        tell([*processes[i % 4 :], *processes[: i % 4]], tmp_path / str(i))
        causes = [hear(process) for process in processes]
        assert [n for n, cause in enumerate(causes) if not cause] in ([0, 1], [2], [3])
        assert files(tmp_path / str(i)) == alone[causes.index("")]
        assert all(re.search("other settings|changed since the run", cause) for cause in causes if cause)
    for process in processes:
        process.communicate(timeout=200)


def tell(processes: list[subprocess.Popen[str]], folder: Path) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{folder}\n")
        process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "it ended"
    return line.strip()


def test_what_a_process_left_that_was_killed_as_it_began_is_named(make_store: MakeStore, tmp_path: Path) -> None:
    config = RunConfig(features=str(make_store(videos=16)), methods=("ridge",), seeds=2, folds=2)
    _begin(open_run(config, tmp_path / "run").grid, tmp_path / "run", "cpu", None)
    (tmp_path / "run" / "config.json").unlink()
    other = open_run(config.model_copy(update={"seeds": 3}), tmp_path / "run")
    with pytest.raises(UsageError, match="a run with other settings begins in") as caught:
        _begin(other.grid, tmp_path / "run", "cpu", None)
    assert f"remove {tmp_path / 'run' / 'data.json'}" in caught.value.fix
    (tmp_path / "run" / "data.json").unlink()
    _begin(other.grid, tmp_path / "run", "cpu", None)


def test_who_finds_the_file_of_another_half_written_waits_for_it(make_store: MakeStore, tmp_path: Path) -> None:
    """As on a file system without hard links."""
    config = RunConfig(features=str(make_store(videos=16)), methods=("ridge",), seeds=2, folds=2)
    grid = open_run(config, tmp_path / "first").grid
    _begin(grid, tmp_path / "first", "cpu", None)
    whole, file = (tmp_path / "first" / "data.json").read_text(), tmp_path / "second" / "data.json"
    file.parent.mkdir()
    file.write_text(whole[:20])
    other = threading.Timer(0.5, file.write_text, [whole])
    other.start()
    _begin(grid, tmp_path / "second", "cpu", None)
    other.join()
    assert files(tmp_path / "second") == files(tmp_path / "first")


@pytest.mark.slow
def test_the_same_part_twice_at_the_same_time_does_no_harm(make_store: MakeStore, tmp_path: Path) -> None:
    """As where a node that was given up goes on: every save of one is a save of the other too."""
    common = ["--features", make_store(videos=16), "--method", "aa", "--seeds", 2, "--folds", 2, "--epochs", 150,
              "--set", "save_every=0", *SMALL]  # fmt: skip
    out = tmp_path / "run"
    twins = [started([*common, "--out", out, "--shard", "1/1"]) for _ in range(2)]
    for process in twins:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said
    told([], out)
    aqa_train(*common, "--out", tmp_path / "whole")
    assert files(out) == files(tmp_path / "whole")


def test_a_half_written_file_goes_once_it_is_old(make_store: MakeStore, tmp_path: Path) -> None:
    common = ["--features", make_store(videos=16), "--method", "aa", "--seeds", 1, "--folds", 2, "--epochs", 1, *SMALL]
    folder = tmp_path / "run/models/aa/fold0-seed0"
    aqa_train(*common, "--out", tmp_path / "run")
    (folder / "result.json").unlink()
    young, old = (folder / f".state.safetensors.{n}.partial" for n in ("young", "old"))
    for left in (young, old):
        left.write_bytes(b"half")
    os.utime(old, (time.time() - ABANDONED - 60,) * 2)
    aqa_train("--resume", tmp_path / "run", "--jobs", 1, "--device", "cpu")
    assert (young.exists(), old.exists()) == (True, False)


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("environment.json", "copy the run folder again"),
        ("data.json", "restore it"),
        ("splits/fold1-seed0.json", "take the file as it was saved"),
        ("models/ridge/fold1-seed0/result.json", "does this training again"),
        ("models/ridge/fold0-seed0/failed.json", "tries that method again"),
    ],
)
def test_a_damaged_file_of_the_run_is_named(make_store: MakeStore, tmp_path: Path, name: str, fix: str) -> None:
    common = ["--features", make_store(videos=16), "--method", "ridge", "--seeds", 1, "--folds", 2, *SMALL[-4:]]
    out = tmp_path / "run"
    aqa_train(*common, "--out", out, "--shard", "1/1")
    damaged = out / name
    if damaged.name == "failed.json":
        damaged.with_name("result.json").rename(damaged)
    for text in (damaged.read_bytes()[:-9], b""):
        damaged.write_bytes(text)
        with pytest.raises(UsageError, match=re.escape(str(damaged))) as caught:
            told([], out)
        assert fix in caught.value.fix


def test_a_part_that_is_told_to_stop_names_the_command_of_its_part(make_store: MakeStore, tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ["--features", make_store(videos=20), "--method", "s4aqa", "--seeds", 2, "--folds", 2, "--epochs", 5000]
    process = started([*common, *HIDING, *SMALL, "--out", out, "--shard", "2/2"])
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("epochs"):
        assert line, "it ended before it trained"
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 143
    assert f"aqa-train --resume {out} --shard 2/2" in said
    assert len(list(out.rglob("state.safetensors"))) == 1


def test_methods_that_fail_are_left_out_whichever_part_they_failed_in(make_store: MakeStore, tmp_path: Path) -> None:
    common = ["--features", make_store(videos=24), "--method", "aa,s4aqa,ridge", "--seeds", 2, "--folds", 2]
    common += ["--epochs", 2, "--set", "aa.lr=1e30", *HIDING, *SMALL]
    (tmp_path / "c.toml").write_text("leave_out = true\n")
    common += ["--config", tmp_path / "c.toml"]
    whole, out, lacking = tmp_path / "whole", tmp_path / "parts", list[dict[str, Any]]()

    def code(*arguments: object) -> int:
        return app([*map(str, common), *map(str, arguments)], standalone_mode=False) or 0

    assert code("--out", whole) == 3
    assert [code("--out", out, "--shard", f"{i}/2") for i in (1, 2)] == [3, 3]
    assert len(list(out.rglob("failed.json"))) == 2
    # Its other trainings are not missing: they are not tried in one process either.
    with pytest.raises(typer.Exit) as end:
        told(lacking, out)
    assert (end.value.exit_code, lacking) == (3, [])
    left = [json.loads((run / "metrics.json").read_text())["left_out"] for run in (whole, out)]
    assert left[0][0]["why"].replace(str(whole), str(out)) == left[1][0]["why"]
    for name in ("results.csv", "scores.csv", "predictions.csv"):
        assert files(out)[name] == files(whole)[name]
    # What failed is tried again, as by one process.
    assert app(["--resume", str(out), "--jobs", "1", "--device", "cpu"], standalone_mode=False) == 3


def opened(store: Path, **settings: Any) -> list[Any]:
    return jobs_of(open_run(RunConfig(features=str(store), **settings), Path("runs/never")).grid, Path("runs/never"))


@pytest.mark.parametrize("count", [1, 2, 3, 5, 24, 40])
def test_every_part_has_as_many_of_each_method(make_store: MakeStore, count: int) -> None:
    jobs = opened(make_store(videos=24), methods=("s4aqa", "aa", "ridge"), labelled=(0.4, 0.8), seeds=2, folds=2)
    parts = [part_of(jobs, (i, count)) for i in range(1, count + 1)]
    assert sorted(j.name for part in parts for j in part) == sorted(j.name for j in jobs)
    sizes = [Counter(j.training.method for j in part) for part in parts]
    # Those of one labelled fraction take equally long, and are dealt one to each.
    for method in ("s4aqa", "aa"):
        assert max(s[method] for s in sizes) - min(s[method] for s in sizes) <= 2
    long = [s["s4aqa"] + s["aa"] for s in sizes]
    assert max(long) - min(long) <= 1
    # In the order in which one process trains.
    assert all([j.name for j in jobs if j in part] == [j.name for j in part] for part in parts)


def test_long_trainings_are_parted_before_short_ones() -> None:
    # 8 + 1 + 1 and 5 + 5, which alternating would not give.
    assert [dealt([1, 8, 5, 5, 1].__getitem__, "abcde", i, 2) for i in (1, 2)] == [[0, 1, 4], [2, 3]]


def test_what_is_missing_of_a_mistyped_number_of_parts_is_found_at_once(make_store: MakeStore, tmp_path: Path) -> None:
    jobs = opened(make_store(videos=16), methods=("ridge",), seeds=2, folds=2)
    rows = missing(jobs, tmp_path, 10**15)
    assert [row["shard"] for row in rows] == [(i, 10**15) for i in range(1, 5)]
    assert sorted(name for row in rows for name in row["ids"]) == sorted(job.name for job in jobs)


def test_without_parts_the_command_is_that_of_all(make_store: MakeStore, tmp_path: Path) -> None:
    jobs = opened(make_store(videos=16), methods=("aa",), seeds=1, folds=2)
    (row,) = missing(jobs, tmp_path / "a run", None)
    assert row["command"] == f"aqa-train --resume '{tmp_path / 'a run'}'"
    assert row["ids"] == ["aa/fold0-seed0", "aa/fold1-seed0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "1/2"], "--shard needs the folder"),
        (["--shard", "3/2", "--out", "r"], "give part/parts"),
        (["--shard", "auto", "--out", "r"], "no scheduler says which part"),
    ],
)
def test_a_part_that_cannot_be_is_refused(
    make_store: MakeStore, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_ARRAY_TASK_ID", "JOB_COMPLETION_INDEX"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match=message):
        aqa_train("--features", make_store(videos=8), *options)


def test_a_dry_run_tells_of_its_part(make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--features", make_store(videos=16), "--method", "aa", "--seeds", 3, "--folds", 2, "--epochs", 1, *SMALL]
    aqa_train(*common, "--out", tmp_path / "run", "--shard", "1/4", "--dry-run")
    assert "2 trainings (this part of 6): aa of 1 epoch ×" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
