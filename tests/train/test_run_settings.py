"""What aqa-train says it would do, without doing it, and what it refuses before it begins."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from aqa_shared.errors import AqaError, EnvironmentFault, StoreError, UsageError

from .conftest import MakeStore
from .runs import FAST, HELD, HIDING, aqa_train


def test_dry_run_writes_nothing(make_store: MakeStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(videos=16)
    before = sorted(tmp_path.rglob("*"))
    aqa_train(
        "--features", store, "--seeds", 3, "--method", "aa,s4aqa", "--dry-run", "--out", tmp_path / "o", *HIDING, *HELD
    )
    shown = capsys.readouterr().out
    assert "6 trainings: aa of 1000 epochs, s4aqa of 1000 epochs" in shown
    assert "5 labelled, 7 unlabelled, 0 validation, 4 test" in shown
    assert f"run folder: {tmp_path / 'o'} (new)" in shown
    assert "time: about " in shown
    assert sorted(tmp_path.rglob("*")) == before


def test_dry_run_ends_as_the_run_would(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=16)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes.txt").write_text("mine")
    options = ("--features", store, "--method", "aa", "--dry-run", *FAST)
    with pytest.raises(UsageError, match="is not a run folder"):
        aqa_train(*options, "--out", tmp_path / "foreign")
    with pytest.raises(StoreError, match="Not a directory"):
        aqa_train(*options, "--out", tmp_path / "foreign" / "notes.txt" / "run")
    with pytest.raises(EnvironmentFault, match="cuda:9"):
        aqa_train(*options, "--out", tmp_path / "o", "--device", "cuda:9")


def test_what_is_not_named_is_printed(make_store: MakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    aqa_train("--features", make_store(videos=16), "--print-config")
    found = tomllib.loads(capsys.readouterr().out)
    assert found["methods"] == ["auto"]
    assert found["settings"]["parts"] == 4
    assert found["streams"] == ["rgb"]


def test_the_part_that_is_held_out_is_an_option(make_store: MakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    aqa_train("--features", make_store(videos=20), "--method", "aa", "--test-fraction", 0.5, "--dry-run", *FAST)
    assert "10 test" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"test_fraction: .*less than 1"):
        aqa_train("--print-config", "--test-fraction", 1)


def test_print_config_of_a_grid_keeps_its_axes(make_store: MakeStore, capsys: pytest.CaptureFixture[str]) -> None:
    aqa_train(
        "--features", make_store(videos=16), "--method", "s4aqa", "--labelled", "0.4,0.8", "--variant", "lr=0.1,0.2",
        "--print-config",
    )  # fmt: skip
    shown = tomllib.loads(capsys.readouterr().out)
    assert (shown["methods"], shown["labelled"], shown["variants"]) == (["s4aqa"], [0.4, 0.8], {"lr": ["0.1", "0.2"]})


def test_print_config_needs_no_features(capsys: pytest.CaptureFixture[str]) -> None:
    aqa_train("--print-config", "--seeds", 2)
    shown = capsys.readouterr().out
    assert "seeds = 2" in shown
    assert "lr = 0.0005" in shown


def test_print_config_shows_the_files_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text('features = "mine.zarr"\n')
    aqa_train("--config", tmp_path / "run.toml", "--print-config")
    assert 'features = "mine.zarr"' in capsys.readouterr().out


def test_a_setting_of_training_among_those_of_methods_is_sent_there(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('features = "f.zarr"\nmethods = ["aa"]\n[settings]\nepochs = 5\n')
    with pytest.raises(UsageError, match="epochs is a setting of training, not of a method") as refused:
        aqa_train("--config", tmp_path / "c.toml", "--print-config")
    assert refused.value.fix == "write it as [training] epochs = 5"


def test_help_does_not_load_torch() -> None:
    code = "import sys, aqa_train.cli; print([m for m in ('torch', 'numpy', 'matplotlib', 'zarr') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
        (["--method", "s4aqa", "--set", "masked=4", *HIDING], {}, UsageError, "cannot be hidden"),
        (["--group", "athlete", "--folds", 2], {}, UsageError, "athlete"),
        (["--device", "cuda:77"], {}, EnvironmentFault, "cuda:77"),
        (["--in-memory", "maybe"], {}, UsageError, "maybe"),
        (["--draw", "unifrm"], {}, UsageError, "unifrm"),
        (["--method", "aa", "--set", "kernel=4"], {}, UsageError, "kernel must be odd"),
        (["--set", "kernel=4"], {}, UsageError, "auto has no setting 'kernel'"),
        (["--epochs", 5], {}, UsageError, "epochs = 5 would change nothing: auto is fitted in one step"),
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
