"""CoRe: groups, tree and losses by hand and against the authors' formulas."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_train.batch import Batch
from aqa_train.methods.core import GART, CoRe, CoReConfig, _Nodes
from aqa_train.methods.exemplars import pairs
from aqa_train.methods.groups import cut, cut_mirrored, group_of
from aqa_train.pool import Pool, PoolPart

from .conftest import inputs
from .core_cases import CPU, SMALL, fitted, labelled_of, task_for
from .method_checks import moved

ANNOTATIONS = Path(os.environ.get("AQA_SHARED", Path(__file__).parents[3] / "shared")) / "annotations" / "mtl-aqa"


# ---- groups


def test_groups_by_hand() -> None:
    # Of 0, 1, 2, …, 8 two groups end at the value at ⌊8 · 1/2⌋ = 4; the outer bounds are given.
    values = np.array([3.0, 0, 8, 1, 2, 4, 7, 5, 6])
    assert cut(values, 2, (0.0, 10.0)).tolist() == [0, 4, 10]
    assert cut(values, 4, (-1.0, 8.0)).tolist() == [-1, 2, 4, 6, 8]
    bounds = torch.tensor([-10.0, -4, 0, 4, 10])
    # [0, 4) and [4, 10], mirrored below 0: (−4, 0) and [−10, −4].
    deltas = torch.tensor([0.0, 3.9, 4, 10, 12, -0.1, -3.9, -4, -10])
    assert group_of(deltas, bounds).tolist() == [2, 2, 3, 3, 3, 1, 1, 0, 0]
    # A group of no width is nobody's.
    assert group_of(torch.tensor([0.0, 1, -1]), torch.tensor([-2.0, 0, 0, 0, 2])).tolist() == [3, 3, 0]


def test_pairs_are_of_the_same_class_and_counted_once() -> None:
    kind = np.array([0, 1, 0, 0])
    found = pairs(np.array([5.0, 9, 1, 2]), kind[:, None] == kind)
    assert sorted(found.tolist()) == [-1, 3, 4]


def _reference_groups(differences: NDArray[np.float64], leaves: int, top: float) -> list[list[float]]:
    """As the authors' code builds them: the positive half from sorted absolute differences, then its mirror image."""
    ordered, half = sorted(np.abs(differences)), leaves // 2
    right = [float(ordered[int((i + 1) / half * (len(ordered) - 1))]) for i in range(half)]
    right[-1] = top
    positive = [[a, b] for a, b in zip([0.0, *right], right, strict=False)]
    return [[-b, -a] for a, b in reversed(positive)] + positive


def _reference_labels(delta: float, groups: list[list[float]]) -> tuple[int, float]:
    for i, (left, right) in enumerate(groups):
        if (delta >= 0 and left <= delta < right) or (delta < 0 and left < delta <= right):
            return i, delta - left if left == right else (delta - left) / (right - left)
    raise AssertionError(delta)


def test_bounds_of_the_differences_in_mtl_aqa_are_the_authors() -> None:
    if not ANNOTATIONS.is_dir():
        pytest.skip(f"no annotations in {ANNOTATIONS}")
    entries = pickle.loads((ANNOTATIONS / "final_annotations_dict_with_dive_number.pkl").read_bytes())
    dives = [entries[tuple(k)] for k in pickle.loads((ANNOTATIONS / "train_split_0.pkl").read_bytes())]
    difficulty = np.array([d["difficulty"] for d in dives])
    differences = pairs(np.array([d["final_score"] for d in dives]) / difficulty, difficulty[:, None] == difficulty)
    assert len(differences) == 67_562
    bounds = cut(np.abs(differences), 8, (0.0, 30.0))
    np.testing.assert_allclose(bounds, [0, 0.91, 1.5, 2.5, 3, 4.5, 6, 8.5, 30], atol=0.005)
    groups = _reference_groups(differences, 16, 30.0)
    both = cut_mirrored(differences, 16, 30.0)
    np.testing.assert_allclose(both[:-1], [g[0] for g in groups])
    np.testing.assert_allclose(both[1:], [g[1] for g in groups])


def test_a_trained_method_has_the_authors_groups_and_labels() -> None:
    task = task_for(20, 14)
    model = fitted(task).model
    known = model.exemplars.known.numpy().astype(np.float64)
    groups = _reference_groups(pairs(known, np.ones((14, 14), dtype=bool)), 4, 5.0)
    np.testing.assert_allclose(model.bounds[:-1], [g[0] for g in groups], rtol=1e-6, atol=1e-12)
    deltas = (known[:, None] - known)[~np.eye(14, dtype=bool)].astype(np.float32)
    own = group_of(torch.from_numpy(deltas), model.bounds).tolist()
    exact = [[float(np.float32(a)), float(np.float32(b))] for a, b in groups]
    assert own == [_reference_labels(float(d), exact)[0] for d in deltas]


# ---- the tree


def _reference_tree(tree: GART, x: Tensor) -> tuple[Tensor, Tensor]:
    """Node by node: the product of the probabilities along every path, and the leaf's own number."""

    def part(layer: Any, node: int, own: Tensor) -> Tensor:
        return own @ layer.weight[node] + layer.bias[node]

    level = [(torch.ones(len(x)), F.relu(tree.root(x)))]
    for split, choose in zip(tree.split, tree.choose, strict=True):
        following = []
        for i, (share, node) in enumerate(level):
            chance = part(choose, i, node).softmax(dim=-1)
            left, right = F.relu(part(split, i, node)).chunk(2, dim=-1)
            following += [(share * chance[:, 0], left), (share * chance[:, 1], right)]
        level = following
    numbers = [part(tree.place, i, node)[:, 0] for i, (_, node) in enumerate(level)]
    return torch.stack([share for share, _ in level], dim=1), torch.stack(numbers, dim=1)


def test_the_tree_is_the_product_of_its_decisions() -> None:
    torch.manual_seed(0)
    tree, x = GART(7, 5, 3), torch.randn(4, 7)
    log_share, place = tree(x)
    share, number = _reference_tree(tree, x)
    assert share.shape == (4, 8)
    # Float32 sums in another order.
    torch.testing.assert_close(log_share.exp(), share, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(place, number, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(log_share.exp().sum(dim=1), torch.ones(4))
    # Depth 5 of the authors' code has 16 leaves, of the paper 32.
    assert CoRe(inputs(6)).head.leaves == 16  # type: ignore[union-attr]
    assert CoRe(inputs(6), CoReConfig(variant="paper")).head.leaves == 32  # type: ignore[union-attr]


def test_nodes_are_the_authors_convolution_in_groups() -> None:
    torch.manual_seed(0)
    for nodes, read, write in ((1, 6, 12), (4, 6, 12), (8, 5, 2)):
        layer, x = _Nodes(nodes, read, write), torch.randn(nodes, 3, read)
        conv = nn.Conv1d(nodes * read, nodes * write, 1, groups=nodes)
        with torch.no_grad():
            conv.weight.copy_(layer.weight.transpose(1, 2).reshape(conv.weight.shape))
            conv.bias.copy_(layer.bias.flatten())  # type: ignore[union-attr]
        expected = conv(x.transpose(0, 1).reshape(3, -1, 1)).view(3, nodes, write).transpose(0, 1)
        # Float32 sums in another order.
        torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)
        assert abs(layer.weight.std() / (read**-0.5 / 3**0.5) - 1) < 0.2


def silent(model: CoRe, place: float) -> None:
    """All groups equally likely, and every leaf says `place`."""
    for p in model.head.parameters():
        nn.init.zeros_(p)
    assert isinstance(model.head, GART)
    nn.init.constant_(model.head.place.bias, place)  # type: ignore[arg-type]


def test_losses_by_hand() -> None:
    """Two labelled videos worth 1 and 3: each is the other's exemplar, 2 better or 2 worse."""
    model = CoRe(inputs(2), CoReConfig(depth=2, width=4)).eval()
    model.exemplars.x, model.exemplars.known = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([1.0, 3.0])
    model.exemplars.categories, model.exemplars.difficulties = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    batch = Batch({"rgb": model.exemplars.x[:, None]}, torch.tensor([1.0, 3.0]))
    model.bounds = torch.tensor([-5.0, 0.0, 5.0])
    silent(model, 0.5)
    terms = model.losses(batch, batch)
    # Both directions: log 2 each. Places are (2 − 0) / 5 = .4 above and (−2 + 5) / 5 = .6 below: .1² in each of two
    # groups of each of two directions.
    assert terms["group"].item() == pytest.approx(2 * math.log(2), rel=1e-6)
    assert terms["position"].item() == pytest.approx(4 * 0.01, rel=1e-5)
    # The likeliest group is the first: −5 + 5 · .5 added to the other's score.
    assert model(batch).tolist() == pytest.approx([0.5, -1.5])

    paper = CoRe(inputs(2), CoReConfig(depth=2, width=4, variant="paper")).eval()
    for name in ("x", "known", "categories", "difficulties"):
        setattr(paper.exemplars, name, getattr(model.exemplars, name))
    paper.bounds = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0])
    silent(paper, 0.0)
    terms = paper.losses(batch, batch)
    # P = 1/4 of four leaves; the sigmoid of 0 is a half, and the places are (2 − 1) / 4 and (−2 + 5) / 4.
    assert terms["group"].item() == pytest.approx(-math.log(1 / 4) - 3 * math.log(3 / 4), rel=1e-5)
    assert terms["position"].item() == pytest.approx(0.25**2, rel=1e-5)


def test_losses_are_the_authors() -> None:
    """Likelihood of the path, and of every leaf the mean squared error of its videos, in both directions."""
    task = task_for(10, 8)
    model = fitted(task).model
    batch = labelled_of(task, np.arange(8))
    torch.manual_seed(3)
    terms = model.losses(batch, batch)
    torch.manual_seed(3)
    other = model.exemplars.draw(batch, batch.streams["rgb"].mean(dim=1))
    x, known = batch.streams["rgb"].mean(dim=1), batch.scores
    exact = [[float(a), float(b)] for a, b in zip(model.bounds, model.bounds[1:], strict=False)]
    group, position = torch.zeros(()), torch.zeros(())
    for a, s_a, b, s_b in (
        (model.exemplars.x[other], model.exemplars.known[other], x, known),
        (x, known, model.exemplars.x[other], model.exemplars.known[other]),
    ):
        share, place = _reference_tree(model.head, torch.cat([a, b, s_a[:, None] / 5], dim=1))
        labels = [_reference_labels(float(d), exact) for d in s_b - s_a]
        group = group - torch.stack([share[i, leaf].log() for i, (leaf, _) in enumerate(labels)]).mean()
        for leaf in range(4):
            errors = [(place[i, leaf] - where) ** 2 for i, (own, where) in enumerate(labels) if own == leaf]
            position = position + (torch.stack(errors).mean() if errors else 0)
    torch.testing.assert_close(terms["group"], group, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(terms["position"], position, rtol=1e-4, atol=1e-6)


def test_numbers_are_regressed_by_hand() -> None:
    task = task_for(10, 8)
    alone = fitted(task, head="mlp", compare=False).model
    batch = labelled_of(task, np.arange(8))
    for p in alone.head.parameters():
        nn.init.zeros_(p)
    nn.init.constant_(alone.head[-1].bias, 2.0)
    assert alone.losses(batch, batch)["score"].item() == pytest.approx(
        float((batch.scores - 2).square().mean()), rel=1e-5
    )
    both = fitted(task, head="mlp").model
    for p in both.head.parameters():
        nn.init.zeros_(p)
    torch.manual_seed(0)
    found = both.losses(batch, batch)["difference"].item()
    torch.manual_seed(0)
    delta = batch.scores - both.exemplars.known[both.exemplars.draw(batch, batch.streams["rgb"].mean(dim=1))]
    assert found == pytest.approx(2 * float(delta.square().mean()), rel=1e-5)


def test_a_head_without_exemplars_starts_at_the_labelled_mean() -> None:
    task = task_for(10, 8)
    mean = task[0].scores[:8].mean()

    def first(**settings: Any) -> float:
        model = CoRe(task[1], CoReConfig(**SMALL, compare=False, head="mlp", **settings))  # type: ignore[arg-type]
        none = PoolPart(task[0].features, np.arange(0), np.empty(0), CPU)
        known = PoolPart(task[0].features, np.arange(8), task[0].scores[:8], CPU)
        with torch.no_grad():
            model.prepare(Pool(known, none, 0, 1, np.random.default_rng(0)))
        return model.head[-1].bias.item()  # type: ignore[index,union-attr,no-any-return]

    assert first() == pytest.approx(mean, rel=1e-6)
    assert first(start_at_mean=False) != pytest.approx(mean, rel=1e-2)


# ---- what each loss trains


def test_each_loss_trains_exactly_its_parts() -> None:
    task = task_for(10, 8)
    batch = labelled_of(task, np.arange(8))
    model = fitted(task).model.train()
    for term, parts in {"group": {"root", "split", "choose"}, "position": {"root", "split", "place"}}.items():
        model.zero_grad()
        model.losses(batch, batch)[term].backward()
        assert {name.split(".")[1] for name in moved(model)} == parts
    # The last features are the leaves', which classification never sees.
    model.zero_grad()
    model.losses(batch, batch)["group"].backward()
    assert model.head.split[-1].weight.grad is None or not model.head.split[-1].weight.grad.any()
