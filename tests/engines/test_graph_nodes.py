from __future__ import annotations

import numpy as np
import openvino
import pytest
from openvino import opset15 as ops

from sidecar.engines.graph_nodes import decompressed, int8_groups


@pytest.mark.parametrize(("columns", "group"), [(128, 64), (96, 96)])
def test_each_group_of_columns_is_rounded_by_its_own_largest_value(
    columns: int, group: int
) -> None:
    values = np.random.default_rng(0).standard_normal((4, columns)).astype(np.float32)
    # One large value would make the steps of all of its row too coarse.
    values[:, 0] = 1000
    values[1] = 0
    graph = openvino.Model([ops.result(decompressed(int8_groups(values)))], [], "weights")
    stored = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})({})[0]
    groups = values.reshape(4, -1, group)
    step = np.abs(groups).max(axis=2, keepdims=True) / 127
    error = np.abs(stored.reshape(groups.shape) - groups)
    # Half a step, and what the scale loses in float16.
    assert (error <= 0.5 * step + np.abs(groups) * 2.0**-11 + 1e-7).all()
