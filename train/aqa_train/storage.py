"""What of a trained network is worth its room on the disk: what `forward` reads, matrices in half precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from aqa_train.batch import Batch


def rounded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices rounded to half precision (11 bits), still float32; those whose values it cannot hold stay.

    To be done before a model is tested: what is stored is then the very model that was tested. Vectors (biases, batch
    statistics) take no room and stay.
    """
    return {k: h.float() if (h := _half(v)) is not None else v.detach().clone() for k, v in state.items()}


def packed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values in half precision where no bit is lost."""
    return {k: h if (h := _half(v)) is not None and torch.equal(h.float(), v) else v for k, v in state.items()}


def _half(v: Tensor) -> Tensor | None:
    if v.dtype != torch.float32 or v.ndim < 2:
        return None
    h = v.detach().half()
    return h if bool(h.isfinite().all()) else None


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict`, where buffers take the shapes that they were saved with.

    What a method keeps of the videos it learned from, as exemplars, is as long as they were many.
    """
    owners = dict(model.named_modules())
    for name, buffer in list(model.named_buffers()):
        saved = state.get(name)
        if saved is not None and (saved.shape, saved.dtype) != (buffer.shape, buffer.dtype):
            owner, _, own = name.rpartition(".")
            setattr(owners[owner], own, torch.empty_like(saved, device=buffer.device))
    model.load_state_dict(state)


@torch.no_grad()
def unread(model: nn.Module, batch: Batch) -> list[str]:
    """Names of the parameters that `forward` does not read, such as those of a part that only the losses need.

    A parameter is read if NaN in it changes what comes out, for whole videos or for shorter ones. `batch`: two videos
    or more. Buffers are always kept: which of them are read may depend on the video.
    """
    was_training = model.training
    model.eval()
    spread = {n: torch.linspace(-1, 1, x.numel(), device=x.device).view(x.shape) for n, x in batch.streams.items()}
    present = torch.ones(next(iter(spread.values())).shape[:2], dtype=torch.bool, device=batch.scores.device)
    whole = replace(batch, streams=spread, present=None)
    present[1, 1:] = False
    cut = {n: x * present.view(*present.shape, *[1] * (x.ndim - 2)) for n, x in spread.items()}
    short = replace(batch, streams=cut, present=present)

    def outputs() -> Tensor:
        return torch.cat([model(whole), model(short)])

    expected = outputs()
    state = dict(model.named_parameters())
    kept = {k: v.clone() for k, v in state.items()}
    found = []
    for name, tensor in state.items():
        tensor.fill_(torch.nan)
        if torch.equal(outputs(), expected):
            found.append(name)
        tensor.copy_(kept[name])
    # Two that stand in for each other would not be missed one at a time.
    for name in found:
        state[name].fill_(torch.nan)
    enough = torch.equal(outputs(), expected)
    for name in found:
        state[name].copy_(kept[name])
    model.train(was_training)
    return found if enough else []
