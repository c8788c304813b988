"""C3D-AVG: losses by hand, the captioner against the authors' code, what each loss trains, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.columns import ColumnEncoder
from aqa_train.methods.c3d_avg import C3DAVG, C3DAVGSTL, C3DAVGConfig, C3DAVGSTLConfig, Captioner, caption_loss

from .conftest import MakeStore
from .method_checks import (
    alone_as_together,
    learns_by_heart,
    order_of_segments_does_not_matter,
    shape,
    trained_by,
    videos,
)
from .runs import aqa_train

WORDS = ("<eos>", "<sos>", "a", "clean", "dive", "entry")
COLUMNS = {
    "position": ColumnEncoder("category", ("A", "B", "C"), label=True),
    "armstand": ColumnEncoder("category", ("0", "1"), label=True),
    "caption": ColumnEncoder("tokens", WORDS, 5, label=True),
}
SMALL = C3DAVGConfig(width=8, caption_width=8, caption_dropout=0.0)


def dives(n: int) -> dict[str, Tensor]:
    """Captions of two to five words, from the first to the last and −1 behind it."""
    captions = torch.tensor([[1, 2, 3, 4, 0], [1, 4, 0, -1, -1], [1, 5, 2, 0, -1], [1, 0, -1, -1, -1]])
    rows = torch.arange(n)
    return {"position": rows % 3, "armstand": rows % 2, "caption": captions[rows % 4]}


def multi(config: C3DAVGConfig = SMALL) -> C3DAVG:
    torch.manual_seed(0)
    return C3DAVG(shape(columns=COLUMNS), config)


def test_single_task_by_hand() -> None:
    """A hidden unit of 2 · the mean, and three times that plus one: 13 of a mean of 2, 3 off from 10."""
    model = C3DAVGSTL(shape(segments=2, channels=1), C3DAVGSTLConfig(width=1))
    for parameter, value in zip(model.parameters(), (2.0, 0.0, 3.0, 1.0), strict=True):
        nn.init.constant_(parameter, value)
    batch = videos(1, 2, 1)
    batch.streams["rgb"][:] = torch.tensor([1.0, 3.0])[None, :, None]
    batch.scores[:] = 10.0
    assert model(batch).item() == 13
    assert {k: v.item() for k, v in model.losses(batch, batch).items()} == {"score": 9, "absolute": 3}


def test_outputs_start_at_the_labelled_mean() -> None:
    assert C3DAVGSTL(shape()).regressor[-1].bias.item() == 2.0
    assert abs(C3DAVGSTL(shape(), C3DAVGSTLConfig(start_at_mean=False)).regressor[-1].bias.item()) < 0.1


def test_classes_by_hand() -> None:
    """Classifiers that know nothing err by log 3 and log 2."""
    model, batch = multi(), videos(4, columns=dives(4))
    for p in model.classifiers.parameters():
        nn.init.zeros_(p)
    assert model.losses(batch, batch)["classes"].item() == pytest.approx(math.log(3) + math.log(2), rel=1e-6)


def test_captions_by_hand() -> None:
    """Six equal words cost log 6 each: 4 + 2 + 3 + 1 of them after the first, in four videos."""
    words = dives(4)["caption"]
    found = caption_loss(torch.zeros(4, 4, 6), words)
    assert found.item() == pytest.approx(10 / 4 * math.log(6), rel=1e-6)


def _reference_captioner(model: Captioner, x: Tensor, words: Tensor) -> Tensor:
    """`S2VTModel.forward` in training of ParitoshParmar/MTL-AQA, models/C3DAVG/S2VTModel.py: word by word."""
    padding_words = x.new_zeros(x.shape[0], x.shape[1], model.embedding.embedding_dim)
    padding_frames = x.new_zeros(x.shape[0], 1, x.shape[2])
    state1 = state2 = None
    output1, state1 = model.seeing(x, state1)
    _, state2 = model.saying(torch.cat((output1, padding_words), dim=2), state2)
    found = []
    for i in range(words.shape[1] - 1):
        current = model.embedding(words[:, i])
        output1, state1 = model.seeing(padding_frames, state1)
        output2, state2 = model.saying(torch.cat((output1, current.unsqueeze(1)), dim=2), state2)
        found.append(F.log_softmax(model.out(output2.squeeze(1)), dim=1).unsqueeze(1))
    return torch.cat(found, 1)


def _reference_criterion(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """`LanguageModelCriterion` of utils/utils_1.py."""
    loss = nn.NLLLoss(reduction="none")(logits.reshape(-1, logits.shape[2]), target.reshape(-1))
    return torch.sum(loss * mask.reshape(-1)) / logits.shape[0]


def test_the_captioner_is_the_authors() -> None:
    model, batch = multi(), videos(4, columns=dives(4))
    words, mask = batch.columns["caption"], batch.columns["caption"] >= 0
    target = words.clamp(min=0)
    expected = _reference_captioner(model.captioner, batch.streams["rgb"], target)
    found = model.captioner(batch.streams["rgb"], words).log_softmax(-1)
    torch.testing.assert_close(found, expected)
    loss = _reference_criterion(expected, target[:, 1:], mask[:, 1:].float())
    torch.testing.assert_close(model.losses(batch, batch)["caption"], loss)


def test_the_captioner_learns_to_say_what_was_said() -> None:
    """Eight videos of different features and four captions: each word is told from those before it and the video."""
    model, batch = multi(C3DAVGConfig(width=8, caption_width=32, caption_layers=1)), videos(8, columns=dives(8))
    optimiser = torch.optim.Adam(model.captioner.parameters(), lr=0.02)
    for _ in range(120):
        loss = model.losses(batch, batch)["caption"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    words = batch.columns["caption"]
    said = model.captioner(batch.streams["rgb"], words).argmax(-1)
    assert ((said == words[:, 1:]) | (words[:, 1:] < 0)).all()


def test_captions_are_cut_to_the_longest_allowed() -> None:
    batch = videos(4, columns=dives(4))
    cut, whole = multi(C3DAVGConfig(**{**vars(SMALL), "words": 2})), multi()
    assert cut.losses(batch, batch)["caption"] < whole.losses(batch, batch)["caption"]
    # One word after the first, of each.
    assert cut.losses(batch, batch)["caption"].item() == pytest.approx(
        F.cross_entropy(whole.captioner(batch.streams["rgb"], batch.columns["caption"])[:, 0],
                        batch.columns["caption"][:, 1]).item(), rel=1e-5
    )  # fmt: skip


def test_each_loss_trains_exactly_its_parts() -> None:
    model, batch = multi(), videos(6, columns=dives(6))
    assert trained_by(model, "score", batch) == {"hidden", "regressor"}
    assert trained_by(model, "absolute", batch) == {"hidden", "regressor"}
    assert trained_by(model, "classes", batch) == {"hidden", "classifiers"}
    assert trained_by(model, "caption", batch) == {"captioner"}
    assert trained_by(C3DAVGSTL(shape()), "score", batch) == {"hidden", "regressor"}


def test_invariances() -> None:
    model, batch = multi(), videos(5)
    alone_as_together(model, batch)
    order_of_segments_does_not_matter(model, batch)


def test_both_learn_by_heart() -> None:
    learns_by_heart(lambda i: C3DAVGSTL(i, C3DAVGSTLConfig(width=64)), {})
    table: dict[str, Any] = {
        "position": np.array(list("ABCABCAB"), dtype=object),
        "caption": np.array(["<sos> a dive <eos>", "<sos> clean <eos>"] * 4, dtype=object),
    }
    learns_by_heart(
        lambda i: C3DAVG(i, C3DAVGConfig(width=64, caption_width=8)), table, {},
        {"position": "category", "caption": "tokens"},
    )  # fmt: skip


def test_a_dive_without_a_caption_ends_the_run(make_store: MakeStore) -> None:
    full = {"position": "A", "armstand": 0, "rotation_type": 1, "ss_no": 2, "tw_no": 3, "caption": "<sos> a <eos>"}
    labels = [{"extra": dict(full)} for _ in range(12)]
    del labels[5]["extra"]["caption"]
    store = make_store(videos=12, labels=labels)
    with pytest.raises(UsageError, match=r"005\.mp4: no caption") as e:
        aqa_train("--features", store, "--method", "c3d-avg-mtl", "--seeds", 1, "--device", "cpu", "--folds", 2,
                  "--jobs", 1, "--epochs", 1, "--out", store.with_suffix(".run"))  # fmt: skip
    assert "--labels FILE" in e.value.fix
