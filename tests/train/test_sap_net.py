"""SAP-Net: states against brute force, every loss by hand, what each trains, and that it learns."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, Inputs, ScoreScale
from aqa_train.columns import ColumnEncoder
from aqa_train.config import Training
from aqa_train.features import FeatureSet
from aqa_train.methods import METHODS
from aqa_train.methods.sap_net import SAPNet, SAPNetConfig, contrast_loss, group_means, parsing_loss, peakedness
from aqa_train.methods.sub_actions import (
    Parser,
    between,
    choose_states,
    kmeans,
    pseudo_labels,
    resample,
    transitions,
)
from aqa_train.methods.usdl import soft_label
from aqa_train.metrics import spearman
from aqa_train.trainer import Task, fit, predict

from . import method_checks
from .conftest import MakeStore, synthetic
from .method_checks import moved, resumes_to_the_bit, say_the_same_when_loaded
from .runs import aqa_train

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"states": 4, "sub_actions": 2, "widths": (8,), "projection": (8, 8, 4)}
SHAPE = Inputs({"rgb": (16,), "actor_rgb": (16,)}, 5, scale=ScoreScale(0.0, 5.0, mean=2.0))


def small(**settings: Any) -> SAPNet:
    torch.manual_seed(0)
    return SAPNet(SHAPE, SAPNetConfig(**{**SMALL, **settings}))


def videos(n: int, *, seed: int = 0, scored: bool = True, segments: int = 5) -> Batch:
    g = torch.Generator().manual_seed(seed)
    streams = {name: torch.randn(n, segments, 16, generator=g) for name in SHAPE.streams}
    return Batch(streams, torch.rand(n, generator=g) * 5 if scored else torch.full((n,), torch.nan))


# ---- states


def _cost(distance: Tensor, chosen: tuple[int, ...]) -> float:
    return float(distance[:, list(chosen)].min(dim=1).values.mean())


def _reference_greedy(distance: Tensor, count: int) -> list[int]:
    """Algorithm 1 as it is printed, for one video."""
    active: list[int] = []
    for _ in range(count):
        rest = [z for z in range(distance.shape[1]) if z not in active]
        active.append(min(rest, key=lambda z: _cost(distance, (*active, z))))
    return active


def test_states_are_chosen_as_algorithm_1_says() -> None:
    g = torch.Generator().manual_seed(0)
    distance = torch.rand(40, 9, 6, generator=g)
    for count in range(1, 7):
        found = choose_states(distance, count)
        for own, chosen in zip(distance, found.tolist(), strict=True):
            assert chosen == _reference_greedy(own, count)
            costs = [_cost(own, subset) for subset in itertools.combinations(range(6), count)]
            # Greedy gains are at least 1 − 1/e of the best ones, over what the worst single state leaves to gain.
            worst = max(_cost(own, (z,)) for z in range(6))
            assert worst - _cost(own, tuple(chosen)) >= (1 - 1 / math.e) * (worst - min(costs)) - 1e-6
            if count in (1, 6):
                assert _cost(own, tuple(chosen)) == pytest.approx(min(costs))


def test_states_by_hand() -> None:
    # Segments at 0, 0, 9, 9, 20: centres begin at the 1st, 3rd and 5th, and stay there.
    x = torch.tensor([0.0, 0, 9, 9, 20])[None, :, None]
    assert kmeans(x, 3, 10).flatten().tolist() == [0, 9, 20]
    # 9 alone is 9, 9, 0, 0, 11 away; with 20 chosen too 18 are left, with 0 eleven.
    assert choose_states(torch.cdist(x, kmeans(x, 3, 10)), 2).tolist() == [[1, 0]]
    assert pseudo_labels(x, x, 3, 2, 10).tolist() == [[0, 0, 1, 1, 1]]
    # The same video backwards: states keep the order of time.
    assert pseudo_labels(x.flip(1), x.flip(1), 3, 2, 10).tolist() == [[0, 0, 0, 1, 1]]
    # A centre moves to the mean of its segments.
    assert kmeans(torch.tensor([0.0, 1, 5, 9, 10])[None, :, None], 2, 10).flatten().tolist() == [2, 9.5]


def test_kmeans_is_lloyds() -> None:
    x = videos(6, segments=12).streams["rgb"]
    found = kmeans(x, 4, 50)
    for own, centres in zip(x, found, strict=True):
        start = own[torch.tensor([0, 4, 7, 11])].numpy()
        expected = KMeans(4, init=start, n_init=1, max_iter=50, tol=0, algorithm="lloyd").fit(own.numpy())
        np.testing.assert_allclose(centres.numpy(), expected.cluster_centers_, atol=1e-5)


def test_videos_of_any_length_have_the_same_steps() -> None:
    x = torch.tensor([[1.0, 2, 3, 4], [5, 6, 0, 0]]).unsqueeze(-1)
    present = torch.tensor([[True] * 4, [True, True, False, False]])
    assert resample(x, present, 4).squeeze(-1).tolist() == [[1, 2, 3, 4], [5, 5, 6, 6]]
    assert resample(x[:1], None, 2).flatten().tolist() == [1, 3]


# ---- parsing


def test_the_decoder_has_finedivings_sizes() -> None:
    parser = Parser(9, 1024, 3).eval()
    sizes = []
    for block in parser.blocks:
        block.register_forward_hook(lambda m, i, out: sizes.append(tuple(out.shape[1:])))
    assert parser(torch.rand(2, 9, 1024)).shape == (2, 96, 3)
    assert sizes == [(12, 1024), (24, 512), (48, 256), (96, 128), (96, 64)]
    assert [m.out_features for m in parser.head if isinstance(m, nn.Linear)] == [128, 64, 3]


def test_transitions_and_what_lies_between_by_hand() -> None:
    probability = torch.zeros(1, 8, 2)
    probability[0, 2, 0] = probability[0, 6, 1] = probability[0, 1, 1] = 0.9
    # Each within its own half; the .9 of the second at step 1 is not in its window.
    assert transitions(probability).tolist() == [[2, 6]]
    weights = between(torch.tensor([[2, 6]]), 8)
    assert weights[0, 0].tolist() == pytest.approx([1 / 6] * 6 + [0, 0])
    assert weights[0, 1].tolist() == pytest.approx([0] * 6 + [1 / 2] * 2)


def test_parsing_loss_by_hand() -> None:
    # Probabilities 3/4 and 1/4 of a step that is the first state's: −(log 3/4 + log 3/4) / 2.
    odds = math.log(3.0)
    loss = parsing_loss(torch.tensor([[[odds, -odds]]]), torch.tensor([[0]]))
    assert loss.item() == pytest.approx(-math.log(0.75), rel=1e-6)


# ---- contrast


def _reference_contrast(a: Tensor, u: Tensor, temperature: float, literal: bool) -> float:
    """Equation 8, anchor by anchor."""

    def near(x: Tensor, y: Tensor) -> float:
        cosine = float(x @ y / (x.norm() * y.norm()))
        return max(cosine, 1e-6) / temperature if literal else math.exp(cosine / temperature)

    total = 0.0
    for p in range(len(a)):
        positive = near(a[p], u[p])
        far = sum(near(a[p], w[q]) for q in range(len(a)) for w in (a, u) if q != p)
        total -= math.log(positive / (positive + far))
    return total / len(a)


@pytest.mark.parametrize("literal", [True, False])
def test_contrast_is_equation_8(literal: bool) -> None:
    g = torch.Generator().manual_seed(2)
    a, u = torch.randn(2, 4, 5, generator=g)
    here = torch.ones(4, dtype=torch.bool)
    found = contrast_loss((a, here), (u, here), 0.3, literal=literal)
    assert found.item() == pytest.approx(_reference_contrast(a, u, 0.3, literal), rel=1e-4)
    # A state that one branch has not is no anchor, and none of its negatives.
    some = torch.tensor([True, True, False, True])
    kept = [0, 1, 3]
    found = contrast_loss((a, some), (u, some), 0.3, literal=literal)
    assert found.item() == pytest.approx(_reference_contrast(a[kept], u[kept], 0.3, literal), rel=1e-4)
    alone = torch.tensor([True, False, False, False])
    assert contrast_loss((a, alone), (u, alone), 0.3, literal=literal).item() == 0


def test_groups_are_means_by_state() -> None:
    h = torch.tensor([[[1.0, 0], [0, 2]], [[3, 0], [7, 7]]])
    means, there = group_means(h, torch.tensor([[0, 2], [0, -1]]), 3)
    assert means.tolist() == [[2, 0], [0, 0], [0, 2]]
    assert there.tolist() == [True, False, True]


# ---- confidence


def test_confidences_by_hand() -> None:
    taught = soft_label(torch.tensor([50.0, 20.0]), 101, 5.0)
    torch.testing.assert_close(peakedness(taught), torch.ones(2), atol=1e-5, rtol=0)
    # Twice as wide: .197 of the probability within two bins and a half, where .383 was taught.
    wide = peakedness(soft_label(torch.tensor([50.0]), 101, 10.0)).item()
    assert wide == pytest.approx(math.erf(0.25 / 2**0.5) / math.erf(0.5 / 2**0.5), abs=0.01)
    assert peakedness(torch.full((1, 101), 1 / 101)).item() < 0.2
    summary = torch.rand(3, 16)
    for settings, expected in (({"confidence": "score"}, [0.4] * 3), ({"confidence": "agreement"}, [1.0] * 3)):
        model = small(**settings)
        for p in model.student.regressor.parameters():
            nn.init.zeros_(p)
        model.student.regressor[-1].bias.data.fill_(2.0)
        score = model.student.score(summary)
        assert model.sure(model.student, summary, score).tolist() == pytest.approx(expected)


def test_only_where_the_teacher_is_sure_it_is_agreed_with() -> None:
    model = small(confidence="score", threshold=0.5)
    with torch.no_grad():
        for p in model.student.regressor.parameters():
            p.zero_()
        # The score is twice what the first number is above 0.
        model.student.regressor[0].weight[0, 0] = model.student.regressor[-1].weight[0, 0] = 1
        model.student.regressor[-1].weight *= 2
    teacher = torch.zeros(4, 16)
    teacher[:, 0] = torch.tensor([2.0, 1.0, 1.25, 0.0])
    consistency, selected = model.agree(torch.tensor([1.0, 9, 3.5, 7]), teacher)
    # 4, 2, 2.5 and 0 of 5: the first and third reach a half. (1 − 4)² and (3.5 − 2.5)², of four videos.
    assert selected.item() == 0.5
    assert consistency.item() == pytest.approx((9 + 1) / 4)


# ---- the whole


def test_losses_and_ablations() -> None:
    labelled, unlabelled = videos(4), videos(6, seed=1, scored=False)
    terms = small().losses(labelled, unlabelled)
    assert set(terms) == {"score", "parsing", "contrast", "distribution", "consistency", "selected"}
    ssp, gcl = (small(**METHODS[name].fixed) for name in ("i3d+ssp", "i3d+gcl"))
    assert set(ssp.losses(labelled, unlabelled)) == {"score", "parsing"}
    assert set(gcl.losses(labelled, unlabelled)) == {"score", "contrast"}
    assert not any("parser" in n for n, _ in gcl.named_parameters())


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("regress", ["student", "both"])
def test_labelled_scores_are_learned_from_the_full_frame_and_from_the_actor(regress: Any, ema: float) -> None:
    labelled, unlabelled = videos(4), videos(6, seed=1, scored=False)
    model = small(regress=regress, ema=ema).eval()
    views = [labelled, replace(labelled, streams={"rgb": labelled.streams["actor_rgb"]})]
    errors = [(model(view) - labelled.scores).square().mean().item() for view in views]
    assert errors[0] != pytest.approx(errors[1], rel=0.01)
    learned = sum(errors) if regress == "both" else errors[0]
    assert model.losses(labelled, unlabelled)["score"].item() == pytest.approx(learned, rel=1e-5)
    without = small(regress=regress, ema=ema, consistency_weight=0.0).eval()
    assert without.losses(labelled, unlabelled)["score"].item() == pytest.approx(errors[0], rel=1e-5)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_the_actors_view_teaches_attention_and_regressor(ema: float) -> None:
    """Its own gradient, in training: that of both views without that of the full frame."""
    labelled, unlabelled = videos(4), videos(6, seed=1, scored=False)
    found: list[dict[str, Tensor]] = []
    for regress in ("student", "both"):
        model = small(regress=regress, ema=ema)
        model.losses(labelled, unlabelled)["score"].backward()
        found.append({n: p.grad for n, p in model.student.named_parameters() if p.grad is not None})
    taught = {n.split(".")[0] for n, g in found[1].items() if not torch.allclose(g, found[0][n], atol=1e-6)}
    assert taught == {"attention", "regressor"}


@pytest.mark.parametrize(
    ("term", "settings", "parts"),
    [
        ("score", {}, {"attention", "regressor"}),
        ("score", {"parts": "soft"}, {"attention", "regressor", "parser"}),
        ("score", {"ema": 0.9}, {"attention", "regressor"}),
        ("parsing", {}, {"attention", "parser"}),
        ("contrast", {"parts": "soft"}, {"attention", "project", "parser"}),
        ("contrast", {"parsing_weight": 0.0}, {"attention", "project"}),
        ("distribution", {}, {"distribution"}),
        ("consistency", {"threshold": 0.0}, {"attention", "regressor"}),
        ("consistency", {"threshold": 0.0, "ema": 0.9}, {"attention", "regressor"}),
        ("contrast", {"parsing_weight": 0.0, "ema": 0.9}, {"attention", "project"}),
    ],
)
def test_each_loss_trains_exactly_its_parts(term: str, settings: dict[str, Any], parts: set[str]) -> None:
    model = small(**settings)
    model.losses(videos(6), videos(6, seed=1, scored=False))[term].backward()
    names = moved(model)
    assert {n.split(".")[1] for n in names} == parts
    assert all(n.startswith("student.") for n in names)


def test_the_teacher_follows_or_is_the_student() -> None:
    model = small(ema=0.75)
    with torch.no_grad():
        model.student.regressor[-1].bias.fill_(6.0)
    model.after_step()
    assert model.teacher.regressor[-1].bias.item() == pytest.approx(0.75 * 2 + 0.25 * 6)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_prediction_normalises_by_is_of_the_full_frame_alone(ema: float) -> None:
    full, actor = videos(6), videos(6, seed=1, scored=False)
    model, other = small(ema=ema), small(ema=ema)
    model.losses(full, actor)
    other.losses(
        *(replace(b, streams={n: x if n == "rgb" else x * 3 for n, x in b.streams.items()}) for b in (full, actor))
    )
    mine, others = ({n: x for n, x in m.student.state_dict().items() if "running" in n} for m in (model, other))
    assert mine
    assert all(torch.equal(x, others[n]) for n, x in mine.items())


@pytest.mark.parametrize("settings", [{}, {"parts": "soft"}, {"parsing_weight": 0.0}])
def test_a_video_scores_the_same_alone_and_padded(settings: dict[str, Any]) -> None:
    model = small(**settings)
    model.losses(videos(8), videos(8, seed=1, scored=False))
    model.eval()
    short, long = videos(3, segments=3), videos(2, seed=4)
    padded = {n: torch.cat([F.pad(x, (0, 0, 0, 2)), long.streams[n]]) for n, x in short.streams.items()}
    present = torch.tensor([[True] * 3 + [False] * 2] * 3 + [[True] * 5] * 2)
    together = model(Batch(padded, torch.zeros(5), present))
    torch.testing.assert_close(together, torch.cat([model(short), model(long)]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[:1], model(short.take(torch.tensor([0]))), atol=1e-5, rtol=1e-5)
    turned = model(long.take(torch.tensor([1, 0]))).flip(0)
    torch.testing.assert_close(turned, model(long), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sap-net", "i3d+ssp", "i3d+gcl"])
def test_eight_videos_are_learned(name: str) -> None:
    x, scores = synthetic(16, 4, 32)
    found = FeatureSet.from_arrays({"rgb": x, "actor_rgb": x * np.float32(0.5)}, {}).place(CPU, "yes")
    rows = np.arange(8)
    read, shape = found.prepared({}, {}, rows, rows, "none")
    task = Task(read, rows, np.arange(8, 16), np.arange(0), scores / 20)
    config = SAPNetConfig(**{**SMALL, "widths": (32,), **METHODS[name].fixed})
    training = Training(epochs=200, batch=8, lr=1e-2, weight_decay=0, schedule="cosine")
    shape = replace(shape, scale=ScoreScale(0.0, 100.0, mean=float(task.scores[:8].mean())))
    fitted = fit(lambda: SAPNet(shape, config), task, training, seed=[0], device=CPU)
    told = spearman(predict(fitted.model, read, rows, CPU), scores[:8])
    assert told is not None
    assert told > 0.95
    assert all(0 <= row["selected"] <= 1 for row in fitted.history if name == "sap-net")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_difficulty_divides_what_is_learned(ema: float) -> None:
    """All videos are worth 15 points of 30 over their difficulty: a half of the scale, times the difficulty."""
    difficulty = torch.tensor([1.0, 2, 2, 4])
    batch = method_checks.part(videos(4), slice(4))
    batch = replace(batch, columns={"difficulty": difficulty}, scores=difficulty * 15 * 5 / 100, ids=tuple("abcd"))
    shape = replace(SHAPE, scale=ScoreScale(0.0, 100.0), columns={"difficulty": ColumnEncoder("number")})
    config = SAPNetConfig(**SMALL, difficulty=True, quality_max=30.0, ema=ema)
    model = method_checks.prepared(SAPNet(shape, config), batch)
    nn.init.zeros_(model.student.regressor[-1].weight)
    assert model.losses(batch, videos(4, scored=False))["score"].item() == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(model.eval()(batch), batch.scores)
    # The actor's view teaches; who is scored needs the first stream alone.
    torch.testing.assert_close(model(replace(batch, streams={"rgb": batch.streams["rgb"]})), batch.scores)
    batch.columns["difficulty"][1] = torch.nan
    with pytest.raises(UsageError, match="b has the difficulty nan"):
        model(batch)


def test_a_stopped_training_goes_on_to_the_bit(tmp_path: Path) -> None:
    """With a teacher of its own, and dropout that its confidence draws."""
    x, scores = synthetic(16, 4, 16)
    found = FeatureSet.from_arrays({"rgb": x, "actor_rgb": x[:, ::-1]}, {}).place(CPU, "yes")
    read, shape = found.prepared({}, {}, np.arange(16), np.arange(8), "none")
    task = Task(read, np.arange(8), np.arange(8, 16), np.arange(0), scores / 20)
    config = SAPNetConfig(**SMALL, ema=0.9, confidence="agreement")

    def trained(**options: Any) -> Any:
        how = Training(epochs=3, batch=4)
        return fit(lambda: SAPNet(shape, config), task, how, seed=[1], device=CPU, **options)

    resumes_to_the_bit(trained, tmp_path, 3)


def test_what_it_lacks_is_said_with_what_gives_it(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"6 sub-actions cannot be chosen from 8 states of videos of 5 segment") as e:
        small(states=8, sub_actions=6)
    assert "sub_actions to at most 5" in e.value.fix
    with pytest.raises(UsageError, match="two streams of one width") as e:
        SAPNet(Inputs({"rgb": (16,)}, 5), SAPNetConfig(**SMALL))
    assert "actor-rgb" in e.value.fix
    with pytest.raises(UsageError, match=r"halves features 4 times, and these have 8") as e:
        SAPNet(Inputs({"rgb": (8,), "actor_rgb": (8,)}, 5), SAPNetConfig(**SMALL))
    assert "i3d+gcl" in e.value.fix
    with pytest.raises(UsageError, match="unlabelled videos, and there are none") as e:
        small().losses(videos(4), videos(0, scored=False))
    assert "--labelled 0.4" in e.value.fix
    with pytest.raises(UsageError, match=r"sap-net needs actor-rgb"):
        aqa_train("--features", make_store(), "--method", "sap-net", "--seeds", 1, "--out", tmp_path / "o")


def test_checkpoints_say_the_same_of_one_video_alone(make_store: MakeStore, tmp_path: Path) -> None:
    store = make_store(videos=24, streams=("rgb", "actor-rgb"), lengths=[4, 4, 3, 4] * 6)
    say_the_same_when_loaded(["sap-net", "i3d+ssp", "i3d+gcl"], store, tmp_path / "run", "--epochs", 3)


def test_attention_refines_what_it_is_asked_to() -> None:
    """Table III: what does not see refined features does not change with attention, nor teach it."""
    batch = videos(4)
    x = batch.streams["rgb"]
    shifted = []
    for refine in ("all", "parsing", "pseudo-labels", "nothing"):
        model = small(refine=refine)
        before = model.student(x)
        taught = before.summary.requires_grad
        with torch.no_grad():
            model.student.attention.weight.copy_(torch.randn_like(model.student.attention.weight) * 8)
        after = model.student(x)
        shifted.append(
            (taught, not torch.equal(before.logits, after.logits), not torch.equal(before.labels, after.labels))
        )
    assert shifted == [(True, True, True), (True, True, False), (False, False, True), (False, False, False)]
