"""aqa-train on real stores, from the command line to the run folder and back by its checkpoint."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.shims import NO_SEMAPHORES, needs_shims, shim

from aqa_shared.errors import AqaError, EnvironmentFault, StoreError, UsageError
from aqa_shared.records import Sampling
from aqa_shared.store import FeatureStore
from aqa_train.cli import app
from aqa_train.config import resolve
from aqa_train.experiment import place, prepare
from aqa_train.metrics import spearman
from aqa_train.predict import load_checkpoint, open_ensemble
from aqa_train.signals import TERMINATING, asked_to_stop
from aqa_train.splits import Split

from .conftest import MakeStore

FAST = ["--set", "widths=8,8", "--set", "batch=8", "--device", "cpu"]
HIDING = ["--labelled", 0.4]
"""Every video of most stores here has a score; this leaves some to learn from without it."""
HELD = [*FAST, "--test-fraction", "0.25"]
"""One test set, where nothing else says who is tested: for what is not about folds."""


def aqa_train(*arguments: object) -> None:
    app([str(a) for a in arguments], standalone_mode=False)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def finished(make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run of two methods, two seeds and two folds, with validation videos."""
    store = make_store(videos=30, labels=[{"difficulty": 2.0 + i % 5} for i in range(30)])
    out = tmp_path / "run"
    aqa_train("--features", store, "--method", "aa,s4aqa", "--labelled", 0.6, "--seeds", 2, "--folds", 2,
              "--epochs", 3, "--validation", 0.3, "--out", out, "--jobs", 1, *FAST)  # fmt: skip
    return out


def test_run_folder_is_complete(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = capsys.readouterr().out
    for word in ("aa", "s4aqa", "ridge", "mean score", "difficulty only", "best on val.", "Spearman"):
        assert word in shown
    for name in ("config.toml", "config.json", "environment.json", "metrics.csv", "losses.csv"):
        assert (finished / name).stat().st_size > 0
    for name in ("scatter", "curves", "methods"):
        assert (finished / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (finished / "plots" / f"{name}.svg").read_text()
    text = (finished / "metrics.json").read_text()
    assert "NaN" not in text
    summary = json.loads(text)
    assert summary["protocol"]["uses_difficulty"] is False
    assert {(r["method"], r["selection"]) for r in summary["rows"]} == {
        ("aa", "last"),
        ("aa", "best-on-validation"),
        ("s4aqa", "last"),
        ("s4aqa", "best-on-validation"),
        ("mean score", "baseline"),
        ("ridge", "baseline"),
        ("difficulty only", "baseline"),
    }
    assert next(r for r in summary["rows"] if r["method"] == "mean score")["spearman"]["mean"] is None
    environment = json.loads((finished / "environment.json").read_text())
    assert environment["torch"]
    assert environment["device"] == "cpu"
    assert len(read_csv(finished / "losses.csv")) == 2 * 2 * 2 * 3
    assert not list(finished.rglob("state.safetensors"))
    assert not list(finished.rglob("*.partial"))


def test_predictions_give_the_metrics(finished: Path) -> None:
    rows = read_csv(finished / "predictions.csv")
    runs = json.loads((finished / "metrics.json").read_text())["runs"]
    for run in runs:
        for selection, measured in run["metrics"].items():
            mine = [
                (float(r["predicted"]), float(r["true"]))
                for r in rows
                if (r["method"], r["selection"], int(r["fold"]), int(r["seed"]))
                == (run["method"], selection, run["fold"], run["seed"])
            ]
            assert len(mine) == measured["n"] == 15
            assert spearman(*zip(*mine, strict=True)) == pytest.approx(measured["spearman"])  # type: ignore[misc]
    for r in rows:
        assert float(r["residual"]) == pytest.approx(float(r["predicted"]) - float(r["true"]))


def test_splits_are_saved_and_paired_over_methods(finished: Path) -> None:
    summary = json.loads((finished / "metrics.json").read_text())
    files = sorted((finished / "splits").glob("*.json"))
    assert len(files) == 4
    for file in files:
        split = Split.load(file)
        assert summary["protocol"]["splits_sha256"][file.stem] == split.digest
        roles = [split.labelled, split.unlabelled, split.validation, split.test]
        assert sum(map(len, roles)) == 30
        assert len(set().union(*roles)) == 30
    digests = {(r["fold"], r["seed"]): set() for r in summary["runs"] if "split_sha256" in r}
    for r in summary["runs"]:
        if "split_sha256" in r:
            digests[r["fold"], r["seed"]].add(r["split_sha256"])
    assert all(len(d) == 1 for d in digests.values())


def test_checkpoint_scores_as_the_run_did(finished: Path, make_store: MakeStore) -> None:
    store = FeatureStore.open(json.loads((finished / "config.json").read_text())["features"])
    folder = finished / "models" / "s4aqa" / "fold1-seed0"
    model = load_checkpoint(folder)
    scores = dict(zip(store.ids, model.score(store), strict=True))
    result = json.loads((folder / "result.json").read_text())
    np.testing.assert_allclose([scores[i] for i in result["ids"]], result["predicted"]["last"], rtol=1e-4)
    arrays = {"rgb": np.stack([store.video(i, "rgb") for i in result["ids"]])}
    np.testing.assert_allclose(model.score(arrays), result["predicted"]["last"], rtol=1e-4)
    assert model.settings == store.settings
    assert model.weights == {"rgb": {"sha256": "a" * 64}}
    if result["best_epoch"] != 3:
        assert load_checkpoint(folder / "best.safetensors").meta["epoch"] == result["best_epoch"]


def test_checkpoint_refuses_other_features(finished: Path, make_store: MakeStore) -> None:
    model = load_checkpoint(finished / "models" / "aa" / "fold0-seed0")
    with pytest.raises(StoreError, match=r"rgb weights: trained on aaaa.*given bbbb"):
        model.score(FeatureStore.open(make_store(videos=3, name="b.zarr", digest="b" * 64)))
    other = model.settings.model_copy(update={"sampling": Sampling(segments=7)})  # type: ignore[union-attr]
    with pytest.raises(StoreError, match=r"sampling\.segments: trained on 4, given 7"):
        model.refuse_other_features(other, model.weights)
    # Streams it does not use may differ.
    more = model.settings.model_copy(update={"streams": ("rgb", "flow"), "logits": True})  # type: ignore[union-attr]
    model.refuse_other_features(more, {**model.weights, "flow": {"sha256": "c" * 64}})
    with pytest.raises(UsageError, match="rgb"):
        model.score({"flow": np.zeros((1, 4, 16))})
    with pytest.raises(UsageError, match=r"\(1, 4, 15\)"):
        model.score({"rgb": np.zeros((1, 4, 15))})


def test_damaged_and_foreign_checkpoints_are_refused(finished: Path, tmp_path: Path) -> None:
    good = (finished / "models" / "aa" / "fold0-seed0" / "last.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for n in (0, 7, 100, len(good) // 2, len(good) - 1):
        cut.write_bytes(good[:n])
        with pytest.raises(UsageError, match="not a whole"):
            load_checkpoint(cut)
    pickled = tmp_path / "model.pt"
    pickled.write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UsageError, match="not a whole"):
        load_checkpoint(pickled)
    from safetensors.numpy import save_file

    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": np.zeros(2)}, foreign)
    with pytest.raises(UsageError, match="not written by aqa-train"):
        load_checkpoint(foreign)
    header = {"format": 99, "kind": "model"}
    save_file({"x": np.zeros(2)}, foreign, metadata={"aqa": json.dumps(header)})
    with pytest.raises(UsageError, match="format 99"):
        load_checkpoint(foreign)
    with pytest.raises(UsageError, match="no finished training"):
        open_ensemble(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        load_checkpoint(tmp_path / "none.safetensors")


def results(out: Path) -> dict[str, Any]:
    found = {}
    for file in sorted(out.glob("models/*/*/result.json")):
        record = json.loads(file.read_text())
        record.pop("seconds")
        found[str(file.relative_to(out))] = record
        weights = file.with_name("last.safetensors")
        found[str(weights.relative_to(out))] = weights.read_bytes()
    return found


def test_jobs_give_the_results_of_one_after_the_other(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=16)
    common = ["--features", store, "--method", "s4aqa", "--seeds", 3, "--epochs", 2, *HIDING, *HELD]
    aqa_train(*common, "--out", tmp_path / "one", "--jobs", 1)
    aqa_train(*common, "--out", tmp_path / "two", "--jobs", 2)
    assert len(results(tmp_path / "one")) == 6
    assert results(tmp_path / "one") == results(tmp_path / "two")


@needs_shims
def test_jobs_need_no_semaphores(make_store: MakeStore, tmp_path: Path) -> None:
    """Which a missing, full or read-only /dev/shm takes away."""
    store = make_store(videos=16)
    common = ["--features", str(store), "--seeds", "2", "--epochs", "2", *FAST]
    aqa_train(*common, "--out", tmp_path / "one", "--jobs", 1)
    command = [sys.executable, "-m", "aqa_train.cli", *common, "--out", str(tmp_path / "two"), "--jobs", "2"]
    environment = {**os.environ, "LD_PRELOAD": shim(tmp_path / "shim", NO_SEMAPHORES)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "serial mode" not in done.stderr
    assert results(tmp_path / "one") == results(tmp_path / "two")


@pytest.mark.parametrize(
    ("jobs", "stopped_by", "code"), [(1, signal.SIGTERM, 143), (1, signal.SIGUSR1, 143), (2, signal.SIGINT, 130)]
)
def test_signals_save_and_resuming_gives_the_same(
    make_store: MakeStore, tmp_path: Path, jobs: int, stopped_by: signal.Signals, code: int
) -> None:
    store = make_store(videos=20)
    common = ["--features", store, "--seeds", 2, "--epochs", 300, "--jobs", jobs, *HIDING, *HELD]
    for attempt in range(5):
        cut = tmp_path / f"cut{attempt}"
        command = [sys.executable, "-m", "aqa_train.cli", *map(str, common), "--out", str(cut)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stderr is not None
        # The first progress line says that training has begun.
        while not (line := process.stderr.readline()).startswith("epochs"):
            assert line, "it ended before it trained"
        process.send_signal(stopped_by)
        _, rest = process.communicate(timeout=120)
        if process.returncode != 0 and any(cut.rglob("state.safetensors")):
            break  # else a training was just over when the signal came: a busy machine
    assert process.returncode == code, rest
    assert f"aqa-train --resume {cut}" in rest.replace("\n", "")
    # A second process may not have begun yet.
    assert 1 <= len(list(cut.rglob("state.safetensors"))) <= jobs
    aqa_train("--resume", cut, "--jobs", 1, "--device", "cpu")
    aqa_train(*common, "--out", tmp_path / "whole", "--jobs", 1)
    assert results(cut) == results(tmp_path / "whole")
    assert (cut / "metrics.json").exists()


@pytest.mark.parametrize("number", TERMINATING)
def test_signals_may_come_twice_and_a_second_ctrl_c_acts_at_once(number: signal.Signals) -> None:
    with asked_to_stop() as stop:
        assert stop() == 0
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop() == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("number", TERMINATING)
def test_a_signal_to_every_process_at_once_loses_nothing(
    make_store: MakeStore, tmp_path: Path, number: signal.Signals
) -> None:
    """Batch systems signal the whole group, so a worker hears it twice; wide networks take a moment to save."""
    wide = ["--set", "widths=1024,1024", "--set", "batch=8", "--device", "cpu", "--test-fraction", "0.25"]
    common = ["--features", make_store(videos=20), "--seeds", 2, "--epochs", 12, *wide]
    cut = tmp_path / "cut off"
    command = [sys.executable, "-m", "aqa_train.cli", *map(str, common), "--jobs", "2", "--out", str(cut)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("epochs"):
        assert line, "it ended before it trained"
    os.killpg(process.pid, number)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 143, rest
    said = " ".join(rest.split())
    assert "every training saved where it stands" in said
    assert f"aqa-train --resume '{cut}'" in said
    # A second process may not have begun yet.
    assert any(cut.rglob("state.safetensors"))
    aqa_train("--resume", cut, "--jobs", 1, "--device", "cpu")
    aqa_train(*common, "--out", tmp_path / "whole", "--jobs", 1)
    assert results(cut) == results(tmp_path / "whole")


def two_at_a_time(store: Path, out: Path) -> subprocess.Popen[str]:
    """A long run of two processes, one of which trains by now."""
    options = ["--features", store, "--seeds", 2, "--epochs", 5000, "--out", out, "--jobs", 2, *HIDING, *HELD]
    command = [sys.executable, "-m", "aqa_train.cli", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("epochs"):
        assert line, "it ended before it trained"
    return process


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes in /proc")
def test_work_that_was_lost_is_not_said_to_be_saved(make_store: MakeStore, tmp_path: Path) -> None:
    process = two_at_a_time(make_store(videos=20), tmp_path / "run")
    # The parent is held, so that it sees both signals only when one of its processes is gone.
    process.send_signal(signal.SIGSTOP)
    killed = worker_ids(process.pid)[0]
    os.kill(killed, signal.SIGKILL)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 143, rest
    said = " ".join(rest.split())
    assert "saved where it stands" not in said
    assert "code -9, and what it did since its last save is lost: s4aqa/fold0-seed0" in said


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes in /proc")
def test_a_process_that_is_told_alone_ends_the_run(make_store: MakeStore, tmp_path: Path) -> None:
    """Its parent must not go on with its part by itself, deaf and without a word."""
    process = two_at_a_time(make_store(videos=20), tmp_path / "run")
    for worker in worker_ids(process.pid):
        os.kill(worker, signal.SIGUSR1)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 143, rest
    assert "every training saved where it stands" in " ".join(rest.split())
    assert any((tmp_path / "run").rglob("state.safetensors"))


@pytest.mark.parametrize("number", TERMINATING)
def test_a_signal_before_or_after_training_ends_the_command_in_order(
    make_store: MakeStore, tmp_path: Path, number: signal.Signals
) -> None:
    """Sent by the process to itself at two places that no loop watches: on opening the store, on drawing."""
    program = """
import os, sys
from aqa_shared import console
from aqa_train import experiment, plots
from aqa_train.cli import app
module, name, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
before = getattr(globals()[module], name)
def told(*args):
    os.kill(os.getpid(), number)
    return before(*args)
setattr(globals()[module], name, told)
console.run(lambda: app(sys.argv[4:]))
"""
    options = ["--features", make_store(videos=12), "--method", "aa", "--seeds", 1, "--epochs", 1, "--jobs", 1, *FAST]
    for moment, fix in (("experiment prepare", "the same command again"), ("plots draw", "--resume")):
        told = [*moment.split(), int(number), *options, "--out", tmp_path / moment]
        done = subprocess.run([sys.executable, "-c", program, *map(str, told)], capture_output=True, text=True)
        assert done.returncode == 143, done.stderr
        assert fix in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes in /proc")
def test_a_second_ctrl_c_does_not_wait(make_store: MakeStore, tmp_path: Path) -> None:
    """A worker that stands still would never save, and its parent would wait for it."""
    process = two_at_a_time(make_store(videos=20), tmp_path / "run")
    workers = worker_ids(process.pid)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)  # one that came while Python ends would end it by the signal itself
    assert process.returncode == 130
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def worker_ids(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the worker processes in /proc")
@pytest.mark.parametrize("wait", [0.0, 0.7])
def test_ctrl_c_while_processes_start_is_no_error(make_store: MakeStore, tmp_path: Path, wait: float) -> None:
    """A terminal sends it to every process at once, also to those that still import."""
    options = ["--features", make_store(videos=12), "--out", tmp_path / "run", "--seeds", 2, "--jobs", 2, *HELD]
    command = [sys.executable, "-m", "aqa_train.cli", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while len(worker_ids(process.pid)) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(wait)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said


def test_resuming_with_other_settings_or_labels_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=16)
    out = tmp_path / "run"
    aqa_train("--features", store, "--seeds", 1, "--epochs", 2, "--out", out, "--jobs", 1, *HELD)
    aqa_train("--resume", out, "--seeds", 1)
    with pytest.raises(UsageError, match="seeds: 1 → 3"):
        aqa_train("--resume", out, "--seeds", 3)
    with pytest.raises(UsageError, match=r"training\.lr: 0\.0005 → 0\.1"):
        aqa_train("--resume", out, "--set", "lr=0.1")
    with pytest.raises(UsageError, match=r"training\.epochs"):
        aqa_train("--resume", out, "--epochs", 7)
    with pytest.raises(UsageError, match=r"already holds a run with other settings: .*seeds: 1 → 5"):
        aqa_train("--features", store, "--out", out)
    with pytest.raises(UsageError, match=r"--config .*c\.toml would be ignored"):
        aqa_train("--resume", out, "--config", tmp_path / "c.toml")
    saved = json.loads((out / "config.json").read_text())
    saved["features"] = str(make_store(videos=18, name="other.zarr"))
    (out / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UsageError, match=r"other\.zarr changed since the run"):
        aqa_train("--resume", out)
    with pytest.raises(UsageError, match=r"no config\.json"):
        aqa_train("--resume", tmp_path)


def test_a_run_and_its_store_may_be_moved(make_store: MakeStore, tmp_path: Path) -> None:
    old, new, apart = tmp_path / "old", tmp_path / "new", tmp_path / "apart.zarr"
    (old / "tables").mkdir(parents=True)
    shutil.move(make_store(videos=16), old / "feats.zarr")
    rows = [f"{i:03d}.mp4,{'test' if i < 4 else 'train'},{i}" for i in range(16)]
    (old / "tables" / "labels.csv").write_text("\n".join(["id,split,score", *rows]) + "\n")
    options = ["--method", "aa", "--labelled", 1, "--seeds", 2, "--epochs", 1, "--jobs", 1, *FAST]
    tables = ["--labels", old / "tables" / "labels.csv"]
    aqa_train("--features", old / "feats.zarr", *tables, "--out", old / "run", *options)
    whole = results(old / "run")

    def unfinish(run: Path) -> None:
        shutil.rmtree(run / "models" / "aa" / "fold0-seed1")

    unfinish(old / "run")
    shutil.move(old, new)
    aqa_train("--resume", new / "run", "--jobs", 1)
    assert results(new / "run") == whole
    assert json.loads((new / "run" / "config.json").read_text())["features"] == str(new / "feats.zarr")

    shutil.move(new / "feats.zarr", apart)
    with pytest.raises(UsageError, match=r"feats\.zarr, which the run .* is no longer there") as absent:
        aqa_train("--resume", new / "run")
    assert "--features" in absent.value.fix
    with pytest.raises(UsageError, match=r"other\.zarr changed since the run"):
        aqa_train("--resume", new / "run", "--features", make_store(videos=16, seed=1, name="other.zarr"))
    unfinish(new / "run")
    aqa_train("--resume", new / "run", "--features", apart, "--jobs", 1)
    assert results(new / "run") == whole
    unfinish(new / "run")
    tables = ["--labels", new / "tables" / "labels.csv"]
    aqa_train("--features", apart, *tables, "--out", new / "run", *options)
    assert results(new / "run") == whole


def test_resuming_ignores_the_environment(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    aqa_train(
        "--features", make_store(videos=16), "--seeds", 1, "--epochs", 1, "--out", out, "--jobs", 1, *HIDING, *HELD
    )
    for name, value in {"SEEDS": "4", "LR": "0.1", "NONSENSE": "1"}.items():
        monkeypatch.setenv(f"AQA_TRAIN_{name}", value)
    aqa_train("--resume", out, "--seeds", 1)
    assert len(list((out / "models" / "s4aqa").iterdir())) == 1


@pytest.mark.parametrize("change", [{"seed": 9}, {"scores": [float(90 - i) for i in range(16)]}])
def test_resuming_on_other_features_or_scores_of_the_same_videos_is_refused(
    make_store: MakeStore, tmp_path: Path, change: dict[str, Any]
) -> None:
    roles = [{"split": "test" if i < 4 else "train"} for i in range(16)]
    store = make_store(videos=16, labels=roles)
    out = tmp_path / "run"
    aqa_train("--features", store, "--labelled", 1, "--method", "aa", "--seeds", 1, "--epochs", 1, "--out", out, *FAST)
    shutil.rmtree(store)
    make_store(videos=16, labels=roles, **change)
    for again in (["--resume", out], ["--features", store, "--labelled", 1, "--method", "aa", "--seeds", 1,
                                      "--epochs", 1, "--out", out, *FAST]):  # fmt: skip
        with pytest.raises(UsageError, match=r"feats\.zarr changed since the run"):
            aqa_train(*again)


def test_resuming_with_other_labels_of_the_same_videos_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    store, labels = make_store(videos=12), tmp_path / "labels.csv"
    rows = [f"{i:03d},{'test' if i < 4 else 'train'}" for i in range(12)]
    labels.write_text("id,split,score\n" + "".join(f"{r},{i}\n" for i, r in enumerate(rows)))
    common = ["--features", store, "--labels", labels, "--labelled", 1, "--method", "aa", "--seeds", 1, "--epochs", 1]
    aqa_train(*common, "--out", tmp_path / "run", *FAST)
    labels.write_text("id,split,score\n" + "".join(f"{r},{i * 2}\n" for i, r in enumerate(rows)))
    with pytest.raises(UsageError, match="the labels file changed"):
        aqa_train("--resume", tmp_path / "run")


def test_the_same_command_goes_on_with_its_run_from_any_folder(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_store(videos=12)
    monkeypatch.chdir(tmp_path)
    command = ["--features", "feats.zarr", "--seeds", 2, "--epochs", 1, "--out", "run", "--jobs", 1, *HIDING, *HELD]
    aqa_train(*command)
    kept = (tmp_path / "run" / "models" / "s4aqa" / "fold0-seed0" / "result.json").stat().st_mtime_ns
    before = results(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "models" / "s4aqa" / "fold0-seed1")
    aqa_train(*command)
    assert "going on" in capsys.readouterr().err
    assert results(tmp_path / "run") == before
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    aqa_train("--resume", tmp_path / "run", "--features", tmp_path / "feats.zarr")
    assert (tmp_path / "run" / "models" / "s4aqa" / "fold0-seed0" / "result.json").stat().st_mtime_ns == kept


def test_a_run_cut_off_before_it_began_is_begun_again(make_store: MakeStore, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["--features", make_store(videos=12), "--method", "aa", "--seeds", 1, "--epochs", 1, "--out", out, *FAST]
    aqa_train(*command)
    # config.json is written last: without it nothing else may be believed.
    for name in os.listdir(out):
        if name not in ("splits", "data.json", "config.toml"):
            shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    aqa_train(*command)
    assert (out / "metrics.json").exists()


def test_a_folder_that_cannot_be_written_is_a_store_error(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file") as e:
        aqa_train("--features", make_store(videos=12), "--seeds", 1, "--out", tmp_path / "file" / "run", *HELD)
    assert e.value.exit_code == 6


def test_features_too_large_for_memory_are_an_environment_fault(make_store: MakeStore, tmp_path: Path) -> None:
    config = resolve(None, {"features": str(make_store(videos=12)), "methods": ("aa",)})
    experiment = prepare(config, lambda message: None)
    huge = dataclasses.replace(experiment.features, lengths=np.full(12, 2**46))
    with pytest.raises(EnvironmentFault, match="can't allocate memory") as e:
        place(dataclasses.replace(experiment, features=huge), torch.device("cpu"), "yes", 1)
    assert "--in-memory no" in e.value.fix


def test_networks_too_large_for_memory_are_an_environment_fault(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="can't allocate memory"):
        aqa_train("--features", make_store(videos=12), "--set", f"regressor_width={2**45}", "--out", tmp_path / "o")
    assert not (tmp_path / "o").exists()


def test_scoring_without_enough_memory_is_an_environment_fault(finished: Path) -> None:
    class Greedy(torch.nn.Module):
        def forward(self, x: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
            return torch.zeros(2**50)

    model = dataclasses.replace(load_checkpoint(finished / "models" / "aa" / "fold0-seed0"), network=Greedy())
    with pytest.raises(EnvironmentFault, match="can't allocate memory") as e:
        model.score({"rgb": np.ones((2, 4, 16), np.float32)})
    assert "fewer videos" in e.value.fix


def test_dry_run_writes_nothing(make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(videos=16)
    before = sorted(tmp_path.rglob("*"))
    aqa_train(
        "--features", store, "--seeds", 3, "--method", "aa,s4aqa", "--dry-run", "--out", tmp_path / "o", *HIDING, *HELD
    )
    shown = capsys.readouterr().out
    assert "6 training(s) of 1000 epochs" in shown
    assert "5 labelled, 7 unlabelled, 0 validation, 4 test" in shown
    assert f"run folder: {tmp_path / 'o'} (new)" in shown
    assert "time: about " in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_ends_as_the_run_would(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=16)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    options = ("--features", store, "--method", "aa", "--dry-run", *FAST)
    with pytest.raises(UsageError, match="is no run folder"):
        aqa_train(*options, "--out", tmp_path / "foreign")
    with pytest.raises(StoreError, match="Not a directory"):
        aqa_train(*options, "--out", tmp_path / "foreign" / "notes.txt" / "run")
    with pytest.raises(EnvironmentFault, match="cuda:9"):
        aqa_train(*options, "--out", tmp_path / "o", "--device", "cuda:9")


def test_the_methods_that_the_data_ask_for_are_printed(
    make_store: MakeStore, capsys: pytest.CaptureFixture[str]
) -> None:
    aqa_train("--features", make_store(videos=16), "--print-config")
    found = tomllib.loads(capsys.readouterr().out)
    assert found["methods"] == ["aa"]
    assert found["settings"]["kernel"] == 3


def test_the_part_that_is_held_out_is_an_option(make_store: MakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    aqa_train("--features", make_store(videos=20), "--method", "aa", "--test-fraction", 0.5, "--dry-run", *FAST)
    assert "10 test" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"test_fraction: .*less than 1"):
        aqa_train("--print-config", "--test-fraction", 1)


def test_print_config_needs_no_features(capsys: pytest.CaptureFixture[str]) -> None:
    aqa_train("--print-config", "--seeds", 2)
    shown = capsys.readouterr().out
    assert "seeds = 2" in shown
    assert "lr = 0.0005" in shown


def test_print_config_shows_the_files_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text('features = "mine.zarr"\n')
    aqa_train("--config", tmp_path / "run.toml", "--print-config")
    assert 'features = "mine.zarr"' in capsys.readouterr().out


def test_help_does_not_load_torch() -> None:
    code = "import sys, aqa_train.cli; print([m for m in ('torch', 'numpy', 'matplotlib', 'zarr') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_variable_lengths_and_two_streams_train(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=16, lengths=[4, 3, 2, 1] * 4, streams=("rgb", "flow"))
    aqa_train("--features", store, "--streams", "rgb,flow", "--seeds", 1, "--epochs", 2, "--out", tmp_path / "o", *HELD)
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
    aqa_train("--features", store, "--seeds", 1, "--epochs", 1, "--out", tmp_path / "o", *HELD)
    p = json.loads((tmp_path / "o" / "metrics.json").read_text())["protocol"]
    assert (p["labelled_fraction"], p["labelled"], p["unlabelled"], p["test"]) == (1.0, 9, 6, 3)


def test_the_stores_own_split_is_used(make_store: MakeStore, tmp_path: Path) -> None:
    roles = ["train"] * 10 + ["val"] * 3 + ["test"] * 5
    store = make_store(videos=18, labels=[{"split": r} for r in roles])
    aqa_train("--features", store, "--seeds", 1, "--epochs", 1, "--out", tmp_path / "o", *FAST)
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
    aqa_train("--features", store, "--split", file, "--labelled", 0.5, "--dry-run", *FAST)
    shown = capsys.readouterr()
    assert "4 labelled, 4 unlabelled, 0 validation, 2 test" in shown.out
    assert "nope" in shown.err
    file.write_text(json.dumps({"train": ["000.mp4", "001.mp4"], "test": ["001.mp4"]}))
    with pytest.raises(UsageError, match=r"in training and in test: 001\.mp4"):
        aqa_train("--features", store, "--split", file)


@pytest.mark.parametrize(
    ("options", "store", "error", "said"),
    [
        ([], {"scores": [None] * 12}, UsageError, "none of the 12 videos has a score"),
        ([], {"scores": [5.0] * 12}, UsageError, "nothing to tell apart"),
        ([], {"videos": 2}, UsageError, "too few"),
        (["--labelled", 0.001], {}, UsageError, "leaves 0 labelled"),
        (["--method", "s4aqa"], {}, UsageError, "there are none"),
        (["--folds", 20], {}, UsageError, "20 folds of 12"),
        (["--streams", "rgb,flow"], {}, UsageError, "holds the streams rgb"),
        (["--set", "masked=4", *HIDING], {}, UsageError, "cannot be hidden"),
        (["--group", "athlete", "--folds", 2], {}, UsageError, "athlete"),
        (["--device", "cuda:77"], {}, EnvironmentFault, "cuda:77"),
        (["--in-memory", "maybe"], {}, UsageError, "maybe"),
        (["--draw", "unifrm"], {}, UsageError, "unifrm"),
        (["--set", "kernel=4"], {}, UsageError, "kernel must be odd"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    make_store: MakeStore,
    tmp_path: Path,
    options: list[object],
    store: dict[str, Any],
    error: type[AqaError],
    said: str,
) -> None:
    path = make_store(**{"videos": 12, **store})
    with pytest.raises(error, match=said):
        aqa_train("--features", path, "--out", tmp_path / "o", *options)
    assert not (tmp_path / "o").exists()


def test_labelled_whole_works_without_unlabelled_for_aa(make_store: MakeStore, tmp_path: Path) -> None:
    aqa_train("--features", make_store(videos=12), "--method", "aa", "--labelled", 1, "--seeds", 1,
              "--epochs", 1, "--out", tmp_path / "o", *HELD)  # fmt: skip
    assert json.loads((tmp_path / "o" / "metrics.json").read_text())["protocol"]["unlabelled"] == 0


def test_the_largest_numbers_that_are_taken_end_in_a_result(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=12, scale=1e12, scores=[(-1) ** i * (1e12 - i) for i in range(12)])
    aqa_train("--features", store, "--seeds", 2, "--epochs", 2, *HIDING, "--out", tmp_path / "o", "--jobs", 1, *HELD)
    rows = json.loads((tmp_path / "o" / "metrics.json").read_text())["rows"]
    assert all(r["mae"]["mean"] < 1e14 for r in rows)


def test_a_constant_test_set_is_null(make_store: MakeStore, tmp_path: Path) -> None:
    roles = [{"split": "test" if i < 4 else "train"} for i in range(14)]
    store = make_store(videos=14, labels=roles, scores=[7.0] * 4 + [float(i) for i in range(10)])
    aqa_train("--features", store, "--seeds", 1, "--epochs", 1, "--out", tmp_path / "o", *FAST)
    summary = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert summary["rows"][0]["spearman"]["mean"] is None
    assert summary["rows"][0]["mae"]["mean"] > 0


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_whoever_may_read_the_folder_may_read_every_file(make_store: MakeStore, tmp_path: Path, umask: int) -> None:
    """A group's runs and stores lie on a shared disk: no file is more private than the umask makes it."""
    before = os.umask(umask)
    try:
        store = make_store(videos=16, pending=1)
        common = ["--features", store, "--validation", 0.3, "--labelled", 0.8, "--out", tmp_path / "run", "--jobs", 1]
        stopped = subprocess.Popen(
            [sys.executable, "-m", "aqa_train.cli", *map(str, [*common, "--epochs", 5000, "--seeds", 1, *HELD])],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert stopped.stderr is not None
        while not stopped.stderr.readline().startswith("epochs"):
            assert stopped.poll() is None
        stopped.terminate()
        stopped.communicate(timeout=60)
        aqa_train("--features", store, "--validation", 0.3, "--labelled", 0.8, "--out", tmp_path / "whole", "--jobs", 1,
                  "--epochs", 2, "--seeds", 1, *HELD)  # fmt: skip
    finally:
        os.umask(before)
    found = [p for name in ("feats.zarr", "run", "whole") for p in (tmp_path / name).rglob("*")]
    assert {p.name for p in found} >= {"state.safetensors", "last.safetensors", "zarr.json", "scatter.png"}
    private = {
        str(p.relative_to(tmp_path)): oct(p.stat().st_mode & 0o777)
        for p in found
        if p.stat().st_mode & 0o777 != (0o777 if p.is_dir() else 0o666) & ~umask
    }
    assert not private


def test_nothing_is_written_into_a_foreign_folder(make_store: MakeStore, tmp_path: Path) -> None:
    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="no run folder"):
        aqa_train("--features", make_store(videos=12), "--out", foreign, *HELD)
    assert os.listdir(foreign) == ["thesis.tex"]


def test_a_labels_file_replaces_the_stores_scores(
    make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(videos=16)
    labels = tmp_path / "new.csv"
    rows = [f"{i:03d},{i * 1.5},{'test' if i < 4 else 'train'}" for i in range(12)]
    labels.write_text("\ufeffid;score;split\r\n".replace(";", ",") + "\r\n".join([*rows, "nobody,3,train"]))
    aqa_train("--features", store, "--labels", labels, "--seeds", 1, "--epochs", 1, "--out", tmp_path / "o", *FAST)
    assert "nobody" in capsys.readouterr().err
    split = Split.load(tmp_path / "o" / "splits" / "fold0-seed0.json")
    assert split.test == ("000.mp4", "001.mp4", "002.mp4", "003.mp4")
    assert len(split.labelled) == 8
    assert split.unlabelled == ("012.mp4", "013.mp4", "014.mp4", "015.mp4")
    result = json.loads((tmp_path / "o" / "models" / "s4aqa" / "fold0-seed0" / "result.json").read_text())
    assert result["true"] == [0.0, 1.5, 3.0, 4.5]


def test_labels_of_other_columns_in_any_dialect(make_store: MakeStore, tmp_path: Path) -> None:
    from aqa_train.config import resolve
    from aqa_train.experiment import prepare

    store, labels = make_store(videos=16), tmp_path / "l.csv"
    labels.write_text("sep=;\n;Clip;Total\n" + "".join(f"{i};{i};{i},5\n" for i in range(16)))
    flags = {"features": str(store), "labels": str(labels), "methods": ("aa",)}
    said: list[str] = []
    columns = {"id_column": "Clip", "score_column": "Total"}
    features = prepare(resolve(None, {**flags, **columns}), said.append).features
    assert features.table["score"].tolist() == [i + 0.5 for i in range(16)]
    assert "fit only as numbers (0 for 000.mp4)" in said[0]
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
        aqa_train("--features", make_store(videos=12), "--labels", labels, "--out", tmp_path / "o", *HELD)


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path) -> None:
    """The limit on file size stands for a full disk: the system refuses the write half-way."""
    code = """
import resource, signal, sys, torch
from pathlib import Path
from aqa_shared.errors import StoreError
from aqa_train import checkpoint
path = Path(sys.argv[1])
checkpoint.save(path, {"x": torch.zeros(10)}, {"kind": "state", "n": 1})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    checkpoint.save(path, {"x": torch.ones(100_000)}, {"kind": "state", "n": 2})
except StoreError as e:
    print(int(e.exit_code), checkpoint.load(path, "state")[1]["n"], len(list(path.parent.iterdir())))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c" / "s.safetensors")], capture_output=True, text=True
    )
    assert done.stdout.split() == ["6", "1", "1"], done.stderr
