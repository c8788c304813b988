"""Layers that methods share: by hand, and equal to torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.layers import Dropout, TemporalConv, pool_time, reverse_gradient


def test_reversed_gradient_is_minus_scale_times_the_gradient() -> None:
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    y = reverse_gradient(x, 0.5)
    assert torch.equal(y, x)
    (y * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [-0.5, -5.0, -50.0]


@pytest.mark.parametrize("norm_first", [True, False])
def test_temporal_conv_is_conv1d(norm_first: bool) -> None:
    torch.manual_seed(0)
    block = TemporalConv(3, 7, kernel=5, dropout=0.0, norm_first=norm_first)
    conv = nn.Conv1d(3, 7, 5, padding=2)
    with torch.no_grad():
        block.weight.copy_(conv.weight.permute(2, 0, 1).flatten(0, 1))
        assert conv.bias is not None
        block.bias.copy_(conv.bias)
    x = torch.randn(4, 6, 3)
    y = conv(x.transpose(1, 2))
    norm = nn.BatchNorm1d(7)
    y = F.relu(norm(y)) if norm_first else norm(F.relu(y))
    torch.testing.assert_close(block(x), y.transpose(1, 2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(block.norm.running_var, norm.running_var)


@pytest.mark.parametrize(("kernel", "time"), [(1, 3), (3, 1), (3, 4), (5, 1), (5, 2), (5, 7)])
def test_gradients_of_temporal_conv_are_conv1ds(kernel: int, time: int) -> None:
    torch.manual_seed(0)
    block = TemporalConv(3, 4, kernel=kernel, dropout=0.0).double()
    conv = nn.Conv1d(3, 4, kernel, padding=kernel // 2).double()
    with torch.no_grad():
        conv.weight.copy_(block.weight.unflatten(0, (kernel, 4)).permute(1, 2, 0))
        assert conv.bias is not None
        conv.bias.copy_(block.bias)
    x = torch.randn(2, time, 3, dtype=torch.float64, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    slopes = torch.randn(2, time, 4, dtype=torch.float64)
    # Without the norm, which would hide an error in the bias.
    block.norm = nn.Identity()  # type: ignore[assignment]
    (block(x) * slopes).sum().backward()
    (F.relu(conv(other.transpose(1, 2))).transpose(1, 2) * slopes).sum().backward()
    torch.testing.assert_close(x.grad, other.grad)
    assert conv.weight.grad is not None
    assert block.weight.grad is not None
    torch.testing.assert_close(block.weight.grad.unflatten(0, (kernel, 4)).permute(1, 2, 0), conv.weight.grad)
    torch.testing.assert_close(block.bias.grad, conv.bias.grad)


def test_nothing_is_learned_from_segments_that_are_not_there() -> None:
    torch.manual_seed(0)
    block = TemporalConv(3, 4, kernel=3, dropout=0.0)
    present = torch.tensor([[True, True, False], [True, True, True]])

    def gradients(absent: float) -> tuple[Tensor, ...]:
        x = torch.arange(18.0).view(2, 3, 3).masked_fill(~present[..., None], absent).requires_grad_()
        y = block(x, present)
        assert (y[0, 2] == 0).all()
        return y, *torch.autograd.grad(y.square().sum(), [x, block.weight])

    for found, expected in zip(gradients(torch.nan), gradients(0.0), strict=True):
        assert torch.equal(found, expected)


def test_temporal_conv_starts_as_widely_as_conv1d() -> None:
    torch.manual_seed(0)
    block, conv = TemporalConv(64, 128, kernel=3, dropout=0.0), nn.Conv1d(64, 128, 3)
    assert block.weight.abs().max().item() == pytest.approx(conv.weight.abs().max().item(), rel=0.01)
    assert block.weight.std().item() == pytest.approx(conv.weight.std().item(), rel=0.02)


def test_dropout_is_torchs_with_other_draws() -> None:
    layer, x = Dropout(0.3), torch.rand(401, 499) + 0.5  # not a multiple of the four choices of one draw
    x.requires_grad_()
    torch.manual_seed(0)
    y = layer(x)
    y.sum().backward()
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / 0.7)
    torch.testing.assert_close(x.grad, kept / 0.7)
    # Four standard deviations of a share of so many independent choices, and of their correlation with neighbours.
    n = x.numel()
    assert kept.float().mean().item() == pytest.approx(0.7, abs=4 * (0.3 * 0.7 / n) ** 0.5)
    flat = (kept.flatten().float() - 0.7) / (0.3 * 0.7) ** 0.5
    for lag in (1, 2, 3, 4, 499):
        assert abs((flat[lag:] * flat[:-lag]).mean().item()) < 4 / n**0.5
    torch.manual_seed(0)
    assert torch.equal(layer(x), y)
    assert torch.equal(layer.eval()(x), x)


def test_pooling_by_hand() -> None:
    x = torch.tensor([[[1.0], [5.0], [0.0]]])
    present = torch.tensor([[True, True, False]])
    assert pool_time(x, present, "mean").item() == 3
    assert pool_time(-x, present, "max").item() == -1
    assert pool_time(x, None, "mean").item() == 2
    assert pool_time(x, None, "flatten").tolist() == [[1, 5, 0]]
