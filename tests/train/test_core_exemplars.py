"""CoRe: which labelled videos a video is compared with, and what is said where there is none."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aqa_shared.errors import UsageError
from aqa_train.batch import ScoreScale
from aqa_train.config import Training
from aqa_train.methods.core import CoRe, CoReConfig
from aqa_train.trainer import fit, predict

from .core_cases import CPU, SMALL, fitted, labelled_of, task_for


def test_exemplars_have_the_category_and_the_nearest_difficulty() -> None:
    category = list("aaaabbbb") + list("aabb")
    difficulty = [2, 2, 3, 3, 2, 2, 2.5, 3, 2, 2.6, 2.5, 9]
    task = task_for(row="core-dd", category=category, difficulty=difficulty)
    model = fitted(task, difficulty=True, voters=2).model
    assert len(model.exemplars.known) == 8

    def chosen(video: int, **settings: Any) -> set[tuple[str, float]]:
        model.exemplars.config = replace(model.config, **settings)
        batch = task[0].features.load(np.array([video]), CPU)
        places, counts = model.exemplars.voters(batch, batch.streams["rgb"].mean(dim=1))
        words = task[1].columns["category"].words
        found = [int(p) for p, c in zip(places[0], counts[0], strict=True) if c]
        return {
            (words[int(model.exemplars.categories[p])], round(float(model.exemplars.difficulties[p]), 1)) for p in found
        }

    assert chosen(8) == {("a", 2.0)}
    # Of 2.6 there is none: of the four of the category the nearest two.
    assert chosen(9) == {("a", 3.0)}
    # One has the same difficulty, and is alone asked though two might.
    assert chosen(10) == {("b", 2.5)}
    assert chosen(11, voters=3) == {("b", 3.0), ("b", 2.5), ("b", 2.0)}


def test_a_video_is_never_its_own_exemplar_in_training() -> None:
    task = task_for(row="core", category=list("aaabbbbb") + list("abab"))
    model = fitted(task).model
    batch = labelled_of(task, np.arange(8))
    torch.manual_seed(0)
    drawn = torch.stack([model.exemplars.draw(batch, batch.streams["rgb"].mean(dim=1)) for _ in range(300)])
    for i in range(8):
        own = {round(float(v), 4) for v in model.exemplars.known[drawn[:, i]]}
        others = range(3) if i < 3 else range(3, 8)
        assert own == {round(float(batch.scores[j]), 4) for j in others if j != i}


def test_voters_are_drawn_by_the_seed_and_the_mean_of_what_they_say_counts() -> None:
    task = task_for(16, 12)
    model = fitted(task, voters=4).model
    batch = task[0].features.load(np.array([13]), CPU)
    x = batch.streams["rgb"].mean(dim=1)
    places, counts = model.exemplars.voters(batch, x)
    assert places.shape == (1, 4)
    assert counts.all()
    said = [
        model._read(model.pair(model.exemplars.x[p][None], x, model.exemplars.known[p][None]))
        + model.exemplars.known[p]
        for p in places[0]
    ]
    torch.testing.assert_close(model(batch)[0], torch.cat(said).mean())
    again = fitted(task, voters=4).model
    assert torch.equal(model.exemplars.known, again.exemplars.known)
    with torch.no_grad():
        assert torch.equal(model(batch), again(batch))
    config = CoReConfig(**SMALL)  # type: ignore[arg-type]
    other = fit(lambda: CoRe(task[1], config), task[0], Training(epochs=1), seed=[2], device=CPU).model
    assert not torch.equal(model.exemplars.known, other.exemplars.known)  # type: ignore[arg-type]


def test_scores_are_compared_divided_by_difficulty() -> None:
    """Head says 0: every video is as good as its exemplars, and its score is that times its own difficulty."""
    difficulty = [2, 2, 2, 2, 4, 4, 4, 4, 2, 4, 3, 3]
    scale = ScoreScale(10.0, 90.0)
    task = task_for(row="core-dd", scale=scale, difficulty=difficulty)
    raw = scale.to_scores(task[0].scores)
    model = fitted(task, difficulty=True, head="mlp", quality_max=30.0).model
    for p in model.head.parameters():
        nn.init.zeros_(p)
    told = scale.to_scores(predict(model, task[0].features, np.arange(8, 12), CPU))
    quality = raw[:8] / difficulty[:8]
    expected = [2 * quality[:4].mean(), 4 * quality[4:].mean(), *[3 * quality.mean()] * 2]
    np.testing.assert_allclose(told, expected, rtol=1e-5)
    # 30 is 5 in training units.
    np.testing.assert_allclose(sorted(model.exemplars.known), sorted(quality / 6), rtol=1e-5)


@pytest.mark.parametrize(
    ("columns", "settings", "message", "fix"),
    [
        ({"category": list("aaaaaaab") + list("aaaa")}, {}, "000007 .*only labelled video of the category b", "across"),
        ({"category": list("aaaaaaaa") + list("aaba")}, {}, "000010 .*no labelled video is of the category", "across"),
        ({"category": [None, *"aaaaaaa", *"aaaa"]}, {}, "000000 .*category is not known", "correct it in the labels"),
        ({"difficulty": [2.0] * 11 + [None]}, {"difficulty": True}, "000011 has the difficulty nan", "--labels FILE"),
        ({"difficulty": [0.0] + [2.0] * 11}, {"difficulty": True}, "000000 has the difficulty 0", "--labels FILE"),
    ],
)  # fmt: skip
def test_a_video_without_exemplar_is_refused_before_training(
    columns: dict[str, Any], settings: dict[str, Any], message: str, fix: str
) -> None:
    task = task_for(row="core-dd" if settings else "core", **columns)
    with pytest.raises(UsageError, match=message) as e:
        fitted(task, **settings)
    assert fix in e.value.fix
    if "category" in columns:
        assert np.isfinite(predict(fitted(task, across=True).model, task[0].features, np.arange(12), CPU)).all()


@pytest.mark.parametrize("last", [{"category": [*"aaaaaaaaaaac"]}, {"difficulty": [2.0] * 11 + [0.0]}])
def test_a_test_video_that_cannot_be_scored_is_refused_before_the_first_epoch(last: dict[str, Any]) -> None:
    task, shape = task_for(row="core-dd" if "difficulty" in last else "core", **last)
    tested = replace(task, unlabelled=np.arange(0), scored=np.arange(12))
    config = CoReConfig(**SMALL, difficulty="difficulty" in last)  # type: ignore[arg-type]

    def begun(*_: object) -> None:
        pytest.fail("an epoch was trained")

    with pytest.raises(UsageError, match="000011"):
        fit(lambda: CoRe(shape, config), tested, Training(epochs=2), seed=[1], device=CPU, on_epoch=begun)


def test_one_labelled_video_is_too_few() -> None:
    with pytest.raises(UsageError, match="the only labelled video") as e:
        fitted(task_for(4, 1))
    assert "label at least two" in e.value.fix
