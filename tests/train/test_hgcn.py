"""HGCN: its forward pass against the authors' code, the losses by hand, what is trained, and that it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.methods.hgcn import HGCN, HGCNConfig, _Attention, _neighbours

from .method_checks import alone_as_together, learns_by_heart, shape, trained_by, videos

SMALL = HGCNConfig(groups=2, factor=2, widths=(16, 8, 8), scenes=3)


def small(config: HGCNConfig = SMALL) -> HGCN:
    torch.manual_seed(0)
    model = HGCN(shape(channels=8), config)
    with torch.no_grad():  # away from the identity and from ones, so that their places count
        for name, p in model.named_parameters():
            if name.endswith(("own", "share", "weight_of_clips")) or name == "weight":
                p += 0.3 * torch.randn(p.shape)
        model.weigh[0].bias += 1.0  # or its few ReLUs may all be off
    return model


# ---- the authors' code


def _reference_graph(nodes: int, k: int) -> Tensor:
    """`Graph.get_binary_adj` of ZhouKanglei/HGCN_AQA, graph/graph.py."""
    adj = np.zeros((nodes, nodes))
    for i in range(nodes):
        for j in range(nodes):
            if (i - j < k and i - j >= 0) or (j - i < k and j - i >= 0):
                adj[i, j] = 1
    return torch.Tensor(adj)


def _reference_attention(a: _Attention, x: Tensor) -> Tensor:
    """`attAdj.forward` without softmax, models/hgcn.py."""
    b = torch.einsum("b c n, b c m -> b n m", a.query(x), a.key(x)) / math.sqrt(a.query.out_channels)
    return a.share * b + a.own.unsqueeze(0).repeat_interleave(x.shape[0], dim=0)


def _reference_forward(model: HGCN, x: Tensor) -> tuple[Tensor, Tensor]:
    """`clipRefine`, `sceneConst` and `hgcn.forward` on (batch, channels, clips): the mean times scenes, and μ."""
    nodes, soft = x.shape[-1], torch.nn.Softmax(-1)
    state = model.state(x)
    a_sta = (torch.tanh(state.unsqueeze(-1) - state.unsqueeze(-2)).mean(1) + torch.eye(nodes)) * _reference_graph(
        nodes, 2
    )
    shot = model.refine(torch.einsum("b c n, b n m -> b c m", x, a_sta))
    near = _reference_graph(nodes, model.config.reach)
    h = model.gather(torch.einsum("b c n, b n m -> b c m", shot, soft(near + _reference_attention(model.shots, shot))))
    t = torch.einsum("b c n, b n m -> b c m", shot, soft(near + _reference_attention(model.transfer, shot)))
    weights = model.weight + model.weight_of_clips * model.weigh(t)
    scene = torch.einsum("b c n, b m n -> b c m", h, weights)
    if model.config.motion:
        order = torch.tensor([[1.0 if j <= i else 0.0 for j in range(scene.shape[-1])] for i in range(scene.shape[-1])])
        graph = soft(order * _reference_attention(model.before, scene))
        scene = torch.einsum("b c n, b n m -> b c m", scene, graph)
    mu = model.mean(model.read(scene))
    return (mu.mean(-1) * model.config.scenes).squeeze(1), mu.squeeze(1)


@pytest.mark.parametrize("motion", [False, True])
def test_scores_are_the_authors_without_the_draw(motion: bool) -> None:
    model, batch = small(replace(SMALL, motion=motion)), videos(5, channels=8)
    expected, mean = _reference_forward(model, batch.streams["rgb"].transpose(1, 2))
    torch.testing.assert_close(model(batch), expected)
    torch.testing.assert_close(model.distribution(batch)[0], mean)


def test_neighbours_by_hand() -> None:
    assert _neighbours(4, 2).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]]
    assert torch.equal(_neighbours(10, 3), _reference_graph(10, 3))


def test_losses_by_hand() -> None:
    """Scenes of μ = 1 and log σ² = 0 each: 3 in sum, 1 off from 4; a draw adds its three numbers."""
    model, batch = small(), videos(2, channels=8)
    with torch.no_grad():
        for part, bias in ((model.mean, 1.0), (model.log_variance, 0.0)):
            part.weight.zero_()
            part.bias.fill_(bias)  # type: ignore[union-attr]
    batch.scores[:] = 4.0
    torch.manual_seed(3)
    terms = model.losses(batch, batch)
    torch.manual_seed(3)
    noise = torch.randn(2, 3).sum(dim=1)
    assert terms["score"].item() == pytest.approx(1.0)
    torch.testing.assert_close(terms["draw"], F.mse_loss(3 + noise, batch.scores))


# ---- as any method


def test_each_loss_trains_exactly_its_parts() -> None:
    model, batch = small(replace(SMALL, motion=True)), videos(6, channels=8)
    seeing = {"state", "refine", "shots", "gather", "transfer", "weigh", "weight", "weight_of_clips", "before", "read"}
    assert trained_by(model, "score", batch) == seeing | {"mean"}
    assert trained_by(model, "draw", batch) == seeing | {"mean", "log_variance"}


def test_a_video_scores_the_same_alone_and_padded() -> None:
    alone_as_together(small(), videos(6, channels=8))


def test_shorter_videos_are_padded_and_longer_ones_refused() -> None:
    model, batch = small(), videos(2, segments=3, channels=8)
    whole = videos(2, segments=4, channels=8)
    whole.streams["rgb"][:] = F.pad(batch.streams["rgb"], (0, 0, 0, 1))
    present = torch.tensor([[True, True, True, False]] * 2)
    torch.testing.assert_close(model(batch), model(replace(whole, present=present)))
    with pytest.raises(UsageError, match="5 segments does not fit hgcn, trained with 4") as e:
        model(videos(1, segments=5, channels=8))
    assert "as many segments" in e.value.fix


def test_outputs_start_at_the_labelled_mean() -> None:
    for on in (True, False):
        torch.manual_seed(0)
        model = HGCN(shape(channels=8), replace(SMALL, start_at_mean=on))
        with torch.no_grad():
            model.mean.weight.zero_()
        assert (abs(model(videos(1, channels=8)).item() - 2.0) < 1e-5) is on


def test_the_authors_sizes_are_the_default() -> None:
    model = HGCN(shape(segments=10, channels=1024))
    assert (model.refine[0].out_channels, model.gather[0].out_channels, model.read[0].out_channels) == (512, 256, 128)
    assert (model.weight.shape, model.refine[0].groups) == ((7, 10), 8)


def test_it_learns_by_heart() -> None:
    config = HGCNConfig(groups=2, factor=2, widths=(32, 32, 16), scenes=3)
    learns_by_heart(lambda i: HGCN(i, config), {}, epochs=400)


def test_groups_must_part_the_channels() -> None:
    with pytest.raises(UsageError, match="6 channels of features cannot be divided into 8 groups") as e:
        HGCN(shape())
    assert "groups and factor" in e.value.fix
