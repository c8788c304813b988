"""Trainings by Dask workers: the same results, whatever becomes of workers, scheduler and client."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.clusters import Cluster, dask, unable_to_write, wait_until, without

from .conftest import MakeStore
from .runs import FAST, HELD, HIDING, aqa_train, files, started

GRID = ["--method", "aa,s4aqa,ridge", "--labelled", "0.4,0.8", "--seeds", 2, "--folds", 2, "--epochs", 6, *FAST]
LONG = ["--method", "s4aqa", "--seeds", 2, "--epochs", 600, "--set", "save_every=0.1", *HIDING, *HELD]
ENDLESS = ["--method", "s4aqa", "--seeds", 2, "--epochs", 100000, *HIDING, *HELD]


@pytest.fixture(scope="module")
def whole(make_store_once: MakeStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[object], dict[str, Any]]:
    """A run that takes a while, and what one process that nothing disturbed gives."""
    common, out = ["--features", make_store_once(videos=20), *LONG], tmp_path_factory.mktemp("whole") / "run"
    ended(started([*common, "--out", out, "--jobs", 1]), 0)
    return common, files(out)


def ended(process: subprocess.Popen[str], code: int) -> str:
    """What it said."""
    _, said = process.communicate(timeout=200)
    assert process.returncode == code, said
    assert "Traceback" not in said
    return " ".join(said.split())


def saved(out: Path) -> list[Path]:
    return list(out.rglob("state.safetensors"))


def at_work(cluster: Cluster) -> list[str]:
    """Workers that train."""
    tasks = cluster.client.processing()
    return [worker for worker, keys in tasks.items() if any(str(key).startswith("train_there") for key in keys)]


def assert_nothing_is_left(cluster: Cluster, out: Path) -> None:
    wait_until(lambda: cluster.tasks == 0)
    assert not list(out.glob(".session*"))


def test_two_workers_give_what_one_process_gives(make_store: MakeStore, two: Cluster, tmp_path: Path) -> None:
    common = ["--features", make_store(videos=24), *GRID]
    said = ended(started([*common, "--out", tmp_path / "run", "--scheduler", two.file]), 0)
    assert f"Dask scheduler {two.address}" in said
    assert "epochs: 104/104" in said
    assert_nothing_is_left(two, tmp_path / "run")
    aqa_train(*common, "--out", tmp_path / "whole", "--jobs", 1)
    assert files(tmp_path / "run") == files(tmp_path / "whole")
    assert json.loads((tmp_path / "run/environment.json").read_text())["device"] == "cpu"
    # Nothing is left to do, so that no cluster is needed.
    ended(started(["--resume", tmp_path / "run", "--scheduler", "tcp://127.0.0.1:1"]), 0)


@pytest.mark.slow
def test_a_part_is_trained_by_workers_of_our_own(make_store: MakeStore, tmp_path: Path) -> None:
    common = ["--features", make_store(videos=24), "--method", "aa", "--seeds", 2, "--folds", 2, "--epochs", 2, *FAST]
    out = tmp_path / "run"
    said = ended(started([*common, "--out", out, "--shard", "1/2", "--scheduler", "local:1"]), 0)
    assert "part 1 of 2, 2 trainings of 4, is done" in said
    assert len(list(out.rglob("result.json"))) == 2
    aqa_train(*common, "--out", out, "--jobs", 1)
    aqa_train(*common, "--out", tmp_path / "whole", "--jobs", 1)
    assert files(out) == files(tmp_path / "whole")


def test_a_killed_worker_costs_what_it_did_since_its_last_save(
    whole: tuple[list[object], dict[str, Any]], two: Cluster, tmp_path: Path
) -> None:
    (common, expected), out = whole, tmp_path / "run"
    pids = two.client.run(os.getpid)
    process = started([*common, "--out", out, "--scheduler", two.address])
    # Each that trains has saved; the other worker may be late, or be done.
    wait_until(lambda: 0 < len(at_work(two)) <= len(saved(out)))
    os.kill(pids[at_work(two)[0]], signal.SIGKILL)
    said = ended(process, 0)
    assert "lost its worker, and goes on from its last save on another" in said
    assert "epochs: 1200/1200" in said
    assert files(out) == expected
    wait_until(lambda: len(two.client.nthreads()) == 2)


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_has_the_workers_save(
    number: signal.Signals, code: int, whole: tuple[list[object], dict[str, Any]], two: Cluster, tmp_path: Path
) -> None:
    (common, expected), out = whole, tmp_path / "run"
    process = started([*common, "--out", out, "--scheduler", two.address])
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("epochs"):
        assert line, "it ended before it trained"
    process.send_signal(number)
    said = ended(process, code)
    assert "every training saved where it stands" in said
    assert f"aqa-train --resume {out}" in said
    assert saved(out)
    assert_nothing_is_left(two, out)
    ended(started(["--resume", out, "--scheduler", two.address]), 0)
    assert files(out) == expected


def test_what_a_killed_client_began_is_saved_and_ends(make_store: MakeStore, two: Cluster, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = started(["--features", make_store(videos=20), *ENDLESS, "--out", out, "--scheduler", two.address])
    assert process.stderr is not None
    while not process.stderr.readline().startswith("epochs"):
        assert process.poll() is None
    process.kill()
    process.communicate()
    wait_until(lambda: two.tasks == 0)
    # Workers of one thread each, which are free again.
    asked = [two.client.submit(pow, 2, n, workers=[worker]) for n, worker in enumerate(two.client.nthreads())]
    assert [future.result(timeout=60) for future in asked] == [1, 2]
    assert saved(out)


def test_a_worker_that_is_told_to_end_saves(make_store: MakeStore, tmp_path: Path) -> None:
    """As by a batch system, or a cluster that shrinks: half a minute later it is killed."""
    out = tmp_path / "run"
    with dask(tmp_path) as cluster:
        cluster.worker()
        process = started(["--features", make_store(videos=20), *ENDLESS, "--out", out, "--scheduler", cluster.address])
        assert process.stderr is not None
        while not process.stderr.readline().startswith("epochs"):
            assert process.poll() is None
        assert not saved(out)
        cluster.processes[-1].terminate()
        wait_until(lambda: saved(out), 20)
        cluster.processes[-1].wait(20)
        process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
def test_a_signal_to_every_process_has_workers_of_our_own_save(
    number: signal.Signals, code: int, make_store: MakeStore, tmp_path: Path
) -> None:
    """Terminals and batch systems send it to the whole group."""
    out = tmp_path / "run"
    options = ["--features", make_store(videos=20), *ENDLESS, "--out", out, "--scheduler", "local:2"]
    process = started(options, start_new_session=True)
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("epochs"):
        assert line, "it ended before it trained"
    os.killpg(process.pid, number)
    assert "every training saved where it stands" in ended(process, code)
    assert saved(out)
    wait_until(lambda: subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True).stdout == b"")


@pytest.mark.slow
def test_methods_that_fail_are_left_out_as_by_one_process(make_store: MakeStore, two: Cluster, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("leave_out = true\n")
    common = ["--features", make_store(videos=24), "--method", "aa,s4aqa,ridge", "--seeds", 2, "--folds", 2]
    common += ["--epochs", 2, "--set", "aa.lr=1e30", *HIDING, *FAST, "--config", tmp_path / "c.toml"]
    out, whole = tmp_path / "run", tmp_path / "whole"
    said = ended(started([*common, "--out", out, "--scheduler", two.address]), 3)
    assert "failed, and not in the table: aa" in said
    ended(started([*common, "--out", whole, "--jobs", 1]), 3)
    (left,), (expected,) = (json.loads((f / "metrics.json").read_text())["left_out"] for f in (out, whole))
    assert (left["method"], left["failed"]) == (expected["method"], expected["failed"]) == ("aa", True)
    for name in ("results.csv", "scores.csv", "predictions.csv"):
        assert files(out)[name] == files(whole)[name]


def test_what_was_named_and_fails_ends_the_run(make_store: MakeStore, two: Cluster, tmp_path: Path) -> None:
    """As in one process: with the same code, for the same reason; what is at work besides is saved."""
    common = ["--features", make_store(videos=24), "--method", "s4aqa", "--set", "lr=1e30", "--epochs", 2, *HELD]
    errors = []
    for options in (["--scheduler", two.address], ["--jobs", 1]):
        process = started([*common, "--out", tmp_path / "run", *options])
        _, said = process.communicate(timeout=200)
        assert "Traceback" not in said
        errors.append((process.returncode, said[said.index("error:") :].split(":")[1]))
    assert errors[0] == errors[1]
    assert errors[0][0] == 2
    wait_until(lambda: two.tasks == 0)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        pytest.param(
            ["--scheduler", "tcp://127.0.0.1:1"],
            5,
            "no Dask scheduler answers at tcp://127.0.0.1:1",
            marks=pytest.mark.slow,
        ),
        (["--scheduler", "none.json"], 5, "neither an address nor a file that a scheduler wrote"),
        (["--scheduler", "host:8786"], 2, "tcp://host:8786"),
        (["--scheduler", "local:2", "--jobs", 2], 2, "--jobs does nothing with --scheduler"),
        (["--scheduler", "local:2", "--dry-run"], 2, "--dry-run does nothing with --scheduler"),
        (["--scheduler-wait", 5], 2, "--scheduler-wait does nothing without --scheduler"),
    ],
)
def test_a_cluster_that_cannot_be_used(
    options: list[object], code: int, message: str, make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(videos=8)
    common = ["--features", store, "--method", "aa", *HELD, "--out", tmp_path / "run"]
    assert message in ended(started([*common, *options]), code)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("hidden", ["runs", "stores"])
def test_a_worker_that_does_not_see_the_run_or_the_store_is_named(
    hidden: str, make_store: MakeStore, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "stores").mkdir()
    store = make_store(videos=12, name="stores/feats.zarr")
    out = tmp_path / "runs" / "one"
    common = ["--features", store, "--method", "aa", "--epochs", 2, "--seeds", 1, *HELD, "--out", out]
    with dask(tmp_path) as cluster:
        cluster.worker(before=without(tmp_path / hidden))
        said = ended(started([*common, "--scheduler", cluster.address, "--scheduler-wait", 2]), 5)
        missing = f"there is no {store} there" if hidden == "stores" else f"{out} is not the run folder there"
        assert "worker tcp://127.0.0.1:" in said
        assert missing in said
        assert "keep the run folder, features and tables where all machines see them" in said
        # One that sees everything does the work.
        cluster.worker()
        ended(started([*common, "--scheduler", cluster.address]), 0)
    aqa_train(*common[:-1], tmp_path / "whole", "--jobs", 1)
    assert files(out) == files(tmp_path / "whole")


@pytest.mark.slow
def test_a_worker_that_cannot_write_the_run_is_named_before_it_trains(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    out = tmp_path / "runs" / "one"
    common = ["--features", make_store(videos=12), "--method", "aa", "--epochs", 2, "--seeds", 1, *HELD, "--out", out]
    with dask(tmp_path) as cluster:
        cluster.worker(before=unable_to_write(tmp_path / "runs"))
        said = ended(started([*common, "--scheduler", cluster.address, "--scheduler-wait", 2]), 6)
        assert f"cannot write {out}: Read-only file system" in said
        assert "mount it there so that it can be written" in said
        assert not (out / "models").exists()


@pytest.mark.slow
def test_the_documented_commands_train(make_store: MakeStore, tmp_path: Path) -> None:
    """As they stand in docs/cluster.md, but for the number of epochs."""
    documented = (Path(__file__).resolve().parents[2] / "docs/cluster.md").read_text()
    (block,) = (b for b in re.findall(r"```bash\n(.*?)```", documented, re.DOTALL) if "local:2" in b and "train" in b)
    make_store(videos=24)
    script = "trap 'kill $(jobs -p); wait' EXIT\nset -e\n" + block.replace(
        "aqa-train", "wait_for_it; aqa-train"
    ).replace("--method aa,s4aqa", "--method aa,s4aqa --epochs 2")
    script = "wait_for_it() { for i in $(seq 600); do test -e dask.json && return; sleep 0.1; done; false; }\n" + script
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs/grid").rglob("result.json"))) == 16
    assert {p.parent.parent.name for p in (tmp_path / "runs/ridge").rglob("result.json")} == {"ridge"}
    assert (tmp_path / "runs/grid/results.csv").exists()
