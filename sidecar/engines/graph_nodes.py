"""Small parts that OpenVINO graphs are made of."""

from __future__ import annotations

from collections.abc import Set
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import openvino
from openvino import opset15 as ops

from sidecar.engines.errors import EngineError
from sidecar.engines.weights import FloatArray

_GROUP = 64
"""Columns that share a scale."""

_IN_FLOAT32 = "sidecar_in_float32"

Node = Any  # ov.Node and ov.Output are interchangeable as operands; the stubs say only one of them


def constant(values: FloatArray) -> Node:
    return ops.constant(np.ascontiguousarray(values))


def int8_groups(values: FloatArray) -> Node:
    """Each group of columns, or row where they do not divide, in steps of its largest value / 127.
    This form of operations is the one that the CPU plugin computes with as it is, instead of
    unpacking it at load; where the CPU has VNNI, with activations in int8, too."""
    columns = values.shape[1]
    size = _GROUP if columns % _GROUP == 0 else columns
    groups = values.astype(np.float32).reshape(len(values), -1, size)
    largest = np.abs(groups).max(axis=2, keepdims=True)
    step = np.maximum(largest / 127, np.finfo(np.float16).tiny).astype(np.float16)
    codes = np.clip(np.rint(groups / step.astype(np.float32)), -127, 127).astype(np.int8)
    scaled = ops.multiply(ops.convert(ops.constant(codes), np.float16), constant(step))
    return ops.reshape(scaled, ints(*values.shape), False)


def decompressed(compressed: Node) -> Node:
    """Float32 view of stored float16 weights; the CPU plugin picks the arithmetic."""
    return ops.convert(compressed, np.float32)


def ints(*values: int) -> Node:
    return ops.constant(np.array(values, np.int32))


def scalar(value: int) -> Node:
    return ops.constant(np.array(value, np.int32))


def float_(value: float) -> Node:
    return ops.constant(np.array(value, np.float32))


def in_float32(node: Node) -> Node:
    """`node`, computed and kept in float32 where all else is bfloat16."""
    node.get_rt_info()[_IN_FLOAT32] = True
    return node


def write_graph(graph: openvino.Model, path: Path) -> None:
    """`path`, and its weights beside it. Raises EngineError."""
    precise = {op.get_friendly_name() for op in graph.get_ops() if _IN_FLOAT32 in op.get_rt_info()}
    try:
        openvino.serialize(graph, path)
        if precise:
            _mark_precise(path, precise)
    except (RuntimeError, OSError) as error:
        raise EngineError(f"{path}: cannot be written; is the disk full? ({error})") from None


def _mark_precise(path: Path, layers: Set[str]) -> None:
    """In the file, since OpenVINO's Python cannot make the attribute: `DisableFP16Compression` of
    its rt_info/disable_fp16_compression.hpp, which the CPU plugin heeds for bfloat16, too."""
    tree = ElementTree.parse(path)  # noqa: S314 - written a moment ago
    for layer in tree.iter("layer"):
        if layer.get("name") in layers:
            info = ElementTree.Element("rt_info")
            ElementTree.SubElement(info, "attribute", name="precise", version="0")
            layer.insert(1 if layer.find("data") is not None else 0, info)
    tree.write(path)
