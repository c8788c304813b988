"""The whole path on an object store: a real S3 server on this machine, the real commands, one of them killed."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.extract.clips import Clip
from tests.pipelines import commands
from tests.pipelines.commands import BIN

from aqa_shared.errors import ExitCode
from aqa_shared.store import FeatureStore, Objects, verify

s3fs = pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")

SMALL = ("--segments", "2", "--short-side", "32", "--crop", "32", "--weights", "rgb=i3d-kinetics-400")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket."""
    import boto3

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.get_host_and_port()[1]}")
        for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("DEFAULT_REGION", "us-east-1")):
            monkeypatch.setenv(f"AWS_{name}", value)
        s3fs.S3FileSystem.clear_instance_cache()  # else it goes on to the server of the test before
        boto3.client("s3").create_bucket(Bucket="features")
        yield "s3://features"
    finally:
        server.stop()


def run(*command: object, code: ExitCode = ExitCode.OK) -> str:
    done = commands.run(*command)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_extract_kill_resume_add_a_stream_and_train_on_s3(bucket: str, tmp_path: Path, i3d_rgb_weights: str) -> None:
    videos, store = tmp_path / "v", f"{bucket}/some/feats.zarr"
    videos.mkdir()
    for i in range(6):
        Clip(frames=20 + i, size=(64 + 2 * i, 48)).write(videos / f"clip{i}")
    rows = ["id,score", *(f"clip{i}.mp4,{10 + i}" for i in range(6))]
    (videos / "labels.csv").write_text("\n".join(rows) + "\n")
    command = ("aqa-extract", videos, "--out", store, *SMALL)

    process = subprocess.Popen([BIN / "aqa-extract", *map(str, command[1:])], stderr=subprocess.DEVNULL)
    objects, waited = Objects(store), time.monotonic()
    while process.poll() is None and len(objects.names("staged")) < 4 and time.monotonic() < waited + 200:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    held = {name for name in objects.names("staged") if name.endswith(".json")}
    assert held

    assert f"{6 - len(held)} extracted, {len(held)} already there" in run(*command)
    first = FeatureStore.open(store)
    assert (len(first), first.pending, verify(store)) == (6, 0, [])
    rgb = first.read("rgb")

    flow = ("--streams", "flow", "--weights", "flow=inflated-from-rgb")
    for i in (2, 1):
        run(*command, *flow, "--shard", f"{i}/2")
    assert FeatureStore.open(store).coverage.get("flow") is None
    run("aqa", "finalise", store)
    both = FeatureStore.open(store)
    assert both.coverage["flow"] == 6
    assert both.streams == ("rgb", "flow")
    np.testing.assert_array_equal(both.read("rgb"), rgb)
    np.testing.assert_array_equal(first.read("rgb"), rgb)  # held since before

    assert json.loads(run("aqa", "info", store, "--json"))["missing"] == []
    assert "whole" in run("aqa", "verify", store)
    content = both.content
    run("aqa", "compact", store)
    assert FeatureStore.open(store).content == content
    run("aqa-train", "--features", store, "--out", tmp_path / "run", "--method", "ridge", "--folds", "2", "--jobs", "1")
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow
def test_dask_workers_write_to_s3(bucket: str, tmp_path: Path, i3d_rgb_weights: str) -> None:
    """Workers reach the store by its URL, with the credentials of their environment."""
    (tmp_path / "v").mkdir()
    for i in range(3):
        Clip(frames=20 + i, size=(64 + 2 * i, 48)).write(tmp_path / "v" / f"clip{i}")
    store = f"{bucket}/feats.zarr"
    run("aqa-extract", tmp_path / "v", "--out", store, *SMALL, "--scheduler", "local:1", "--device", "cpu")
    run("aqa-extract", tmp_path / "v", "--out", tmp_path / "here.zarr", *SMALL, "--device", "cpu")
    there, here = FeatureStore.open(store), FeatureStore.open(tmp_path / "here.zarr")
    assert (there.ids, there.pending, verify(store)) == (here.ids, 0, [])
    assert there.content == here.content
    assert Objects(store).names("staged") == []
