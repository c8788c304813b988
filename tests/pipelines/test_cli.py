"""The umbrella as people type it: real processes, real stores, exit codes."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from aqa_shared.machine import has_units_for, pick_device
from aqa_shared.records import ExtractSettings, FlowSettings, Pixels, Sampling, Video
from aqa_shared.store import ArraySpec, StoreWriter

BIN = Path(sys.executable).parent
ENV = {**os.environ, "COLUMNS": "120", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def run(*arguments: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """One command of ours, as a process."""
    command = [str(BIN / str(arguments[0])), *map(str, arguments[1:])]
    return subprocess.run(command, cwd=cwd, env={**ENV, **env}, capture_output=True, text=True, timeout=280)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Five videos of four segments, two splits, one name that a terminal must not act on."""
    path = tmp_path / "feats.zarr"
    settings = ExtractSettings(sampling=Sampling(segments=4))
    specs = [ArraySpec("rgb", ("channel",), (16,), "float32", role="feature")]
    rng = np.random.default_rng(0)
    labels = {}
    with StoreWriter.open(path, specs=specs, settings=settings, provenance={"weights": {}}) as writer:
        for i in range(5):
            id = f"dive{i}.mp4" if i else "a\x1b[31m.mp4"
            writer.commit(id, {"rgb": rng.random((4, 16), np.float32)}, {"fps": 20.0})
            labels[id] = Video(id=id, path=f"/videos/{i}.mp4", score=5.0 + i, split="train" if i < 3 else "test")
        writer.finalise(labels)
    return path


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["predict"],
        ["info"],
        ["verify"],
        ["doctor"],
        ["streams"],
        ["weights"],
        ["weights", "list"],
        ["weights", "fetch"],
    ],
    ids=" ".join,
)
def test_every_command_explains_itself(command: list[str]) -> None:
    done = run("aqa", *command, "--help")
    assert done.returncode == 0, done.stderr
    assert f"Usage: aqa {' '.join(command)}".strip() in done.stdout
    assert done.stderr == ""


def test_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert run("aqa", "--version").stdout.strip() == version("aqa")


@pytest.mark.parametrize(
    ("typed", "meant"), [(["dmeo"], "demo"), (["wieghts"], "weights"), (["demo", "--vidoes", "3"], "--videos")]
)
def test_a_typing_mistake_gets_a_hint(typed: list[str], meant: str) -> None:
    done = run("aqa", *typed)
    assert done.returncode == 2
    assert meant in done.stderr
    assert done.stdout == ""


# info, verify


def test_info_tells_people_and_scripts(store: Path) -> None:
    record = json.loads(run("aqa", "info", store, "--json").stdout)
    assert record["videos"] == 5
    done = run("aqa", "info", store)
    assert done.returncode == 0, done.stderr
    for word in ("rgb", "train", "test", "segments"):
        assert word in done.stdout


def test_streams_tells_people_and_scripts(tmp_path: Path) -> None:
    environment = {"AQA_HOME": str(tmp_path)}
    said = run("aqa", "streams", **environment).stdout
    for part in (
        "rot90",
        "rgb@swin3d_b=swin3d_b-kinetics400-imagenet22k (not here; BSD-3-Clause (port), Apache-2.0 (weights))",
        "map 1024x16x7x7",
    ):
        assert part in said
    found = json.loads(run("aqa", "streams", "--json", **environment).stdout)
    assert found["backbones"]["i3d"]["outputs"] == {"(feature)": [1024], "logits": [400], "map": [1024, 2, 7, 7]}
    assert not any(w["here"] for b in found["backbones"].values() for ws in b["weights"].values() for w in ws)


def test_verify_is_silent_about_a_whole_store(store: Path) -> None:
    done = run("aqa", "verify", store)
    assert (done.returncode, done.stderr) == (0, "")
    assert "whole" in done.stdout
    assert json.loads(run("aqa", "verify", store, "--json").stdout) == []


def test_verify_names_the_damage(store: Path) -> None:
    chunk = max((p for p in store.glob("blocks/*/rgb/*") if p.name != "zarr.json" and p.is_file()), key=_size)
    data = bytearray(chunk.read_bytes())
    data[len(data) // 3] ^= 0x10
    chunk.write_bytes(data)
    done = run("aqa", "verify", store)
    assert done.returncode == 6
    assert "rgb" in done.stdout
    assert ".mp4" in done.stdout
    # A name from the store is shown, never obeyed.
    assert "\x1b" not in done.stdout
    damage = json.loads(run("aqa", "verify", store, "--json").stdout)
    assert damage
    assert {"id", "array", "detail"} == set(damage[0])


def _size(path: Path) -> int:
    return path.stat().st_size


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_is_no_store_is_refused(command: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "folder", tmp_path / "nowhere"):
        done = run("aqa", command, place)
        assert done.returncode == 6, done.stderr
        assert str(place) in done.stderr.replace("\n", "")
        assert "Traceback" not in done.stderr


# doctor, weights


def test_doctor_answers_people_and_scripts(tmp_path: Path) -> None:
    done = run("aqa", "doctor", "--json", AQA_HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    checks = {c["name"]: c for c in json.loads(done.stdout)}
    for name in ("python", "cpu", "torch", "ffmpeg in av", "conv3d float32 on cpu", "temporary folder"):
        assert checks[name]["status"] == "ok", checks[name]
    assert checks["weights cache"]["value"].startswith(str(tmp_path))
    # Looking leaves nothing behind.
    assert list(tmp_path.iterdir()) == []


def test_doctor_extracts_a_clip_with_every_decoder(tmp_path: Path) -> None:
    done = run("aqa", "doctor", "--json", AQA_HOME=str(tmp_path))
    checks = {c["name"]: c for c in json.loads(done.stdout) if c["name"].startswith("extract with")}
    decoders = ["av", "decord"] if find_spec("decord") else ["av"]
    assert [name for name in checks if name.endswith(" on cpu")] == [f"extract with {d} on cpu" for d in decoders]
    assert {c["status"] for c in checks.values()} == {"ok"}, checks


def test_doctor_finds_a_decoder_that_imports_but_cannot_decode(tmp_path: Path) -> None:
    """As PyAV 19 was for code that knew PyAV 18: a keyword that `open` no longer takes."""
    (tmp_path / "sitecustomize.py").write_text(
        "import av\n"
        "known = av.open\n"
        "def newer(file, mode='r', **options):\n"
        "    if mode == 'r': raise TypeError(\"open() got an unexpected keyword argument 'metadata_errors'\")\n"
        "    return known(file, mode, **options)\n"
        "av.open = newer\n"
    )
    done = run("aqa", "doctor", "--json", AQA_HOME=str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 5
    checks = {c["name"]: c for c in json.loads(done.stdout)}
    assert checks["extract with av on cpu"]["status"] == "fail"
    assert "metadata_errors" in checks["extract with av on cpu"]["value"]


def test_doctor_fails_where_nothing_can_be_written(tmp_path: Path) -> None:
    from aqa_pipelines.doctor import _places

    blocked = tmp_path / "file"
    blocked.write_text("")
    before = os.environ.get("AQA_HOME")
    os.environ["AQA_HOME"] = str(blocked / "home")
    try:
        found = {check.name: check for check in _places()}
    finally:
        os.environ.pop("AQA_HOME")
        if before is not None:
            os.environ["AQA_HOME"] = before
    assert found["weights cache"].status == "note"
    assert "AQA_HOME" in found["weights cache"].fix


def test_doctors_convolution_is_measured_against_float64() -> None:
    import torch

    from aqa_pipelines.doctor import TOLERANCE, convolution_error

    cpu = torch.device("cpu")
    assert 0 < convolution_error(cpu, torch.float32) < TOLERANCE["float32"]
    # bfloat16 keeps 8 bits: an error below 2^-12 would mean that it was not used.
    assert 2**-12 < convolution_error(cpu, torch.bfloat16) < TOLERANCE["bfloat16"]


def test_weights_list_names_licences_without_a_network(tmp_path: Path) -> None:
    done = run("aqa", "weights", "list", "--json", AQA_HOME=str(tmp_path), AQA_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {"rgb", "flow", "actor", "rgb@swin3d_b"} <= {row["kind"] for row in rows}
    assert all(row["licence"] for row in rows)
    assert not any(row["cached"] for row in rows)


def test_weights_that_cannot_be_had_are_an_environment_fault(tmp_path: Path) -> None:
    home = {"AQA_HOME": str(tmp_path), "AQA_OFFLINE": "1"}
    assert run("aqa", "weights", "fetch", "i3d-kinetics-400", **home).returncode == 5
    assert run("aqa", "weights", "verify", "i3d-kinetics-400", **home).returncode == 5
    assert run("aqa", "weights", "verify", **home).returncode == 0
    wrong = run("aqa", "weights", "fetch", "i3d-kinetics-40", **home)
    assert wrong.returncode == 2
    assert "i3d-kinetics-400" in wrong.stderr


# demo


def test_demo_renders_only_on_request(tmp_path: Path) -> None:
    small = ["--videos", "2", "--size", "64x48", "--frames", "12", "--render-only", "--out", "dives", "--workers", "1"]
    done = run("aqa", "demo", *small, "--sheet", "sheet.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    found = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file())
    expected = ["dive_00000.mp4", "dive_00001.mp4", "generator.json", "labels.csv"]
    assert found == [*(f"dives/videos/{name}" for name in expected), "sheet.png"]
    other = run("aqa", "demo", *small, "--seed", "5", cwd=tmp_path)
    assert other.returncode == 2
    assert "--overwrite" in other.stderr


@pytest.mark.parametrize("wrong", [["--size", "big"], ["--size", "63x48"], ["--videos", "0"], ["--frames", "3"]])
def test_demo_refuses_what_cannot_be(wrong: list[str], tmp_path: Path) -> None:
    done = run("aqa", "demo", "--render-only", *wrong, cwd=tmp_path)
    assert done.returncode == 2
    assert "fix:" in done.stderr
    assert not (tmp_path / "demo").exists()


def test_demo_commands_are_commands() -> None:
    """What the demo runs is accepted by the two commands as it stands."""
    from aqa_pipelines.demo import EXTRACT, TRAIN, _precision

    extract = run("aqa-extract", "videos", "--out", "feats.zarr", *EXTRACT, *_precision(), "--print-config")
    assert extract.returncode == 0, extract.stderr
    settings = tomllib.loads(extract.stdout)
    assert settings["streams"] == ["rgb", "actor-rgb"]
    assert settings["precision"] == ("bf16" if has_units_for("bf16", pick_device("auto")) else "fp32")
    train = run("aqa-train", "--features", "feats.zarr", *TRAIN, "--print-config")
    assert train.returncode == 0, train.stderr
    assert "s4aqa" in train.stdout


def test_comparison_by_hand() -> None:
    from aqa_pipelines.demo import comparison

    def row(method: str, values: list[float | None]) -> dict[str, object]:
        known = [v for v in values if v is not None]
        return {"method": method, "selection": "last", "spearman": {"by_seed": values, "mean": sum(known) / len(known)}}

    rows = [row("auto", [0.75, 0.5]), row("aa", [0.5, 0.25]), row("s4aqa", [0.25, 0.75])]
    text = comparison({"rows": rows, "protocol": {"test": 16}})
    assert "S4AQA is +0.125 against AA, ahead in 1 of 2 seeds" in text
    assert "auto is +0.125 against S4AQA, ahead in 1 of 2 seeds" in text
    assert "16 test videos" in text
    assert "ridge" not in text
    ridge = {**row("ridge", [0.125, 0.25]), "selection": "baseline"}
    assert "ridge on mean features          0.125   0.250   0.188" in comparison(
        {"rows": [*rows, ridge], "protocol": {"test": 16}}
    )
    assert comparison({"rows": [], "protocol": {}}) == "the run has no auto, AA and S4AQA to compare"
    rows[1] = row("aa", [0.5, None])
    assert "AA, ahead in 0 of 1 seeds" in comparison({"rows": rows, "protocol": {"test": 16}})


def test_the_demo_tells_to_try_its_own_method() -> None:
    from aqa_pipelines.demo import TRAIN, _where

    assert "aqa predict demo/run demo/videos/dive_00002.mp4 --method auto" in _where(Path("demo"))
    assert "auto" in TRAIN[TRAIN.index("--method") + 1].split(",")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(
    ("how", "told", "code"),
    [
        ("hear", signal.SIGTERM, 143),
        ("die", signal.SIGTERM, 143),
        ("other", signal.SIGTERM, 7),
        ("die", signal.SIGUSR1, 143),
    ],
)
def test_a_terminated_demo_takes_its_command_along(tmp_path: Path, how: str, told: signal.Signals, code: int) -> None:
    stage = """
import signal, sys, time
def main():
    if sys.argv[1] != "die":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143 if sys.argv[1] == "hear" else 7))
    print("running", flush=True)
    time.sleep(60)
"""
    (tmp_path / "stage.py").write_text(stage)
    program = "import sys; from aqa_pipelines import demo; demo.STAGES['s'] = 'stage'\n"
    program += "sys.exit(demo._command('s', sys.argv[1:]))"
    with subprocess.Popen(
        [sys.executable, "-c", program, how], stdout=subprocess.PIPE, env={**ENV, "PYTHONPATH": str(tmp_path)}
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"running\n"
        parent.send_signal(told)
        # The pipe ends when the last process that holds it has ended.
        assert parent.stdout.read() == b""
        assert parent.wait(30) == code


def test_doctor_names_the_weights_to_fetch(tmp_path: Path) -> None:
    from aqa_extract.weights import REGISTRY

    done = run("aqa", "doctor", "--json", AQA_HOME=str(tmp_path), AQA_OFFLINE="1")
    fixes = [c["fix"] for c in json.loads(done.stdout) if c["value"].startswith("none cached")]
    assert len(fixes) == 3, done.stdout
    assert all(re.search(r"aqa weights fetch (\S+)$", fix)[1] in REGISTRY for fix in fixes)  # type: ignore[index]


# predict


def test_predict_takes_streams_and_weights_from_the_checkpoint() -> None:
    from aqa_pipelines.predict import settings_for

    trained = ExtractSettings(
        streams=("rgb", "rgb:logits", "flow", "actor-rgb"),
        sampling=Sampling(segments=4),
        pixels=Pixels(short_side=112, crop=112),
        flow=FlowSettings(mode="parity"),
    )
    weights = {
        "rgb": {"name": "i3d-kinetics-400", "source": "somewhere"},
        "flow": {"name": "mine.pt", "source": "/data/mine.pt"},
    }
    found = settings_for(trained, ["rgb", "actor_rgb"], weights)
    assert found.streams == ("rgb", "actor-rgb")
    assert found.flow.mode == "off"
    assert found.weights == {"rgb": "i3d-kinetics-400"}
    assert (found.sampling, found.pixels) == (trained.sampling, trained.pixels)
    found = settings_for(trained, ["rgb", "flow"], weights)
    assert found.flow.mode == "parity"
    assert found.weights["flow"] == "/data/mine.pt"
    # A map is an output of its stream, and boxes come with what is cut by them.
    assert settings_for(trained, ["rgb_map", "actor_box"], weights).streams == ("rgb:map", "actor-rgb")
    assert settings_for(trained, ["actor_rgb_map", "actor_box"], weights).streams == ("actor-rgb:map",)


def test_predict_says_what_is_wrong(tmp_path: Path) -> None:
    done = run("aqa", "predict", tmp_path, "video.mp4")
    assert done.returncode == 2
    assert "no finished training" in done.stderr
    assert run("aqa", "predict", tmp_path, "video.mp4", "--format", "xml").returncode == 2


def test_a_model_that_reads_columns_refuses_bare_videos_before_anything_is_extracted(
    store: Path, tmp_path: Path
) -> None:
    table, out = tmp_path / "labels.csv", tmp_path / "run"
    ids = ["a\x1b[31m.mp4", *(f"dive{i}.mp4" for i in range(1, 5))]
    table.write_text("id,score,difficulty\n" + "".join(f"{name},{5 + i},{2 + i / 2}\n" for i, name in enumerate(ids)))
    small = ["--epochs", "1", "--seeds", "1", "--jobs", "1", "--device", "cpu", "--set", "mlp_widths=8"]
    train = ["--features", store, "--labels", table, "--method", "i3d+mlp-dd", "--test-fraction", "0.3", *small]
    done = run("aqa-train", *train, "--out", out)
    assert done.returncode == 0, done.stderr
    done = run("aqa", "predict", out, tmp_path / "no-such-video.mp4", "--device", "cpu")
    assert done.returncode == 2
    assert "reads difficulty" in done.stderr
    assert "aqa-extract --labels FILE" in done.stderr


def test_from_videos_to_scores(tmp_path: Path, i3d_rgb_weights: str) -> None:
    """Render, extract, train, predict with the real commands; the scores are those the trainer tested with."""
    render = ["--videos", "9", "--size", "64x48", "--frames", "16", "--render-only", "--out", "d", "--workers", "1"]
    assert run("aqa", "demo", *render, cwd=tmp_path).returncode == 0
    extract = [
        "--segments",
        "1",
        "--short-side",
        "32",
        "--crop",
        "32",
        "--weights",
        f"rgb={i3d_rgb_weights}",
        "--device",
        "cpu",
    ]
    done = run("aqa-extract", "d/videos", "--out", "feats.zarr", *extract, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    train = ["--method", "aa", "--labelled", "1.0", "--seeds", "1", "--epochs", "3", "--out", "run", "--device", "cpu"]
    done = run("aqa-train", "--features", "feats.zarr", *train, "--jobs", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    (tmp_path / "broken.mp4").write_text("no video")
    videos = ["d/videos/dive_00005.mp4", "broken.mp4", "d/videos/dive_00002.mp4", "d/videos/dive_00000.mp4"]
    done = run("aqa", "predict", "run", *videos, "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "broken.mp4" in done.stderr
    assert "model: aa, fold 0, seed 0, epoch 3" in done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [Path(row["path"]).name for row in rows] == ["dive_00005.mp4", "dive_00002.mp4", "dive_00000.mp4"]
    # Known by its content: here it has another id than in the store that was learned from.
    assert [row["in_sample"] for row in rows] == ["false", "false", "true"]
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        tested = {row["id"]: float(row["predicted"]) for row in csv.DictReader(file) if row["method"] == "aa"}
    for row in rows[:2]:
        assert float(row["score"]) == pytest.approx(tested[Path(row["path"]).name], abs=2e-3)

    only_bad = ["broken.mp4", "--format", "json", "--out", "p.json", "--device", "cpu"]
    done = run("aqa", "predict", "run", *only_bad, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    record = json.loads((tmp_path / "p.json").read_text())
    assert record["scores"] == []
    assert record["failures"][0]["id"] == "broken.mp4"


def test_predictions_as_json_and_csv() -> None:
    from aqa_pipelines.predict import Predictions, Scored, as_text

    model = {"run": "runs/\udcff", "method": "aa", "models": 5}
    rows = [Scored("a,b.mp4", "/v/a\udcff,b.mp4", 7.25, 0.5, 4, False), Scored("c.mp4", "/v/c.mp4", 1.0, None, 1, True)]
    result = Predictions(model, rows, [])
    assert json.loads(as_text(result, "json")) == {
        "model": {"run": "runs/\\xff", "method": "aa", "models": 5},
        "scores": [
            {
                "id": "a,b.mp4",
                "path": "/v/a\\xff,b.mp4",
                "score": 7.25,
                "spread": 0.5,
                "members": 4,
                "in_sample": False,
            },
            {"id": "c.mp4", "path": "/v/c.mp4", "score": 1.0, "spread": None, "members": 1, "in_sample": True},
        ],
        "failures": [],
    }
    assert as_text(result, "csv").splitlines() == [
        "id,path,score,spread,method,members,in_sample",
        '"a,b.mp4","/v/a\\xff,b.mp4",7.2500,0.5000,aa,4,false',
        "c.mp4,/v/c.mp4,1.0000,,aa,1,true",
    ]


def test_a_store_is_scored_without_its_videos(store: Path, tmp_path: Path) -> None:
    """The run's own store: its training videos are known by their ids, and said to be."""
    run_folder = tmp_path / "run"
    train = [
        "--seeds",
        "2",
        "--jobs",
        "1",
        "--device",
        "cpu",
        "--out",
        run_folder,
    ]
    done = run("aqa-train", "--features", store, *train)
    assert done.returncode == 0, done.stderr
    done = run("aqa", "predict", run_folder, store, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "auto, the mean of 2 models" in done.stderr
    assert "no prediction for 3 videos" in done.stderr
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [r["id"] for r in rows] == ["a\x1b[31m.mp4", *(f"dive{i}.mp4" for i in range(1, 5))]
    assert [r["in_sample"] for r in rows] == ["true"] * 3 + ["false"] * 2
    assert {r["members"] for r in rows} == {"2"}
    with (run_folder / "scores.csv").open(newline="") as file:
        fair = {r["id"]: r for r in csv.DictReader(file)}
    for r in rows[3:]:
        assert float(r["score"]) == pytest.approx(float(fair[r["id"]]["score"]), abs=1e-3)
        assert float(r["spread"]) == pytest.approx(float(fair[r["id"]]["spread"]), abs=1e-3)
    assert all(fair[r["id"]]["score"] == "" for r in rows[:3])
    record = json.loads(run("aqa", "predict", run_folder, store, "--format", "json", "--device", "cpu").stdout)
    assert record["model"] == {"run": str(run_folder), "method": "auto", "models": 2}
    beside = run("aqa", "predict", run_folder, store, "new.mp4")
    assert beside.returncode == 2
    assert "give one store, or videos" in beside.stderr
    decoded = run("aqa", "predict", run_folder, store, "--decoder", "av")
    assert decoded.returncode == 2
    assert "omit --decoder and --workers" in decoded.stderr
