"""TSA: cuts, steps and attention by hand and against the authors' code, what each loss trains, and that it learns."""

from __future__ import annotations

import itertools
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
from aqa_train.batch import Batch, Inputs
from aqa_train.columns import ColumnEncoder
from aqa_train.methods.sub_actions import two_cuts
from aqa_train.methods.tsa import TSA, TSAConfig, annotated_cuts, cut_in_steps, transition_loss
from aqa_train.predict import load_checkpoint

from .conftest import MakeStore
from .method_checks import (
    SCALE,
    alone_as_together,
    learns_by_heart,
    moved,
    part,
    pool_of,
    prepared,
    say_the_same_when_loaded,
    shape,
    trained_by,
    videos,
)
from .runs import aqa_train

SMALL = TSAConfig(heads=2, layers=2, widths=(8,), voters=3)
NONE = slice(0)


def small(config: TSAConfig = SMALL, **columns: Any) -> Any:
    torch.manual_seed(0)
    kinds = {
        "steps": ColumnEncoder("tokens", ("a", "b", "c", "d"), 12, label=True),
        "category": ColumnEncoder("category", ("a", "b")),
    }
    inputs = shape(channels=32, columns={n: kinds[n] for n in columns})
    return prepared(TSA(inputs, config), dives(columns=columns))


def dives(n: int = 6, seed: int = 0, columns: Any = None) -> Batch:
    return videos(n, channels=32, columns=columns, seed=seed)


def mapped(n: int = 6, seed: int = 0) -> Batch:
    batch = dives(n, seed)
    cells = torch.rand(n, 4, 32, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
    return replace(batch, streams={**batch.streams, "rgb_map": cells})


def with_map() -> Any:
    torch.manual_seed(0)
    inputs = Inputs({"rgb": (32,), "rgb_map": (32, 2, 3, 3)}, 4, {}, SCALE)
    return prepared(TSA(inputs, replace(SMALL, grid=2)), mapped())


# ---- where steps begin


def _reference_transitions(labels: list[int], length: int = 96) -> list[int]:
    """`FineDiving_Pair_Dataset.load_video` of xujinglin/FineDiving."""
    at = np.linspace(0, len(labels) - 1, length).astype(int)
    frames = [labels[i] for i in at]
    kinds = sorted(set(frames), key=frames.index)
    first = [frames.index(c) for c in kinds]
    return [first[1] - 1, first[-1] - 1]


def test_annotated_transitions_are_the_authors() -> None:
    rng = np.random.default_rng(0)
    own = []
    for frames in (96, 103, 54, 273, 97):
        edges = np.sort(rng.choice(np.arange(4, frames - 4), 3, replace=False))
        own.append([int((edges <= i).sum()) for i in range(frames)])
    steps = torch.full((len(own), 273), -1)
    for row, labels in zip(steps, own, strict=True):
        row[: len(labels)] = torch.tensor(labels)
    assert annotated_cuts(steps).tolist() == [_reference_transitions(labels) for labels in own]
    # Nothing is known of one, nothing changes in the other.
    assert annotated_cuts(torch.tensor([[-1] * 5, [2] * 5])).tolist() == [[-1, -1], [-1, -1]]


def test_cuts_without_annotation_leave_least_within() -> None:
    # 0 0 | 5 5 5 | 9, and 1 | 7 7 7 | 1 1.
    x = torch.tensor([[0.0, 0, 5, 5, 5, 9], [1, 7, 7, 7, 1, 1]])[..., None]
    assert two_cuts(x).tolist() == [[2, 5], [1, 4]]
    x = torch.randn(5, 9, 3, generator=torch.Generator().manual_seed(0))

    def within(video: Tensor, cuts: tuple[int, int]) -> float:
        parts = video.tensor_split(cuts)
        return float(sum((p - p.mean(dim=0)).square().sum() for p in parts))

    for video, found in zip(x, two_cuts(x).tolist(), strict=True):
        assert tuple(found) == min(itertools.combinations(range(1, 9), 2), key=lambda c: within(video, c))
    model = small()
    assert torch.equal(model.cuts_of(dives(), dives().streams["rgb"]), two_cuts(dives().streams["rgb"]) * 24)


def _reference_loss(probability: Tensor, labels: Tensor) -> Tensor:
    """The part `loss_tas` of `network_forward_train`, tools/helper.py."""
    padded = torch.zeros(probability.size())
    for bs in range(len(labels)):
        padded[bs, int(labels[bs, 0]), 0] = 1
        padded[bs, int(labels[bs, -1]), -1] = 1
    return nn.BCELoss()(probability, padded)


def test_the_loss_of_transitions_is_the_authors_and_by_hand() -> None:
    g = torch.Generator().manual_seed(0)
    logits, cuts = torch.randn(4, 96, 2, generator=g), torch.tensor([[3, 50], [40, 95], [0, 48], [20, 21]])
    torch.testing.assert_close(transition_loss(logits, cuts), _reference_loss(logits.sigmoid(), cuts))
    # All undecided: log 2 everywhere. A video without cuts does not count; where all lack them there is no loss.
    unknown = torch.tensor([[3, 50], [-1, -1]])
    assert transition_loss(torch.zeros(2, 96, 2), unknown).item() == pytest.approx(math.log(2))
    logits[1] += 100
    torch.testing.assert_close(transition_loss(logits[:2], unknown), transition_loss(logits[:1], unknown[:1]))
    assert transition_loss(logits[:1], unknown[1:]) == 0


# ---- steps and attention


def _reference_steps(x: Tensor, first: int, last: int) -> Tensor:
    """`seg_pool_1d`, utils/misc.py; x (1, channels, time)."""
    parts = [x[:, :, :first], x[:, :, first:last], x[:, :, last:]]
    return torch.cat([F.interpolate(p, size=5, mode="linear", align_corners=True) for p in parts], 2)


def test_steps_are_the_authors() -> None:
    x = torch.randn(4, 96, 3, generator=torch.Generator().manual_seed(0))
    cuts = torch.tensor([[30, 60], [1, 95], [47, 48], [10, 12]])
    expected = [_reference_steps(v.T[None], a, b)[0].T for v, (a, b) in zip(x, cuts.tolist(), strict=True)]
    torch.testing.assert_close(cut_in_steps(x, cuts).flatten(1, 2), torch.stack(expected))
    # No step is empty, wherever the transitions are said to be.
    odd = torch.tensor([[0, 50], [60, 60], [95, 95], [70, 20]])
    clamped = torch.tensor([[1, 50], [60, 61], [94, 95], [70, 71]])
    assert torch.equal(cut_in_steps(x, odd), cut_in_steps(x, clamped))


def _reference_block(layer: Any, q: Tensor, v: Tensor) -> Tensor:
    """`DecoderBlock.forward` and `CrossAttention.forward`, models/vit_decoder.py; there q, k and v have no bias."""
    heads = layer.attention.num_heads
    maps = layer.attention.in_proj_weight.chunk(3)
    own, other = layer.norm[0](q), layer.norm[1](v)
    a, b, c = (
        F.linear(z, m).view(*z.shape[:2], heads, -1).permute(0, 2, 1, 3)
        for z, m in zip((own, other, other), maps, strict=True)
    )
    attention = (a @ b.transpose(-2, -1) * a.shape[-1] ** -0.5).softmax(dim=-1)
    q = q + layer.attention.out_proj((attention @ c).transpose(1, 2).reshape(q.shape))
    return q + layer.forth[3](F.gelu(layer.forth[0](layer.norm[2](q))))


def _reference_difference(model: Any, segs: Tensor, keys: Tensor) -> Tensor:
    """Cross-attention step by step, and the regressor, as in `network_forward_train`."""
    decoded = []
    for i in range(3):
        q, v = segs[:, i], keys[:, i]
        for layer in model.asking:
            q = _reference_block(layer, q, v)
        decoded.append(q)
    x = torch.cat(decoded, 1)
    for i, layer in enumerate(model.regressor[::2]):
        x = layer(F.relu(x) if i else x)
    return x.mean(1).squeeze(-1)


def test_differences_are_the_authors() -> None:
    model = small()
    video, exemplar = (torch.randn(3, 3, n, 2, generator=torch.Generator().manual_seed(n)) for n in (5, 20))
    torch.testing.assert_close(model.compare(video, exemplar), _reference_difference(model, video, exemplar))


def test_the_authors_sizes_are_the_default() -> None:
    model = TSA(shape(segments=9, channels=1024))
    assert [type(m).__name__ for m in model.asking] == ["Asking"] * 3
    assert model.parser.blocks[0][0].weight.shape == (12, 9, 3)  # type: ignore[index,union-attr]
    assert [m.out_features for m in model.parser.head if isinstance(m, nn.Linear)] == [128, 64, 2]
    assert [m.in_features for m in model.regressor if isinstance(m, nn.Linear)] == [64, 256, 64]


def test_every_place_of_a_map_is_a_key_of_its_step() -> None:
    model, batch = with_map().eval(), mapped()
    _, features, cells = model._read(batch)
    assert cells.shape == (6, 4, 4, 32)
    # The map is averaged over its time and to 2 × 2: the first place is rows and columns 1 and 2 of 3.
    first = batch.streams["rgb_map"].mean(dim=3)[..., :2, :2].mean(dim=(3, 4))
    torch.testing.assert_close(cells[:, 0], first)
    (own, keys), _ = model.steps(features, cells)
    assert (own.shape, keys.shape) == ((6, 3, 5, 2), (6, 3, 20, 2))
    # A map that is the feature everywhere says what no map says.
    same = features[:, None].expand(-1, 4, -1, -1)
    (own, keys), _ = model.steps(features, same)
    (_, alone), _ = model.steps(features, cells[:, :0])
    torch.testing.assert_close(keys.unflatten(2, (4, 5)), alone[:, :, None].expand(-1, -1, 4, -1, -1))


# ---- losses


def test_difference_by_hand() -> None:
    """Two videos worth 1 and 3 of which nothing is said: 2² in both directions."""
    batch = dives(2)
    batch.scores[:] = torch.tensor([1.0, 3.0])
    model = prepared(TSA(shape(channels=32), SMALL), batch)
    with torch.no_grad():
        model.regressor[-1].weight.zero_()
        model.regressor[-1].bias.zero_()
    assert model.losses(batch, part(batch, NONE))["difference"].item() == pytest.approx(8.0)
    assert model.eval()(batch).tolist() == pytest.approx([3.0, 1.0])


def test_each_loss_trains_exactly_its_parts() -> None:
    model, batch = small(), dives()

    def trained(term: str) -> set[str]:
        model.zero_grad()
        model.losses(batch, part(batch, NONE))[term].backward()
        return {".".join(n.split(".")[:2]) if n.startswith("parser") else n.split(".")[0] for n in moved(model)}

    assert set(model.losses(batch, part(batch, NONE))) == {"transition", "difference"}
    assert trained("transition") == {"parser.blocks", "parser.head"}
    assert trained("difference") == {"parser.blocks", "asking", "regressor"}
    assert trained_by(with_map(), "difference", mapped()) == {"parser", "asking", "regressor"}


def test_steps_are_cut_where_they_should_be_in_the_first_quarter() -> None:
    model, batch = small(), dives()
    found = []
    for epoch in (0, 2, 3):
        model.begin_epoch(pool_of(batch, epoch=epoch, epochs=8))
        torch.manual_seed(0)
        found.append(model.losses(batch, part(batch, NONE))["difference"].item())
    assert found[0] == found[1] != found[2]


# ---- as any method


@pytest.mark.parametrize("maps", [False, True])
def test_a_video_scores_the_same_alone_and_padded(maps: bool) -> None:
    model = with_map() if maps else small()
    batch = mapped(seed=1) if maps else dives(seed=1)
    with torch.no_grad():
        model.train().losses(mapped() if maps else dives(), part(batch, NONE))  # moves the running statistics
    if not maps:
        return alone_as_together(model, batch)
    model.eval()
    alone = torch.cat([model(part(batch, slice(i, i + 1))) for i in range(6)])
    torch.testing.assert_close(alone, model(batch), atol=1e-5, rtol=1e-4)
    return None


def test_steps_are_a_label_that_some_videos_have() -> None:
    steps = torch.full((6, 12), -1)
    steps[:4, :10] = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    model, batch = small(steps=steps), dives(columns={"steps": steps})
    cuts = _reference_transitions([0, 0, 0, 1, 1, 1, 2, 2, 3, 3])
    assert sorted(model.cuts.tolist()) == [[-1, -1]] * 2 + [cuts] * 4
    assert trained_by(model, "transition", batch) == {"parser"}
    model.eval()
    torch.testing.assert_close(model(batch), model(dives(columns={"steps": torch.full((6, 12), -1)})))


def test_bad_inputs_name_the_fix() -> None:
    with pytest.raises(UsageError, match="v5 cannot be compared: it is the only labelled video of the category b"):
        small(category=torch.tensor([0, 0, 0, 0, 0, 1]))
    with pytest.raises(UsageError, match="videos of 2 segments cannot be parsed") as e:
        TSA(shape(segments=2, channels=32), SMALL)
    assert "extract 3 segments" in e.value.fix
    with pytest.raises(UsageError, match="32 features / 16 = 2 is not a multiple of heads = 8"):
        TSA(shape(channels=32))
    with pytest.raises(UsageError, match="features of 32 numbers and maps of 16") as e:
        TSA(Inputs({"rgb": (32,), "rgb_map": (16, 2, 3, 3)}, 4, {}, SCALE), SMALL)
    assert "rgb,rgb:map" in e.value.fix
    with pytest.raises(UsageError, match="halves features 4 times, and these have 8"):
        TSA(shape(channels=8), SMALL)


def test_it_learns_by_heart() -> None:
    learns_by_heart(lambda i: TSA(i, replace(SMALL, voters=7)), {}, channels=64, epochs=150, lr=5e-3)


def test_a_checkpoint_says_the_same_with_steps_and_without(make_store: MakeStore, tmp_path: Path) -> None:
    steps = [{"extra": {"steps": " ".join("1" * (5 + i % 4) + "2" * 6 + "3" * 7)}} for i in range(24)]
    options = ["--epochs", 2, "--set", "heads=1", "--set", "widths=8", "--set", "layers=1"]
    say_the_same_when_loaded(["tsa"], make_store(videos=24), tmp_path / "a", *options)
    aqa_train("--features", make_store(videos=24, name="b.zarr", labels=steps), "--method", "tsa", "--labelled", 0.6,
              "--seeds", 1, "--test-fraction", 0.25, "--jobs", 1, "--device", "cpu", "--out", tmp_path / "b",
              *options)  # fmt: skip
    model = load_checkpoint(tmp_path / "b" / "models" / "tsa" / "fold0-seed0")
    assert model.inputs.columns["steps"].label
    assert (model.network.cuts >= 0).all()  # type: ignore[operator]
