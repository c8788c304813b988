"""Images and Kubernetes' jobs: against published schemas and a linter, and their commands as a cluster runs them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.extract.clips import Clip
from tests.train.conftest import store_maker
from tests.train.runs import files

from aqa_shared.errors import ExitCode
from aqa_shared.store import FeatureStore, compact

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
JOBS = {
    name: ROOT / "docker" / "kubernetes" / name / "job.yaml"
    for name in ("extract", "finalise", "train", "train-finalise")
}


def job(name: str) -> dict[str, Any]:
    return yaml.safe_load(JOBS[name].read_text())


def container(name: str) -> dict[str, Any]:
    return job(name)["spec"]["template"]["spec"]["containers"][0]


# Pod failure policies are stable since 1.31.
@pytest.mark.parametrize("version", ["1.31", "1.37"])
@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_what_kubernetes_takes(name: str, version: str) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="no schemas of Kubernetes here").validate
    validate(job(name), version, strict=True)
    wrong = job(name)
    wrong["spec"]["backofLimit"] = 3
    with pytest.raises(Exception, match="backofLimit"):
        validate(wrong, version, strict=True)


@pytest.mark.parametrize("name", JOBS)
def test_a_job_has_no_rights_that_it_does_not_need(name: str) -> None:
    pod = job(name)["spec"]["template"]["spec"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["automountServiceAccountToken"]) == (True, False)
    rights = container(name)["securityContext"]
    assert (rights["readOnlyRootFilesystem"], rights["allowPrivilegeEscalation"]) == (True, False)
    assert rights["capabilities"] == {"drop": ["ALL"]}
    # What is written needs a place: the root is read-only.
    assert {"/data", "/tmp"} <= {mount["mountPath"] for mount in container(name)["volumeMounts"]}


@pytest.mark.parametrize("name", ["extract", "train"])
def test_parts_and_completions_are_the_same(name: str) -> None:
    args = container(name)["args"]
    assert args[args.index("--shard") + 1] == f"auto/{job(name)['spec']['completions']}"


def test_the_documented_overlay_changes_what_it_says() -> None:
    blocks = re.findall(r"```yaml\n(.+?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    overlay = yaml.safe_load(next(block for block in blocks if "patches:" in block))
    assert (ROOT.parent / overlay["resources"][0].replace("../aqa", ROOT.name)).is_dir()
    assert overlay["images"][0]["name"] == container("extract")["image"]
    changed = job("extract")
    for change in yaml.safe_load(overlay["patches"][0]["patch"]):
        *places, last = [int(p) if p.isdecimal() else p for p in change["path"].strip("/").split("/")]
        target = reduce(lambda part, place: part[place], places, changed)
        assert change["op"] == "replace"
        assert type(target[last]) is type(change["value"])
        target[last] = change["value"]
    args = changed["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args == ["/data/videos", "--out", "/data/feats.zarr", "--streams", "rgb,actor-rgb", "--shard", "auto/32"]
    assert changed["spec"]["completions"] == 32


def action(name: str, code: int) -> str:
    """What the job's policy does about this exit code; tried again where no rule is of it."""
    for rule in job(name)["spec"]["podFailurePolicy"]["rules"]:
        if code in rule.get("onExitCodes", {}).get("values", ()):
            return rule["action"]
    return "Count"


def test_every_exit_code_has_its_consequence() -> None:
    for code in (ExitCode.USAGE, ExitCode.STORE):
        assert {action(name, code) for name in JOBS} == {"FailJob"}
    for code in (ExitCode.QUARANTINED, ExitCode.NO_INPUT):
        assert action("extract", code) == "FailIndex"
    assert action("train", ExitCode.QUARANTINED) == "FailIndex"
    for again in (ExitCode.ENVIRONMENT, 143, 137, 1):
        assert action("extract", again) == action("train", again) == "Count"


def test_the_parts_of_a_job_make_the_store(tmp_path: Path, i3d_rgb_weights: str) -> None:
    """Each index with the image's entry point, the job's arguments and Kubernetes' variable; one has a bad video."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(3):
        Clip(frames=20 + i).write(videos / f"clip{i}")
    (videos / "bad.mp4").write_bytes(b"no video")
    entry = re.findall(r'^ENTRYPOINT \["(.+)"\]$', DOCKERFILE.read_text(), re.MULTILINE)[-1]
    small = ["--segments", "1", "--short-side", "224", "--weights", f"rgb={i3d_rgb_weights}"]

    def run(command: list[str], **variables: str) -> int:
        command = [word.replace("/data", str(tmp_path)) for word in command]
        environment = {**os.environ, **variables, "TMPDIR": str(tmp_path)}
        done = subprocess.run([BIN / command[0], *command[1:]], env=environment, capture_output=True, text=True)
        print(done.stdout, done.stderr)
        return done.returncode

    args = [re.sub(r"^auto/\d+$", "auto/2", word) for word in container("extract")["args"]]
    finalise = [*container("finalise")["command"], *container("finalise")["args"]]
    codes = [run([entry, *args, *small], JOB_COMPLETION_INDEX="0")]
    assert run(finalise) == ExitCode.QUARANTINED  # part 2 never began
    codes.append(run([entry, *args, *small], JOB_COMPLETION_INDEX="1"))
    assert sorted(codes) == [ExitCode.OK, ExitCode.QUARANTINED]
    assert run(finalise) == ExitCode.OK

    one = [word.replace("feats.zarr", "one.zarr") for word in args[: args.index("--shard")]]
    assert run([entry, *one, *small]) == ExitCode.QUARANTINED
    found = []
    for name in ("feats.zarr", "one.zarr"):
        compact(tmp_path / name)
        found.append(FeatureStore.open(tmp_path / name))
    assert found[0].ids == found[1].ids == ["clip0.mp4", "clip1.mp4", "clip2.mp4"]
    assert found[0].content == found[1].content


@pytest.mark.slow
def test_the_parts_of_a_training_job_make_the_run(tmp_path: Path) -> None:
    """Each index with the image's entry point, the job's arguments and Kubernetes' variable."""
    store_maker(tmp_path)(videos=24)
    entry = next(
        e for e in re.findall(r'^ENTRYPOINT \["(.+)"\]$', DOCKERFILE.read_text(), re.MULTILINE) if "train" in e
    )
    args = [re.sub(r"^auto/\d+$", "auto/2", word) for word in container("train")["args"]]
    small = ["--seeds", "1", "--epochs", "1", "--set", "batch=8", "--device", "cpu", "--jobs", "1"]
    gather = [*container("train-finalise")["command"], *container("train-finalise")["args"]]

    def run(command: list[str], **variables: str) -> int:
        command = [word.replace("/data", str(tmp_path)) for word in command]
        environment = {**os.environ, **variables, "TMPDIR": str(tmp_path)}
        done = subprocess.run([BIN / command[0], *command[1:]], env=environment, capture_output=True, text=True)
        print(done.stdout, done.stderr)
        return done.returncode

    assert run([entry, *args, *small], JOB_COMPLETION_INDEX="0") == ExitCode.OK
    assert run(gather) == ExitCode.QUARANTINED  # part 2 never began
    assert run([entry, *args, *small], JOB_COMPLETION_INDEX="1") == ExitCode.OK
    assert run(gather) == ExitCode.OK
    one = [word.replace("runs/grid", "runs/one") for word in args if word not in ("--shard", "auto/2")]
    assert run([entry, *one, *small]) == ExitCode.OK
    assert files(tmp_path / "runs" / "grid") == files(tmp_path / "runs" / "one")


def test_the_image_passes_the_linter() -> None:
    linter = shutil.which("hadolint", path=f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}")
    if linter is None:
        pytest.skip("no hadolint here: its wheels are for x86-64")
    done = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_build_context_is_enough_to_install_from(tmp_path: Path) -> None:
    """The build stage's steps, of the files that Docker would send, into an environment of its own."""
    context, source = tmp_path / "context", tmp_path / "src"
    ignored = [line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().split()]
    shutil.copytree(ROOT, context, ignore=lambda _, names: {n for n in names if any(fnmatch(n, i) for i in ignored)})
    build = DOCKERFILE.read_text().split("\nFROM ")[1]
    for line in re.findall(r"^COPY (.+)$", build, re.MULTILINE):
        *froms, to = shlex.split(line)
        for name in froms:
            into = source / to / ("" if len(froms) > 1 else ".")
            if (context / name).is_dir():
                shutil.copytree(context / name, source / to)
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(context / name, into)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    # What it depends on is not what is tried here, and gigabytes: it is this environment's.
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    (Path(site) / "zz.pth").write_text("\n".join(place for place in sys.path if place.endswith("site-packages")))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", source], check=True, cwd=tmp_path)
    where = "import aqa_extract.flow, aqa_train, aqa_pipelines; print(aqa_extract.flow.__file__)"
    done = subprocess.run([python, "-P", "-c", where], capture_output=True, text=True, cwd=tmp_path)
    flow = Path(done.stdout.strip()).parent
    assert flow.is_relative_to(site), done
    assert list(flow.glob("*.so")), "TV-L1 was not compiled"
    assert subprocess.run([python.parent / "aqa-extract", "--version"], cwd=tmp_path).returncode == 0
