"""DAE: losses by hand and against torch's and the released code's, what is trained; it learns scores and doubts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from aqa_train.methods.dae import DAE, DAEConfig, negative_log_likelihood

from .method_checks import (
    alone_as_together,
    learns_by_heart,
    order_of_segments_does_not_matter,
    shape,
    trained_by,
    videos,
)

SMALL = DAEConfig(widths=(8, 6), draw_weight=0.5)


def test_likelihood_by_hand_and_as_torch_has_it() -> None:
    # An error of 2 at σ² = 4: (4 / 4 + log 4) / 2.
    found = negative_log_likelihood(torch.tensor([3.0]), torch.tensor([math.log(4)]), torch.tensor([1.0]))
    assert found.item() == pytest.approx((1 + math.log(4)) / 2)
    mean, log_variance, scores = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    expected = nn.GaussianNLLLoss()(mean, scores, log_variance.exp())
    torch.testing.assert_close(negative_log_likelihood(mean, log_variance, scores), expected)


def _reference_draw(model: DAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """`DAE.forward` of Luciferbobo/DAE-AQA, models.py: a draw, and μ."""
    (first, _, second), _ = model.hidden
    hidden = torch.relu(second(torch.relu(first(x))))
    mu, logvar = model.mean(hidden), model.log_variance(hidden)
    z = mu + logvar.mul(0.5).exp() * torch.randn(mu.shape[:1])[:, None]
    return z.view(-1), mu.view(-1)


def test_losses_and_scores_are_the_released_codes() -> None:
    torch.manual_seed(0)
    model, batch = DAE(shape(), SMALL), videos(5)
    torch.manual_seed(7)
    draw, mean = _reference_draw(model, batch.streams["rgb"].mean(dim=1))
    torch.testing.assert_close(model(batch), mean)
    torch.manual_seed(7)
    # Theirs is the sum over the batch.
    expected = nn.MSELoss(reduction="sum")(draw, batch.scores) / 5
    torch.testing.assert_close(model.losses(batch, batch)["draw"], expected)
    assert set(DAE(shape()).losses(batch, batch)) == {"likelihood"}


def test_each_loss_trains_all_and_prediction_needs_no_variance() -> None:
    torch.manual_seed(0)
    model, batch = DAE(shape(), SMALL), videos(6)
    for term in ("likelihood", "draw"):
        assert trained_by(model, term, batch) == {"hidden", "mean", "log_variance"}
    alone_as_together(model, batch)
    order_of_segments_does_not_matter(model, batch)


def test_mu_starts_at_the_labelled_mean() -> None:
    assert DAE(shape()).mean[-1].bias.item() == 2.0
    assert abs(DAE(shape(), DAEConfig(start_at_mean=False)).mean[-1].bias.item()) < 0.1


def test_it_learns_by_heart() -> None:
    learns_by_heart(lambda i: DAE(i, DAEConfig(widths=(32, 16))), {}, epochs=400)


def test_its_doubts_are_as_wide_as_the_noise() -> None:
    """Half of the videos have labels with noise of .2, half of 1.5; σ is within a third of that."""
    torch.manual_seed(0)
    batch = videos(600, segments=1, channels=2)
    loud = torch.arange(600) % 2
    noise = torch.tensor([0.2, 1.5])[loud]
    batch.streams["rgb"][:, 0, 1] = loud.float()
    batch.scores[:] = 2.5 + noise * torch.randn(600)
    model = DAE(shape(1, 2), DAEConfig(widths=(16,)))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        loss = model.losses(batch, batch)["likelihood"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    sigma = (model.distribution(batch)[1] / 2).exp()
    for kind, width in enumerate((0.2, 1.5)):
        assert sigma[loud == kind].mean().item() == pytest.approx(width, rel=0.33)
