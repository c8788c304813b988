"""GDLT: the triplets by hand and against the authors' code, its score, what is trained, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.methods.gdlt import GDLT, GDLTConfig, responses_for, triplet_loss

from .method_checks import (
    alone_as_together,
    learns_by_heart,
    order_of_segments_does_not_matter,
    part,
    shape,
    trained_by,
    videos,
)

SMALL = GDLTConfig(width=8, dropout=0.0)


def _reference_triplets(embedded: Tensor, margin: float) -> Tensor:
    """`LossFun` with `HardTripletLoss(hardest=True)` of xuangch/CVPR22_GDLT, models/loss.py and triplet_loss.py."""
    b, n, c = embedded.shape
    flat, labels = embedded.reshape(-1, c), torch.arange(n).repeat(b)
    norm = F.normalize(flat, dim=-1)
    distance = 1 - torch.mm(norm, norm.T)
    positive = ((torch.eye(len(labels)).byte() ^ 1) * (labels[None] == labels[:, None])).float()
    hardest_positive = torch.max(distance * positive, dim=1, keepdim=True)[0]
    negative = ((labels[None] == labels[:, None]) ^ True).float()
    most = torch.max(distance, dim=1, keepdim=True)[0]
    hardest_negative = torch.min(distance + most * (1.0 - negative), dim=1, keepdim=True)[0]
    return torch.mean(F.relu(hardest_positive - hardest_negative + margin))


@pytest.mark.parametrize("margin", [0.1, 1.0])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_triplets_are_the_authors(batch: int, margin: float) -> None:
    embedded = torch.randn(batch, 4, 5, generator=torch.Generator().manual_seed(batch))
    torch.testing.assert_close(triplet_loss(embedded, margin), _reference_triplets(embedded, margin))


def test_triplets_by_hand() -> None:
    """Two videos, two queries, on the unit circle: distances are 0 or 1 between axes, 2 between opposites."""
    right, up = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    apart = torch.stack([torch.stack([right, up]), torch.stack([right, up])])
    # Same query 0, other query 1: 0 − 1 + 1.
    assert triplet_loss(apart, 1.0).item() == pytest.approx(0.0, abs=1e-6)
    mixed = torch.stack([torch.stack([right, -right]), torch.stack([-right, right])])
    # Same query 2, nearest other 0: 2 − 0 + 1.
    assert triplet_loss(mixed, 1.0).item() == pytest.approx(3.0)


def _reference_score(model: GDLT, embedded: Tensor) -> Tensor:
    """The end of `GDLT.forward`, models/model.py; of 0 … 1."""
    s = torch.diagonal(model.respond(embedded), dim1=-2, dim2=-1)
    norm = torch.sigmoid(s)
    norm = norm / torch.sum(norm, dim=1, keepdim=True)
    return torch.sum(torch.linspace(0, 1, norm.shape[1])[None] * norm, dim=1)


def test_score_and_losses_are_the_authors() -> None:
    torch.manual_seed(0)
    model, batch = GDLT(shape(), SMALL).eval(), videos(5)
    embedded = model.embed(batch)
    assert embedded.shape == (5, 4, 8)
    expected = _reference_score(model, embedded)
    torch.testing.assert_close(model(batch), expected * 5)
    terms = model.losses(batch, batch)
    torch.testing.assert_close(terms["score"], F.mse_loss(expected, batch.scores / 5))
    torch.testing.assert_close(terms["triplet"], _reference_triplets(embedded, 1.0))
    assert set(GDLT(shape(), GDLTConfig(width=8, triplet_weight=0.0)).losses(batch, batch)) == {"score"}


def test_the_authors_sizes_are_the_default() -> None:
    model = GDLT(shape(channels=1024))
    assert [tuple(p.shape) for n, p in model.named_parameters() if n.startswith("project.") and p.ndim == 2] == [
        (512, 1024), (256, 512),
    ]  # fmt: skip
    assert (len(model.encoder.layers), len(model.decoder.layers), model.query.shape) == (1, 2, (4, 256))
    assert model.encoder.layers[0].linear1.out_features == 768


@pytest.mark.parametrize("score", [0.05, 0.4, 0.5, 0.9])
def test_outputs_start_at_the_labelled_mean(score: float) -> None:
    grades = torch.linspace(0, 1, 4)
    response = responses_for(score, grades).sigmoid()
    assert float(response @ grades / response.sum()) == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize(("on", "expected"), [(True, 2.0), (False, 2.5)])
def test_a_new_model_predicts_the_mean_or_the_middle(on: bool, expected: float) -> None:
    model = GDLT(shape(), GDLTConfig(width=8, start_at_mean=on)).eval()
    with torch.no_grad():
        model.respond.weight.zero_()
    torch.testing.assert_close(model(videos(3)), torch.full((3,), expected), atol=1e-3, rtol=0)


def test_invariances() -> None:
    torch.manual_seed(0)
    model, batch = GDLT(shape(), SMALL), videos(6)
    model.losses(batch, batch)  # moves the running statistics away from 0 and 1
    alone_as_together(model, batch)
    order_of_segments_does_not_matter(model, batch)


@pytest.mark.parametrize("bf16", [False, True])
def test_padding_never_enters_batch_norm(bf16: bool) -> None:
    batch, present = videos(6), torch.arange(7).lt(4).expand(6, 7)
    padded = replace(batch, streams={"rgb": F.pad(batch.streams["rgb"], (0, 0, 0, 3))}, present=present)
    found = []
    for one in (batch, padded):
        torch.manual_seed(0)
        model = GDLT(shape(), SMALL)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found.append((model.losses(one, one), model.project[1].running_mean))
    torch.testing.assert_close(found[0], found[1])


def test_each_loss_trains_exactly_its_parts() -> None:
    torch.manual_seed(0)
    model, batch = GDLT(shape(), SMALL), videos(6)
    assert trained_by(model, "score", batch) == {"project", "encoder", "decoder", "query", "respond"}
    assert trained_by(model, "triplet", batch) == {"project", "encoder", "decoder", "query"}
    assert trained_by(model, "triplet", part(batch, slice(2))) == {"project", "encoder", "decoder", "query"}


def test_it_learns_by_heart() -> None:
    learns_by_heart(lambda i: GDLT(i, GDLTConfig(width=16, dropout=0.0)), {})


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UsageError, match="width = 8 is not a multiple of heads = 3"):
        GDLT(shape(), GDLTConfig(width=8, heads=3))
