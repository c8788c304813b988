"""What of a trained network is worth its room on the disk: what `forward` reads, matrices in half precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


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


@torch.no_grad()
def unread(model: nn.Module, width: int, segments: int) -> list[str]:
    """Names of the tensors that `forward` does not read, such as those of a part that only the losses need.

    A tensor is read if NaN in it changes what comes out, for whole videos or for shorter ones.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    x = torch.linspace(-1, 1, 2 * segments * width, device=device).view(2, segments, width)
    present = torch.ones(2, segments, dtype=torch.bool, device=device)
    present[1, 1:] = False
    short = x * present.unsqueeze(-1)

    def outputs() -> Tensor:
        return torch.cat([model(x, None), model(short, present)])

    expected = outputs()
    state = {k: v for k, v in model.state_dict().items() if v.is_floating_point()}
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
