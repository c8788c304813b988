"""TV-L1 against OpenCV: goldens, each step by itself, and motions that are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from aqa_extract.flow import build, native, network, pyramid
from aqa_extract.flow import tvl1 as tvl1_module
from aqa_extract.flow.kernels import Level, median_5x5, sampling_planes, warp
from aqa_extract.flow.settings import Engine, TVL1Settings
from aqa_extract.flow.tvl1 import engine as engine_for
from aqa_extract.flow.tvl1 import tvl1, why_torch
from aqa_shared.errors import EnvironmentFault, UsageError

cv2 = pytest.importorskip("cv2", reason="opencv is the reference")

PARITY = TVL1Settings()


@pytest.fixture(params=["native", "torch"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Both implementations, the fused one where it was compiled."""
    if request.param == "native":
        require_native()
    return request.param


@pytest.fixture
def settings(engine: Engine) -> TVL1Settings:
    return TVL1Settings(engine=engine)


def require_native() -> None:
    if isinstance(why := native.load(), str):
        pytest.skip(f"no compiled TV-L1: {why}")


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth random grey image with detail at several sizes, uint8."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    image = sum(s * cv2.GaussianBlur(noise, (0, 0), s) for s in (1.5, 4.0, 9.0))
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def moved(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`image` after each of its points x went to matrix [x, 1]."""
    size = image.shape[::-1]
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def flow_between(a: np.ndarray, b: np.ndarray, settings: TVL1Settings) -> Tensor:
    frames = torch.from_numpy(np.stack((a, b)))
    return tvl1(frames, torch.tensor([0]), torch.tensor([1]), settings)[0]


def end_point_error(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.sqrt(((found - expected) ** 2).sum(axis=-3))


def _reference_iteration(
    u: np.ndarray, p: np.ndarray, wx: np.ndarray, wy: np.ndarray, rho_c: np.ndarray, settings: TVL1Settings
) -> tuple[np.ndarray, np.ndarray]:
    """One iteration in float64, written pixel by pixel from the equations: u (2, h, w), p (2, 2, h, w)."""
    height, width = wx.shape
    l_t, taut, eps = settings.lam * settings.theta, settings.tau / settings.theta, np.finfo(np.float32).eps
    new_u, new_p = np.zeros_like(u), np.zeros_like(p)
    for y in range(height):
        for x in range(width):
            w = np.array([wx[y, x], wy[y, x]])
            grad, rho = w @ w, rho_c[y, x] + w @ u[:, y, x]
            if rho < -l_t * grad:
                d = l_t * w
            elif rho > l_t * grad:
                d = -l_t * w
            elif grad > eps:
                d = -rho / grad * w
            else:
                d = np.zeros(2)
            for c in range(2):
                left = p[c, 0, y, x - 1] if x else 0.0
                above = p[c, 1, y - 1, x] if y else 0.0
                divergence = p[c, 0, y, x] - left + p[c, 1, y, x] - above
                new_u[c, y, x] = u[c, y, x] + d[c] + settings.theta * divergence
    for c in range(2):
        for y in range(height):
            for x in range(width):
                gx = new_u[c, y, x + 1] - new_u[c, y, x] if x < width - 1 else 0.0
                gy = new_u[c, y + 1, x] - new_u[c, y, x] if y < height - 1 else 0.0
                norm = 1 + taut * np.hypot(gx, gy)
                new_p[c, 0, y, x] = (p[c, 0, y, x] + taut * gx) / norm
                new_p[c, 1, y, x] = (p[c, 1, y, x] + taut * gy) / norm
    return new_u, new_p


# ---- the steps


def test_one_iteration_equals_the_equations() -> None:
    rng = np.random.default_rng(0)
    height, width = 17, 23
    u = rng.normal(size=(2, height, width)).astype(np.float32)
    p = rng.uniform(-0.7, 0.7, size=(2, 2, height, width)).astype(np.float32)
    wx, wy = rng.normal(scale=8, size=(2, height, width)).astype(np.float32)
    rho_c = rng.normal(scale=4, size=(height, width)).astype(np.float32)
    wx[:4], wy[:4] = 0, 0  # no gradient, with a residual …
    rho_c[:2] = 0  # … and without
    wx[5], wy[5] = 1e-4, 1e-4  # a gradient below FLT_EPSILON

    level = Level(torch.tensor(u)[None])
    level.dual[0, :, :, 1:, 1:] = torch.from_numpy(p)
    level.wx, level.wy = torch.from_numpy(wx)[None], torch.from_numpy(wy)[None]
    level.constant = torch.from_numpy(rho_c)[None]
    level.set_gradient()
    change = level.iterate(PARITY.theta, PARITY.lam * PARITY.theta, PARITY.tau / PARITY.theta)

    new_u, new_p = _reference_iteration(*(a.astype(np.float64) for a in (u, p, wx, wy, rho_c)), PARITY)
    assert np.abs(level.flow[0].numpy() - new_u).max() < 1e-5
    assert np.abs(level.dual[0, :, :, 1:, 1:].numpy() - new_p).max() < 1e-5
    assert float(change) == pytest.approx(((new_u - u) ** 2).sum(), rel=1e-5)


@pytest.mark.parametrize("size", [(256, 340), (37, 53), (16, 91), (113, 112)])
def test_pyramid_equals_opencv(size: tuple[int, int]) -> None:
    image = texture(*size).astype(np.float32)
    levels = pyramid.build(torch.from_numpy(image)[None], 5, 0.8)
    expected = image
    for level in levels[1:]:
        expected = cv2.resize(expected, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(level[0].numpy(), expected, atol=1e-3)
    following = cv2.resize(expected, None, fx=0.8, fy=0.8)
    assert len(levels) == 5 or min(following.shape) < 16


def test_enlarged_flow_equals_opencv() -> None:
    flow = np.random.default_rng(0).normal(size=(2, 30, 41)).astype(np.float32)
    found = pyramid.enlarge(torch.from_numpy(flow)[None], (37, 51), 0.8)[0].numpy()
    expected = np.stack([cv2.resize(f, (51, 37), interpolation=cv2.INTER_LINEAR) / 0.8 for f in flow])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [(31, 33), (64, 48)])
def test_warp_equals_opencv_remap_inside_at_and_beyond_the_border(size: tuple[int, int]) -> None:
    image = texture(*size).astype(np.float32)
    flow = np.random.default_rng(1).normal(scale=6, size=(2, *size)).astype(np.float32)
    flow[:, 3:5] *= 30  # far outside
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    expected = cv2.remap(image, x + flow[0], y + flow[1], cv2.INTER_CUBIC)
    planes = sampling_planes(torch.from_numpy(image)[None, None].repeat(1, 3, 1, 1))
    found = warp(planes, torch.from_numpy(flow)[None])[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_warp_by_nothing_is_exact() -> None:
    planes = pyramid.gradients(torch.from_numpy(texture(61, 45)).float()[None])
    found = warp(sampling_planes(planes), torch.zeros(1, 2, 61, 45))
    assert torch.equal(found, planes)


@pytest.mark.parametrize("size", [(20, 31), (5, 5), (3, 8)])
def test_median_equals_opencv(size: tuple[int, int]) -> None:
    flow = np.random.default_rng(2).normal(size=(2, *size)).astype(np.float32)
    expected = np.stack([cv2.medianBlur(f, 5) for f in flow])
    np.testing.assert_array_equal(median_5x5(torch.from_numpy(flow)[None])[0].numpy(), expected)


# ---- the whole


@pytest.mark.parametrize("clip", ["mmaction2_demo", "v_GGSY1Qvo990"])
def test_goldens(shared_dir: Path, clip: str, settings: TVL1Settings) -> None:
    golden = np.load(shared_dir / "goldens" / f"tvl1_{clip}.npz")
    frames = torch.from_numpy(golden["pairs"]).flatten(0, 1)
    first = torch.arange(0, len(frames), 2)
    found = tvl1(frames, first, first + 1, settings).numpy()
    expected = golden["flow"].astype(np.float32).transpose(0, 3, 1, 2)
    error = end_point_error(found, expected).mean()
    levels = [np.floor((np.clip(f, -20, 20) + 20) / 40 * 255) for f in (found, expected)]
    assert error < 0.03
    assert (np.abs(found - expected) <= 0.1).mean() >= 0.95
    assert (np.abs(levels[0] - levels[1]) <= 1).mean() >= 0.98


@pytest.mark.parametrize("size", [(47, 61), (16, 40), (15, 15), (33, 20), (9, 70)])
def test_odd_and_tiny_sizes_equal_opencv(size: tuple[int, int], engine: Engine) -> None:
    a = texture(*size)
    b = moved(a, np.float32([[1, 0, 0.7], [0, 1, -0.4]]))
    expected = cv2.optflow.DualTVL1OpticalFlow_create().calc(a, b, None).transpose(2, 0, 1)
    found = flow_between(a, b, replace(PARITY, engine=engine)).numpy()
    assert end_point_error(found, expected).mean() < 0.03


@pytest.mark.parametrize("shift", [(3.0, 0.0), (-1.5, 2.25), (0.0, -6.0)])
def test_a_shift_is_found(settings: TVL1Settings, shift: tuple[float, float]) -> None:
    a = texture(96, 120)
    b = moved(a, np.float32([[1, 0, shift[0]], [0, 1, shift[1]]]))
    found = flow_between(a, b, settings)[:, 16:-16, 16:-16]
    torch.testing.assert_close(found.mean((1, 2)), torch.tensor(shift), rtol=0, atol=0.05)
    assert end_point_error(found.numpy(), np.float32(shift)[:, None, None]).mean() < 0.15


@pytest.mark.parametrize(("degrees", "zoom"), [(3.0, 1.0), (0.0, 1.04), (-2.0, 0.97)])
def test_rotation_and_zoom_are_found(settings: TVL1Settings, degrees: float, zoom: float) -> None:
    a = texture(112, 112)
    matrix = cv2.getRotationMatrix2D((55.5, 55.5), degrees, zoom)
    y, x = np.mgrid[:112, :112]
    expected = np.stack([row[0] * x + row[1] * y + row[2] for row in matrix]) - np.stack((x, y))
    found = flow_between(a, moved(a, matrix), settings).numpy()
    inside = (slice(16, -16), slice(16, -16))
    assert end_point_error(found, expected)[inside].mean() < 0.15


def test_no_motion_is_exactly_zero(settings: TVL1Settings) -> None:
    a = texture(50, 63)
    assert not flow_between(a, a, settings).any()
    flat = np.full((40, 40), 77, np.uint8)
    assert not flow_between(flat, flat, settings).any()


def test_flat_images_of_different_brightness_do_not_move(settings: TVL1Settings) -> None:
    """No gradient inside, so the data term has no direction there."""
    flow = flow_between(np.full((40, 52), 10, np.uint8), np.full((40, 52), 200, np.uint8), settings)
    assert torch.isfinite(flow).all()
    assert not flow.any()


def test_a_pair_does_not_depend_on_its_batch(settings: TVL1Settings) -> None:
    frames = np.stack([texture(48, 40, seed) for seed in range(2)])
    frames = np.concatenate((frames, frames[:1], moved(frames[0], np.float32([[1, 0, 2], [0, 1, 1]]))[None]))
    first, second = torch.tensor([0, 0, 2, 0, 3]), torch.tensor([1, 2, 3, 3, 0])
    together = tvl1(torch.from_numpy(frames), first, second, settings)
    for i in range(len(first)):
        alone = tvl1(torch.from_numpy(frames), first[i : i + 1], second[i : i + 1], settings)[0]
        assert torch.equal(together[i], alone)


def test_uint8_and_float_frames_give_the_same_flow() -> None:
    a, b = texture(40, 44, 0), texture(40, 44, 1)
    whole = torch.from_numpy(np.stack((a, b)))
    index = torch.tensor([0]), torch.tensor([1])
    assert torch.equal(tvl1(whole, *index, PARITY), tvl1(whole.float(), *index, PARITY))


def test_more_iterations_come_closer(engine: Engine) -> None:
    a = texture(64, 64)
    b = moved(a, np.float32([[1, 0, 2.5], [0, 1, -1]]))
    reference = flow_between(a, b, PARITY).numpy()
    few = [TVL1Settings(epsilon=0.0, inner=n, outer=1, engine=engine) for n in (1, 5, 30)]
    errors = [end_point_error(flow_between(a, b, settings).numpy(), reference).mean() for settings in few]
    assert errors[0] > errors[1] > errors[2]


def test_no_pairs_give_no_flow() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert tvl1(torch.zeros(3, 20, 30), none, none, PARITY).shape == (0, 2, 20, 30)


def test_wrong_input_says_what_was_given() -> None:
    frames, index = torch.zeros(2, 20, 20), torch.tensor([0])
    with pytest.raises(UsageError, match=r"outside 0\.\.1"):
        tvl1(frames, index, torch.tensor([2]), PARITY)
    with pytest.raises(UsageError, match=r"\(2, 3, 20, 20\)"):
        tvl1(torch.zeros(2, 3, 20, 20), index, index, PARITY)


# ---- the median's network


def test_the_median_network_is_right_on_zeros_and_ones() -> None:
    """By the 0-1 principle it is right on all numbers if it is on these; every 513th of the 2^25 is tried."""
    bits = (torch.arange(2**25, dtype=torch.int32)[None, :: 2**9 + 1] >> torch.arange(25)[:, None]) & 1
    values = list(bits.bool())
    for column in range(5):
        for e in network.SORT_5:
            a, b = 5 * e.a + column, 5 * e.b + column
            values[a], values[b] = values[a] & values[b], values[a] | values[b]
    for e in network.MEDIAN_OF_SORTED_COLUMNS:
        values[e.a], values[e.b] = values[e.a] & values[e.b], values[e.a] | values[e.b]
    assert torch.equal(values[network.MEDIAN], bits.sum(0) >= 13)


# ---- the compiled engine


@pytest.mark.parametrize(("warps", "median"), [(1, False), (1, True), (2, True)])
def test_native_equals_torch_step_for_step(warps: int, median: bool) -> None:
    """With few iterations rounding has not grown yet, so a wrong step would show.

    torch fuses multiply-adds where the processor can, and the library never does. Positions are rounded to 1/32 px, so
    that a last bit can move a sample: that may happen to one pixel in a hundred, after the first warp.
    """
    require_native()
    a = texture(53, 70)
    b = moved(a, np.float32([[1.02, 0.01, 2.5], [-0.01, 1, -3.5]]))
    few = TVL1Settings(epsilon=0.0, warps=warps, inner=1, outer=2, median=median)
    compiled = flow_between(a, b, replace(few, engine="native"))
    by_torch = flow_between(a, b, replace(few, engine="torch"))
    error = (compiled - by_torch).abs()
    assert float((error > 2e-3).float().mean()) <= (0 if warps == 1 else 0.01)
    assert error.median() < 1e-5
    assert error.mean() < (1e-5 if warps == 1 else 1e-3)


def test_the_processors_handling_of_tiny_numbers_stays_as_it_was(settings: TVL1Settings) -> None:
    flow_between(texture(32, 32), texture(32, 32, 1), settings)
    assert float(torch.tensor([1e-40]) * 0.5) > 0


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was found out about libraries before or during this test is forgotten."""
    caches = (native.load, native._expected, tvl1_module._checked)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def build_here(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """Compile tvl1.c, with words of it exchanged, and load from `folder`."""
    command = build.compiler()
    if command is None:
        pytest.skip("no C compiler here")
    right = build.source()
    wrong = right
    for old, new in changes.items():
        wrong = wrong.replace(old, new)
    with monkeypatch.context() as m:
        m.setattr(build, "source", lambda: wrong)
        build.build(command, folder)
    monkeypatch.setattr(build, "library", lambda name: folder / f"tvl1-{name}.so")
    assert (wrong == right) == (not changes)


@pytest.mark.usefixtures("fresh")
def test_every_kind_of_processor_computes_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths that are no multiple of a vector, several levels, and the stop that rounding would move."""
    build_here(tmp_path, monkeypatch)
    able = list(build.LEVELS)[list(build.LEVELS).index(native.level()) :]
    if len(able) == 1:
        pytest.skip("this processor runs one kind of library only")
    frames = torch.stack([torch.from_numpy(moved(texture(120, 157), np.float32([[1, 0, s], [0, 1, -s]])))
                          for s in (0.0, 1.3, 4.1)]).float()  # fmt: skip
    levels = pyramid.build(frames, PARITY.scales, PARITY.scale_step)
    flows = []
    for name in able:
        solver = native.load(name)
        assert not isinstance(solver, str), solver
        flows.append(solver(levels, torch.tensor([0, 1]), torch.tensor([1, 2]), PARITY))
    assert all(torch.equal(flow, flows[0]) for flow in flows[1:])
    assert flows[0].abs().max() > 1


@pytest.mark.usefixtures("fresh")
def test_a_compiler_that_knows_no_newer_processors_serves_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As gcc before 11."""
    command = build.compiler()
    if command is None or native.level() == "base":
        pytest.skip("no C compiler, or nothing newer than the least, here")
    old = tmp_path / "cc"
    old.write_text(f'#!/bin/sh\ncase "$*" in *x86-64-v*|*x86_64_v*) exit 1;; esac\nexec {" ".join(command)} "$@"\n')
    old.chmod(0o755)
    assert build.build([str(old)], tmp_path) == [tmp_path / "tvl1-base.so"]
    monkeypatch.setattr(build, "library", lambda name: tmp_path / f"tvl1-{name}.so")
    assert engine_for(torch.device("cpu"), PARITY) == "native"


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("how", ["off", "missing", "stale", "wrong"])
def test_without_the_right_library_torch_does_the_work_and_says_why(
    how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if how == "off":
        monkeypatch.setenv("AQA_NATIVE", "0")
    elif how == "missing":
        monkeypatch.setattr(build, "library", lambda name: tmp_path / name)
    elif how == "stale":
        build_here(tmp_path, monkeypatch, **{build.digest(build.source().split("\n", 1)[1]): "older"})
    else:
        build_here(tmp_path, monkeypatch, **{"const float a = -0.75f;": "const float a = -0.5f;"})
    cpu = torch.device("cpu")
    assert engine_for(cpu, PARITY) == "torch"
    said = {"off": "AQA_NATIVE", "missing": "without a C compiler", "stale": "another version", "wrong": "else"}[how]
    assert said in why_torch(cpu, PARITY)
    assert flow_between(texture(20, 20), texture(20, 20, 1), PARITY).any()
    with pytest.raises(EnvironmentFault, match=said):
        engine_for(cpu, replace(PARITY, engine="native"))


@pytest.mark.parametrize("command", [["/nonexistent/cc"], ["false"]], ids=["missing", "broken"])
def test_a_compiler_that_does_not_work_is_named(command: list[str], tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=command[0]):
        build.build(command, tmp_path)
    assert not list(tmp_path.iterdir())


# ---- on an accelerator


@pytest.mark.gpu
def test_cuda_equals_cpu() -> None:
    a = texture(112, 128)
    b = moved(a, np.float32([[1, 0, 2.5], [0, 1, -1]]))
    frames, index = torch.from_numpy(np.stack((a, b))), torch.tensor([0])
    there = tvl1(frames.cuda(), index, index + 1, PARITY).cpu()
    here = tvl1(frames, index, index + 1, PARITY)
    assert end_point_error(there.numpy(), here.numpy()).mean() < 0.02
