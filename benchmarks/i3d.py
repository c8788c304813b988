"""I3D on this machine: a plain eager port, OpenVINO and ours, per precision, in the same run.

    python benchmarks/i3d.py [--clips 2] [--side 224] [--repeats 3] [--device cpu]

The reference is what the common ports run: convolution and normalisation apart, tensors contiguous, every SAME
padding a copy. OpenVINO takes part where it is installed (`pip install openvino`). All variants take the same random
clips and random weights (neither changes the time). Times are CPU time of this process (wall time on a GPU) per clip,
the least of the repeats, the variants in turn, so that a busy machine disturbs all alike. Prints one line a variant:
seconds, ratio to the reference, and how far its features are from the reference's (cosine, and largest error over
largest feature).
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from aqa_extract.i3d import InceptionI3D, MaxPool, Unit3D, same_padding
from aqa_shared.console import counted
from aqa_shared.machine import has_units_for


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


Network = Callable[[Tensor], Tensor]


def variants(device: torch.device, shape: torch.Size) -> dict[str, Network]:
    """By name: from float32 clips of `shape` to features, all with the weights of one reference."""
    torch.manual_seed(0)
    reference = Reference().eval()
    made: dict[str, Network] = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if not has_units_for(precision, device):
            print(f"{precision}: left out, this device has no units for it")
            continue
        ours = InceptionI3D().eval()
        ours.load_state_dict(reference.state_dict())
        ours.fuse()
        if device.type == "cpu":  # as extraction does
            ours = ours.to(memory_format=torch.channels_last_3d)
        eager = copy.deepcopy(reference)
        made[f"{precision}: eager port"] = in_precision(eager.to(device, dtype), dtype)
        made[f"{precision}: ours"] = in_precision(ours.to(device, dtype), dtype)
        if device.type == "cpu" and find_spec("openvino") and precision != "fp16":
            made[f"{precision}: OpenVINO"] = by_openvino(reference, shape, precision)
    return made


def in_precision(network: InceptionI3D, dtype: torch.dtype) -> Network:
    return lambda clips: network.features(clips.to(dtype))


def by_openvino(network: InceptionI3D, shape: torch.Size, precision: str) -> Network:
    """The same network converted and compiled by OpenVINO, on one thread."""
    import openvino

    with warnings.catch_warnings():  # of torch's tracing
        warnings.simplefilter("ignore")
        graph = openvino.convert_model(network, example_input=torch.zeros(shape), input=[openvino.PartialShape(shape)])
    hints = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision.replace("fp32", "f32")}
    request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()
    return lambda clips: torch.from_numpy(request.infer(clips.numpy(), share_inputs=True)[0].copy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--side", type=int, default=224, help="height and width")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    if args.device.type == "cpu":
        torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    clips = (torch.rand((args.clips, 3, 16, args.side, args.side), generator=generator) * 2 - 1).to(args.device)
    networks = variants(args.device, clips.shape)

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
            for name, network in networks.items():
                spent, features[name] = timed(lambda network=network: network(clips))  # type: ignore[misc]
                if round:
                    seconds[name] = min(seconds.get(name, spent), spent)
    first = next(iter(networks))
    exact = features[first]
    size = f"16x{args.side}x{args.side}"
    print(
        f"torch {torch.__version__}, {args.device}, {counted(torch.get_num_threads(), 'thread')}, "
        f"{args.clips} clips of {size}"
    )
    print(f"{'':45} {'s/clip':>8} {'x faster':>9} {'cosine':>9} {'rel. error':>10}")
    for name, spent in seconds.items():
        cosine = F.cosine_similarity(features[name], exact).min().item()
        error = ((features[name] - exact).abs().max() / exact.abs().max()).item()
        ratio = seconds[first] / spent
        print(f"{name:45} {spent / args.clips:8.4f} {ratio:9.2f} {cosine:9.6f} {error:10.1e}")


if __name__ == "__main__":
    main()
