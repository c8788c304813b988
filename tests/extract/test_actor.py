"""The actor from the file to the store: rendered dives, real weights, real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.extract.clips import Clip

from aqa_dives.dataset import Look, write_video
from aqa_extract.actor import views
from aqa_extract.actor.camera import small
from aqa_extract.actor.find import find
from aqa_extract.actor.ssd import PersonDetector, load_detector
from aqa_extract.actor.track import Views
from aqa_extract.config import Options
from aqa_extract.decode.child import Decoder, DecodeRequest
from aqa_extract.frames import resize
from aqa_extract.job import VideoJob
from aqa_extract.loading import bytes_needed, load
from aqa_extract.run import extract
from aqa_shared.errors import EnvironmentFault
from aqa_shared.records import ActorSettings, ExtractSettings, FlowSettings, Pixels, Sampling, Video
from aqa_shared.store import FeatureStore, contents

LOOK = Look(seed=5, frames=40)
WEIGHTS = "ssd-mobilenet-v3"


@pytest.fixture(scope="module")
def detector() -> PersonDetector:
    try:
        return load_detector(WEIGHTS, lambda _: None)[0].eval()
    except EnvironmentFault as e:
        pytest.skip(f"the weights of {WEIGHTS} cannot be had here: {e.cause}")


@pytest.fixture(scope="module")
def dive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(LOOK, 1, tmp_path_factory.mktemp("dives"))


def settings(*streams: str, **actor: object) -> ExtractSettings:
    """Two segments of 12 frames of a video of 40: there is a gap between them."""
    return ExtractSettings.model_validate(
        {
            "streams": streams,
            "sampling": Sampling(segments=2, segment_frames=12),
            "pixels": Pixels(short_side=32, crop=32),
            "flow": FlowSettings(mode="parity" if any("flow" in s for s in streams) else "off"),
            "actor": ActorSettings.model_validate(actor),
            "weights": {"rgb": "i3d-kinetics-400", "flow": "inflated-from-rgb", "actor": WEIGHTS},
        }
    )


def test_the_actor_does_not_depend_on_the_other_streams(
    dive: Path, tmp_path: Path, i3d_rgb_weights: str, detector: PersonDetector
) -> None:
    videos = [Video(id="dive", path=str(dive))]
    stores = []
    for streams in (("actor-rgb",), ("rgb", "flow", "actor-rgb")):
        out = tmp_path / f"{len(streams)}.zarr"
        extract(videos, out, settings(*streams), Options(device="cpu", workers=1))
        stores.append(FeatureStore.open(out))
    for name in ("actor_box", "actor_score", "actor_rgb"):
        np.testing.assert_array_equal(stores[0].video("dive", name), stores[1].video("dive", name), err_msg=name)
    assert stores[0].table["actor_coverage"][0] == stores[1].table["actor_coverage"][0] > 0


def test_the_actor_of_a_part_is_that_of_its_frames(
    dive: Path, tmp_path: Path, i3d_rgb_weights: str, detector: PersonDetector
) -> None:
    """The same frames as a part of a file and as a file of their own: same boxes, as decoding is lossless here."""
    import av

    with av.open(str(dive)) as container:
        pictures = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    late = Clip(frames=40, size=(160, 128), codec="ffv1", suffix=".mkv", draw=lambda i, w, h: pictures[i])
    own = Clip(frames=28, size=(160, 128), codec="ffv1", suffix=".mkv", draw=lambda i, w, h: pictures[i + 12])
    videos = [
        Video(id="part", path=str(late.write(tmp_path / "late")), start=12),
        Video(id="own", path=str(own.write(tmp_path / "own"))),
    ]
    report = extract(videos, tmp_path / "s.zarr", settings("actor-rgb"), Options(device="cpu", workers=1))
    assert report.failures == []
    store = FeatureStore.open(tmp_path / "s.zarr")
    for name in ("actor_box", "actor_score", "actor_rgb"):
        np.testing.assert_array_equal(store.video("part", name), store.video("own", name), err_msg=name)
    assert store.table["actor_coverage"].min() > 0


def test_a_video_without_an_actor_is_listed(tmp_path: Path, i3d_rgb_weights: str, detector: PersonDetector) -> None:
    rng = np.random.default_rng(0)
    noise = Clip(frames=26, size=(64, 48), draw=lambda _, w, h: rng.integers(0, 256, (h, w, 3), np.uint8))
    path = noise.write(tmp_path / "noise")
    report = extract(
        [Video(id="noise", path=str(path))],
        tmp_path / "s.zarr",
        settings("actor-rgb", actors=3),
        Options(device="cpu", workers=1),
    )
    assert report.without_actor == ["noise"]
    assert "no actor in noise: the full frame was used" in report.text()
    store, known = FeatureStore.open(tmp_path / "s.zarr"), contents(tmp_path / "s.zarr")
    assert known is not None
    assert store.table["actor_coverage"][0] == 0
    assert any(w.startswith("no_actor") for w in known.meta("noise")["warnings"])
    central = [(64 - 48) / 2 / 64, 0, (64 + 48) / 2 / 64, 1]
    np.testing.assert_allclose(store.video("noise", "actor_box")[0, 0], central, atol=1e-6)
    assert store.video("noise", "other_box").shape == (2, 2, 12, 4)
    assert not store.video("noise", "other_score").any()


def test_what_is_looked_at_is_what_the_file_holds(dive: Path) -> None:
    """Looks lie on frames that no segment uses, too; every view is the frame at its position."""
    import av

    with av.open(str(dive)) as container:
        pictures = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    frames = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    wanted = settings("actor-rgb", every=3)
    video = Video(id="dive", path=str(dive))
    request = DecodeRequest(path=video.path, video=video, sampling=wanted.sampling, actor=wanted.actor)
    reserved: list[int] = []
    with Decoder() as decoder:
        prepared = load(
            decoder, VideoJob(request.video, None), request, wanted, torch.device("cpu"), 320, reserved.append
        )
        (opened, *_) = decoder.decode(request)
    seen = prepared.views
    assert seen is not None
    assert seen.positions.tolist() == [*range(0, 40, 3)]
    assert not set(seen.positions.tolist()) <= set(prepared.video.positions.tolist())
    np.testing.assert_array_equal(seen.frames, resize(frames[seen.positions], (320, 320)))
    np.testing.assert_array_equal(seen.grey, small(frames[seen.grey_positions]))
    np.testing.assert_array_equal(prepared.large, frames[prepared.video.positions])
    # Counted before the first frame is kept: looks, greys (as float while they are used), crops' source, frames.
    kept = [seen.frames, prepared.large, *prepared.frames.values()]
    expected = sum(t.numel() for t in kept if t is not None) + 4 * seen.grey.numel()
    # And what comes of it: 12 frame indices, two times, 12 boxes with scores, and 1024 numbers a segment.
    expected += len(opened.plan.segments) * (12 * 4 + 2 * 8 + 12 * 5 * 4 + 1024 * 4)
    assert reserved == [expected] == [bytes_needed(opened, wanted, 320)]


@pytest.mark.parametrize("source", ["testsrc2", "zoneplate", "life"])
def test_nobody_is_in_a_test_pattern(source: str, detector: PersonDetector) -> None:
    """Its shapes move and change."""
    import av

    graph = av.filter.Graph()
    start, end = graph.add(source, "size=320x240:rate=25"), graph.add("buffersink")
    start.link_to(end)
    graph.configure()
    pictures = np.stack([graph.pull().to_ndarray(format="rgb24") for _ in range(50)])
    frames = resize(torch.from_numpy(pictures).permute(0, 3, 1, 2), (320, 320))
    positions, greys = views.looks(0, 50, ActorSettings()), views.greys(0, 50, ActorSettings())
    seen = Views(positions, frames[positions], greys, small(frames[greys]))
    assert find(detector, seen, 50, (240, 320), ActorSettings()).tracks == []
