"""Going on with a run: where it stands, where it was moved to, and not with anything else."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.shims import READ_ONLY, needs_shims, shim

from aqa_shared.errors import ExitCode, StoreError, UsageError
from aqa_train import checkpoint
from aqa_train.methods import METHODS

from .conftest import MakeStore
from .runs import FAST, HELD, HIDING, aqa_train, results, started


def test_resuming_with_other_settings_or_labels_is_refused(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=16)
    out = tmp_path / "run"
    aqa_train("--features", store, "--method", "aa", "--seeds", 1, "--epochs", 2, "--out", out, "--jobs", 1, *HELD)
    aqa_train("--resume", out, "--seeds", 1)
    with pytest.raises(UsageError, match="seeds: 1 → 3"):
        aqa_train("--resume", out, "--seeds", 3)
    with pytest.raises(UsageError, match=r"training\.lr: 0\.0005 → 0\.1"):
        aqa_train("--resume", out, "--set", "lr=0.1")
    with pytest.raises(UsageError, match=r"training\.epochs"):
        aqa_train("--resume", out, "--epochs", 7)
    with pytest.raises(UsageError, match="was run with other methods: aa"):
        aqa_train("--resume", out, "--method", "ridge")
    with pytest.raises(UsageError, match=r"already holds a run with other settings: .*seeds: 1 → 5"):
        aqa_train("--features", store, "--out", out)
    with pytest.raises(UsageError, match=r"--config .*c\.toml would be ignored"):
        aqa_train("--resume", out, "--config", tmp_path / "c.toml")
    saved = json.loads((out / "config.json").read_text())
    saved["features"] = str(make_store(videos=18, name="other.zarr"))
    (out / "config.json").write_text(json.dumps(saved))
    with pytest.raises(UsageError, match=r"other\.zarr changed since the run") as changed:
        aqa_train("--resume", out)
    assert changed.value.fix == "restore what changed, or start a new run with another --out"
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


def test_a_run_goes_on_as_it_began_where_another_version_has_other_defaults(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    command = ["--features", make_store(videos=16), "--method", "usdl,gdlt", "--variant", "lr=0.001,0.01",
               "--seeds", 2, "--epochs", 2, "--jobs", 1, "--set", "gdlt.width=8", "--out", out, *HELD]  # fmt: skip
    aqa_train(*command)
    cells = [out / "lr=0.001", out / "lr=0.01"]
    whole = [results(cell) for cell in cells]
    for cell in cells:
        shutil.rmtree(cell / "models" / "usdl" / "fold0-seed1")
    # Another version's table of methods.
    monkeypatch.setitem(METHODS, "usdl", replace(METHODS["usdl"], recipes={}))
    aqa_train("--resume", out, "--jobs", 1)
    assert [results(cell) for cell in cells] == whole
    with pytest.raises(UsageError, match="already holds a run with other settings") as changed:
        aqa_train(*command)
    assert "settings.usdl.standardise: z-score → none" in changed.value.cause
    assert "None" not in changed.value.cause


def test_resuming_ignores_the_environment(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    aqa_train(
        "--features", make_store(videos=16), "--method", "s4aqa", "--seeds", 1, "--epochs", 1, "--out", out,
        "--jobs", 1, *HIDING, *HELD
    )  # fmt: skip
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
    command = [
        "--features",
        "feats.zarr",
        "--method",
        "s4aqa",
        "--seeds",
        2,
        "--epochs",
        1,
        "--out",
        "run",
        "--jobs",
        1,
    ]
    command += [*HIDING, *HELD]
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


@needs_shims
@pytest.mark.parametrize("how", ["resume", "part", "new", "grid"])
def test_a_run_folder_that_cannot_be_written_is_refused_before_anything_is_trained(
    how: str, make_store: MakeStore, tmp_path: Path
) -> None:
    """A file system that is read-only, for root too; a run that was begun writes nothing for a long time."""
    common = ["--features", make_store(videos=12), "--method", "aa", "--seeds", 1, "--epochs", 1, "--jobs", 1, *HELD]
    out = tmp_path / "runs" / "one"
    where = {"resume": ["--resume", out], "part": [*common, "--out", out, "--shard", "1/1"]}
    temporary = writable = tmp_path / "tmp"
    if how in where:
        aqa_train(*common, "--out", out)
        shutil.rmtree(out / "models" / "aa" / "fold0-seed0")
    elif how == "grid":  # whose cells can be written, but not the tables of all
        common += ["--labelled", "0.4,0.8"]
        (out / "labelled=0.4").mkdir(parents=True)
        (out / "labelled=0.8").mkdir()
        writable, temporary = out / "labelled=", out / "labelled=.partial"
    else:
        out.parent.mkdir()
    temporary.mkdir()
    before = sorted(tmp_path.joinpath("runs").rglob("*"))
    poor = {"LD_PRELOAD": shim(tmp_path / "shim", READ_ONLY), "WRITABLE": str(writable)}
    process = started(where.get(how, [*common, "--out", out]), TMPDIR=str(temporary), **poor)
    _, said = process.communicate(timeout=200)
    assert process.returncode == ExitCode.STORE, said
    assert "epochs" not in said
    place = {"resume": out, "part": out / "models" / "aa", "new": out.parent, "grid": out}[how]
    assert f"cannot write {place}: Read-only file system" in said
    assert "let it be written (owner, permissions, mount)" in said
    assert sorted(tmp_path.joinpath("runs").rglob("*")) == before


def test_a_checkpoint_in_a_folder_that_cannot_be_written_asks_for_the_right_thing() -> None:
    with pytest.raises(StoreError) as e:
        checkpoint.save(Path("/proc/self/state.safetensors"), {}, {"kind": "state"})
    assert e.value.fix == "let /proc/self be written, then resume"
