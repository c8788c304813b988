"""Views: turned and mirrored clips, and that flow is turned with its vectors instead of being computed again."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import functional as transforms

from aqa_extract import frames as px
from aqa_extract.compute import Compute, Done
from aqa_extract.config import Options
from aqa_extract.decode.child import Decoder
from aqa_extract.flow.inputs import to_gray
from aqa_extract.flow.settings import TVL1Settings
from aqa_extract.flow.tvl1 import tvl1
from aqa_extract.job import VideoJob
from aqa_extract.loading import Prepared, load
from aqa_extract.networks import Networks
from aqa_extract.presets import PRESETS
from aqa_extract.streams import VIEWS, completed
from aqa_extract.work import request_for
from aqa_shared.records import ExtractSettings, FlowSettings, Pixels, Sampling, Video

MOVING = [name for name, view in VIEWS.items() if name and not view.still]


def test_turns_are_counter_clockwise() -> None:
    top_left = torch.zeros(1, 1, 4, 4)
    top_left[..., 0, 0] = 1
    places = {"": (0, 0), "rot90": (3, 0), "rot180": (3, 3), "rot270": (0, 3), "mirror": (0, 3)}
    for name, place in places.items():
        assert px.viewed(top_left, VIEWS[name])[(0, 0, *place)] == 1


def test_vectors_turn_with_their_field() -> None:
    right = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    points = {"rot90": (0, -1), "rot180": (-1, 0), "rot270": (0, 1), "mirror": (-1, 0)}  # to the right, down
    for name, vector in points.items():
        assert px.viewed(right, VIEWS[name], vectors=True)[0, :, 1, 1].tolist() == list(vector)
    down = right.flip(1)
    assert px.viewed(down, VIEWS["rot90"], vectors=True)[0, :, 1, 1].tolist() == [1, 0]
    assert px.viewed(down, VIEWS["mirror"], vectors=True)[0, :, 1, 1].tolist() == [0, 1]


def scene(shift: tuple[float, float], side: int = 96, seed: int = 0) -> Tensor:
    """uint8 (1, 3, side, side): smooth noise, moved by `shift` pixels to the right and down."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(1, 1, 24, 24, generator=generator)
    ys, xs = torch.meshgrid(torch.arange(side) - shift[1], torch.arange(side) - shift[0], indexing="ij")
    grid = torch.stack((xs, ys), -1)[None] / side * 1.6 - 0.8
    picture = F.grid_sample(noise, grid, mode="bicubic", align_corners=False).clamp(0, 1)
    return (picture * 255).round().to(torch.uint8).expand(1, 3, side, side).contiguous()


@pytest.mark.parametrize("name", MOVING)
def test_flow_that_is_turned_is_the_flow_of_the_turned_frames_but_for_the_solvers_error(name: str) -> None:
    """TV-L1's differences look to the right and down, so its solution leans that way: of a video and its turned copy it
    finds fields that differ by about a quarter of what each differs from the truth (0.009 to 0.012 of 0.041 px), and
    neither is the better one. Turning the field is exact for the motion itself, needs no second solution, and is what
    the store holds. Tolerance: half of the solver's own error against the known motion.
    """
    truth = torch.tensor([1.5, -0.75])
    frames = torch.cat([scene((0, 0)), scene((float(truth[0]), float(truth[1])))])
    first, second = torch.tensor([0]), torch.tensor([1])
    flow = tvl1(to_gray(frames), first, second, TVL1Settings())
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))  # what leaves the picture has no flow
    error = (flow - truth.view(1, 2, 1, 1)).norm(dim=1, keepdim=True)[inside].mean()
    turned = px.viewed(flow, VIEWS[name], vectors=True)
    again = tvl1(to_gray(px.viewed(frames, VIEWS[name])), first, second, TVL1Settings())
    apart = (turned - again).norm(dim=1, keepdim=True)[inside].mean()
    print(f"{name}: {apart:.4f} px apart, the solver's error is {error:.4f} px")
    assert apart < 0.5 * error
    wrong = px.viewed(flow, VIEWS[name])  # the field alone is another motion
    assert (wrong - again).norm(dim=1)[inside[1:]].mean() > 1


@pytest.mark.parametrize("name", MOVING)
def test_real_flow_that_is_turned(name: str, shared_dir: Path) -> None:
    """As above on a real clip, where the truth is not known: within 0.1 px, OpenCV's own bar between two versions of
    TV-L1 (its regression test asks for 95 % of the pixels)."""
    import av

    with av.open(str(shared_dir / "videos" / "v_GGSY1Qvo990.mp4")) as container:
        pair = [f.to_ndarray(format="rgb24") for f, _ in zip(container.decode(video=0), range(42), strict=False)][40:]
    frames = px.resize(torch.from_numpy(np.stack(pair)).permute(0, 3, 1, 2), (128, 170))
    first, second = torch.tensor([0]), torch.tensor([1])
    flow = tvl1(to_gray(frames), first, second, TVL1Settings())
    turned = px.viewed(flow, VIEWS[name], vectors=True)
    again = tvl1(to_gray(px.viewed(frames, VIEWS[name])), first, second, TVL1Settings())
    apart = (turned - again).norm(dim=1)
    near = (apart < 0.1).float().mean()
    print(
        f"{name}: mean {apart.mean():.4f} px apart, {near:.1%} within 0.1 px; mean flow {flow.norm(dim=1).mean():.2f}"
    )
    assert near > 0.95


class Seen(nn.Module):
    """In a backbone's place: what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.clips: list[Tensor] = []

    def outputs(self, x: Tensor, names: list[str]) -> dict[str, Tensor]:
        self.clips += list(x.clone())
        return {"": x.flatten(1)[:, :8]}


def shown(path: Path, settings: ExtractSettings, networks: dict[str, Seen]) -> tuple[Prepared, Done]:
    """One video through the device stage, with `networks` in the backbones' places."""
    cpu = torch.device("cpu")
    compute = Compute(Networks(settings, cpu, dict(networks), None, TVL1Settings(), {}), settings, 1, 8)
    video = Video(id="v", path=str(path))
    with Decoder() as decoder:
        request = request_for(video, settings, Options(decoder="av"))
        prepared = load(decoder, VideoJob(video, None), request, settings, cpu, None, lambda _: None)
    (done,) = [*compute.submit(prepared), *compute.flush()]
    return prepared, done


def test_the_preset_of_gdlt(clips: ModuleType, tmp_path: Path) -> None:
    """32 frames at 25 per second, one clip after the other; short side 256, then squashed to 224 x 224."""
    import av

    preset, seen = PRESETS["gdlt"], Seen()
    path = clips.Clip(frames=70, size=(320, 240)).write(tmp_path / "clip")
    settings = ExtractSettings(streams=("rgb@swin3d_b",), sampling=preset.sampling, pixels=preset.pixels)
    _, done = shown(path, completed(settings), {"rgb@swin3d_b": seen})
    assert done.arrays["frame_index"].tolist() == [[*range(32)], [*range(32, 64)]]
    with av.open(str(path)) as container:
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])[:32]
    whole = transforms.resize(torch.from_numpy(frames).permute(0, 3, 1, 2), [256], antialias=False)
    square = transforms.resize(whole, [224, 224], antialias=False)
    expected = transforms.normalize(square / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).transpose(0, 1)
    torch.testing.assert_close(seen.clips[0], expected, rtol=0, atol=1e-5)


def test_a_view_is_of_the_clip_that_the_network_would_see(clips: ModuleType, tmp_path: Path) -> None:
    """One decoding, one flow; every view of them, in the network's own units."""
    path = clips.Clip(frames=20, size=(64, 48)).write(tmp_path / "clip")
    views = [f"{name}-" if name else "" for name in VIEWS]
    names = (*(f"{v}rgb" for v in views), *(f"{v}flow" for v in views if v != "still-"))
    settings = completed(
        ExtractSettings(
            streams=names,
            sampling=Sampling(segments=1),
            pixels=Pixels(short_side=32, crop=32),
            flow=FlowSettings(mode="parity", quantise="none"),
        )
    )
    networks = {"rgb": Seen(), "flow": Seen()}
    prepared, done = shown(path, settings, networks)
    assert len(prepared.frames) == 1
    assert set(done.arrays) == {"frame_index", "segment_start_time", "segment_end_time"} | {
        name.replace("-", "_") for name in names
    }
    rgb = dict(zip(VIEWS, networks["rgb"].clips, strict=True))
    assert torch.equal(rgb["still"], rgb[""][:, :1].expand_as(rgb[""]))
    assert not torch.equal(rgb["still"], rgb[""])
    flow = dict(zip(["", *MOVING], networks["flow"].clips, strict=True))
    for name in MOVING:
        assert torch.equal(rgb[name], px.viewed(rgb[""].transpose(0, 1), VIEWS[name]).transpose(0, 1))
        assert torch.equal(flow[name], px.viewed(flow[""].transpose(0, 1), VIEWS[name], vectors=True).transpose(0, 1))
