"""CoRe: it learns, resumes to the bit, scores a video the same alone, and is saved and predicted with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_shared.store import FeatureStore
from aqa_train.batch import Batch
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods.core import CoRe, CoReConfig
from aqa_train.metrics import spearman
from aqa_train.predict import load_checkpoint
from aqa_train.trainer import Task, fit, predict

from .conftest import MakeStore, synthetic
from .core_cases import CPU, SCALE, SMALL, fitted, task_for
from .method_checks import resumes_to_the_bit
from .runs import aqa_train


def test_a_stopped_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    """Also the exemplars, their order and the groups, which are made before the first step alone."""
    task = task_for(12, 8, "core-dd", category=list("aabb" * 3), difficulty=[2.0, 2.5, 3.0] * 4)
    config = CoReConfig(**SMALL, difficulty=True)  # type: ignore[arg-type]

    def trained(**options: Any) -> Any:
        how = Training(epochs=3, batch=4)
        return fit(lambda: CoRe(task[1], config), task[0], how, seed=[1], device=CPU, **options)

    resumes_to_the_bit(trained, tmp_path, 4)


FORMS = {"i3d+mlp": (False, "mlp"), "i3d+gart": (False, "gart"), "core+mlp": (True, "mlp"), "core": (True, "gart")}


@pytest.mark.parametrize("name", list(FORMS))
def test_a_video_scores_the_same_alone_shuffled_and_padded(name: str) -> None:
    compare, head = FORMS[name]
    task = task_for(14, 8)
    model = fitted(task, epochs=3, compare=compare, head=head).model
    batch = task[0].features.load(np.arange(14), CPU)
    with torch.no_grad():
        whole = model(batch)
        turned = model(batch.take(torch.arange(13, -1, -1)))
        alone = torch.cat([model(batch.take(torch.tensor([i]))) for i in range(14)])
        padded = model(
            Batch({"rgb": F.pad(batch.streams["rgb"], (0, 0, 0, 2))}, batch.scores, torch.arange(5).expand(14, 5) < 3)
        )
        order = batch.streams["rgb"][:, [2, 0, 1]]
        permuted = model(replace(batch, streams={"rgb": order}))
    for other in (turned.flip(0), alone, padded, permuted):
        torch.testing.assert_close(other, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "variant"), [*((name, "code") for name in FORMS), ("core", "paper")])
def test_eight_videos_are_learned(name: str, variant: str) -> None:
    compare, head = FORMS[name]
    x, scores = synthetic(8, 3, 48)
    found = FeatureSet.from_arrays({"rgb": x}, {}).place(CPU, "yes")
    rows = np.arange(8)
    read, shape = found.prepared({}, {}, rows, rows, "none")
    task = Task(read, rows, np.arange(0), np.arange(0), SCALE.to_training(scores))
    config = CoReConfig(
        width=32, depth=3 if variant == "code" else 2, mlp_widths=(32,), compare=compare, head=head, variant=variant
    )  # type: ignore[arg-type]
    training = Training(epochs=250, batch=8, lr=1e-2, weight_decay=0, schedule="cosine")
    model = fit(lambda: CoRe(replace(shape, scale=SCALE), config), task, training, seed=[0], device=CPU).model
    value = spearman(predict(model, read, rows, CPU), scores)
    assert value is not None
    assert value > 0.95


def test_all_rows_are_trained_saved_and_predicted_with(make_store: MakeStore, tmp_path: Path) -> None:
    labels = [{"difficulty": 2.0 + 0.5 * (i % 2), "category": "ab"[i // 2 % 2]} for i in range(24)]
    store, out = make_store(videos=24, labels=labels), tmp_path / "run"
    methods = [f + dd for dd in ("", "-dd") for f in FORMS if f + dd != "i3d+mlp"]
    aqa_train("--features", store, "--method", ",".join(methods), "--labelled", 0.8, "--seeds", 1, "--test-fraction",
              0.25, "--epochs", 2, "--jobs", 1, "--device", "cpu", "--set", "width=8", "--set", "mlp_widths=8",
              "--out", out)  # fmt: skip
    opened = FeatureStore.open(store)
    for name in methods:
        model = load_checkpoint(out / "models" / name / "fold0-seed0")
        assert model.meta["training"]["lr"] == 1e-3
        assert model.meta["training"]["weight_decay"] == 0
        whole = model.score(opened)
        columns = {n: np.array([labels[5][n]], dtype=object) for n in ("difficulty", "category")}
        alone = model.score({"rgb": opened.read("rgb").reshape(24, 4, 16)[5:6], **columns})
        assert alone[0] == pytest.approx(whole[5], rel=1e-4)
        if name.startswith("core"):
            with pytest.raises(UsageError, match="its category is not known"):
                model.score({"rgb": opened.read("rgb").reshape(24, 4, 16)[5:6], **columns, "category": np.array(["c"])})
