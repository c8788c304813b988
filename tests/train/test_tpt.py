"""TPT: the order of parts by hand and against the authors' code, what is trained, exemplars, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.columns import ColumnEncoder
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.layers import order_in_time
from aqa_train.methods import METHODS
from aqa_train.methods.tpt import TPT, TPTConfig
from aqa_train.metrics import spearman
from aqa_train.trainer import Task, fit, predict

from .conftest import MakeStore
from .method_checks import (
    CPU,
    alone_as_together,
    learns_by_heart,
    part,
    prepared,
    say_the_same_when_loaded,
    shape,
    trained_by,
    videos,
)

SMALL = TPTConfig(width=16, forward_width=16, heads=2, head_width=8, groups=4, parts=3, dropout=0.0, voters=3)


def small(config: TPTConfig = SMALL, labelled: int = 6, **columns: Any) -> Any:
    torch.manual_seed(0)
    specs = {n: ColumnEncoder("category", ("a", "b")) if n == "category" else ColumnEncoder("number") for n in columns}
    return prepared(TPT(shape(columns=specs), config), videos(labelled, columns=columns))


# ---- the order of parts


def _reference_order(attention: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """`RunPair.get_att_loss` of baiyang4/aqa_tpt, of one layer; attention (batch, time, part)."""
    hinge = nn.MarginRankingLoss(margin=margin)
    steps = attention.shape[1]
    at = torch.arange(1, steps + 1).float()[None, :, None].expand_as(attention)
    mean = (attention * at).sum(1)
    var = (torch.abs(at - mean[:, None]) * attention).sum(1)
    total = torch.zeros(())
    for i in range(attention.size(-1) - 1):
        former, latter = mean[:, i], mean[:, i + 1]
        one = torch.ones_like(former)
        loss = hinge(latter, former, one)
        if i == 0:
            loss = loss + hinge(former, one, one)
        if i == attention.size(-1) - 2:
            loss = loss + hinge(one * steps, latter, one)
        total = total + loss
    return total, var.mean()


def test_ranking_and_sparsity_are_the_authors() -> None:
    looked = [torch.randn(6, 3, 20, generator=torch.Generator().manual_seed(i)).softmax(-1) for i in range(2)]
    expected = [_reference_order(a.transpose(1, 2), 3.2) for a in looked]
    found = small()._in_order(looked, torch.full((6,), 20))
    torch.testing.assert_close(found, tuple(torch.stack(x).sum() for x in zip(*expected, strict=True)))


def test_ranking_by_hand() -> None:
    """Of eight segments two are to lie between parts: at 2, 3 and 8, one, and three at the ends, is missing."""
    attention = torch.zeros(1, 3, 8)
    attention[0, [0, 1, 2], [1, 2, 7]] = 1.0
    there = torch.ones(1, 3, dtype=torch.bool)
    gaps, ends, spread = order_in_time(attention, there, torch.tensor([8]), torch.tensor([2.0]))
    assert (gaps.item(), ends.item(), spread.item()) == (0.5, 3.0, 0.0)
    # The margin is a part of each video's own length: of 8 segments .25 are two.
    ranking, sparsity = small(replace(SMALL, margin=0.25))._in_order([attention], torch.tensor([8]))
    assert (ranking.item(), sparsity.item()) == (4.0, 0.0)


# ---- parsing


def _reference_parse(model: Any, memory: Tensor) -> tuple[Tensor, Tensor]:
    """`ActionDecoder.forward` and `ActionDecoderLayer.forward`, layer.py, without dropout."""
    embedding = model.query[None].expand(len(memory), -1, -1)
    tgt, found = torch.zeros_like(embedding), []
    for layer in model.parsing:
        key, value = layer.key(memory), layer.value(memory)
        query = layer.ask(tgt + embedding)
        adjacency = torch.div(torch.matmul(key, query.transpose(-1, -2)), key.size(-1)) / layer.temperature
        adjacency = F.softmax(adjacency, dim=1)
        tgt = layer.norm[0](tgt + torch.matmul(adjacency.transpose(-1, -2), value))
        tgt = layer.norm[1](tgt + layer.forth[3](F.relu(layer.forth[0](tgt))))
        if layer.among is not None:
            q = k = tgt + embedding
            tgt = layer.norm[2](tgt + layer.among(q, k, value=tgt)[0])
        found.append(adjacency)
    return tgt, torch.cat(found, dim=1)


def test_parts_are_the_authors() -> None:
    model, x = small().eval(), videos(4).streams["rgb"]
    parts, looked = model.parse(x, torch.ones(4, 4, dtype=torch.bool))
    expected, attention = _reference_parse(model, x)
    torch.testing.assert_close(parts, expected)
    torch.testing.assert_close(torch.cat(looked, dim=2).transpose(1, 2), attention)


def test_the_authors_sizes_are_the_default() -> None:
    model: Any = TPT(shape(channels=1024))
    assert model.query.shape == (5, 512)
    assert [tuple(layer.weight.shape) for layer in model.group if isinstance(layer, nn.Linear)] == [
        (128, 512), (16, 128),
    ]  # fmt: skip
    assert [layer.among is not None for layer in model.parsing] == [True, False]
    assert model.parsing[0].temperature.item() == pytest.approx(0.07)
    rest, heads = model.parameter_groups()
    assert heads["lr_scale"] == 10
    assert {id(p) for g in (rest, heads) for p in g["params"]} == {id(p) for p in model.parameters()}


# ---- losses


def test_losses_by_hand() -> None:
    """Two videos worth 1 and 3, all groups equally likely, every place a half."""
    batch = videos(2)
    batch.scores[:] = torch.tensor([1.0, 3.0])
    model = prepared(TPT(shape(), replace(SMALL, groups=2)), batch)
    assert model.bounds.tolist() == [-5.0, 0.0, 5.0]
    with torch.no_grad():
        for head in (model.group, model.position):
            for p in head.parameters():
                p.zero_()
    terms = model.losses(batch, part(batch, slice(0)))
    # Both directions: log 2 each. Places are 2 / 5 above and 3 / 5 below, .1 away from a half, in both groups.
    assert terms["group"].item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert terms["position"].item() == pytest.approx(4 * 0.01, rel=1e-5)
    # The first group is taken: −5 + 5 · .5 and the other's score.
    assert model.eval()(batch).tolist() == pytest.approx([0.5, -1.5])


def test_each_loss_trains_exactly_its_parts() -> None:
    model, batch = small(), videos(6)
    seeing = {"query", "parsing"}
    assert set(model.losses(batch, part(batch, slice(0)))) == {"group", "position", "ranking", "sparsity"}
    assert trained_by(model, "group", batch) == seeing | {"pair", "group"}
    assert trained_by(model, "position", batch) == seeing | {"pair", "position"}
    assert trained_by(model, "ranking", batch) == trained_by(model, "sparsity", batch) == seeing


# ---- as any method


def test_a_video_scores_the_same_alone_and_padded() -> None:
    alone_as_together(small(), videos(6, seed=1))


def test_the_order_of_segments_does_not_matter_but_to_the_losses() -> None:
    """Parts are sums over time; only what is learned of them knows an order, as in the authors' code."""
    model, batch = small().eval(), videos(6, seed=1)
    turned = replace(batch, streams={"rgb": batch.streams["rgb"].flip(1)})
    torch.testing.assert_close(model(turned), model(batch), atol=1e-5, rtol=1e-4)
    torch.manual_seed(0)
    ranking = model.losses(batch, part(batch, slice(0)))["ranking"]
    torch.manual_seed(0)
    assert model.losses(turned, part(batch, slice(0)))["ranking"] != ranking


def test_difficulty_divides_what_is_compared() -> None:
    """All pairs are equal in score / difficulty: a video is as good as its exemplars, times its own difficulty."""
    difficulty = torch.tensor([1.0, 2, 1, 2, 1, 2])
    batch = videos(6, columns={"difficulty": difficulty})
    batch.scores[:] = 2 * difficulty
    config = replace(SMALL, difficulty=True, groups=2)
    model = prepared(TPT(shape(columns={"difficulty": ColumnEncoder("number")}), config), batch).eval()
    assert model.exemplars.known.tolist() == pytest.approx([5.0] * 6)
    with torch.no_grad():
        nn.init.constant_(model.position[-1].bias, -100.0)
        nn.init.zeros_(model.position[-1].weight)
        nn.init.zeros_(model.group[-1].weight)
        model.group[-1].bias.copy_(torch.tensor([0.0, 1.0]))
    assert model(batch).tolist() == pytest.approx(batch.scores.tolist(), rel=1e-5)


def test_a_category_without_exemplar_is_refused() -> None:
    with pytest.raises(UsageError, match="v5 cannot be compared: it is the only labelled video of the category b") as e:
        small(category=torch.tensor([0, 0, 0, 0, 0, 1]))
    assert "--set across=true" in e.value.fix
    with pytest.raises(UsageError, match="width = 16 is not a multiple of heads = 3"):
        TPT(shape(), replace(SMALL, heads=3))


def test_it_learns_by_heart() -> None:
    learns_by_heart(lambda i: TPT(i, replace(SMALL, voters=7)), {}, epochs=120, lr=5e-3)


def test_its_recipe_learns_from_features_that_are_positive_and_differ_little() -> None:
    """As frozen ones do: it has no normalisation of its own, so that its recipe z-scores them."""
    rng, row = np.random.default_rng(7), METHODS["tpt"]
    latent, direction = rng.normal(size=60), rng.normal(size=64)
    features = 0.2 + 0.01 * latent[:, None, None] * direction + 0.02 * rng.normal(size=(60, 4, 64))
    scores, train, test = 2.5 + 0.75 * latent, np.arange(40), np.arange(40, 60)
    how = Training(**{**row.recipe(""), "epochs": 8, "batch": 4})
    found = FeatureSet.from_arrays({"rgb": features.astype(np.float32)}, {"score": scores}).place(CPU, "yes")
    read, inputs = found.prepared({}, {}, train, train, how.standardise)
    task = Task(read, train, test[:0], test[:0], scores)
    model = fit(lambda: row.load()(inputs), task, how, seed=[1], device=CPU).model
    assert (spearman(predict(model, read, test, CPU), scores[test]) or 0) > 0.8


def test_a_checkpoint_says_the_same(make_store: MakeStore, tmp_path: Path) -> None:
    settings = ["width=16", "forward_width=16", "heads=2", "head_width=8", "groups=4"]
    options = [option for setting in settings for option in ("--set", setting)]
    say_the_same_when_loaded(["tpt"], make_store(videos=24), tmp_path / "out", "--epochs", 2, *options)
