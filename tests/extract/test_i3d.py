"""I3D against the reference outputs, against a second implementation, and against its own rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from aqa_extract.i3d import InceptionI3D, MaxPool, build_i3d, load_i3d, same_padding
from aqa_shared.errors import EnvironmentFault, UsageError
from aqa_shared.machine import has_units_for

CLIPS = ("v_GGSY1Qvo990", "mmaction2_demo")


def random_state(seed: int, channels: int = 3, classes: int = 400) -> dict[str, Tensor]:
    """Weights under which activations keep their size, with statistics that make eps and bias count."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in InceptionI3D(channels, classes).state_dict().items()}
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            continue
        values = torch.rand(shape, generator=generator)
        if key.endswith("conv3d.weight"):
            values = (values - 0.5) * (12 / shape[1:].numel()) ** 0.5
        elif key.endswith("bn.weight"):
            values = values + 0.5
        elif key.endswith("running_var"):
            values = values + 0.3
        else:
            values = (values - 0.5) * 0.2
        state[key] = values
    return state


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_state(0)


def clip(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator) * 2 - 1


# --- against the reference outputs ----------------------------------------------------------------------------


def golden(shared_dir: Path, name: str) -> tuple[Tensor, np.ndarray, np.ndarray]:
    with np.load(shared_dir / "goldens" / f"i3d_rgb_{name}.npz") as file:
        frames = torch.from_numpy(file["frames"]).permute(3, 0, 1, 2)[None]
        return 2 * frames.float() / 255 - 1, file["feature"], file["logits"]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("fuse", [True, False])
def test_features_and_logits_equal_the_reference(shared_dir: Path, i3d_rgb_weights: str, name: str, fuse: bool) -> None:
    x, feature, logits = golden(shared_dir, name)
    model, record = load_i3d(i3d_rgb_weights, "rgb", fuse=fuse)
    with torch.inference_mode():
        map = model.pre_pool(x)
        got, got_logits = model.pool(map)[0].numpy(), model.classify(map)[0].numpy()
    assert map.shape == (1, 1024, 2, 7, 7)
    error, logit_error = np.abs(got - feature), np.abs(got_logits - logits)
    print(f"{name} fused={fuse}: max {error.max():.2e} mean {error.mean():.2e}, logits max {logit_error.max():.2e}")
    assert error.max() < 1e-3
    assert logit_error.max() < 1e-2
    assert record["name"] == i3d_rgb_weights
    assert len(record["sha256"]) == 64


@pytest.mark.parametrize(("dtype", "largest"), [(torch.bfloat16, 0.06), (torch.float16, 0.006)])
def test_half_precision_keeps_the_direction_of_features(
    shared_dir: Path, i3d_rgb_weights: str, dtype: torch.dtype, largest: float
) -> None:
    if dtype == torch.float16 and not has_units_for("fp16", torch.device("cpu")):
        pytest.skip("this processor has no units for fp16: a clip takes a minute")
    model = load_i3d(i3d_rgb_weights, "rgb")[0].to(dtype)
    for name in CLIPS:
        x, feature, _ = golden(shared_dir, name)
        with torch.inference_mode():
            got = model.features(x.to(dtype))[0]
        assert got.dtype == torch.float32
        error = np.abs(got.numpy() - feature)
        print(
            f"{name} {dtype}: cosine {cosine(got.numpy(), feature):.6f} max {error.max():.2e} mean {error.mean():.2e}"
        )
        assert cosine(got.numpy(), feature) > 0.9995
        assert error.max() < largest


def test_the_other_eps_gives_other_features(shared_dir: Path, i3d_rgb_weights: str) -> None:
    x, feature, _ = golden(shared_dir, CLIPS[0])
    model, _ = load_i3d(i3d_rgb_weights, "rgb", bn_eps=1e-5)
    with torch.inference_mode():
        got = model.features(x)[0].numpy()
    assert np.abs(got - feature).max() > 1e-3  # more than parity allows, so parity tells them apart


# --- padding --------------------------------------------------------------------------------------------------


def windows_of_same(size: int, kernel: int, stride: int) -> list[list[int]]:
    """Which elements each SAME window sees, from TensorFlow's definition of output size and total padding."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    starts = [i * stride - total // 2 for i in range(outputs)]
    return [[p for p in range(start, start + kernel) if 0 <= p < size] for start in starts]


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (3, 1), (2, 2), (1, 1)])
def test_padding_and_pooling_follow_tensorflow(kernel: int, stride: int) -> None:
    for size in range(1, 30):
        windows = windows_of_same(size, kernel, stride)
        before, after = same_padding(size, kernel, stride)
        assert (size + before + after - kernel) // stride + 1 == len(windows)
        assert before == -min(0, min(i * stride - before for i in range(len(windows))))
        # Negative values: a zero that slipped in as padding would win.
        x = -1 - torch.rand(size, generator=torch.Generator().manual_seed(size))
        pooled = MaxPool((1, 1, kernel), (1, 1, stride))(x.view(1, 1, 1, 1, size)).flatten()
        assert pooled.tolist() == [max(x[p].item() for p in window) for window in windows]


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last_3d])
def test_pooling_equals_torchs_own_and_keeps_the_memory_format(format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    for kernel, stride in (
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (1, 1, 1)),
        ((3, 3, 3), (2, 2, 2)),
        ((2, 2, 2), (2,) * 3),
    ):
        for size in ((8, 14, 14), (5, 7, 9), (1, 2, 13)):
            x = torch.randn(2, 6, *size, generator=generator).contiguous(memory_format=format)
            before = [same_padding(*axis)[0] for axis in zip(size, kernel, stride, strict=True)]
            pooled = MaxPool(kernel, stride)(x)
            assert torch.equal(pooled, F.max_pool3d(x, kernel, stride, padding=before, ceil_mode=True))
            assert pooled.is_contiguous(memory_format=format)


def test_the_odd_element_goes_to_the_end() -> None:
    assert same_padding(224, 7, 2) == (2, 3)
    assert same_padding(225, 7, 2) == (3, 3)
    assert same_padding(112, 3, 2) == (0, 1)
    assert same_padding(113, 3, 2) == (1, 1)
    assert same_padding(5, 2, 2) == (0, 1)


# --- against a second implementation --------------------------------------------------------------------------


def _pad_same(x: Tensor, kernel: int | tuple[int, ...], stride: int | tuple[int, ...], value: float) -> Tensor:
    pads: list[int] = []
    for axis in (2, 1, 0):
        k = kernel if isinstance(kernel, int) else kernel[axis]
        s = stride if isinstance(stride, int) else stride[axis]
        n = x.shape[2 + axis]
        total = max((-(-n // s) - 1) * s + k - n, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


def _reference_features(w: dict[str, Tensor], x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Map, feature and logits, written flat: every padding explicit, nothing folded, poolings as the paper says."""

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.conv3d.weight"]
        y = F.conv3d(_pad_same(x, tuple(kernel.shape[2:]), stride, 0.0), kernel, stride=stride)
        mean, var, gamma, beta = (
            w[f"{name}.bn.{part}"].view(1, -1, 1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu((y - mean) / torch.sqrt(var + eps) * gamma + beta)

    def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(_pad_same(x, kernel, stride, float("-inf")), kernel, stride)

    def block(x: Tensor, name: str) -> Tensor:
        return torch.cat(
            [
                unit(x, f"{name}.b0"),
                unit(unit(x, f"{name}.b1a"), f"{name}.b1b"),
                unit(unit(x, f"{name}.b2a"), f"{name}.b2b"),
                unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b"),
            ],
            1,
        )

    x = pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    x = pool(block(block(x, "Mixed_3b"), "Mixed_3c"), (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        x = block(x, f"Mixed_4{letter}")
    x = pool(x, (2, 2, 2), (2, 2, 2))
    map = block(block(x, "Mixed_5b"), "Mixed_5c")
    pooled = F.avg_pool3d(map, (2, min(7, map.shape[3]), min(7, map.shape[4])), stride=1)
    logits = F.conv3d(pooled, w["logits.conv3d.weight"], w["logits.conv3d.bias"])
    return map, pooled.mean((2, 3, 4)), logits.mean((2, 3, 4))


@pytest.mark.parametrize(
    ("size", "eps"),
    [
        ((16, 64, 64), 1e-3),
        ((9, 65, 97), 1e-3),
        ((10, 33, 50), 1e-5),
        ((21, 47, 32), 1e-5),
        ((25, 40, 66), 1e-3),
        ((9, 32, 270), 1e-3),
    ],
    ids=str,
)
def test_any_size_equals_the_flat_implementation(
    weights: dict[str, Tensor], size: tuple[int, int, int], eps: float
) -> None:
    x = clip(torch.Generator().manual_seed(sum(size)), 1, 3, *size)
    model = build_i3d(weights, stream="rgb", bn_eps=eps, name="random")
    with torch.inference_mode():
        map, feature, logits = _reference_features(weights, x, eps)
        for network in (model, model.fuse()):
            got = network.pre_pool(x)
            assert got.shape == map.shape
            assert got.shape[2:] == tuple(-(-n // d) for n, d in zip(size, (8, 32, 32), strict=True))
            torch.testing.assert_close(got, map, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(network.pool(got), feature, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(network.classify(got), logits, rtol=1e-4, atol=1e-4)
    assert feature.std() > 1e-2  # else every network would pass


# --- its own rules --------------------------------------------------------------------------------------------


def test_a_clip_has_the_same_features_in_any_batch(weights: dict[str, Tensor]) -> None:
    model = build_i3d(weights, stream="rgb", bn_eps=1e-3, name="random").fuse()
    x = clip(torch.Generator().manual_seed(1), 5, 3, 9, 48, 48)
    with torch.inference_mode():
        together = model.features(x)
        alone = torch.cat([model.features(one[None]) for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_the_same_input_gives_the_same_bits(weights: dict[str, Tensor]) -> None:
    model = build_i3d(weights, stream="rgb", bn_eps=1e-3, name="random").fuse()
    x = clip(torch.Generator().manual_seed(1), 2, 3, 9, 48, 48)
    with torch.inference_mode():
        assert torch.equal(model.features(x), model(x.clone()))


def test_pool_by_hand() -> None:
    """Three time steps 0, 6, 0 of a 1×1 map: windows (0, 6) and (6, 0) average 3, not the plain mean of 2."""
    map = torch.zeros(1, 1024, 3, 1, 1)
    map[:, :, 1] = 6
    with torch.device("meta"):
        model = InceptionI3D()
    assert model.pool(map).eq(3).all()
    with pytest.raises(ValueError, match="at least 9 frames"):
        model.pool(map[:, :, :1])


def test_fusing_happens_once_and_only_for_inference(weights: dict[str, Tensor]) -> None:
    model = build_i3d(weights, stream="rgb", bn_eps=1e-3, name="random")
    with pytest.raises(RuntimeError, match="eval"):
        model.train().fuse()
    once = {k: v.clone() for k, v in model.eval().fuse().state_dict().items()}
    assert not any(".bn." in key for key in once)
    twice = model.fuse().state_dict()
    assert all(torch.equal(twice[k], v) for k, v in once.items())


def test_building_draws_no_random_numbers(weights: dict[str, Tensor]) -> None:
    before = torch.random.get_rng_state()
    build_i3d(weights, stream="rgb", bn_eps=1e-3, name="random")
    assert torch.equal(before, torch.random.get_rng_state())


def test_other_class_counts_and_none(weights: dict[str, Tensor]) -> None:
    charades = random_state(2, classes=157)
    x = clip(torch.Generator().manual_seed(1), 1, 3, 9, 32, 32)
    with torch.inference_mode():
        model = build_i3d(charades, stream="rgb", bn_eps=1e-3, name="charades")
        assert model.classify(model.pre_pool(x)).shape == (1, 157)
        headless = {k: v for k, v in weights.items() if not k.startswith("logits")}
        model = build_i3d(headless, stream="rgb", bn_eps=1e-3, name="headless")
        assert model.features(x).shape == (1, 1024)
        with pytest.raises(UsageError, match="no classifier"):
            model.classify(model.pre_pool(x))


def without(key: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {k: v for k, v in state.items() if k != key}


BIAS = "Mixed_4c.b1b.bn.bias"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without(BIAS), f"missing: {BIAS}"),
        (without("Conv3d_1a_7x7.conv3d.weight"), "missing: Conv3d_1a_7x7.conv3d.weight"),
        (lambda state: state | {"extra.weight": torch.ones(1)}, "unexpected: extra.weight"),
        (lambda state: state | {BIAS: torch.ones(3)}, f"wrong shape: {BIAS}"),
        (lambda state: state | {BIAS: torch.full_like(state[BIAS], torch.nan)}, f"not finite: {BIAS}"),
        (lambda state: {}, "and 280 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    weights: dict[str, Tensor], spoil: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    with pytest.raises(EnvironmentFault) as fault:
        build_i3d(spoil(weights), stream="rgb", bn_eps=1e-3, name="spoilt")
    assert message in fault.value.cause


def test_weights_of_the_other_stream_are_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(EnvironmentFault, match=r"3 channels \(stream rgb\), but the flow stream has 2"):
        build_i3d(weights, stream="flow", bn_eps=1e-3, name="rgb weights")
    with pytest.raises(EnvironmentFault, match=r"2 channels \(stream flow\), but the rgb stream has 3"):
        build_i3d(random_state(0, channels=2), stream="rgb", bn_eps=1e-3, name="flow weights")
