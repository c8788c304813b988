"""`aqa submit slurm -- train …`: its scripts against stored ones, and on a SLURM of our own, with tasks lost."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path

import pytest
from tests.train.conftest import store_maker
from tests.train.runs import files
from typer.testing import CliRunner

from aqa_pipelines.cli import app
from aqa_pipelines.slurm import Slurm, array_script, end_script

from .commands import run
from .slurm_cluster import answer, states, stop, until
from .test_slurm import SITE

GOLDEN = Path(__file__).parent / "golden" / "slurm_train.txt"
GRID = ["train", "--features", "feats.zarr", "--method", "aa,s4aqa", "--labelled", "0.1,0.4", "--out", "runs/my grid"]


def test_the_scripts_are_the_stored_ones() -> None:
    at = Path("/home/me")
    site = SITE.model_copy(update={"memory": "64G", "directives": ("--constraint=a100",)})
    train = array_script(site, GRID, range(1, 33), at), end_script(site, GRID, "runs/my grid", "4712", at)
    assert "\n".join(train) == GOLDEN.read_text()


SMALL = ["--set", "widths=8,8", "--set", "batch=8", "--device", "cpu", "--jobs", "1"]


def test_only_parts_with_something_missing_are_submitted_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    store_maker(tmp_path)(videos=16)
    # More parts than trainings: the others have nothing to do, and are not missing.
    grid = ["--features", "feats.zarr", "--method", "ridge", "--seeds", "2", "--folds", "2", *SMALL[-4:]]

    def aqa(*command: str, code: int = 0) -> str:
        done = CliRunner().invoke(app, command)
        assert done.exit_code == code, done.output
        return done.stdout

    def submitted() -> str:
        options = ["--parts", "5", "--missing", "--dry-run", "--launch", "aqa"]
        return aqa("submit", "slurm", *options, "--", "train", *grid, "--out", "run")

    assert "#SBATCH --array=1-4\n" in submitted()
    for part in (1, 3):
        aqa("train", *grid, "--out", "run", "--shard", f"{part}/5")
    assert "#SBATCH --array=2,4\n" in submitted()
    rows = aqa("finalise", "run", code=3).splitlines()
    assert [row.split("; run: ")[1] for row in rows] == [f"aqa-train --resume run --shard {i}/5" for i in (2, 4)]
    assert all(re.match(r"missing: 1 training of part \d of 5 \(ridge/fold\d-seed\d\); run: ", r) for r in rows), rows
    for row in rows:
        aqa("train", *row.split("; run: aqa-train ")[1].split(), *SMALL[-4:])
    assert submitted() == "run: nothing is missing\n"
    said = aqa("finalise", "run")
    assert "spearman" in said.lower()
    assert said.endswith("run: whole, nothing is missing\n")
    assert json.loads(aqa("finalise", "run", "--json")) == {"missing": []}


def test_a_folder_in_which_no_part_has_begun_is_said_to_be_neither(tmp_path: Path) -> None:
    (tmp_path / "run/splits").mkdir(parents=True)
    done = run("aqa", "finalise", tmp_path / "run")
    assert (done.returncode, done.stdout) == (6, "")
    assert "neither a feature store nor a run folder in which a part has begun" in done.stderr
    assert "the --out of aqa-extract or aqa-train" in done.stderr


def test_the_job_at_the_end_says_that_the_tables_could_not_be_written(tmp_path: Path, monkeypatch) -> None:
    """Nothing is missing, so nothing is submitted, and that must not look as if all were well."""
    monkeypatch.chdir(tmp_path)
    store_maker(tmp_path)(videos=16)
    train = ["train", "--features", "feats.zarr", "--method", "ridge", "--seeds", "1", "--folds", "2", "--out", "run"]
    assert run("aqa", *train, *SMALL[-4:], "--shard", "1/1").returncode == 0
    script = tmp_path / "end.sh"
    script.write_text(end_script(Slurm(parts=1), train, "run", "1", tmp_path))
    whole = run("/bin/bash", script)
    assert (whole.returncode, (tmp_path / "run/metrics.json").exists()) == (0, True), whole.stderr
    (tmp_path / "run/models/ridge/fold0-seed0/result.json").write_text("{")
    damaged = run("/bin/bash", script)
    assert "nothing is missing" in damaged.stdout
    assert (damaged.returncode, "result.json is damaged" in damaged.stderr) == (2, True), damaged.stderr


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_trainings_whose_tasks_are_cancelled_and_preempted_give_what_one_process_gives(
    cluster: str, tmp_path: Path
) -> None:
    store_maker(tmp_path)(videos=24)
    grid = ["--features", "feats.zarr", "--method", "s4aqa,ridge", "--labelled", "0.4,0.8", "--seeds", "3", "--folds",
            "2", "--epochs", "300", "--set", "save_every=1", *SMALL]  # fmt: skip
    asked = ["--parts", "3", "--gpus", "0", "--cpus", "1", "--memory", "", "--time", "10"]
    asked += ["--partition", "low", "--end-directives=--partition=high"]
    ours = {"SLURM_CONF": os.environ["SLURM_CONF"]}
    done = run("aqa", "submit", "slurm", *asked, "--", "train", *grid, "--out", "parts", cwd=tmp_path, **ours)
    assert done.returncode == 0, done.stderr
    job = re.match(r"job (\d+): 3 parts of 3", done.stdout).group(1)  # type: ignore[union-attr]

    def trains(part: int) -> bool:
        log = tmp_path / f"slurm-logs/aqa-train-{job}_{part}.log"
        return log.exists() and "epochs: " in log.read_text()

    until(lambda: trains(1), 120)
    answer("scancel", f"{job}_1")
    others = ("2", "3")
    # Stopped as soon as it works, none can end before it is pre-empted, which continues it.
    for part in others:
        until(partial(trains, int(part)), 120)
        stop(job, (part,))
    assert {part: states(job).get(part) for part in others} == dict.fromkeys(others, "RUNNING")
    answer("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=true")
    left = "PENDING" if cluster == "REQUEUE" else None
    until(lambda: [states(job).get(part) for part in others] == [left, left], 120)
    done_then = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts").rglob("result.json")}
    assert len(done_then) < 24

    until(lambda: not answer("squeue", "--noheader").strip(), 900)
    logs = {p.name: p.read_text() for p in (tmp_path / "slurm-logs").iterdir()}
    assert "aqa-train --resume parts --shard 1/3" in logs[f"aqa-train-{job}_1.log"]  # it saved when it was cancelled
    ends = [text for name, text in logs.items() if name.startswith("aqa-end")]
    # What was requeued is not submitted again, what was cancelled is.
    lost = "1 part" if cluster == "REQUEUE" else "[123] parts?"
    assert any(re.search(rf"^job \d+: ({lost}) of 3", text, re.MULTILINE) for text in ends), logs
    assert any("parts: whole, nothing is missing" in text for text in ends), logs
    # What was done is not done again.
    assert all(p.stat().st_mtime_ns == t for p, t in done_then.items())
    assert run("aqa-train", *grid, "--out", "whole", cwd=tmp_path).returncode == 0
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
