"""PCLN: its losses by hand and its pairs against the authors' code, what is trained, and that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.columns import ColumnEncoder
from aqa_train.methods.pcln import PCLN, PCLNConfig, apart

from .conftest import MakeStore
from .method_checks import (
    alone_as_together,
    learns_by_heart,
    part,
    prepared,
    say_the_same_when_loaded,
    shape,
    trained_by,
    videos,
)

SMALL = PCLNConfig(encoder=(8, 8), widths=(16,), joint=32, dropout=0.0)
NONE = slice(0)


def small(config: PCLNConfig = SMALL, segments: int = 4) -> Any:
    torch.manual_seed(0)
    return prepared(PCLN(shape(segments), config), videos(5, segments))


def _reference_encoder(model: Any, x: Tensor) -> Tensor:
    """`encoder_edtcn.forward` of hqu-cst-mmc/PCLN, encoder_model_contrastive.py, without dropout."""
    h = x.permute(0, 2, 1)
    for layer in model.encoder:
        conv = nn.Conv1d(layer.in_features, layer.out_features, 1)
        conv.weight, conv.bias = nn.Parameter(layer.weight[..., None]), layer.bias
        h = F.max_pool1d(F.relu(conv(h)), 2)
    return h


def _reference_score(model: Any, h: Tensor) -> Tensor:
    """`my_fc.forward`, my_fc.py."""
    h = h.reshape(len(h), -1)
    h = F.relu(model.regressor[0](h))
    return torch.sigmoid(model.regressor[2](h))[:, 0]


def _reference_pairs(model: Any, h: Tensor) -> Tensor:
    """`backbone.forward`, backbone.py; there for 256 channels, folded to (512, 32, 4)."""
    found, joint = [], model.config.joint
    for i in range(len(h) - 1):
        for j in range(i + 1, len(h)):
            a, b = (model.joint(h[k].T).T[None] for k in (i, j))
            m = torch.einsum("abd,acd->abc", a, b)
            m = torch.reshape(m, (1, 2 * joint, joint // 8, -1))
            m = F.max_pool2d(model.compare[0](m), (2, 2))
            m = F.max_pool2d(model.compare[1](m), (2, 2)).view(-1)
            m = F.relu(model.difference[0](m))
            m = F.relu(model.difference[2](m))
            found.append(torch.sigmoid(model.difference[4](m)))
    return torch.cat(found)


def _reference_group_score(scores: Tensor) -> Tensor:
    """`compute_group_score`, train_group_training_3loss.py; scores (batch, 1)."""
    pairs = [(i, j) for i in range(len(scores) - 1) for j in range(i + 1, len(scores))]
    return torch.cat([abs(scores[i] - scores[j]) for i, j in pairs])


def test_scores_and_pairs_and_losses_are_the_authors() -> None:
    model, batch = small(segments=8), videos(5, 8)
    h = _reference_encoder(model, batch.streams["rgb"])
    encoded = model.encode(batch)
    torch.testing.assert_close(encoded.transpose(1, 2), h)
    score, pairs = _reference_score(model, h), _reference_pairs(model, h)
    torch.testing.assert_close(model.score(encoded), score)
    torch.testing.assert_close(model.pairs(encoded), pairs)
    torch.testing.assert_close(model(batch), score * 5)
    label = batch.scores / 5
    expected = {
        "score": F.mse_loss(score, label),
        "pair": F.mse_loss(pairs, _reference_group_score(label[:, None])),
        "consistency": F.mse_loss(_reference_group_score(score[:, None]), pairs),
    }
    torch.testing.assert_close(model.losses(batch, part(batch, NONE)), expected)


def test_losses_by_hand() -> None:
    """Labels 0, .4 and 1 of the scale; every score .4 (the mean that they start at), every pair .5 apart."""
    batch = videos(3)
    batch.scores[:] = torch.tensor([0.0, 2.0, 4.0])
    model = prepared(PCLN(shape(), SMALL), batch)
    with torch.no_grad():
        for layer in (model.regressor[-1], model.difference[-1]):
            layer.weight.zero_()
        model.difference[-1].bias.zero_()
    assert apart(batch.scores / 5).tolist() == pytest.approx([0.4, 0.8, 0.4])
    terms = model.losses(batch, part(batch, NONE))
    assert terms["score"].item() == pytest.approx(2 * 0.4**2 / 3)
    assert terms["pair"].item() == pytest.approx((2 * 0.1**2 + 0.3**2) / 3)
    assert terms["consistency"].item() == pytest.approx(0.25)
    assert model(batch).tolist() == pytest.approx([2.0] * 3)


def test_each_loss_trains_exactly_its_parts() -> None:
    model, batch = small(), videos(5)
    assert trained_by(model, "score", batch) == {"encoder", "regressor"}
    assert trained_by(model, "pair", batch) == {"encoder", "joint", "compare", "difference"}
    assert trained_by(model, "consistency", batch) == {"encoder", "regressor", "joint", "compare", "difference"}
    without = small(replace(SMALL, pair_weight=0.0, consistency_weight=0.0))
    assert set(without.losses(batch, part(batch, NONE))) == {"score"}


def test_the_authors_sizes_are_the_default() -> None:
    model: Any = PCLN(shape(segments=160, channels=2048))
    assert model.regressor[0].in_features == 20480
    assert [m.out_features for m in model.regressor[::2]] == [4096, 2048, 1]
    assert [m.out_features for m in model.difference[::2]] == [32, 8, 1]
    assert (model.compare[0].in_channels, model.difference[0].in_features) == (512, 64)


@pytest.mark.parametrize("segments", [4, 5, 1])
def test_a_video_scores_the_same_alone_and_padded(segments: int) -> None:
    alone_as_together(small(segments=segments), videos(5, segments, seed=1))


def test_dropout_takes_whole_segments() -> None:
    torch.manual_seed(0)
    model = small(replace(SMALL, dropout=0.5), segments=64).train()
    for layer in model.encoder:
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    halves = model.encode(videos(2, 64))
    assert ((halves == 0).all(dim=2) == (halves == 0).any(dim=2)).all()
    assert 0 < (halves == 0).float().mean() < 1


def test_difficulty_divides_the_scores() -> None:
    """All start at their mean in score / difficulty: on 0 … 100 the best of 30 is 1."""
    batch = videos(4, columns={"difficulty": torch.tensor([1.0, 2, 2, 4])})
    batch.scores[:] = torch.tensor([0.75, 1.5, 1.5, 3.0])
    inputs = shape(columns={"difficulty": ColumnEncoder("number")})
    model = prepared(PCLN(inputs, replace(SMALL, difficulty=True, quality_max=30.0)), batch)
    nn.init.zeros_(model.regressor[-1].weight)
    # 15, 30, 30 and 60 points over the difficulty are 15 each, half of 30.
    assert model.losses(batch, part(batch, NONE))["score"].item() == pytest.approx(0.0, abs=1e-9)
    assert model(batch).tolist() == pytest.approx(batch.scores.tolist())
    batch.columns["difficulty"][1] = 0
    with pytest.raises(UsageError, match="v1 has the difficulty 0"):
        model(batch)


def test_bad_inputs_name_the_fix() -> None:
    with pytest.raises(UsageError, match="compares labelled videos, and there is 1") as e:
        prepared(PCLN(shape(), SMALL), videos(1))
    assert "label two" in e.value.fix


def test_it_learns_by_heart() -> None:
    learns_by_heart(lambda i: PCLN(i, SMALL), {}, epochs=200, lr=1e-2)


def test_a_checkpoint_says_the_same(make_store: MakeStore, tmp_path: Path) -> None:
    say_the_same_when_loaded(["pcln"], make_store(videos=24), tmp_path / "out", "--epochs", 2, "--set", "encoder=8,8",
                             "--set", "widths=8", "--set", "joint=32")  # fmt: skip
