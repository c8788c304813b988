"""aqa-train on real stores, from the command line to the run folder and back by its checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.shims import NO_SEMAPHORES, needs_shims, shim

from aqa_shared.errors import EnvironmentFault, StoreError, UsageError
from aqa_shared.records import Sampling
from aqa_shared.store import FeatureStore
from aqa_train.experiment import prepare
from aqa_train.metrics import spearman
from aqa_train.predict import load_checkpoint, open_ensemble
from aqa_train.resolve import resolve
from aqa_train.splits import Split
from aqa_train.train_one import place

from .conftest import MakeStore
from .runs import FAST, HELD, HIDING, aqa_train, read_csv, results


@pytest.fixture(scope="module")
def finished(make_store_once: MakeStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two methods, two seeds and two folds, with validation videos."""
    store = make_store_once(videos=30, labels=[{"difficulty": 2.0 + i % 5} for i in range(30)])
    out = tmp_path_factory.mktemp("runs") / "run"
    aqa_train("--features", store, "--method", "aa,s4aqa", "--labelled", 0.6, "--seeds", 2, "--folds", 2,
              "--epochs", 3, "--validation", 0.3, "--out", out, "--jobs", 1, *FAST)  # fmt: skip
    return out


def test_run_folder_is_complete(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    aqa_train("--resume", finished)  # nothing is left to train: it shows what it found
    shown = capsys.readouterr().out
    for word in ("aa", "s4aqa", "ridge", "mean-score", "difficulty-only", "best on val.", "Spearman"):
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
        ("mean-score", "baseline"),
        ("random", "baseline"),
        ("ridge", "baseline"),
        ("difficulty-only", "baseline"),
    }
    assert next(r for r in summary["rows"] if r["method"] == "mean-score")["spearman"]["mean"] is None
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


def test_a_stream_of_a_later_run_is_compared_by_its_own_settings(make_store: MakeStore, tmp_path: Path) -> None:
    """A store has rgb of one run and flow of another with other pixels: its settings show those of the first alone."""
    apart = make_store(videos=12, streams=("rgb", "flow"), identity={"flow": {"pixels.crop": 64}})
    aqa_train(
        "--features", apart, "--streams", "flow", "--method", "aa", "--epochs", 1, "--seeds", 1, "--out", tmp_path / "o"
    )
    model = load_checkpoint(next((tmp_path / "o" / "models" / "aa").iterdir()))
    model.score(FeatureStore.open(apart))
    with pytest.raises(StoreError, match=r"flow were made.*pixels\.crop: trained on 64, given the default"):
        model.score(FeatureStore.open(make_store(videos=12, name="b.zarr", streams=("rgb", "flow"))))


def test_checkpoint_refuses_other_features(finished: Path, make_store: MakeStore) -> None:
    model = load_checkpoint(finished / "models" / "aa" / "fold0-seed0")
    with pytest.raises(StoreError, match=r"rgb weights: trained on aaaa.*given bbbb"):
        model.score(FeatureStore.open(make_store(videos=3, name="b.zarr", digest="b" * 64)))
    other = model.settings.model_copy(update={"sampling": Sampling(segments=7)})  # type: ignore[union-attr]
    with pytest.raises(StoreError, match=r"sampling\.segments: trained on 4, given 7"):
        model.refuse_other_features(other, model.weights)
    # Streams it does not use may differ.
    more = model.settings.model_copy(update={"streams": ("rgb", "rgb:logits", "flow")})  # type: ignore[union-attr]
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
    common = ["--features", str(store), "--method", "aa", "--seeds", "2", "--epochs", "2", *FAST]
    aqa_train(*common, "--out", tmp_path / "one", "--jobs", 1)
    command = [sys.executable, "-m", "aqa_train.cli", *common, "--out", str(tmp_path / "two"), "--jobs", "2"]
    environment = {**os.environ, "LD_PRELOAD": shim(tmp_path / "shim", NO_SEMAPHORES)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "serial mode" not in done.stderr
    assert results(tmp_path / "one") == results(tmp_path / "two")


def test_a_folder_that_cannot_be_written_is_a_store_error(make_store: MakeStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*file") as e:
        aqa_train("--features", make_store(videos=12), "--method", "aa", "--out", tmp_path / "file" / "run", *HELD)
    assert e.value.exit_code == 6


def test_features_too_large_for_memory_are_an_environment_fault(make_store: MakeStore, tmp_path: Path) -> None:
    config = resolve(None, {"features": str(make_store(videos=12)), "methods": ("aa",)})
    experiment = prepare(config, lambda message: None)
    huge = dataclasses.replace(experiment.features, lengths=np.full(12, 2**46))
    with pytest.raises(EnvironmentFault, match="can't allocate memory") as e:
        place(huge, torch.device("cpu"), "yes", 1)
    assert "--in-memory no" in e.value.fix


def test_networks_too_large_for_memory_are_an_environment_fault(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="can't allocate memory"):
        aqa_train(
            "--features",
            make_store(videos=12),
            "--method",
            "aa",
            "--set",
            f"regressor_width={2**45}",
            "--out",
            tmp_path / "o",
        )
    assert not (tmp_path / "o").exists()


def test_scoring_without_enough_memory_is_an_environment_fault(finished: Path) -> None:
    class Greedy(torch.nn.Module):
        def forward(self, x: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
            return torch.zeros(2**50)

    model = dataclasses.replace(load_checkpoint(finished / "models" / "aa" / "fold0-seed0"), network=Greedy())
    with pytest.raises(EnvironmentFault, match="can't allocate memory") as e:
        model.score({"rgb": np.ones((2, 4, 16), np.float32)})
    assert "fewer videos" in e.value.fix


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
@pytest.mark.parametrize("umask", [0o002, 0o027])
def test_whoever_may_read_the_folder_may_read_every_file(make_store: MakeStore, tmp_path: Path, umask: int) -> None:
    """A group's runs and stores lie on a shared disk: no file is more private than the umask makes it."""
    before = os.umask(umask)
    try:
        store = make_store(videos=16, pending=1)
        common = ["--features", store, "--method", "s4aqa", "--validation", 0.3, "--labelled", 0.8, "--jobs", 1]
        endless = [*common, "--out", tmp_path / "run", "--epochs", 5000, "--seeds", 1, *HELD]
        stopped = subprocess.Popen(
            [sys.executable, "-m", "aqa_train.cli", *map(str, endless)],
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert stopped.stderr is not None
        while not stopped.stderr.readline().startswith("epochs"):
            assert stopped.poll() is None
        stopped.terminate()
        stopped.communicate(timeout=200)
        aqa_train(*common, "--out", tmp_path / "whole", "--epochs", 2, "--seeds", 1, *HELD)
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
    with pytest.raises(UsageError, match="not a run folder"):
        aqa_train("--features", make_store(videos=12), "--method", "aa", "--out", foreign, *HELD)
    assert os.listdir(foreign) == ["thesis.tex"]


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
