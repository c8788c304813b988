"""TSA-Net: the tube by hand, its attention against the authors' code, what is trained, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_shared.records import ExtractSettings, Sampling, Video
from aqa_shared.store import ArraySpec, StoreWriter
from aqa_train.batch import Batch, Inputs
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods.tsa_net import TSANet, TSANetConfig, seen_in_crop
from aqa_train.methods.usdl import divergence, soft_label
from aqa_train.metrics import spearman
from aqa_train.stream_names import adds_streams
from aqa_train.trainer import Task, fit, predict

from .method_checks import CPU, SCALE, part, prepared, say_the_same_when_loaded, trained_by
from .runs import aqa_train

SMALL = TSANetConfig(bins=11, sigma=1.0, widths=(8,), decoding="expectation")
SHAPES: dict[str, tuple[int, ...]] = {"rgb_map": (6, 2, 3, 4), "actor_box": (4, 4)}
NONE = slice(0)


def dives(n: int = 5, segments: int = 3, seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    cells = torch.rand(n, segments, *SHAPES["rgb_map"], generator=g)
    corner = torch.rand(n, segments, 4, 2, generator=g) * 0.6
    boxes = torch.cat([corner, corner + 0.3], dim=-1)
    scores = torch.rand(n, generator=g) * 5
    return Batch({"rgb_map": cells, "actor_box": boxes}, scores, None, {}, tuple(f"v{i}" for i in range(n)))


def small(config: TSANetConfig = SMALL) -> Any:
    torch.manual_seed(0)
    model = TSANet(Inputs(dict(SHAPES), 3, {}, SCALE), config)
    nn.init.ones_(model.norm.weight)
    return model


# ---- the tube


def test_boxes_in_the_picture_that_was_seen() -> None:
    # A frame twice as wide as high: a square of a half of its height is a quarter of its width.
    box = torch.tensor([0.5, 0.25, 0.75, 0.75])
    # The middle square is half of the width: to the right of the middle, all of its right half.
    assert seen_in_crop(box, "crop", 1.0).tolist() == pytest.approx([0.5, 0.25, 1.0, 0.75])
    # Of that the network saw the middle half.
    assert seen_in_crop(box, "crop", 0.5).tolist() == pytest.approx([0.5, 0.0, 1.5, 1.0])
    assert seen_in_crop(box, "squash", 1.0).tolist() == pytest.approx(box.tolist())
    # Upright: twice as high as wide.
    tall = torch.tensor([0.25, 0.5, 0.75, 0.75])
    assert seen_in_crop(tall, "crop", 1.0).tolist() == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_the_tube_by_hand() -> None:
    """Four frames, of which the first two stand for the first of two maps of 3 × 4 places."""
    model = small(replace(SMALL, fit="squash", crop=1.0))
    boxes = torch.tensor([
        [0.0, 0.0, 0.2, 0.2], [0.3, 0.0, 0.4, 0.2], [0.8, 0.7, 0.9, 0.9], [1.2, 0.7, 1.3, 0.9],
    ])  # fmt: skip
    tube = model.tube(boxes[None, None], (2, 3, 4))
    assert tube.int().tolist() == [[[[[1, 1, 0, 0], [0] * 4, [0] * 4], [[0] * 4, [0] * 4, [0, 0, 0, 1]]]]]


# ---- attention


def _reference_tube(model: Any, x: Tensor, mask: Tensor) -> Tensor:
    """`TSA_Module.forward` with `_NonLocalBlockND.forward`, models/i3d.py; x (batch, channels, T, H, W).

    There batch norm sees one video at a time; here in evaluation, where that does not matter.
    """
    x = x.clone()
    for b in range(len(x)):
        own = x[b][:, mask[b]][None]
        g = F.conv1d(own, model.value.weight[..., None], model.value.bias).permute(0, 2, 1)
        f = torch.softmax(torch.matmul(own.permute(0, 2, 1), own), dim=-1)
        y = torch.matmul(f, g).permute(0, 2, 1)
        w = model.norm(F.conv1d(y, model.back.weight[..., None], model.back.bias))
        x[b][:, mask[b]] = (w + own)[0]
    return x


def test_attention_is_the_authors() -> None:
    model, batch = small().eval(), dives()
    x = batch.streams["rgb_map"]
    tube = model.tube(batch.streams["actor_box"], (2, 3, 4))
    assert 0.1 < tube.float().mean() < 0.9
    # Segments follow one another in time.
    expected = _reference_tube(model, x.transpose(1, 2).flatten(2, 3), tube.flatten(1, 2))
    torch.testing.assert_close(model.features(batch), expected.mean(dim=(2, 3, 4)), atol=1e-6, rtol=1e-5)
    plain = small(replace(SMALL, attention=False))
    torch.testing.assert_close(plain.features(batch), x.mean(dim=(1, 3, 4, 5)))
    # A new tube changes nothing, as theirs.
    new = TSANet(Inputs(dict(SHAPES), 3, {}, SCALE), SMALL)
    torch.testing.assert_close(new.features(batch), x.mean(dim=(1, 3, 4, 5)))


def test_what_is_outside_the_tube_matters_to_the_mean_alone() -> None:
    model, batch = small().eval(), dives(1)
    before = model.features(batch)
    tube = model.tube(batch.streams["actor_box"], (2, 3, 4))
    outside = (~tube)[:, :, None].expand_as(batch.streams["rgb_map"])
    moved = replace(batch, streams={**batch.streams, "rgb_map": batch.streams["rgb_map"] + outside * 2.0})
    added = (outside * 2.0).mean(dim=(1, 3, 4, 5))
    torch.testing.assert_close(model.features(moved), before + added)
    # An actor who is nowhere in the picture: the map as it is, in training too.
    away = replace(batch, streams={**batch.streams, "actor_box": batch.streams["actor_box"] + 5})
    plain = batch.streams["rgb_map"].mean(dim=(1, 3, 4, 5))
    torch.testing.assert_close(model.features(away), plain)
    torch.testing.assert_close(model.train().features(away), plain)


def test_scaled_attention_looks_further() -> None:
    sharp, wide = (small(replace(SMALL, scaled=s)).eval() for s in (False, True))
    x = torch.eye(3, 6) * 40
    for model in (sharp, wide):
        nn.init.eye_(model.value.weight)
        nn.init.eye_(model.back.weight)
        nn.init.zeros_(model.value.bias)
        nn.init.zeros_(model.back.bias)
    mean = wide.attend(x * 0.05, [3]) - x * 0.05
    assert mean[0, 1] > 0.05
    assert (sharp.attend(x, [3]) - x)[0, 1].abs() < 1e-6


# ---- the loss, and as any method


def test_the_loss_is_usdls() -> None:
    model, batch = small(), dives()
    found = model.losses(batch, part(batch, NONE))
    model.norm.reset_running_stats()
    target = soft_label(batch.scores * 2, 11, 1.0)
    torch.testing.assert_close(found["distribution"], divergence(model.head(model.features(batch)), target))


def test_the_loss_trains_all_parts() -> None:
    assert trained_by(small(), "distribution", dives()) == {"value", "back", "norm", "head"}
    new = TSANet(Inputs(dict(SHAPES), 3, {}, SCALE), SMALL)
    assert trained_by(new, "distribution", dives()) == {"norm", "head"}


@torch.no_grad()
def test_a_video_scores_the_same_alone_and_padded() -> None:
    model, batch = small(), dives()
    model.losses(batch, part(batch, NONE))
    model.eval()
    together = model(batch)
    assert together.std() > 0
    alone = torch.cat([model(part(batch, slice(i, i + 1))) for i in range(5)])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    padded = {n: F.pad(x, (0, 0) * (x.ndim - 2) + (0, 2)) for n, x in batch.streams.items()}
    present = torch.arange(5).lt(3).expand(5, 5)
    torch.testing.assert_close(model(replace(batch, streams=padded, present=present)), together, atol=1e-5, rtol=1e-4)
    # Places of the tube are a set.
    turned = {n: x.flip(1) for n, x in batch.streams.items()}
    torch.testing.assert_close(model(replace(batch, streams=turned)), together, atol=1e-5, rtol=1e-4)


def test_bad_inputs_name_the_fix() -> None:
    for streams in ({"rgb": (6,), "actor_box": (4, 4)}, {"rgb_map": (6, 2, 3, 4)}):
        with pytest.raises(UsageError, match="reads one map and the actor's boxes") as e:
            TSANet(Inputs(streams, 3, {}, SCALE), SMALL)  # type: ignore[arg-type]
        assert "rgb:map,actor-rgb" in e.value.fix
    batch = dives()
    batch.streams["actor_box"][2, 1, 0] = 0.0
    with pytest.raises(UsageError, match="boxes are not boxes") as e:
        prepared(small(), batch)
    assert "standardise=none" in e.value.fix
    assert adds_streams("s", ["rgb:map", "actor_box"]) == "aqa-extract VIDEOS --streams rgb:map,actor-rgb --out s"


def test_it_learns_by_heart() -> None:
    batch = dives(8)
    found = FeatureSet.from_arrays({n: x.numpy() for n, x in batch.streams.items()}, {}).place(CPU, "yes")
    rows, none = np.arange(8), np.arange(0)
    scores = np.array([0.4, 3.1, 1.2, 4.9, 2.2, 3.8, 0.9, 4.4])
    how = Training(epochs=250, batch=8, lr=1e-2, weight_decay=0)
    inputs = Inputs(dict(SHAPES), 3, {}, SCALE)
    model = fit(lambda: TSANet(inputs, SMALL), Task(found, rows, none, none, scores), how, seed=[0], device=CPU).model
    reached = spearman(predict(model, found, rows, CPU), scores)
    assert reached is not None
    assert reached > 0.95


def store_with_boxes(path: Path, boxes: bool = True, features: bool = True) -> Path:
    """A map, and what its boxes come with."""
    settings = ExtractSettings(streams=("rgb:map", "actor-rgb"), sampling=Sampling(segments=3))
    roles = {"rgb_map": "map", **({"actor_box": "coordinate"} if boxes else {})}
    roles |= {"actor_rgb": "feature"} if features else {}
    shapes = {**SHAPES, "actor_rgb": (6,)}
    specs = [
        ArraySpec(n, tuple(f"{n}{i}" for i in range(len(shapes[n]))), shapes[n], "float32", role=role)  # type: ignore[arg-type]
        for n, role in roles.items()
    ]
    batch = dives(20)
    with StoreWriter.open(path, specs=specs, settings=settings, provenance={}) as writer:
        records = {}
        for i in range(20):
            name = f"{i:03d}.mp4"
            records[name] = Video(id=name, path=f"/v/{name}", score=float(batch.scores[i]))
            own = {n: x[i].numpy() for n, x in batch.streams.items()} | {"actor_rgb": np.ones((3, 6), np.float32) * i}
            writer.commit(name, {n: own[n] for n in roles}, {})
        writer.finalise(records)
    return path


def test_a_checkpoint_says_the_same(tmp_path: Path) -> None:
    options = ["--epochs", 2, "--set", "widths=8", "--set", "bins=11", "--set", "decoding=expectation"]
    say_the_same_when_loaded(["tsa-net"], store_with_boxes(tmp_path / "s.zarr"), tmp_path / "out", *options)
    with pytest.raises(UsageError, match="tsa-net needs actor_box") as e:
        aqa_train("--features", store_with_boxes(tmp_path / "t.zarr", boxes=False), "--method", "tsa-net",
                  "--out", tmp_path / "other")  # fmt: skip
    assert "--streams actor-rgb,rgb:map" in e.value.fix


def test_a_store_without_features_says_what_adds_them(tmp_path: Path) -> None:
    store = store_with_boxes(tmp_path / "m.zarr", features=False)
    for method in ("tsa-net", "ridge", "auto"):
        with pytest.raises(UsageError, match="zarr holds no features") as e:
            aqa_train("--features", store, "--method", method, "--out", tmp_path / "run")
        assert "aqa-extract VIDEOS --streams rgb --out" in e.value.fix
