"""The person detector: parity with the TensorFlow network's goldens, with torchvision and with OpenCV."""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import box_iou, nms

from aqa_extract.actor import mobilenet_ssd
from aqa_extract.actor.mobilenet_ssd import MobileNetSSD
from aqa_extract.actor.ssd import (
    PersonDetector,
    TorchvisionSSD,
    build_detector,
    decode,
    load_detector,
    overlaps,
    suppress,
)
from aqa_extract.actor.tf_graph import load_ssd_mobilenet_v3, read_graph
from aqa_extract.resize import resize_like_opencv
from aqa_shared.errors import EnvironmentFault

CLIPS = ("mmaction2_demo", "v_GGSY1Qvo990")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """The COCO weights of SSD MobileNetV3: from AQA_SSD_GRAPH (the zoo's .pb) or the weights registry."""
    if graph := os.environ.get("AQA_SSD_GRAPH"):
        return load_ssd_mobilenet_v3(graph)
    from aqa_extract.weights import resolve

    try:
        return resolve("ssd-mobilenet-v3", "actor", print).state
    except EnvironmentFault as e:
        pytest.skip(f"the weights of ssd-mobilenet-v3 cannot be had here: {e.cause}")


@pytest.fixture(scope="module")
def detector(state: dict[str, Tensor]) -> PersonDetector:
    return build_detector(state)


def golden(shared_dir: Path, clip: str) -> dict[str, np.ndarray]:
    return dict(np.load(shared_dir / "goldens" / f"ssd_{clip}.npz"))


def as_batch(frames: np.ndarray) -> Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


# --- the network against TensorFlow's -------------------------------------------------------------


def test_anchors_are_the_graphs(shared_dir: Path) -> None:
    theirs = np.load(shared_dir / "goldens" / "ssd_mobilenet_v3_anchors_cycxhw.npy")
    np.testing.assert_allclose(mobilenet_ssd.anchors().numpy()[:, [1, 0, 3, 2]], theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("clip", CLIPS)
def test_raw_outputs_equal_the_onnx_network(shared_dir: Path, state: dict[str, Tensor], clip: str) -> None:
    import onnxruntime  # type: ignore[import-untyped]

    session = onnxruntime.InferenceSession(
        shared_dir / "goldens" / "ssd_mobilenet_v3_large_coco_raw.onnx", providers=["CPUExecutionProvider"]
    )
    net = MobileNetSSD().eval()
    net.load_state_dict(state, strict=False)
    for frame in golden(shared_dir, clip)["frames"]:
        x = cv2.resize(frame, (320, 320)).astype(np.float32)[None] / 127.5 - 1
        codes, scores = session.run(None, {session.get_inputs()[0].name: x})
        with torch.inference_mode():
            our_codes, our_logits = net.raw(torch.from_numpy(x).permute(0, 3, 1, 2))
            person_codes, person = net(torch.from_numpy(x).permute(0, 3, 1, 2))
        np.testing.assert_allclose(our_codes.numpy(), codes, atol=1e-4, rtol=0)  # codes reach ±12
        np.testing.assert_allclose(our_logits.sigmoid().numpy(), scores, atol=1e-5, rtol=0)
        # The short way to the person column is the long way's column.
        np.testing.assert_allclose(person_codes.numpy()[..., [1, 0, 3, 2]], our_codes.numpy(), atol=1e-5)
        np.testing.assert_allclose(person.numpy(), our_logits.sigmoid().numpy()[..., 1], atol=1e-6)


@pytest.mark.parametrize("clip", CLIPS)
def test_finds_the_goldens_people(shared_dir: Path, detector: PersonDetector, clip: str) -> None:
    want = golden(shared_dir, clip)
    found = detector.detect(as_batch(want["frames"]))
    for i in range(len(want["frames"])):
        boxes = torch.from_numpy(want[f"boxes{i}"])
        assert box_iou(boxes, found.boxes[i, : len(boxes)]).diagonal().min() > 0.995
        np.testing.assert_allclose(found.scores[i, : len(boxes)], want[f"scores{i}"], atol=1e-3)


def test_a_frame_is_seen_alike_alone_and_in_a_batch(shared_dir: Path, detector: PersonDetector) -> None:
    frames = as_batch(golden(shared_dir, CLIPS[0])["frames"])
    together = detector.detect(frames)
    alone = detector.detect(frames[1:2])
    torch.testing.assert_close(together.boxes[1:2], alone.boxes, atol=1e-4, rtol=0)
    torch.testing.assert_close(together.scores[1:2], alone.scores, atol=1e-4, rtol=0)


def test_an_empty_picture_has_no_likely_person(detector: PersonDetector) -> None:
    found = detector.detect(torch.full((1, 3, 240, 320), 127, dtype=torch.uint8))
    assert found.scores.max() < 0.3
    assert found.boxes.shape == (1, 16, 4)
    assert torch.isfinite(found.boxes).all()


@pytest.mark.gpu
def test_the_gpu_sees_the_same_and_the_host_never_waits(shared_dir: Path, state: dict[str, Tensor]) -> None:
    frames = as_batch(golden(shared_dir, CLIPS[0])["frames"])
    cpu = build_detector(state).detect(frames)
    detector = build_detector(state).to("cuda")
    on_gpu = frames.to("cuda")
    detector.detect(on_gpu)  # the first call plans the convolutions
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        gpu = detector.detect(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for i in range(len(frames)):
        assert box_iou(cpu.boxes[i, :5], gpu.boxes[i, :5].cpu()).diagonal().min() > 0.98
    torch.testing.assert_close(gpu.scores[:, :5].cpu(), cpu.scores[:, :5], atol=0.02, rtol=0)


# --- torchvision's networks against torchvision ---------------------------------------------------


def torchvision_model(name: str) -> Any:
    """Random but fixed weights, scaled layer by layer so that signals survive the depth as in training."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model: Any = {
            "ssd300_vgg16": detection.ssd300_vgg16,
            "ssdlite320": detection.ssdlite320_mobilenet_v3_large,
        }[name](weights=None, weights_backbone=None, num_classes=91).eval()

    def unit_variance(conv: nn.Module, _: Any, output: Tensor) -> Tensor:
        scale = 1 / output.std().clamp(min=1e-6)
        for parameter in conv.parameters(recurse=False):
            parameter.mul_(scale)
        return output * scale

    hooks = [m.register_forward_hook(unit_variance) for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model([f.float() / 255 for f in pictures(1, 300, 300, seed=0)])
    for hook in hooks:
        hook.remove()
    # So many that no person is lost to another class's detections.
    model.detections_per_img = 10**6
    return model


def pictures(count: int, height: int, width: int, seed: int) -> Tensor:
    """Smooth blots of colour, uint8 (count, 3, height, width)."""
    coarse = torch.randint(0, 256, (count, 3, 12, 12), generator=torch.Generator().manual_seed(seed)).float()
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255).byte()


@pytest.mark.parametrize(
    ("name", "height_width"), [("ssd300_vgg16", None), ("ssdlite320", None), ("ssdlite320", (180, 240))]
)
def test_people_are_torchvisions(name: str, height_width: tuple[int, int] | None) -> None:
    model = torchvision_model(name)
    detector = build_detector(model.state_dict())
    assert isinstance(detector.network, TorchvisionSSD)
    height, width = height_width or (detector.size, detector.size)
    frames = pictures(2, height, width, seed=1)
    with torch.inference_mode():
        theirs = model([f.float() / 255 for f in frames])
    found = detector.detect(frames)
    # Of another size, torchvision keeps the fractions of a grey level that OpenCV's resize rounds away.
    tolerance = 1e-4 if height_width is None else 5e-3
    for i, image in enumerate(theirs):
        people = image["labels"] == 1
        boxes = (image["boxes"] / torch.tensor([width, height, width, height]))[people][:8]
        scores = image["scores"][people][:8]
        assert len(boxes) == 8, "the reference found too little to compare"
        np.testing.assert_allclose(found.scores[i, :8], scores, atol=tolerance)
        if height_width is None:
            assert box_iou(boxes, found.boxes[i, :8]).diagonal().min() > 0.98
        else:  # near-equal scores may swap places
            assert box_iou(boxes, found.boxes[i]).max(dim=1).values.median() > 0.98


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_is_loaded_as_what_its_keys_say(tmp_path: Path, suffix: str) -> None:
    state = torchvision_model("ssdlite320").state_dict()
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    said: list[str] = []
    detector, record = load_detector(str(path), said.append)
    assert isinstance(detector.network, TorchvisionSSD)
    assert record["name"] == path.name
    assert any(path.name in line for line in said)
    frames = pictures(1, detector.size, detector.size, seed=2)
    torch.testing.assert_close(detector.detect(frames).scores, build_detector(state).detect(frames).scores)


def test_folded_normalisation_changes_nothing(state: dict[str, Tensor]) -> None:
    net = MobileNetSSD().eval()
    net.load_state_dict(state, strict=False)
    detector = build_detector(state)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.modules())
    x = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for plain, folded in zip(net(x), detector.network(x), strict=True):
            torch.testing.assert_close(folded, plain, atol=2e-4, rtol=0)


def test_unknown_weights_are_named() -> None:
    with pytest.raises(EnvironmentFault, match=r"no known detector \(first key: fc.weight\)"):
        build_detector({"fc.weight": torch.zeros(1)})
    with pytest.raises(EnvironmentFault, match="no key at all"):
        build_detector({})
    broken = MobileNetSSD().state_dict()
    broken["extractor.features.0.0.0.weight"] = torch.zeros(16, 4, 3, 3)
    with pytest.raises(EnvironmentFault, match="do not fit ssd-mobilenet-v3"):
        build_detector(broken)


def test_frames_of_another_kind_are_refused(state: dict[str, Tensor]) -> None:
    detector = build_detector(state)
    with pytest.raises(ValueError, match="expected uint8"):
        detector.detect(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="expected uint8"):
        detector.detect(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


# --- the operations -------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 40), st.floats(0.1, 0.9))
def test_suppression_is_torchvisions_nms(seed: int, count: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(3, count, 2, generator=generator)
    side = 0.05 + 0.5 * torch.rand(3, count, 2, generator=generator)
    boxes = torch.cat([corner, corner + side], dim=-1)
    scores = torch.linspace(1, 0.1, count)
    keep = suppress(boxes, threshold)
    for i in range(3):
        assert torch.equal(keep[i].nonzero().flatten(), nms(boxes[i], scores, threshold).sort().values)


def test_overlaps_by_hand() -> None:
    boxes = torch.tensor([[[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6], [4, 4, 4, 4]]], dtype=torch.float32)
    found = overlaps(boxes)[0]
    assert found[0, 1] == pytest.approx(1 / 7)
    assert found[0, 2] == 0
    assert found[3, 3] == 0  # no area, no overlap, no division by zero
    assert torch.equal(found, found.T)


def test_decode_by_hand() -> None:
    anchor = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    torch.testing.assert_close(decode(torch.zeros(1, 4), anchor), torch.tensor([[0.4, 0.3, 0.6, 0.7]]))
    # Right by half a width, twice as tall.
    codes = torch.tensor([[5.0, 0.0, 0.0, 5 * math.log(2)]])
    torch.testing.assert_close(decode(codes, anchor), torch.tensor([[0.5, 0.1, 0.7, 0.9]]))
    assert decode(torch.full((1, 4), 1e9), anchor).isfinite().all()


@settings(max_examples=40)
@given(st.integers(0, 2**31), *[st.integers(1, 90)] * 4)
def test_resize_is_opencvs(seed: int, height: int, width: int, out_height: int, out_width: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ours = resize_like_opencv(as_batch(frame[None]), (out_height, out_width))
    theirs = cv2.resize(frame, (out_width, out_height), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(ours[0].permute(1, 2, 0), theirs)


# --- the graph file -------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def packed(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def tensor(shape: tuple[int, ...], body: bytes, dtype: int = 1) -> bytes:
    dims = b"".join(packed(2, b"\x08" + varint(n)) for n in shape)
    return b"\x08" + varint(dtype) + packed(2, dims) + body


def node(name: str, op: str, **attributes: bytes) -> bytes:
    data = packed(1, name.encode()) + packed(2, op.encode()) + packed(3, b"input") + packed(3, b"^control")
    for key, value in attributes.items():
        data += packed(5, packed(1, key.encode()) + packed(2, value))
    return packed(1, data)


def graph() -> bytes:
    values = struct.pack("<6f", *range(6))
    one = struct.pack("<f", 2.5)
    return (
        node("content", "Const", value=packed(8, tensor((2, 3), packed(4, values))))
        + node("listed", "Const", value=packed(8, tensor((6,), packed(5, values))))
        + node("filled", "Const", value=packed(8, tensor((4,), packed(5, one))))
        + node("single", "Const", value=packed(8, tensor((), varint(5 << 3 | 5) + one)))
        + node("integers", "Const", value=packed(8, tensor((1,), packed(4, b"\0\0\0\0"), dtype=3)))
        + node("norm", "FusedBatchNormV3", epsilon=varint(4 << 3 | 5) + struct.pack("<f", 0.001), n=b"\x18\x07")
        + packed(4, b"\x08\x18")  # versions: skipped
    )


def test_reads_a_graph_written_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "graph.pb"
    path.write_bytes(graph())
    nodes = read_graph(path)
    assert list(nodes) == ["content", "listed", "filled", "single", "integers", "norm"]
    np.testing.assert_array_equal(nodes["content"].value, np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(nodes["listed"].value, np.arange(6, dtype=np.float32))
    np.testing.assert_array_equal(nodes["filled"].value, np.full(4, 2.5, np.float32))
    assert nodes["single"].value == np.float32(2.5)
    assert nodes["integers"].value is None
    assert nodes["norm"].op == "FusedBatchNormV3"
    assert nodes["norm"].inputs == ("input", "^control")
    assert nodes["norm"].numbers == {"epsilon": pytest.approx(0.001), "n": 7}


@settings(max_examples=300)
@given(data=st.data())
def test_damaged_graphs_are_faults_and_nothing_else(data: st.DataObject, tmp_path_factory: Any) -> None:
    whole = bytearray(graph())
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.getbasetemp() / "damaged.pb"
    path.write_bytes(whole[:cut])
    try:
        nodes = read_graph(path)
    except EnvironmentFault as e:
        nodes = {}
        fault: EnvironmentFault | None = e
    else:
        fault = None
    assert fault is None or ("damaged.pb" in fault.cause and fault.fix)
    # No damage makes the reader believe in more data than there is.
    assert all(n.value is None or n.value.nbytes <= 4 * len(whole) for n in nodes.values())


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "holds no TensorFlow graph nodes"),
        (b"\x80" * 11, "more than ten bytes"),
        (b"\x0a\xff\xff\xff\xff\x7f", "bytes where 0 are left"),
        (b"<html>404</html>", "is not a whole TensorFlow graph"),
        (node("x", "Const", value=packed(8, tensor((2**40,), packed(5, b"\0\0\0\0")))), "values for shape"),
        (graph(), "it lacks"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "wrong.pb"
    path.write_bytes(content)
    with pytest.raises(EnvironmentFault, match=why) as caught:
        load_ssd_mobilenet_v3(path)
    assert str(path) in caught.value.cause


def test_a_missing_file_is_explained(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot read"):
        read_graph(tmp_path / "absent.pb")


def test_the_graph_fills_every_weight_once() -> None:
    names = mobilenet_ssd.scopes()
    assert len(set(names.values())) == len(names)
    wanted = {k for k in MobileNetSSD().state_dict() if not k.endswith("num_batches_tracked")}
    covered = {k for k in wanted if any(k.startswith(f"{name}.") for name in names)}
    assert covered == wanted
