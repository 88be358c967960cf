"""Small parts that OpenVINO graphs are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset15 as ops

from sidecar.engines.errors import EngineError
from sidecar.engines.weights import FloatArray

Node = Any  # ov.Node and ov.Output are interchangeable as operands; the stubs say only one of them


def constant(values: FloatArray) -> Node:
    return ops.constant(np.ascontiguousarray(values))


def int8_rows(values: FloatArray) -> Node:
    """Each row in steps of its largest value / 127. This form of operations is the one that the
    CPU plugin computes with as it is, instead of unpacking it at load."""
    wide = values.astype(np.float32)
    step = np.maximum(np.abs(wide).max(axis=1, keepdims=True) / 127, np.finfo(np.float16).tiny)
    steps = ops.constant(np.rint(wide / step).astype(np.int8))
    return ops.multiply(ops.convert(steps, np.float16), constant(step.astype(np.float16)))


def decompressed(compressed: Node) -> Node:
    """Float32 view of stored float16 weights; the CPU plugin picks the arithmetic."""
    return ops.convert(compressed, np.float32)


def ints(*values: int) -> Node:
    return ops.constant(np.array(values, np.int32))


def scalar(value: int) -> Node:
    return ops.constant(np.array(value, np.int32))


def float_(value: float) -> Node:
    return ops.constant(np.array(value, np.float32))


def write_graph(graph: openvino.Model, path: Path) -> None:
    """`path`, and its weights beside it. Raises EngineError."""
    try:
        openvino.serialize(graph, path)
    except RuntimeError as error:
        raise EngineError(f"{path}: cannot be written; is the disk full? ({error})") from None
