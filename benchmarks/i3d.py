"""I3D on this machine: a plain eager port against ours, per precision and layout, in the same run.

    python benchmarks/i3d.py [--clips 2] [--repeats 3] [--device cpu]

The reference is what the common ports run: convolution and normalisation apart, tensors contiguous, every SAME
padding a copy. All variants take the same random 16×224×224 clips and random weights (neither changes the time).
Times are CPU time of this process (wall time on a GPU) per clip, the least of the repeats, the variants in turn, so
that a busy machine disturbs all alike. Prints one line a variant: seconds, ratio to the reference, and how far its
features are from the reference's (cosine, and largest error over largest feature).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aqa_extract.i3d import InceptionI3D, MaxPool, Unit3D, same_padding


class PaddedPool(MaxPool):
    """Pooling as the ports write it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad(x, self.kernel, self.stride), self.kernel, self.stride)


class PaddedUnit(Unit3D):
    """Convolution, normalisation, activation as the ports write them."""

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv3d
        x = pad(x, conv.kernel_size, conv.stride)
        return F.relu(self.bn(F.conv3d(x, conv.weight, None, conv.stride)))


def pad(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    t, h, w = (same_padding(*axis) for axis in zip(x.shape[2:], kernel, stride, strict=True))
    return F.pad(x, (*w, *h, *t))


class Reference(InceptionI3D):
    """The eager port: the same layers, run as the ports run them."""

    def __init__(self) -> None:
        super().__init__()
        for module in self.modules():
            if isinstance(module, MaxPool):
                module.__class__ = PaddedPool
            elif isinstance(module, Unit3D):
                module.__class__ = PaddedUnit

    def pre_pool(self, x: Tensor) -> Tensor:
        for name, layer in self.named_children():
            if name != "logits":
                x = layer(x)
        return x


def variants(device: torch.device) -> dict[str, tuple[nn.Module, torch.dtype]]:
    """By name: the network and the precision it runs in."""
    torch.manual_seed(0)
    reference = Reference().eval()
    made: dict[str, tuple[nn.Module, torch.dtype]] = {}

    def ours(fuse: bool, last: bool) -> InceptionI3D:
        model = InceptionI3D().eval()
        model.load_state_dict(reference.state_dict())
        if fuse:
            model.fuse()
        return model.to(memory_format=torch.channels_last_3d) if last else model

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        eager = Reference().eval()
        eager.load_state_dict(reference.state_dict())
        made[f"{name}: eager port"] = (eager, dtype)
        made[f"{name}: ours, not fused"] = (ours(False, False), dtype)
        made[f"{name}: ours, fused"] = (ours(True, False), dtype)
        made[f"{name}: ours, fused, weights channels last"] = (ours(True, True), dtype)
    return {name: (model.to(device, dtype), dtype) for name, (model, dtype) in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    if args.device.type == "cpu":
        torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    clips = (torch.rand((args.clips, 3, 16, 224, 224), generator=generator) * 2 - 1).to(args.device)
    networks = variants(args.device)

    def timed(work: Callable[[], Tensor]) -> tuple[float, Tensor]:
        on_gpu = args.device.type == "cuda"
        clock = time.perf_counter if on_gpu else time.process_time
        start = clock()
        result = work()
        if on_gpu:
            torch.cuda.synchronize(args.device)
        return clock() - start, result

    seconds: dict[str, float] = {}
    features: dict[str, Tensor] = {}
    with torch.inference_mode():
        # The first round warms up: libraries choose and cache their kernels in it.
        for round in range(args.repeats + 1):
            for name, (network, dtype) in networks.items():
                x = clips.to(dtype)
                spent, features[name] = timed(lambda network=network, x=x: network.features(x))  # type: ignore[misc]
                if round:
                    seconds[name] = min(seconds.get(name, spent), spent)
    first = next(iter(networks))
    exact = features[first]
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} thread(s), {args.clips} clips")
    print(f"{'':45} {'s/clip':>8} {'x faster':>9} {'cosine':>9} {'rel. error':>10}")
    for name, spent in seconds.items():
        cosine = F.cosine_similarity(features[name], exact).min().item()
        error = ((features[name] - exact).abs().max() / exact.abs().max()).item()
        ratio = seconds[first] / spent
        print(f"{name:45} {spent / args.clips:8.4f} {ratio:9.2f} {cosine:9.6f} {error:10.1e}")


if __name__ == "__main__":
    main()
