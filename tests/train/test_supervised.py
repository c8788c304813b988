"""All supervised methods from the command line: trained on a store, tested, and used from their checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aqa_shared.errors import UsageError
from aqa_shared.store import FeatureStore
from aqa_train.predict import load_checkpoint

from .conftest import MakeStore
from .runs import aqa_train, read_csv

METHODS = (
    "i3d+mlp", "usdl", "musdl", "musdl-jigsaws", "gdlt", "action-net", "c3d-avg-stl", "c3d-avg-mtl", "dae", "hgcn",
    "rica2", "rica2-dd",
)  # fmt: skip
SMALL = {
    "usdl.decoding": "expectation", "musdl.decoding": "expectation", "musdl-jigsaws.decoding": "expectation",
    "gdlt.width": 8, "action-net.width": 8, "c3d-avg-mtl.caption_width": 8, "hgcn.groups": 2, "rica2.width": 16,
    "rica2-dd.width": 16,
}  # fmt: skip
"""Against ties of the likeliest bins, and against the time that the papers' widths take."""
VIDEOS = 20


def labels() -> list[dict[str, Any]]:
    """Dives as MTL-AQA has them, with ratings as JIGSAWS has them; `extra` holds the columns that no record has."""
    rng = np.random.default_rng(0)
    return [
        {
            "difficulty": float(rng.choice([2.0, 2.8, 3.4])),
            "extra": {
                "judge_scores": json.dumps((rng.integers(8, 20, 7) / 2).tolist()),
                "ratings": json.dumps(rng.integers(1, 6, 6).tolist()),
                "position": int(rng.integers(3)),
                "armstand": int(rng.integers(2)),
                "rotation_type": int(rng.integers(4)),
                "ss_no": int(rng.integers(10)),
                "tw_no": int(rng.integers(8)),
                "caption": json.dumps(["<sos>", "a", str(rng.choice(["clean", "late"])), "entry", "<eos>"]),
            },
        }
        for _ in range(VIDEOS)
    ]


@pytest.mark.parametrize("ragged", [False, True])
def test_each_is_trained_saved_and_predicted_with(make_store: MakeStore, tmp_path: Path, ragged: bool) -> None:
    lengths = [2 + i % 3 for i in range(VIDEOS)] if ragged else None
    store, out = make_store(videos=VIDEOS, labels=labels(), lengths=lengths), tmp_path / "run"
    settings = [a for name, value in SMALL.items() for a in ("--set", f"{name}={value}")]
    aqa_train(
        "--features",
        store,
        "--method",
        ",".join(METHODS),
        "--labelled",
        0.6,
        "--seeds",
        1,
        "--test-fraction",
        0.3,
        "--epochs",
        2,
        "--jobs",
        1,
        "--device",
        "cpu",
        "--score-range",
        "0,100",
        *settings,
        "--out",
        out,
    )
    rows = {r["method"]: r for r in json.loads((out / "metrics.json").read_text())["rows"]}
    assert {m for m in METHODS if rows[m]["uses_difficulty"]} == {"musdl", "rica2", "rica2-dd"}
    assert {m for m in METHODS if load_checkpoint(out / "models" / m / "fold0-seed0").standardise is None} == {
        "gdlt", "hgcn",
    }, "normalises by itself, or learns less from z-scored features"  # fmt: skip
    said = {(r["method"], r["id"]): float(r["score"]) for r in read_csv(out / "scores.csv") if r["score"]}
    opened = FeatureStore.open(store)
    tested = json.loads((out / "splits" / "fold0-seed0.json").read_text())["test"]
    at = opened.ids.index(tested[0])
    for method in METHODS:
        model = load_checkpoint(out / "models" / method / "fold0-seed0")
        scores = model.score(opened)
        assert np.isfinite(scores).all()
        assert len(set(scores.round(9).tolist())) > VIDEOS / 2, method
        for name in tested:
            assert said[method, name] == pytest.approx(scores[opened.ids.index(name)], rel=1e-5), method
        if not ragged:
            columns = {
                "difficulty": opened.column("difficulty")[at : at + 1],
                **{k: [v] for k, v in labels()[at]["extra"].items()},
            }
            alone = model.score({"rgb": opened.read("rgb")[at * 4 : at * 4 + 4][None], **columns})
            assert alone[0] == pytest.approx(scores[at], rel=1e-4), method


def test_what_a_store_lacks_is_said_with_what_gives_it(make_store: MakeStore, tmp_path: Path) -> None:
    plain = make_store(videos=12)
    for method, column in (("musdl", "difficulty"), ("musdl-jigsaws", "ratings"), ("c3d-avg-mtl", "position"),
                           ("rica2-dd", "difficulty")):  # fmt: skip
        with pytest.raises(UsageError, match=f"{method} reads the column {column}, and no video has it") as e:
            aqa_train("--features", plain, "--method", method, "--seeds", 1, "--device", "cpu", "--out", tmp_path / "o")
        assert "--labels FILE" in e.value.fix
