"""The table of streams: how they are written, what is refused, which arrays follow, and what decides their values."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise

import pytest

from aqa_extract.backbones import BACKBONES
from aqa_extract.streams import (
    VIEWS,
    array_specs,
    canvases,
    chosen,
    completed,
    decides,
    every,
    flow_canvases,
    identities,
    parse,
)
from aqa_shared.errors import UsageError
from aqa_shared.records import ActorSettings, ExtractSettings, FlowSettings, Pixels, Sampling
from aqa_shared.store import ArraySpec


def settings(*streams: str, **more: object) -> ExtractSettings:
    flow = FlowSettings(mode="parity" if any("flow" in s for s in streams) else "off")
    return ExtractSettings.model_validate({"streams": streams, "flow": flow, **more})


def test_every_stream_is_written_as_it_is_read() -> None:
    names = [stream.name for stream in every()]
    assert len(set(names)) == len(names)
    assert {"rgb", "actor-flow", "still-actor-rgb", "rot90-flow", "mirror-rgb"} <= set(names)
    assert "still-flow" not in names
    for stream in every():
        for output in stream.outputs:
            found = parse(f"{stream.name}:{output}" if output else stream.name)
            assert (found.name, found.outputs) == (stream.name, (output,))
    assert parse("rgb@i3d").name == "rgb"


def test_no_two_arrays_have_one_name_and_every_name_is_the_stores() -> None:
    names = [stream.array(output) for stream in every() for output in stream.outputs]
    assert len(set(names)) == len(names)
    for name in names:
        ArraySpec(name, ("channel",), (1,), "float32", role="map")
    coordinates = {s.name for s in array_specs(settings("actor-rgb", actor=ActorSettings(actors=2)))} - {"actor_rgb"}
    assert not coordinates & set(names)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("rbg", "did you mean rgb?"),
        ("rot45-rgb", "views still, rot90, rot180, rot270, mirror"),
        ("rgb@i4d", "backbones i3d"),
        ("actor-rot90-rgb", r"\[view-\]\[actor-\]\(rgb\|flow\)\[@backbone\]\[:output\]"),
        ("still-flow", "nothing moves"),
        ("rgb:features", "its outputs are logits, map"),
        ("", "unknown stream ''"),
    ],
)
def test_an_unknown_stream_is_refused_with_what_there_is(written: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen(settings("rgb", written))
    assert re.search(said, f"{caught.value.cause} {caught.value.fix}")


def test_streams_are_kept_in_the_tables_order_whatever_was_asked() -> None:
    asked = ("actor-rgb:map", "mirror-rgb", "flow", "rgb:map", "rgb@i3d", "actor-rgb")
    found = completed(settings(*asked))
    assert found.streams == ("rgb", "rgb:map", "flow", "actor-rgb", "actor-rgb:map", "mirror-rgb")
    assert completed(found) == found


def test_arrays_have_the_roles_and_shapes_of_their_outputs() -> None:
    wanted = settings("rgb", "rot90-rgb:map", "actor-rgb:logits", sampling=Sampling(segment_frames=20))
    specs = {s.name: s for s in array_specs(wanted)}
    assert {n: (s.role, s.shape) for n, s in specs.items() if s.role != "coordinate"} == {
        "rgb": ("feature", (1024,)),
        "actor_rgb_logits": ("logits", (400,)),
        "rot90_rgb_map": ("map", (1024, 3, 7, 7)),
    }
    assert specs["frame_index"].shape == (20,)
    assert specs["rot90_rgb_map"].attrs["stream"] == "rot90-rgb"


def test_a_dimension_has_one_size_in_all_arrays_as_xarray_wants() -> None:
    names = [f"{b.network('rgb')}:{o}".removesuffix(":") for b in BACKBONES.values() for o in b.outputs]
    sizes: dict[str, set[int]] = {}
    for spec in array_specs(settings(*names, sampling=Sampling(segment_frames=16))):
        for dim, size in zip(spec.dims, spec.shape, strict=True):
            sizes.setdefault(dim, set()).add(size)
    assert all(len(found) == 1 for found in sizes.values())
    assert sizes["channel"] == {1024}


def test_views_share_the_frames_and_the_flow() -> None:
    views = [f"{view}-" if view else "" for view in VIEWS]
    many = settings(*(f"{v}rgb" for v in views), *(f"{v}flow" for v in views if v != "still-"))
    assert len(canvases(many)) == len(flow_canvases(many)) == 1
    assert canvases(settings("actor-rgb")) == []


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (settings("rgb", sampling=Sampling(segment_frames=8)), "i3d takes clips of at least 9 frames"),
        (settings("rgb", weights={"rgb@i4d": "x"}), "not a network"),
        (ExtractSettings(streams=("flow",)), "need flow mode parity"),
        (settings("rgb", pixels=Pixels(crop=300)), r"crop \(300\) must not exceed short_side \(256\)"),
    ],
)
def test_what_cannot_be_extracted_is_refused(wanted: ExtractSettings, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        completed(wanted)


def test_defaults_decide_nothing_and_the_rest_is_named() -> None:
    rgb, flow, actor = (parse(name) for name in ("rgb", "flow", "actor-rgb"))
    plain = completed(settings("rgb", "flow", "actor-rgb"))
    assert decides(rgb, plain) == decides(flow, plain) == decides(actor, plain) == {}
    # What is said and what is the backbone's own are one.
    said = settings("rgb", pixels=Pixels(crop=224, short_side=256, normalise="kinetics", antialias=False, fit="crop"))
    assert decides(rgb, completed(said)) == {}
    other = settings(
        "rgb", "flow", "actor-rgb",
        sampling=Sampling(segments=4, segment_frames=12),
        pixels=Pixels(short_side=128, crop=112, normalise="imagenet"),
        actor=ActorSettings(enlarge=2, actors=3),
        precision="bf16",
        bn_eps=1e-5,
    )  # fmt: skip
    other = other.model_copy(update={"flow": FlowSettings(mode="parity", bound=10)})
    both = {"sampling.segments", "sampling.segment_frames", "pixels.crop", "precision", "bn_eps"}
    assert decides(rgb, other).keys() == both | {"pixels.canvas", "pixels.mean", "pixels.std"}
    assert decides(flow, other).keys() == both | {"pixels.canvas", "flow.bound"}
    assert decides(actor, other).keys() == both | {"pixels.mean", "pixels.std", "actor.enlarge"}
    json.dumps(decides(rgb, other))


def test_an_arrays_identity_has_the_digests_of_all_that_made_it() -> None:
    weights = {"rgb": {"sha256": "a"}, "flow": {"sha256": "b"}, "actor": {"sha256": "c"}}
    wanted = completed(settings("rot90-rgb", "actor-rgb:map", actor=ActorSettings(enlarge=2), bn_eps=1e-5))
    box = {"actor.enlarge": 2.0, "weights.actor": "c"}
    assert identities(wanted, weights) == {
        "frame_index": {},
        "segment_start_time": {},
        "segment_end_time": {},
        "actor_box": box,
        "actor_score": box,
        "actor_rgb_map": {**box, "bn_eps": 1e-5, "weights.rgb": "a"},
        "rot90_rgb": {"bn_eps": 1e-5, "weights.rgb": "a"},
    }
    assert identities(wanted)["rot90_rgb"] == {"bn_eps": 1e-5}
    longer = completed(settings("rgb", sampling=Sampling(segment_frames=20), pixels=Pixels(untagged_matrix="bt709")))
    assert identities(longer)["frame_index"].keys() == {"sampling.segment_frames"}
    assert identities(longer)["rgb"].keys() == {"sampling.segment_frames", "pixels.untagged_matrix"}


def test_tables_need_no_torch() -> None:
    code = "import sys, aqa_extract.streams, aqa_extract.weights_registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_each_backbone_is_whole() -> None:
    for name, backbone in BACKBONES.items():
        assert backbone.name == name
        assert backbone.outputs[""].role == "feature"
        assert all(entries and entries[0].by_default for entries in backbone.weights.values())
        frames, crop = backbone.input.frames, backbone.input.crop
        completed(settings(*(backbone.network(m) for m in backbone.weights)))  # its own input is one it takes
        for output in backbone.outputs.values():
            assert len(output.dims) == len(output.shape(frames, crop))
    assert all(a != b for a, b in pairwise(sorted(BACKBONES)))
