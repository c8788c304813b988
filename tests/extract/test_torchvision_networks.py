"""torchvision's video networks: our path from a file to a feature against torchvision's own transforms and forward."""

from __future__ import annotations

import functools
import hashlib
import http.server
import pkgutil
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import video

from aqa_extract import weights_fetch
from aqa_extract.backbones import BACKBONES, Backbone
from aqa_extract.backbones.torchvision_video import _build
from aqa_extract.config import Options
from aqa_extract.run import extract
from aqa_extract.weights import fetch, resolve
from aqa_extract.weights_convert import load_exactly
from aqa_shared.errors import EnvironmentFault, UsageError
from aqa_shared.records import ExtractSettings, Sampling, Video
from aqa_shared.store import FeatureStore

NETWORKS = {name: backbone for name, backbone in BACKBONES.items() if name != "i3d"}
LAST = {"swin3d": "norm", "mvit": "norm", "s3d": "features", "r2plus1d": "layer4"}
"""The layer whose output is the map."""
CLASSIFIER = {"swin3d": "head", "mvit": "head", "s3d": "classifier", "r2plus1d": "fc"}
"""The layer whose input is the feature."""
FRAMES = {"swin3d": 8, "mvit": 16, "s3d": 16, "r2plus1d": 8}
"""Fewer than their own where they take them: a clip then costs seconds."""


def of(table: dict[str, Any], name: str) -> Any:
    return next(value for key, value in table.items() if name.startswith(key))


def enums(backbone: Backbone) -> list[Any]:
    """Of torchvision, for all weights of the backbone."""
    sources = [source for entry in backbone.weights["rgb"] for source in entry.sources]
    assert all(isinstance(source, weights_fetch.TorchvisionUrl) for source in sources)
    return [pkgutil.resolve_name(f"torchvision.models.{source.place}") for source in sources]  # type: ignore[union-attr]


def random_network(name: str) -> nn.Module:
    """From a seed, with statistics that are not those of nothing."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        model: nn.Module = getattr(video, name)()
        for key, buffer in model.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_input_is_that_of_torchvisions_enums(name: str) -> None:
    given = NETWORKS[name].input
    for enum in enums(NETWORKS[name]):
        theirs = enum.transforms()
        assert theirs.crop_size == [given.crop] * 2
        resize = given.canvas.resize
        assert theirs.resize_size == ([resize] if isinstance(resize, int) else list(resize))
        assert (tuple(theirs.mean), tuple(theirs.std)) == (given.mean, given.std)
        assert theirs.interpolation.value == "bilinear"
        assert f"clip_len={given.frames}" in enum.meta["_docs"].replace("`", "")
        assert enum.meta.get("min_temporal_size", 1) == given.least_frames
        assert given.sides[0] in (32, enum.meta["min_size"][0])
        assert len(enum.meta["categories"]) == NETWORKS[name].outputs["logits"].channels


def test_every_published_file_is_in_the_registry_with_its_hash() -> None:
    """torchvision's names end in the first digits of the file's SHA-256."""
    found = {enum.url for backbone in NETWORKS.values() for enum in enums(backbone)}
    assert len(found) == 7
    for backbone in NETWORKS.values():
        for entry in backbone.weights["rgb"]:
            (source,) = entry.sources
            assert re.fullmatch(r"sha256:[0-9a-f]{8}", source.digest)
            assert source.digest.removeprefix("sha256:") in source.filename


@pytest.mark.parametrize("name", NETWORKS)
def test_a_feature_is_torchvisions(name: str, clips: ModuleType, tmp_path: Path) -> None:
    """File → transforms → network, both ways, with logits and map.

    Tolerance: 1e-4 of the largest value. The pixels are equal; the normalisation multiplies where torchvision divides,
    and convolutions of another memory format sum in another order.
    """
    import av

    model, frames = random_network(name), of(FRAMES, name)
    torch.save(model.state_dict(), tmp_path / "random.pth")
    path = clips.Clip(frames=frames + 1, size=(350, 262)).write(tmp_path / "clip")
    network = NETWORKS[name].network("rgb")
    settings = ExtractSettings(
        streams=(network, f"{network}:logits", f"{network}:map"),
        sampling=Sampling(segments=1, segment_frames=frames),
        weights={network: str(tmp_path / "random.pth")},
    )
    report = extract([Video(id="v", path=str(path))], tmp_path / "s.zarr", settings, Options(batch=1, device="cpu"))
    assert not report.failures
    store = FeatureStore.open(tmp_path / "s.zarr")

    with av.open(str(path)) as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][:frames]
    clip = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)
    seen: dict[str, Tensor] = {}
    model.get_submodule(of(LAST, name)).register_forward_hook(lambda m, i, o: seen.update(map=o))
    model.get_submodule(of(CLASSIFIER, name)).register_forward_pre_hook(lambda m, i: seen.update(feature=i[0]))
    with torch.inference_mode():
        logits = model(enums(NETWORKS[name])[0].transforms()(clip)[None])[0]
    map, feature = seen["map"][0], seen["feature"][0]
    if name.startswith("swin3d"):
        map = map.permute(3, 0, 1, 2)
    if name.startswith("mvit"):
        map = map[1:].T.reshape(768, 8, 7, 7)
    if name == "s3d":
        feature = feature.mean((1, 2, 3))
    array = NETWORKS[name].network("rgb").replace("@", "_")
    assert store.streams == (array,)
    for suffix, expected in (("", feature), ("_logits", logits), ("_map", map)):
        got = torch.from_numpy(store.read(array + suffix)[0])
        assert got.shape == expected.shape
        assert expected.std() > 0
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_maps_have_the_shape_that_the_table_says(name: str) -> None:
    """For every size, without computing anything."""
    backbone = NETWORKS[name]
    given = backbone.input
    with torch.device("meta"):
        network = _build_like(backbone)
    fixed = given.most_frames is not None
    for frames in (given.frames,) if fixed else (given.least_frames, 15, 17, 20, 23):
        for crop in (given.crop,) if fixed else {max(given.sides[0], n) for n in (225, 240, 250)}:
            made = network.outputs(torch.empty(1, 3, frames, crop, crop, device="meta"), ["", "map", "logits"])
            for output, values in made.items():
                assert tuple(values.shape[1:]) == backbone.outputs[output].shape(frames, crop), (frames, crop)


def _build_like(backbone: Backbone) -> Any:
    """The backbone's own wrapper around a network without values."""
    builder = backbone.builder
    assert isinstance(builder, functools.partial)
    assert builder.func is _build
    constructor = builder.args[0]
    state = getattr(video, constructor)(num_classes=400).state_dict()
    # Values are what `load_exactly` refuses to be without; shapes are all that this wants.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aqa_extract.weights_convert.load_exactly", lambda model, *rest: None)
        return builder(state, "rgb", ExtractSettings(), "none")


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address of a server of its files."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_published_weights_are_fetched_checked_and_loaded(
    files: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = files
    monkeypatch.setenv("AQA_HOME", str(tmp_path / "home"))
    state = random_network("s3d").state_dict()
    torch.save(state, folder / "s3d.pth")
    digest = hashlib.sha256((folder / "s3d.pth").read_bytes()).hexdigest()
    (folder / "s3d.pth").rename(folder / f"s3d-{digest[:8]}.pth")
    published = video.S3D_Weights.KINETICS400_V1.value
    monkeypatch.setattr(published, "url", f"{address}/s3d-{digest[:8]}.pth")
    record = fetch("s3d-kinetics400", lambda _: None)
    assert (record["kind"], record["origin_sha256"], record["layout"]) == ("rgb@s3d", digest, "torchvision")
    loaded = resolve("default", "rgb@s3d", lambda _: None)
    assert loaded.record == record
    network: Any = BACKBONES["s3d"].builder(loaded.state, "rgb", ExtractSettings(), "s3d-kinetics400")
    assert network.classes == 400
    got = network.model.state_dict()
    assert all(torch.equal(got[key], value) for key, value in state.items() if not key.endswith("num_batches_tracked"))

    monkeypatch.setenv("AQA_HOME", str(tmp_path / "other"))
    monkeypatch.setattr(published, "url", f"{address}/s3d-{'0' * 8}.pth")
    (folder / f"s3d-{digest[:8]}.pth").rename(folder / f"s3d-{'0' * 8}.pth")
    with pytest.raises(EnvironmentFault, match="not the published file"):
        fetch("s3d-kinetics400", lambda _: None)


def test_weights_of_another_network_are_refused_by_name(tmp_path: Path) -> None:
    state = random_network("r2plus1d_18").state_dict()
    with pytest.raises(EnvironmentFault, match=r"mine are not those of torchvision's s3d; missing: avgpool|missing: "):
        BACKBONES["s3d"].builder(state, "rgb", ExtractSettings(), "mine")
    load_exactly(random_network("r2plus1d_18"), state, "", "")
    torch.save(state, tmp_path / "r.pth")
    with pytest.raises(UsageError, match="are rgb@s3d weights, and rgb weights were asked for"):
        resolve("s3d-kinetics400", "rgb", lambda _: None)


@pytest.mark.parametrize(
    ("stream", "sampling", "crop", "said"),
    [
        ("rgb@mvit_v2_s", {"segment_frames": 8}, None, "mvit_v2_s takes clips of 16 frames"),
        ("rgb@mvit_v2_s", {}, 112, "mvit_v2_s takes crops of 224 pixels"),
        ("rgb@s3d", {"segment_frames": 9}, None, "s3d takes clips of at least 14 frames"),
        ("flow@swin3d_b", {}, None, "swin3d_b does not read flow"),
    ],
)
def test_what_a_network_does_not_take_is_refused(
    stream: str, sampling: dict[str, Any], crop: int | None, said: str
) -> None:
    from aqa_extract.streams import completed

    with pytest.raises(UsageError, match=said):
        completed(
            ExtractSettings.model_validate({"streams": (stream,), "sampling": sampling, "pixels": {"crop": crop}})
        )


def test_segments_are_as_long_as_the_network_wants() -> None:
    from aqa_extract.streams import clip_frames

    def frames(*streams: str, **sampling: Any) -> int:
        return clip_frames(ExtractSettings(streams=streams, sampling=Sampling(**sampling)))

    assert (frames("rgb"), frames("rgb@swin3d_b"), frames("rgb", "rgb@mvit_v2_s")) == (16, 32, 16)
    assert frames("rgb@swin3d_b", protocol="mtl-aqa") == 16
    assert frames("rgb", "rgb@swin3d_b", segment_frames=24) == 24
    with pytest.raises(UsageError, match="i3d 16, swin3d_b 32 frames"):
        frames("rgb", "rgb@swin3d_b")
