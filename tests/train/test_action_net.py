"""ACTION-NET's dynamic branch: the graph by hand and against the authors' code, what is trained, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aqa_train.methods.action_net import ActionNet, ActionNetConfig, neighbours

from .method_checks import alone_as_together, learns_by_heart, shape, trained_by, videos

SMALL = ActionNetConfig(width=8, attention_width=4, regressor_width=6, dropout=0.0)


def _reference_adjacency(segments: int) -> Tensor:
    """`ACTION_NET.__init__` and `normalize` of qinghuannn/ACTION-NET, models/action_net.py."""
    t1 = torch.arange(0, segments, dtype=torch.float).repeat(segments, 1)
    a = torch.exp(-1 * torch.abs((t1.permute([1, 0]) - t1) / 1))
    d = torch.diag(torch.pow(a.sum(1), -0.5))
    return d.mm(a).mm(d)


def _reference_forward(model: ActionNet, x: Tensor) -> Tensor:
    """`ContextAttention.forward` and `ACTION_NET.forward` without the static branch; of 0 … 1."""
    adjacency = _reference_adjacency(x.shape[1])
    x = torch.relu(model.embedding(x))
    cx = torch.relu(model.graph[0](torch.matmul(adjacency, x)))
    cx = torch.relu(model.graph[1](torch.matmul(adjacency, cx)))
    x = torch.cat([x, cx], dim=2)
    x = torch.sum(torch.mul(x, torch.softmax(model.attention(x), dim=1)), dim=1)
    return torch.sigmoid(model.regressor(x)).squeeze(dim=1)


@pytest.mark.parametrize("segments", [1, 2, 26])
def test_the_graph_is_the_authors(segments: int) -> None:
    found = neighbours(segments, 1.0, None, torch.zeros(()))
    torch.testing.assert_close(found[0], _reference_adjacency(segments))


def test_the_graph_by_hand() -> None:
    # Of two segments both sums are 1 + 1/e: 1 / (1 + 1/e) and 1/e / (1 + 1/e). Of one present segment, 1.
    present = torch.tensor([[True, True], [True, False]])
    e = 1 / math.e
    near = torch.tensor([[[1, e], [e, 1]], [[1 + e, 0], [0, 0]]]) / (1 + e)
    torch.testing.assert_close(neighbours(2, 1.0, present, torch.zeros(())), near)


def test_forward_and_loss_are_the_authors() -> None:
    torch.manual_seed(0)
    model, batch = ActionNet(shape(), SMALL), videos(5)
    expected = _reference_forward(model, batch.streams["rgb"])
    torch.testing.assert_close(model(batch), expected * 5)
    torch.testing.assert_close(model.losses(batch, batch)["score"], F.mse_loss(expected, batch.scores / 5))


def test_invariances_and_what_is_trained() -> None:
    torch.manual_seed(0)
    model, batch = ActionNet(shape(), SMALL), videos(5)
    alone_as_together(model, batch)
    assert trained_by(model, "score", batch) == {"embedding", "graph", "attention", "regressor"}
    # The order of segments matters: they have neighbours.
    turned = type(batch)({"rgb": batch.streams["rgb"][:, [2, 0, 3, 1]]}, batch.scores)
    assert (model(turned) - model(batch)).abs().max() > 1e-5


def test_the_regressor_learns_five_times_as_fast_and_starts_at_the_mean() -> None:
    model = ActionNet(shape(channels=1024))
    rest, regressor = model.parameter_groups()
    assert regressor["lr_scale"] == 5
    assert {id(p) for g in (rest, regressor) for p in g["params"]} == {id(p) for p in model.parameters()}
    assert [m.out_features for m in model.embedding[::2]] == [512, 256]
    # 2 of 5 is .4 of the scale.
    assert torch.sigmoid(model.regressor[-1].bias).item() == pytest.approx(0.4)
    assert abs(ActionNet(shape(), ActionNetConfig(start_at_mean=False)).regressor[-1].bias.item()) < 0.1


def test_it_learns_by_heart() -> None:
    config = ActionNetConfig(width=32, attention_width=8, regressor_width=32, dropout=0.0)
    learns_by_heart(lambda i: ActionNet(i, config), {})
