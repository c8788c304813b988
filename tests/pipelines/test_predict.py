"""`aqa predict`: from videos and stores to scores."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from aqa_shared.records import ExtractSettings, FlowSettings, Pixels, Sampling

from .commands import copy_cut, run


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

    # The message of a damaged video names an option, which has to be one of this command too.
    cut = tmp_path / "cut.mp4"
    copy_cut(tmp_path / "d/videos/dive_00002.mp4", cut)
    done = run("aqa", "predict", "run", "cut.mp4", "--device", "cpu", cwd=tmp_path)
    assert (done.returncode, "--accept-damaged" in done.stderr) == (3, True), done.stderr
    done = run("aqa", "predict", "run", "cut.mp4", "--accept-damaged", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "cut.mp4: accepted with" in done.stderr
    assert [row["id"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["cut.mp4"]
    done = run("aqa", "predict", "run", "feats.zarr", "--accept-damaged", "--device", "cpu", cwd=tmp_path)
    assert (done.returncode, "is a store, of which nothing is decoded" in done.stderr) == (2, True), done.stderr

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
    assert "omit --decoder, --workers and --accept-damaged" in decoded.stderr
