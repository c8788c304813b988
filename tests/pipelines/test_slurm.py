"""`aqa submit slurm`: its scripts against stored ones, and on a SLURM of our own, with tasks lost on the way."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.extract.clips import Clip
from typer.testing import CliRunner

from aqa_pipelines.cli import app
from aqa_pipelines.slurm import Slurm, array_script, end_script, resolve
from aqa_shared.errors import ExitCode, UsageError
from aqa_shared.records import ExtractSettings
from aqa_shared.store import FeatureStore, StoreWriter, compact, expect, missing_parts
from aqa_shared.store.objects import Objects
from aqa_shared.store.stage import read_runs

from .slurm_cluster import answer, states, stop, until

BIN = Path(sys.executable).parent
GOLDEN = Path(__file__).parent / "golden" / "slurm.txt"
VIDEOS = ["extract", "my videos/", "--out", "feats.zarr", "--streams", "rgb,flow"]
SITE = Slurm(
    parts=32,
    at_once=8,
    partition="gpu",
    account="lab",
    launch="apptainer exec --nv aqa.sif aqa",
    setup=("module load apptainer", "export TMPDIR=/scratch"),
    directives=("--constraint=a100", "--mem-per-gpu=64G"),
    end_directives=("--partition=cpu",),
    memory="",
)


def test_the_scripts_are_the_stored_ones() -> None:
    at = Path("/home/me/my dives")
    extract = array_script(SITE, VIDEOS, [1, 2, 3, 7, 32], at), end_script(SITE, VIDEOS, "feats.zarr", "4711", at)
    assert "\n".join(extract) == GOLDEN.read_text()


def test_the_last_round_only_finalises() -> None:
    end = end_script(SITE.model_copy(update={"again": 0}), VIDEOS, "s3://b/f.zarr", "1", Path("/a"))
    assert end.splitlines()[-1] == "exec apptainer exec --nv aqa.sif aqa finalise s3://b/f.zarr"


def test_a_dry_run_prints_what_it_would_submit_and_submits_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AQA_SLURM_PARTITION", "gpu")
    (tmp_path / "site.toml").write_text('partition = "other"\ncpus = 4\n')
    options = ["--config", "site.toml", "--parts", "3", "--dry-run"]
    done = CliRunner().invoke(app, ["submit", "slurm", *options, "--", *VIDEOS])
    assert done.exit_code == 0, done.output
    settings = Slurm(parts=3, cpus=4, partition="gpu")
    array = array_script(settings, VIDEOS, [1, 2, 3], tmp_path)
    assert done.stdout == f"{array}\n{end_script(settings, VIDEOS, 'feats.zarr', '<the array>', tmp_path)}"
    assert [p.name for p in tmp_path.iterdir()] == ["site.toml"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--time", "soon"], "time: not a time limit of SLURM"),
        (["--memory", "much"], "memory: not a size of SLURM"),
        (["--directives", "constraint=a100"], "'constraint=a100' is not an option of sbatch"),
        (["--name", "a\nb"], "name: must be one line"),
        (["--parts", "0"], "parts"),
    ],
)
def test_a_wrong_setting_is_named(options: list[str], message: str) -> None:
    done = subprocess.run([BIN / "aqa", "submit", "slurm", *options, "--", *VIDEOS], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert message in done.stderr


def test_a_variable_of_the_environment_is_named(monkeypatch) -> None:
    monkeypatch.setenv("AQA_SLURM_CPUS", "many")
    with pytest.raises(UsageError, match=r"cpus \(from AQA_SLURM_CPUS\)"):
        resolve(None, {})


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["extract", "v", "--out", "s", "--shard", "1/2"], "--shard cannot be given"),
        (["extract", "v", "--out", "s", "--overwrite"], "--overwrite cannot be given"),
        (["extract", "v", "--out", "s", "--print-config"], "--print-config cannot be given"),
        (["extract", "v", "--out", "s", "--scheduler", "local:2"], "--scheduler cannot be given"),
        (["extract", "v", "--ot", "s"], "--ot"),
        (["train", "--features", "f"], "the training has no --out"),
        (["train", "--features", "f", "--out", "r", "--in-memory", "maybe"], "--in-memory is 'maybe'"),
        (["train", "--features", "f", "--out", "r", "--shard", "1/2"], "--shard cannot be given"),
        (["train", "--features", "f", "--out", "r", "--scheduler", "local:2"], "--scheduler cannot be given"),
        (["train", "--features", "f", "--out", "r", "--method", "aaa"], "no method 'aaa'"),
        (["verify", "s"], "'verify' cannot be submitted"),
    ],
)
def test_what_cannot_be_parted_is_said_before_it_is_queued(command: list[str], message: str) -> None:
    done = subprocess.run([BIN / "aqa", "submit", "slurm", "--", *command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert message in done.stderr


def test_without_slurm_it_says_where_to_submit(monkeypatch, tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    command = [BIN / "aqa", "submit", "slurm", "--", *VIDEOS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "sbatch is not on this machine" in done.stderr


def test_an_array_whose_last_job_is_refused_is_named(tmp_path: Path) -> None:
    # What a site does whose partition for the array lets nobody queue what needs no GPU.
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\ngrep -q -- --array && echo 41 && exit\necho Invalid qos >&2\nexit 1\n")
    sbatch.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [BIN / "aqa", "submit", "slurm", "--", *VIDEOS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "Invalid qos" in done.stderr
    assert "scancel 41" in done.stderr


def test_parts_are_missing_until_they_are_whole(tmp_path: Path) -> None:
    from aqa_shared.store import ArraySpec, Run

    store = tmp_path / "s.zarr"
    arguments = ["v/", "--out", "s.zarr"]
    assert missing_parts(store, arguments, 3) == [1, 2, 3]
    spec = ArraySpec("rgb", ("channel",), (4,), "float32", role="feature")
    with StoreWriter.open(store, specs=(spec,), settings=ExtractSettings(), provenance={}) as writer:
        for i in (1, 2):
            expect(store, Run(f"aqa extract v/ --out s.zarr --shard {i}/3", ("rgb",), (f"{i}.mp4",), (i, 3)))
        writer.commit("1.mp4", {"rgb": [[0.0] * 4]}, {})
    assert missing_parts(store, arguments, 3) == [2, 3]
    assert missing_parts(store, [*arguments, "--streams", "flow"], 3) == [1, 2, 3]
    assert missing_parts(store, arguments, 4) == [1, 2, 3, 4]


# ---- a real SLURM


def _begun(store: Path, part: int) -> bool:
    """Whether the part has said what it is going to extract, which it does before its first video."""
    return store.exists() and any(run.shard == (part, 3) for run in read_runs(Objects.at(store)))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_array_whose_tasks_are_cancelled_and_preempted_gives_the_bytes_of_one_process(
    cluster: str, tmp_path: Path, i3d_rgb_weights: str
) -> None:
    videos = tmp_path / "v"
    videos.mkdir()
    for i in range(9):
        Clip(frames=20 + i, size=(64 + 2 * i, 48)).write(videos / f"clip{i}")
    # Long enough, some 20 s a part, that they are stopped in the middle of it.
    small = ["--segments", "16", "--short-side", "224", "--weights", f"rgb={i3d_rgb_weights}"]
    parted = ["extract", "v", "--out", "parts.zarr", *small, "--workers", "1"]
    asked = ["--parts", "3", "--gpus", "0", "--cpus", "1", "--memory", "", "--time", "10"]
    # Preemption that cancels kills what it takes: the job at the end must not be taken.
    asked += ["--partition", "low", "--end-directives=--partition=high"]

    def run(*command: str) -> str:
        done = subprocess.run([BIN / "aqa", *command], capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    said = run("submit", "slurm", *asked, "--", *parted)
    job = re.match(r"job (\d+): 3 parts of 3", said).group(1)  # type: ignore[union-attr]

    until(lambda: states(job).get("1") == "RUNNING", 60)
    answer("scancel", f"{job}_1")
    others = ("2", "3")
    until(lambda: all(_begun(tmp_path / "parts.zarr", int(part)) for part in others), 120)
    # Stopped in the middle of their work, they cannot end before they are pre-empted, which continues them.
    stop(job, others)
    assert {part: states(job).get(part) for part in others} == dict.fromkeys(others, "RUNNING")
    # Somebody with more rights takes the whole node.
    answer("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=true")
    left = "PENDING" if cluster == "REQUEUE" else None
    until(lambda: [states(job).get(part) for part in others] == [left, left], 120)
    for part in others:
        assert "DUE TO PREEMPTION" in (tmp_path / f"slurm-logs/aqa-extract-{job}_{part}.log").read_text()
        assert ("Restarts=1" in answer("scontrol", "show", "job", f"{job}_{part}")) == (cluster == "REQUEUE")

    def ended() -> bool:
        return not answer("squeue", "--noheader").strip()

    until(ended, 900)
    logs = {p.name: p.read_text() for p in (tmp_path / "slurm-logs").iterdir()}
    ends = [text for name, text in logs.items() if name.startswith("aqa-end")]
    # What was requeued is not submitted again, what was cancelled is.
    lost = "1 part" if cluster == "REQUEUE" else "[123] parts?"
    assert any(re.search(rf"^job \d+: ({lost}) of 3", text, re.MULTILINE) for text in ends), logs
    assert any("whole, nothing is missing" in text for text in ends), logs
    # The commands of parts that are missing can be typed as they are printed.
    assert not any("__main__.py" in text for text in ends), logs
    assert any("; run: python -m aqa_pipelines extract v --out parts.zarr" in text for text in ends), logs

    run("extract", "v", "--out", "one.zarr", *small, "--workers", "1")
    one, parts = (FeatureStore.open(tmp_path / name) for name in ("one.zarr", "parts.zarr"))
    assert parts.ids == one.ids
    assert parts.content == one.content
    assert parts.pending == 0
    for name in ("one.zarr", "parts.zarr"):
        compact(tmp_path / name)
    assert _blocks(tmp_path / "one.zarr") == _blocks(tmp_path / "parts.zarr")


def _blocks(store: Path) -> dict[str, bytes]:
    """Every file of the blocks; their names say what is in them."""
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted((store / "blocks").rglob("*")) if p.is_file()}
