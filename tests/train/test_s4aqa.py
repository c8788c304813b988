"""S4AQA: every loss by hand and against the paper's formula, what each trains, and that it learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch, ScoreScale
from aqa_train.layers import mlp
from aqa_train.methods.mean_teacher import MeanTeacher
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig, Streams, choose_segments, domain_loss, hide

from . import method_checks
from .conftest import inputs

SMALL = S4AQAConfig(widths=(12, 8, 8), regressor_width=6, decoder_width=10, discriminator_width=6)


def batch(
    videos: int, *, segments: int = 5, channels: tuple[int, ...] = (4,), seed: int = 0, scored: bool = True
) -> Batch:
    g = torch.Generator().manual_seed(seed)
    scores = torch.rand(videos, generator=g) * 5 if scored else torch.full((videos,), torch.nan)
    streams = {n: torch.rand(videos, segments, *c, generator=g) for n, c in inputs(*channels).streams.items()}
    return Batch(streams, scores)


def of(features: Tensor, present: Tensor | None = None, scores: Tensor | None = None) -> Batch:
    """A batch of one stream."""
    return Batch({"rgb": features}, torch.zeros(len(features)) if scores is None else scores, present)


def small(config: S4AQAConfig = SMALL, channels: tuple[int, ...] = (4,), segments: int = 5) -> S4AQA:
    torch.manual_seed(1)
    return S4AQA(inputs(*channels, segments=segments), config)


def recovery(model: S4AQA, features: Tensor) -> Tensor:
    masked, target = model.mask(of(features))
    return model.recovery_error(model.pooled(*masked), target)


# ---- by hand ----------------------------------------------------------------------------------------------


def test_score_loss_by_hand() -> None:
    # Errors 1, -2 and 3 give (1 + 4 + 9) / 3.
    model = small()
    model.eval()
    labelled = batch(3)
    with torch.no_grad():
        predicted = model(labelled)
    target = predicted - torch.tensor([1.0, -2.0, 3.0])
    aa = small(S4AQAConfig(**{**vars(SMALL), "recovery_weight": 0.0, "alignment_weight": 0.0}))
    aa.load_state_dict(model.state_dict())
    aa.eval()
    terms = aa.losses(replace(labelled, scores=target), batch(2))
    assert set(terms) == {"score"}
    assert terms["score"].item() == pytest.approx(14 / 3, rel=1e-5)


def test_domain_loss_by_hand() -> None:
    # D = 1/2 for the labelled, 3/4 and 1/4 for clean and masked: -log(1/2) and the mean of log 4 and log(4/3).
    odds = math.log(3.0)
    loss = domain_loss(torch.zeros(1), [torch.tensor([odds]), torch.tensor([-odds])])
    assert loss.item() == pytest.approx(math.log(2) + (math.log(4) + math.log(4 / 3)) / 2, rel=1e-6)


def test_recovery_loss_by_hand() -> None:
    # A decoder that always answers 0.25 misses features that are all 1 by 0.75.
    model = small()
    for decoder in model.decoder:
        for parameter in decoder.parameters():
            nn.init.zeros_(parameter)
        decoder[-1].bias.data.fill_(0.25)
    error = recovery(model, torch.ones(2, 5, 4))
    assert error.item() == pytest.approx(0.75)


def test_several_hidden_segments_are_recovered_as_their_mean() -> None:
    model = small(S4AQAConfig(**{**vars(SMALL), "masked": 3}), segments=4)
    for decoder in model.decoder:
        for parameter in decoder.parameters():
            nn.init.zeros_(parameter)
    # Segments worth 0, 1, 2 and 3: hiding all but one leaves means between (0+1+2)/3 and (1+2+3)/3.
    x = torch.arange(4.0)[None, :, None].expand(1, 4, 4).clone()
    means = {round(recovery(model, x).item(), 4) for _ in range(60)}
    assert means == {1.0, 1.3333, 1.6667, 2.0}


# ---- the paper's formulas ---------------------------------------------------------------------------------


def _reference_domain(d_clean: Tensor, d_masked: Tensor, d_labelled: Tensor) -> Tensor:
    """Equation 6, negated because D maximises it: D gives probabilities."""
    u, n = len(d_clean), len(d_labelled)
    value = (torch.log(1 - d_clean) + torch.log(1 - d_masked)).sum() / (2 * u) + torch.log(d_labelled).sum() / n
    return -value


def _reference_recovery(decoded: Tensor, target: Tensor) -> Tensor:
    """Equation 5 with the mean over channels."""
    return sum((d - t).abs().mean() for d, t in zip(decoded, target, strict=True)) / len(decoded)  # type: ignore[return-value]


def test_losses_equal_the_papers_formulas() -> None:
    model = small(S4AQAConfig(**{**vars(SMALL), "dropout": 0.0}))
    model.eval()
    labelled, unlabelled = batch(4), batch(6, seed=1, scored=False)
    torch.manual_seed(7)
    terms = model.losses(labelled, unlabelled)
    torch.manual_seed(7)
    hidden = choose_segments(unlabelled.streams["rgb"], None, 1)
    masked = unlabelled.streams["rgb"].clone()
    masked[hidden] = 0

    def encode(x: Tensor) -> Tensor:
        return _reference_encoder(model, x).mean(dim=1)

    f_l, f_u, f_m = encode(labelled.streams["rgb"]), encode(unlabelled.streams["rgb"]), encode(masked)
    y = model.regressor(f_l).squeeze(-1)
    assert terms["score"].item() == pytest.approx(((labelled.scores - y) ** 2).sum().item() / 4, rel=1e-5)
    target = unlabelled.streams["rgb"][hidden]
    assert terms["recovery"].item() == pytest.approx(
        _reference_recovery(model.decoder[0](f_m), target).item(), rel=1e-5
    )
    d_u, d_m, d_l = (torch.sigmoid(model.discriminator(f)).squeeze(-1) for f in (f_u, f_m, f_l))
    assert terms["alignment"].item() == pytest.approx(_reference_domain(d_u, d_m, d_l).item(), rel=1e-5)


def _reference_encoder(model: S4AQA, x: Tensor) -> Tensor:
    """Conv1d, BatchNorm1d and ReLU as torch has them, with the model's weights."""
    x = x.transpose(1, 2)
    for block in model.encoder[0].blocks:  # type: ignore[union-attr]
        weight = block.weight.unflatten(0, (block.kernel, -1)).permute(1, 2, 0)
        x = F.conv1d(x, weight, block.bias, padding=block.kernel // 2)
        x = F.relu(block.norm(x))
    return x.transpose(1, 2)


# ---- what each loss trains --------------------------------------------------------------------------------


def trained_by(term: str, config: S4AQAConfig = SMALL, channels: tuple[int, ...] = (4,)) -> set[str]:
    sets = batch(6, channels=channels), batch(6, channels=channels, seed=1, scored=False)
    return method_checks.trained_by(small(config, channels), term, *sets)


@pytest.mark.parametrize("channels", [(4,), (4, 3)])
def test_each_loss_trains_exactly_its_parts(channels: tuple[int, ...]) -> None:
    assert trained_by("score", channels=channels) == {"encoder", "regressor"}
    assert trained_by("recovery", channels=channels) == {"encoder", "decoder"}
    assert trained_by("alignment", channels=channels) == {"encoder", "discriminator"}


def test_a_learned_mask_is_trained_by_what_sees_it() -> None:
    config = S4AQAConfig(**{**vars(SMALL), "mask_value": "learned"})
    assert trained_by("recovery", config) == {"encoder", "decoder", "mask_token"}


def test_the_discriminator_improves_where_the_encoder_worsens_it() -> None:
    """One small step of D along the gradient lowers the adversarial loss; one of E raises it."""
    config = S4AQAConfig(**{**vars(SMALL), "dropout": 0.0, "recovery_weight": 0.0})
    labelled, unlabelled = batch(8), batch(8, seed=1, scored=False)

    def after_a_step_of(part: Callable[[S4AQA], nn.Module]) -> float:
        model = small(config)
        before = model.losses(labelled, unlabelled)["alignment"]
        before.backward()
        with torch.no_grad():
            for p in part(model).parameters():
                if p.grad is not None:
                    p -= 1e-2 * p.grad
        return model.losses(labelled, unlabelled)["alignment"].item() - before.item()

    assert after_a_step_of(lambda m: m.discriminator) < 0
    assert after_a_step_of(lambda m: m.encoder) > 0


@pytest.mark.parametrize(
    ("weights", "terms"),
    [
        ((40.0, 0.1), {"score", "recovery", "alignment"}),
        ((40.0, 0.0), {"score", "recovery"}),
        ((0.0, 0.1), {"score", "alignment"}),
        ((0.0, 0.0), {"score"}),
    ],
)
def test_ablations_leave_terms_out(weights: tuple[float, float], terms: set[str]) -> None:
    config = S4AQAConfig(**{**vars(SMALL), "recovery_weight": weights[0], "alignment_weight": weights[1]})
    assert set(small(config).losses(batch(4), batch(4, seed=1))) == terms


# ---- hiding -----------------------------------------------------------------------------------------------


def test_segments_are_chosen_uniformly_and_differ() -> None:
    torch.manual_seed(0)
    hidden = choose_segments(torch.zeros(9000, 6, 1), None, 2)
    assert (hidden.sum(dim=1) == 2).all()
    # 3000 expected at each place; five standard deviations are 220.
    assert (hidden.sum(dim=0) - 3000).abs().max() < 220


def test_only_present_segments_are_hidden_and_one_stays() -> None:
    torch.manual_seed(0)
    present = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    for _ in range(50):
        hidden = choose_segments(torch.zeros(3, 6, 1), present, 3)
        assert not (hidden & ~present).any()
        assert hidden.sum(dim=1).tolist() == [3, 1, 3]


def test_mask_values() -> None:
    x = torch.tensor([[[1.0], [3.0], [8.0]]])
    hidden = torch.tensor([[False, False, True]])
    assert hide(x, hidden, None, "mean").flatten().tolist() == [1, 3, 2]
    assert hide(x, hidden, None, "learned", torch.tensor([7.0])).flatten().tolist() == [1, 3, 7]
    torch.manual_seed(0)
    noise = hide(x.expand(4000, 3, 1), hidden.expand(4000, 3), None, "noise")[:, 2, 0]
    assert noise.mean().item() == pytest.approx(2.0, abs=0.1)
    assert noise.std().item() == pytest.approx(1.0, abs=0.1)
    present = torch.tensor([[True, False, True]])
    assert hide(x, hidden, present, "mean").flatten().tolist() == [1, 3, 1]


def test_products_are_hidden_as_zeros_are() -> None:
    """What has been multiplied once is the same as multiplying videos with zeros in the place of hidden segments."""
    model = small(S4AQAConfig(**{**vars(SMALL), "masked": 2}))
    present = torch.arange(5) < torch.tensor([5, 4, 3, 1])[:, None]
    videos = of(batch(4).streams["rgb"] * present[..., None], present)
    torch.manual_seed(3)
    (found, _), target = model.mask(videos)
    torch.manual_seed(3)
    hidden = choose_segments(videos.streams["rgb"], present, 2)
    zeros = videos.streams["rgb"].masked_fill(hidden[..., None], 0.0)
    assert torch.equal(found["rgb"], model.products({"rgb": zeros}, present)["rgb"])
    assert torch.equal(target[3], videos.streams["rgb"][3, 0])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 3 + 5),
        ({"recover": "all"}, 3 + 5),
        ({"alignment_weight": 0.0}, 3 + 5),
        ({"recovery_weight": 0.0}, 3 + 5),
        ({"recovery_weight": 0.0, "alignment_weight": 0.0}, 3),
        # What stands in for a hidden segment has products of its own.
        ({"mask_value": "mean"}, 3 + 5 + 5),
        ({"mask_value": "mean", "recover": "all"}, 2 * (3 + 5)),
        ({"mask_value": "mean", "alignment_weight": 0.0}, 3 + 5),
    ],
    ids=str,
)
def test_no_video_is_multiplied_in_vain(settings: dict[str, Any], expected: int) -> None:
    multiplied = 0

    class Counting(S4AQA):
        def products(self, streams: Streams, present: Tensor | None) -> Streams:
            nonlocal multiplied
            multiplied += len(streams["rgb"])
            return super().products(streams, present)

    model = Counting(inputs(4, segments=5), S4AQAConfig(**{**vars(SMALL), **settings}))
    model.losses(batch(3), batch(5, seed=1, scored=False))
    assert multiplied == expected


# ---- padding, streams, poolings ---------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_padded_video_scores_as_it_does_alone(pooling: str) -> None:
    model = small(S4AQAConfig(**{**vars(SMALL), "pooling": pooling}))
    model.losses(batch(8), batch(8, seed=1))  # moves the running statistics away from 0 and 1
    model.eval()
    short, long = (batch(1, segments=n, seed=n).streams["rgb"] for n in (3, 5))
    padded = torch.cat([F.pad(short, (0, 0, 0, 2)), long])
    present = torch.tensor([[True, True, True, False, False], [True] * 5])
    together = model(of(padded, present))
    torch.testing.assert_close(together, torch.cat([model(of(short)), model(of(long))]))


@pytest.mark.parametrize("ragged", [False, True])
def test_kinds_of_norm_differ_only_in_training(ragged: bool) -> None:
    """With running statistics the losses are the same; in training they are not."""
    x, u = batch(6), batch(6, seed=1, scored=False)
    if ragged:
        present = torch.arange(5) < torch.tensor([5, 4, 3, 5, 2, 5])[:, None]
        x, u = (of(b.streams["rgb"] * present[..., None], present, b.scores) for b in (x, u))

    def losses(norm: str, train: bool) -> list[float]:
        model = small(S4AQAConfig(**{**vars(SMALL), "dropout": 0.0, "norm": norm})).train(train)
        torch.manual_seed(5)
        return [v.item() for v in model.losses(x, u).values()]

    assert losses("joint", False) == pytest.approx(losses("separate", False), rel=1e-5)
    assert losses("joint", False) == pytest.approx(losses("clean", False), rel=1e-5)
    trained = [losses(norm, True) for norm in ("clean", "joint", "separate")]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert trained[a] != pytest.approx(trained[b], rel=1e-3)


@pytest.mark.parametrize("recover", ["unlabelled", "all"])
def test_prediction_is_normalised_by_whole_videos_alone(recover: str) -> None:
    """With norm = clean, running statistics are those of labelled and unlabelled videos, as if none was masked."""
    x, u = batch(6), batch(4, seed=1, scored=False)

    def statistics(**settings: Any) -> list[Tensor]:
        model = small(S4AQAConfig(**{**vars(SMALL), "dropout": 0.0, "recover": recover, **settings}))
        model.losses(x, u)
        return [t for name, t in model.state_dict().items() if name.endswith(("running_mean", "running_var"))]

    clean, unmasked, joint = (statistics(), statistics(recovery_weight=0.0), statistics(norm="joint"))
    assert len(clean) == 2 * len(SMALL.widths)
    for a, b, c in zip(clean, unmasked, joint, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert not torch.allclose(a, c)


def test_recovering_all_weighs_every_video_the_same() -> None:
    """Table IX, `w/ labeled data`: one mean over videos and channels, whatever the two sets' sizes."""
    model = small(S4AQAConfig(**{**vars(SMALL), "dropout": 0.0, "recover": "all"})).eval()
    x, u = batch(2), batch(6, seed=1, scored=False)
    torch.manual_seed(5)
    found = model.losses(x, u)["recovery"]
    torch.manual_seed(5)
    sets = [(model.mask(b), len(b)) for b in (u, x)]
    errors = [model.recovery_error(model.pooled(*videos), target) * n for (videos, target), n in sets]
    torch.testing.assert_close(found, (errors[0] + errors[1]) / 8)


def test_padding_never_enters_batch_norm() -> None:
    model = small(S4AQAConfig(**{**vars(SMALL), "dropout": 0.0}))
    x = batch(4).streams["rgb"]
    plain = model(of(x))
    mean = model.encoder[0].blocks[0].norm.running_mean.clone()
    other = small(S4AQAConfig(**{**vars(SMALL), "dropout": 0.0}))
    present = torch.arange(9).lt(5).expand(4, 9)
    torch.testing.assert_close(other(of(F.pad(x, (0, 0, 0, 4)), present)), plain)
    torch.testing.assert_close(other.encoder[0].blocks[0].norm.running_mean, mean)


def test_flatten_keeps_places_and_refuses_longer_videos() -> None:
    model = small(S4AQAConfig(**{**vars(SMALL), "pooling": "flatten"}))
    assert model.summaries(batch(2).streams)[0].shape == (2, 5 * 8)
    assert model(batch(2, segments=3)).shape == (2,)
    with pytest.raises(UsageError, match="7 segments"):
        model(batch(1, segments=7))


def test_two_streams_have_their_own_encoder_and_decoder() -> None:
    model = small(channels=(4, 3))
    assert [m[-1].out_features for m in model.decoder] == [4, 3]
    assert model.regressor[0].in_features == model.discriminator[0].in_features == 16
    f = model.summaries(batch(2, channels=(4, 3)).streams)
    assert [t.shape for t in f] == [(2, 8), (2, 8)]


@pytest.mark.parametrize("cls", [S4AQA, MeanTeacher])
def test_outputs_start_at_the_labelled_mean_or_by_chance(cls: Any) -> None:
    shape = replace(inputs(4), scale=ScoreScale(0.0, 10.0, mean=3.5))
    nets = [cls(shape, cls.Config(widths=(8,), start_at_mean=s)) for s in (True, False)]
    biases = [{n: p.item() for n, p in m.named_parameters() if n.endswith("regressor.2.bias")} for m in nets]
    assert set(biases[0].values()) == {3.5}
    assert len(biases[0]) == (2 if cls is MeanTeacher else 1)
    assert all(abs(b) < 1 for b in biases[1].values())


def test_paper_widths_are_the_default() -> None:
    model = S4AQA(inputs(1024, segments=10))
    blocks = model.encoder[0].blocks  # type: ignore[union-attr]
    assert [len(b.bias) for b in blocks] == [512, 256, 256]
    assert mlp(2, 3, 4)[0].in_features == 2
    assert model(of(torch.rand(3, 10, 1024))).shape == (3,)


# ---- bad inputs -------------------------------------------------------------------------------------------


def test_no_unlabelled_videos_is_said() -> None:
    with pytest.raises(UsageError, match="unlabelled") as e:
        small().losses(batch(4), of(torch.empty(0, 5, 4)))
    assert "--method aa" in e.value.fix


@pytest.mark.parametrize(("masked", "segments"), [(1, 1), (5, 5), (6, 5), (0, 5)])
def test_hiding_every_segment_is_refused(masked: int, segments: int) -> None:
    with pytest.raises(UsageError, match="hidden"):
        S4AQA(inputs(4, segments=segments), S4AQAConfig(masked=masked))


def test_one_segment_is_enough_without_recovery() -> None:
    model = S4AQA(inputs(4, segments=1), S4AQAConfig(recovery_weight=0.0, widths=(4,)))
    assert model(of(torch.rand(3, 1, 4))).shape == (3,)


# ---- learning ---------------------------------------------------------------------------------------------


def test_recovery_learns_what_the_visible_segments_tell() -> None:
    """Each video is one pattern repeated: its hidden segment can be known. Random segments cannot."""

    def error(draw: Callable[[torch.Generator], Tensor]) -> float:
        config = {"widths": (32, 32), "decoder_width": 32, "dropout": 0.0}
        model = small(S4AQAConfig(**{**vars(SMALL), **config}))
        optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
        g = torch.Generator().manual_seed(0)
        values = []
        for _ in range(250):
            # New videos at every step: none can be learned by heart.
            value = recovery(model, draw(g))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
            values.append(value.item())
        return sum(values[-20:]) / 20

    # Guessing the median of uniform numbers errs by 0.25.
    assert error(lambda g: torch.rand(64, 1, 4, generator=g).expand(64, 5, 4)) < 0.1
    assert error(lambda g: torch.rand(64, 5, 4, generator=g)) > 0.23
