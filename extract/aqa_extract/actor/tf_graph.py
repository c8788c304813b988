"""Constants of a frozen TensorFlow graph, read without TensorFlow.

A frozen graph (`frozen_inference_graph.pb`) is one protocol-buffer message, and of its schema only this much
matters (field numbers from tensorflow/core/framework/{graph,node_def,attr_value,tensor,tensor_shape}.proto):

    GraphDef           node 1
    NodeDef            name 1, op 2, input 3, attr 5 (map entries: key 1, value 2)
    AttrValue          i 3, f 4, tensor 8
    TensorProto        dtype 1, tensor_shape 2, tensor_content 4, float_val 5
    TensorShapeProto   dim 2 (size 1)

Everything else is skipped by its wire type. Nothing is executed, and no length is believed before it is
checked against the bytes that are there, so a damaged or hostile file ends in an `EnvironmentFault`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aqa_shared.errors import EnvironmentFault

MAX_BYTES = 512 * 1024 * 1024
"""A frozen detector is tens of MB; a much larger file is not one."""
MAX_NODES = 200_000
MAX_DIMENSIONS = 8

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT32 = 1  # tensorflow.DataType.DT_FLOAT
_NORMALISATION = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


class _Malformed(ValueError):
    """The bytes do not follow the wire format; becomes an `EnvironmentFault` where the file is known."""


@dataclass(frozen=True)
class Node:
    """One operation of the graph."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    """Names of the operations it reads, as written (`^control` and `:output` marks included)."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Its scalar attributes, integers and floats."""
    value: NDArray[np.float32] | None = None
    """The float32 tensor of a `Const`; None for every other operation and dtype."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The base-128 number at `at` and the position after it."""
    value = 0
    for shift in range(0, 70, 7):  # 64 bits need at most ten bytes
        if at >= len(data):
            raise _Malformed("a number is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise _Malformed("a number has more than ten bytes")


def _fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """(field number, wire type, value) of one message, in file order."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise _Malformed("field number 0")
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _Malformed(f"wire type {wire}")
        if size > len(data) - at:
            raise _Malformed(f"field {number} claims {size} bytes where {len(data) - at} are left")
        yield number, wire, data[at : at + size]
        at += size


def _text(value: int | memoryview) -> str:
    return str(_message(value), "utf-8")  # UnicodeDecodeError is a ValueError


def _message(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _Malformed("a number where bytes belong")
    return value


def _shape(data: memoryview) -> tuple[int, ...]:
    sizes: list[int] = []
    for number, _, dim in _fields(data):
        if number != 2:
            continue
        # A dimension of size 0 is written as an absent field.
        size = 0
        for inner, wire, value in _fields(_message(dim)):
            if inner == 1 and wire == _VARINT and isinstance(value, int):
                size = value
        sizes.append(size)
    if len(sizes) > MAX_DIMENSIONS:
        raise _Malformed(f"{len(sizes)} dimensions")
    return tuple(sizes)


def _tensor(data: memoryview) -> NDArray[np.float32] | None:
    """A float32 TensorProto as an array; None for other dtypes."""
    dtype = 0
    shape: tuple[int, ...] = ()
    content: memoryview | None = None
    listed = bytearray()
    for number, wire, value in _fields(data):
        if number == 1 and isinstance(value, int):
            dtype = value
        elif number == 2:
            shape = _shape(_message(value))
        elif number == 4:
            content = _message(value)
        elif number == 5 and wire in (_BYTES, _FIXED32):  # packed, or one at a time
            listed += _message(value)
    if dtype != _FLOAT32:
        return None
    count = prod(shape)
    stored = content if content is not None and len(content) else memoryview(listed)
    if len(stored) % 4:
        raise _Malformed(f"{len(stored)} bytes of float32")
    values = np.frombuffer(stored, "<f4")
    if values.size == 1 and content is None and count <= data.nbytes:
        values = np.repeat(values, count)  # TensorFlow writes a constant fill once
    if values.size != count:
        raise _Malformed(f"{values.size} values for shape {shape}")
    return values.reshape(shape).astype(np.float32)


def _node(data: memoryview) -> Node:
    name = op = ""
    inputs: list[str] = []
    numbers: dict[str, float] = {}
    value: NDArray[np.float32] | None = None
    for number, _, part in _fields(data):
        if number == 1:
            name = _text(part)
        elif number == 2:
            op = _text(part)
        elif number == 3:
            inputs.append(_text(part))
        elif number == 5:
            entry = {n: v for n, _, v in _fields(_message(part))}
            key = _text(entry.get(1, memoryview(b"")))
            for kind, wire, attribute in _fields(_message(entry.get(2, memoryview(b"")))):
                if kind == 3 and isinstance(attribute, int):
                    numbers[key] = attribute - (1 << 64) if attribute >> 63 else attribute
                elif kind == 4 and wire == _FIXED32:
                    numbers[key] = float(struct.unpack("<f", _message(attribute))[0])
                elif kind == 8 and key == "value":
                    value = _tensor(_message(attribute))
    return Node(name, op, tuple(inputs), numbers, value)


def read_graph(path: str | os.PathLike[str]) -> dict[str, Node]:
    """Every node of the frozen graph at `path`, by name, in file order.

    Raises `EnvironmentFault` when the file cannot be read or is not a whole GraphDef.
    """
    fix = "fetch the weights again, or name another frozen_inference_graph.pb"
    try:
        size = os.path.getsize(path)
        if size > MAX_BYTES:
            raise _Malformed(f"{size} bytes, more than the {MAX_BYTES} a detector may have")
        with open(path, "rb") as file:
            data = memoryview(file.read(MAX_BYTES + 1))
        nodes: dict[str, Node] = {}
        for number, _, part in _fields(data):
            if number == 1:
                node = _node(_message(part))
                nodes[node.name] = node
                if len(nodes) > MAX_NODES:
                    raise _Malformed(f"more than {MAX_NODES} nodes")
    except OSError as e:
        raise EnvironmentFault(f"cannot read the TensorFlow graph {path}: {e.strerror or e}", fix=fix) from e
    except ValueError as e:  # _Malformed, and text that is not UTF-8
        raise EnvironmentFault(f"{path} is not a whole TensorFlow graph: {e}", fix=fix) from e
    if not nodes:
        raise EnvironmentFault(f"{path} holds no TensorFlow graph nodes", fix=fix)
    return nodes


def load_ssd_mobilenet_v3(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """State of `aqa_extract.actor.mobilenet_ssd.MobileNetSSD` from the zoo's frozen graph at `path`.

    TensorFlow keeps kernels as (height, width, in, out), depthwise ones as (height, width, in, multiplier).
    Raises `EnvironmentFault` when the graph is damaged or a constant is missing.
    """
    from aqa_extract.actor.mobilenet_ssd import scopes  # torchvision loads only when a graph is converted

    nodes = read_graph(path)
    absent: list[str] = []

    def constant(name: str, axes: tuple[int, ...] = ()) -> Tensor:
        node = nodes.get(name)
        if node is None or node.value is None or (axes and node.value.ndim != len(axes)):
            absent.append(name)
            return torch.zeros(())
        value = node.value.transpose(axes) if axes else node.value
        return torch.from_numpy(np.ascontiguousarray(value))

    state: dict[str, Tensor] = {}
    for name, scope in scopes().items():
        if f"{scope}/depthwise_weights" in nodes:
            kernel = constant(f"{scope}/depthwise_weights", (2, 3, 0, 1))
        else:
            kernel = constant(f"{scope}/weights", (3, 2, 0, 1))
        if f"{scope}/biases" in nodes:
            state |= {f"{name}.weight": kernel, f"{name}.bias": constant(f"{scope}/biases")}
            continue
        state[f"{name}.0.weight"] = kernel
        for key, part in _NORMALISATION.items():
            state[f"{name}.1.{key}"] = constant(f"{scope}/BatchNorm/{part}")
    if absent:
        raise EnvironmentFault(
            f"{path} is not ssd_mobilenet_v3_large_coco: it lacks {len(absent)} constants, first {absent[0]}",
            fix="name the frozen_inference_graph.pb of ssd_mobilenet_v3_large_coco_2020_01_14",
        )
    return state
