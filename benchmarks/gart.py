"""What does a node's own layer cost in CoRe's regression tree: one product of matrices, or a convolution in groups?

    python benchmarks/gart.py --batch 4 64 640

Both have the same weights. Prints the largest difference of their outputs and gradients, and milliseconds a step,
forwards and backwards, of all levels of the tree at the paper's width, with the ratio: convolution over product.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from aqa_train.methods.core import _Nodes

WIDTH = 256


class Grouped(nn.Module):
    """As in github.com/yuxumin/CoRe: a 1 × 1 convolution with a group a node."""

    def __init__(self, layer: _Nodes) -> None:
        super().__init__()
        nodes, read, write = layer.weight.shape
        self.conv = nn.Conv1d(nodes * read, nodes * write, 1, groups=nodes)
        with torch.no_grad():
            self.conv.weight.copy_(layer.weight.transpose(1, 2).reshape(self.conv.weight.shape))
            self.conv.bias.copy_(layer.bias.flatten())  # type: ignore[union-attr]
        self.nodes = nodes

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, nodes · read, 1)."""
        return self.conv(x)  # type: ignore[no-any-return]


def milliseconds(step: Callable[[], None], seconds: float) -> float:
    """The median of as many steps as fit."""
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 64, 640])
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for batch in options.batch:
        ours = theirs = apart = 0.0
        for nodes, write in [(1, 512), (2, 512), (4, 512), (8, 512), (16, 1)]:
            layer = _Nodes(nodes, WIDTH, write)
            grouped = Grouped(layer)
            x = torch.randn(nodes, batch, WIDTH, requires_grad=True)
            y = x.detach().transpose(0, 1).reshape(batch, -1, 1).requires_grad_()
            a, b = layer(x), grouped(y).view(batch, nodes, write).transpose(0, 1)
            a.sum().backward()
            b.sum().backward()
            gradient = y.grad.view(batch, nodes, WIDTH).transpose(0, 1)  # type: ignore[union-attr]
            apart = max(apart, (a - b).abs().max().item(), (x.grad - gradient).abs().max().item())  # type: ignore[operator]
            ours += milliseconds(lambda layer=layer, x=x: layer(x).sum().backward(), options.seconds / 5)  # type: ignore[misc]
            theirs += milliseconds(lambda g=grouped, y=y: g(y).sum().backward(), options.seconds / 5)  # type: ignore[misc]
        print(
            f"batch {batch:4}   product {ours:8.2f} ms   convolution {theirs:8.2f} ms   ratio {theirs / ours:.2f}   "
            f"largest difference {apart:.1e}"
        )


if __name__ == "__main__":
    main()
