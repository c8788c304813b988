"""S4AQA's other alignments, keeping first frames, and recovery before scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aqa_shared.errors import UsageError
from aqa_train.batch import Batch
from aqa_train.methods.s4aqa import S4AQA, S4AQAConfig, mean_discrepancy
from aqa_train.methods.s4aqa_variants import KeepFirstFrame, VanillaSSL, VanillaSSLConfig
from aqa_train.predict import load_checkpoint

from .conftest import MakeStore, inputs
from .method_checks import SMALL, fitted, moved, ranks_by_heart, say_the_same_when_loaded, task_of
from .runs import FAST, aqa_train

CONFIG = S4AQAConfig(**SMALL, decoder_width=8, discriminator_width=8)
STILL = ("rgb", "still_rgb")


def batch(videos: int, streams: tuple[str, ...] = ("rgb",), seed: int = 0, present: Tensor | None = None) -> Batch:
    g = torch.Generator().manual_seed(seed)
    features = {n: torch.rand(videos, 4, 6, generator=g) for n in streams}
    if present is not None:
        features = {n: x * present.unsqueeze(-1) for n, x in features.items()}
    return Batch(features, torch.rand(videos, generator=g), present)


def still(config: S4AQAConfig = CONFIG) -> KeepFirstFrame:
    torch.manual_seed(0)
    shape = inputs(6)
    return KeepFirstFrame(type(shape)(dict.fromkeys(STILL, (6,)), 4), config)


def trained(model: nn.Module, term: Tensor) -> set[str]:
    term.backward()
    return {name.split(".")[0] for name in moved(model)}


# ---- maximum mean discrepancy


def _reference_mmd(x: Tensor, y: Tensor, laplacian: bool) -> float:
    """Gretton et al. 2012, equation 5, pair by pair, summed over five kernels around the median."""

    def between(a: Tensor, b: Tensor) -> float:
        return float((a - b).abs().sum()) if laplacian else float((a - b).square().sum())

    both = [*x, *y]
    apart = sorted(between(a, b) for i, a in enumerate(both) for j, b in enumerate(both) if i != j)
    median = apart[(len(apart) - 1) // 2]

    def k(a: Tensor, b: Tensor) -> float:
        scales = (1 / 4, 1 / 2, 1, 2, 4)
        return sum(math.exp(-between(a, b) / (s * median * (1 if laplacian else 2))) for s in scales)

    m, n = len(x), len(y)
    inside = sum(k(a, b) for a in x for b in x) / m**2 + sum(k(a, b) for a in y for b in y) / n**2
    return inside - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize("kernel", ["mmd-laplacian", "mmd-rbf"])
def test_mean_discrepancy_is_grettons(kernel: Any) -> None:
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 3, generator=g), torch.randn(7, 3, generator=g) + 0.5
    found = mean_discrepancy(x, y, kernel).item()
    assert found == pytest.approx(_reference_mmd(x, y, kernel == "mmd-laplacian"), rel=1e-4)
    shuffled = mean_discrepancy(x[[3, 1, 0, 4, 2]], y.flip(0), kernel).item()
    assert shuffled == pytest.approx(found, rel=1e-5)
    assert mean_discrepancy(x, x.clone(), kernel).item() == pytest.approx(0, abs=1e-5)


def test_mean_discrepancy_by_hand() -> None:
    # One video each, 2 apart: 2 is the median, so each kernel gives exp(-1 / scale), and the sum is 2 (5 − Σ k).
    x, y = torch.tensor([[0.0]]), torch.tensor([[2.0]])
    expected = 2 * (5 - sum(math.exp(-1 / s) for s in (0.25, 0.5, 1, 2, 4)))
    assert mean_discrepancy(x, y, "mmd-laplacian").item() == pytest.approx(expected, rel=1e-5)
    # Squares: 4 is the median, and each kernel gives exp(-1 / (2 scale)).
    expected = 2 * (5 - sum(math.exp(-1 / (2 * s)) for s in (0.25, 0.5, 1, 2, 4)))
    assert mean_discrepancy(x, y, "mmd-rbf").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kernel", ["mmd-laplacian", "mmd-rbf"])
def test_discrepancy_of_equal_videos_has_a_gradient(kernel: Any) -> None:
    x = torch.ones(3, 4, requires_grad=True)
    mean_discrepancy(x, torch.ones(2, 4), kernel).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("kernel", ["mmd-laplacian", "mmd-rbf"])
def test_a_discrepancy_trains_the_encoder_towards_agreement(kernel: Any) -> None:
    torch.manual_seed(0)
    model = S4AQA(inputs(6), S4AQAConfig(**{**vars(CONFIG), "alignment": kernel, "recovery_weight": 0.0}))
    before = model.losses(batch(6), batch(6, seed=1))["alignment"]
    assert trained(model, before) == {"encoder"}
    with torch.no_grad():
        for p in model.encoder.parameters():
            p -= 1e-2 * p.grad  # type: ignore[operator]
    assert model.losses(batch(6), batch(6, seed=1))["alignment"].item() < before.item()


# ---- keeping first frames


def test_keep_first_frame_recovers_every_segment_from_stills() -> None:
    """A decoder that always says 0.25 misses the moving segments alone, all 1, by 0.75; absent ones do not count."""
    model = still()
    for p in model.decoder.parameters():
        nn.init.zeros_(p)
    model.decoder[0][-1].bias.data.fill_(0.25)
    present = torch.tensor([[True] * 4, [True, False, False, False]])
    moving, stills = torch.ones(2, 4, 6) * present[..., None], torch.rand(2, 4, 6) * present[..., None]
    videos, target = model.mask(Batch({"rgb": moving, "still_rgb": stills}, torch.zeros(2), present))
    assert torch.equal(videos[0]["rgb"], model.products({"rgb": stills}, present)["rgb"])
    assert target.shape == (2, 24)
    assert model.recovery_error(model.pooled(*videos), target).item() == pytest.approx(0.75)


def test_keep_first_frame_trains_its_parts_and_scores_what_moves() -> None:
    def terms() -> tuple[KeepFirstFrame, dict[str, Tensor]]:
        model = still()
        return model, model.losses(batch(4, STILL), batch(6, STILL, seed=1))

    expected = {"score": {"encoder", "regressor"}, "recovery": {"encoder", "decoder"},
                "alignment": {"encoder", "discriminator"}}  # fmt: skip
    for name, parts in expected.items():
        model, found = terms()
        assert trained(model, found[name]) == parts
    model = still().eval()
    x = batch(3, STILL)
    other = Batch({**x.streams, "still_rgb": torch.zeros(3, 4, 6)}, x.scores)
    assert torch.equal(model(x), model(other))


def test_keep_first_frame_normalises_over_stills_too() -> None:
    model = still(S4AQAConfig(**SMALL, decoder_width=8, discriminator_width=8, norm="joint"))
    terms = model.losses(batch(4, STILL), batch(5, STILL, seed=1))
    assert all(t.isfinite() for t in terms.values())


def test_keep_first_frame_needs_the_stills(make_store: MakeStore, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"first frames, and the store lacks still-rgb") as e:
        KeepFirstFrame(inputs(6), CONFIG)
    assert "--streams" in e.value.fix
    with pytest.raises(UsageError, match=r"keep-first-frame needs still-rgb") as e:
        aqa_train("--features", make_store(12), "--method", "keep-first-frame", *FAST, "--out", tmp_path / "o")
    assert "rgb,still-rgb" in e.value.fix


# ---- recovery, then scores


def test_vanilla_ssl_recovers_first_and_scores_afterwards() -> None:
    model = VanillaSSL(inputs(6), VanillaSSLConfig(**SMALL))
    model.phase = "recovery"
    terms = model.losses(batch(4), batch(4, seed=1))
    assert set(terms) == {"recovery"}
    assert trained(model, terms["recovery"]) == {"encoder", "decoder"}
    model.zero_grad()
    model.phase = "scores"
    terms = model.losses(batch(4), batch(4, seed=1))
    assert set(terms) == {"score"}
    assert trained(model, terms["score"]) == {"encoder", "regressor"}
    found = fitted(VanillaSSL, VanillaSSLConfig(**SMALL, pretraining=0.25), task_of(8, 8), epochs=4)
    assert [set(row) - {"total"} for row in found.history] == [{"recovery"}] + [{"score"}] * 3


def test_vanilla_ssl_without_unlabelled_videos_is_refused() -> None:
    with pytest.raises(UsageError, match="unlabelled videos, and there are none") as e:
        VanillaSSL(inputs(6), VanillaSSLConfig(**SMALL)).losses(batch(4), batch(0))
    assert "--method aa" in e.value.fix


# ---- learning


@pytest.mark.parametrize(
    ("cls", "config", "streams"),
    [
        (S4AQA, S4AQAConfig(**SMALL, alignment="mmd-rbf", recovery_weight=1.0), ("rgb",)),
        (
            S4AQA,
            S4AQAConfig(**SMALL, alignment="mmd-laplacian", recovery_weight=1.0, masked=3, recover="all"),
            ("rgb",),
        ),
        (S4AQA, S4AQAConfig(**SMALL, recovery_weight=1.0), ("rgb", "flow")),
        (KeepFirstFrame, S4AQAConfig(**SMALL, recovery_weight=1.0), STILL),
        (VanillaSSL, VanillaSSLConfig(**SMALL), ("rgb",)),
    ],
)
def test_eight_videos_are_learned_by_heart(cls: Any, config: Any, streams: tuple[str, ...]) -> None:
    assert ranks_by_heart(cls, config, streams=streams) > 0.95


def test_checkpoints_say_the_same_and_other_views_are_read_only_by_methods_that_ask(
    make_store: MakeStore, tmp_path: Path
) -> None:
    store = make_store(20, streams=("rgb", "still-rgb"), lengths=[4, 3] * 10)
    methods = ["keep-first-frame", "vanilla-ssl"]
    say_the_same_when_loaded(methods, store, tmp_path / "run", *FAST, "--epochs", 4, "--set", "recovery_weight=1")
    read = [list(load_checkpoint(tmp_path / "run" / "models" / m / "fold0-seed0").inputs.streams) for m in methods]
    assert read == [["rgb", "still_rgb"], ["rgb"]]
